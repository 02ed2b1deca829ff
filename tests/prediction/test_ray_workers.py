import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tagseg.prediction.chunks import Chunk
from tagseg.prediction.outputs import Outcome
from tagseg.prediction.ray_workers import chunk_text, from_row, read_chunk, to_row
from tagseg.segment.resolution import Resolution


def test_rows_hold_any_name_and_any_file() -> None:
    outcome = Outcome("a/\udcff", {"image": "in/a/\udcff.jpg", "classes": []}, {"a/\udcff.png": b"\x00\xff"})
    assert from_row(to_row(outcome)) == outcome
    error = Outcome("b", {"image": "s3://b.jpg", "error": "damaged"})
    assert from_row(to_row(error)) == error
    share = Chunk({"a/\udcff": Path("in/a\n\udcff.jpg"), "b": "s3://bucket/b.jpg"}, frozenset("b"))
    assert json.loads(chunk_text(share))["wanted"] == ["b"] and chunk_text(share).isascii()
    reads = json.loads(read_chunk({"share": chunk_text(share)}, Resolution(8, 8), 1.0, os.getcwd())["share"])["reads"]
    assert [one[:2] for one in reads] == [["a/\udcff", "in/a\n\udcff.jpg"], ["b", "s3://bucket/b.jpg"]]
    assert all(one[3] for one in reads)  # neither is there


def test_paths_are_relative_to_the_folder_of_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(b"none")
    monkeypatch.chdir("/")
    row = {"share": chunk_text(Chunk({"a": Path("a.png")}, frozenset("a")))}
    (read,) = json.loads(read_chunk(row, Resolution(8, 8), 1.0, str(tmp_path))["share"])["reads"]
    assert read[3].startswith("a.png: not an image")
    # A machine that has no such folder takes what is no relative path all the same.
    (read,) = json.loads(read_chunk(row, Resolution(8, 8), 1.0, str(tmp_path / "gone"))["share"])["reads"]
    assert read[3].startswith("a.png: not an image")


def test_reading_and_finishing_need_no_pytorch() -> None:
    # A process of Ray's that does no more starts in no time, and takes little memory.
    said = subprocess.run(
        [sys.executable, "-c", "import sys, tagseg.prediction.ray_workers; print('torch' in sys.modules)"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert said.stdout == "False\n"
