"""Masks are read by names and colours, and refused where they have no meaning or two."""

import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from tagseg.data.check import check_images
from tagseg.data.read import read_dataset
from tagseg.data.records import Dataset
from tagseg.data.true_masks import load_mask, read_mask_pixels
from tagseg.errors import DataError
from tagseg.settings.data import DataSettings

TAGS = ("cat", "dog", "cat dog", "")
MAROON, GREEN, RED, WHITE = (128, 0, 0), (0, 128, 0), (255, 0, 0), (255, 255, 255)


def grey(*values: int) -> Image.Image:
    return Image.fromarray(np.array([[*values, 0, 0, 0]], np.uint8)[:, :3])


def colours(*pixels: tuple[int, int, int], ground: tuple[int, int, int] = (0, 0, 0)) -> Image.Image:
    return Image.fromarray(np.array([[*pixels, ground, ground, ground]], np.uint8)[:, :3])


def palette(*values: int, table: tuple[tuple[int, int, int], ...]) -> Image.Image:
    image = grey(*values).convert("P")
    image.putpalette([channel for colour in table for channel in colour])
    return image


def drawn(root: Path, paint: Mapping[str, Image.Image], ending: str = ".png", tags: tuple[str, ...] = TAGS) -> Path:
    """Write one image for each of `tags`, with the mask that `paint` has for them."""
    (root / "masks").mkdir(parents=True)
    for i, names in enumerate(tags):
        Image.new("L", (3, 1)).save(root / f"{i}.png")
        paint[names].save(root / f"masks/{i}{ending}")
    (root / "tags.csv").write_text("image,tags\n" + "".join(f"{i}.png,{names}\n" for i, names in enumerate(tags)))
    return root


def masks(root: Path, values: str = "") -> list[list[int]]:
    settings = DataSettings(min_images=1, mask_values=values)
    dataset = read_dataset(root, settings)
    check_images(dataset, settings)
    return [load_mask(sample, dataset)[0].tolist() for sample in dataset.samples]


RIGHT = [[1, 0, 0], [2, 0, 0], [1, 2, 0], [0, 0, 0]]


def two(make: object, cat: object, dog: object, **more: object) -> dict[str, Image.Image]:
    return {"cat": make(cat, **more), "dog": make(dog, **more), "cat dog": make(cat, dog, **more), "": make(**more)}  # type: ignore[operator]


@pytest.mark.parametrize("ending", [".png", "_mask.png", ".bmp"])
def test_class_ids_are_read_whatever_the_ending(ending: str, tmp_path: Path) -> None:
    assert masks(drawn(tmp_path, two(grey, 1, 2), ending)) == RIGHT


def test_rgb_files_are_read_by_vocs_colours_or_by_named_ones(tmp_path: Path) -> None:
    assert masks(drawn(tmp_path / "voc", two(colours, MAROON, GREEN))) == RIGHT
    other = drawn(tmp_path / "other", two(colours, RED, WHITE))
    with pytest.raises(DataError, match=r"unknown colours #ff0000 in the mask, .*#800000 \(cat\).*--data\.mask-values"):
        masks(other)
    assert masks(other, "#ff0000=cat,#ffffff=dog") == RIGHT
    # Background in the middle, white as a class, black nowhere.
    blue = drawn(tmp_path / "blue", two(colours, RED, WHITE, ground=(0, 0, 255)))
    (blue / "masks/labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\ndog:255,255,255::\nbackground:0,0,255::\ncat:255,0,0::\n"
    )
    assert masks(blue) == RIGHT
    clash = blue / "masks/labelmap.txt"
    clash.write_text("dog:1,1,1::\ncat:1,1,1::\n")
    with pytest.raises(DataError, match=r"labelmap\.txt, row 2: 'cat' has the colour of 'dog'"):
        masks(blue)


def test_labelmes_class_order_and_our_own_are_read_from_the_files_beside_masks(tmp_path: Path) -> None:
    root = drawn(tmp_path, two(grey, 2, 1))
    with pytest.raises(
        DataError, match=r"2 of 3 masks have other classes than their image's tags .*0\.png is tagged cat"
    ):
        masks(root)
    (root / "masks/class_names.txt").write_text("__ignore__\n_background_\ndog\ncat\n")
    assert masks(root) == RIGHT
    (root / "masks/class_names.txt").rename(root / "classes.json")
    (root / "classes.json").write_text('{"0": "background", "1": "dog", "2": "cat", "255": "void"}')
    assert masks(root) == RIGHT and masks(root, "1=dog,2=cat") == RIGHT


