"""Read tar shards as WebDataset writes them: members of one key (NAME.jpg, NAME.json, ...) are one sample."""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tagseg.data.companions import attach
from tagseg.data.gather import TaggedImage, class_list, gather
from tagseg.data.ignored import JUNK, ignored, is_junk
from tagseg.data.images import IMAGE_SUFFIXES
from tagseg.data.records import Dataset
from tagseg.data.tag_rows import SPLIT_NAMES, SPLITS, TagRow, split_rows, unique
from tagseg.data.tars import COMPRESSED, Member, members, open_file, refuse_compressed
from tagseg.errors import DataError
from tagseg.settings.data import DataSettings
from tagseg.system.records import parse_json

_TAGS = ("json", "txt", "cls")
_MASK, _SALIENCY = "mask.png", ("saliency.png", "saliency.jpg")
_MAX_TEXT = 1 << 20

UNTAGGED = ""
"""The tags of a key without a member for tags, which differ from an empty list: its tags are unknown."""

_KNOWN = {*_TAGS, *_SALIENCY, _MASK, *(suffix[1:] for suffix in IMAGE_SUFFIXES)}

Parts = Mapping[str, Member]
"""The members of one key by their ending: what follows the first dot of the name, in lower case."""


def is_shard(path: Path) -> bool:
    """Tell whether a path has the name of a tar shard."""
    return path.suffix.lower() == ".tar"


def shard_files(root: Path) -> list[tuple[Path, str]]:
    """Return the shards of a data folder with their splits.

    The split is the name of the folder (train, val, ...), or at the root the start of the file name (val-000.tar), or
    else train.

    Raises:
        DataError: when a shard is compressed.
    """
    files = []
    folders = [(path, SPLITS[path.name.lower()]) for path in sorted(root.iterdir()) if path.name.lower() in SPLIT_NAMES]
    for folder, split in ((root, ""), *((path, split) for path, split in folders if path.is_dir())):
        for path in sorted(folder.iterdir()):
            if path.name.lower().endswith((".tar", *COMPRESSED)) and path.is_file() and not is_junk(path.name):
                refuse_compressed(path)
                named = re.match(f"({'|'.join(SPLIT_NAMES)})[-_.]", path.name.lower())
                files.append((path, split or SPLITS[named[1] if named else "train"]))
    return files


def read_shards(root: Path, settings: DataSettings) -> Dataset:
    """Read shards: images, tags, and optional true masks (NAME.mask.png) and saliency maps (NAME.saliency.png).

    The tags come from NAME.json ({"tags": [...]}, optionally with "split"), else from NAME.txt (like a cell of
    tags.csv, or one tag per line), else from NAME.cls, the number of a line of classes.txt, counted from 0. The classes
    are as for `read_folder`. The id of a sample is its key; if several shards have the key, the shard's name precedes
    it.

    Raises:
        DataError: with shard and key, when tags are missing or unreadable, or there are two images; or as `members`.
    """
    rows: list[TagRow] = []
    found: list[tuple[Path, str, Parts]] = []
    unused: Counter[str] = Counter()
    without_image: list[str] = []
    junk: list[str] = []
    classes = class_list(root)
    for shard, split in shard_files(root):
        for key, parts in samples(shard, junk):
            unused.update(ending for ending in parts if ending not in _KNOWN)
            if _image(parts) is None:
                without_image.append(key)
                continue
            rows.append(_row(shard, split, key, parts, classes))
            found.append((shard, key, {ending: parts[ending] for ending in parts if ending not in _TAGS}))
    ids = _unique([(shard, key) for shard, key, _ in found])
    images = []
    for (shard, key, parts), row, tags, name in zip(
        found, rows, split_rows(rows, settings.min_score), ids, strict=True
    ):
        if row.tags == UNTAGGED and row.split == "train":
            raise DataError(f"{row.where}: no tags, expected some in {key}.json, {key}.txt or {key}.cls")
        image = _image(parts)
        assert image is not None
        mask, saliency = parts.get(_MASK), next((parts[ending] for ending in _SALIENCY if ending in parts), None)
        images.append(
            TaggedImage(
                row.where,
                name,
                image.path(shard),
                tags,
                row.split,
                mask and mask.path(shard),
                saliency and saliency.path(shard),
            )
        )
    dataset = gather(root, "shards", images, _notes(unused, without_image))
    dataset = dataclasses.replace(dataset, ignored=(*dataset.ignored, *ignored(root, JUNK, junk, expected=True)))
    return attach(dataset, root, settings)


