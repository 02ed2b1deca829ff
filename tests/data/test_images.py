import struct
import zlib
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_rle

from tagseg.data.images import (
    image_size,
    inside,
    measure,
    read_image,
    read_mask_file,
    read_saliency,
    reduced_size,
    reduction,
)
from tagseg.data.locate import find_image
from tagseg.data.read import read_dataset
from tagseg.data.records import CocoMask, Dataset, Sample
from tagseg.data.true_masks import load_mask
from tagseg.errors import DataError
from tagseg.settings.data import DataSettings

GREY_16 = np.array([[0, 32768, 65535]], np.uint16)
ORIENTATIONS = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: np.rot90,
}


def bomb_png(width: int, height: int) -> bytes:
    """Return a PNG whose header claims far more pixels than the file has."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def one_pixel_modes() -> dict[str, tuple[Image.Image, dict[str, object], str, tuple[int, int, int]]]:
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 200, 30])
    see_through = palette.copy()
    return {
        "grey": (Image.new("L", (4, 4), 77), {}, "png", (77, 77, 77)),
        "bilevel": (Image.new("1", (4, 4), 1), {}, "png", (255, 255, 255)),
        "grey with alpha": (Image.new("LA", (4, 4), (0, 127)), {}, "png", (128, 128, 128)),
        "alpha": (Image.new("RGBA", (4, 4), (255, 0, 0, 0)), {}, "png", (255, 255, 255)),
        "opaque alpha": (Image.new("RGBA", (4, 4), (255, 0, 9, 255)), {}, "png", (255, 0, 9)),
        "palette": (palette, {}, "png", (10, 200, 30)),
        "transparent palette": (see_through, {"transparency": 1}, "png", (255, 255, 255)),
        "transparent colour": (
            Image.new("RGB", (4, 4), (1, 2, 3)),
            {"transparency": (1, 2, 3)},
            "png",
            (255, 255, 255),
        ),
        "cmyk": (Image.new("CMYK", (16, 16), (0, 255, 255, 0)), {"quality": 100}, "jpg", (255, 0, 0)),
        "cmyk tiff": (Image.new("CMYK", (4, 4), (0, 0, 0, 255)), {}, "tif", (0, 0, 0)),
        "float up to 1": (Image.new("F", (4, 4), 0.5), {}, "tif", (128, 128, 128)),
        "gif": (palette, {}, "gif", (10, 200, 30)),
        "webp": (Image.new("RGB", (4, 4), (9, 8, 7)), {"lossless": True}, "webp", (9, 8, 7)),
    }


@pytest.mark.parametrize("name", one_pixel_modes())
def test_every_mode_becomes_rgb(name: str, tmp_path: Path) -> None:
    image, options, suffix, expected = one_pixel_modes()[name]
    image.save(tmp_path / f"a.{suffix}", **options)
    result = read_image(tmp_path / f"a.{suffix}")
    assert result.mode == "RGB" and result.size == image.size
    assert np.abs(np.array(result)[0, 0].astype(int) - expected).max() <= 2


@pytest.mark.parametrize(
    ("values", "suffix", "expected"),
    [
        (GREY_16, "png", [0, 128, 255]),
        (GREY_16, "tif", [0, 128, 255]),
        (GREY_16.astype(np.int32), "tif", [0, 128, 255]),
        (np.array([[-100, 0, 100]], np.int32), "tif", [0, 128, 255]),
        (np.array([[-7, -7, -7]], np.int32), "tif", [0, 0, 0]),
        (np.array([[0, 100, 255]], np.float32), "tif", [0, 100, 255]),
        (np.array([[0, 1e6, np.nan]], np.float32), "tif", [0, 255, 0]),
    ],
)
def test_deep_grey_is_scaled_to_eight_bits(
    values: np.ndarray, suffix: str, expected: list[int], tmp_path: Path
) -> None:
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    assert np.array(read_image(tmp_path / f"a.{suffix}"))[0, :, 0].tolist() == expected


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_exif_orientation_is_applied(orientation: int, suffix: str, tmp_path: Path) -> None:
    corners = np.zeros((16, 32, 3), np.uint8)
    corners[:8, :8, 0], corners[:8, 24:, 1], corners[8:, :8, 2] = 255, 255, 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    options = {"quality": 100, "subsampling": 0} if suffix == "jpg" else {}
    Image.fromarray(corners).save(path, exif=exif, **options)
    expected = ORIENTATIONS[orientation](corners)
    result = np.array(read_image(path)).astype(int)
    assert result.shape == expected.shape
    assert np.abs(result - expected).max() <= 12
    assert image_size(path) == expected.shape[:2]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_an_image_with_damaged_exif_is_read(tmp_path: Path) -> None:
    Image.new("RGB", (8, 4)).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert read_image(tmp_path / "a.jpg").size == (8, 4)


@pytest.mark.parametrize("read", [read_image, image_size])
def test_broken_files_are_named_with_their_cause(read: Callable[[Path], object], tmp_path: Path) -> None:
    whole = tmp_path / "whole.jpg"
    Image.effect_noise((64, 64), 90).save(whole)
    (tmp_path / "cut.jpg").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    Image.effect_noise((64, 64), 90).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:900])
    (tmp_path / "text.jpg").write_text("no image")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "script.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    (tmp_path / "bomb.png").write_bytes(bomb_png(12000, 12000))
    (tmp_path / "huge.png").write_bytes(bomb_png(60000, 60000))
    (tmp_path / "folder.jpg").mkdir()
    causes = {
        "cut.jpg": r"damaged image \(.*truncated",
        "cut.png": "damaged image",
        "text.jpg": "not an image",
        "empty.png": "not an image",
        "script.jpg": "not an image",
        "bomb.png": "too large, 12000 x 12000 pixels are 144 megapixels, expected at most 120",
        "huge.png": "too large",
        "folder.jpg": "damaged image",
        "missing.jpg": "no such file",
    }
    for name, cause in causes.items():
        with (
            pytest.warns(Image.DecompressionBombWarning) if name == "bomb.png" else nullcontext(),
            pytest.raises(DataError, match=f"{name}: {cause}"),
        ):
            read(tmp_path / name)


def test_the_megapixel_limit_is_a_setting(tmp_path: Path) -> None:
    Image.new("RGB", (200, 100)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", max_megapixels=0.02).size == (200, 100)
    with pytest.raises(DataError, match=r"a\.png: too large, 200 x 100 .* data\.max-megapixels"):
        read_image(tmp_path / "a.png", max_megapixels=0.019)


def test_mask_files_keep_their_values(tmp_path: Path) -> None:
    values = np.array([[0, 8, 255], [1, 2, 3]], np.uint8)
    Image.fromarray(values).save(tmp_path / "grey.png")
    palette = Image.fromarray(values, "L").copy()
    palette = Image.frombytes("P", palette.size, palette.tobytes())
    palette.putpalette([7, 7, 7] * 256)
    palette.save(tmp_path / "palette.png")
    for name in ("grey.png", "palette.png"):
        assert np.array_equal(read_mask_file(tmp_path / name), values)


def test_invalid_mask_files_are_named(tmp_path: Path) -> None:
    Image.new("RGB", (3, 2)).save(tmp_path / "colour.png")
    Image.fromarray(GREY_16).save(tmp_path / "deep.png")
    Image.new("L", (3, 2)).save(tmp_path / "lossy.jpg")
    Image.new("L", (3, 2)).save(tmp_path / "other.png")
    for name, cause in {
        "colour.png": "a mask of mode RGB, expected class ids in a palette or 8-bit grey PNG",
        "deep.png": "a mask of mode I;16, expected",
        "lossy.jpg": "not an image, expected PNG",
        "missing.png": "no such file",
    }.items():
        with pytest.raises(DataError, match=f"{name}: {cause}"):
            read_mask_file(tmp_path / name)
    with pytest.raises(DataError, match=r"other\.png: the mask has 3 x 2 pixels, expected 4 x 2 as in its image"):
        read_mask_file(tmp_path / "other.png", size=(2, 4))


def dataset_of(mask: Path | CocoMask, ids: dict[int, int] | None, root: Path) -> tuple[Sample, Dataset]:
    sample = Sample("a", root / "a.jpg", (1,), mask=mask)
    return sample, Dataset(root, "folder", ("cat", "dog"), (sample,), ids)


def test_mask_ids_become_class_ids(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 8, 12, 255]], np.uint8)).save(tmp_path / "m.png")
    sample, dataset = dataset_of(tmp_path / "m.png", {8: 1, 12: 2}, tmp_path)
    assert load_mask(sample, dataset, size=(1, 4)).tolist() == [[0, 1, 2, 255]]
    with pytest.raises(DataError, match=r"m\.png: the mask has"):
        load_mask(sample, dataset, size=(4, 1))


@pytest.mark.parametrize(("ids", "unknown"), [({8: 1}, "12, 13"), (None, "8, 12, 13")])
def test_unknown_mask_ids_are_listed(ids: dict[int, int] | None, unknown: str, tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 8, 12, 13, 255]], np.uint8)).save(tmp_path / "m.png")
    with pytest.raises(DataError, match=rf"m\.png: unknown ids {unknown} in the mask, expected 0, 255 or .*\(cat\)"):
        load_mask(*dataset_of(tmp_path / "m.png", ids, tmp_path))


def box(top: int, left: int, bottom: int, right: int) -> list[list[float]]:
    return [[left, top, right, top, right, bottom, left, bottom]]


def test_coco_paints_small_over_large_and_crowds_below(tmp_path: Path) -> None:
    crowd = np.zeros((6, 8), np.uint8, order="F")
    crowd[:, 4:] = 1
    runs = {"size": [6, 8], "counts": [24, 24]}
    packed = coco_rle.encode(crowd)
    for code in (runs, {"size": [6, 8], "counts": packed["counts"].decode()}):
        # The small dog comes first, but is painted over the cat, and the cat over the crowd.
        segments = ((2, box(2, 2, 4, 4), False), (1, box(0, 0, 6, 6), False), (1, code, True))
        drawn = load_mask(*dataset_of(CocoMask(6, 8, segments), None, tmp_path), size=(6, 8))
        expected = np.ones((6, 8), int)
        expected[:, 6:], expected[2:4, 2:4] = 255, 2
        assert drawn.tolist() == expected.tolist()


def test_compressed_runs_agree_with_pycocotools(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for share in (0.0, 0.02, 0.5, 1.0):
        pixels = np.asfortranarray(random.random((90, 70)) < share).astype(np.uint8)
        code = {"size": [90, 70], "counts": coco_rle.encode(pixels)["counts"].decode()}
        drawn = load_mask(*dataset_of(CocoMask(90, 70, ((2, code, False),)), None, tmp_path))
        assert np.array_equal(drawn, 2 * pixels)


@pytest.mark.parametrize(
    "segmentation",
    [
        [[0, 0, 4, 0, 4, 4, 0]],
        {"size": [6, 8], "counts": [3, 4]},
        {"size": [6, 8], "counts": [50, -2]},
        {"size": [8, 6], "counts": [0, 48]},
        {"size": [6, 8], "counts": "1"},
        {"size": [6, 8], "counts": "oo"},
        {"counts": [48]},
        "polygon",
        [["a", "b", "c", "d", "e", "f"]],
    ],
)
def test_segmentations_that_cannot_be_drawn_are_refused(segmentation: object, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.jpg: a segmentation of its COCO annotations cannot be drawn"):
        load_mask(*dataset_of(CocoMask(6, 8, ((1, segmentation, False),)), None, tmp_path))


def test_coco_masks_must_have_the_size_of_the_image(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.jpg: the mask has 8 x 6 pixels, expected 8 x 7 as in its image"):
        load_mask(*dataset_of(CocoMask(6, 8, ()), None, tmp_path), size=(7, 8))


def test_polygons_without_area_draw_nothing(tmp_path: Path) -> None:
    sample, dataset = dataset_of(CocoMask(6, 8, ((1, [[0, 0, 5, 5]], False),)), None, tmp_path)
    assert not load_mask(sample, dataset).any()


def test_find_image_stays_inside_the_data_folder(tmp_path: Path) -> None:
    root = tmp_path / "data"
    (root / "images").mkdir(parents=True)
    Image.new("RGB", (2, 2)).save(root / "images/a.JPG", format="JPEG")
    Image.new("RGB", (2, 2)).save(root / "b.jpg.png")
    Image.new("RGB", (2, 2)).save(tmp_path / "secret.png")
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    folders = (root, root / "images")
    for name in ("a", "a.JPG", "images/a.JPG", "images\\a.JPG"):
        assert find_image(root, folders, name, "row 2") == root / "images/a.JPG"
    for name in (str(tmp_path / "secret.png"), "../secret.png", "images/../../secret.png", "C:\\x.jpg", "link.png"):
        with pytest.raises(DataError, match=r"^row 2: .*leaves the data folder"):
            find_image(root, folders, name, "row 2")
    for name in ("b.jpg", "", "x" * 5000, "a\0b"):
        with pytest.raises(DataError, match=r"^row 2: image .* is missing"):
            find_image(root, folders, name, "row 2")
    with pytest.raises(DataError, match=r"folder x: .* leaves the data folder"):
        inside(root, root / "link.png", "folder x")


@pytest.mark.parametrize("size", [(1, 1), (7, 40), (40, 7)])
def test_small_jpegs_have_a_size(size: tuple[int, int], tmp_path: Path) -> None:
    Image.new("RGB", size).save(tmp_path / "a.jpg")
    assert image_size(tmp_path / "a.jpg") == size[::-1]


def test_saliency_maps_are_grey_and_have_the_size_of_the_image(tmp_path: Path) -> None:
    values = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
    Image.fromarray(values).save(tmp_path / "a.png")
    assert np.array_equal(np.asarray(read_saliency(tmp_path / "a.png", (6, 8))), values)
    Image.fromarray(np.stack([values] * 3, 2)).save(tmp_path / "colour.png")
    assert np.array_equal(np.asarray(read_saliency(tmp_path / "colour.png", (6, 8))), values)
    large = read_saliency(tmp_path / "a.png", (12, 24))
    assert large.size == (24, 12) and large.mode == "L"
    assert np.asarray(large)[0, 0] == 0 and np.asarray(large)[-1, -1] == 235
    with pytest.raises(DataError, match=r"b\.png: no such file"):
        read_saliency(tmp_path / "b.png", (6, 8))


def test_a_size_is_reduced_to_a_long_side_and_never_enlarged() -> None:
    assert reduced_size((400, 300), 200) == (200, 150) and reduced_size((300, 400), 200) == (150, 200)
    assert reduced_size((40, 30), 200) == (40, 30)
    assert reduced_size((1000, 1), 100) == (100, 1), "no side vanishes"
    assert reduction((400, 300), 200) == 0.5 and reduction((40, 30), 200) == 1


@pytest.mark.parametrize("top", [255, 1023, 4095, 16383, 65535])
def test_deep_images_are_scaled_from_the_bits_that_they_use(top: int, tmp_path: Path) -> None:
    values = np.linspace(0, top, 12).round().astype(np.uint16).reshape(3, 4)
    Image.fromarray(values).save(tmp_path / "grey.png")
    Image.fromarray(values).save(tmp_path / "grey.tif")
    (tmp_path / "colour.png").write_bytes(png_16(np.stack([values, values // 2, values // 4], 2)))
    shares = np.linspace(0, 255, 12).reshape(3, 4)
    for name in ("grey.png", "grey.tif", "colour.png"):
        assert np.abs(np.asarray(read_image(tmp_path / name))[..., 0] - shares).max() <= 1
        assert measure(tmp_path / name) == ((3, 4), True)


def png_16(values: np.ndarray) -> bytes:
    """Return an RGB PNG of 16 bits per channel, which Pillow does not write."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_photographs_of_telephones_are_read_upright(orientation: int, tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif", reason="needs tagseg[heic]")
    pixels = np.zeros((60, 100, 3), np.uint8)
    pixels[:30, :50], pixels[30:, 50:] = (255, 0, 0), (0, 0, 255)
    turned, exif = Image.fromarray(pixels), Image.Exif()
    exif[0x112] = orientation
    turned.save(tmp_path / "a.png", exif=exif)
    heif.from_pillow(turned).save(tmp_path / "a.HEIC", quality=95, exif=exif.tobytes())
    expected, found = (np.asarray(read_image(tmp_path / name)).astype(int) for name in ("a.png", "a.HEIC"))
    assert found.shape == expected.shape and np.abs(found - expected).mean() < 1
    (tmp_path / "a.png").unlink()
    (tmp_path / "tags.csv").write_text("image,tags\na.HEIC,red\n")
    (sample,) = read_dataset(tmp_path, DataSettings(min_images=1)).samples
    assert sample.image.name == "a.HEIC"
