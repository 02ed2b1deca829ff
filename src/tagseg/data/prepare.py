"""Prepare a run's data set: read it, check it once, leave out broken images, and give later stages the same."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tagseg.data.check import below, check_images, healthy
from tagseg.data.data_file import DataFile, ImageRow, read_data_file, write_data_file
from tagseg.data.foreign import foreign_digest, foreign_source
from tagseg.data.hints import tag_notes, tag_warnings
from tagseg.data.read import read_dataset
from tagseg.data.records import Dataset, Sample
from tagseg.data.tars import content_mark
from tagseg.errors import RunError
from tagseg.run.folder import Run
from tagseg.run.stages import STAGES, Stage, needed_stages
from tagseg.run.taught import marked_classes
from tagseg.settings.data import DataSettings
from tagseg.system.progress import Track, silent

log = logging.getLogger(__name__)


class DataChanged(RunError):
    """The images or tags of a run are not those that it was made from.

    what: which are not. stage: the first stage that depends on them. Images outside the training split are only scored.
    """

    def __init__(self, what: str, stage: Stage, remedy: str) -> None:
        super().__init__(f"{what}. {remedy}")
        self.what = what
        self.stage = stage


@dataclass(frozen=True)
class Prepared:
    """A run's data set without broken images; `sizes` are (height, width) in pixels by sample id."""

    dataset: Dataset
    sizes: Mapping[str, tuple[int, int]]


def prepare(run: Run, track: Track = silent) -> Prepared:
    """Read a run's data set; the first time, check every image and record the result in `run.data_file`.

    Training images have also the tags that a person added in the review page.

    Raises:
        DataError: as for `read_dataset` and `check_images`.
        RunError: when the data has changed since the run began (`DataChanged`), or `run.data_file` is damaged.
    """
    settings = run.settings()
    if run.data_file.exists() and not run.data_root().is_dir():
        raise RunError(
            f"{run.data_root()}: no such folder, expected the data of {run.root}; if they are at another place now, "
            f"`tagseg fit PLACE --out {run.root}` continues from there"
        )
    dataset = read_dataset(run.data_root(), settings.data, settings.cache)
    if not run.data_file.exists():
        return _with_added_tags(run, _checked(run, dataset, settings.data, track))
    return _with_added_tags(run, _prepared_again(run, dataset, settings.uses_saliency()))


def prepare_changed(run: Run, stage: Stage, track: Track = silent) -> Prepared:
    """Read and check a data set that has changed, and discard a stage that depends on it and all later ones.

    Both count together. The caller holds the run's lock.

    Raises:
        DataError: as for `read_dataset` and `check_images`.
        WriteError: when the folder cannot be written to.
    """
    settings = run.settings()
    dataset = read_dataset(run.data_root(), settings.data, settings.cache)
    with run.changing() as (changed, draft):
        draft.discard(stage)
        prepared = _checked(changed, dataset, settings.data, track)
        if "train" in draft.manifest.stages:
            draft.amend("train", [run.data_file.name])
    return _with_added_tags(run, prepared)


def follow_data(run: Run, root: Path) -> None:
    """Let a run continue from its data at another place: a folder with the same images, tags, splits and classes. The
    caller holds the run's lock.

    Raises:
        DataError: as for `read_dataset`.
        RunError: when the folder holds other data; says what differs.
        WriteError: when the run cannot be written to.
    """
    settings, kept = run.settings(), read_data_file(run)
    dataset = _without_broken(read_dataset(root, settings.data, settings.cache), kept)
    if changes := _difference(dataset, kept, settings.uses_saliency()):
        raise RunError(
            f"{run.root}: this run was made from {run.data_root()}, not from what {root} holds: {changes}; choose "
            "another --out"
        )
    places = {sample.id: str(sample.image) for sample in dataset.samples}
    rows = tuple(msgspec.structs.replace(row, image=places[row.id]) for row in kept.samples)
    log.info("%s: its data are in %s now, before in %s", run.root, root, run.data_root())
    with run.changing() as (_, draft):
        draft.write(run.data_file.name, msgspec.structs.replace(kept, samples=rows))
        owner = needed_stages(settings)[0]
        if owner in draft.manifest.stages:
            draft.amend(owner, [run.data_file.name])
        draft.manifest = msgspec.structs.replace(draft.manifest, data=str(root))


def _without_broken(dataset: Dataset, kept: DataFile) -> Dataset:
    """Return a data set without the images that could not be read when the run began."""
    broken = {path for path, _ in kept.broken}
    if not broken:
        return dataset
    whole = tuple(sample for sample in dataset.samples if below(dataset.root, sample.image) not in broken)
    return dataclasses.replace(dataset, samples=whole)


def _with_added_tags(run: Run, prepared: Prepared) -> Prepared:
    dataset = prepared.dataset
    marked = marked_classes(run, dataset.classes)
    if not marked:
        return prepared
    samples = tuple(
        dataclasses.replace(sample, tags=tuple(sorted({*sample.tags, *marked.get(sample.id, ())})))
        if sample.split == "train"
        else sample
        for sample in dataset.samples
    )
    return dataclasses.replace(prepared, dataset=dataclasses.replace(dataset, samples=samples))


