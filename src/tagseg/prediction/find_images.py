"""Find the images to predict, and name their outputs."""

import glob
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePath, PurePosixPath

from tagseg.data.ignored import walk
from tagseg.data.images import IMAGE_SUFFIXES
from tagseg.data.shards import is_shard, shard_images
from tagseg.data.tars import refuse_compressed
from tagseg.errors import DataError
from tagseg.prediction.remote import is_url, list_url, local_path

Location = Path | str
"""Where an image is: a file (or a member of a tar, by its path), or a URL in other storage."""


def find_images(wanted: Sequence[str | Path], out: Path | None = None) -> dict[str, Location]:
    """Return images by the names of their outputs.

    A name is the path relative to the given folder, or to the part of a pattern before its first wildcard; the suffix
    is dropped unless two images differ only in it. Folders, including those that a pattern matches, are searched with
    their subfolders. If `out` is inside a searched folder, its files are left out, since masks are not input images.
    Tar shards stand for the images in them, named by their keys; in a folder they are read only if it has no image
    files. `{000..009}` in a path stands for each of these numbers. URLs of folders, patterns and files work in the same
    way, but without shards.

    Raises:
        DataError: if a path does not exist, nothing is found, two images would have the same name, a shard is damaged
            or compressed, or a storage cannot be reached.
    """
    files: dict[Location, PurePath] = {}  # file -> its path relative to the folder that was given
    for item in (path for given in wanted for path in _expand_numbers(local_path(given))):
        if is_url(item):
            for url, relative_path in _images_at(item).items():
                files.setdefault(url, relative_path)
            continue
        path = Path(item)
        if path.is_file():
            refuse_compressed(path)
            files.setdefault(path, Path(path.name))
            continue
        root, entries = (path, [path]) if path.is_dir() else _matches(path)
        if not entries:
            raise DataError(f"{item}: no such image, folder or pattern")
        found = [file for entry in entries for file in _images(entry)]
        if out is not None and out.resolve().is_relative_to(root.resolve()):
            found = _without_outputs(found, out.resolve(), str(item))
        for file in found:
            files.setdefault(file, file.relative_to(root))
    relative = {file: path for file, path in files.items() if not _is_shard(file)}
    for image, key in shard_images([Path(file) for file in files if _is_shard(file)]).items():
        relative[image] = key
    if not relative:
        raise DataError(f"{', '.join(map(str, wanted))}: holds no images ({', '.join(IMAGE_SUFFIXES)})")
    return _named(relative)


def canonical_location(location: Location) -> str:
    """Return the same text for an image however its location is written."""
    return str(location) if is_url(location) else str(Path(location).resolve())


def _expand_numbers(item: str) -> list[str]:
    """Return the paths that a path with {000..009} stands for; an existing file with such a name stands for itself."""
    found = re.search(r"\{([0-9]+)\.\.([0-9]+)\}", item)
    if found is None or Path(item).exists():
        return [item]
    first, last = int(found[1]), int(found[2])
    if not 0 <= last - first < 1_000_000:
        raise DataError(f"{item}: {found[0]} stands for {last - first + 1} numbers, expected 1 to 1,000,000")
    numbers = (f"{number:0{len(found[1])}}" for number in range(first, last + 1))
    return [
        path for number in numbers for path in _expand_numbers(item[: found.start()] + number + item[found.end() :])
    ]


def _images_at(url: str) -> dict[str, PurePosixPath]:
    """Return the images that a URL stands for; a single file is accepted whatever its suffix."""
    listed = list_url(url)
    images = {file: path for file, path in listed.items() if path.suffix.lower() in IMAGE_SUFFIXES}
    if not images and any(path.suffix.lower() == ".tar" for path in listed.values()):
        raise DataError(f"{url}: tar shards cannot be read from a URL; copy or mount them to have them under a path")
    return images or (listed if len(listed) == 1 else {})


def _is_shard(location: Location) -> bool:
    return isinstance(location, Path) and is_shard(location)


def _matches(pattern: Path) -> tuple[Path, list[Path]]:
    """Return the last folder of a pattern before its wildcards, and the entries that it matches.

    An existing folder counts as such even if its name looks like a pattern.
    """
    root = pattern
    while not root.is_dir():
        root = root.parent
    names = glob.glob(str(pattern.relative_to(root)), root_dir=root, recursive=True)
    return root, sorted(root / name for name in names)


def _images(entry: Path) -> list[Path]:
    # What operating systems and tools leave behind (._x.jpg, @eaDir) looks like images.
    files = [Path(path) for path in walk(entry)] if entry.is_dir() else [entry]
    images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()]
    return images or [file for file in files if is_shard(file) and file.is_file()]


def _without_outputs(found: list[Path], out: Path, item: str) -> list[Path]:
    kept = [file for file in found if not file.resolve().is_relative_to(out)]
    if found and not kept:
        raise DataError(f"{item}: its images are in --out {out}, where masks are written; choose another --out")
    return kept


def _named(relative: dict[Location, PurePath]) -> dict[str, Location]:
    stems = Counter(path.with_suffix("") for path in relative.values())
    named: dict[str, Location] = {}
    for file, path in relative.items():
        name = (path.with_suffix("") if stems[path.with_suffix("")] == 1 else path).as_posix()
        if name in named:
            raise DataError(f"{file} and {named[name]}: their masks would have the same name; predict them separately")
        named[name] = file
    return named