@given(
    arrays.arrays(np.uint8, (5, 7), elements=st.integers(0, 255)),
    arrays.arrays(np.uint8, (256, 3), elements=st.integers(0, 255)),
    st.one_of(st.none(), st.integers(0, 255), st.binary(min_size=1, max_size=256)),
)
def test_colours_of_a_palette_are_those_of_its_pixels(
    values: np.ndarray, palette: np.ndarray, transparency: int | bytes | None
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "mask.png"
        mask = Image.fromarray(values)
        mask.putpalette(palette.tobytes())
        mask.save(file, **({} if transparency is None else {"transparency": transparency}))
        found = read_mask_pixels(file)
        with Image.open(file) as image:
            drawn = image.convert("RGBA")
    opaque = np.asarray(Image.alpha_composite(Image.new("RGBA", drawn.size, "black"), drawn)).astype(int)
    assert found.values is not None and found.colours is not None and found.palette is not None
    assert np.array_equal(found.values, values) and np.array_equal(found.colours, found.palette[values])
    assert np.array_equal(found.colours, opaque[..., 0] << 16 | opaque[..., 1] << 8 | opaque[..., 2])


def test_a_palette_in_another_order_is_refused(tmp_path: Path) -> None:
    own = ((0, 0, 0), MAROON, GREEN)
    assert masks(drawn(tmp_path / "own", two(palette, 1, 2, table=own))) == RIGHT
    other = drawn(tmp_path / "other", two(palette, 1, 2, table=((0, 0, 0), GREEN, MAROON)))
    with pytest.raises(DataError, match="palette has VOC's colours in another order: 0 is #000000, 1 is #008000"):
        masks(other)
    assert masks(other, "#008000=cat,#800000=dog") == RIGHT


@pytest.mark.parametrize("make", [grey, lambda *v: colours(*(((i,) * 3) for i in v)), lambda *v: grey(*v).convert("1")])
def test_black_and_white_is_never_void_in_silence(make: object, tmp_path: Path) -> None:
    root = drawn(tmp_path, {"cat": make(255), "": make()}, tags=("cat", "cat", "", ""))  # type: ignore[operator]
    with pytest.raises(
        DataError, match=r"only 0 \(background\) and 255 \(void\), .*--data\.mask-values 255=cat \(2 of 4"
    ):
        masks(root)
    assert masks(root, "255=cat") == [[1, 0, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize(
    ("mask", "name", "message"),
    [
        (Image.fromarray(np.arange(15, 255, 16, dtype=np.uint8)[None]), "0.png", "15 such values: it was smoothed"),
        (grey(64), "0.png", r"unknown ids 64 in the mask, expected 0, 255 or 1 \(cat\), 2 \(dog\)"),
        (grey(1), "0.jpg", "a mask as JPEG, expected a PNG"),
    ],
)
def test_smoothed_and_compressed_masks_are_refused(mask: Image.Image, name: str, message: str, tmp_path: Path) -> None:
    root = drawn(tmp_path, two(grey, 1, 2))
    (root / "masks/0.png").unlink()
    mask.save(root / "masks" / name)
    if mask.width > 3:
        Image.new("L", mask.size).save(root / "0.png")
    with pytest.raises(DataError, match=message):
        masks(root)


@pytest.mark.parametrize("text", ["255:cat", "300=cat", "#ff=cat", "1="])
def test_malformed_values_are_named(text: str, tmp_path: Path) -> None:
    root = drawn(tmp_path, two(grey, 1, 2))
    with pytest.raises(DataError, match=r"setting data\.mask-values: got '.*', expected VALUE=CLASS"):
        masks(root, text)
    with pytest.raises(
        DataError, match=r"setting data\.mask-values: names fox, expected classes of the data set: cat, dog"
    ):
        masks(root, "1=fox")


def test_masks_that_fit_no_image_or_lack_their_tags_are_counted(tmp_path: Path) -> None:
    root = drawn(tmp_path, two(grey, 1, 2), tags=("cat", "cat", "dog", ""))
    grey(0).save(root / "masks/1.png")
    grey(1).save(root / "masks/far.png")
    (root / "masks/2.npy").write_bytes(b"x")
    dataset = read_dataset(root, DataSettings(min_images=1))
    assert [str(one) for one in dataset.ignored] == [
        "1 masks in masks fit no image (far.png)",
        "1 files in masks are not masks; masks are PNGs or other lossless images (2.npy)",
    ]
    checked = check_images(dataset, DataSettings())
    assert checked.warnings == (
        "1 of 3 masks contain none of their image's tags (1.png is tagged cat, its mask has background)",
        "3 of 4 images are copies of others, 2 of them with other tags (2.png is 0.png); remove them: nothing is "
        "learned from a copy, and copies in both splits make scores too high",
    )
    Image.fromarray(np.array([[1, 2, 0]], np.uint8)).save(root / "masks/0.png")
    assert check_images(dataset, DataSettings()).warnings[0] == (
        "1 of 3 masks also contain classes that are not tags (0.png is tagged cat, its mask has background, cat, dog)"
    )


def test_renamed_and_dropped_classes_keep_their_pixels_right(tmp_path: Path) -> None:
    root = drawn(tmp_path, {"cat": grey(2), "none": grey(3), "Cats": grey(1)}, tags=("cat", "none", "Cats"))
    settings = DataSettings(min_images=1, negatives="none", rename="Cats=cat")
    dataset: Dataset = read_dataset(root, settings)
    assert dataset.classes == ("cat",)
    assert [load_mask(sample, dataset)[0].tolist() for sample in dataset.samples] == [[1, 0, 0], [0, 0, 0], [1, 0, 0]]
    assert dataclasses.replace(dataset, mask_ids=None).mask_colours is None
