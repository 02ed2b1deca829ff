"""A machine-learning backend for Label Studio: predicts brush masks, and learns from corrected annotations.

It answers the requests that Label Studio documents for such backends: /health, /setup, /predict, /webhook and /train.
It is served to this machine only, below a secret path, because whoever can reach it could read masks and start
training.
"""

import dataclasses
import functools
import hashlib
import logging
import secrets
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from tagseg.data.prepare import DataChanged, Prepared, prepare
from tagseg.data.records import Sample
from tagseg.data.true_masks import load_mask
from tagseg.errors import DataError
from tagseg.export.labelstudio import mask_regions
from tagseg.importing.labelstudio import read_tasks
from tagseg.importing.match import ImageNames
from tagseg.masks.mask_files import mask_file, write_classes, write_mask
from tagseg.pipeline import run_stage
from tagseg.review.server import listen, serve_page
from tagseg.run.folder import Run
from tagseg.run.lock import hold_lock
from tagseg.segment.load import load
from tagseg.segment.predictor import Predictor
from tagseg.system.changes import is_unsettled
from tagseg.system.files import remove_abandoned
from tagseg.system.records import parse_json

log = logging.getLogger(__name__)

_LARGEST_BODY = 1 << 28
"""Most bytes in a request: a task with brush regions may have megabytes."""


@dataclass
class Backend:
    """What the backend knows.

    run, prepared, images: the run, its data set, and its images by name. corrections: the folder of corrected masks.
    predictor, version: the network that predicts, and its name in Label Studio. training: the thread that trains.
    """

    run: Run
    prepared: Prepared
    images: ImageNames
    corrections: Path
    predictor: Predictor
    version: str
    device: str = "auto"
    training: threading.Thread | None = None
    writing: threading.Lock = field(default_factory=threading.Lock)

    def predict(self, tasks: list[Any]) -> list[dict[str, Any]]:
        """Return a prediction for each task, without a region where the task's image is not one of the run's."""
        return [self._prediction(task) for task in tasks]

    def _prediction(self, task: Any) -> dict[str, Any]:
        sample = self._sample(task)
        if sample is None:
            log.warning("task %s: its image is not one of the run's; nothing is predicted", _number(task))
            return {"result": [], "model_version": self.version}
        found = self.predictor(sample.image)
        present = [found.confidence[i] for i in range(1, len(found.classes)) if found.area[i]]
        result = mask_regions(found.mask, found.classes[1:], parts=False)
        return {"result": result, "score": min(present, default=0.0), "model_version": self.version}

    def correct(self, tasks: list[Any]) -> int:
        """Keep the corrected masks of annotated tasks; return how many there are of this request."""
        tasks = [task for task in tasks if isinstance(task, dict)]
        kept = 0
        with self.writing:
            write_classes(self.corrections, self.prepared.dataset.classes)
            for one in read_tasks(self.run.root, tasks, self.prepared.dataset):
                sample = next((found for name in one.names if (found := self.images.find(name)) is not None), None)
                if sample is None or sample.split != "train":
                    log.warning("%s: an annotation of %s, which is not a training image", self.run.root, one.names[0])
                    continue
                mask = one.draw(sample, self.prepared.sizes[sample.id])
                write_mask(mask_file(self.corrections, sample.id), mask)
                kept += 1
        return kept

    def train(self) -> bool:
        """Start to learn from the corrected masks and the run's own ones; return whether this is happening now.

        Raises:
            DataError: when nothing was corrected yet.
        """
        if self.training is not None and self.training.is_alive():
            return True
        if not any(self.corrections.rglob("*.png")):
            raise DataError(f"{self.run.root}: nothing was corrected yet; submit an annotation in Label Studio first")
        self.training = threading.Thread(target=self._learn, daemon=True)
        self.training.start()
        return True

    def _learn(self) -> None:
        labels = _labels(self.run)
        try:
            with self.writing:
                _add_own_masks(self.run, self.prepared, self.corrections, labels)
            settings = self.run.settings()
            segment = dataclasses.replace(settings.segment, labels=str(labels.resolve()), rounds=1, start="weights")
            run_stage(self.run.root, "segment", dataclasses.replace(settings, segment=segment), force=True)
            self.predictor, self.version = load(self.run.root, self.device), _version(self.run)
            log.info("learned from %d corrected masks: %s", len(list(self.corrections.rglob("*.png"))), self.version)
        except (ValueError, OSError) as error:  # the user's to mend: the message says how
            log.error("learning from corrections failed: %s", error)
        except Exception as error:  # any error at all: the thread has nobody to tell but the log
            log.exception("learning from corrections failed: %s", error)

    def _sample(self, task: Any) -> Sample | None:
        data = task.get("data") if isinstance(task, dict) else None
        names = [value for value in data.values() if isinstance(value, str)] if isinstance(data, dict) else []
        return next((found for name in names if (found := self.images.find(name)) is not None), None)


def open_backend(run: str | Path, corrections: str | Path | None = None, device: str = "auto") -> Backend:
    """Return the backend of a run with a trained segmenter; corrected masks go to `corrections`, by default next to the
    run. If a process was killed while it learned from corrections, that is done first.

    Raises:
        RunError: when the run has no segmentation network.
    """
    opened = Run(Path(run))
    folder = Path(corrections) if corrections else opened.root.with_name(f"{opened.root.name}.labelstudio")
    for place in (folder, _labels(opened)):
        remove_abandoned(place, below=True)
    if is_unsettled(opened.root):
        with hold_lock(opened.root):  # finishes the change of a killed process
            pass
    if _was_interrupted(opened):
        log.info("%s: learning from corrections was interrupted and goes on", opened.root)
        run_stage(opened.root, "segment", force=opened.done("segment"))
    predictor, prepared = load(opened.root, device), prepare(opened)
    return Backend(opened, prepared, ImageNames(prepared.dataset), folder, predictor, _version(opened), device)


