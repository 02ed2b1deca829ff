"""Read COCO's layout: folders of images, and instance annotations in JSON, which give tags and masks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from tagseg.data.folder import attach
from tagseg.data.images import find_image
from tagseg.data.records import CocoMask, Dataset, Sample
from tagseg.errors import DataError
from tagseg.settings.data import DataSettings
from tagseg.system.records import read_json
from tagseg.system.untrusted import shown


@dataclass(frozen=True)
class Instances:
    """A checked instance file: category names by id, image records by id, annotations by image id."""

    file: Path
    categories: Mapping[int, str]
    images: Mapping[int, Mapping[str, Any]]
    annotations: Mapping[int, Sequence[Mapping[str, Any]]]

    def tagged(self, crowds: bool = False) -> set[int]:
        """Return the category ids of the annotations, with or without `crowds`."""
        entries = (entry for group in self.annotations.values() for entry in group)
        return {entry["category_id"] for entry in entries if crowds or not _crowd(entry)}


def instance_files(root: Path) -> tuple[list[Path], list[Path]]:
    """Return the instance files for training and validation; if there are none, all JSON files count as training."""
    places = (root / "annotations", root)
    train, val = (
        [path for place in places for path in sorted(place.glob(f"instances_{split}*.json"))]
        for split in ("train", "val")
    )
    if not train and not val:
        train = [path for place in places for path in sorted(place.glob("*.json"))]
    return train, val


def read_coco(root: Path, settings: DataSettings) -> Dataset:
    """Read COCO instances: the tags of an image are the categories of its annotations, crowds excepted.

    With `settings.coco_protocol`, crowds count as objects and validation images without annotations are left out. This
    gives the 82,081 and 40,137 images of COCO 2014 in the literature.

    The classes are the categories that occur in train, in the order of their ids; other objects are background.

    Raises:
        DataError: with file and entry, when the JSON is broken, or a key or an image is missing.
    """
    train_files, val_files = instance_files(root)
    for files, name in ((train_files, "train"), (val_files, "val")):
        if len(files) > 1 or (name == "train" and not files):
            got = ", ".join(file.relative_to(root).as_posix() for file in files) or "none"
            raise DataError(f"{root}: got {got} for {name}, expected one file annotations/instances_{name}*.json")
    train = read_instances(train_files[0])
    val = read_instances(val_files[0]) if val_files else None
    protocol = settings.coco_protocol
    used = sorted(train.tagged(protocol))
    classes = tuple(train.categories[category] for category in used)
    numbers = {category: number for number, category in enumerate(used, start=1)}
    if len(set(classes)) < len(classes):
        raise DataError(f"{train.file}: categories must have different names, found {', '.join(classes)}")
    if val is not None and any(train.categories.get(category) != name for category, name in val.categories.items()):
        raise DataError(f"{val.file}: the categories must have the ids and names of {train.file.name}, but differ")
    notes = []
    dropped = len(train.categories) - len(used)
    if dropped:
        notes.append(f"{dropped} of {len(train.categories)} categories occur on no training image and are left out")
    samples = _samples(root, train, "train", numbers, protocol)
    tagged = [sample for sample in samples if sample.tags]
    if len(tagged) < len(samples):
        notes.append(f"{len(samples) - len(tagged)} training images without annotations are left out")
    validation = _samples(root, val, "val", numbers, protocol) if val is not None else []
    samples = [*tagged, *(sample for sample in validation if sample.tags or not protocol)]
    return Dataset(root, "coco", classes, attach(samples, root, settings, masks=""), notes=tuple(notes))


def _samples(
    root: Path, instances: Instances, split: Literal["train", "val"], numbers: Mapping[int, int], protocol: bool
) -> list[Sample]:
    name = instances.file.stem.removeprefix("instances_")
    places = [root / below for below in (name, f"images/{name}", split, f"images/{split}", "images")]
    folders = [*(place for place in places if place.is_dir()), root]
    samples = []
    for number, record in instances.images.items():
        where = f"{instances.file}, image {number}"
        image = find_image(root, folders, record["file_name"], where)
        entries = [entry for entry in instances.annotations.get(number, ()) if entry["category_id"] in numbers]
        crowds = [_crowd(entry) and not protocol for entry in entries]
        tags = {numbers[entry["category_id"]] for entry, crowd in zip(entries, crowds, strict=True) if not crowd}
        mask = None
        # Boxes give tags but no mask.
        if all(entry.get("segmentation") for entry in entries):
            pairs = zip(entries, crowds, strict=True)
            segments = tuple((numbers[entry["category_id"]], entry["segmentation"], crowd) for entry, crowd in pairs)
            mask = CocoMask(record["height"], record["width"], segments)
        name = PurePosixPath(record["file_name"].replace("\\", "/")).with_suffix("").as_posix()
        samples.append(Sample(name, image, tuple(sorted(tags)), split, mask))
    return samples


def read_instances(file: Path) -> Instances:
    """Read and check a COCO instance file.

    Raises:
        DataError: with file and entry, when the JSON is broken, or a key is missing or has the wrong type.
    """
    try:
        content = read_json(file)
    except (OSError, ValueError) as error:
        raise DataError(f"{file}: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise DataError(
            f"{file}: got a {type(content).__name__}, expected an object with images, annotations, categories"
        )
    categories = _entries(file, content, "categories", {"id": int, "name": str})
    images = _entries(file, content, "images", {"id": int, "file_name": str, "height": int, "width": int})
    annotations = _entries(file, content, "annotations", {"image_id": int, "category_id": int})
    records: dict[int, Mapping[str, Any]] = {}
    for index, record in enumerate(images):
        if record["id"] in records:
            raise DataError(f"{file}: images[{index}]: id {record['id']} is used twice")
        records[record["id"]] = record
    names = {entry["id"]: entry["name"] for entry in categories}
    grouped: dict[int, list[Mapping[str, Any]]] = {}
    for index, entry in enumerate(annotations):
        for key, known in (("image_id", records.keys()), ("category_id", names.keys())):
            if entry[key] not in known:
                raise DataError(f"{file}: annotations[{index}]: unknown {key} {shown(entry[key])}")
        grouped.setdefault(entry["image_id"], []).append(entry)
    return Instances(file, names, records, grouped)


def _entries(file: Path, content: Mapping[str, Any], name: str, keys: Mapping[str, type]) -> list[Mapping[str, Any]]:
    """Return one list of the file after checking the `keys` and their types in each entry."""
    entries = content.get(name)
    if not isinstance(entries, list):
        raise DataError(f"{file}: no list {name!r}, expected lists images, annotations and categories")
    for index, entry in enumerate(entries):
        for key, kind in keys.items():
            if not isinstance(entry, dict) or type(entry.get(key)) is not kind:  # a bool is an instance of int
                got = shown(entry.get(key)) if isinstance(entry, dict) and key in entry else "none"
                raise DataError(
                    f"{file}: {name}[{index}]: got {got} for {key!r}, expected a value of type {kind.__name__}"
                )
    return entries


def _crowd(entry: Mapping[str, Any]) -> bool:
    return bool(entry.get("iscrowd", 0))
