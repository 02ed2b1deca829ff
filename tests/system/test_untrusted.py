import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagseg.system.untrusted import check_shape, is_file, parse_json, read_bytes, read_json, require_regular, shown


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


@pytest.mark.parametrize(
    ("value", "shape"),
    [
        (3, int), (3, float), (0.5, float), ("a", str), (True, bool), (None, None), ([], [int]), ([1, 2], [int]),
        ({"a": 1, "b": "more"}, {"a": int}), ({}, {"a?": int}), ({"a": 1}, {"a?": int}), (None, (None, {"a": int})),
        ({"a": [{"b": None}]}, {"a": [{"b": (float, None)}]}), ({"x": 1}, dict), ([1], list),
    ],
)  # fmt: skip
def test_a_value_of_the_expected_shape_passes(value: object, shape: Any) -> None:
    check_shape(value, shape)


@pytest.mark.parametrize(
    ("value", "shape", "message"),
    [
        (True, int, "the file is True, expected a whole number"),
        (1, bool, "the file is 1, expected true or false"),
        (float("nan"), float, "the file is nan, expected a finite number"),
        (10**400, float, "expected a finite number"),
        ([1, "x"], [int], r"^\[1\] is 'x', expected a whole number"),
        ({}, {"a": int}, "^a is missing"),
        ({"a": {"b": [0, {}]}}, {"a": {"b": [{"c": str}]}}, r"^a.b\[0\] is 0, expected an object"),
        ({"a": {"b": [{}]}}, {"a": {"b": [{"c": str}]}}, r"^a.b\[0\].c is missing"),
        ({"a": 1}, {"a?": str}, "^a is 1, expected text"),
        ([], {"a": int}, r"the file is \[\], expected an object"),
        ({}, [int], r"the file is {}, expected a list"),
        ("x", (None, {"a": int}), "the file is 'x', expected an object"),
        ({"a": 0}, {"a": None}, "a is 0, expected nothing"),
    ],
)
def test_a_value_of_another_shape_is_named(value: object, shape: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_shape(value, shape)
