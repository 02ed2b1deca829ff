"""Label Studio's exports "JSON" and "JSON-MIN": brush regions, exact, and polygons."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from pycocotools import mask as coco_rle

from tagseg.data.images import require_size
from tagseg.data.mask_values import known_names
from tagseg.data.records import Dataset, Sample
from tagseg.errors import DataError
from tagseg.export.brush import decode_brush
from tagseg.importing.match import Corrected
from tagseg.system.untrusted import shown

log = logging.getLogger(__name__)

_LABELS = ("brushlabels", "polygonlabels", "labels")
_SHAPES_WITHOUT_MASK = ("rectanglelabels", "ellipselabels", "keypointlabels", "vectorlabels")
Shape = Mapping[str, Any]


def is_tasks(content: object) -> bool:
    """Tell whether JSON is a list of Label Studio's tasks, or of its shorter form, JSON-MIN."""
    if not isinstance(content, list) or not content:
        return False
    tasks = [task for task in content if isinstance(task, dict)]
    return len(tasks) == len(content) and all(
        "data" in task or "annotator" in task or "image" in task for task in tasks
    )


def read_tasks(file: Path, tasks: Sequence[dict[str, Any]], dataset: Dataset) -> list[Corrected]:
    """Return the masks of all tasks that a person has annotated; the others are left out and counted in the log.

    If several have annotated a task, the ground truth counts, or else the latest annotation. Later regions cover
    earlier ones, as they are shown.

    Raises:
        DataError: when no task is annotated.
    """
    found, ids = [], known_names(dataset.classes)
    without = several = 0
    # JSON-MIN has a line for each annotation of a task, the latest last.
    latest = {task.get("id", -number) if "data" not in task else -number: task for number, task in enumerate(tasks, 1)}
    for number, task in enumerate(latest.values(), 1):
        place = f"{file}, task {task.get('id', number)}"
        submitted = _submitted(task, place)
        if not submitted:
            without += 1
            continue
        several += len(submitted) > 1
        regions = _regions(_chosen(submitted), place)
        found.append(Corrected(_image_names(task, place), _drawer(place, regions, ids), empty=not regions))
    if not found:
        raise DataError(
            f"{file}: none of its {len(tasks)} tasks has a submitted annotation; predictions are not corrections. "
            "Submit the tasks in Label Studio, then export again"
        )
    if without:
        log.warning("%s: tasks without a submitted annotation are left out: %d", file, without)
    if several:
        log.warning("%s: tasks with several annotations: %d; ground truth or the latest counts", file, several)
    return found


def _submitted(task: dict[str, Any], place: str) -> list[dict[str, Any]]:
    """Return the annotations of a task that were not cancelled; of JSON-MIN, the task itself is the annotation."""
    if "data" not in task:
        return [task]
    annotations = task.get("annotations", task.get("completions", []))
    if not isinstance(annotations, list) or not all(isinstance(one, dict) for one in annotations):
        raise DataError(
            f'{place}: got annotations {shown(annotations)}, expected a list; export "JSON" from Label Studio'
        )
    return [one for one in annotations if not one.get("was_cancelled")]


def _chosen(annotations: Iterable[dict[str, Any]]) -> dict[str, Any]:
    def order(one: dict[str, Any]) -> tuple[bool, str, int]:
        number = one.get("id")
        when = str(one.get("updated_at") or one.get("created_at") or "")
        return bool(one.get("ground_truth")), when, number if isinstance(number, int) else 0

    return max(annotations, key=order)


def _regions(annotation: dict[str, Any], place: str) -> list[Shape]:
    """Return the drawn regions of an annotation: results that share an id are parts of one region."""
    merged: dict[Any, dict[str, Any]] = {}
    if "result" in annotation:
        for number, result in enumerate(annotation["result"] or ()):
            if not isinstance(result, dict) or not isinstance(result.get("value", {}), dict):
                raise DataError(f"{place}: got the result {shown(result)}, expected an object with a value")
            sizes = {
                key: result[key] for key in ("original_width", "original_height", "image_rotation") if key in result
            }
            merged.setdefault(result.get("id", number), {}).update(result.get("value", {}) | sizes)
    else:
        lists = [value for value in annotation.values() if isinstance(value, list)]
        merged = dict(enumerate(one for value in lists for one in value if isinstance(one, dict)))
    for region in merged.values():
        if shape := next((name for name in _SHAPES_WITHOUT_MASK if name in region), None):
            raise DataError(f"{place}: a region of type {shape} has no mask, expected brush strokes or polygons")
    return [region for region in merged.values() if "rle" in region or "points" in region]


def _image_names(task: dict[str, Any], place: str) -> tuple[str, ...]:
    """Return what a task may call its image: the name that tagseg wrote, then the upload's and addresses."""
    data = task.get("data", task)
    if not isinstance(data, dict):
        raise DataError(f"{place}: got the data {shown(data)}, expected an object with the address of an image")
    texts = [value for key, value in data.items() if isinstance(value, str) and key not in ("annotator", "created_at")]
    upload = task.get("file_upload")
    names = [data.get("name"), *texts, upload]
    found = tuple(dict.fromkeys(name for name in names if isinstance(name, str) and name))
    if not found:
        raise DataError(f"{place}: has no name or address of an image")
    return found


def _drawer(place: str, regions: list[Shape], ids: Mapping[str, int]) -> Any:
    def draw(sample: Sample, size: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
        mask = np.zeros(size, np.uint8)
        for region in regions:
            require_size(sample.image, (region.get("original_height"), region.get("original_width")), size)
            if region.get("image_rotation"):
                raise DataError(f"{place}: the image was rotated in Label Studio, expected image_rotation 0")
            class_id = _class_id(region, ids, place)
            try:
                mask[_pixels(region, size)] = class_id
            except (TypeError, ValueError) as error:
                raise DataError(f"{place}: a region cannot be drawn ({error})") from error
        return mask

    return draw


def _class_id(region: Shape, ids: Mapping[str, int], place: str) -> int:
    labels: object = next((region[key] for key in _LABELS if region.get(key)), [])
    if not isinstance(labels, list) or len(labels) != 1 or labels[0] not in ids:
        got = f"the labels {shown(labels)}" if labels else "no label"
        raise DataError(f"{place}: a region has {got}, expected one of {', '.join(ids)}")
    return ids[labels[0]]


def _pixels(region: Shape, size: tuple[int, int]) -> Any:
    if "rle" in region:
        return decode_brush(region["rle"], size)
    points = np.array(region["points"], np.float64).reshape(-1, 2)
    if len(points) < 3 or not (np.abs(points) <= 1000).all():
        raise ValueError("a polygon needs three points in percent of the image")
    polygon = (points * (size[1] / 100, size[0] / 100)).ravel().tolist()
    return coco_rle.decode(coco_rle.merge(coco_rle.frPyObjects([polygon], *size))).astype(bool)
