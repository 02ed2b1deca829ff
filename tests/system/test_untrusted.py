import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagseg.system.records import parse_json, read_json
from tagseg.system.untrusted import is_file, read_bytes, require_regular, shown


def test_files_that_never_end_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for path in (tmp_path / "pipe", tmp_path / "zero", tmp_path):
        assert not is_file(path)
        for read in (require_regular, read_bytes, read_json):
            with pytest.raises(OSError, match="not a regular file"):
                read(path)


def test_a_missing_file_is_reported_as_missing(tmp_path: Path) -> None:
    require_regular(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "nothing")
    for name in ("a\0b", "x" * 5000):
        assert not is_file(tmp_path / name)


def test_a_file_larger_than_the_limit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_bytes(tmp_path / "file", 5) == b"12345"
    with pytest.raises(ValueError, match="size is 5 bytes, expected at most 4"):
        read_bytes(tmp_path / "file", 4)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "9" * 5000, "", b"\xff", b"\xff\xfe[\0]\0", "{]"])
def test_invalid_json_is_a_value_error(text: str | bytes) -> None:
    with pytest.raises(ValueError):
        parse_json(text)


def test_json_may_begin_with_a_byte_order_mark() -> None:
    assert parse_json(b'\xef\xbb\xbf{"a": [1, null]}') == {"a": [1, None]}


@given(
    st.recursive(st.none() | st.integers() | st.floats() | st.text(), lambda part: st.lists(part) | st.sets(st.text()))
)
def test_any_value_is_shown_in_a_bounded_length(value: object) -> None:
    assert 0 < len(shown(value)) < 40_000


def test_deep_and_enormous_values_are_abbreviated() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert shown(deep) == "[[[[...]]]]"
    assert shown(1 << 50_000) == "an enormous number"
    assert len(shown("x" * 10**6)) <= 200 and shown("x" * 100) == repr("x" * 100)
