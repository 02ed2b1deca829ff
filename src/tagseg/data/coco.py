"""Read COCO's layout: folders of images, and instance annotations in JSON, which give tags and masks."""

import dataclasses
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from tagseg.data.companions import attach, companion_folders
from tagseg.data.folder import unlisted
from tagseg.data.ignored import ignored
from tagseg.data.images import image_size
from tagseg.data.locate import Sought, locate, refuse_missing
from tagseg.data.records import CocoMask, Dataset, Sample
from tagseg.data.tag_exports import json_kind
from tagseg.data.tag_rows import split_of
from tagseg.data.tag_sources import split_places
from tagseg.errors import DataError
from tagseg.settings.data import DataSettings
from tagseg.system.records import read_json
from tagseg.system.untrusted import shown

ROBOFLOW = "_annotations.coco.json"
"""The name of Roboflow's annotations, which lie beside the images of each split."""


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


@dataclass(frozen=True)
class InstanceFiles:
    """The instance files of a data folder by split; `others` are JSON files that are not used."""

    train: tuple[Path, ...]
    val: tuple[Path, ...] = ()
    others: tuple[Path, ...] = ()


def instance_files(root: Path) -> InstanceFiles:
    """Return the instance files of a data folder.

    These are Roboflow's in the folders of splits, annotations/instances_train*.json and _val*.json, or else JSON files
    of COCO's shape: by the split in their names, or the only one.
    """
    roboflow: dict[str, list[Path]] = {"train": [], "val": [], "test": []}
    for folder, split in [*split_places(root), (root, "train")]:
        if (folder / ROBOFLOW).is_file():
            roboflow[split].append(folder / ROBOFLOW)
    if roboflow["train"]:
        return InstanceFiles(tuple(roboflow["train"]), tuple(roboflow["val"]), tuple(roboflow["test"]))
    places = (root / "annotations", root)
    files = [path for place in places for path in sorted(place.glob("*.json")) if not path.name.startswith(".")]
    named = [path for path in files if path.name.startswith("instances_")]
    chosen = named or [path for path in files if is_coco(path)]
    by_split: dict[str, list[Path]] = {"train": [], "val": [], "test": []}
    for path in chosen:
        by_split[split_of(path.stem) or ("train" if len(chosen) == 1 else "test")].append(path)
    if not by_split["train"] and len(by_split["val"]) + len(by_split["test"]) == 1:
        by_split = {"train": chosen, "val": [], "test": []}
    used = {*by_split["train"], *by_split["val"]}
    return InstanceFiles(
        tuple(by_split["train"]), tuple(by_split["val"]), tuple(path for path in files if path not in used)
    )


def is_coco(file: Path) -> bool:
    """Tell whether a file is JSON of COCO's shape, with images and annotations."""
    try:
        return json_kind(read_json(file)) == "coco"
    except (OSError, ValueError):
        return False


