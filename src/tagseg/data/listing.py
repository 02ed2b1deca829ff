"""Cache the listing of a large data folder, so that the folder opens in seconds the next time.

A listing is what was found in a data folder. It is stored in the user's cache folder, which may be deleted at any time,
and not next to the data, which may be read-only. A listing is valid as long as all folders of the data folder, and all
its files except images (tag files, lists of classes, shards), keep their sizes and times of change. So it notices when
an image is added, removed or renamed, and when a tag file changes. It does not notice when an image, mask or saliency
map is overwritten in place (reading a data folder opens none of them), or when the target of a link is deleted.
"""

import gzip
import hashlib
import itertools
import logging
import os
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from tagseg.data.companions import companion_folders
from tagseg.data.images import IMAGE_SUFFIXES
from tagseg.data.records import Dataset, Ignored, Sample
from tagseg.settings.data import DataSettings
from tagseg.system.files import write_atomically
from tagseg.system.records import ClassId, Count, Record, json_text, parse_record, record_line

log = logging.getLogger(__name__)

WORTHWHILE = 10_000
"""Smaller data sets are not cached: reading them takes a second or two."""

SETTLED_S = 2.0
"""A folder that changed less than this many seconds ago is not cached: the next change might leave the same times."""

_EDITION = 2
_CHUNK = 10_000

_DAMAGE = (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, AttributeError, RuntimeError)

State = dict[str, tuple[int, int, int]]
"""Times of change of content and of inode, in ns, and size in bytes, of folders and files by path."""


class ListingHead(Record, frozen=True):
    """The first line of a listing: the data folder, its state, and all about it but the images."""

    edition: Count
    root: str
    layout: Literal["folder", "shards"]
    classes: tuple[str, ...]
    notes: tuple[str, ...]
    mask_ids: dict[int, int] | None
    mask_colours: dict[int, int] | None
    ignored: tuple[Ignored, ...]
    count: Count
    state: State


class ListingColumns(Record, frozen=True):
    """The other lines of a listing: images as columns, which store each key once instead of a million times. Paths in
    the data folder are relative to it."""

    id: tuple[str, ...]
    image: tuple[str, ...]
    tags: tuple[tuple[ClassId, ...], ...]
    val: tuple[bool, ...]
    mask: tuple[str | None, ...]
    saliency: tuple[str | None, ...]


