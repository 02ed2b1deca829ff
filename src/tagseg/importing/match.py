"""Find the image that a name from another tool means: tools add folders, prefixes, addresses and percent signs."""

import logging
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

import numpy as np
from jaxtyping import UInt8

from tagseg.data.check import below
from tagseg.data.images import IMAGE_SUFFIXES
from tagseg.data.prepare import Prepared
from tagseg.data.records import Dataset, Sample
from tagseg.errors import DataError
from tagseg.export.masks import image_name

log = logging.getLogger(__name__)

_UPLOAD = re.compile(r"[0-9a-f]{8}-(?=.)")
"""What Label Studio puts in front of the name of an uploaded file."""

_LOCAL_FILE = re.compile(r"(?:^|&)d=([^&]+)")
"""Where the address of a file in Label Studio's local storage holds its path."""

_ROBOFLOW = re.compile(r"(.+)_(\w+)\.rf\.\w{20,}$")
"""Roboflow makes NAME_jpg.rf.HASH.jpg of NAME.jpg; this is the part before the suffix."""

_NOT_UPLOADED = re.compile(r"[^-\w.]")
"""Characters that Label Studio leaves out of the names of uploaded files."""


@dataclass(frozen=True)
class Corrected:
    """A mask that came back from another tool.

    names: what the tool calls its image, the surest first. draw: returns the mask of a sample of (height, width) in
    pixels, as class ids. empty: whether the image has no annotation.
    """

    names: tuple[str, ...]
    draw: Callable[[Sample, tuple[int, int]], UInt8[np.ndarray, "h w"]]
    empty: bool = False


def match(source: Path, found: Sequence[Corrected], prepared: Prepared) -> list[tuple[Sample, Corrected]]:
    """Return the training image of each mask; masks of other images are left out and counted in the log.

    Raises:
        DataError: when no mask belongs to a training image, or two belong to the same one.
    """
    images = ImageNames(prepared.dataset)
    matched: list[tuple[Sample, Corrected]] = []
    first: dict[str, str] = {}
    unmatched = []
    for one in found:
        sample = next((sample for name in one.names if (sample := images.find(name)) is not None), None)
        if sample is None or sample.split != "train":
            unmatched.append(one.names[0])
            continue
        if sample.id in first:
            raise DataError(
                f"{source}: {first[sample.id]} and {one.names[0]} are both masks of {sample.image}, expected one"
            )
        first[sample.id] = one.names[0]
        matched.append((sample, one))
    if not matched:
        got = f"got {unmatched[0]}, for example" if unmatched else "it is empty"
        example = image_name(prepared.dataset.split("train")[0])
        raise DataError(f"{source}: no mask belongs to a training image ({got}), expected names like {example}")
    if unmatched:
        log.warning(
            "%s: masks left out because they belong to no training image: %d, the first is %s",
            source, len(unmatched), unmatched[0],
        )  # fmt: skip
    return matched


class ImageNames:
    """The images of a data set by every name they may have; None where a name could mean two of them.

    full: with all folders. ends: without some of them. uploaded: as Label Studio stores files that were uploaded.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.full = _names(dataset)
        self.ends: dict[str, Sample | None] = {}
        self.uploaded: dict[str, Sample | None] = {}
        for name, sample in self.full.items():
            for end in _ends(name):
                _add(self.ends, end, sample)
            _add(self.uploaded, _as_uploaded(name), sample)

    def find(self, name: str) -> Sample | None:
        """Return the image that a name means, or None if it means none or could mean several."""
        for spelling in spellings(name):
            if (found := self._as_spelled(spelling)) is not None:
                return found
        last = spellings(name)[-1]
        return self.uploaded.get(_as_uploaded(last)) or self.uploaded.get(_as_uploaded(_stem(last)))

    def _as_spelled(self, name: str) -> Sample | None:
        for spelling in dict.fromkeys((name, _stem(name))):
            for found in (self.full.get(spelling), self.ends.get(spelling), *map(self.full.get, _ends(spelling))):
                if found is not None:
                    return found
        return None


def spellings(name: str) -> list[str]:
    """Return how the image of a tool's `name` may be called in the data set: as it is, then without what tools add.

    These are the rest of an address, percent signs, and the prefixes and suffixes of Label Studio and Roboflow.
    """
    plain = unicodedata.normalize("NFC", name.replace("\\", "/").removeprefix("./"))
    path = plain
    if "://" in plain or "?" in plain:
        try:
            parts = urlsplit(plain)
            local = _LOCAL_FILE.search(parts.query)
            path = local[1] if local else parts.path
        except ValueError:  # an address with a wrong host
            path = plain.partition("?")[0]
    decoded = unicodedata.normalize("NFC", unquote(path).replace("\\", "/"))
    folder, slash, last = decoded.rpartition("/")
    own = _UPLOAD.sub("", last, count=1)
    before = _ROBOFLOW.match(_stem(own))
    original = f"{before[1]}.{before[2]}" if before else own
    return list(dict.fromkeys([plain, path, decoded, folder + slash + own, folder + slash + original]))


def _names(dataset: Dataset) -> dict[str, Sample | None]:
    """Return the images by every name with all folders; if several rules give the same name, the first one counts."""
    names: dict[str, Sample | None] = {}
    rules: tuple[Callable[[Sample], str], ...] = (
        image_name,
        lambda sample: sample.id,
        lambda sample: below(dataset.root, sample.image),
        lambda sample: PurePosixPath(below(dataset.root, sample.image)).with_suffix("").as_posix(),
    )
    for rule in rules:
        by_rule: dict[str, Sample | None] = {}
        for sample in dataset.samples:
            _add(by_rule, unicodedata.normalize("NFC", rule(sample)), sample)
        names = by_rule | names
    return names


def _add(names: dict[str, Sample | None], name: str, sample: Sample | None) -> None:
    names[name] = sample if names.get(name, sample) is sample else None


def _ends(name: str) -> Iterator[str]:
    """Yield a path without its first folder, without its first two, and so on."""
    while "/" in name:
        name = name.partition("/")[2]
        yield name


def _stem(name: str) -> str:
    suffix = PurePosixPath(name).suffix
    return name.removesuffix(suffix) if suffix.lower() in IMAGE_SUFFIXES else name


def _as_uploaded(name: str) -> str:
    return _NOT_UPLOADED.sub("", name.rpartition("/")[2].strip().replace(" ", "_"))


def known_names(classes: Sequence[str]) -> Mapping[str, int]:
    """Return class ids by name, with the names that tools give to background (0) and to void pixels (255).

    A class of the data set may itself have such a name.
    """
    background = dict.fromkeys(("background", "__background__", "_background_"), 0)
    void = dict.fromkeys(("void", "ignore", "ignored", "__ignore__", "unlabeled", "unlabelled"), 255)
    return {**background, **void, **{name: i for i, name in enumerate(classes, 1)}}