def _checked(run: Run, dataset: Dataset, settings: DataSettings, track: Track) -> Prepared:
    """Check every image and record the result in `run.data_file`."""
    for note in (*dataset.notes, *tag_notes(dataset), *map(str, dataset.ignored), *tag_warnings(dataset)):
        log.warning("%s", note)
    checked = check_images(dataset, settings, track)
    for note in (*checked.notes, *checked.warnings):
        log.warning("%s", note)
    for path, reason in checked.broken:
        log.warning("skipped %s: %s", path, reason)
    dataset = healthy(dataset, checked, settings)
    write_data_file(run, dataset, checked)
    return Prepared(dataset, checked.sizes)


def _prepared_again(run: Run, dataset: Dataset, uses_saliency: bool) -> Prepared:
    kept = read_data_file(run)
    dataset = _without_broken(dataset, kept)
    if changes := _difference(dataset, kept, uses_saliency):
        stage = _first_stage(dataset, kept, uses_saliency)
        again = "all stages run again" if stage == STAGES[0] else f"the stages from {stage} on run again"
        raise DataChanged(
            f"{run.root}: the images or tags in {dataset.root} have changed since this run began: {changes}",
            stage,
            f"Undo that, continue from the changed data with `tagseg fit "
            f"{dataset.root} --out {run.root} --force` ({again}), or use another --out",
        )
    _require_same_foreign(run, dataset)
    # The samples' own ids as keys, and each size once, so that the rows can be freed.
    shared: dict[tuple[int, int], tuple[int, int]] = {}
    rows = zip(dataset.samples, kept.samples, strict=True)
    return Prepared(dataset, {sample.id: shared.setdefault(row.size, row.size) for sample, row in rows})


def _require_same_foreign(run: Run, dataset: Dataset) -> None:
    """Raise DataChanged if another tool's files are others than when a stage read them."""
    found = foreign_source(run.settings())
    if found is None or not (known := run.manifest().foreign.get(found[0])):
        return
    stage, source = found
    if known != foreign_digest(source, dataset.split("train")):
        raise DataChanged(
            f"{run.root}: the files in {source} have changed since stage {stage} read them",
            stage,
            f"Undo that, continue from the changed files with `tagseg fit {dataset.root} --out {run.root} --force` "
            f"(the stages from {stage} on run again), or use another --out",
        )


def _first_stage(dataset: Dataset, kept: DataFile, uses_saliency: bool) -> Stage:
    """Return the first stage that depends on what has changed."""
    before = [row for row in kept.samples if row.split == "train"]
    now = [sample for sample in dataset.samples if sample.split == "train"]
    return "train" if dataset.classes != kept.classes or _differ(now, before, uses_saliency) else "evaluate"


def _difference(dataset: Dataset, kept: DataFile, uses_saliency: bool) -> str:
    """Say how a data set differs from what a run was made from; empty if it does not."""
    if dataset.classes == kept.classes and not _differ(dataset.samples, kept.samples, uses_saliency):
        return ""
    return "; ".join(_changes(dataset, kept, uses_saliency))


def _differ(now: Sequence[Sample], before: Sequence[ImageRow], uses_saliency: bool) -> bool:
    """Tell whether images, their tags, splits or contents are others than before."""
    return (
        len(now) != len(before)
        or not all(map(_is_row, now, before))
        or any(map(_is_other, now, before))
        or (uses_saliency and any(map(_has_other_saliency, now, before)))
    )


def _changes(dataset: Dataset, kept: DataFile, uses_saliency: bool) -> list[str]:
    """Say what differs: how many images of which kind, the first one's name, and classes."""
    before, after = {row.id: row for row in kept.samples}, {sample.id: sample for sample in dataset.samples}
    renamed = dataset.classes != kept.classes

    def tags(ids: tuple[int, ...], classes: tuple[str, ...]) -> set[str] | tuple[int, ...]:
        return {classes[class_id - 1] for class_id in ids} if renamed else ids

    both = [name for name in after if name in before]
    found = {
        "added": [name for name in after if name not in before],
        "gone": [name for name in before if name not in after],
        "with other tags": [
            name for name in both if tags(after[name].tags, dataset.classes) != tags(before[name].tags, kept.classes)
        ],
        "with another content": [name for name in both if _is_other(after[name], before[name])],
        "with another saliency map": [
            name for name in both if uses_saliency and _has_other_saliency(after[name], before[name])
        ],
        "in another split": [name for name in both if after[name].split != before[name].split],
    }
    lines = [
        f"{len(names)} image{'s' if len(names) > 1 else ''} {what} (first {names[0]})"
        for what, names in found.items()
        if names
    ]
    lines += [f"class {name} is new" for name in dataset.classes if name not in kept.classes]
    lines += [f"class {name} is gone" for name in kept.classes if name not in dataset.classes]
    return lines or ["the order of images or classes"]


def _is_other(sample: Sample, row: ImageRow) -> bool:
    """Tell whether an image's file is another one than before; one that cannot be read is named where it is read."""
    mark = content_mark(sample.image) if row.mark else ""
    return bool(mark) and mark != row.mark


def _has_other_saliency(sample: Sample, row: ImageRow) -> bool:
    """Tell whether a saliency map is another one than before, or gone; one that was added had no part in the run."""
    return bool(row.saliency) and row.saliency != (content_mark(sample.saliency) if sample.saliency else "")


def _is_row(sample: Sample, row: ImageRow) -> bool:
    return (row.id, row.tags, row.split) == (sample.id, sample.tags, sample.split)