def serve_labelstudio(backend: Backend, port: int = 0, ready: Callable[[str], None] = lambda address: None) -> None:
    """Serve a backend to this machine, until interrupted; `ready` is called with the address to enter in Label Studio.

    Raises:
        ValueError: when the port cannot be used.
    """
    with listen(port) as listener:
        serve_page(listener, functools.partial(make_backend_app, backend), lambda at: ready(at.removesuffix("/")))


def make_backend_app(backend: Backend, token: str) -> Starlette:
    """Return the app that answers Label Studio below `/TOKEN`; any other path is refused (403)."""

    def allowed(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> Callable[[Request], Awaitable[Response]]:
        async def respond(request: Request) -> Response:
            if not secrets.compare_digest(
                request.path_params["token"].encode("utf-8", "surrogatepass"), token.encode()
            ):
                raise HTTPException(
                    403, "the address has no valid token: enter the one that tagseg labelstudio printed"
                )
            body = await _read_json(request) if request.method == "POST" else {}
            try:
                return JSONResponse(await run_in_threadpool(answer, body))
            except ValueError as error:
                log.warning("%s", error)
                return JSONResponse({"error": str(error)}, 400)

        return respond

    def setup(body: dict[str, Any]) -> dict[str, Any]:
        return {"model_version": backend.version}

    def predict(body: dict[str, Any]) -> dict[str, Any]:
        return {"results": backend.predict(_listed(body, "tasks")), "model_version": backend.version}

    def train(body: dict[str, Any]) -> dict[str, Any]:
        if tasks := _listed(body, "annotations"):
            backend.correct(tasks)
        return {"job": backend.version if backend.train() else None}

    def webhook(body: dict[str, Any]) -> dict[str, Any]:
        action, task = body.get("action"), body.get("task")
        if action == "START_TRAINING":
            return train({})
        if action in ("ANNOTATION_CREATED", "ANNOTATION_UPDATED") and isinstance(task, dict):
            return {"corrected": backend.correct([task | {"annotations": [body.get("annotation")]}])}
        return {}

    def health(body: dict[str, Any]) -> dict[str, Any]:
        busy = backend.training is not None and backend.training.is_alive()
        return {"status": "UP", "model_class": "tagseg", "training": busy}

    routes = [
        Route("/", allowed(health)),
        Route("/health", allowed(health)),
        Route("/versions", allowed(lambda body: {"versions": [backend.version]}), methods=["GET", "POST"]),
        Route("/validate", allowed(lambda body: {"status": "ok"}), methods=["POST"]),
        Route("/setup", allowed(setup), methods=["POST"]),
        Route("/predict", allowed(predict), methods=["POST"]),
        Route("/train", allowed(train), methods=["POST"]),
        Route("/webhook", allowed(webhook), methods=["POST"]),
    ]
    return Starlette(routes=[Mount("/{token}", routes=routes)])


def _labels(run: Run) -> Path:
    """Return the folder of the masks that a run learns from once some were corrected."""
    return run.root.with_name(f"{run.root.name}.corrected")


def _learns_from_corrections(run: Run) -> bool:
    return run.settings().segment.labels == str(_labels(run).resolve())


def _was_interrupted(run: Run) -> bool:
    """Tell whether a process was killed between the moment it wrote masks to learn from and the end of learning."""
    if not run.manifest_file.exists() or not _learns_from_corrections(run):
        return False
    try:
        prepare(run)
    except DataChanged as change:
        return change.stage == "segment"
    return not run.done("segment")


def _add_own_masks(run: Run, prepared: Prepared, corrections: Path, labels: Path) -> None:
    """Write the corrected masks, and the run's own ones of all other training images, to a folder to learn from.

    A run that learns from this folder keeps what is there: its masks improved by self-training ended with that.
    """
    kept = _learns_from_corrections(run)
    dataset = dataclasses.replace(prepared.dataset, mask_ids=None)
    write_classes(labels, dataset.classes)
    own = run.final().masks
    for sample in dataset.split("train"):
        corrected = mask_file(corrections, sample.id)
        source = corrected if corrected.exists() else mask_file(own, sample.id)
        if source.exists() and not (kept and source != corrected and mask_file(labels, sample.id).exists()):
            mask = load_mask(dataclasses.replace(sample, mask=source), dataset, prepared.sizes[sample.id])
            write_mask(mask_file(labels, sample.id), mask)


def _version(run: Run) -> str:
    content = (run.segmenter / "network.safetensors").read_bytes()
    return f"tagseg-{hashlib.sha256(content).hexdigest()[:12]}"


def _listed(body: dict[str, Any], key: str) -> list[Any]:
    found = body.get(key, [])
    if not isinstance(found, list):
        raise DataError(f"a request has no list {key!r}, expected one as Label Studio sends it")
    return found


def _number(task: Any) -> Any:
    return task.get("id") if isinstance(task, dict) else None


async def _read_json(request: Request) -> dict[str, Any]:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > _LARGEST_BODY:
            raise HTTPException(413, f"expected a body of at most {_LARGEST_BODY} bytes")
    try:
        found = parse_json(bytes(body)) if body else {}
    except ValueError as error:
        raise HTTPException(400, "expected JSON") from error
    if not isinstance(found, dict):
        raise HTTPException(400, "expected a JSON object")
    return found
