"""A damaged or foreign JSON file is one error that names it, at every command that reads it; never a traceback."""

import json
import shutil
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tagseg.data.prepare import prepare
from tagseg.evaluate.gain import calibration_images
from tagseg.evaluate.quality import read_quality
from tagseg.export.card import model_card
from tagseg.export.model import describe
from tagseg.report.atlas import render_atlas
from tagseg.report.page import render_report
from tagseg.review.queue import read_queue
from tagseg.run.doctor import examine
from tagseg.run.folder import Run
from tagseg.segment.load import load

ARCHIVE = Path(__file__).parent / "fixtures" / "run_of_0_1.zip"

READERS: dict[str, Callable[[Run], object]] = {
    "fit": prepare,
    "review": read_queue,
    "worst": read_quality,
    "report": render_report,
    "atlas": lambda run: render_atlas(run, (), 1, "cpu"),
    "predict": lambda run: load(run.root, "cpu"),
    "calibrate": calibration_images,
    "export-model": lambda run: model_card(run, describe(run), run.settings().to_dict()),
    "doctor": lambda run: examine(run.root),
}
"""What the commands do that reads files of a run, without what takes long."""

FILES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "manifest.json": (("data", "stages"), tuple(READERS)),
    "data.json": (("samples", "classes", "split", "image"), ("fit", "review", "report", "export-model")),
    "evaluation.json": (("classes", "miou", "iou"), ("report", "export-model")),
    "network/history.jsonl": (("epoch",), ("report",)),
    "segmenter/history.jsonl": (("epoch",), ("report", "export-model")),
    "segmenter/network.json": (("classes",), ("predict",)),
    "quality.jsonl": (("score",), ("review", "worst")),
}
"""Files of a run, keys that they must have, and the commands that read them."""

CONTENTS = ("", "{", "[]", "null", "{}", "[" * 5000, '{"a": ' + "9" * 5000 + "}", "\ufeff{}", '{"a": NaN}')
VALUES = (None, True, -1, 10**30, "\ud800", [[]])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a finished run."""
    folder = tmp_path_factory.mktemp("damaged")
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(folder)
    for file in (*folder.glob("run/*.json"), *folder.glob("run/*.toml")):
        file.write_text(file.read_text(encoding="utf-8").replace("@FOLDER@", str(folder)), encoding="utf-8")
    shutil.rmtree(folder / "run/review")
    settings = folder / "run/settings.toml"
    settings.write_text(settings.read_text().replace("examples = 24", "examples = 1"))
    return Run(folder / "run")


@pytest.fixture(autouse=True)
def whole(run: Run) -> Iterator[None]:
    """Restore the files that a test damages."""
    before = {name: (run.root / name).read_bytes() for name in FILES}
    yield
    for name, content in before.items():
        (run.root / name).write_bytes(content)


def replaced(value: object, key: str, new: object) -> object:
    """Return JSON values with every value of a key replaced."""
    if isinstance(value, dict):
        return {name: new if name == key else replaced(part, key, new) for name, part in value.items()}
    return [replaced(part, key, new) for part in value] if isinstance(value, list) else value


def without(value: object, key: str) -> object:
    """Return JSON values without a key."""
    if isinstance(value, dict):
        return {name: without(part, key) for name, part in value.items() if name != key}
    return [without(part, key) for part in value] if isinstance(value, list) else value


def mutations(name: str, valid: str) -> list[str]:
    """Return damaged and foreign contents of a file."""
    lines = [json.loads(line) for line in valid.splitlines()] if name.endswith("l") else [json.loads(valid)]
    found = [*CONTENTS, valid[: len(valid) // 2], valid.replace('"', "'")]
    for key in FILES[name][0]:
        for line_of in (
            partial(without, key=key),
            *(partial(replaced, key=key, new=new) for new in VALUES),
        ):
            found.append("\n".join(json.dumps(line_of(line)) for line in lines) + "\n")
    return found


@pytest.mark.parametrize("name", FILES)
def test_every_command_names_a_damaged_file(name: str, run: Run) -> None:
    file = run.root / name
    valid = file.read_bytes()
    refused = 0
    for content in mutations(name, valid.decode()):
        file.write_bytes(content.encode("utf-8", "surrogatepass"))
        for command in FILES[name][1]:
            try:
                READERS[command](run)
            except ValueError as error:
                refused += 1
                assert str(run.root) in str(error) or file.name in str(error), f"{command}: {error}"
                assert len(str(error)) < 2000
    file.write_bytes(valid)
    assert refused > 5, "most of this must be refused by some command"
    for command in FILES[name][1]:
        READERS[command](run)


@pytest.mark.parametrize(
    ("name", "content", "command", "message"),
    [
        ("data.json", '{"classes": [], "samples": [{"id": "a"}]}', "review", r"data\.json: damaged \("),
        ("data.json", "[]", "review", r"data\.json: damaged \(expected an object, found a list\); delete it"),
        ("manifest.json", '{"data": "x", "stages": {"train": 3}}', "report",
         r"manifest\.json: damaged \(stages\[\.\.\.\]: expected an object, found a whole number\); start again"),
        ("manifest.json", "[]", "atlas", r"manifest\.json: damaged \(expected an object, found a list\); start again"),
    ],
)  # fmt: skip
def test_the_message_has_file_place_and_remedy(name: str, content: str, command: str, message: str, run: Run) -> None:
    file = run.root / name
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        READERS[command](run)


def test_a_manifest_without_version_and_seconds_is_shown_all_the_same(run: Run) -> None:
    valid = run.manifest_file.read_bytes()
    bare = without(without(json.loads(valid), "tagseg"), "seconds")
    run.manifest_file.write_text(json.dumps(bare))
    page = render_report(run)
    assert "not known" in page and "(unknown)" in page
    assert "(unknown)" in str(READERS["atlas"](run))
