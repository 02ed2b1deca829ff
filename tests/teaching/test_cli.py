"""tagseg teach on the command line: the terminal list, export and import."""

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tagseg.data.images import read_mask_file
from tagseg.pipeline import fit_until
from tagseg.run.folder import Run
from tagseg.run.taught import answers, remove_answer
from tagseg.settings.segment import SegmentSettings
from tagseg.teaching.apply import is_applied

from .conftest import SETTINGS

Call = Callable[..., tuple[int, str, str]]


def test_the_terminal_asks_and_the_answers_travel(
    run: Run, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("b\nnonsense\n1\nu\nm\nq\n"))
    status, out, _ = call("teach", run.root, "--terminal")
    assert status == 0 and "In images of" in out and "masks changed, by" in out and "Undone" in out
    assert "must be a class (blue, red)" in out and (run.review / "question.jpg").stat().st_size > 1000
    assert [one.meaning for one in answers(run).values()] == ["background", "mixed"] and is_applied(run)
    file = tmp_path / "answers.json"
    status, out, _ = call("teach", run.root, "--export", file)
    assert status == 0 and out.startswith("2 answers")
    before = list(answers(run).values())
    run.taught_file.unlink()
    assert call("teach", run.root, "--import", file, "--apply")[0] == 0
    assert list(answers(run).values()) == before and is_applied(run)
    assert "0 new answers" in call("teach", run.root, "--import", file)[1]
    values = json.loads(file.read_text())
    values["answers"][0]["places"][0]["image"] = "elsewhere"
    file.write_text(json.dumps(values))
    status, _, error = call("teach", run.root, "--import", file)
    assert status == 2 and "found 'elsewhere'" in error and list(answers(run).values()) == before


def test_the_masks_of_self_training_are_those_by_the_answers_until_it_has_followed(
    run: Run, discs: Path, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    segment = SegmentSettings(
        decoder_channels=8, epochs=1, batch=4, crop=32, max_side=64, predict_scales=(1.0,), rounds=2
    )
    settings = dataclasses.replace(SETTINGS, segment=segment)
    fit_until(discs, run.root, "segment", settings, force=True)
    assert run.final() == run.round(1) and not run.is_outdated()
    monkeypatch.setattr("sys.stdin", io.StringIO("b\nq\n"))
    status, out, _ = call("teach", run.root, "--terminal")
    assert status == 0 and "until it has learned from them" in out
    assert f"Next: tagseg fit {discs} --out {run.root}" in " ".join(out.split())
    assert run.final() == run and run.is_outdated()
    name = next(path.name for path in run.masks.glob("*.png"))
    assert call("export", run.root, "--to", "voc", "--out", run.root.parent / "out")[0] == 0
    exported = next((run.root.parent / "out").rglob(name))
    assert np.array_equal(read_mask_file(exported), read_mask_file(run.masks / name))
    fit_until(discs, run.root, "segment")
    assert run.final() == run.round(1) and not run.is_outdated()
    remove_answer(run, 1)
    assert call("teach", run.root, "--apply")[0] == 0 and run.final() == run
