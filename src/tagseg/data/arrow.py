"""Read Hugging Face data sets on disk (`save_to_disk`): tags from a column, images in place, nothing is extracted."""

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from tagseg.data.tag_rows import TagRow, split_of_folder, unique
from tagseg.data.tars import Member
from tagseg.data.texts import read_json_text
from tagseg.errors import DataError
from tagseg.system.untrusted import shown

_COLUMNS = (
    *("labels", "label", "tags", "tag", "classes", "class", "categories", "category"),
    *("fine_label", "coarse_label"),
)
_IMAGES = ("image", "img", "photo", "picture")
_SUFFIXES = {b"\xff\xd8\xff": ".jpg", b"\x89PNG": ".png", b"RIFF": ".webp", b"II*\0": ".tif", b"MM\0*": ".tif",
             b"BM": ".bmp", b"GIF8": ".gif"}  # fmt: skip


def arrow_folders(root: Path) -> list[tuple[Path, str]]:
    """Return the folders of a data set on disk with their splits: `root` itself, or one per split."""
    if (root / "dataset_info.json").is_file() and any(root.glob("*.arrow")):
        return [(root, "train")]
    if not (root / "dataset_dict.json").is_file():
        return []
    folders = [folder for folder in sorted(root.iterdir()) if (folder / "dataset_info.json").is_file()]
    return [(folder, split_of_folder(folder.name) or "train") for folder in folders]


def arrow_rows(folder: Path, split: str) -> list[TagRow]:
    """Read the rows of one split: an image column with the files' bytes or paths, and a column of labels.

    Raises:
        DataError: when pyarrow is missing, the files are damaged, or there is no such column.
    """
    about = read_json_text(folder / "dataset_info.json")
    features = about.get("features") if isinstance(about, dict) else None
    if not isinstance(features, dict):
        raise DataError(f"{folder / 'dataset_info.json'}: has no features, expected the description of a data set")
    images = [name for name, kind in features.items() if isinstance(kind, dict) and kind.get("_type") == "Image"]
    image = next((name for name in (*_IMAGES, *images) if name in images), None)
    label = next((name for name in _COLUMNS if name in features), None)
    if image is None or label is None:
        raise DataError(
            f"{folder}: columns {', '.join(features)[:300]}, expected an image and one of {', '.join(_COLUMNS)}"
        )
    names = _names(features[label])
    return [row for file in sorted(folder.glob("*.arrow")) for row in _rows(folder, file, split, image, label, names)]


def _names(feature: Any) -> list[str] | None:
    """Return the class names of a ClassLabel, or of a list of them; None for a column of text."""
    while isinstance(feature, list | dict):
        if isinstance(feature, list):
            feature = feature[0] if feature else None
        elif feature.get("_type") == "ClassLabel":
            names = feature.get("names")
            return [str(name) for name in names] if isinstance(names, list) else None
        else:
            feature = feature.get("feature")
    return None


def _rows(folder: Path, file: Path, split: str, image: str, label: str, names: list[str] | None) -> Iterator[TagRow]:
    try:
        import pyarrow as arrow
    except ImportError as error:
        raise DataError(
            f"{folder}: reading a Hugging Face data set on disk needs pyarrow: pip install pyarrow"
        ) from error
    number = 0
    try:
        with arrow.memory_map(str(file)) as mapped:
            whole = mapped.read_buffer(mapped.size())
            reader = arrow.ipc.open_stream(whole)
            for batch in reader:
                pictures, labels = batch.column(image), batch.column(label).to_pylist()
                for place, cell in enumerate(labels):
                    where = f"{file}, row {number}"
                    path, name = _image(file, whole, pictures, place, number, where)
                    tags = _tags(cell, names, where)
                    yield TagRow(where, name, tags, split, folder, path)
                    number += 1
    except (arrow.ArrowException, OSError, KeyError) as error:
        raise DataError(f"{file}: damaged, or not an Arrow stream of {image} and {label} ({error})") from error


def _image(file: Path, whole: Any, pictures: Any, place: int, number: int, where: str) -> tuple[Path | None, str]:
    """Return where the bytes of an image lie in the file, or None and its name if the file has only the name."""
    given = pictures.field("path")[place].as_py() if _has(pictures, "path", place) else None
    if not _has(pictures, "bytes", place):
        if not given:
            raise DataError(f"{where}: has neither the bytes nor the path of an image")
        return None, str(given)
    column = pictures.field("bytes")
    _, ends, content = column.buffers()
    kind = np.int64 if str(column.type).startswith("large") else np.int32
    start, end = (int(one) for one in np.frombuffer(ends, kind)[column.offset + place :][:2])
    offset = content.address - whole.address + start
    if not 0 <= offset <= whole.size - (end - start):
        raise DataError(f"{file}: is compressed, expected the plain Arrow file that save_to_disk writes")
    head = bytes(whole[offset : offset + 4])
    suffix = next((one for magic, one in _SUFFIXES.items() if head.startswith(magic)), ".png")
    stem = PurePosixPath(str(given).replace("\\", "/")).stem if given else f"{file.stem}_{number:06d}"
    name = f"{stem}{suffix}"
    return Member(name, offset, end - start).path(file), name


def _has(pictures: Any, field: str, place: int) -> bool:
    kind = pictures.type
    known = [kind.field(index).name for index in range(kind.num_fields)]
    return field in known and bool(pictures[place].is_valid and pictures.field(field)[place].is_valid)


def _tags(cell: object, names: list[str] | None, where: str) -> tuple[str, ...]:
    values = cell if isinstance(cell, list) else [] if cell is None else [cell]
    if names is None:
        return unique(values)
    known: Mapping[Any, str] = dict(enumerate(names))
    wrong = [value for value in values if value not in known and value != -1]
    if wrong:
        raise DataError(f"{where}: label {shown(wrong[0])}, expected 0 to {len(names) - 1}")
    return unique(known[value] for value in values if value != -1)
