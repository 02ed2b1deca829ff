import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tagseg.data.images import read_mask_file
from tagseg.prediction.outputs import Outcome, finish_image, image_line, needed, write_files
from tagseg.prediction.read import Read
from tagseg.segment.label_pixels import Labels, candidates, label_pixels
from tagseg.settings.predict import PredictOptions

CLASSES = ("background", "cat", "dog", "cow")


@pytest.fixture
def seen() -> np.ndarray:
    """Return probabilities in which nothing is a cow."""
    values = np.random.default_rng(0).random((4, 6, 8), np.float32)
    values[3] = 0
    shares: np.ndarray = values / values.sum(0)
    return shares


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(1).integers(0, 256, (12, 16, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_few_probabilities_decide_as_all_do(seen: np.ndarray, photo: Path) -> None:
    one, options = Read("sub/a", photo, (12, 16)), PredictOptions()
    few = needed(seen, options)
    assert few.ids == (0, 1, 2) and few.network.shape == (3, 6, 8)
    outcome = finish_image(one, few, CLASSES, options)
    assert outcome == finish_image(one, Labels((0, 1, 2, 3), seen, seen), CLASSES, options)
    decided = label_pixels(candidates(seen), (12, 16), 4)
    assert outcome.line == image_line(photo, "sub/a.png", decided, CLASSES) and list(outcome.files) == ["sub/a.png"]
    with Image.open(io.BytesIO(outcome.files["sub/a.png"])) as picture:
        assert (np.array(picture) == decided.mask).all() and picture.mode == "P"


@pytest.mark.parametrize("options", [PredictOptions(crf=True), PredictOptions(probabilities=True)])
def test_the_crf_and_the_probabilities_need_all(options: PredictOptions, seen: np.ndarray) -> None:
    labels = needed(seen, options)
    assert labels.ids == (0, 1, 2, 3) and labels.network is seen


def test_everything_that_may_be_wanted(seen: np.ndarray, photo: Path, tmp_path: Path) -> None:
    options = PredictOptions(crf=True, overlays=True, probabilities=True)
    outcome = finish_image(Read("a", photo, (12, 16)), needed(seen, options), CLASSES, options)
    assert write_files(outcome, tmp_path / "out") == outcome.line
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"a.png", "a.overlay.jpg", "a.probabilities.npy"}
    assert read_mask_file(tmp_path / "out/a.png", (12, 16)).max() <= 2
    found = np.load(tmp_path / "out/a.probabilities.npy", allow_pickle=False)
    assert (found == seen.astype(np.float16)).all()


def test_an_image_that_cannot_be_read_has_a_line_alone(tmp_path: Path, seen: np.ndarray) -> None:
    error = {"image": "a.jpg", "error": "damaged"}
    assert finish_image(Read("a", Path("a.jpg"), error="damaged"), None, CLASSES, PredictOptions()) == Outcome(
        "a", error
    )
    # Nor has one that is gone when it is to be looked at again.
    gone = finish_image(Read("a", tmp_path / "a.jpg", (12, 16)), needed(seen, PredictOptions()), CLASSES,
                  PredictOptions(overlays=True))  # fmt: skip
    assert gone.files == {} and gone.line["error"] == f"{tmp_path / 'a.jpg'}: no such file"
