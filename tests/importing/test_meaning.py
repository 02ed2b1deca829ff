import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tagseg.data.records import Dataset
from tagseg.data.true_masks import read_mask_pixels
from tagseg.errors import DataError
from tagseg.importing.meaning import (
    Meaning,
    find_meaning,
    read_class_names,
    read_label_map,
    read_mask_by,
    settle_white,
)
from tagseg.masks.mask_files import write_mask

TEXT = "# name:color_rgb:parts:actions\n\nbackground:0,0,0::\ndog:10,20,30::\nice: cream:1,2,3:a,b:c\ntree:9,9,9::\n"
CLASSES = ("cat", "dog", "ice: cream")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "labelmap.txt"
    file.write_text(TEXT, encoding="utf-8-sig")
    return file


def save(folder: Path, pixels: Any, mode: str | None = None) -> Path:
    """Write pixels as a PNG, converted to a mode of Pillow's."""
    picture = Image.fromarray(np.array(pixels, np.uint8))
    (picture.convert(mode) if mode else picture).save(folder / "a.png")
    return folder / "a.png"


def dataset(classes: tuple[str, ...], ids: dict[int, int] | None = None) -> Dataset:
    return Dataset(Path(), "folder", classes, (), ids)


def test_lines_are_matched_to_classes_by_name(file: Path) -> None:
    labels = read_label_map(file, CLASSES)
    assert labels.values == {0: 0, 1: 2, 2: 3, 3: None, 255: 255}
    assert labels.colours == {0: 0, 0x0A141E: 2, 0x010203: 3, 0x090909: None, 0xE0E0C0: 255}
    assert labels.colour_names[0x010203] == "ice: cream"


def test_void_and_background_may_be_classes(file: Path) -> None:
    file.write_text("background:0,0,0::\nvoid:::\nignore:1,1,1::\n")
    assert read_label_map(file, ("void", "background")).values == {0: 2, 1: 1, 2: 255, 255: 255}
    # A line without a colour has VOC's colour for its number.
    assert read_label_map(file, ()).colours[0x800000] == 255


@pytest.mark.parametrize(
    "line",
    ["dog:1,2::", "dog:1,2,300::", "dog:1,2,x::", "dog:1,-2,3::", "dog:1,2,3" + 5000 * "3" + "::", "dog:1,\x1d3,4::"],
)  # fmt: skip
def test_wrong_lines_are_named(line: str, file: Path) -> None:
    file.write_text(f"background:0,0,0::\n{line}\n")
    with pytest.raises(DataError, match=r"labelmap\.txt, row 2: got 'dog.*expected name:r,g,b::"):
        read_label_map(file, CLASSES)


def test_two_labels_with_one_colour_are_refused(file: Path) -> None:
    file.write_text("background:0,0,0::\ncat:1,2,3::\ndog:1,2,3::\n")
    with pytest.raises(DataError, match=r"row 3: 'dog' has the colour of 'cat', expected its own"):
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
        assert np.array_equal(read_mask_by(tmp_path / f"{name}.png", labels, (2, 3)), wanted), name


def test_labels_in_any_order_with_white_as_a_class(file: Path, tmp_path: Path) -> None:
    file.write_text("dog:255,255,255::\nbackground:0,0,0::\ncat:0,128,0::\n")
    labels = read_label_map(file, CLASSES)
    colours = [[(0, 0, 0), (255, 255, 255), (0, 128, 0)]]
    palette = tmp_path / "palette.png"
    Image.fromarray(np.array(colours, np.uint8)).quantize(3).save(palette)
    for mask in (save(tmp_path, colours), palette):
        assert read_mask_by(mask, labels, (1, 3)).tolist() == [[0, 2, 1]]
    for mode in ("L", "1"):
        assert read_mask_by(save(tmp_path, [[0, 255]], mode), labels, (1, 2)).tolist() == [[0, 2]]
    with pytest.raises(DataError, match=r"its colours mean ids 0, its values, the lines of labelmap.txt ids 2"):
        read_mask_by(save(tmp_path, [[0, 0]]), labels, (1, 2))


@pytest.mark.parametrize(
    ("pixel", "message"),
    [((7, 7, 8), "colours 7,7,8 "), ((9, 9, 9), r"colours 9,9,9 \(tree\)"), (3, r"ids 3 \(tree\)"), (9, "ids 9 ")],
)
def test_values_that_are_not_classes_are_named(
    pixel: tuple[int, int, int] | int, message: str, file: Path, tmp_path: Path
) -> None:
    Image.new("L" if isinstance(pixel, int) else "RGB", (3, 2), pixel).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=rf"a\.png: unknown {message}.*expected only the classes in .*labelmap\.txt"):
        read_mask_by(tmp_path / "a.png", read_label_map(file, CLASSES), (2, 3))


