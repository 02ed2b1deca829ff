"""Read tags from exports of annotation tools: Label Studio, CVAT, LabelMe, X-AnyLabeling, Supervisely, FiftyOne."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from tagseg.data.images import IMAGE_SUFFIXES
from tagseg.data.tag_rows import SPLITS, TagRow, split_of_folder, unique
from tagseg.data.texts import read_json_text, read_xml
from tagseg.errors import DataError
from tagseg.system.untrusted import shown

JsonKind = Literal["coco", "labelstudio", "fiftyone", "fiftyone-labels", "labelme", "supervisely", "mapping", "records"]

_LABELS = ("choices", "taxonomy", "rectanglelabels", "polygonlabels", "brushlabels", "ellipselabels", "keypointlabels")
_SHAPES = ("box", "polygon", "polyline", "points", "ellipse", "mask", "skeleton", "cuboid")


def json_kind(content: object) -> JsonKind | None:
    """Return which tool's JSON a value is, as far as it is one that holds tags."""
    if isinstance(content, list) and content and all(isinstance(one, dict) for one in content):
        keys = {key for one in content[:50] for key in one}
        if (
            "image" in keys
            and not {"annotations", "completions"} & keys
            and {"id", "annotator", "annotation_id"} & keys
        ):
            return "labelstudio"  # its short form, JSON-MIN
        if "data" in keys and {"annotations", "completions", "predictions"} & keys:
            return "labelstudio"
        return "records" if {"image", "file_name", "filename", "file", "path"} & keys else None
    if not isinstance(content, dict):
        return None
    if isinstance(content.get("images"), list) and "annotations" in content:
        return "coco"
    if isinstance(content.get("samples"), list):
        return "fiftyone"
    if "classes" in content and isinstance(content.get("labels"), dict):
        return "fiftyone-labels"
    if "shapes" in content or ("imagePath" in content and "flags" in content):
        return "labelme"
    if "size" in content and "objects" in content and "tags" in content:
        return "supervisely"
    if content and all(isinstance(value, str | list | dict) for value in content.values()):
        return "mapping" if all(key.lower().endswith(IMAGE_SUFFIXES) for key in content) else None
    return None


def json_rows(file: Path, split: str, min_score: float) -> list[TagRow]:
    """Read a JSON file of tags of any kind that holds all images.

    Raises:
        DataError: when the file cannot be read or does not have the shape of its kind; names the entry.
    """
    content = read_json_text(file)
    kind = json_kind(content)
    readers = {
        "labelstudio": _label_studio,
        "fiftyone": _fiftyone,
        "fiftyone-labels": _fiftyone_labels,
        "mapping": _mapping,
        "records": _records,
    }
    if kind not in readers:
        raise DataError(f"{file}: not a known JSON of tags")
    try:
        return list(readers[kind](file, content, split, min_score))
    except (AttributeError, TypeError, KeyError, IndexError) as error:
        raise DataError(f"{file}: not the JSON that {kind} writes ({type(error).__name__}: {error})") from error


def _label_studio(file: Path, content: Any, split: str, min_score: float) -> list[TagRow]:
    """Return the annotated tasks of Label Studio's JSON or JSON-MIN: choices, and the labels of regions."""
    rows = []
    for number, task in enumerate(content):
        where = f"{file}, [{number}]"
        data = task.get("data", task)
        image = next(
            (data[key] for key in ("image", "img", "url", "photo", "ocr") if isinstance(data.get(key), str)), None
        )
        if image is None:
            image = next((value for value in data.values() if isinstance(value, str) and _image_name(value)), None)
        if image is None:
            raise DataError(f"{where}: no image in its data, got {shown(sorted(data))}")
        if "data" in task:
            done = [
                one for one in task.get("annotations", task.get("completions")) or () if not one.get("was_cancelled")
            ]
            if not done:
                continue  # not annotated yet: nothing is known about it
            tags = [
                tag for one in done for entry in one.get("result") or () for tag in _labels(entry.get("value") or {})
            ]
        else:
            tags = [
                tag for key, value in data.items() if key not in _TASK_KEYS and value != image for tag in _short(value)
            ]
        rows.append(TagRow(where, str(image), unique(tags), split, file.parent))
    if not rows:
        raise DataError(f"{file}: none of its {len(content)} tasks is annotated; annotate some, then export again")
    return rows


_TASK_KEYS = (
    *("id", "image", "annotator", "annotation_id", "created_at", "updated_at", "lead_time"),
    *("inner_id", "completed_by"),
)


