"""What the bank believes about every cell of every image, kept up to date while a person teaches it."""

import contextlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float16, UInt8
from torch import Tensor

from tagseg.networks.registration import resize_cells
from tagseg.rca.network import RcaNetwork
from tagseg.rca.taught import TaughtEntries, crowding
from tagseg.system.process import cores
from tagseg.system.progress import map_side_by_side
from tagseg.teaching.cells import Cells

NO_SCORE = -1e4
"""The score of an entry without prototypes: its share is 0."""


@dataclass(frozen=True)
class Change:
    """How far masks changed: the ids of the images with at least one cell of another class than before, the share
    (0..1) of such cells in these images, and the number of all images."""

    images: tuple[str, ...]
    share: float
    total: int

    def __str__(self) -> str:
        if not self.images:
            return f"no mask of {self.total} changed"
        return f"{len(self.images)} of {self.total} masks changed, by {100 * self.share:.1f} % of their cells"


@dataclass(frozen=True)
class Beliefs:
    """The state of every image in `cells`.

    mined: the highest score (cosine over temperature) of background and of each tag at every cell of every scale, from
    mined prototypes alone. untaught: the entry with the largest share at every cell of the finest scale, by them.
    highest: as mined, with the entries that were taught by the answers `learned`. shares: those of background and of
    each tag at the cells of the finest scale, by `highest`; sharper where anything was taught (`rca.taught_sharpness`).
    `learn` brings the last three up to date.
    """

    cells: Cells
    network: RcaNetwork
    mined: tuple[Float[Tensor, "_ n"], ...]
    untaught: list[UInt8[Tensor, "_ _"]]
    highest: list[Float[Tensor, "_ n"]]
    shares: list[Float16[Tensor, "_ _ _"]]
    learned: set[int] = field(default_factory=set)


@torch.no_grad()
def begin_beliefs(network: RcaNetwork, cells: Cells, taught: TaughtEntries) -> Beliefs:
    """Return the beliefs of a network with what it was taught so far.

    Raises:
        ValueError: when an entry counts by the sum of its prototypes (rca.posterior = sum).
    """
    if network.rca.posterior != "nearest":
        raise ValueError("rca.posterior must be nearest to teach a run, found sum; fit with --quality fast")
    keys = F.normalize(network.prototypes, dim=2) / network.rca.attention_temperature
    held = [keys[entry][network.exists[entry]] for entry in range(len(keys))]
    mined = []
    for place, sample in enumerate(cells.samples):
        features = cells.of(place)
        mined.append(torch.stack([_highest(features, held[entry]) for entry in (0, *sample.tags)]))
    beliefs = Beliefs(cells, network, tuple(mined), [], [], [], set(taught.numbers))
    for place, scores in enumerate(mined):
        beliefs.untaught.append(_shares(cells, place, scores).half().argmax(0).byte())
        beliefs.highest.append(_with_entries(beliefs, place, scores, taught))
        beliefs.shares.append(_shares(cells, place, _sharpened(beliefs, place, taught)).half())
    return beliefs


def learn(beliefs: Beliefs, taught: TaughtEntries, touched: Iterable[int] | None = None) -> Change:
    """Update the scores and shares in all images after something was taught or taken back, and say what changed.

    Where nothing was taken back, only new entries are compared with the cells.

    Args:
        beliefs: updated in place.
        taught: all entries that hold now; the answer behind an entry is known by its number.
        touched: labels (0 for background) whose entries changed, so that other images need no look; None for all.
    """
    first_or_last = bool(beliefs.learned) != bool(len(taught))  # all shares become sharper, or as they were
    wanted = None if touched is None or first_or_last else set(touched)
    samples = beliefs.cells.samples
    places = [
        place for place, sample in enumerate(samples) if wanted is None or not wanted.isdisjoint((0, *sample.tags))
    ]
    removed = not beliefs.learned <= set(taught.numbers)
    new = taught if removed else taught.without(beliefs.learned)

    def update(place: int) -> tuple[Float[Tensor, "_ n"], Float16[Tensor, "_ _ _"]]:
        highest = _with_entries(beliefs, place, (beliefs.mined if removed else beliefs.highest)[place], new)
        return highest, _shares(beliefs.cells, place, _sharpened(beliefs, place, taught, highest)).half()

    with contextlib.closing(map_side_by_side(places, update, cores())) as results:
        found = list(zip(places, results, strict=True))
    beliefs.learned.clear()
    beliefs.learned.update(taught.numbers)
    moved = {}
    for place, (highest, after) in found:
        moved[place] = after.argmax(0) != beliefs.shares[place].argmax(0)
        beliefs.highest[place], beliefs.shares[place] = highest, after
    return _change(beliefs, moved)


