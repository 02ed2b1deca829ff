"""tagseg as a scikit-learn estimator: fit on tags, predict masks, cross-validate over folders of images.

python examples/scikit_learn.py photos/ runs/folds
"""

import csv
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from sklearn.base import BaseEstimator
from sklearn.model_selection import LeaveOneGroupOut, cross_val_score

import tagseg

Truth = tuple[Sequence[str], Path | None]
"""The tags of an image, for training, and its true mask, for scoring."""


class TagSegmenter(BaseEstimator):  # type: ignore[misc]
    """Learns masks from tags; every fit makes its own run folder in `folder`."""

    def __init__(self, folder: str | Path, settings: tagseg.Settings | None = None) -> None:
        self.folder, self.settings = folder, settings

    def fit(self, images: Sequence[Path], truth: Sequence[Truth]) -> "TagSegmenter":
        """Train on images and their tags; true masks are not used."""
        Path(self.folder).mkdir(parents=True, exist_ok=True)
        self.run_ = Path(tempfile.mkdtemp(dir=self.folder))
        data = self.run_ / "data"
        data.mkdir()
        with (data / "tags.csv").open("w", newline="", encoding="utf-8") as file:
            rows = csv.writer(file)
            rows.writerow(["image", "tags"])
            for i, (image, (tags, _)) in enumerate(zip(images, truth, strict=True)):
                os.link(image, data / f"{i}{image.suffix}")  # no copy
                rows.writerow([f"{i}{image.suffix}", "|".join(tags)])
        tagseg.fit_until(data, self.run_ / "run", "segment", self.settings)
        self.predictor_ = tagseg.load(self.run_ / "run")
        return self

    def predict(self, images: Sequence[Path]) -> list[UInt8[np.ndarray, "h w"]]:
        """Return the images' masks; `predictor_.classes` names their values."""
        return [self.predictor_(image).mask for image in images]

    def score(self, images: Sequence[Path], truth: Sequence[Truth]) -> float:
        """Return the mIoU, pooled over all pixels of the images, background included."""
        ids = len(self.predictor_.classes)
        pairs = zip(self.predict(images), [np.array(Image.open(mask)) for _, mask in truth if mask], strict=True)
        return tagseg.iou(np.sum([tagseg.confusion(true, found, ids) for found, true in pairs], axis=0)).miou


def main(data: Path, out: Path, settings: tagseg.Settings | None = None) -> Any:
    """Return the scores of a cross-validation that leaves out one folder of images at a time."""
    dataset = tagseg.read_dataset(data, (settings or tagseg.Settings()).data)
    samples = [sample for sample in dataset.split("train") if isinstance(sample.mask, Path)]
    truth = [([dataset.classes[tag - 1] for tag in sample.tags], sample.mask) for sample in samples]
    images, groups = [sample.image for sample in samples], [sample.image.parent.name for sample in samples]
    return cross_val_score(TagSegmenter(out, settings), images, truth, groups=groups, cv=LeaveOneGroupOut())


if __name__ == "__main__":
    print(main(Path(sys.argv[1]), Path(sys.argv[2])))
