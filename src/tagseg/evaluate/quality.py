"""Quality scores of masks without true masks, per image and class, and the file that stores them."""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from tagseg.run.folder import Run
from tagseg.system.files import checksum, write_atomically
from tagseg.system.records import ClassId, Count, Record, Share, json_text, parse_record, read_lines, record_line
from tagseg.system.untrusted import is_file

_MAX_HEADER = 1000
"""Most bytes in the first line."""


class ClassQuality(msgspec.Struct, frozen=True):
    """The quality of one class of an image's mask; all values are from 0 to 1.

    score: the expected IoU (see `expected_iou`). maps: the same by the maps alone, before the dense CRF. stable: how
    far the network's predictions agree across views. unsure: the share of the class's pixels that are marked unsure.
    area: the class's share of the image.
    """

    score: Share
    maps: Share
    stable: Share
    unsure: Share
    area: Share


class ImageQuality(Record, frozen=True):
    """The quality of an image's mask.

    score: the expected IoU (0..1) over all its classes together. classes: the quality of each, by class id. present:
    the probability that a class is in the image, by the classification and the segmentation network; small
    probabilities are left out.
    """

    id: str
    score: Share
    classes: Mapping[ClassId, ClassQuality]
    present: Mapping[ClassId, Share]


class QualityHeader(Record, frozen=True):
    """The first line of quality.jsonl: SHA-256 of the segmentation network that the scores were computed with, if there
    was one, and the version of the file."""

    segmenter: str | None
    version: Count


def write_quality(run: Run, found: Iterable[ImageQuality]) -> None:
    """Write the quality of a run's masks; more lines may be appended (see `quality_line`)."""
    write_atomically(run.quality_file, "".join([record_line(_header(run)), *map(quality_line, found)]))


def read_quality(run: Run) -> dict[str, ImageQuality]:
    """Return the quality of a run's masks by sample id; empty if it was not computed with this segmentation network.

    An incomplete line at the end, which a killed process may leave, is ignored.

    Raises:
        RunError: when a line is damaged.
    """
    if not is_file(run.quality_file):
        return {}
    with run.quality_file.open("rb") as file:
        first = file.readline(_MAX_HEADER)
    try:
        if parse_record(first, QualityHeader) != _header(run):
            return {}
    except ValueError:
        return {}
    lines = read_lines(run.quality_file, ImageQuality, "delete the file", skip=1)
    return {quality.id: quality for quality in lines}


def quality_line(quality: ImageQuality) -> str:
    """Return the quality of an image's mask as a line of JSON."""
    return json_text(_rounded(msgspec.to_builtins(quality, str_keys=True))) + "\n"


def _header(run: Run) -> QualityHeader:
    network = run.segmenter / "network.safetensors"
    return QualityHeader(checksum(network) if network.exists() else None, 1)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return round(value, 4) if isinstance(value, float) else value
