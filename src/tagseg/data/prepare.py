"""The data set as a run uses it: read, checked once, broken images left out, and the same again for later stages."""

import dataclasses
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tagseg.data.check import below, check_images, healthy
from tagseg.data.read import read_dataset
from tagseg.data.records import Dataset
from tagseg.progress import Track, silent
from tagseg.run import Run, RunError, write_atomically
from tagseg.untrusted import check_shape, read_json

log = logging.getLogger(__name__)


_ROW = {"id": str, "tags": [int], "split": str, "size": [int]}
_DATA = {"classes": [str], "broken": [[str]], "samples": [_ROW]}


@dataclass(frozen=True)
class Prepared:
    """A run's data set without its broken images, and every image's size by sample id, (height, width) in pixels."""

    dataset: Dataset
    sizes: Mapping[str, tuple[int, int]]


def prepare(run: Run, track: Track = silent) -> Prepared:
    """Read a run's data; the first time every image is decoded once, and the findings are kept in `run.data_file`.

    Raises:
        DataError: as `read_dataset` and `check_images`.
        RunError: when the data is no longer what the run began with, or the kept findings are damaged.
    """
    settings = run.settings().data
    dataset = read_dataset(run.data_root(), settings)
    if run.data_file.exists():
        return _again(run, dataset)
    for note in dataset.notes:
        log.warning("%s", note)
    checked = check_images(dataset, settings, track)
    for path, reason in checked.broken:
        log.warning("skipped %s: %s", path, reason)
    dataset = healthy(dataset, checked, settings)
    about = {
        "layout": dataset.layout,
        "classes": dataset.classes,
        "notes": dataset.notes,
        "broken": checked.broken,
        "samples": [
            {
                **_identity(sample),
                "image": str(sample.image),
                "size": checked.sizes[sample.id],
                "mask": sample.mask is not None,
                "scored": sample.scored,
            }
            for sample in dataset.samples
        ],
    }
    write_atomically(run.data_file, json.dumps(about, indent=1, ensure_ascii=False))
    return Prepared(dataset, checked.sizes)


def _again(run: Run, dataset: Dataset) -> Prepared:
    try:
        about = read_json(run.data_file)
        check_shape(about, _DATA)
        broken = {path for path, _ in about["broken"]}
        sizes = {row["id"]: (height, width) for row in about["samples"] for height, width in [row["size"]]}
        if any(min(size) < 1 for size in sizes.values()):
            raise ValueError("a size below 1 pixel")
    except (OSError, ValueError) as error:
        raise RunError(
            f"{run.data_file}: damaged ({error}); delete it, and the images are read and checked again"
        ) from error
    whole = tuple(sample for sample in dataset.samples if below(dataset.root, sample.image) not in broken)
    dataset = dataclasses.replace(dataset, samples=whole)
    then = [{key: row[key] for key in ("id", "tags", "split")} for row in about["samples"]]
    if list(dataset.classes) != about["classes"] or [_identity(sample) for sample in dataset.samples] != then:
        raise RunError(
            f"{run.root}: the images or tags in {dataset.root} have changed since this run began; start another --out"
        )
    return Prepared(dataset, sizes)


def _identity(sample: Any) -> dict[str, Any]:
    return {"id": sample.id, "tags": list(sample.tags), "split": sample.split}
