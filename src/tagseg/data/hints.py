"""What may be wrong with tags: names that are almost equal, and classes that cannot be learned from them."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from tagseg.data.records import Dataset

_LISTED = 5
"""A warning names at most this many classes, and more classes than this share one warning."""


def tag_warnings(dataset: Dataset) -> tuple[str, ...]:
    """Return what may be wrong with the tags of a data set, one sentence each."""
    return (*_in_every_image(dataset), *_twins(dataset), *_scores(dataset.classes), *_numbers(dataset.classes))


def tag_notes(dataset: Dataset) -> tuple[str, ...]:
    """Return what the user should know about the tags of a data set."""
    train = dataset.split("train")
    blank = sum(not sample.tags for sample in train)
    if not blank:
        return ()
    return (f"{blank} of {len(train)} training images have no tag: they are photographs that show none of the classes",)


def _in_every_image(dataset: Dataset) -> Iterator[str]:
    train = dataset.split("train")
    counts = Counter(tag for sample in train for tag in sample.tags)
    found = [name for number, name in enumerate(dataset.classes, 1) if counts[number] == len(train)]
    if len(found) > _LISTED:
        yield (
            f"{len(found)} classes are in every training image ({_few(found)}): what they look like cannot be learned "
            "from tags; add photographs without them (with other tags, or with none)"
        )
        return
    for name in found:
        yield (
            f"{name} is in every training image: what it looks like cannot be learned from tags; add photographs "
            "without it (with another tag, or with none)"
        )


def _twins(dataset: Dataset) -> Iterator[str]:
    """Yield groups of names that are equal but for case, spaces, hyphens or a plural, the most frequent name first."""
    counts = Counter(tag for sample in dataset.samples for tag in sample.tags)
    groups: dict[str, list[str]] = defaultdict(list)
    for number in sorted(range(1, len(dataset.classes) + 1), key=lambda number: -counts[number]):
        groups[_folded(dataset.classes[number - 1])].append(dataset.classes[number - 1])
    for names in groups.values():
        if len(names) > 1:
            renames = ",".join(f"{name}={names[0]}" for name in names[1:])
            yield f"{' and '.join(names)} may be one class; to merge them: --data.rename '{renames}'"


def _folded(name: str) -> str:
    plain = "".join(letter for letter in name.casefold() if letter.isalnum())
    for ending, singular in (("ies", "y"), ("ches", "ch"), ("shes", "sh"), ("sses", "ss"), ("xes", "x"), ("s", "")):
        if len(plain) > len(ending) + 2 and plain.endswith(ending) and not plain.endswith("ss"):
            return plain.removesuffix(ending) + singular
    return plain


def _scores(classes: Sequence[str]) -> Iterator[str]:
    """Yield a warning if classes are called like scores, or end in one: dog(0.8), cat 90%, 0.93."""
    scored = [name for name in classes if _SCORE.search(name)]
    if scored:
        yield (
            f"classes look like scores of a classifier: {_few(scored)}; "
            "write them as cat:0.9, a column per class, or a column confidence, and tags below --data.min-score are "
            "dropped"
        )


_SCORE = re.compile(r"(^|[\s(@_=:-])(0?\.[0-9]+|1\.0+|[0-9]{1,3}(\.[0-9]+)?\s*%)\)?$")


def _numbers(classes: Sequence[str]) -> Iterator[str]:
    numbers = [name for name in classes if name.isdigit()]
    if numbers:
        yield (
            f"classes are called {_few(numbers)}: if these are numbers "
            "of classes, give their names with --data.rename, for example 0=cat,1=dog"
        )


def _few(names: Sequence[str]) -> str:
    return f"{', '.join(names[:_LISTED])}{', ...' if len(names) > _LISTED else ''}"
