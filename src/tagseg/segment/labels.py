"""Training masks that tagseg did not make: the true masks, or masks from another tool."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

from tagseg.data.prepare import Prepared
from tagseg.data.records import VOID, Dataset, Sample
from tagseg.data.true_masks import load_mask
from tagseg.errors import DataError
from tagseg.masks.mask_files import mask_file, read_classes, write_classes, write_mask
from tagseg.system.progress import Track, silent

log = logging.getLogger(__name__)


def true_labels(prepared: Prepared, folder: Path, track: Track = silent) -> Dataset:
    """Write the true masks of the training images to `folder`, in class ids, and return the data set of these images.

    Raises:
        DataError: when no training image has a true mask, or when a mask differs from its image in size or has unknown
            ids.
    """
    samples = tuple(sample for sample in prepared.dataset.split("train") if sample.mask is not None)
    if not samples:
        raise DataError(
            f"{prepared.dataset.root}: learning from true masks requires a true mask of at least one training image, "
            "found none"
        )
    return _collect(prepared, samples, prepared.dataset, folder, track)


def foreign_labels(prepared: Prepared, source: Path, folder: Path, track: Track = silent) -> Dataset:
    """Write the masks in `source` to `folder`, in class ids, and return the data set of the images that have a mask.

    Masks are PNGs (palette or 8-bit grey) named like the images and of the same size; 255 is void. A `classes.json` in
    their folder says which class each value stands for, as in the folders of masks that tagseg writes; without it,
    values mean what they mean in the data set's own masks.

    Raises:
        DataError: when the folder or a class is unknown, no image has a mask, or a mask differs from its image in size
            or has unknown ids.
    """
    found = samples_with_labels(prepared.dataset.split("train"), source)
    missing = len(prepared.dataset.split("train")) - len(found)
    if missing:
        log.warning("%s: has no masks of %d training images, which are left out", source, missing)
    meaning = class_values(source / "classes.json", prepared.dataset)
    return _collect(
        prepared,
        tuple(found),
        dataclasses.replace(prepared.dataset, mask_ids=meaning),
        folder,
        track,
    )


def samples_with_labels(samples: Sequence[Sample], source: Path) -> list[Sample]:
    """Return the samples that have a mask in the folder `source`, with that mask.

    Raises:
        DataError: when there is no such folder, or no sample has a mask there.
    """
    if not source.is_dir():
        raise DataError(f"--labels {source}: no such folder; expected masks as PNGs named like the training images")
    files = ((sample, mask_file(source, sample.id)) for sample in samples)
    found = [dataclasses.replace(sample, mask=file) for sample, file in files if file.exists()]
    if not found:
        example = f"{samples[0].id}.png"
        raise DataError(f"--labels {source}: has no mask of a training image; expected files such as {example}")
    return found


def _collect(prepared: Prepared, samples: tuple[Sample, ...], meaning: Dataset, folder: Path, track: Track) -> Dataset:
    _write(prepared, samples, meaning, folder, track)
    rest = tuple(sample for sample in prepared.dataset.samples if sample.split != "train")
    return dataclasses.replace(prepared.dataset, samples=(*samples, *rest))


def _write(prepared: Prepared, samples: tuple[Sample, ...], meaning: Dataset, folder: Path, track: Track) -> None:
    write_classes(folder, meaning.classes)
    # Other processes learn from the images with a mask in this folder: masks of an earlier attempt must not stay.
    for stale in set(folder.rglob("*.png")) - {mask_file(folder, sample.id) for sample in samples}:
        stale.unlink()
    labelled = False
    for sample in track(samples, "read labels", len(samples)):
        mask = load_mask(sample, meaning, prepared.sizes[sample.id])
        labelled = labelled or bool((mask != VOID).any())
        write_mask(mask_file(folder, sample.id), mask)
    if not labelled:
        raise DataError(
            f"{samples[0].mask} and {len(samples) - 1} other masks: every pixel is void (255), expected class ids"
        )


def class_values(file: Path, dataset: Dataset) -> dict[int, int] | None:
    """Return the class id that each value in a folder's masks stands for, according to its classes.json.

    Without that file, values mean what they mean in the data set's own masks.

    Raises:
        DataError: if the file is not such an object, or names a class that the data set does not have.
    """
    if not file.exists():
        return None if dataset.mask_ids is None else dict(dataset.mask_ids)
    names = read_classes(file)
    ids = {name: i for i, name in enumerate(dataset.classes, 1)}
    # 0 and 255 may be classes too, as in black and white masks.
    own = {0: "background", VOID: "void"}
    meant = {v: name for v, name in names.items() if v not in own or (name != own[v] and name in ids)}
    if strange := sorted(set(meant.values()) - ids.keys()):
        raise DataError(f"{file}: classes {', '.join(strange)[:300]}; the data set has {', '.join(ids)}")
    return {value: ids[name] for value, name in meant.items()}
