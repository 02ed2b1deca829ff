"""An exported ONNX file in int8: calibrated on a run's photographs, and what it loses against float32."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from tagseg.data.images import read_image
from tagseg.data.prepare import Prepared, prepare
from tagseg.data.records import Sample
from tagseg.data.true_masks import load_mask
from tagseg.errors import DataError, RunError
from tagseg.evaluate.iou import confusion, iou
from tagseg.export.onnx import probabilities_by_onnx
from tagseg.run.folder import Run
from tagseg.segment.engines import AGREEMENT, CALIBRATION_IMAGES, CHECKED_IMAGES, spread
from tagseg.segment.quantise import LEAST_CALIBRATION_IMAGES, write_int8
from tagseg.segment.resolution import Resolution, resize_to_picture

MOST_LOST = 1.0
"""Points of mIoU that a network may lose in int8."""

SCORED_IMAGES = 50
"""Validation images with true masks that the loss is measured on."""


@dataclass(frozen=True)
class Int8Loss:
    """What a network loses in int8: images it was measured on, the share of their pixels that get the same label as in
    float32, and the points of mIoU lost (None without true masks)."""

    images: int
    agreement: float
    miou: float | None

    def __str__(self) -> str:
        same = f"{100 * self.agreement:.2f} % of the pixels of {self.images} images have the label of float32"
        return same if self.miou is None else f"{same}, and {max(self.miou, 0):.2f} mIoU are lost"


@dataclass(frozen=True)
class Int8Photographs:
    """A run's photographs for int8: `calibrating` are training photographs, used without their tags; `scored` show the
    loss: validation images with true masks or, if there are none, other training photographs."""

    run: Run
    prepared: Prepared
    calibrating: Sequence[Sample]
    scored: Sequence[Sample]


def choose_photographs(run: Run) -> Int8Photographs:
    """Return the photographs with which a run's network is calibrated and judged.

    Raises:
        ValueError: when they are too few or gone.
    """
    try:
        prepared = prepare(run)
    except (DataError, RunError) as error:
        raise ValueError(f"--int8: needs the run's photographs, to calibrate on them: {error}") from error
    calibrating, scored = _chosen(prepared)
    if len(calibrating) < LEAST_CALIBRATION_IMAGES:
        raise ValueError(
            f"--int8: needs at least {LEAST_CALIBRATION_IMAGES} training photographs besides {CHECKED_IMAGES} that "
            f"show the loss, found {len(calibrating) + len(scored)}; export without --int8"
        )
    return Int8Photographs(run, prepared, calibrating, scored)


def write_int8_onnx(photographs: Int8Photographs, max_side: int, source: Path, target: Path) -> Int8Loss:
    """Write a run's exported graph in int8; return what it loses on images that it was not calibrated on.

    Args:
        photographs: which calibrate, and which show the loss.
        max_side: pixels to which the long side of larger photographs is reduced.
        source: the model.onnx in float32.
        target: the file to write.

    Raises:
        ValueError: when a package is missing, or the network loses more than MOST_LOST points of mIoU or, without true
            masks, more labels than `tagseg predict` accepts in int8.
    """
    prepared, calibrating, scored = photographs.prepared, photographs.calibrating, photographs.scored
    limit = photographs.run.settings().data.max_megapixels

    def given(sample: Sample) -> Float32[np.ndarray, "1 3 h w"]:
        picture = resize_to_picture(read_image(sample.image, limit), Resolution(max_side, max_side))
        return picture.transpose(2, 0, 1)[None].astype(np.float32) / 255

    write_int8(source, target, ({"images": given(sample)} for sample in calibrating))
    graphs = [probabilities_by_onnx(file) for file in (source, target)]
    ids = len(prepared.dataset.classes) + 1
    matrices, same, pixels = np.zeros((2, ids, ids), np.int64), 0, 0
    for sample in scored:
        images = given(sample)
        labels = [compute(images)[0].argmax(0) for compute in graphs]
        same, pixels = same + int((labels[0] == labels[1]).sum()), pixels + labels[0].size
        if sample.mask is not None:
            truth = load_mask(sample, prepared.dataset, prepared.sizes[sample.id])
            for matrix, one in zip(matrices, labels, strict=True):
                matrix += confusion(truth, _enlarged(one, truth.shape), ids)
    lost = 100 * (iou(matrices[0]).miou - iou(matrices[1]).miou) if matrices.any() else None
    loss = Int8Loss(len(scored), same / pixels, lost)
    least = AGREEMENT["int8"]
    if (lost > MOST_LOST) if lost is not None else (loss.agreement < least):
        expected = f"at most {MOST_LOST:g}" if lost is not None else f"at least {100 * least:g} %"
        raise ValueError(f"--int8: {loss}, expected {expected}; this network needs float32: export without --int8")
    return loss


def _chosen(prepared: Prepared) -> tuple[Sequence[Sample], Sequence[Sample]]:
    """Return the samples that calibrate and those that show the loss."""
    train = prepared.dataset.split("train")
    true = [sample for sample in prepared.dataset.split("val") if sample.mask is not None]
    if true:
        return spread(train, CALIBRATION_IMAGES), spread(true, SCORED_IMAGES)
    some = spread(train, CALIBRATION_IMAGES + CHECKED_IMAGES)
    scored = spread(some, CHECKED_IMAGES)
    return [sample for sample in some if sample not in scored], scored


def _enlarged(labels: np.ndarray, size: tuple[int, ...]) -> UInt8[np.ndarray, "h w"]:
    height, width = size
    return np.asarray(Image.fromarray(labels.astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST))
