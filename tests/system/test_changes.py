"""Changes count as a whole or not at all, wherever the process ends."""

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tagseg.errors import RunError
from tagseg.system.changes import ASIDE, CHANGE, begin, changing, end, pending, settle


def tree(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


OLD = {"a/1": "old", "a/2": "old", "b/1": "old", "c": "old"}
NEW = {"a/1": "new", "a/2": "old", "b/9": "new", "d/e/1": "new"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in OLD.items():
        (tmp_path / "f" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "f" / name).write_text(text)
    return tmp_path / "f"


def change(folder: Path) -> None:
    with changing(folder, "me") as draft:
        draft.write("a/1", "new")
        draft.write("b/9", "new")
        draft.write("d/e/1", "new")
        draft.gone += ["b", "c"]


def test_all_of_a_change_counts(folder: Path) -> None:
    change(folder)
    assert tree(folder) == NEW and not (folder / ASIDE).exists() and pending(folder) is None


def test_a_failure_changes_nothing(folder: Path) -> None:
    with pytest.raises(KeyError), changing(folder) as draft:
        draft.write("a/1", "new")
        draft.gone.append("b")
        raise KeyError
    assert tree(folder) == OLD and not (folder / ASIDE).exists()


def test_a_kill_at_any_operation_leaves_the_old_files_or_the_new(
    folder: Path, tmp_path: Path, killed_before: Callable[[int], AbstractContextManager[list[int]]]
) -> None:
    kept = tmp_path / "kept"
    shutil.copytree(folder, kept)
    with killed_before(1000) as count:
        change(folder)
    operations = count[0]
    assert operations > 15
    seen = set()
    for number in range(operations):
        shutil.rmtree(folder)
        shutil.copytree(kept, folder)
        with killed_before(number):
            change(folder)
        by = settle(folder)
        assert tree(folder) in (OLD, NEW) and (by == "me") <= (tree(folder) == NEW), f"killed before {number}"
        seen.add(str(tree(folder)))
        change(folder) if tree(folder) == OLD else None
        assert tree(folder) == NEW and not (folder / ASIDE).exists()
    assert len(seen) == 2


@pytest.mark.parametrize("name", ["../out", "/etc/x", "a/../../x", ""])
def test_a_list_of_a_stranger_leads_nowhere_else(name: str, folder: Path) -> None:
    (folder / CHANGE).write_text(f'{{"gone": ["{name}"]}}')
    with pytest.raises(RunError, match="must list paths inside the folder"):
        settle(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (f'{{"gone": ["{"x" * 300}"]}}', "must list names of at most 255 bytes"),
        (f'{{"moved": ["a/{"ä" * 200}"]}}', "must list names of at most 255 bytes"),
        ('{"gone": ["a.txt/b"]}', "lists what cannot be moved or deleted .*; delete this file"),
    ],
)
def test_names_that_cannot_be_are_refused_in_words(change: str, said: str, folder: Path) -> None:
    (folder / "a.txt").write_text("kept")
    (folder / CHANGE).write_text(change)
    with pytest.raises(RunError, match=said):
        settle(folder)
    assert (folder / "a.txt").read_text() == "kept"


def test_a_link_leads_nowhere_else(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/dear").touch()
    (folder / "link").symlink_to(tmp_path / "other")
    (folder / CHANGE).write_text('{"gone": ["link/dear"]}')
    with pytest.raises(RunError, match="leads outside the folder; delete this file"):
        settle(folder)
    assert (tmp_path / "other/dear").exists()


def test_what_has_begun_is_told_until_it_ends(folder: Path) -> None:
    begin(folder, "predict x")
    assert settle(folder) == settle(folder) == "predict x"
    end(folder)
    assert settle(folder) == "" and tree(folder) == OLD
