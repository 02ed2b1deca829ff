"""What the regions of a new image attend to: connected areas of cells whose attention goes to the same entry."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor

from tagseg.rca.network import RcaNetwork
from tagseg.report.nearest import Memory, see

LEAST_SHARE = 0.01
"""Areas below this share of an image's cells, or of a single cell, are too small to say anything."""


@dataclass(frozen=True)
class Area:
    """A connected area of an image: its cells, the entry (0 background, 1..C classes) that gets most of their
    attention, the share (0..1) every entry gets, and the prototype of that entry that gets most, with the cosine
    between it and the area's mean feature."""

    cells: Bool[np.ndarray, "h w"]
    entry: int
    shares: Float[Tensor, "e"]
    prototype: int
    similarity: float


def attended_areas(network: RcaNetwork, memory: Memory, image: Image.Image, max_side: int) -> list[Area]:
    """Return an image's areas, classes before background, large before small; tiny ones are left out.

    The image is seen at scale 1, reduced to a long side of `max_side` pixels where larger.
    """
    maps = see(network, image, max_side)
    features = maps.features.float().cpu()
    # Among all entries: with very many classes the network attends to the likely ones alone.
    attention = network.attend(features, memory.prototypes, memory.exists)[0]
    entries: Int[np.ndarray, "h w"] = attention.sum(1).argmax(0).numpy()
    least = max(2, round(LEAST_SHARE * entries.size))
    areas = []
    for cells in connected(entries):
        if cells.sum() >= least:
            inside = torch.from_numpy(cells)
            given = attention[:, :, inside].mean(2)
            entry = int(entries[cells][0])
            prototype = int(given[entry].argmax())
            mean = F.normalize(features[0][:, inside].mean(1), dim=0)
            similarity = float(mean @ memory.prototypes[entry, prototype])
            areas.append(Area(cells, entry, given.sum(1), prototype, similarity))
    return sorted(areas, key=lambda area: (area.entry == 0, -int(area.cells.sum())))


def connected(labels: Int[np.ndarray, "h w"]) -> list[Bool[np.ndarray, "_ _"]]:
    """Return the areas of equal labels whose cells touch with a side, in reading order of their first cells."""
    height, width = labels.shape
    left = np.ones(labels.shape, bool)
    areas = []
    for start in np.ndindex(labels.shape):
        if not left[start]:
            continue
        area, waiting = np.zeros(labels.shape, bool), [start]
        while waiting:
            y, x = waiting.pop()
            if 0 <= y < height and 0 <= x < width and left[y, x] and labels[y, x] == labels[start]:
                left[y, x], area[y, x] = False, True
                waiting += [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
        areas.append(area)
    return areas