def listing_file(root: Path, settings: DataSettings) -> Path:
    """Return the file of a data folder's listing, in $XDG_CACHE_HOME/tagseg/listings or ~/.cache/tagseg/listings."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    companions = [given and os.path.abspath(given) for given in (settings.masks, settings.saliency)]
    how = [settings.layout, settings.masks, settings.saliency, settings.mask_values, settings.min_score]
    key = [_EDITION, str(root), *how, *companions]
    name = hashlib.sha256(json_text(key).encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return cache / "tagseg" / "listings" / f"{name}.json.gz"


def state_of(root: Path, settings: DataSettings) -> State | None:
    """Return the state of a data folder and of its folders of masks and saliency maps.

    Return None if the state cannot prove that nothing changes: if a link leads to a folder outside of them, or
    something changed within the last `SETTLED_S` seconds.
    """
    tops = {root, *_companions(root, settings)}
    state: State = {}
    try:
        for top in sorted(tops):
            for path in _watched(top, tops):
                state[path] = _stamp(path)
    except OSError as error:
        log.debug("%s: the listing is not cached (%s)", root, error)
        return None
    newest = max(max(content, entry) for content, entry, _ in state.values())
    return None if newest > time.time_ns() - SETTLED_S * 1e9 else state


def read_listing(root: Path, settings: DataSettings) -> Dataset | None:
    """Return the data set from the cached listing of a data folder, or None if there is no valid listing."""
    try:
        with gzip.open(listing_file(root, settings), "rb") as file:
            head = parse_record(file.readline(), ListingHead, lenient=True)
            tops = {root, *_companions(root, settings)}
            if (head.edition, head.root) != (_EDITION, str(root)) or not _is_current(head.state, tops):
                return None
            tag_sets: dict[tuple[int, ...], tuple[int, ...]] = {}
            samples = tuple(itertools.chain.from_iterable(_samples(root, line, tag_sets) for line in file))
            if len(samples) != head.count:
                return None
            return Dataset(
                root, head.layout, head.classes, samples, head.mask_ids, head.notes, head.mask_colours, head.ignored
            )
    except FileNotFoundError:
        return None
    except _DAMAGE as error:
        log.debug("%s: the cached listing cannot be read (%s)", root, error)
        return None


def keep_listing(dataset: Dataset, settings: DataSettings, state: State) -> None:
    """Cache the listing of a data set whose folder had `state` before it was read.

    Small data sets are not cached, nor are VOC and COCO, whose tags and masks may come from elsewhere. If the cache
    folder cannot be written to, nothing happens.
    """
    layout, count = dataset.layout, len(dataset.samples)
    if count < WORTHWHILE or (layout != "folder" and layout != "shards"):
        return
    values, colours = (None if given is None else dict(given) for given in (dataset.mask_ids, dataset.mask_colours))
    head = ListingHead(
        *(_EDITION, str(dataset.root), layout, dataset.classes, dataset.notes),
        *(values, colours, dataset.ignored, count, state),
    )
    starts = range(0, len(dataset.samples), _CHUNK)
    chunks = (_columns(dataset.root, dataset.samples[start : start + _CHUNK]) for start in starts)
    packed = bytearray()
    for part in itertools.chain([head], chunks):
        # JSON escapes the parts of a file name that are not Unicode, which UTF-8 cannot hold.
        packed += gzip.compress(record_line(part).encode("utf-8", "backslashreplace"), 1)
    try:
        file = listing_file(dataset.root, settings)
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(file, bytes(packed))
    except (OSError, RuntimeError) as error:
        log.debug("%s: the listing is not cached (%s)", dataset.root, error)


def _companions(root: Path, settings: DataSettings) -> Iterator[Path]:
    for folder in companion_folders(root, settings):
        yield folder.resolve()


def _watched(top: Path, tops: Iterable[Path]) -> Iterator[str]:
    """Yield the folder `top`, all folders below it, and all their files except images."""

    def stop(error: OSError) -> None:
        raise error

    for folder, folders, files in os.walk(top, onerror=stop):
        yield folder
        for name in folders:
            path = os.path.join(folder, name)
            if os.path.islink(path) and not any(Path(path).resolve().is_relative_to(known) for known in tops):
                raise OSError(f"{path} is a link to a folder outside the data")
        yield from (os.path.join(folder, name) for name in files if not name.lower().endswith(IMAGE_SUFFIXES))


def _stamp(path: str) -> tuple[int, int, int]:
    status = os.stat(path)
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size


def _is_current(state: State, tops: Iterable[Path]) -> bool:
    if not all(str(top) in state for top in tops):
        return False
    try:
        return all(_stamp(path) == stamp for path, stamp in state.items())
    except OSError:
        return False


def _columns(root: Path, samples: Sequence[Sample]) -> ListingColumns:
    base = f"{root}{os.sep}"

    def path(file: object) -> str | None:
        return None if file is None else os.path.abspath(str(file)).removeprefix(base)

    return ListingColumns(
        tuple(sample.id for sample in samples),
        tuple(path(sample.image) or "" for sample in samples),
        tuple(sample.tags for sample in samples),
        tuple(sample.split == "val" for sample in samples),
        tuple(path(sample.mask) for sample in samples),
        tuple(path(sample.saliency) for sample in samples),
    )


def _samples(root: Path, line: bytes, tag_sets: dict[tuple[int, ...], tuple[int, ...]]) -> Iterator[Sample]:
    """Yield the samples of a line of columns; `tag_sets` keeps each set of tags in memory once."""
    columns = parse_record(line, ListingColumns, lenient=True)

    def path(name: str | None) -> Path | None:
        return None if name is None else root / name

    rows = zip(*(getattr(columns, name) for name in columns.__struct_fields__), strict=True)
    for name, image, tags, val, mask, saliency in rows:
        split: Literal["train", "val"] = "val" if val else "train"
        yield Sample(name, root / image, tag_sets.setdefault(tags, tags), split, path(mask), path(saliency))