def read_coco(root: Path, settings: DataSettings) -> Dataset:
    """Read COCO instances: the tags of an image are the categories of its annotations, crowds excepted.

    Images without annotations are photographs that show no class; those with nothing but crowds are left out. With
    `settings.coco_protocol`, crowds count as objects and images without annotations are left out. This gives the 82,081
    and 40,137 images of COCO 2014 in the literature.

    The classes are the categories that occur in train, in the order of their ids; other objects are background.

    Raises:
        DataError: with file and entry, when the JSON is broken, or a key or an image is missing.
    """
    files = instance_files(root)
    for found, name in ((files.train, "train"), (files.val, "val")):
        if len(found) > 1 or (name == "train" and not found):
            got = ", ".join(file.relative_to(root).as_posix() for file in found or files.others[:10]) or "none"
            raise DataError(f"{root}: got {got} for {name}, expected one file annotations/instances_{name}*.json")
    train = read_instances(files.train[0])
    val = read_instances(files.val[0]) if files.val else None
    protocol = settings.coco_protocol
    used = sorted(train.tagged(protocol))
    classes = tuple(train.categories[category] for category in used)
    numbers = {category: number for number, category in enumerate(used, start=1)}
    if not used:
        crowds = len(train.tagged(crowds=True)) > 0
        hint = "; all annotations are crowds, which --data.coco-protocol counts as objects" if crowds else ""
        raise DataError(f"{train.file}: no image has an annotation that gives a tag, expected at least one{hint}")
    if len(set(classes)) < len(classes):
        raise DataError(f"{train.file}: categories must have different names, found {', '.join(classes)}")
    if val is not None and any(train.categories.get(category) != name for category, name in val.categories.items()):
        raise DataError(f"{val.file}: the categories must have the ids and names of {train.file.name}, but differ")
    notes = []
    dropped = len(train.categories) - len(used)
    if dropped:
        notes.append(f"{dropped} of {len(train.categories)} categories occur on no training image and are left out")
    untagged = 0 if protocol else _untagged_crowds(train)
    if untagged:
        notes.append(
            f"{untagged} annotations of crowds give no tag: they are void (--data.coco-protocol counts them as objects)"
        )
    samples, left_out = _chosen(_samples(root, train, "train", numbers, protocol), train, settings)
    validation: tuple[Sample, ...] = ()
    val_left_out: tuple[Sample, ...] = ()
    if val is not None:
        validation, val_left_out = _chosen(_samples(root, val, "val", numbers, protocol), val, settings)
    unmasked = [sample.image for sample in (*samples, *validation) if sample.tags and sample.mask is None]
    if 0 < len(unmasked) < len(samples) + len(validation) and any(sample.mask for sample in samples):
        few = ", ".join(str(image.relative_to(root)) for image in unmasked[:3]) + (", ..." if len(unmasked) > 3 else "")
        notes.append(f"{len(unmasked)} images have annotations without an outline ({few}): tags, but no true mask")
    dataset = Dataset(root, "coco", classes, (*samples, *validation), notes=tuple(notes))
    dataset = attach(dataset, root, settings, masks="")
    skip = [
        *companion_folders(root, settings, masks=""),
        *(file.parent for file in files.others if file.name == ROBOFLOW),
    ]
    known = {sample.image for sample in dataset.samples} | {sample.image for sample in (*left_out, *val_left_out)}
    reason = "training images without annotations are left out (--data.coco-protocol)" if protocol else (
        "training images have only crowds, which give no tag; they are left out (--data.coco-protocol counts crowds as "
        "objects)"
    )  # fmt: skip
    records = (
        *ignored(root, reason, [sample.image for sample in left_out], expected=protocol),
        *ignored(root, "JSON files of other splits and tasks are not used", files.others, expected=True),
        *unlisted(root, known, f"images that {train.file.name} does not list", skip),
    )
    return dataclasses.replace(dataset, ignored=(*dataset.ignored, *records))


def _untagged_crowds(instances: Instances) -> int:
    """Return how many annotations are crowds of a class that no other annotation of the image tags."""
    count = 0
    for entries in instances.annotations.values():
        tagged = {entry["category_id"] for entry in entries if not _crowd(entry)}
        count += sum(_crowd(entry) and entry["category_id"] not in tagged for entry in entries)
    return count


