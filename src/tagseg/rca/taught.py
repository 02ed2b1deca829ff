"""Taught entries of the memory bank: regions and clusters that a person named, as prototypes beside the mined ones."""

import heapq
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from tagseg.errors import RunError
from tagseg.run.taught import Answer
from tagseg.system.records import Count, Record, record_values
from tagseg.training.checkpoint import as_record, load_tensors, save_tensors

ALIKE = 0.7
"""Cosine with the clicked surroundings from which a cell belongs to a clicked region."""

LARGEST_REGION = 0.25
"""Largest share of an image's cells in a clicked region: the most similar ones come first."""

TAUGHT = "taught.safetensors"
"""The file of the taught entries, in the folder of the classification network."""


class TaughtAbout(Record, frozen=True):
    """The metadata of taught.safetensors: the digest of the answers, and the number of the answer behind each entry."""

    digest: str
    numbers: tuple[Count, ...]


@dataclass(frozen=True)
class TaughtEntries:
    """Entries of the bank whose source is a person.

    features: of unit length, one per entry. labels: 0 for background, else the class id. numbers: which answer each
    comes from. digest: of these answers (see `taught_digest`).
    """

    features: Float[Tensor, "n d"]
    labels: Int[Tensor, "n"]
    numbers: tuple[int, ...]
    digest: str = ""

    def __len__(self) -> int:
        return len(self.labels)

    def without(self, numbers: Collection[int]) -> "TaughtEntries":
        """Return the entries that come from other answers than these."""
        kept = [row for row, number in enumerate(self.numbers) if number not in numbers]
        return TaughtEntries(self.features[kept], self.labels[kept], tuple(self.numbers[row] for row in kept))


def crowding(mined: Int[Tensor, "e"], labels: Int[Tensor, "n"]) -> Float[Tensor, "e"]:
    """Return the logarithm of how many times as many prototypes each entry has with the taught ones (`labels`) as with
    the `mined` ones alone.

    The nearest of many prototypes is nearer than the nearest of few, whatever a cell shows: an entry that was taught
    often would win everywhere. Subtracted from its scores this makes them a mean over prototypes (a kernel density
    estimate) relative to the bank before teaching.

    >>> crowding(torch.tensor([10, 10]), torch.tensor([0] * 30)).exp().tolist()
    [4.0, 1.0]
    """
    taught = torch.bincount(labels, minlength=len(mined)).to(mined)
    return ((mined + taught) / mined.clamp_min(1)).clamp_min(1).log()


def no_entries(channels: int, digest: str = "") -> TaughtEntries:
    """Return no taught entries, for a bank of that many channels."""
    return TaughtEntries(torch.zeros(0, channels), torch.zeros(0, dtype=torch.long), (), digest)


@torch.no_grad()
def taught_entries(
    given: Mapping[int, Answer],
    classes: Sequence[str],
    features: Callable[[str], Float[Tensor, "d h w"]],
    channels: int,
    known: Sequence[str],
    digest: str = "",
) -> TaughtEntries:
    """Return the entries that answers stand for: each is the mean direction of the cells that it names.

    Args:
        given: the answers by number.
        classes: the run's classes; answers about others are left out.
        features: returns an image's features of unit length, by its id.
        channels: of the features.
        known: ids of the images that have features; cells of others are left out.
        digest: of the answers.
    """
    ids, images = {name: number for number, name in enumerate(classes, 1)}, set(known)
    wanted = {
        number: one for number, one in given.items() if one.teaches and (one.meaning == "background" or one.name in ids)
    }
    by_image: dict[str, list[tuple[int, Sequence[tuple[float, float]]]]] = {}
    for number, one in wanted.items():
        for places in one.places:
            if places.image in images:
                by_image.setdefault(places.image, []).append((number, places.points))
    sums = {number: torch.zeros(channels) for number in wanted}
    for name, parts in by_image.items():  # each image once: its features are read from the disk
        map_ = features(name)
        for number, points in parts:
            sums[number] += map_.flatten(1)[:, cells_at(points, (map_.shape[1], map_.shape[2]))].float().sum(1)
    kept = [number for number, total in sums.items() if total.any()]
    if not kept:
        return no_entries(channels, digest)
    labels = torch.tensor([ids.get(wanted[number].name, 0) for number in kept])
    return TaughtEntries(
        F.normalize(torch.stack([sums[number] for number in kept]), dim=1), labels, tuple(kept), digest
    )


def cells_at(points: Sequence[tuple[float, float]], size: tuple[int, int]) -> Int[Tensor, "n"]:
    """Return the indices of the cells of a map of `size` (height, width) in which points (x, y as shares) lie.

    >>> cells_at([(0.1, 0.1), (0.9, 0.6), (1.0, 1.0)], (2, 4)).tolist()
    [0, 7, 7]
    """
    h, w = size
    return torch.tensor([min(int(y * h), h - 1) * w + min(int(x * w), w - 1) for x, y in points], dtype=torch.long)


@torch.no_grad()
def grow_region(features: Float[Tensor, "d h w"], x: float, y: float) -> Int[Tensor, "n"]:
    """Return the cells of the region around a point (shares of width and height), the clicked cell first.

    They connect to it by their edges, and their features, of unit length, are similar to the mean of its surroundings
    (`ALIKE`); at most `LARGEST_REGION` of the image. Region growing as old as Zucker (1976), in feature space.
    """
    d, h, w = features.shape
    start = int(cells_at([(x, y)], (h, w)))
    row, column = divmod(start, w)
    around = features[:, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2].reshape(d, -1)
    alike = torch.einsum("dhw,d->hw", features, F.normalize(around.mean(1), dim=0)).flatten()
    alike[start] = 2.0
    inside, border = {start}, [(-2.0, start)]
    found: list[int] = []
    while border and len(found) < max(LARGEST_REGION * h * w, 1):
        _, cell = heapq.heappop(border)
        found.append(cell)
        row, column = divmod(cell, w)
        for r, c in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
            other = r * w + c
            if 0 <= r < h and 0 <= c < w and other not in inside and alike[other] >= ALIKE:
                inside.add(other)
                heapq.heappush(border, (-float(alike[other]), other))
    return torch.tensor(found, dtype=torch.long)


def write_taught(folder: Path, entries: TaughtEntries) -> Path:
    """Write the taught entries to the folder of a classification network, and return the file.

    Raises:
        WriteError: when the file cannot be written.
    """
    path = folder / TAUGHT
    tensors = {"features": entries.features, "labels": entries.labels}
    save_tensors(path, tensors, record_values(TaughtAbout(entries.digest, entries.numbers)))
    return path


def read_taught(folder: Path, entries: int, channels: int) -> TaughtEntries | None:
    """Return the taught entries beside a classification network with that many entries and channels; None without any.

    Raises:
        RunError: when the file is damaged, or does not fit the network.
    """
    path = folder / TAUGHT
    if not path.exists():
        return None

    def expected(about: dict[str, object]) -> dict[str, Tensor]:
        count = len(as_record(about, TaughtAbout, path).numbers)
        with torch.device("meta"):
            return {"features": torch.zeros(count, channels), "labels": torch.zeros(count, dtype=torch.long)}

    tensors, about = load_tensors(path, expected)
    told, labels = as_record(about, TaughtAbout, path), tensors["labels"]
    if not (((labels >= 0) & (labels < entries)).all() and tensors["features"].isfinite().all()):
        raise RunError(f"{path}: must hold classes of the network and finite features; run `tagseg fit` again")
    return TaughtEntries(tensors["features"], labels, told.numbers, told.digest)
