"""Open what an annotation tool hands out: a ZIP file, a folder, or a single file, in one of several formats."""

import contextlib
import shutil
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from tagseg.data.records import Dataset
from tagseg.errors import DataError
from tagseg.importing.coco import read_coco_masks
from tagseg.importing.cvat_xml import read_cvat_xml
from tagseg.importing.labelme import is_labelme, read_labelme
from tagseg.importing.labelstudio import is_tasks, read_tasks
from tagseg.importing.match import Corrected
from tagseg.importing.meaning import CLASSES_JSON
from tagseg.importing.pngs import read_pngs
from tagseg.system.records import read_json
from tagseg.system.untrusted import DAMAGED_ARRAY

EXPECTED = (
    "a COCO JSON, Label Studio's JSON, CVAT's annotations.xml, LabelMe's JSON files, a folder of PNGs, or a ZIP file "
    "of one of these"
)

_MASK_FOLDERS = ("SegmentationClass", "SegmentationClassPNG")
"""Folders of masks in a VOC devkit, and in those of older versions of LabelMe."""

_ARCHIVES = (".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Path]:
    """Yield a file or folder as it is, and a ZIP file as a temporary folder with its content.

    Raises:
        DataError: when the path does not exist, or is a damaged or encrypted archive, or one of another kind.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder, expected {EXPECTED}")
    if path.is_dir():
        yield path
    elif zipfile.is_zipfile(path):
        with tempfile.TemporaryDirectory(prefix="tagseg-import-") as folder:
            _unpack(path, Path(folder))
            yield Path(folder)
    elif path.suffix.lower() in (".zip", *_ARCHIVES):
        raise DataError(f"{path}: not a ZIP file that can be read; unpack it, then import the folder")
    else:
        yield path


def _unpack(path: Path, folder: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [one for one in archive.infolist() if not one.is_dir() and not _is_junk(one.filename)]
            needed, free = sum(one.file_size for one in members), shutil.disk_usage(folder).free
            if needed > free:
                raise DataError(f"{path}: needs {needed / 1e9:.1f} GB unpacked, {folder} has {free / 1e9:.1f} GB free")
            archive.extractall(folder, members)
    except DataError:
        raise
    except DAMAGED_ARRAY as error:
        raise DataError(f"{path}: the archive cannot be read ({error}); unpack it, then import the folder") from error


def read_source(source: Path, shown: Path, dataset: Dataset) -> list[Corrected]:
    """Return all masks in a file or folder; messages name it `shown`.

    Raises:
        DataError: when it is in no format that is known, or damaged.
    """
    if source.is_file():
        return _read_file(source, dataset, EXPECTED)
    files = sorted(path for path in source.rglob("*") if path.is_file() and not _is_junk(path.relative_to(source)))
    mask_folders = sorted({path.parent for path in files if path.parent.name in _MASK_FOLDERS})
    if not mask_folders:
        mask_folders = sorted({up for path in files for up in path.parents if up.name in _MASK_FOLDERS})
    if mask_folders:
        roots = [one for one in mask_folders if not any(other in one.parents for other in mask_folders)]
        return [one for folder in roots for one in _pngs(folder, folder.parent, files, dataset)]
    described = [path for path in files if path.suffix.lower() in (".json", ".xml") and _is_annotation(path)]
    if described:
        return [one for path in described for one in _read_file(path, dataset, EXPECTED)]
    if found := _pngs(source, source, files, dataset):
        return found
    kinds = Counter(path.suffix.lower() or "without a suffix" for path in files)
    listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5))
    what = f"it has only other files: {listed}" if kinds else "it is empty"
    jpegs = ". Masks must be PNGs: JPEG changes their colours" if {".jpg", ".jpeg"} & kinds.keys() else ""
    raise DataError(f"{shown}: no mask belongs to a training image ({what}), expected {EXPECTED}{jpegs}")


def _pngs(folder: Path, above: Path, files: list[Path], dataset: Dataset) -> list[Corrected]:
    inside = [path for path in files if path.suffix.lower() == ".png" and folder in path.parents]
    return read_pngs(folder, above, inside, dataset) if inside else []


def _is_annotation(path: Path) -> bool:
    """Tell whether a JSON or XML file holds annotations, and not something else that lies beside masks."""
    if path.suffix.lower() == ".xml":
        return path.name.lower() == "annotations.xml"
    if path.name == CLASSES_JSON:
        return False
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return True  # reading it again names the damage
    return is_tasks(content) or is_labelme(content) or (isinstance(content, dict) and "annotations" in content)


def _read_file(path: Path, dataset: Dataset, expected: str) -> list[Corrected]:
    if path.suffix.lower() == ".xml":
        return read_cvat_xml(path, dataset)
    if path.suffix.lower() not in (".json", ""):
        raise DataError(f"{path}: got a {path.suffix} file, expected {expected}")
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not valid JSON ({error}), expected {expected}") from error
    if is_tasks(content):
        return read_tasks(path, content, dataset)
    if is_labelme(content):
        return [read_labelme(path, content, dataset)]
    if isinstance(content, dict) and isinstance(content.get("data"), dict) and "annotations" in content:
        return read_tasks(path, [content], dataset)  # a single task
    return read_coco_masks(path, dataset)


def _is_junk(name: str | Path) -> bool:
    """Tell whether a path is hidden, or one that macOS adds to archives."""
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)