def test_smoothed_edges_are_named(file: Path, tmp_path: Path) -> None:
    picture = Image.new("RGB", (20, 20), (10, 20, 30))
    picture.paste((0, 0, 0), (0, 0, 9, 20))
    picture.resize((61, 61), Image.Resampling.LANCZOS).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"unknown colours .*smoothed edges and JPEG change them"):
        read_mask_by(tmp_path / "a.png", read_label_map(file, CLASSES), (61, 61))


def test_wrong_sizes_are_named(file: Path, tmp_path: Path) -> None:
    Image.new("RGB", (3, 2)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: the mask has 3 x 2 pixels, expected 2 x 3 as in its image"):
        read_mask_by(tmp_path / "a.png", read_label_map(file, CLASSES), (3, 2))


def test_without_a_file_values_and_vocs_colours_count(tmp_path: Path) -> None:
    meaning = find_meaning([tmp_path], dataset(CLASSES))
    wanted = np.array([[0, 1, 2], [3, 255, 0]], np.uint8)
    write_mask(tmp_path / "palette.png", wanted)
    with Image.open(tmp_path / "palette.png") as palette:
        palette.convert("RGB").save(tmp_path / "colour.png")
        layer = palette.convert("RGBA")
        layer.putalpha(Image.fromarray((wanted > 0).astype(np.uint8) * 255))
        layer.save(tmp_path / "transparent.png")
    Image.fromarray(wanted).save(tmp_path / "grey.png")
    Image.fromarray(np.repeat(wanted[..., None], 3, 2)).save(tmp_path / "equal.png")
    for name in ("palette", "colour", "transparent", "grey", "equal"):
        assert np.array_equal(read_mask_by(tmp_path / f"{name}.png", meaning, (2, 3)), wanted), name


def test_a_palette_in_another_order_is_ambiguous(tmp_path: Path) -> None:
    """Tools that optimise palettes keep the colours and change the values."""
    write_mask(tmp_path / "a.png", np.array([[0, 1, 2]], np.uint8))
    with Image.open(tmp_path / "a.png") as picture:
        picture.remap_palette([0, 2, 1]).save(tmp_path / "b.png")
    with pytest.raises(DataError, match=r"its colours mean ids 0, 1, 2, its values ids 0, 1, 2; save it without"):
        read_mask_by(tmp_path / "b.png", find_meaning([tmp_path], dataset(CLASSES)), (1, 3))


@pytest.mark.parametrize("mode", ["L", "1", "RGB"])
def test_white_is_the_class_if_there_is_only_one(mode: str, tmp_path: Path) -> None:
    file = save(tmp_path, [[0, 255]], mode)
    found = [(file, read_mask_pixels(file))]
    one, two = dataset(("cat",)), dataset(("cat", "dog"))
    meaning = settle_white(find_meaning([tmp_path], one), found, one)
    assert read_mask_by(file, meaning, (1, 2)).tolist() == [[0, 1]]
    with pytest.raises(DataError, match=r"black and white, with the values 0, 255.*\"255\": \"cat\""):
        settle_white(find_meaning([tmp_path], two), found, two)
    # The file that the message asks for.
    (tmp_path / "classes.json").write_text(json.dumps({"0": "background", "255": "dog"}))
    meaning = settle_white(find_meaning([tmp_path], two), found, two)
    assert read_mask_by(file, meaning, (1, 2)).tolist() == [[0, 2]]


def test_void_pixels_beside_classes_stay_void(tmp_path: Path) -> None:
    meaning = Meaning({0: 0, 1: 1, 255: 255}, {})
    pixels = [(tmp_path / "a.png", read_mask_pixels(save(tmp_path, [row]))) for row in ([0, 255], [255, 1])]
    assert settle_white(meaning, pixels, dataset(("cat",))) is meaning


@pytest.mark.parametrize("first", ["", "__ignore__\n"])
def test_labelme_numbers_classes_in_the_order_of_its_list(first: str, tmp_path: Path) -> None:
    (tmp_path / "class_names.txt").write_text(f"{first}_background_\ndog\ncat\ntree\n")
    meaning = find_meaning([tmp_path], dataset(("cat", "dog")))
    assert meaning.values == {0: 0, 1: 2, 2: 1, 3: None, 255: 255}
    write_mask(tmp_path / "a.png", np.array([[0, 1, 2]], np.uint8))
    assert read_mask_by(tmp_path / "a.png", meaning, (1, 3)).tolist() == [[0, 2, 1]]


def test_a_list_that_does_not_begin_with_background_is_refused(tmp_path: Path) -> None:
    (tmp_path / "class_names.txt").write_text("dog\ncat\n")
    with pytest.raises(DataError, match="got 'dog' for value 0, expected _background_ in the first line"):
        read_class_names(tmp_path / "class_names.txt", CLASSES)
