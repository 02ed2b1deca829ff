from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tagseg.data.images import read_image, read_mask_file
from tagseg.errors import DataError, WriteError
from tagseg.networks.segmenters import Segmenter
from tagseg.segment.prediction import Prediction
from tagseg.segment.predictor import Predictor


@pytest.fixture
def predictor(pixelwise: Segmenter) -> Predictor:
    return Predictor(pixelwise, ("background", "a", "<b>"), (1.0,), False, 0, window=128)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """Return a PNG of 64 x 48 pixels that is to be turned by 90 degrees."""
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    return tmp_path / "a.png"


def test_a_file_a_pillow_image_and_an_array_give_the_same_mask(predictor: Predictor, photo: Path) -> None:
    upright = read_image(photo)
    with Image.open(photo) as image:
        given: dict[str, Any] = {
            "text": str(photo), "Pillow": image, "converted": image.convert("RGB"), "read": upright,
            "array": np.asarray(upright), "alpha": np.dstack([np.asarray(upright), np.full((64, 48), 255, np.uint8)]),
            "mirrored twice": np.asarray(upright)[:, ::-1][:, ::-1],
        }  # fmt: skip
        expected = predictor(photo)
        assert expected.mask.shape == (64, 48) and len(np.unique(expected.mask)) > 1
        for name, one in given.items():
            found = predictor(one)
            assert np.array_equal(found.mask, expected.mask), name
            assert np.array_equal(np.asarray(found.image), np.asarray(upright)), name
            assert np.array_equal(predictor.probabilities(one), predictor.probabilities(photo)), name


def test_a_grey_array_is_a_grey_image(predictor: Predictor) -> None:
    grey = np.random.default_rng(1).integers(0, 256, (32, 64), np.uint8)
    expected = predictor(Image.fromarray(grey)).mask
    for array in (grey, grey[..., None], np.repeat(grey[..., None], 3, 2)):
        assert np.array_equal(predictor(array).mask, expected)


@pytest.mark.parametrize(
    "image",
    [np.zeros((8, 8, 3)), np.zeros((3, 8, 8), np.uint8), np.zeros((0, 8, 3), np.uint8), np.zeros(8, np.uint8)],
    ids=["float", "channels first", "empty", "line"],
)
def test_other_arrays_are_refused(image: Any, predictor: Predictor) -> None:
    with pytest.raises(DataError, match=r"image: got .*, expected a file, a Pillow image, or an array of uint8"):
        predictor.__call__.__wrapped__(predictor, image)  # past the check of types


def test_a_prediction_is_saved_and_shown(tmp_path: Path) -> None:
    mask = np.array([[0, 2], [2, 2]], np.uint8)
    found = Prediction(Image.new("RGB", (2, 2)), mask, ("background", "a", "<b>"), (0.25, 0.0, 0.75), (1.0, 0.0, 0.5))
    assert found.found() == {"<b>": 0.75}
    assert np.array_equal(np.asarray(found), mask)
    assert found.overlay().getpixel((0, 0)) == (0, 0, 0) != found.overlay().getpixel((1, 0))
    html = found._repr_html_()
    assert "data:image/jpeg;base64," in html and "&lt;b&gt; 75.0%" in html and "<b>" not in html
    path = found.save(tmp_path / "new/mask.png")
    assert np.array_equal(read_mask_file(path), mask)
    with pytest.raises(WriteError, match=r"mask\.png: exists; choose another name or force=True"):
        found.save(path)
    assert found.save(str(path), force=True) == path
    with pytest.raises(WriteError, match=r"mask\.jpg: a mask must be a PNG to keep its ids"):
        found.save(tmp_path / "mask.jpg")
