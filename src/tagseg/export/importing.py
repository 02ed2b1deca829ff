"""Import masks that were corrected in another tool, as a folder that the segmentation network can learn from."""

import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

import numpy as np
from jaxtyping import UInt8

from tagseg.data.check import below
from tagseg.data.coco import read_instances
from tagseg.data.images import IMAGE_SUFFIXES, load_mask
from tagseg.data.prepare import Prepared, prepare
from tagseg.data.records import CocoMask, Dataset, Sample
from tagseg.errors import DataError
from tagseg.export.colours import coloured_mask, read_label_map
from tagseg.export.folder import whole_folder
from tagseg.export.masks import image_name
from tagseg.masks.mask_files import mask_file, write_classes, write_mask
from tagseg.run.folder import Run
from tagseg.segment.labels import class_values
from tagseg.system.progress import Track, silent

log = logging.getLogger(__name__)

Key = TypeVar("Key")
Corrected = Iterator[tuple[Sample, UInt8[np.ndarray, "h w"]]]


@dataclass(frozen=True)
class Imported:
    """What `import_masks` wrote: the folder, and the numbers of corrected masks and of the run's own masks in it."""

    folder: Path
    corrected: int
    own: int


def import_masks(
    corrected: str | Path,
    run: str | Path,
    out: str | Path,
    with_pseudo: bool = False,
    force: bool = False,
    track: Track = silent,
) -> Imported:
    """Write corrected masks of a run's training images to `out` as class ids, for `tagseg segment --labels`.

    Args:
        corrected: a COCO JSON (every image in it counts as corrected; one without annotations shows no class), or a
            folder of PNGs named like the images, or a VOC devkit with SegmentationClass. classes.json next to the PNGs
            gives the meaning of their values; without it, labelmap.txt gives that of their colours or grey values;
            without either, they mean the same as in the data set's own masks.
        run: the run that the images belong to.
        out: a new folder; it appears once everything is written.
        with_pseudo: add the run's own pseudo-masks for the other training images.
        force: replace an existing import.
        track: how to report progress.

    Raises:
        DataError: when a file is damaged, no mask belongs to a training image, two belong to the same one, or a size or
            a class is wrong.
    """
    source, opened = Path(corrected), Run(Path(run))
    prepared = prepare(opened, track)
    if with_pseudo:
        opened.require("masks")
    about = {"import": str(source.resolve()), "run": str(opened.root.resolve()), "with_pseudo": with_pseudo}
    with whole_folder(Path(out), about, force) as temporary:
        write_classes(temporary, prepared.dataset.classes)
        count, found = (_from_coco if source.is_file() else _from_folder)(source, prepared)
        done = set()
        for sample, mask in track(found, "import", count):
            write_mask(mask_file(temporary, sample.id), mask)
            done.add(sample.id)
        rest = [sample for sample in prepared.dataset.split("train") if with_pseudo and sample.id not in done]
        own = dataclasses.replace(prepared.dataset, mask_ids=None)
        for sample in track(rest, "add pseudo-masks", len(rest)):
            labelled = dataclasses.replace(sample, mask=mask_file(opened.final().masks, sample.id))
            write_mask(mask_file(temporary, sample.id), load_mask(labelled, own, prepared.sizes[sample.id]))
    return Imported(Path(out), len(done), len(rest))


