import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tagseg.errors import DataError
from tagseg.masks.palette import class_colours
from tagseg.prediction import outputs
from tagseg.prediction.outputs import (
    append_line,
    begin,
    image_line,
    overlay,
    probabilities_npy,
    read_lines,
    write_lines,
)
from tagseg.segment.label_pixels import Decided
from tagseg.settings.predict import PredictOptions


def test_overlay_colours_all_but_the_background() -> None:
    image = Image.new("RGB", (3, 1), (100, 100, 100))
    shown = np.asarray(overlay(image, np.array([[0, 1, 2]], np.uint8), opacity=0.5)).tolist()
    expected = [[100, 100, 100], *[[round(50 + c / 2) for c in class_colours(2)[i]] for i in (1, 2)]]
    assert shown == [expected]


def test_an_overlay_is_painted_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    image = Image.fromarray(draw.integers(0, 256, (20, 9, 3), np.uint8))
    mask, before = draw.integers(0, 4, (20, 9), np.uint8), np.array(image)
    once = np.asarray(overlay(image, mask))
    monkeypatch.setattr(outputs, "_ROWS", 7)
    assert (np.asarray(overlay(image, mask)) == once).all() and (np.asarray(image) == before).all()
    assert ((once == before).all(-1) | (mask > 0)).all() and (once != before).any()


def test_probabilities_are_read_without_unpickling() -> None:
    seen = np.random.default_rng(0).random((3, 4, 5), np.float32)
    found = np.load(io.BytesIO(probabilities_npy(seen)), allow_pickle=False)
    assert found.dtype == np.float16 and np.allclose(found, seen, atol=1e-3)


def test_a_line_says_what_was_found() -> None:
    decided = Decided(np.zeros((2, 3), np.uint8), (0.5, 0.123456, 0.0, 0.376544), (0.9, 0.87654321, 0.0, 0.5))
    line = image_line(Path("in/a.jpg"), "a.png", decided, ("background", "cat", "dog", "Bär"))
    assert line == {
        "image": "in/a.jpg", "mask": "a.png", "width": 3, "height": 2,
        "classes": [
            {"id": 3, "name": "Bär", "area": 0.3765, "confidence": 0.5},
            {"id": 1, "name": "cat", "area": 0.1235, "confidence": 0.8765},
        ],
    }  # fmt: skip


LINE = {"image": "Größe \udcff\n.jpg", "error": "damaged"}
"""A file name may hold line ends, and bytes that are no Unicode."""


def test_lines_are_read_as_they_were_written(tmp_path: Path) -> None:
    file = tmp_path / "predictions.jsonl"
    assert read_lines(file) == []
    write_lines(file, [])
    append_line(file, LINE)
    append_line(file, {"image": "b.jpg", "classes": []})
    assert read_lines(file) == [LINE, {"image": "b.jpg", "classes": []}]
    assert file.read_bytes().count(b"\n") == 2 and "Größe".encode() in file.read_bytes()
    assert [json.loads(text) for text in file.read_text("utf-8").split("\n")[:-1]] == read_lines(file)


def test_half_a_line_counts_for_nothing(tmp_path: Path) -> None:
    file = tmp_path / "predictions.jsonl"
    write_lines(file, [LINE])
    whole = file.read_bytes()
    for end in range(len(whole)):
        file.write_bytes(whole + whole[:end])
        assert read_lines(file) == [LINE]
    file.write_bytes(whole[:-1])
    assert read_lines(file) == []


def test_a_line_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "predictions.jsonl"
    write_lines(file, [LINE])
    opened = Path.open

    class Full:
        """A disk that takes ten bytes."""

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
        append_line(file, {"image": "b.jpg", "classes": []})
    monkeypatch.undo()
    assert read_lines(file) == [LINE] and file.read_bytes().endswith(b"}\n")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{}\n", r"predictions\.jsonl, line 1: names no image; move the file away"),
        (b'{"image": "a"}\nmine\n', r"predictions\.jsonl, line 2: not JSON .*; move the file away"),
        (b"[1]\n", "line 1: names no image"),
    ],
)
def test_a_file_of_someone_elses_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "predictions.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_lines(tmp_path / "predictions.jsonl")


def test_what_is_there_decides_what_is_to_do(tmp_path: Path) -> None:
    found = {name: tmp_path / f"in/{name}.jpg" for name in ("done", "no line", "no mask", "no overlay", "other")}
    out = tmp_path / "out"
    out.mkdir()
    for name in ("done", "no line", "no overlay", "other"):
        (out / f"{name}.png").write_bytes(b"")
    for name in ("done", "no line", "no mask", "other"):
        (out / f"{name}.overlay.jpg").write_bytes(b"")
    lines = [{"image": str(found[name]), "mask": f"{name}.png"} for name in ("done", "no mask", "no overlay")]
    lines.append({"image": "elsewhere/other.jpg", "mask": "other.png"})
    older = {"image": "earlier.jpg", "mask": "earlier.png"}
    write_lines(out / "predictions.jsonl", [older, *lines])
    todo, kept = begin(found, out, PredictOptions(resume=True, overlays=True))
    assert set(todo) == {"no line", "no mask", "no overlay", "other"} and kept == [older, lines[0]]
    todo, kept = begin(found, out, PredictOptions(resume=True))
    assert set(todo) == {"no line", "no mask", "other"} and kept == [older, lines[0], lines[2]]
    assert begin(found, out, PredictOptions(force=True)) == (list(found), [older])
    with pytest.raises(DataError, match=r"done\.png: exists \(4 masks do\); choose another --out, --resume to go on"):
        begin(found, out, PredictOptions())


def test_an_image_is_never_overwritten(tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    image.write_bytes(b"")
    for options in (PredictOptions(), PredictOptions(force=True), PredictOptions(resume=True)):
        with pytest.raises(DataError, match=r"a\.png: would overwrite the image .*a\.png; choose another --out"):
            begin({"a": image}, tmp_path, options)
    photo = tmp_path / "b.overlay.jpg"
    photo.write_bytes(b"")
    with pytest.raises(DataError, match=r"b\.overlay\.jpg: would overwrite"):
        begin({"b.overlay": photo, "b": tmp_path / "b.jpg"}, tmp_path, PredictOptions(overlays=True))


def test_masks_never_go_out_of_their_folder_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/sub").symlink_to(tmp_path / "outside")
    with pytest.raises(DataError, match=r"out/sub: is a link out of .*out, where masks go"):
        begin({"sub/a": tmp_path / "a.jpg"}, tmp_path / "out", PredictOptions())
    (tmp_path / "link").symlink_to(tmp_path / "outside")
    assert begin({"sub/a": tmp_path / "a.jpg"}, tmp_path / "link", PredictOptions())[0] == ["sub/a"]


def test_a_pipe_for_predictions_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "predictions.jsonl")
    with pytest.raises(DataError, match=r"predictions\.jsonl: cannot be read .*no regular file"):
        read_lines(tmp_path / "predictions.jsonl")
