"""Predictions of VOC's test images in the form that the test server accepts."""

import gzip
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tagseg.data.images import read_mask_file
from tagseg.export.folder import replacing
from tagseg.masks.mask_files import mask_file, write_mask
from tagseg.system.files import atomic_path
from tagseg.system.progress import Track

INNER = Path("results/VOC2012/Segmentation/comp6_test_cls")
"""Where the server looks for masks. According to the development kit, competition 6 is for networks that learned from
more than VOC (here: ImageNet's weights)."""

ARCHIVE = "results.tar.gz"


def write_submission(
    predicted: Path, names: Sequence[str], mask_ids: Mapping[int, int] | None, folder: Path, track: Track
) -> Path:
    """Write a submission for the test server into `folder`: results/VOC2012/.../NAME.png, and results.tar.gz of these.

    Args:
        predicted: folder of masks of class ids, named like the images.
        names: the test images.
        mask_ids: class id of each value in VOC's masks; None if they are equal.
        folder: replaced if it exists.

    Returns:
        The archive. Equal masks give equal bytes.
    """
    values = np.arange(256, dtype=np.uint8)
    for value, class_id in (mask_ids or {}).items():
        values[class_id] = value
    with replacing(folder) as temporary:
        for name in track(names, "submission", len(names)):
            write_mask(mask_file(temporary / INNER, name), values[read_mask_file(mask_file(predicted, name))])
        pack(temporary, temporary / ARCHIVE)
    return folder / ARCHIVE


def pack(folder: Path, archive: Path) -> None:
    """Write a .tar.gz of the PNGs below a folder, by relative path, without dates or owners."""
    files = sorted(folder.rglob("*.png"))
    with (
        atomic_path(archive) as temporary,
        temporary.open("wb") as raw,
        gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        for file in files:
            about = tarfile.TarInfo(file.relative_to(folder).as_posix())
            about.size, about.mode = file.stat().st_size, 0o644
            with file.open("rb") as content:
                tar.addfile(about, content)