def _from_coco(file: Path, prepared: Prepared) -> tuple[int, Corrected]:
    instances, dataset = read_instances(file), prepared.dataset
    ids = {name: i for i, name in enumerate(dataset.classes, 1)}
    used = {entry["category_id"] for entries in instances.annotations.values() for entry in entries}
    unknown = sorted(instances.categories[category] for category in used if instances.categories[category] not in ids)
    if unknown:
        raise DataError(f"{file}: unknown categories {', '.join(unknown)}, expected only {', '.join(dataset.classes)}")
    names = {number: record["file_name"] for number, record in instances.images.items()}
    matched = _match(file, names.items(), prepared)
    empty = sum(not instances.annotations.get(number) for number in matched)
    if empty:
        log.warning("%s: images without annotations: %d; their masks are all background", file, empty)

    def masks() -> Corrected:
        for number, sample in matched.items():
            record, entries = instances.images[number], instances.annotations.get(number, ())
            for entry in entries:
                if not entry.get("segmentation"):
                    raise DataError(
                        f"{file}: an annotation of {record['file_name']} is only a box, expected a segmentation"
                    )
            segments = tuple(
                (ids[instances.categories[entry["category_id"]]], entry["segmentation"], bool(entry.get("iscrowd", 0)))
                for entry in entries
            )
            drawn = dataclasses.replace(sample, mask=CocoMask(record["height"], record["width"], segments))
            yield sample, load_mask(drawn, dataset, prepared.sizes[sample.id])

    return len(matched), masks()


def _from_folder(source: Path, prepared: Prepared) -> tuple[int, Corrected]:
    if not source.is_dir():
        raise DataError(f"{source}: no such file or folder, expected a COCO JSON or a folder of PNGs")
    folder = source / "SegmentationClass" if (source / "SegmentationClass").is_dir() else source
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() == ".png" and path.is_file())
    matched = _match(source, ((file, file.relative_to(folder).as_posix()) for file in files), prepared)
    dataset = prepared.dataset
    maps = [path for path in (folder / "labelmap.txt", source / "labelmap.txt") if path.is_file()]
    if (folder / "classes.json").exists() or not maps:
        values = class_values(folder / "classes.json", dataset)
        return len(matched), _by_value(matched, dataclasses.replace(dataset, mask_ids=values), prepared)
    labels = read_label_map(maps[0], dataset.classes)

    def masks() -> Corrected:
        for file, sample in matched.items():
            yield sample, coloured_mask(file, labels, prepared.sizes[sample.id])

    return len(matched), masks()


def _by_value(matched: Mapping[Path, Sample], meaning: Dataset, prepared: Prepared) -> Corrected:
    for file, sample in matched.items():
        yield sample, load_mask(dataclasses.replace(sample, mask=file), meaning, prepared.sizes[sample.id])


def _match(source: Path, names: Iterable[tuple[Key, str]], prepared: Prepared) -> dict[Key, Sample]:
    """Return the training image that each name means; a name may have fewer or more folders than the image's own."""
    full = _names(prepared.dataset)
    ends: dict[str, Sample | None] = {}
    for name, sample in full.items():
        for end in _ends(name):
            ends[end] = sample if ends.get(end, sample) is sample else None
    matched: dict[Key, Sample] = {}
    first: dict[str, str] = {}
    unmatched = []
    for key, name in names:
        sample = _find_sample(name.replace("\\", "/").removeprefix("./"), full, ends)
        if sample is None or sample.split != "train":
            unmatched.append(name)
            continue
        if sample.id in first:
            raise DataError(f"{source}: {first[sample.id]} and {name} are both masks of {sample.image}, expected one")
        first[sample.id] = name
        matched[key] = sample
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


def _find_sample(name: str, full: Mapping[str, Sample | None], ends: Mapping[str, Sample | None]) -> Sample | None:
    suffix = PurePosixPath(name).suffix
    stem = name.removesuffix(suffix) if suffix.lower() in IMAGE_SUFFIXES else name
    for spelling in dict.fromkeys((name, stem)):
        for found in (full.get(spelling), ends.get(spelling), *map(full.get, _ends(spelling))):
            if found is not None:
                return found
    return None


def _names(dataset: Dataset) -> dict[str, Sample | None]:
    """Return the images by every name they may have, with folders; None where a name could mean two images.

    If several rules give the same name, the first one counts.
    """
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
            name = rule(sample)
            by_rule[name] = sample if by_rule.get(name, sample) is sample else None
        names = by_rule | names
    return names


def _ends(name: str) -> list[str]:
    """Return a path without its first folder, without its first two, and so on."""
    parts = name.split("/")
    return ["/".join(parts[i:]) for i in range(1, len(parts))]
