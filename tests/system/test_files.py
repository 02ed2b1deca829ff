import errno
import hashlib
import os
from pathlib import Path

import pytest

from tagseg.errors import WriteError
from tagseg.system.files import (
    atomic_path,
    checksum,
    files_in,
    remove_temporary,
    reserve,
    write_atomically,
    write_output,
    writing,
)


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.ENOSPC, "the disk is full; free some space"),
        (errno.EDQUOT, "your disk quota is used up; free some space"),
        (errno.EROFS, "the file system is read-only"),
        (errno.EACCES, "there is no permission to write to the folder; change its permissions"),
    ],
)
def test_a_write_error_names_the_file_and_the_cause(code: int, advice: str, tmp_path: Path) -> None:
    target = tmp_path / "mask.png"
    target.write_text("old")
    with (
        pytest.raises(WriteError, match=rf"mask\.png: cannot be written: {advice}.* and run the same command again"),
        atomic_path(target) as temporary,
    ):
        temporary.write_text("half")
        raise OSError(code, os.strerror(code))
    assert target.read_text() == "old" and [path.name for path in tmp_path.iterdir()] == ["mask.png"]


def test_a_disk_that_is_full_when_the_file_is_flushed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WriteError, match=r"figures\.json: cannot be written: the disk is full"):
        write_atomically(tmp_path / "figures.json", "{}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_write_permission_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(WriteError, match="new: cannot be written: there is no permission to write to the folder"):
            write_atomically(tmp_path / "new", "x")
    finally:
        tmp_path.chmod(0o700)


def test_other_errors_are_not_changed(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), writing(tmp_path / "a"):
        (tmp_path / "none").read_bytes()
    with pytest.raises(WriteError, match=r"^inner$"), writing(tmp_path / "outer"):
        raise WriteError("inner")


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="requires posix_fallocate")
def test_reserved_space_is_allocated_on_the_disk(tmp_path: Path) -> None:
    file = tmp_path / "hole"
    file.touch()
    os.truncate(file, 1 << 20)
    assert file.stat().st_blocks == 0
    reserve(file, 1 << 20)
    assert file.stat().st_blocks * 512 >= 1 << 20 and file.stat().st_size == 1 << 20


def test_files_are_listed_in_order_with_their_checksums_without_temporary_ones(tmp_path: Path) -> None:
    for name in ("b/c/2", "b/1", "b/.writing-3"):
        write_atomically(tmp_path / name, name)
    assert checksum(tmp_path / "b/1") == hashlib.sha256(b"b/1").hexdigest()
    assert files_in(tmp_path / "b") == [tmp_path / "b/1", tmp_path / "b/c/2"]
    assert files_in(tmp_path / "b/1") == [tmp_path / "b/1"] and files_in(tmp_path / "none") == []
    remove_temporary(tmp_path)
    assert not (tmp_path / "b/.writing-3").exists() and len(files_in(tmp_path)) == 2


def test_what_killed_writers_left_is_deleted_and_what_others_write_is_not(tmp_path: Path) -> None:
    dead, other = tmp_path / f".writing-{'0' * 16}.csv", tmp_path / ".writing-mine.csv"
    for path in (dead, other):
        path.write_text("half")
    with atomic_path(tmp_path / "kept.csv") as temporary:
        temporary.write_text("whole")
        write_output(tmp_path / "worst.csv", "a,b")
        assert temporary.exists() and not dead.exists() and other.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".writing-mine.csv", "kept.csv", "worst.csv"]
    assert (tmp_path / "kept.csv").read_text() == "whole" and (tmp_path / "worst.csv").read_text() == "a,b"


def test_a_file_is_written_with_three_operations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[str] = []
    for name in ("replace", "fsync", "mkdir", "unlink"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, real=real, **b: counted.append(name) or real(*a, **b))
    write_atomically(tmp_path / "a.txt", "a")
    assert counted == ["fsync", "replace"], "and one to open it: each takes its time on a network share"
    write_atomically(tmp_path / "new/folder/a.txt", "a")
    assert (tmp_path / "new/folder/a.txt").read_text() == "a"
