"""Predictions of VOC's test images as the test server takes them."""

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
"""Where the server looks for the masks: competition 6 is that of networks that have learned from more than VOC (here
ImageNet's weights), as the development kit says."""

ARCHIVE = "results.tar.gz"


def write_submission(
    predicted: Path, names: Sequence[str], mask_ids: Mapping[int, int] | None, folder: Path, track: Track
) -> Path:
    """Write a test server's submission into `folder`: results/VOC2012/.../NAME.png and all of it as results.tar.gz.

    Args:
        predicted: folder of masks in class ids, named like the images.
        names: the test images.
        mask_ids: class ids by the values that they have in VOC's masks; None where the two are the same.
        folder: made anew where it is there.

    Returns:
        The archive. The same masks give the same bytes.
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
    """Write a .tar.gz of the PNGs below a folder, named as they lie there, without dates or owners."""
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
