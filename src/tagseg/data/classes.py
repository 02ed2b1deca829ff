"""Rename and merge classes, and drop words that mean none: what the settings say about the names of tags."""

import dataclasses
from collections.abc import Mapping

from tagseg.data.records import VOID, CocoMask, Dataset, Sample
from tagseg.errors import DataError
from tagseg.settings.data import DataSettings

NEGATIVE_WORDS = frozenset(
    {
        "background",
        "_background_",
        "__background__",
        "backgrounds",
        "bg",
        "none",
        "nothing",
        "no",
        "negative",
        "negatives",
    }
    | {"n/a", "na", "nan", "null", "nil", "-", "--", "?", "empty", "blank", "good", "normal", "ok", "okay", "clean"}
    | {"unlabeled", "unlabelled", "untagged", "unannotated", "no_object", "no object", "no_objects", "no tag", "no_tag"}
    | {"no label", "no_label", "not applicable", "no_defect", "no defect", "no-defect", "no_findings", "no finding"}
)
"""Words, in lower case, that often mean that a photograph shows none of the classes."""


def named_classes(dataset: Dataset, settings: DataSettings) -> Dataset:
    """Return the data set with classes renamed and merged by `settings.rename`, and without `settings.negatives`.

    Raises:
        DataError: when a setting names a class that does not exist, a class is called like a word that often means that
            there is none and the settings do not say what it means, or no class is left.
    """
    renamed = _renames(settings.rename)
    unknown = [old for old in renamed if old not in dataset.classes]
    if unknown:
        known = ", ".join(dataset.classes)[:500]
        raise DataError(f"setting data.rename: {unknown[0]!r} is not a class, expected one of {known}")
    new_names = {name: renamed.get(name, name) for name in dataset.classes}
    words = _negatives(new_names.values(), settings.negatives)
    dropped = {name for name, new in new_names.items() if new in words}
    if not renamed and not dropped:
        return dataset
    order = list(dict.fromkeys(new for name, new in new_names.items() if name not in dropped))
    if not order:
        raise DataError(f"{dataset.root}: every class is among data.negatives, expected at least one other class")
    return _mapped(
        dataset,
        tuple(order),
        {number: 0 if name in dropped else order.index(new_names[name]) + 1
         for number, name in enumerate(dataset.classes, 1)},
    )  # fmt: skip


def _renames(text: str) -> dict[str, str]:
    renamed = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        old, sign, new = (part.strip() for part in entry.partition("="))
        if not (sign and old and new):
            raise DataError(f"setting data.rename: got {entry[:60]!r}, expected OLD=NEW, for example Cats=cat")
        renamed[old] = new
    return renamed


def _negatives(names: object, setting: str) -> set[str]:
    found = [str(name) for name in names]  # type: ignore[attr-defined]
    if setting != "ask":
        given = {word.strip().lower() for word in setting.split(",") if word.strip()}
        return {name for name in found if name.lower() in given}
    words = [name for name in found if name.lower() in NEGATIVE_WORDS]
    if words:
        listed = ",".join(words)
        raise DataError(
            f"the tag {words[0]!r} may be a class, or mean that a photograph shows none of the classes: pass "
            f"--data.negatives={listed} if it means none, or --data.negatives= if it is a class like any other "
            f"(found: {', '.join(words)})"
        )
    return set()


def _mapped(dataset: Dataset, classes: tuple[str, ...], new_ids: Mapping[int, int]) -> Dataset:
    """Return the data set with class ids replaced by `new_ids`, where 0 stands for no class."""

    def sample(one: Sample) -> Sample:
        tags = tuple(sorted({new_ids[tag] for tag in one.tags} - {0}))
        mask = one.mask
        if isinstance(mask, CocoMask):
            segments = ((new_ids[number], drawn, crowd) for number, drawn, crowd in mask.segments)
            mask = dataclasses.replace(mask, segments=tuple(part for part in segments if part[0]))
        return dataclasses.replace(one, tags=tags, mask=mask)

    def renumbered(ids: Mapping[int, int]) -> dict[int, int]:
        return {value: number if number in (0, VOID) else new_ids[number] for value, number in ids.items()}

    plain = {number: number for number in range(1, len(dataset.classes) + 1)}
    return dataclasses.replace(
        dataset,
        classes=classes,
        samples=tuple(map(sample, dataset.samples)),
        mask_ids=renumbered(plain if dataset.mask_ids is None else dataset.mask_ids),
        mask_colours=None if dataset.mask_colours is None else renumbered(dataset.mask_colours),
    )
