"""Quality scores of masks without true masks, per image and class, and the file that stores them."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tagseg.errors import RunError
from tagseg.run.folder import Run
from tagseg.system.files import write_atomically
from tagseg.system.untrusted import check_shape, is_file, parse_json

_MAX_LINE = 1 << 20
"""Most bytes in a line; a line with a thousand classes has a tenth of that."""


@dataclass(frozen=True)
class ClassQuality:
    """The quality of one class of an image's mask; all values are from 0 to 1.

    score: the expected IoU (see `expected_iou`). maps: the same by the maps alone, before the dense CRF. stable: how
    far the network's predictions agree across views. unsure: the share of the class's pixels that are marked unsure.
    area: the class's share of the image.
    """

    score: float
    maps: float
    stable: float
    unsure: float
    area: float


@dataclass(frozen=True)
class ImageQuality:
    """The quality of an image's mask.

    score: the expected IoU (0..1) over all its classes together. classes: the quality of each, by class id. present:
    the probability that a class is in the image, by the classification and the segmentation network; small
    probabilities are left out.
    """

    id: str
    score: float
    classes: Mapping[int, ClassQuality]
    present: Mapping[int, float]


def write_quality(run: Run, found: Iterable[ImageQuality]) -> None:
    """Write the quality of a run's masks; more lines may be appended (see `quality_line`)."""
    write_atomically(run.quality_file, "".join([json.dumps(_header(run)) + "\n", *map(quality_line, found)]))


def read_quality(run: Run) -> dict[str, ImageQuality]:
    """Return the quality of a run's masks by sample id; empty if it was not computed with this segmentation network.

    An incomplete line at the end, which a killed process may leave, is ignored.

    Raises:
        RunError: when a line is damaged.
    """
    if not is_file(run.quality_file):
        return {}
    found: dict[str, ImageQuality] = {}
    with run.quality_file.open("rb") as file:
        if file.readline(_MAX_LINE) != json.dumps(_header(run)).encode() + b"\n":
            return {}
        for number, line in enumerate(iter(lambda: file.readline(_MAX_LINE), b""), 2):
            try:
                quality = _from_line(parse_json(line))
            except ValueError as error:
                if not line.endswith(b"\n") and len(line) < _MAX_LINE:
                    break
                raise RunError(f"{run.quality_file}: line {number} is damaged ({error}); delete the file") from error
            found[quality.id] = quality
    return found


def quality_line(quality: ImageQuality) -> str:
    """Return the quality of an image's mask as a line of JSON."""
    return json.dumps(_rounded(dataclasses.asdict(quality)), ensure_ascii=False) + "\n"


def _header(run: Run) -> dict[str, Any]:
    network = run.segmenter / "network.safetensors"
    if not network.exists():
        return {"segmenter": None, "version": 1}
    with network.open("rb") as file:
        return {"segmenter": hashlib.file_digest(file, "sha256").hexdigest(), "version": 1}


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return round(value, 4) if isinstance(value, float) else value


def _from_line(values: Any) -> ImageQuality:
    check_shape(values, {"id": str, "score": float, "classes": dict, "present": dict})
    for item in values["classes"].values():
        check_shape(item, {field.name: float for field in dataclasses.fields(ClassQuality)}, "classes")
    check_shape(list(values["present"].values()), [float], "present")
    classes = {
        int(key): ClassQuality(*(float(item[field.name]) for field in dataclasses.fields(ClassQuality)))
        for key, item in values["classes"].items()
    }
    present = {int(key): float(value) for key, value in values["present"].items()}
    return ImageQuality(values["id"], float(values["score"]), classes, present)
