"""The cells of all tagged images, as the memory bank compares them, in one file that is mapped into memory."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float16, Float32
from torch import Tensor

from tagseg.data.records import Sample
from tagseg.features.cache import FeatureCache
from tagseg.networks.grid import Grid
from tagseg.rca.heads import cached_inputs
from tagseg.rca.network import RcaNetwork
from tagseg.run.folder import Run
from tagseg.system.files import TEMPORARY
from tagseg.system.progress import Track, silent

Size = tuple[int, int]


@dataclass(frozen=True)
class Cells:
    """The features of n cells: for each of the tagged images, in order, those of every scale, row by row.

    features: of unit length, in half precision. samples: the images. shapes: (height, width) in cells of each image's
    map at every scale. starts: the first cell of each image, and the number of all cells. finest: which scale has the
    most cells. grid: as in `Backbone`.
    """

    features: Float16[Tensor, "n d"]
    samples: tuple[Sample, ...]
    shapes: tuple[tuple[Size, ...], ...]
    starts: tuple[int, ...]
    finest: int
    grid: Grid

    @cached_property
    def places(self) -> dict[str, int]:
        """The position of each image by its id."""
        return {sample.id: place for place, sample in enumerate(self.samples)}

    def of(self, place: int) -> Float32[Tensor, "n d"]:
        """Return the features of an image's cells at all scales."""
        return self.features[self.starts[place] : self.starts[place + 1]].float()

    def size(self, place: int) -> Size:
        """Return the (height, width) in cells of an image's finest map."""
        return self.shapes[place][self.finest]

    def fine(self, place: int) -> Float32[Tensor, "n d"]:
        """Return the features of an image's cells at the finest scale."""
        shapes = self.shapes[place]
        start = self.starts[place] + sum(h * w for h, w in shapes[: self.finest])
        h, w = shapes[self.finest]
        return self.features[start : start + h * w].float()


@torch.no_grad()
def gather_cells(
    run: Run, network: RcaNetwork, cache: FeatureCache, samples: Sequence[Sample], track: Track = silent
) -> Cells:
    """Return the cells of the tagged images among `samples`, whose features are joined and normalised once.

    They lie in a file of the run folder that has no name and vanishes with the process.
    """
    tagged = tuple(sample for sample in samples if sample.tags)
    shapes: list[tuple[Size, ...]] = []
    starts = [0]
    with tempfile.TemporaryFile(dir=run.root, prefix=TEMPORARY) as file:
        for sample in track(tagged, "cells", len(tagged)):
            maps = [features[0] for _, features in cached_inputs(network, cache, sample.id)]
            shapes.append(tuple((map_.shape[1], map_.shape[2]) for map_ in maps))
            rows = torch.cat([F.normalize(map_.flatten(1), dim=0).T for map_ in maps])
            starts.append(starts[-1] + len(rows))
            file.write(rows.half().numpy().tobytes())
        file.flush()
        flat = np.memmap(file, np.float16, "r+", shape=(starts[-1], network.channels)) if tagged else None
    features = torch.from_numpy(flat) if flat is not None else torch.zeros(0, network.channels, dtype=torch.half)
    return Cells(features, tagged, tuple(shapes), tuple(starts), cache.finest, network.backbone.grid)
