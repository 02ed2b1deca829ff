from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tagseg.data.given import write_tags
from tagseg.data.read import read_dataset
from tagseg.errors import DataError
from tagseg.settings.data import DataSettings


class Frame:
    """As much of a DataFrame as is read, so that pandas is not needed."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows, self.columns = rows, list(rows[0])

    def to_dict(self, orient: str) -> list[dict[str, Any]]:
        assert orient == "records"
        return self.rows


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "b").mkdir(parents=True)
    for name in ("0.png", "1.png", "b/2.png", "unlisted.png"):
        Image.new("RGB", (20, 10)).save(folder / name)
    return folder


FORMS: dict[str, Callable[[Path], Any]] = {
    "dict": lambda root: {root / "0.png": ["cat", "hot dog"], f"{root}/1.png": [], root / "b/2.png": "cat, dog"},
    "pairs": lambda root: [
        (root / "0.png", ("cat", "hot dog")),
        (str(root / "1.png"), None),
        [root / "b/2.png", ["cat", "dog"]],
    ],
    "frame": lambda root: Frame(
        [
            {"Path": str(root / "0.png"), "labels": ["cat", "hot dog"], "split": "train"},
            {"Path": str(root / "1.png"), "labels": float("nan"), "split": "train"},
            {"Path": str(root / "b/2.png"), "labels": "cat,dog", "split": "train"},
        ]
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_same_data_in_every_form(form: str, photos: Path, tmp_path: Path) -> None:
    root = write_tags(FORMS[form](photos), tmp_path / "runs/a.tags.csv")
    assert root == photos
    dataset = read_dataset(root, DataSettings(tags=str(tmp_path / "runs/a.tags.csv"), min_images=1), cache=True)
    found = {sample.id: {dataset.classes[tag - 1] for tag in sample.tags} for sample in dataset.samples}
    assert found == {"0": {"cat", "hot dog"}, "1": set(), "b/2": {"cat", "dog"}}
    assert all(one.expected for one in dataset.ignored)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "expected at least one photograph"),
        (3, "expected a data folder, a dict of photographs and tags, pairs of these or a DataFrame, got int"),
        (["a.png"], r"data, entry 0: got 'a\.png', expected a photograph and its tags"),
        ([(3, "cat")], "data, entry 0: got 3, expected the path of a photograph"),
        ([("a.png", [1])], r"data, entry 0: got tags \[1\], expected names"),
        ([("a.png", 1)], "data, entry 0: got tags 1, expected names"),
        ({"a.png": "cat", "b.png": "dog"}, r"2 photographs are missing: \S+a\.png, \S+b\.png$"),
        (Frame([{"name": "a.png", "tags": "cat"}]), "got columns name, tags, expected a column image"),
        (Frame([{"image": "a.png", "tags": "cat", "split": "x"}]), "split 'x', expected train, val or test"),
    ],
)
def test_other_data_are_answered_in_words(data: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        write_tags(data, tmp_path / "a.tags.csv")


def test_a_photograph_is_given_once(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"0\.png is given twice; give all its tags at once"):
        write_tags([(photos / "0.png", "cat"), (photos / "b/../0.png", "dog")], tmp_path / "a.tags.csv")


def test_a_table_elsewhere_needs_no_layout_of_its_own(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"setting data\.tags: layout voc has tags of its own"):
        read_dataset(photos, DataSettings(tags=str(tmp_path / "a.csv"), layout="voc"))
