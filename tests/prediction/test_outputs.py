import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tagseg.errors import DataError
from tagseg.masks.palette import shown_colours
from tagseg.prediction.lines import PredictionLine, write_predictions
from tagseg.prediction.outputs import overlay, pending_images, probabilities_npy
from tagseg.settings.predict import PredictOptions


def test_overlay_colours_all_but_the_background() -> None:
    image = Image.new("RGB", (3, 1), (100, 100, 100))
    shown = np.asarray(overlay(image, np.array([[0, 1, 2]], np.uint8), opacity=0.5)).tolist()
    expected = [[100, 100, 100], *[[round(50 + c / 2) for c in shown_colours(2)[i]] for i in (1, 2)]]
    assert shown == [expected]


def test_an_overlay_is_painted_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    image = Image.fromarray(draw.integers(0, 256, (20, 9, 3), np.uint8))
    mask, before = draw.integers(0, 4, (20, 9), np.uint8), np.array(image)
    once = np.asarray(overlay(image, mask))
    monkeypatch.setattr("tagseg.masks.overlay._ROWS", 7)
    assert (np.asarray(overlay(image, mask)) == once).all() and (np.asarray(image) == before).all()
    assert ((once == before).all(-1) | (mask > 0)).all() and (once != before).any()


def test_probabilities_are_read_without_unpickling() -> None:
    probabilities = np.random.default_rng(0).random((3, 4, 5), np.float32)
    found = np.load(io.BytesIO(probabilities_npy(probabilities)), allow_pickle=False)
    assert found.dtype == np.float16 and np.allclose(found, probabilities, atol=1e-3)


def test_existing_files_and_lines_decide_which_images_are_pending(tmp_path: Path) -> None:
    found = {name: tmp_path / f"in/{name}.jpg" for name in ("done", "no line", "no mask", "no overlay", "other")}
    out = tmp_path / "out"
    out.mkdir()
    for name in ("done", "no line", "no overlay", "other"):
        (out / f"{name}.png").write_bytes(b"")
    for name in ("done", "no line", "no mask", "other"):
        (out / f"{name}.overlay.jpg").write_bytes(b"")
    lines = [PredictionLine(str(found[name]), f"{name}.png") for name in ("done", "no mask", "no overlay")]
    lines.append(PredictionLine("elsewhere/other.jpg", "other.png"))
    older = PredictionLine("earlier.jpg", "earlier.png")
    write_predictions(out / "predictions.jsonl", [older, *lines])
    todo, kept = pending_images(found, out, PredictOptions(resume=True, overlays=True))
    assert set(todo) == {"no line", "no mask", "no overlay", "other"} and kept == [older, lines[0]]
    todo, kept = pending_images(found, out, PredictOptions(resume=True))
    assert set(todo) == {"no line", "no mask", "other"} and kept == [older, lines[0], lines[2]]
    assert pending_images(found, out, PredictOptions(force=True)) == (list(found), [older])
    with pytest.raises(
        DataError, match=r"done\.png: already exists \(4 of the masks do\); choose another --out, add --resume"
    ):
        pending_images(found, out, PredictOptions())


def test_an_image_is_never_overwritten(tmp_path: Path) -> None:
    image = tmp_path / "a.png"
    image.write_bytes(b"")
    for options in (PredictOptions(), PredictOptions(force=True), PredictOptions(resume=True)):
        with pytest.raises(DataError, match=r"a\.png: would overwrite the image .*a\.png; choose another --out"):
            pending_images({"a": image}, tmp_path, options)
    photo = tmp_path / "b.overlay.jpg"
    photo.write_bytes(b"")
    with pytest.raises(DataError, match=r"b\.overlay\.jpg: would overwrite"):
        pending_images({"b.overlay": photo, "b": tmp_path / "b.jpg"}, tmp_path, PredictOptions(overlays=True))


def test_masks_are_never_written_outside_their_folder_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/sub").symlink_to(tmp_path / "outside")
    with pytest.raises(DataError, match=r"out/sub: is a link to a folder outside --out .*out; choose another --out"):
        pending_images({"sub/a": tmp_path / "a.jpg"}, tmp_path / "out", PredictOptions())
    (tmp_path / "link").symlink_to(tmp_path / "outside")
    assert pending_images({"sub/a": tmp_path / "a.jpg"}, tmp_path / "link", PredictOptions())[0] == ["sub/a"]
