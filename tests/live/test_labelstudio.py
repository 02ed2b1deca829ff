"""The backend answers as Label Studio asks: over a real socket, with the bodies that Label Studio sends."""

import contextlib
import dataclasses
import http.client
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image

from tagseg.data.foreign import foreign_digest
from tagseg.data.images import read_mask_file
from tagseg.data.prepare import prepare
from tagseg.errors import WriteError
from tagseg.export.brush import decode_brush
from tagseg.export.labelstudio import mask_regions
from tagseg.importing.match import ImageNames
from tagseg.live.labelstudio import Backend, make_backend_app, open_backend
from tagseg.masks.mask_files import mask_file, write_mask
from tagseg.networks.segmenters import Segmenter
from tagseg.run.folder import Run
from tagseg.run.manifest import StageNote
from tagseg.segment.predictor import Predictor

TOKEN = "a-token-of-tests"
TASK = {"id": 7, "data": {"image": "/data/local-files/?d=images/dog/%C3%A4%20b.png"}}


@pytest.fixture
def backend(masked_run: Run, pixelwise: Segmenter, tmp_path: Path) -> Backend:
    prepared = prepare(masked_run)
    predictor = Predictor(pixelwise, ("background", "cat", "dog"), (1.0,), False, 0, window=64)
    return Backend(masked_run, prepared, ImageNames(prepared.dataset), tmp_path / "corrections", predictor, "tagseg-1")


def ask(port: int, path: str, body: Any = None, token: str = TOKEN) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    method = "GET" if body is None else "POST"
    connection.request(method, f"/{token}/{path}", None if body is None else json.dumps(body))
    with contextlib.closing(connection):
        response = connection.getresponse()
        content = response.read()
        return response.status, json.loads(content) if response.status in (200, 400) and content[:1] == b"{" else None


