"""The data set as a run uses it: read, checked once, broken images left out, and the same again for later stages."""

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass

from tagseg.data.check import below, check_images, healthy
from tagseg.data.data_file import ImageRow, read_data_file, write_data_file
from tagseg.data.read import read_dataset
from tagseg.data.records import Dataset, Sample
from tagseg.errors import RunError
from tagseg.run.folder import Run
from tagseg.system.progress import Track, silent

log = logging.getLogger(__name__)


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
    write_data_file(run, dataset, checked)
    return Prepared(dataset, checked.sizes)


def _again(run: Run, dataset: Dataset) -> Prepared:
    kept = read_data_file(run)
    broken = {path for path, _ in kept.broken}
    if broken:
        whole = tuple(sample for sample in dataset.samples if below(dataset.root, sample.image) not in broken)
        dataset = dataclasses.replace(dataset, samples=whole)
    same = len(dataset.samples) == len(kept.samples) and dataset.classes == kept.classes
    if not (same and all(map(_is_row, dataset.samples, kept.samples))):
        raise RunError(
            f"{run.root}: the images or tags in {dataset.root} have changed since this run began; start another --out"
        )
    # The samples' own ids as keys, and each size once, so that the rows can be freed.
    shared: dict[tuple[int, int], tuple[int, int]] = {}
    rows = zip(dataset.samples, kept.samples, strict=True)
    return Prepared(dataset, {sample.id: shared.setdefault(row.size, row.size) for sample, row in rows})


def _is_row(sample: Sample, row: ImageRow) -> bool:
    return (row.id, row.tags, row.split) == (sample.id, sample.tags, sample.split)
