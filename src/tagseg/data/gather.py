"""From images whose tags are names to a data set whose tags are numbers: which classes there are, in which order."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tagseg.data.records import Dataset, Sample
from tagseg.errors import DataError


@dataclass(frozen=True, slots=True)
class TaggedImage:
    """An image with the names of its tags, as it was found: `where` names file and row; `split` may be test."""

    where: str
    id: str
    image: Path
    tags: tuple[str, ...]
    split: str
    mask: Path | None = None
    saliency: Path | None = None


def gather(
    root: Path, layout: Literal["folder", "shards"], entries: Sequence[TaggedImage], notes: Sequence[str]
) -> Dataset:
    """Return the data set of images that were found; test images are left out.

    Classes are those of `classes.txt` in its order, else the sorted names.

    Raises:
        DataError: when classes.txt is there and lacks a tag, or cannot be read.
    """
    tests = sum(entry.split == "test" for entry in entries)
    if tests:
        notes = [*notes, f"{tests} images of the test split are left out"]
        entries = [entry for entry in entries if entry.split != "test"]
    classes = class_list(root) or tuple(sorted({tag for entry in entries for tag in entry.tags}))
    numbers = {name: number for number, name in enumerate(classes, start=1)}
    # A million images have a few hundred different sets of tags: each is held once.
    sets: dict[tuple[int, ...], tuple[int, ...]] = {}
    samples = []
    for entry in entries:
        unknown = [tag for tag in entry.tags if tag not in numbers]
        if unknown:
            expected = ", ".join(classes)
            raise DataError(f"{entry.where}: unknown tag {unknown[0]!r}, expected one of classes.txt: {expected}")
        tags = tuple(sorted(numbers[tag] for tag in entry.tags))
        split: Literal["train", "val"] = "val" if entry.split == "val" else "train"
        samples.append(Sample(entry.id, entry.image, sets.setdefault(tags, tags), split, entry.mask, entry.saliency))
    return Dataset(root, layout, classes, tuple(samples), notes=tuple(notes))


def class_list(root: Path) -> tuple[str, ...]:
    """Return the classes that a data folder's classes.txt lists, in their order; none where it is not there.

    Raises:
        DataError: when it cannot be read, or a class stands there twice.
    """
    file = root / "classes.txt"
    if not file.is_file():
        return ()
    try:
        lines = file.read_bytes().decode("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error}), expected UTF-8 text") from error
    names: list[str] = []
    for number, line in enumerate(lines, start=1):
        name = line.strip()
        if name in names:
            raise DataError(f"{file}, row {number}: class {name!r} is there a second time")
        if name:
            names.append(name)
    return tuple(names)
