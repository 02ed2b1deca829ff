import dataclasses
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tagseg.data.inspect import duplicates, inspect, never_apart
from tagseg.data.read import read_dataset
from tagseg.settings.data import DataSettings

SETTINGS = DataSettings(min_images=1)


def test_a_small_data_set_counted_by_hand(tmp_path: Path) -> None:
    for number, name in enumerate("abcde"):
        Image.effect_noise((16 + number, 8), 80).save(tmp_path / f"{name}.png")
    shutil.copy(tmp_path / "b.png", tmp_path / "f.png")
    (tmp_path / "d.png").write_bytes((tmp_path / "d.png").read_bytes()[:60])
    (tmp_path / "masks").mkdir()
    Image.new("L", (16, 8), 3).save(tmp_path / "masks/a.png")
    (tmp_path / "saliency").mkdir()
    Image.new("L", (20, 8), 3).save(tmp_path / "saliency/e.png")
    rows = "a.png,rider horse,\nb.png,horse,\nc.png,horse dog,\nd.png,dog,\ne.png,dog,val\nf.png,,val\nx.png,,test\n"
    (tmp_path / "tags.csv").write_text("image,tags,split\n" + rows)
    result = inspect(read_dataset(tmp_path, SETTINGS), SETTINGS)
    assert result.layout == "folder" and result.classes == ("dog", "horse", "rider")
    assert result.images == {"train": 4, "val": 2}
    assert result.per_class == {"train": (2, 3, 1), "val": (1, 0, 0)}
    assert result.tags_per_image == {1: 2, 2: 2}
    assert result.together == ((2, 1, 0), (1, 3, 1), (0, 1, 1))
    assert result.never_apart == (("rider", "horse"),)
    assert result.masks == {"train": 1, "val": 0} and result.saliency == {"train": 0, "val": 1}
    assert (result.smallest, result.largest) == ((8, 16), (8, 20))
    assert result.sizes == {(8, 16): 1, (8, 17): 2, (8, 18): 1, (8, 20): 1}
    assert [path for path, _ in result.broken] == ["d.png"]
    assert result.duplicates == (("b.png", "f.png"),)
    assert result.notes == () and [one.count for one in result.ignored] == [1]
    assert result.ignored[0].reason == "images of the test split are left out" and result.ignored[0].expected


@pytest.mark.parametrize(
    ("together", "expected"),
    [
        (((2, 2), (2, 2)), (("a", "b"), ("b", "a"))),
        (((2, 2), (2, 3)), (("a", "b"),)),
        (((2, 1), (1, 2)), ()),
        (((0, 0), (0, 2)), ()),
    ],
)
def test_never_apart(together: tuple[tuple[int, ...], ...], expected: tuple[tuple[str, str], ...]) -> None:
    assert never_apart(("a", "b"), together) == expected


def test_duplicates_need_equal_content_not_equal_length(tmp_path: Path) -> None:
    for name, content in {"a": b"same", "b": b"same", "c": b"else", "d": b"longer", "e": b"same"}.items():
        (tmp_path / name).write_bytes(content)
    assert duplicates(tmp_path, sorted(tmp_path.iterdir())) == (("a", "b", "e"),)


def test_real_animals(shared_data: Path) -> None:
    settings = DataSettings()
    dataset = read_dataset(shared_data / "data/voc_animals", settings)
    some = dataclasses.replace(dataset, samples=dataset.samples[::10])
    result = inspect(some, settings)
    assert result.images == {"train": 266, "val": 19} and result.broken == ()
    assert result.tags_per_image == {1: 214, 2: 51, 3: 1}
    assert result.together[0][0] == 96 and result.never_apart == ()
    assert max(result.largest or (0, 0)) == 320
