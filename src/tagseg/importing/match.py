"""Find the image that a name from another tool means: tools add folders, prefixes, addresses and percent signs."""

import logging
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from jaxtyping import UInt8

from tagseg.data.check import below
from tagseg.data.locate import as_uploaded, bare_name, spellings
from tagseg.data.prepare import Prepared
from tagseg.data.records import Dataset, Sample
from tagseg.errors import DataError
from tagseg.export.masks import image_name

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Corrected:
    """A mask that came back from another tool.

    names: what the tool calls its image, the surest first. draw: returns the mask of a sample of (height, width) in
    pixels, as class ids. empty: whether the image has no annotation. named: whether its classes have names, not only
    numbers.
    """

    names: tuple[str, ...]
    draw: Callable[[Sample, tuple[int, int]], UInt8[np.ndarray, "h w"]]
    empty: bool = False
    named: bool = True


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
            _add(self.uploaded, as_uploaded(name), sample)

    def find(self, name: str) -> Sample | None:
        """Return the image that a name means, or None if it means none or could mean several."""
        for spelling in spellings(name):
            if (found := self._as_spelled(spelling)) is not None:
                return found
        last = spellings(name)[-1]
        return self.uploaded.get(as_uploaded(last)) or self.uploaded.get(as_uploaded(bare_name(last)))

    def _as_spelled(self, name: str) -> Sample | None:
        for spelling in dict.fromkeys((name, bare_name(name))):
            for found in (self.full.get(spelling), self.ends.get(spelling), *map(self.full.get, _ends(spelling))):
                if found is not None:
                    return found
        return None


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