def change_of_all(beliefs: Beliefs) -> Change:
    """Return how far masks changed by all that is taught now."""
    pairs = zip(beliefs.shares, beliefs.untaught, strict=True)
    return _change(beliefs, {place: now.argmax(0) != before for place, (now, before) in enumerate(pairs)})


def _change(beliefs: Beliefs, moved: Mapping[int, Bool[Tensor, "_ _"]]) -> Change:
    changed = {place: (int(cells.sum()), cells.numel()) for place, cells in moved.items() if cells.any()}
    cells, every = (sum(one[i] for one in changed.values()) for i in (0, 1))
    ids = tuple(beliefs.cells.samples[place].id for place in changed)
    return Change(ids, cells / max(every, 1), len(beliefs.cells.samples))


def believed(beliefs: Beliefs, place: int, taught: TaughtEntries) -> Float[Tensor, "l h w"]:
    """Return the shares (0..1) of background and of each tag of an image, averaged over the scales, at the finest one,
    as they are with these taught entries.

    They are the network's posteriors (see `aggregation.posterior`), computed from what `beliefs` keep.
    """
    highest = _with_entries(beliefs, place, beliefs.mined[place], taught)
    return _shares(beliefs.cells, place, _sharpened(beliefs, place, taught, highest))


def _sharpened(
    beliefs: Beliefs, place: int, taught: TaughtEntries, highest: Float[Tensor, "l n"] | None = None
) -> Float[Tensor, "l n"]:
    """Return the scores whose softmax are the shares, from the highest scores (None: those that are known)."""
    scores = beliefs.highest[place] if highest is None else highest
    if not len(taught):
        return scores
    network = beliefs.network
    crowd = crowding(network.exists.sum(1), taught.labels)[[0, *beliefs.cells.samples[place].tags]]
    return scores * network.rca.taught_sharpness - crowd[:, None]


@torch.no_grad()
def _with_entries(
    beliefs: Beliefs, place: int, scores: Float[Tensor, "l n"], taught: TaughtEntries
) -> Float[Tensor, "l n"]:
    """Return the highest scores of an image's entries after taught ones were added."""
    cells, rca = beliefs.cells, beliefs.network.rca
    owned = [taught.features[taught.labels == label] for label in (0, *cells.samples[place].tags)]
    rows = {row: own for row, own in enumerate(owned) if len(own)}
    if rows:
        scores, features, bonus = scores.clone(), cells.of(place), math.log(rca.taught_weight) / rca.taught_sharpness
        for row, own in rows.items():
            scores[row] = torch.maximum(scores[row], _highest(features, own / rca.attention_temperature) + bonus)
    return scores


def _shares(cells: Cells, place: int, highest: Float[Tensor, "l n"]) -> Float[Tensor, "l h w"]:
    found, start, finest = highest.softmax(0), 0, cells.size(place)
    total = torch.zeros(len(found), *finest)
    for h, w in cells.shapes[place]:
        map_ = found[:, start : start + h * w].reshape(1, -1, h, w)
        start += h * w
        if (h, w) != finest:
            grid = cells.grid
            map_ = resize_cells(map_, finest, grid.cornered, grid.shift, grid.shift)
        total += map_[0] / len(cells.shapes[place])
    return total


def _highest(features: Float[Tensor, "n d"], prototypes: Float[Tensor, "k d"]) -> Float[Tensor, "n"]:
    if not len(prototypes):
        return features.new_full((len(features),), NO_SCORE)
    return (features @ prototypes.T).amax(1)
