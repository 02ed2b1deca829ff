"""The data set as a run uses it: read, checked once, broken images left out, and the same again for later stages."""

import dataclasses
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tagseg.data.check import Checked, below, check_images, healthy
from tagseg.data.read import read_dataset
from tagseg.data.records import Dataset, Sample
from tagseg.errors import RunError
from tagseg.run.folder import Run
from tagseg.system.files import write_atomically
from tagseg.system.process import gc_paused
from tagseg.system.progress import Track, silent
from tagseg.system.untrusted import check_shape, read_json, shown

log = logging.getLogger(__name__)


_DATA = {"classes": [str], "broken": [[str]], "samples": list}


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
    dataset = read_dataset(run.data_root(), settings, run.settings().cache)
    if run.data_file.exists():
        return _again(run, dataset)
    for note in dataset.notes:
        log.warning("%s", note)
    checked = check_images(dataset, settings, track)
    for path, reason in checked.broken:
        log.warning("skipped %s: %s", path, reason)
    dataset = healthy(dataset, checked, settings)
    write_about(run, dataset, checked)
    return Prepared(dataset, checked.sizes)


def write_about(run: Run, dataset: Dataset, checked: Checked) -> None:
    """Note in `run.data_file` what a run's data set is: its whole images with their sizes, and the broken ones."""
    about = {
        "layout": dataset.layout,
        "classes": dataset.classes,
        "notes": dataset.notes,
        "broken": checked.broken,
    }
    rows = (
        {
            "id": sample.id,
            "tags": sample.tags,
            "split": sample.split,
            "image": str(sample.image),
            "size": checked.sizes[sample.id],
            "mask": sample.mask is not None,
            "scored": sample.scored,
        }
        for sample in dataset.samples
    )
    # A line each: laid out by json, a million of them would fill the memory.
    lines = ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in rows)
    head = json.dumps(about, indent=1, ensure_ascii=False).removesuffix("\n}")
    write_atomically(run.data_file, f'{head},\n "samples": [\n  {lines}\n ]\n}}')


def _again(run: Run, dataset: Dataset) -> Prepared:
    try:
        with gc_paused():
            about = read_json(run.data_file)
        check_shape(about, _DATA)
        broken = {path for path, _ in about["broken"]}
        sizes = {row["id"]: _size(row["size"]) for row in about["samples"]}
        if broken:
            whole = tuple(sample for sample in dataset.samples if below(dataset.root, sample.image) not in broken)
            dataset = dataclasses.replace(dataset, samples=whole)
        same = len(dataset.samples) == len(about["samples"]) and list(dataset.classes) == about["classes"]
        same = same and all(map(_is_row, dataset.samples, about["samples"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"{run.data_file}: damaged ({error!r:.200}); delete it, and the images are read and checked again"
        ) from error
    if not same:
        raise RunError(
            f"{run.root}: the images or tags in {dataset.root} have changed since this run began; start another --out"
        )
    # By the samples' own ids, each size once: so what was read of the file can go.
    shared: dict[tuple[int, int], tuple[int, int]] = {}
    return Prepared(dataset, {one.id: shared.setdefault(sizes[one.id], sizes[one.id]) for one in dataset.samples})


def _size(values: Any) -> tuple[int, int]:
    height, width = values
    if not (type(height) is int and type(width) is int and height > 0 and width > 0):
        raise ValueError(f"a size of {shown(values)}")
    return height, width


def _is_row(sample: Sample, row: Mapping[str, Any]) -> bool:
    return [row["id"], row["tags"], row["split"]] == [sample.id, list(sample.tags), sample.split]