def test_it_predicts_and_keeps_corrections(
    backend: Backend, serving: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    started: list[str] = []
    monkeypatch.setattr(Backend, "_learn", lambda self: started.append(self.run.root.name))
    with serving(make_backend_app(backend, TOKEN)) as port:
        assert ask(port, "health") == (200, {"status": "UP", "model_class": "tagseg", "training": False})
        assert ask(port, "setup", {"project": "1.2", "schema": "<View/>"}) == (200, {"model_version": "tagseg-1"})
        assert ask(port, "health", token="another")[0] == 403
        # Nothing was corrected yet.
        status, answer = ask(port, "webhook", {"action": "START_TRAINING"})
        assert status == 400 and "nothing was corrected yet" in answer["error"]

        status, answer = ask(port, "predict", {"tasks": [TASK, {"id": 8, "data": {"image": "elsewhere.png"}}]})
        assert status == 200 and answer["results"][1]["result"] == []
        assert "task 8: its image is not one of the run's" in caplog.text
        expected = backend.predictor(backend.images.find("dog/ä b.png").image).mask  # type: ignore[union-attr]
        seen = np.zeros_like(expected)
        for region in answer["results"][0]["result"]:
            (name,) = region["value"]["brushlabels"]
            seen[decode_brush(region["value"]["rle"], expected.shape)] = ("", "cat", "dog").index(name)
        assert np.array_equal(seen, expected)
        assert answer["results"][0]["model_version"] == "tagseg-1"

        drawn = np.zeros((6, 8), np.uint8)
        drawn[2:5, 1:7] = 2
        annotation = {"id": 1, "result": mask_regions(drawn, ("cat", "dog"), parts=True)}
        event = {"action": "ANNOTATION_CREATED", "task": TASK, "annotation": annotation, "project": {"id": 1}}
        assert ask(port, "webhook", event) == (200, {"corrected": 1})
        assert np.array_equal(read_mask_file(mask_file(backend.corrections, "dog/ä b")), drawn)
        assert ask(port, "webhook", {"action": "PROJECT_UPDATED"}) == (200, {})

        assert ask(port, "webhook", {"action": "START_TRAINING"}) == (200, {"job": "tagseg-1"})
        assert backend.training is not None
        backend.training.join(10)
        assert started == [backend.run.root.name]
        assert ask(port, "predict", {"tasks": 3})[0] == 400
        assert ask(port, "predict", [1])[0] == 400


def test_it_learns_from_corrections_and_the_runs_own_masks(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = np.zeros((6, 8), np.uint8)
    drawn[0, 0] = 1
    annotation = {"id": 1, "result": mask_regions(drawn, ("cat", "dog"), parts=False)}
    assert backend.correct([TASK | {"annotations": [annotation]}]) == 1
    learned: list[Any] = []
    monkeypatch.setattr("tagseg.live.labelstudio.run_stage", lambda *args, **more: learned.append((args, more)))
    monkeypatch.setattr("tagseg.live.labelstudio.load", lambda *_: backend.predictor)
    monkeypatch.setattr("tagseg.live.labelstudio._version", lambda _: "tagseg-2")
    assert backend.train()
    assert backend.training is not None
    backend.training.join(20)
    (((_, stage, settings), more),) = learned
    labels = Path(settings.segment.labels)
    assert stage == "segment" and more == {"force": True} and backend.version == "tagseg-2"
    assert np.array_equal(read_mask_file(labels / "dog/ä b.png"), drawn)
    own = read_mask_file(mask_file(backend.run.masks, "cat/1"))
    assert np.array_equal(read_mask_file(labels / "cat/1.png"), own)


def test_a_rotated_photo_is_predicted_upright(backend: Backend) -> None:
    (found,) = backend.predict([{"data": {"image": "images/dog/turned.jpg", "name": "dog/turned.jpg"}}])
    with Image.open(backend.images.find("dog/turned.jpg").image) as image:  # type: ignore[union-attr]
        assert image.size == (8, 6)
    assert all((one["original_width"], one["original_height"]) == (6, 8) for one in found["result"])


def test_a_full_disk_while_it_learns_is_logged_in_words(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise WriteError("0.png: cannot be written: the disk is full")

    monkeypatch.setattr("tagseg.live.labelstudio._add_own_masks", full)
    backend._learn()
    (record,) = caplog.records
    assert record.getMessage().endswith("failed: 0.png: cannot be written: the disk is full") and not record.exc_info


@pytest.mark.parametrize("changed", [{"rounds": 2}, {"start": "classifier"}])
def test_it_learns_from_any_run_in_one_training_from_weights(
    changed: dict[str, Any], backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = backend.run.settings()
    other = dataclasses.replace(settings, segment=dataclasses.replace(settings.segment, **changed))
    backend.run.settings_file.write_text(other.to_toml())
    learned: list[Any] = []
    monkeypatch.setattr("tagseg.live.labelstudio._add_own_masks", lambda *_: None)
    monkeypatch.setattr("tagseg.live.labelstudio.run_stage", lambda *given, **_: learned.append(given[2]))
    monkeypatch.setattr("tagseg.live.labelstudio.load", lambda *_: backend.predictor)
    backend._learn()
    assert [(one.segment.rounds, one.segment.start) for one in learned] == [(1, "weights")]


def test_the_second_learning_keeps_the_masks_that_self_training_had_improved(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = backend.run.root.with_name("run.corrected")
    settings = backend.run.settings()
    learning = dataclasses.replace(settings.segment, labels=str(labels.resolve()))
    backend.run.settings_file.write_text(dataclasses.replace(settings, segment=learning).to_toml())
    improved, drawn = np.full((6, 8), 1, np.uint8), np.full((6, 8), 2, np.uint8)
    write_mask(mask_file(labels, "cat/1"), improved)
    write_mask(mask_file(backend.corrections, "dog/ä b"), drawn)
    monkeypatch.setattr("tagseg.live.labelstudio.run_stage", lambda *_, **__: None)
    monkeypatch.setattr("tagseg.live.labelstudio.load", lambda *_: backend.predictor)
    backend._learn()
    assert np.array_equal(read_mask_file(mask_file(labels, "cat/1")), improved)
    assert np.array_equal(read_mask_file(mask_file(labels, "dog/ä b")), drawn)


def test_learning_that_was_killed_goes_on_when_the_backend_opens(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, labels = backend.run, backend.run.root.with_name("run.corrected")
    settings = run.settings()
    learning = dataclasses.replace(settings.segment, labels=str(labels.resolve()))
    run.settings_file.write_text(dataclasses.replace(settings, segment=learning).to_toml())
    run.store(run.manifest().without_stages(["segment"]))
    (labels / "dog").mkdir(parents=True)
    abandoned = labels / f"dog/.writing-{'0' * 16}.png"
    abandoned.write_bytes(b"half")
    learned: list[Any] = []

    def learn(*given: Any, **more: Any) -> None:
        learned.append((given, more))
        digest = foreign_digest(labels, backend.prepared.dataset.split("train"))
        learnt = run.manifest().with_stage("segment", StageNote())
        run.store(msgspec.structs.replace(learnt, foreign={"segment": digest}))

    monkeypatch.setattr("tagseg.live.labelstudio.run_stage", learn)
    monkeypatch.setattr("tagseg.live.labelstudio.load", lambda *_: backend.predictor)
    monkeypatch.setattr("tagseg.live.labelstudio._version", lambda _: "tagseg-2")
    assert open_backend(run.root).version == "tagseg-2" and not abandoned.exists()
    assert learned == [((run.root, "segment"), {"force": False})]
    open_backend(run.root)
    assert len(learned) == 1, "nothing has changed"
    # It was killed after more masks were corrected, before it began to learn from them.
    write_mask(mask_file(labels, "cat/1"), np.full((6, 8), 2, np.uint8))
    open_backend(run.root)
    assert learned[1:] == [((run.root, "segment"), {"force": True})]
