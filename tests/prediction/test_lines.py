import json
import os
from pathlib import Path

import numpy as np
import pytest

from tagseg.errors import DataError
from tagseg.prediction.lines import (
    PredictedClass,
    PredictionLine,
    append_line,
    encoded_line,
    image_line,
    read_predictions,
    write_predictions,
)
from tagseg.segment.label_pixels import Decided


def test_a_line_lists_the_classes_found() -> None:
    decided = Decided(np.zeros((2, 3), np.uint8), (0.5, 0.123456, 0.0, 0.376544), (0.9, 0.87654321, 0.0, 0.5))
    line = image_line(Path("in/a.jpg"), "a.png", decided, ("background", "cat", "dog", "Bär"))
    assert line == PredictionLine(
        "in/a.jpg", "a.png", 3, 2, (PredictedClass(3, "Bär", 0.3765, 0.5), PredictedClass(1, "cat", 0.1235, 0.8765))
    )
    assert json.loads(encoded_line(line)) == {
        "image": "in/a.jpg", "mask": "a.png", "width": 3, "height": 2,
        "classes": [
            {"id": 3, "name": "Bär", "area": 0.3765, "confidence": 0.5},
            {"id": 1, "name": "cat", "area": 0.1235, "confidence": 0.8765},
        ],
    }  # fmt: skip


LINE = PredictionLine("Größe \udcff\n.jpg", error="damaged")
"""A file name may contain line ends, and bytes that are not valid Unicode."""

OTHER = PredictionLine("b.jpg", "b.png", 4, 3, ())


def test_lines_are_read_as_they_were_written(tmp_path: Path) -> None:
    file = tmp_path / "predictions.jsonl"
    assert read_predictions(file) == []
    write_predictions(file, [])
    append_line(file, LINE)
    append_line(file, OTHER)
    assert read_predictions(file) == [LINE, OTHER]
    assert file.read_bytes().count(b"\n") == 2 and "Größe".encode() in file.read_bytes()
    assert [json.loads(text) for text in file.read_text("utf-8").split("\n")[:-1]] == [
        {"image": LINE.image, "error": "damaged"},
        {"image": "b.jpg", "mask": "b.png", "width": 4, "height": 3, "classes": []},
    ]


def test_an_incomplete_last_line_is_dropped(tmp_path: Path) -> None:
    file = tmp_path / "predictions.jsonl"
    write_predictions(file, [LINE])
    whole = file.read_bytes()
    for end in range(len(whole)):
        file.write_bytes(whole + whole[:end])
        assert read_predictions(file) == [LINE]
    file.write_bytes(whole[:-1])
    assert read_predictions(file) == []


def test_a_line_that_cannot_be_written_leaves_no_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "predictions.jsonl"
    write_predictions(file, [LINE])
    opened = Path.open

    class Full:
        """A disk with room for ten bytes."""

        def __init__(self, path: Path) -> None:
            self.path = path

        def __enter__(self) -> "Full":
            return self

        def __exit__(self, *_: object) -> None: ...

        def write(self, data: bytes) -> None:
            with opened(self.path, "ab") as file:
                file.write(data[:10])
            raise OSError("no space left on device")

    monkeypatch.setattr(Path, "open", lambda path, mode: Full(path))
    with pytest.raises(OSError, match="no space left"):
        append_line(file, OTHER)
    monkeypatch.undo()
    assert read_predictions(file) == [LINE] and file.read_bytes().endswith(b"}\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{}\n", r"predictions\.jsonl, line 1: damaged \(image is missing\); move the file away"),
        (b'{"image": "a"}\nmine\n', r"predictions\.jsonl, line 2: damaged \(it is not JSON: .*; move the file away"),
        (b"[1]\n", r"line 1: damaged \(expected an object, found a list\); move the file away"),
    ],
)
def test_a_file_that_tagseg_did_not_write_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "predictions.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_predictions(tmp_path / "predictions.jsonl")


def test_a_pipe_is_an_error_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "predictions.jsonl")
    with pytest.raises(DataError, match=r"predictions\.jsonl: cannot be read .*not a regular file"):
        read_predictions(tmp_path / "predictions.jsonl")
