"""Inspect a data set before training: counts, tags that occur together, broken and duplicate files."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tagseg.data.check import below, check_images, same_content
from tagseg.data.hints import tag_notes, tag_warnings
from tagseg.data.records import Dataset, Ignored
from tagseg.settings.data import DataSettings
from tagseg.system.progress import Track, silent


@dataclass(frozen=True)
class Inspection:
    """What `inspect` found; `tags_per_image`, `together` and `never_apart` describe the training images.

    `images`, `masks` and `saliency` are counts by split; `per_class` counts images by split in the order of `classes`;
    `tags_per_image` maps a number of tags to a number of images; `together[i][j]` counts images with both classes
    (c x c; on the diagonal all images with the class). `never_apart` are pairs (a, b): class a never occurs without
    class b, so tags cannot tell them apart. `duplicates` are groups of files with the same content. `smallest` and
    `largest` are the (height, width) in pixels of the images with the fewest and the most pixels, None without readable
    images. `sizes` counts all readable images by (height, width). `ignored` is what was found and not used, `warnings`
    what may be wrong.
    """

    layout: str
    classes: tuple[str, ...]
    images: dict[str, int]
    per_class: dict[str, tuple[int, ...]]
    tags_per_image: dict[int, int]
    together: tuple[tuple[int, ...], ...]
    never_apart: tuple[tuple[str, str], ...]
    masks: dict[str, int]
    saliency: dict[str, int]
    smallest: tuple[int, int] | None
    largest: tuple[int, int] | None
    broken: tuple[tuple[str, str], ...]
    duplicates: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]
    sizes: dict[tuple[int, int], int]
    ignored: tuple[Ignored, ...] = ()
    warnings: tuple[str, ...] = ()


def inspect(dataset: Dataset, settings: DataSettings, track: Track = silent) -> Inspection:
    """Decode every image of a data set, and count images, tags, masks and files with the same content.

    Raises:
        DataError: when a mask does not fit its image, as for `check_images`.
    """
    checked = check_images(dataset, settings, track)
    splits = {"train": dataset.split("train"), "val": dataset.split("val")}
    together = _together(dataset)
    sizes = sorted(checked.sizes.values(), key=lambda size: (size[0] * size[1], size))
    counts = {split: Counter(tag for sample in samples for tag in sample.tags) for split, samples in splits.items()}
    numbers = range(1, len(dataset.classes) + 1)
    return Inspection(
        layout=dataset.layout,
        classes=dataset.classes,
        images={split: len(samples) for split, samples in splits.items()},
        per_class={split: tuple(count[number] for number in numbers) for split, count in counts.items()},
        tags_per_image=dict(sorted(Counter(len(sample.tags) for sample in splits["train"]).items())),
        together=together,
        never_apart=never_apart(dataset.classes, together),
        masks={split: sum(sample.mask is not None for sample in samples) for split, samples in splits.items()},
        saliency={split: sum(sample.saliency is not None for sample in samples) for split, samples in splits.items()},
        smallest=sizes[0] if sizes else None,
        largest=sizes[-1] if sizes else None,
        broken=checked.broken,
        duplicates=duplicates(dataset.root, (sample.image for sample in dataset.samples)),
        notes=(*dataset.notes, *tag_notes(dataset), *checked.notes),
        ignored=dataset.ignored,
        warnings=(*tag_warnings(dataset), *checked.warnings),
        sizes=dict(Counter(sizes)),
    )


def never_apart(classes: tuple[str, ...], together: tuple[tuple[int, ...], ...]) -> tuple[tuple[str, str], ...]:
    """Return the pairs (a, b) for which every image of class a is also one of class b, from the counts `together`."""
    return tuple(
        (name, classes[other])
        for number, name in enumerate(classes)
        for other in range(len(classes))
        if other != number and together[number][number] > 0 and together[number][other] == together[number][number]
    )


def duplicates(root: Path, paths: Iterable[Path]) -> tuple[tuple[str, ...], ...]:
    """Return groups of files with the same content, as paths below `root`."""
    return tuple(sorted(tuple(sorted(below(root, path) for path in group)) for group in same_content(paths)))


def _together(dataset: Dataset) -> tuple[tuple[int, ...], ...]:
    train = dataset.split("train")
    tagged = np.zeros((len(train), len(dataset.classes)), np.int64)
    for row, sample in zip(tagged, train, strict=True):
        row[[tag - 1 for tag in sample.tags]] = 1
    return tuple(tuple(map(int, row)) for row in tagged.T @ tagged)
