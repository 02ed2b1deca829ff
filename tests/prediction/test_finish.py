import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tagseg.data.images import read_mask_file
from tagseg.prediction.finish import finish_image, needed_candidates
from tagseg.prediction.lines import PredictionLine, image_line
from tagseg.prediction.outputs import Outcome, write_files
from tagseg.prediction.plan import Plan
from tagseg.prediction.read import InputImage
from tagseg.segment.label_pixels import all_candidates, label_pixels, likely_candidates
from tagseg.segment.resolution import Resolution
from tagseg.settings.crf import CrfSettings

CLASSES = ("background", "cat", "dog", "cow")
PLAN = Plan(CLASSES, Resolution(512, 512), 120.0)


@pytest.fixture
def probabilities() -> np.ndarray:
    """Return probabilities with no cow anywhere."""
    values = np.random.default_rng(0).random((4, 6, 8), np.float32)
    values[3] = 0
    shares: np.ndarray = values / values.sum(0)
    return shares


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(1).integers(0, 256, (12, 16, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def test_likely_candidates_give_the_same_outcome_as_all(probabilities: np.ndarray, photo: Path) -> None:
    image = InputImage("sub/a", photo, (12, 16))
    few = needed_candidates(probabilities, PLAN)
    assert few.ids == (0, 1, 2) and few.probabilities.shape == (3, 6, 8)
    outcome = finish_image(image, few, PLAN)
    assert outcome == finish_image(image, all_candidates(probabilities), PLAN)
    decided = label_pixels(likely_candidates(probabilities), (12, 16), 4)
    assert outcome.line == image_line(photo, "sub/a.png", decided, CLASSES) and list(outcome.files) == ["sub/a.png"]
    with Image.open(io.BytesIO(outcome.files["sub/a.png"])) as picture:
        assert (np.array(picture) == decided.mask).all() and picture.mode == "P"


@pytest.mark.parametrize("wanted", [{"crf": CrfSettings()}, {"probabilities": True}])
def test_the_crf_and_written_probabilities_need_all_classes(wanted: dict[str, Any], probabilities: np.ndarray) -> None:
    candidates = needed_candidates(probabilities, dataclasses.replace(PLAN, **wanted))
    assert candidates.ids == (0, 1, 2, 3) and candidates.probabilities is probabilities


def test_all_files_of_an_image(probabilities: np.ndarray, photo: Path, tmp_path: Path) -> None:
    plan = dataclasses.replace(PLAN, crf=CrfSettings(), overlays=True, probabilities=True)
    outcome = finish_image(InputImage("a", photo, (12, 16)), needed_candidates(probabilities, plan), plan)
    assert write_files(outcome, tmp_path / "out") == outcome.line
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"a.png", "a.overlay.jpg", "a.probabilities.npy"}
    assert read_mask_file(tmp_path / "out/a.png", (12, 16)).max() <= 2
    found = np.load(tmp_path / "out/a.probabilities.npy", allow_pickle=False)
    assert (found == probabilities.astype(np.float16)).all()


def test_an_unreadable_image_has_a_line_and_no_files(tmp_path: Path, probabilities: np.ndarray) -> None:
    error = PredictionLine("a.jpg", error="damaged")
    assert finish_image(InputImage("a", Path("a.jpg"), error="damaged"), None, PLAN) == Outcome("a", error)
    # The same holds for an image that is gone when it is read again for its overlay.
    image = InputImage("a", tmp_path / "a.jpg", (12, 16))
    gone = finish_image(image, needed_candidates(probabilities, PLAN), dataclasses.replace(PLAN, overlays=True))
    assert gone.files == {} and gone.line.error == f"{tmp_path / 'a.jpg'}: no such file"
