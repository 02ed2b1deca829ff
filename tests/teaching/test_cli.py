"""tagseg teach on the command line: the terminal list, export and import."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tagseg.run.folder import Run
from tagseg.run.taught import answers
from tagseg.teaching.apply import is_applied

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