def _image_name(value: str) -> bool:
    return bool(re.search(r"\.(" + "|".join(suffix[1:] for suffix in IMAGE_SUFFIXES) + r")($|\?)", value.lower()))


def _labels(value: Mapping[str, Any]) -> Iterator[str]:
    for key in _LABELS:
        for name in value.get(key) or ():
            yield " / ".join(name) if isinstance(name, list) else str(name)


def _short(value: object) -> Iterator[str]:
    """Yield the names in a field of JSON-MIN: a choice, choices, or regions."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict) and isinstance(value.get("choices"), list):
        yield from map(str, value["choices"])
    elif isinstance(value, list):
        for one in value:
            yield from _labels(one) if isinstance(one, dict) else [str(one)]


def _fiftyone(file: Path, content: Any, split: str, min_score: float) -> Iterator[TagRow]:
    """Yield the samples of a FiftyOneDataset's samples.json."""
    for number, sample in enumerate(content["samples"]):
        marks = [str(tag) for tag in sample.get("tags") or ()]
        named = next((SPLITS[mark.lower()] for mark in marks if mark.lower() in SPLITS), split)
        fields = [value for key, value in sample.items() if isinstance(value, dict) and value.get("_cls")]
        tags = [tag for field in fields for tag in _fiftyone_names(field, min_score)]
        yield TagRow(f"{file}, samples[{number}]", str(sample["filepath"]), unique(tags), named, file.parent)


def _fiftyone_names(field: Mapping[str, Any], min_score: float) -> Iterator[str]:
    for key in ("classifications", "detections", "polylines"):
        for one in field.get(key) or ():
            yield from _fiftyone_names(one, min_score)
    confidence = field.get("confidence")
    if field.get("label") is not None and (confidence is None or confidence >= min_score):
        yield str(field["label"])


def _fiftyone_labels(file: Path, content: Any, split: str, min_score: float) -> Iterator[TagRow]:
    """Yield the labels of FiftyOneImageClassificationDataset: names, numbers of classes, or lists of them."""
    classes = content.get("classes")
    folder = file.parent / "data" if (file.parent / "data").is_dir() else file.parent
    for name, value in content["labels"].items():
        labels = value if isinstance(value, list) else [] if value is None else [value]
        tags: list[str] = []
        for label in labels:
            if isinstance(label, dict):
                tags += _fiftyone_names(label, min_score)
            elif isinstance(label, int) and classes and 0 <= label < len(classes):
                tags.append(classes[label])
            elif isinstance(label, str):
                tags.append(label)
            else:
                raise DataError(f"{file}, {name}: label {shown(label)}, expected a name or the number of a class")
        yield TagRow(f"{file}, {name}", name, unique(tags), split, folder)


def _mapping(file: Path, content: Any, split: str, min_score: float) -> Iterator[TagRow]:
    for name, value in content.items():
        where = f"{file}, {name}"
        yield TagRow(where, name, _tag_names(value, where, min_score), split, file.parent)


def _records(file: Path, content: Any, split: str, min_score: float) -> Iterator[TagRow]:
    for number, record in enumerate(content):
        where, lower = f"{file}, [{number}]", {key.lower(): value for key, value in record.items()}
        image = next((lower[key] for key in ("image", "file_name", "filename", "file", "path") if key in lower), None)
        keys = ("tags", "labels", "label", "tag", "classes", "class", "scores", "predictions")
        tags = next((lower[key] for key in keys if key in lower), None)
        if tags is None and "annotations" in lower:  # CreateML's objects
            tags = [str(one["label"]) for one in lower["annotations"] or ()]
        if not isinstance(image, str) or not isinstance(tags, str | list | dict | None):
            raise DataError(f"{where}: got {shown(record)}, expected the name of an image and its tags")
        named = str(lower.get("split") or "").lower()
        if named not in SPLITS:
            raise DataError(f"{where}: split {named!r}, expected train, val, validation or test")
        cell = _tag_names(tags or (), where, min_score)
        yield TagRow(where, image, cell, SPLITS[named] if named else split, file.parent)


def _tag_names(value: Any, where: str, min_score: float) -> str | tuple[str, ...]:
    """Return the tags in a value: a cell, names, scores by name, or objects with a label and perhaps a score."""
    if isinstance(value, str):
        return value
    pairs = value.items() if isinstance(value, dict) else [_tag_and_score(one, where) for one in value]
    wrong = [score for _, score in pairs if isinstance(score, bool) or not isinstance(score, int | float)]
    if wrong:
        raise DataError(f"{where}: score {shown(wrong[0])}, expected a number")
    return unique(name for name, score in pairs if score >= min_score)


