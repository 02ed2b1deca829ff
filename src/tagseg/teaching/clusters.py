"""Clusters of similar cells in the images of a tag: what a person is asked to name, and in which order."""

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int, Int16
from torch import Tensor

from tagseg.rca.kmeans import kmeans
from tagseg.run.taught import Places, points_of
from tagseg.system.progress import Track, silent
from tagseg.teaching.beliefs import Beliefs
from tagseg.teaching.cells import Cells

CLUSTERS = 32
"""Clusters of a tag at first."""

PARTS = 3
"""Clusters into which a mixed one is split."""

SAMPLE_CELLS = 8000
"""Most cells of a tag on which k-means runs; all others join the nearest centre."""

FEWEST_CELLS = 8
"""Smaller clusters are not asked about."""

NAMED_IMAGES, NAMED_CELLS = 40, 4
"""Images and cells of each that stand for a cluster in an answer: the mean of that many cells is its centre."""


@dataclass(frozen=True)
class Cluster:
    """A cluster of cells in the images of a tag.

    key: what it is called, made from the tag and its cells. tag: the class id. centre: the mean of its features.
    index: its number among the clusters of the tag. parent: the cluster that it is a part of, if that was split.
    """

    key: str
    tag: int
    centre: Float[Tensor, "d"]
    index: int
    parent: str = ""


@dataclass(frozen=True)
class Clusters:
    """The clusters of all tags, and which cells belong to which.

    known: all clusters of each tag, by index. open: the keys of those that are still to be named. owner: the index of
    each cell's cluster, by tag and position of the image. parts: those of each cluster that was split. gone: the keys
    of parts that are one cluster again.
    """

    cells: Cells
    seed: int
    known: dict[int, list[Cluster]] = field(default_factory=dict)
    open: dict[str, Cluster] = field(default_factory=dict)
    owner: dict[tuple[int, int], Int16[Tensor, "n"]] = field(default_factory=dict)
    parts: dict[str, list[Cluster]] = field(default_factory=dict)
    gone: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Question:
    """A cluster to name.

    key, tag: those of the cluster. images, cells: how many it touches. gain: the expected share of the tag's area that
    changes its class, see `questions`. expected: the entries (0 background, else the class id) that its cells
    seem to be now, with their share, the most likely first.
    """

    key: str
    tag: int
    images: int
    cells: int
    gain: float
    expected: tuple[tuple[int, float], ...]


def find_clusters(cells: Cells, classes: int, seed: int, count: int = CLUSTERS, track: Track = silent) -> Clusters:
    """Cluster the cells of the images of every tag by k-means; the same cells give the same clusters."""
    found = Clusters(cells, seed)
    for tag in track(range(1, classes + 1), "clusters", classes):
        places = [place for place, sample in enumerate(cells.samples) if tag in sample.tags]
        if places:
            _divide(found, tag, [(place, torch.arange(len(cells.fine(place)))) for place in places], count)
    return found


def split_cluster(clusters: Clusters, key: str) -> list[Cluster]:
    """Replace an open cluster by its parts and return them; none if its cells are all alike."""
    cluster = clusters.open.pop(key)
    parts = _divide(clusters, cluster.tag, sorted(members_of(clusters, key)), PARTS, key)
    if parts:
        clusters.parts[key] = parts
    return parts


def close_cluster(clusters: Clusters, key: str) -> None:
    """Take a cluster from those that are still to be named."""
    clusters.open.pop(key, None)


def reopen_cluster(clusters: Clusters, key: str) -> None:
    """Put a cluster back to those that are still to be named; if it was split, its parts become one again."""
    cluster = find_cluster(clusters, key)
    for part in clusters.parts.pop(key, ()):
        reopen_cluster(clusters, part.key)
        del clusters.open[part.key]
        for (own, _), owner in clusters.owner.items():
            if own == cluster.tag:
                owner[owner == part.index] = cluster.index
        clusters.gone.add(part.key)
    clusters.gone.discard(key)
    clusters.open[key] = cluster


def members_of(clusters: Clusters, key: str) -> list[tuple[int, Int[Tensor, "_"]]]:
    """Return the images of a cluster, those with most of its cells first, and these cells."""
    cluster = find_cluster(clusters, key)
    every = [
        (place, (owner == cluster.index).nonzero().flatten())
        for (tag, place), owner in clusters.owner.items()
        if tag == cluster.tag
    ]
    found = [one for one in every if len(one[1])]
    return sorted(found, key=lambda one: (-len(one[1]), one[0]))


