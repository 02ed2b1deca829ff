import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tagseg.prediction.chunks import Chunk
from tagseg.prediction.lines import PredictedClass, PredictionLine
from tagseg.prediction.outputs import Outcome
from tagseg.prediction.ray_workers import chunk_json, from_row, read_chunk, to_row
from tagseg.segment.resolution import Resolution


def test_rows_carry_any_name_and_any_content() -> None:
    outcome = Outcome(
        "a/\udcff",
        PredictionLine("in/a/\udcff.jpg", "a/\udcff.png", 4, 3, (PredictedClass(2, "Bär", 0.25, 0.5),)),
        {"a/\udcff.png": b"\x00\xff"},
    )
    assert from_row(to_row(outcome)) == outcome
    error = Outcome("b", PredictionLine("s3://b.jpg", error="damaged"))
    assert from_row(to_row(error)) == error
    chunk = Chunk({"a/\udcff": Path("in/a\n\udcff.jpg"), "b": "s3://bucket/b.jpg"}, frozenset("b"))
    assert json.loads(chunk_json(chunk))["wanted"] == ["b"] and chunk_json(chunk).isascii()
    images = json.loads(read_chunk({"chunk": chunk_json(chunk)}, Resolution(8, 8), 1.0, os.getcwd())["chunk"])["images"]
    assert [one[:2] for one in images] == [["a/\udcff", "in/a\n\udcff.jpg"], ["b", "s3://bucket/b.jpg"]]
    assert all(one[3] for one in images)  # neither exists


def test_paths_are_relative_to_the_callers_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(b"none")
    monkeypatch.chdir("/")
    row = {"chunk": chunk_json(Chunk({"a": Path("a.png")}, frozenset("a")))}
    (image,) = json.loads(read_chunk(row, Resolution(8, 8), 1.0, str(tmp_path))["chunk"])["images"]
    assert image[3].startswith("a.png: not an image")
    # A machine without that folder still reads the paths that it has.
    (image,) = json.loads(read_chunk(row, Resolution(8, 8), 1.0, str(tmp_path / "gone"))["chunk"])["images"]
    assert image[3].startswith("a.png: not an image")


def test_reading_and_finishing_need_no_pytorch() -> None:
    # So that processes which do nothing else start quickly and need little memory.
    said = subprocess.run(
        [sys.executable, "-c", "import sys, tagseg.prediction.ray_workers; print('torch' in sys.modules)"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert said.stdout == "False\n"
