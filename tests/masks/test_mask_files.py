from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tagseg.data.images import read_mask_file
from tagseg.data.records import VOID
from tagseg.masks.mask_files import write_mask
from tagseg.masks.palette import VOID_COLOUR, class_colours


def test_masks_are_palette_pngs_that_read_back(tmp_path: Path) -> None:
    mask = np.array([[0, 1, 2], [3, 254, VOID]], np.uint8)
    write_mask(tmp_path / "sub" / "a.png", mask)
    with Image.open(tmp_path / "sub" / "a.png") as picture:
        assert picture.format == "PNG" and picture.mode == "P" and picture.size == (3, 2)
        assert np.array(picture).tolist() == mask.tolist()
        shown = [tuple(pixel) for pixel in np.array(picture.convert("RGB")).reshape(-1, 3).tolist()]
    assert shown == [class_colours(254)[i] for i in (0, 1, 2, 3, 254)] + [VOID_COLOUR]
    assert read_mask_file(tmp_path / "sub" / "a.png", (2, 3)).tolist() == mask.tolist()
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["a.png"]


@pytest.mark.parametrize("ids", [[0], [VOID], [0, VOID], [7], list(range(256))])
def test_any_set_of_ids_reads_back(ids: list[int], tmp_path: Path) -> None:
    # An optimised PNG may have fewer colours, or fewer bits per pixel: the ids must not change.
    mask = np.array([ids * 3], np.uint8)
    write_mask(tmp_path / "a.png", mask)
    assert (read_mask_file(tmp_path / "a.png") == mask).all()