def places_of(clusters: Clusters, key: str) -> tuple[Places, ...]:
    """Return the cells that stand for a cluster in an answer, evenly spaced over its images and each one's cells."""
    members = sorted(members_of(clusters, key))
    step = max(len(members) / NAMED_IMAGES, 1.0)
    chosen = [members[int(i * step)] for i in range(min(len(members), NAMED_IMAGES))]
    return tuple(
        Places(
            clusters.cells.samples[place].id,
            points_of(own[:: -(-len(own) // NAMED_CELLS)].tolist(), clusters.cells.size(place)),
        )
        for place, own in chosen
    )


def questions(clusters: Clusters, beliefs: Beliefs, desk: AbstractContextManager[Any] | None = None) -> list[Question]:
    """Return the clusters to name, the one with the largest expected gain first; `desk` is held while `clusters` are
    read.

    If the bank's shares are right, a cluster of n cells is of entry c with probability P(c), the mean share of c in its
    cells, and naming it then changes the cells that are not of c now. The expected change is therefore
    n sum_c P(c) (1 - L(c)) with L(c) the share of its cells where c is the largest: uncertainty times how much it
    touches. It is divided by the area of the tag in all images, so that a rare class counts as much as a frequent one.
    """
    found = []
    area = _areas(beliefs)
    for tag, known in list(clusters.known.items()):
        if not any(one.key in clusters.open for one in known):
            continue
        with desk or nullcontext():
            known = list(known)
            sums, tops, images = _tally(clusters, beliefs, tag, len(known), len(area))
        for one in known:
            cells = float(sums[one.index].sum())
            if one.key not in clusters.open or cells < FEWEST_CELLS:
                continue
            likely = sums[one.index] / cells
            change = float((likely * (cells - tops[one.index])).sum())
            order = [entry for entry in likely.argsort(descending=True).tolist() if likely[entry] > 0.01]
            expected = tuple((entry, float(likely[entry])) for entry in order[:4])
            found.append(
                Question(one.key, tag, int(images[one.index]), round(cells), change / max(area[tag], 1.0), expected)
            )
    return sorted(found, key=lambda one: (-one.gain, one.key))


def _areas(beliefs: Beliefs) -> list[float]:
    """Return how many cells each entry has now, over all images."""
    classes = max((max(sample.tags) for sample in beliefs.cells.samples), default=0)
    area = [0.0] * (classes + 1)
    for sample, shares in zip(beliefs.cells.samples, beliefs.shares, strict=True):
        for entry, cells in zip((0, *sample.tags), shares.float().flatten(1).sum(1).tolist(), strict=True):
            area[entry] += cells
    return area


def _tally(
    clusters: Clusters, beliefs: Beliefs, tag: int, count: int, entries: int
) -> tuple[Float[Tensor, "q e"], Float[Tensor, "q e"], Int[Tensor, "q"]]:
    """Return for every cluster of a tag the sum of its cells' shares per entry, how many cells have each entry as their
    largest, and how many images it touches."""
    sums, tops = torch.zeros(count, entries), torch.zeros(count, entries)
    images = torch.zeros(count, dtype=torch.long)
    for place, sample in enumerate(beliefs.cells.samples):
        owner = clusters.owner.get((tag, place))
        if owner is None:
            continue
        inside = owner >= 0
        own, ids = owner[inside].long(), torch.tensor((0, *sample.tags))
        shares = beliefs.shares[place].float().flatten(1).T[inside]
        part = torch.zeros(count, len(ids)).index_add_(0, own, shares)
        sums[:, ids] += part
        largest = torch.nn.functional.one_hot(shares.argmax(1), len(ids)).float()
        tops[:, ids] += torch.zeros(count, len(ids)).index_add_(0, own, largest)
        images += (part.sum(1) > 0).long()
    return sums, tops, images


def _divide(
    clusters: Clusters, tag: int, members: Sequence[tuple[int, Int[Tensor, "_"]]], count: int, parent: str = ""
) -> list[Cluster]:
    """Cluster some cells of a tag's images, note the clusters as open, and return them."""
    cells = clusters.cells
    generator = torch.Generator().manual_seed(clusters.seed * 1000 + tag)
    total = sum(len(own) for _, own in members)
    chosen = torch.randperm(total, generator=generator)[:SAMPLE_CELLS].sort().values
    points, start = [], 0
    for place, own in members:
        wanted = chosen[(chosen >= start) & (chosen < start + len(own))] - start
        start += len(own)
        if len(wanted):
            points.append(cells.fine(place)[own[wanted]])
    sample = torch.cat(points)
    valid = torch.ones(1, len(sample), dtype=torch.bool)
    centres, exists = kmeans(sample[None], valid, min(count, len(sample)), generator, iterations=10)
    centre = centres[0][exists[0]]
    if parent and len(centre) < 2:
        return []
    known = clusters.known.setdefault(tag, [])
    digests = [hashlib.sha256(f"{tag} {i}".encode()) for i in range(len(centre))]
    for place, own in members:
        features = cells.fine(place)[own]
        nearest = (2 * features @ centre.T - centre.square().sum(1)).argmax(1)
        owner = clusters.owner.setdefault((tag, place), torch.full((len(cells.fine(place)),), -1, dtype=torch.int16))
        owner[own] = (nearest + len(known)).to(torch.int16)
        for i in nearest.unique().tolist():
            digests[i].update(cells.samples[place].id.encode("utf-8", "surrogateescape"))
            digests[i].update(own[nearest == i].numpy().astype(np.int32).tobytes())
    made = [
        Cluster(digest.hexdigest()[:20], tag, one, len(known) + i, parent)
        for i, (digest, one) in enumerate(zip(digests, centre, strict=True))
    ]
    known.extend(made)
    clusters.open.update((one.key, one) for one in made)
    return made


def find_cluster(clusters: Clusters, key: str) -> Cluster:
    """Return the cluster called `key`, of several the latest: parts that were one cluster for a while are new ones.

    Raises:
        KeyError: when there is none.
    """
    every = (one for own in clusters.known.values() for one in reversed(own))
    found = next((one for one in every if one.key == key), None)
    if found is None:
        raise KeyError(key)
    return found
