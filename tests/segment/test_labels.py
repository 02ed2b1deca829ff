import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tagseg.data.images import read_mask_file
from tagseg.data.prepare import Prepared, prepare
from tagseg.data.true_masks import load_mask
from tagseg.errors import DataError
from tagseg.run.open import open_run
from tagseg.segment.labels import foreign_labels, true_labels
from tagseg.settings.settings import Settings


@pytest.fixture
def prepared(discs: Path, tiny: Settings, tmp_path: Path) -> Prepared:
    return prepare(open_run(tmp_path / "run", discs, tiny))


@pytest.fixture
def drawn(discs: Path, tmp_path: Path) -> Path:
    """Return the discs' masks as another tool might write them: for three images, with values 7 and 9."""
    folder = tmp_path / "drawn"
    folder.mkdir()
    for i in range(3):
        mask = np.asarray(Image.open(discs / "masks" / f"{i}.png"))
        Image.fromarray(np.array([0, 9, 7], np.uint8)[mask]).save(folder / f"{i}.png")
    (folder / "classes.json").write_text(json.dumps({"0": "background", "7": "red", "9": "blue", "255": "void"}))
    return folder


def test_true_masks_are_written_in_class_ids(prepared: Prepared, tmp_path: Path) -> None:
    dataset = true_labels(prepared, tmp_path / "labels")
    samples = dataset.split("train")
    assert [sample.id for sample in samples] == ["0", "1", "2", "3"]
    for sample in samples:
        assert np.array_equal(read_mask_file(tmp_path / "labels" / f"{sample.id}.png"), load_mask(sample, dataset))
    names = json.loads((tmp_path / "labels" / "classes.json").read_text())
    assert names == {"0": "background", "1": "blue", "2": "red", "255": "void"}


def test_true_labels_need_true_masks(discs: Path, tiny: Settings, tmp_path: Path) -> None:
    data = shutil.copytree(discs, tmp_path / "data")
    shutil.rmtree(data / "masks")
    found = prepare(open_run(tmp_path / "run", data, tiny))
    with pytest.raises(DataError, match="requires a true mask of at least one training image, found none"):
        true_labels(found, tmp_path / "labels")


def test_classes_json_says_what_values_mean(
    prepared: Prepared, drawn: Path, discs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dataset = foreign_labels(prepared, drawn, tmp_path / "labels")
    assert [sample.id for sample in dataset.split("train")] == ["0", "1", "2"]
    assert "has no masks of 6 training images" in caplog.text
    for i in range(3):
        truth = read_mask_file(discs / "masks" / f"{i}.png")
        assert np.array_equal(read_mask_file(tmp_path / "labels" / f"{i}.png"), truth) and truth.any()


def test_without_classes_json_values_are_those_of_the_data_set(prepared: Prepared, drawn: Path, tmp_path: Path) -> None:
    (drawn / "classes.json").unlink()
    with pytest.raises(DataError, match=r"0\.png: unknown ids 7 in the mask, expected 0, 255 or 1 \(blue\), 2 \(red\)"):
        foreign_labels(prepared, drawn, tmp_path / "labels")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"7": "zebra", "9": "blue"}, "classes zebra; the data set has blue, red"),
        ({"700": "red"}, "expected a whole number <= 255"),
        ({"x": "red"}, "expected an object like"),
        ([1, 2], "expected an object like"),
    ],
)
def test_a_wrong_classes_json_is_named(
    names: object, message: str, prepared: Prepared, drawn: Path, tmp_path: Path
) -> None:
    (drawn / "classes.json").write_text(json.dumps(names))
    with pytest.raises(DataError, match=rf"classes\.json: .*{message}"):
        foreign_labels(prepared, drawn, tmp_path / "labels")


def test_wrong_folders_and_masks_are_named(prepared: Prepared, drawn: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere: no such folder"):
        foreign_labels(prepared, tmp_path / "nowhere", tmp_path / "labels")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty: has no mask of a training image; expected files such as 0\.png"):
        foreign_labels(prepared, tmp_path / "empty", tmp_path / "labels")
    Image.new("L", (10, 12)).save(drawn / "1.png")
    with pytest.raises(DataError, match=r"1\.png: .*10 x 12"):
        foreign_labels(prepared, drawn, tmp_path / "labels")
    for i in range(3):
        Image.new("L", (64, 48), 255).save(drawn / f"{i}.png")
    with pytest.raises(DataError, match="every pixel is void"):
        foreign_labels(prepared, drawn, tmp_path / "labels")
