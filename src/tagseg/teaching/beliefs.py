"""What the bank believes about every cell of every image, kept up to date while a person teaches it."""

import contextlib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float16
from torch import Tensor

from tagseg.rca.network import RcaNetwork
from tagseg.rca.taught import TaughtEntries
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
    mined prototypes alone. shares: those of background and of each tag at the cells of the finest scale, with all that
    was taught; replaced by `learn`.
    """

    cells: Cells
    network: RcaNetwork
    mined: tuple[Float[Tensor, "_ n"], ...]
    shares: list[Float16[Tensor, "_ _ _"]]


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
    beliefs = Beliefs(cells, network, tuple(mined), [])
    beliefs.shares.extend(_believed(beliefs, taught, place) for place in range(len(cells.samples)))
    return beliefs


def learn(beliefs: Beliefs, taught: TaughtEntries, touched: Iterable[int] | None = None) -> Change:
    """Update the shares in all images after something was taught or taken back, and say what changed.

    Args:
        beliefs: updated in place.
        taught: all entries that hold now.
        touched: labels (0 for background) whose entries changed, so that other images need no look; None for all.
    """
    wanted = None if touched is None else set(touched)
    samples = beliefs.cells.samples
    places = [
        place for place, sample in enumerate(samples) if wanted is None or not wanted.isdisjoint((0, *sample.tags))
    ]
    with contextlib.closing(map_side_by_side(places, partial(_believed, beliefs, taught), cores())) as results:
        found = list(zip(places, results, strict=True))
    changed, moved, seen = [], 0, 0
    for place, after in found:
        before = beliefs.shares[place]
        different = int((after.argmax(0) != before.argmax(0)).sum())
        beliefs.shares[place] = after
        if different:
            changed.append(samples[place].id)
            moved, seen = moved + different, seen + after[0].numel()
    return Change(tuple(changed), moved / max(seen, 1), len(beliefs.cells.samples))


def _believed(beliefs: Beliefs, taught: TaughtEntries, place: int) -> Float16[Tensor, "l h w"]:
    return believed(beliefs, place, taught).half()


@torch.no_grad()
def believed(beliefs: Beliefs, place: int, taught: TaughtEntries) -> Float[Tensor, "l h w"]:
    """Return the shares (0..1) of background and of each tag of an image, averaged over the scales, at the finest one.

    They are the network's posteriors (see `aggregation.posterior`), computed from what `beliefs` keep.
    """
    cells, rca = beliefs.cells, beliefs.network.rca
    scores = beliefs.mined[place]
    owned = [taught.features[taught.labels == label] for label in (0, *cells.samples[place].tags)]
    rows = {row: own for row, own in enumerate(owned) if len(own)}
    if rows:
        scores, features, bonus = scores.clone(), cells.of(place), math.log(rca.taught_weight)
        for row, own in rows.items():
            scores[row] = torch.maximum(scores[row], _highest(features, own / rca.attention_temperature) + bonus)
    found, start, finest = scores.softmax(0), 0, cells.size(place)
    total = torch.zeros(len(found), *finest)
    for h, w in cells.shapes[place]:
        map_ = found[:, start : start + h * w].reshape(1, -1, h, w)
        start += h * w
        if (h, w) != finest:
            map_ = F.interpolate(map_, finest, mode="bilinear", align_corners=cells.cornered)
        total += map_[0] / len(cells.shapes[place])
    return total


def _highest(features: Float[Tensor, "n d"], prototypes: Float[Tensor, "k d"]) -> Float[Tensor, "n"]:
    if not len(prototypes):
        return features.new_full((len(features),), NO_SCORE)
    return (features @ prototypes.T).amax(1)
