"""Folders of mask PNGs, named like their images: VOC devkits, and the exports of CVAT, LabelMe and tagseg."""

import re
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from tagseg.data.records import Dataset, Sample
from tagseg.data.true_masks import read_mask_pixels
from tagseg.errors import DataError
from tagseg.importing.match import Corrected
from tagseg.importing.meaning import find_meaning, read_mask_by, settle_white

_LABEL_STUDIO = re.compile(r"task-\d+-annotation-\d+-by-.*-\d+\.png", re.IGNORECASE)
"""How Label Studio names the files of "Brush labels to PNG", one for each label."""


def read_pngs(folder: Path, above: Path, files: list[Path], dataset: Dataset) -> list[Corrected]:
    """Return the masks of a folder.

    Args:
        folder: the folder of the masks, or the one above all of them.
        above: where a file that says what their pixels mean may be too.
        files: the PNGs below `folder`.
        dataset: the run's data set.

    Raises:
        DataError: when they do not say which images they belong to, or it is unclear what their pixels mean.
    """
    for file in files:
        if _LABEL_STUDIO.fullmatch(file.name):
            raise DataError(
                f'{file}: a mask from Label Studio\'s export "Brush labels to PNG", which does not say which image it '
                'belongs to; choose "JSON" in Label Studio\'s export and import that file'
            )
    meaning = find_meaning(dict.fromkeys((folder, above)), dataset)
    meaning = settle_white(meaning, ((file, read_mask_pixels(file)) for file in files), dataset)

    def corrected(file: Path) -> Corrected:
        def draw(sample: Sample, size: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
            return read_mask_by(file, meaning, size)

        return Corrected((file.relative_to(folder).as_posix(),), draw, named=meaning.file is not None)

    return [corrected(file) for file in files]
