"""What was found in a data folder, kept in the user's cache folder: a large one is opened in seconds the next time.

Nothing is kept beside the data, which may be read-only; the cache folder may be deleted at any time. A manifest holds
as long as every folder in the data folder, and every file there that is no image (tag files, lists of classes, shards),
has the size and the times of change that it had: so an image that was added, removed or renamed is noticed, and so is a
tag file that was changed. Not noticed is an image, mask or saliency map that was overwritten in place (none of them is
opened when a data folder is read), nor that the file went away which a link in the data folder leads to.
"""

import gzip
import hashlib
import itertools
import json
import logging
import os
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from tagseg.data.folder import companion
from tagseg.data.images import IMAGE_SUFFIXES
from tagseg.data.records import Dataset, Sample
from tagseg.settings.data import DataSettings
from tagseg.system.files import write_atomically

log = logging.getLogger(__name__)

WORTHWHILE = 10_000
"""Of fewer images than this nothing is kept: they are read within a second or two."""

SETTLED_S = 2.0
"""Nothing is kept of a folder that changed less than these seconds ago: a further change might leave the same times."""

_EDITION = 1
_LAYOUTS = ("folder", "shards")
_CHUNK = 10_000

_DAMAGE = (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, AttributeError, RuntimeError)

State = dict[str, list[int]]
"""Of folders and files by path: time of change of the content, of the entry (both in ns), and size."""


def manifest_file(root: Path, settings: DataSettings) -> Path:
    """Return where the manifest of a data folder lies: $XDG_CACHE_HOME/tagseg/manifests, else ~/.cache/tagseg."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    companions = [given and os.path.abspath(given) for given in (settings.masks, settings.saliency)]
    key = [_EDITION, str(root), settings.layout, settings.masks, settings.saliency, *companions]
    name = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:32]
    return cache / "tagseg" / "manifests" / f"{name}.json.gz"


def state_of(root: Path, settings: DataSettings) -> State | None:
    """Return the state of a data folder and of the folders of masks and saliency maps; None where it says too little: a
    link leads out of them to a folder, or something changed just now."""
    tops = {root, *_companions(root, settings)}
    state: State = {}
    try:
        for top in sorted(tops):
            for path in _watched(top, tops):
                state[path] = _stamp(path)
    except OSError as error:
        log.debug("%s: no manifest is kept (%s)", root, error)
        return None
    newest = max(max(content, entry) for content, entry, _ in state.values())
    return None if newest > time.time_ns() - SETTLED_S * 1e9 else state


def read_listing(root: Path, settings: DataSettings) -> Dataset | None:
    """Return the data set that a manifest holds, or None where there is none or it holds no longer."""
    try:
        with gzip.open(manifest_file(root, settings), "rt", encoding="utf-8") as file:
            head = json.loads(file.readline())
            if [head["edition"], head["root"]] != [_EDITION, str(root)] or not _holds(
                head["state"], {root, *_companions(root, settings)}
            ):
                return None
            sets: dict[tuple[int, ...], tuple[int, ...]] = {}
            samples = tuple(itertools.chain.from_iterable(_samples(root, json.loads(line), sets) for line in file))
            if len(samples) != head["count"]:
                return None
            return Dataset(root, head["layout"], tuple(head["classes"]), samples, notes=tuple(head["notes"]))
    except FileNotFoundError:
        return None
    except _DAMAGE as error:
        log.debug("%s: its manifest cannot be read (%s)", root, error)
        return None


def keep_listing(dataset: Dataset, settings: DataSettings, state: State) -> None:
    """Write the manifest of a data set, whose folder had `state` before it was read, unless it is small, or of a layout
    whose tags or masks may come from other places (VOC, COCO). That the cache folder cannot be written is no error."""
    if len(dataset.samples) < WORTHWHILE or dataset.layout not in _LAYOUTS:
        return
    head = {"edition": _EDITION, "root": str(dataset.root), "layout": dataset.layout, "classes": dataset.classes}
    head |= {"notes": dataset.notes, "count": len(dataset.samples), "state": state}
    starts = range(0, len(dataset.samples), _CHUNK)
    chunks = (_columns(dataset.root, dataset.samples[start : start + _CHUNK]) for start in starts)
    packed = bytearray()
    for part in itertools.chain([head], chunks):
        packed += gzip.compress((json.dumps(part) + "\n").encode("ascii"), 1)
    try:
        file = manifest_file(dataset.root, settings)
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(file, bytes(packed))
    except (OSError, RuntimeError) as error:
        log.debug("%s: no manifest is kept (%s)", dataset.root, error)


def _companions(root: Path, settings: DataSettings) -> Iterator[Path]:
    for given, default, flag in (
        (settings.masks, "masks", "data.masks"),
        (settings.saliency, "saliency", "data.saliency"),
    ):
        folder = companion(root, given, default, flag)
        if folder is not None:
            yield folder.resolve()


def _watched(top: Path, tops: Iterable[Path]) -> Iterator[str]:
    """The folders below `top`, and their files that are no images."""

    def stop(error: OSError) -> None:
        raise error

    for folder, folders, files in os.walk(top, onerror=stop):
        yield folder
        for name in folders:
            path = os.path.join(folder, name)
            if os.path.islink(path) and not any(Path(path).resolve().is_relative_to(known) for known in tops):
                raise OSError(f"{path} is a link to a folder elsewhere")
        yield from (os.path.join(folder, name) for name in files if not name.lower().endswith(IMAGE_SUFFIXES))


def _stamp(path: str) -> list[int]:
    status = os.stat(path)
    return [status.st_mtime_ns, status.st_ctime_ns, status.st_size]


def _holds(state: State, tops: Iterable[Path]) -> bool:
    if not all(str(top) in state for top in tops):
        return False
    try:
        return all(_stamp(path) == stamp for path, stamp in state.items())
    except OSError:
        return False


def _columns(root: Path, samples: Sequence[Sample]) -> dict[str, list[Any]]:
    """Samples as columns: names of keys once, not a million times."""
    base = f"{root}{os.sep}"
    columns: dict[str, list[Any]] = {name: [] for name in ("id", "image", "tags", "val", "mask", "saliency")}
    for sample in samples:
        files = (sample.image, sample.mask, sample.saliency)
        paths = [file and os.path.abspath(str(file)).removeprefix(base) for file in files]
        row = (sample.id, paths[0], sample.tags, sample.split == "val", *paths[1:])
        for column, value in zip(columns.values(), row, strict=True):
            column.append(value)
    return columns


def _samples(
    root: Path, columns: dict[str, list[Any]], sets: dict[tuple[int, ...], tuple[int, ...]]
) -> Iterator[Sample]:
    """The samples of columns; in `sets` every set of tags is held once."""

    def path(name: str | None) -> Path | None:
        return None if name is None else root / name

    for name, image, tags, val, mask, saliency in zip(*columns.values(), strict=True):
        tags = tuple(tags)
        split: Literal["train", "val"] = "val" if val else "train"
        yield Sample(name, root / image, sets.setdefault(tags, tags), split, path(mask), path(saliency))
