from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tagseg.errors import DataError
from tagseg.export.colours import coloured_mask, read_label_map

TEXT = "# name:color_rgb:parts:actions\n\nbackground:0,0,0::\ndog:10,20,30::\nice: cream:1,2,3:a,b:c\ntree:9,9,9::\n"
CLASSES = ("cat", "dog", "ice: cream")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "labelmap.txt"
    file.write_text(TEXT, encoding="utf-8-sig")
    return file


def test_lines_are_matched_to_classes_by_name(file: Path) -> None:
    labels = read_label_map(file, CLASSES)
    assert labels.names == ("background", "dog", "ice: cream", "tree") and labels.ids == (0, 2, 3, None)
    assert labels.lines == {0: 0, 0x0A141E: 1, 0x010203: 2, 0x090909: 3}


def test_void_and_background_may_be_classes(file: Path) -> None:
    file.write_text("background:0,0,0::\nvoid:::\nignore:1,1,1::\n")
    assert read_label_map(file, ("void", "background")).ids == (2, 1, 255)
    # A line without a colour has VOC's colour for its number.
    assert read_label_map(file, ()).lines == {0: 0, 0x800000: 1, 0x010101: 2}


@pytest.mark.parametrize(
    "line",
    [
        "dog",
        "dog:1,2::",
        "dog:1,2,300::",
        "dog:1,2,x::",
        "dog:1,-2,3::",
        "dog:1,2," + "3" * 5000 + "::",
        "dog:1,2,\x1d3::",
    ],
)
def test_wrong_lines_are_named(line: str, file: Path) -> None:
    file.write_text(f"background:0,0,0::\n{line}\n")
    with pytest.raises(DataError, match=r"labelmap\.txt, row 2: got 'dog.*expected name:r,g,b::"):
        read_label_map(file, CLASSES)


def test_masks_in_colour_with_a_palette_or_in_grey(file: Path, tmp_path: Path) -> None:
    labels = read_label_map(file, CLASSES)
    colours = np.array([[(0, 0, 0), (10, 20, 30), (1, 2, 3)], [(224, 224, 192), (1, 2, 3), (0, 0, 0)]], np.uint8)
    wanted = np.array([[0, 2, 3], [255, 3, 0]], np.uint8)
    picture = Image.fromarray(colours)
    picture.save(tmp_path / "colour.png")
    picture.convert("RGBA").save(tmp_path / "opaque.png")
    # A palette in a different order: only its colours count.
    picture.quantize(4).save(tmp_path / "palette.png")
    Image.fromarray(np.array([[0, 1, 2], [255, 2, 0]], np.uint8)).save(tmp_path / "grey.png")
    for name in ("colour", "opaque", "palette", "grey"):
        assert np.array_equal(coloured_mask(tmp_path / f"{name}.png", labels, (2, 3)), wanted), name


@pytest.mark.parametrize(
    ("pixel", "message"),
    [((7, 7, 8), "colour 7,7,8"), ((9, 9, 9), "label 'tree'"), (3, "label 'tree'"), (9, "value 9")],
)
def test_values_that_are_not_classes_are_named(
    pixel: tuple[int, int, int] | int, message: str, file: Path, tmp_path: Path
) -> None:
    Image.new("L" if isinstance(pixel, int) else "RGB", (3, 2), pixel).save(tmp_path / "a.png")
    with pytest.raises(
        DataError,
        match=rf"a\.png: {message} in the mask, expected only classes of the data set listed in .*labelmap\.txt",
    ):
        coloured_mask(tmp_path / "a.png", read_label_map(file, CLASSES), (2, 3))


def test_wrong_sizes_are_named(file: Path, tmp_path: Path) -> None:
    Image.new("RGB", (3, 2)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: mask of another size, 3 x 2 pixels, expected the image's 2 x 3"):
        coloured_mask(tmp_path / "a.png", read_label_map(file, CLASSES), (3, 2))