def _chosen(
    samples: Sequence[Sample], instances: Instances, settings: DataSettings
) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Return the samples that are used, and those that are left out: by the protocol, or because tags are unknown."""
    protocol, keep, drop = settings.coco_protocol, list[Sample](), list[Sample]()
    for sample, entries in zip(samples, map(instances.annotations.get, instances.images), strict=True):
        unknown = any(_crowd(entry) for entry in entries or ()) and sample.split == "train"
        (keep if sample.tags or not (protocol or unknown) else drop).append(sample)
    return tuple(keep), tuple(drop)


def _samples(
    root: Path, instances: Instances, split: Literal["train", "val"], numbers: Mapping[int, int], protocol: bool
) -> list[Sample]:
    name = instances.file.stem.removeprefix("instances_")
    below_split = instances.file.name == ROBOFLOW and instances.file.parent != root
    if instances.file.name == ROBOFLOW:
        folders: tuple[Path, ...] = (instances.file.parent,)
    else:
        places = [root / below for below in (name, f"images/{name}", split, f"images/{split}", "images", "data")]
        folders = (*(place for place in places if place.is_dir()), root)
    wanted = [
        Sought(record["file_name"], folders, f"{instances.file}, image {number}")
        for number, record in instances.images.items()
    ]
    images = locate(root, wanted)
    outlined = any(entry.get("segmentation") for group in instances.annotations.values() for entry in group)
    refuse_missing(one for one, image in zip(wanted, images, strict=True) if image is None)
    samples = []
    for (number, record), image in zip(instances.images.items(), images, strict=True):
        assert image is not None
        entries = [entry for entry in instances.annotations.get(number, ()) if entry["category_id"] in numbers]
        crowds = [_crowd(entry) and not protocol for entry in entries]
        tags = {numbers[entry["category_id"]] for entry, crowd in zip(entries, crowds, strict=True) if not crowd}
        mask = None
        # Boxes and labels of images give tags but no mask.
        if outlined and all(entry.get("segmentation") for entry in entries):
            pairs = zip(entries, crowds, strict=True)
            segments = tuple((numbers[entry["category_id"]], entry["segmentation"], crowd) for entry, crowd in pairs)
            mask = _mask(record, image, segments)
        given = record["file_name"].replace("\\", "/")
        path = PurePosixPath(image.relative_to(root) if below_split else given)
        samples.append(Sample(path.with_suffix("").as_posix(), image, tuple(sorted(tags)), split, mask))
    return samples


def _mask(record: Mapping[str, Any], image: Path, segments: tuple[tuple[int, Any, bool], ...]) -> CocoMask | None:
    """Return a mask of the size in the record, or else of the image; None if the image has no size either."""
    height, width = record.get("height"), record.get("width")
    if height is None or width is None:
        try:
            height, width = image_size(image)
        except DataError:  # the check of images names it
            return None
    return CocoMask(height, width, segments)


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
    images = _entries(file, content, "images", {"id": int, "file_name": str}, {"height": int, "width": int})
    annotations = _entries(file, content, "annotations", {"image_id": int, "category_id": int})
    records: dict[int, Mapping[str, Any]] = {}
    for index, record in enumerate(images):
        if record["id"] in records:
            raise DataError(f"{file}: images[{index}]: id {record['id']} is used twice")
        records[record["id"]] = record
    names = {entry["id"]: unicodedata.normalize("NFC", entry["name"].strip()) for entry in categories}
    grouped: dict[int, list[Mapping[str, Any]]] = {}
    for index, entry in enumerate(annotations):
        for key, known in (("image_id", records.keys()), ("category_id", names.keys())):
            if entry[key] not in known:
                raise DataError(f"{file}: annotations[{index}]: unknown {key} {shown(entry[key])}")
        grouped.setdefault(entry["image_id"], []).append(entry)
    return Instances(file, names, records, grouped)


def _entries(
    file: Path, content: Mapping[str, Any], name: str, keys: Mapping[str, type], optional: Mapping[str, type] = {}
) -> list[Mapping[str, Any]]:
    """Return one list of the file after checking the types of keys in each entry; `optional` ones may be missing."""
    entries = content.get(name)
    if not isinstance(entries, list):
        raise DataError(f"{file}: no list {name!r}, expected lists images, annotations and categories")
    for index, entry in enumerate(entries):
        for key, kind in (*keys.items(), *optional.items()):
            if key in optional and isinstance(entry, dict) and entry.get(key) is None:
                continue
            if not isinstance(entry, dict) or type(entry.get(key)) is not kind:  # a bool is an instance of int
                got = shown(entry.get(key)) if isinstance(entry, dict) and key in entry else "none"
                raise DataError(
                    f"{file}: {name}[{index}]: got {got} for {key!r}, expected a value of type {kind.__name__}"
                )
    return entries


def _crowd(entry: Mapping[str, Any]) -> bool:
    return bool(entry.get("iscrowd", 0))
