"""Turn images with tag names into a data set with class ids: find the classes and their order."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tagseg.data.ignored import ignored
from tagseg.data.mask_values import BACKGROUND_NAMES
from tagseg.data.records import Dataset, Sample
from tagseg.data.texts import names_in
from tagseg.errors import DataError
from tagseg.system.untrusted import shown


@dataclass(frozen=True, slots=True)
class TaggedImage:
    """An image as it was found, with the names of its tags: `where` is its file and row; `split` may also be test."""

    where: str
    id: str
    image: Path
    tags: tuple[str, ...]
    split: str
    mask: Path | None = None
    saliency: Path | None = None


def gather(
    root: Path, layout: Literal["folder", "shards"], images: Sequence[TaggedImage], notes: Sequence[str]
) -> Dataset:
    """Return the data set of the images that were found, without those of the test split.

    The classes are those of `classes.txt` in its order, or else the sorted tag names.

    Raises:
        DataError: when a tag is missing in classes.txt, or classes.txt cannot be read.
    """
    tests = [image.image for image in images if image.split == "test"]
    if tests:
        images = [image for image in images if image.split != "test"]
    records = ignored(root, "images of the test split are left out", tests, expected=True)
    classes = class_list(root) or tuple(sorted({tag for image in images for tag in image.tags}))
    numbers = {name: number for number, name in enumerate(classes, start=1)}
    # A million images share a few hundred sets of tags: keep each set in memory once.
    tag_sets: dict[tuple[int, ...], tuple[int, ...]] = {}
    samples = []
    for image in images:
        unknown = [tag for tag in image.tags if tag not in numbers]
        if unknown:
            expected = ", ".join(name[:100] for name in classes[:20]) + (", ..." if len(classes) > 20 else "")
            raise DataError(
                f"{image.where}: unknown tag {shown(unknown[0])}, expected one of classes.txt: {expected}; "
                "add it there, or correct the tag"
            )
        tags = tuple(sorted(numbers[tag] for tag in image.tags))
        split: Literal["train", "val"] = "val" if image.split == "val" else "train"
        tags = tag_sets.setdefault(tags, tags)
        samples.append(Sample(image.id, image.image, tags, split, image.mask, image.saliency))
    return Dataset(root, layout, classes, tuple(samples), notes=tuple(notes), ignored=records)


def class_list(root: Path) -> tuple[str, ...]:
    """Return the classes of a data folder's classes.txt in their order, or nothing if there is no such file.

    A background on its first line is left out: it has the value 0 in masks, as everywhere.

    Raises:
        DataError: when the file cannot be read, or lists a class twice.
    """
    file = root / "classes.txt"
    names = names_in(file) if file.is_file() else ()
    return names[1:] if names and names[0].lower() in BACKGROUND_NAMES else names
