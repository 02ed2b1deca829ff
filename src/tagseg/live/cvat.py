"""A function for CVAT's `cvat-cli task auto-annotate`: masks or polygons by a trained segmentation network.

    cvat-cli task auto-annotate 7 --function-module tagseg.live.cvat -p path=str:runs/mine --allow-unmatched-labels

It needs cvat-cli and cvat-sdk in the same environment.
"""

from typing import Any

import numpy as np
from PIL import Image

from tagseg.export.outlines import polygon
from tagseg.export.regions import Region, regions
from tagseg.segment.load import load
from tagseg.segment.predictor import Predictor
from tagseg.settings.export import ExportSettings


def create(path: str, device: str = "auto", min_part: int = 0) -> "CvatFunction":
    """Return the function that CVAT calls; cvat-cli passes `-p NAME=TYPE:VALUE` as arguments.

    Args:
        path: a run folder, or anything else that `tagseg.load` accepts.
        device: as `--device`.
        min_part: connected parts of fewer pixels are left out.
    """
    return CvatFunction(load(path, device), min_part)


class CvatFunction:
    """A detection function of CVAT's SDK: `spec` lists the labels, `detect` returns the shapes of an image."""

    def __init__(self, predictor: Predictor, min_part: int = 0) -> None:
        self.predictor, self.min_part = predictor, min_part

    @property
    def spec(self) -> Any:
        """The labels, one per class except background."""
        import cvat_sdk.auto_annotation as cvat

        classes = enumerate(self.predictor.classes[1:], 1)
        return cvat.DetectionFunctionSpec(labels=[cvat.label_spec(name, i, type="any") for i, name in classes])

    def detect(self, context: Any, image: Image.Image) -> list[Any]:
        """Return a mask per class and image, or polygons if CVAT asks for them."""
        import cvat_sdk.auto_annotation as cvat

        shapes = []
        for region in regions(self.predictor(image).mask):
            parts = [part for part in region.parts() if part.area() >= self.min_part]
            if context.conv_mask_to_poly:
                shapes += [cvat.polygon(region.class_id, _outline(part)) for part in parts]
            elif parts:
                shapes.append(cvat.mask(region.class_id, _runs(np.any([part.mask() for part in parts], axis=0))))
        return shapes


def _outline(part: Region) -> list[float]:
    points = polygon(part.pixels(), ExportSettings().tolerance) + np.array(part.box()[:2])
    flat: list[float] = points.astype(float).ravel().tolist()
    return flat


def _runs(mask: np.ndarray) -> list[float]:
    """Return a mask as CVAT's run lengths along the rows of its box, the first run outside, and the box's corners."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, bottom, left, right = rows[0], rows[-1], columns[0], columns[-1]
    flat = mask[top : bottom + 1, left : right + 1].ravel()
    bounds = np.r_[0, np.flatnonzero(flat[1:] != flat[:-1]) + 1, flat.size]
    runs = [*([0] if flat[0] else []), *np.diff(bounds), left, top, right, bottom]
    return [float(number) for number in runs]
