import errno
import json
from pathlib import Path

import pytest

from tagseg.errors import DataError, WriteError
from tagseg.export.folder import place_images, whole_folder
from tagseg.system.progress import silent


def test_a_folder_is_filled_once_it_is_complete(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    with whole_folder(out, {"export": "coco"}, force=False) as folder:
        (folder / "a.txt").write_text("a")
        assert not list(out.glob("[!.]*"))
    assert (out / "a.txt").read_text() == "a"
    assert json.loads((out / "made_by_tagseg.json").read_text())["export"] == "coco"
    assert [path.name for path in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_nothing_behind_and_changes_nothing(error: type[BaseException], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with whole_folder(out, {}, force=False) as folder:
        (folder / "old.txt").write_text("old")
    with pytest.raises(error), whole_folder(out, {}, force=True) as folder:
        (folder / "new.txt").write_text("new")
        raise error
    assert (out / "old.txt").exists() and [path.name for path in tmp_path.iterdir()] == ["out"]


def test_only_our_own_folder_is_replaced_and_only_with_force(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()  # empty: as good as new
    with whole_folder(out, {}, force=False) as folder:
        (folder / "old.txt").write_text("old")
    with pytest.raises(DataError, match=r"out: exists; choose another --out or --force"):
        whole_folder(out, {}, force=False).__enter__()
    with whole_folder(out, {}, force=True) as folder:
        (folder / "new.txt").write_text("new")
    assert {path.name for path in out.iterdir()} == {"new.txt", "made_by_tagseg.json"}
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "dear.jpg").write_text("x")
    with pytest.raises(DataError, match=r"photos: exists and was not made by export or import; choose another --out"):
        whole_folder(photos, {}, force=True).__enter__()
    with pytest.raises(DataError, match=r"dear\.jpg: exists and was not made by export or import"):
        whole_folder(photos / "dear.jpg", {}, force=True).__enter__()
    assert (photos / "dear.jpg").read_text() == "x"


def test_images_are_copied_or_linked(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("a")
    for how in ("none", "copy", "link"):
        target = tmp_path / how / "sub" / "a.jpg"
        place_images([(tmp_path / "a.jpg", target)], how, 1, silent)
        assert target.exists() == (how != "none") and target.is_symlink() == (how == "link")
    assert (tmp_path / "copy" / "sub" / "a.jpg").read_text() == "a"
    assert (tmp_path / "link" / "sub" / "a.jpg").resolve() == tmp_path / "a.jpg"


def test_through_a_link_the_folder_it_points_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "there")
    for force in (False, True):
        with whole_folder(tmp_path / "out", {}, force) as temporary:
            (temporary / f"force {force}").touch()
    assert (tmp_path / "out").is_symlink() and (tmp_path / "there/force True").exists()
    assert not (tmp_path / "there/force False").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"there", "out"}


def test_a_full_disk_is_named_while_images_are_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: object, target: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shutil.copyfileobj", full)
    (tmp_path / "a.jpg").write_text("a")
    with pytest.raises(WriteError, match=r"b\.jpg: cannot be written: the disk is full; free some space"):
        place_images([(tmp_path / "a.jpg", tmp_path / "out/b.jpg")], "copy", 1, silent)