def samples(shard: Path, junk: list[str] | None = None) -> Iterator[tuple[str, Parts]]:
    """Yield the keys of a shard with their members; what operating systems leave behind is appended to `junk`.

    Raises:
        DataError: as for `members`, and when a key has two images or two members with the same ending.
    """
    groups: dict[str, dict[str, Member]] = {}
    for member in members(shard, junk):
        folder, slash, base = member.name.rpartition("/")
        stem, _, ending = base.partition(".")
        group = groups.setdefault(folder + slash + stem, {})
        same = group.get(ending.lower())
        if same is None and f".{ending.lower()}" in IMAGE_SUFFIXES:
            same = next((other for name, other in group.items() if f".{name}" in IMAGE_SUFFIXES), None)
        if same is not None:
            raise DataError(
                f"{shard}: {same.name} and {member.name} have the same key, expected one image and one of each kind"
            )
        group[ending.lower()] = member
    yield from groups.items()


def shard_images(shards: Sequence[Path]) -> dict[Path, Path]:
    """Return the images in shards with the relative paths that name their outputs.

    The relative path is key and suffix, in a folder named after the shard if several shards have the key.

    Raises:
        DataError: as for `samples`.
    """
    images = [
        (shard, key, image.path(shard))
        for shard in shards
        for key, parts in samples(shard)
        if (image := _image(parts)) is not None
    ]
    names = _unique([(shard, key) for shard, key, _ in images])
    return {image: Path(name + image.suffix) for (_, _, image), name in zip(images, names, strict=True)}


def _image(parts: Parts) -> Member | None:
    return next((member for ending, member in parts.items() if f".{ending}" in IMAGE_SUFFIXES), None)


def _unique(keys: Sequence[tuple[Path, str]]) -> list[str]:
    times = Counter(key for _, key in keys)
    return [key if times[key] == 1 else f"{shard.stem}/{key}" for shard, key in keys]


def _row(shard: Path, split: str, key: str, parts: Parts, classes: Sequence[str]) -> TagRow:
    """Return the tags of a sample like a row of a tag file: as a cell to split, or as a list."""
    where = f"{shard}, {key}"
    ending = next((ending for ending in _TAGS if ending in parts), None)
    if ending is None:
        return TagRow(where, key, UNTAGGED, split)
    text = _text(parts[ending].path(shard))
    if ending == "json":
        return _from_json(text, where, key, split)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if ending == "cls":
        return TagRow(where, key, (_class(lines, where, classes),), split)
    return TagRow(where, key, lines[0] if len(lines) == 1 else unique(lines), split)


def _from_json(text: str, where: str, key: str, split: str) -> TagRow:
    try:
        about = parse_json(text)
    except ValueError as error:
        raise DataError(f"{where}: not valid JSON ({error})") from error
    if isinstance(about, dict) and about.get("tags", "") == "":
        about["tags"] = UNTAGGED
    tags, named = (about.get("tags"), about.get("split") or split) if isinstance(about, dict) else (None, split)
    if not isinstance(tags, str) and not (isinstance(tags, list) and all(isinstance(tag, str) for tag in tags)):
        raise DataError(f'{where}: got {text[:80]!r}, expected JSON with a list of names, {{"tags": ["cat", "dog"]}}')
    if not isinstance(named, str) or named.lower() not in SPLITS:
        raise DataError(f"{where}: split {str(named)[:40]!r}, expected train, val, validation or test")
    if not isinstance(tags, str):
        tags = unique(tags)
    return TagRow(where, key, tags, SPLITS[named.lower()])


def _class(lines: Sequence[str], where: str, classes: Sequence[str]) -> str:
    number = lines[0] if len(lines) == 1 else ""
    if not re.fullmatch("[0-9]{1,6}", number) or (classes and int(number) >= len(classes)):
        most = f" to {len(classes) - 1} (a line of classes.txt)" if classes else ""
        raise DataError(f"{where}: class {number[:40]!r} in its .cls file, expected a number from 0{most}")
    return classes[int(number)] if classes else str(int(number))


def _text(path: Path) -> str:
    try:
        with open_file(path) as file:
            content = file.read(_MAX_TEXT + 1)
        if len(content) > _MAX_TEXT:
            raise DataError(f"{path}: more than {_MAX_TEXT} bytes, expected the names of a few tags")
        return content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}), expected UTF-8 text") from error


def _notes(unused: Counter[str], without_image: Sequence[str]) -> list[str]:
    notes = []
    if unused:
        several = ", ".join(f"{times} .{ending}" for ending, times in unused.most_common(5))
        notes.append(f"members that are neither images nor tags are left out: {several}")
    if without_image:
        notes.append(f"{len(without_image)} keys without an image are left out, first {without_image[0]}")
    return notes
