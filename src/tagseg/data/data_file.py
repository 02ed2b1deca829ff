"""data.json of a run: which images the run was made from, their tags, sizes and splits."""

from collections.abc import Mapping
from typing import Literal

import msgspec

from tagseg.data.check import Checked
from tagseg.data.hints import tag_notes, tag_warnings
from tagseg.data.records import Dataset
from tagseg.data.tars import content_mark
from tagseg.errors import RunError
from tagseg.run.folder import Run
from tagseg.system.process import gc_paused
from tagseg.system.records import ClassId, Positive, Record, read_record, write_record

AGAIN = "the images are read and checked again"


class ImageRow(msgspec.Struct, frozen=True):
    """An image of a run's data set.

    id: as in `Sample`. tags: class ids. image: path of the image. size: height and width in pixels. mask: whether there
    is a true mask. scored: whether that mask is part of the official evaluation. mark: that of the image's content (see
    `content_mark`); empty in runs of earlier versions. saliency: that of the saliency map's content; empty without one.
    """

    id: str
    tags: tuple[ClassId, ...]
    split: Literal["train", "val"]
    image: str
    size: tuple[Positive, Positive]
    mask: bool
    scored: bool = True
    mark: str = ""
    saliency: str = ""


class DataFile(Record, frozen=True):
    """data.json of a run.

    layout, classes: as in `Dataset`. notes: how the data was read, what was ignored, what may be wrong.
    broken: path and reason of every image that cannot be read. samples: all other images.
    """

    layout: Literal["folder", "voc", "coco", "shards"]
    classes: tuple[str, ...]
    notes: tuple[str, ...]
    broken: tuple[tuple[str, str], ...]
    samples: tuple[ImageRow, ...]

    def __post_init__(self) -> None:
        count = len(self.classes)
        for row in self.samples:
            if row.tags and max(row.tags) > count:
                raise ValueError(f"image {row.id!r:.100} has the tag {max(row.tags)}, but there are {count} classes")


def read_data_file(run: Run) -> DataFile:
    """Return what data.json says about a run's data set.

    Raises:
        RunError: when the file is missing or damaged.
    """
    if not run.data_file.exists():
        raise RunError(f"{run.data_file}: missing; run the last finished stage again with --force: {AGAIN}")
    with gc_paused():
        return read_record(run.data_file, DataFile, f"delete it and run the last finished stage with --force: {AGAIN}")


def write_data_file(run: Run, dataset: Dataset, checked: Checked) -> None:
    """Write data.json: the images of a data set with their sizes, and the broken images.

    Raises:
        WriteError: when the disk is full or the folder cannot be written to.
    """
    sizes: Mapping[str, tuple[int, int]] = checked.sizes
    with gc_paused():
        rows = tuple(
            ImageRow(
                sample.id,
                sample.tags,
                sample.split,
                str(sample.image),
                sizes[sample.id],
                sample.mask is not None,
                sample.scored,
                content_mark(sample.image),
                content_mark(sample.saliency) if sample.saliency else "",
            )
            for sample in dataset.samples
        )
        notes = (
            *(*dataset.notes, *tag_notes(dataset), *checked.notes, *map(str, dataset.ignored)),
            *(*tag_warnings(dataset), *checked.warnings),
        )
        write_record(run.data_file, DataFile(dataset.layout, dataset.classes, notes, checked.broken, rows))
