"""Turn images with tag names into a data set with class ids: find the classes and their order."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tagseg.data.records import Dataset, Sample
from tagseg.errors import DataError
from tagseg.system.untrusted import read_bytes


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
    tests = sum(image.split == "test" for image in images)
    if tests:
        notes = [*notes, f"{tests} images of the test split are left out"]
        images = [image for image in images if image.split != "test"]
    classes = class_list(root) or tuple(sorted({tag for image in images for tag in image.tags}))
    numbers = {name: number for number, name in enumerate(classes, start=1)}
    # A million images share a few hundred sets of tags: keep each set in memory once.
    tag_sets: dict[tuple[int, ...], tuple[int, ...]] = {}
    samples = []
    for image in images:
        unknown = [tag for tag in image.tags if tag not in numbers]
        if unknown:
            expected = ", ".join(classes)
            raise DataError(f"{image.where}: unknown tag {unknown[0]!r}, expected one of classes.txt: {expected}")
        tags = tuple(sorted(numbers[tag] for tag in image.tags))
        split: Literal["train", "val"] = "val" if image.split == "val" else "train"
        tags = tag_sets.setdefault(tags, tags)
        samples.append(Sample(image.id, image.image, tags, split, image.mask, image.saliency))
    return Dataset(root, layout, classes, tuple(samples), notes=tuple(notes))


def class_list(root: Path) -> tuple[str, ...]:
    """Return the classes of a data folder's classes.txt in their order, or nothing if there is no such file.

    Raises:
        DataError: when the file cannot be read, or lists a class twice.
    """
    file = root / "classes.txt"
    if not file.is_file():
        return ()
    names: list[str] = []
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        name = line.strip()
        if name in names:
            raise DataError(f"{file}, row {number}: class {name!r} is listed twice")
        if name:
            names.append(name)
    return tuple(names)


def read_text(file: Path) -> str:
    """Return the content of a text file in UTF-8, with or without a byte order mark.

    Raises:
        DataError: when it cannot be read.
    """
    try:
        return read_bytes(file).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error}), expected UTF-8 text") from error