def _tag_and_score(one: Any, where: str) -> tuple[str, Any]:
    if not isinstance(one, dict | list):
        return str(one), 1
    known = one if isinstance(one, dict) else {}
    name = next((known[key] for key in ("label", "name", "tag", "class") if key in known), None)
    if not isinstance(name, str):
        raise DataError(f"{where}: got {shown(one)}, expected the name of a tag, or an object with label and score")
    return name, next((known[key] for key in ("score", "confidence", "probability") if key in known), 1)


def labelme_row(file: Path, split: str) -> TagRow:
    """Read LabelMe's or X-AnyLabeling's JSON of one image: flags that are set, tags, and labels of shapes.

    Raises:
        DataError: when the file is damaged.
    """
    content = read_json_text(file)
    if not isinstance(content, dict) or json_kind(content) != "labelme":
        raise DataError(f"{file}: not LabelMe's JSON, expected an object with shapes, flags and imagePath")
    try:
        flags = [name for name, value in (content.get("flags") or {}).items() if value]
        tags = [_tag_name(tag) for tag in content.get("tags") or ()]
        shapes = [str(shape["label"]) for shape in content.get("shapes") or ()]
    except (AttributeError, TypeError, KeyError) as error:
        raise DataError(f"{file}: not LabelMe's JSON ({type(error).__name__}: {error})") from error
    # The image is beside the JSON, or where imagePath leads from there.
    path = PurePosixPath(str(content.get("imagePath") or file.stem).replace("\\", "/"))
    folders = (file.parent, file.parent / path.parent)
    folder = next((one for one in folders if (one / path.name).is_file()), file.parent)
    return TagRow(str(file), path.name, unique([*flags, *tags, *shapes]), split, folder.resolve())


def _tag_name(tag: object) -> str:
    if isinstance(tag, dict):
        return str(tag.get("name", tag.get("label", tag.get("tag"))))
    return str(tag)


def supervisely_rows(root: Path) -> list[TagRow]:
    """Read the tags and objects of a Supervisely project; tags such as train and val are splits.

    Raises:
        DataError: when an annotation is damaged.
    """
    rows = []
    for folder in supervisely_folders(root):
        for file in sorted((folder / "ann").glob("*.json")):
            content = read_json_text(file)
            try:
                assert isinstance(content, dict)
                tags = [str(tag["name"]) for tag in content.get("tags") or ()]
                objects = [str(one["classTitle"]) for one in content.get("objects") or ()]
            except (AssertionError, AttributeError, TypeError, KeyError) as error:
                raise DataError(f"{file}: not Supervisely's annotation, expected tags and objects") from error
            splits = [SPLITS[tag.lower()] for tag in tags if tag.lower() in SPLITS]
            inherited = split_of_folder(folder.name) or "train"
            names = unique([*(tag for tag in tags if tag.lower() not in SPLITS), *objects])
            name = file.name.removesuffix(".json")
            rows.append(TagRow(str(file), name, names, splits[0] if splits else inherited, folder / "img"))
    return rows


def supervisely_folders(root: Path) -> list[Path]:
    """Return the folders of a Supervisely project (it has a meta.json) with images in img and annotations in ann."""
    if not (root / "meta.json").is_file():
        return []
    return [folder for folder in sorted(root.iterdir()) if (folder / "ann").is_dir() and (folder / "img").is_dir()]


def xml_tags(file: Path) -> tuple[str, ...]:
    """Return the names of the objects in a VOC annotation.

    Raises:
        DataError: when it is not plain XML in the encoding that it declares.
    """
    return unique(entry.findtext("name") or "" for entry in read_xml(file).iter("object"))


def cvat_rows(file: Path, split: str) -> list[TagRow]:
    """Read the tags and shapes of CVAT's XML for images; an image's subset is its split.

    Raises:
        DataError: when the file is damaged.
    """
    rows = []
    for number, image in enumerate(read_xml(file).iter("image")):
        name = image.get("name")
        if not name:
            raise DataError(f"{file}, image {number}: has no name")
        labels = [entry.get("label") or "" for kind in ("tag", *_SHAPES) for entry in image.iter(kind)]
        subset = (image.get("subset") or "").lower()
        named = SPLITS.get(subset, split) if subset else split
        rows.append(TagRow(f"{file}, image {number}", name, unique(labels), named, file.parent))
    return rows
