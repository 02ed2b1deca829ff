"""A real Label Studio on this machine: import, view, predict, correct by its API, export, import: the pixels are equal.

It takes a minute or two, and is skipped without its environment (`make foreign`).
"""

import contextlib
import json
import os
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tagseg.data.images import read_mask_file
from tagseg.data.prepare import prepare
from tagseg.export.formats import export
from tagseg.importing.import_masks import import_masks
from tagseg.importing.match import ImageNames
from tagseg.live.labelstudio import Backend, make_backend_app
from tagseg.masks.mask_files import mask_file
from tagseg.networks.segmenters import Segmenter
from tagseg.review.server import listen, make_server
from tagseg.run.folder import Run
from tagseg.segment.predictor import Predictor

from .environments import python_of

LONGEST_START_S = 1500
KEY = "0123456789abcdef0123456789abcdef01234567"
NAMES = ("cat/1", "cat/2.jpg", "cat/2.png", "dog/1", "dog/ä b", "dog/turned")


@contextlib.contextmanager
def label_studio(folder: Path, documents: Path) -> Iterator[str]:
    """Start Label Studio on a free port with its data in `folder`, and yield its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
        "LABEL_STUDIO_BASE_DATA_DIR": str(folder), "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED": "true",
        "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT": str(documents), "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
        "COLLECT_ANALYTICS": "False", "LATEST_VERSION_CHECK": "False", "SENTRY_DSN": "", "FRONTEND_SENTRY_DSN": "",
        "ML_BLOCK_LOCAL_IP": "false", "SSRF_PROTECTION_ENABLED": "false",
    }  # fmt: skip
    folder.mkdir()
    command = [
        python_of("labelstudio").with_name("label-studio"), "start", "--no-browser", "--port", str(port),
        "--internal-host", "127.0.0.1", "--username", "a@example.com", "--password", "secret-word-1",
        "--user-token", KEY, "--log-level", "WARNING",
    ]  # fmt: skip
    with (folder / "log.txt").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder)
    address, began = f"http://localhost:{port}", time.monotonic()
    try:
        # Its first start makes a data base: a minute, or several on a busy machine.
        while (lasted := time.monotonic() - began) < LONGEST_START_S:
            assert server.poll() is None, (folder / "log.txt").read_text()[-3000:]
            with contextlib.suppress(OSError, AssertionError):
                ask(address, "/health")
                break
            time.sleep(1)
        assert lasted < LONGEST_START_S, f"Label Studio did not start in {lasted:.0f} s"
        yield address
    finally:
        server.terminate()
        server.wait(30)


def ask(address: str, path: str, body: Any = None) -> bytes:
    """Return the answer to a request; with a body it is a POST."""
    content = None if body is None else json.dumps(body).encode()
    headers = {"Authorization": f"Token {KEY}", "Content-Type": "application/json"}
    try:
        with urllib.request.urlopen(urllib.request.Request(address + path, content, headers), timeout=120) as answer:
            found: bytes = answer.read()
            return found
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{path}: {error.code} {error.read()[:500]!r}") from error


@contextlib.contextmanager
def served(backend: Backend) -> Iterator[str]:
    """Serve a backend in a thread, and yield its address."""
    with listen(0) as listener:
        server = make_server(make_backend_app(backend, "token"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/token"
        finally:
            server.should_exit = True
            thread.join(20)


def test_masks_go_through_a_real_label_studio_unchanged(
    masked_run: Run, pixelwise: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not python_of("labelstudio").exists():
        pytest.skip("no environment with label-studio: make foreign builds it")
    monkeypatch.setattr(Backend, "_learn", lambda self: None)
    out = tmp_path / "out"
    export(masked_run.root, "labelstudio", out)
    prepared = prepare(masked_run)
    predictor = Predictor(pixelwise, ("background", "cat", "dog"), (1.0,), False, 0, window=64)
    backend = Backend(masked_run, prepared, ImageNames(prepared.dataset), tmp_path / "kept", predictor, "tagseg-1")
    with label_studio(tmp_path / "studio", out) as address, served(backend) as model:

        def get(path: str, body: Any = None) -> Any:
            return json.loads(ask(address, path, body))

        project = get("/api/projects", {"title": "masks", "label_config": (out / "interface.xml").read_text()})["id"]
        storage = {"project": project, "path": str(out / "images"), "title": "images", "use_blob_urls": False}
        get("/api/storages/localfiles", storage)
        get(f"/api/projects/{project}/import", json.loads((out / "tasks.json").read_text()))
        tasks = get(f"/api/tasks?project={project}&fields=all")["tasks"]
        assert len(tasks) == len(NAMES)
        # The default addresses show the images.
        for task in tasks:
            assert ask(address, task["data"]["image"]) == (out / "images" / task["data"]["name"]).read_bytes()

        connected = get("/api/ml", {"project": project, "url": model, "title": "tagseg"})
        assert connected["state"] == "CO" and connected["model_version"] == "tagseg-1"
        predicted = get(f"/api/ml/{connected['id']}/predict/test?random=true", {})["response"]
        assert [one["model_version"] for one in predicted] == ["tagseg-1"]  # of a random task

        for task in tasks:
            (prediction,) = get(f"/api/tasks/{task['id']}")["predictions"][:1]
            get(f"/api/tasks/{task['id']}/annotations", {"result": prediction["result"]})
        ask(address, f"/api/ml/{connected['id']}/train", {})
        assert backend.training is not None
        exported = ask(address, f"/api/projects/{project}/export?exportType=JSON")
    (tmp_path / "project.json").write_bytes(exported)
    import_masks(tmp_path / "project.json", masked_run.root, tmp_path / "back")
    for name in NAMES:
        sent = read_mask_file(mask_file(masked_run.decided_masks, name))
        # Corrected masks arrive twice: by the export, and as Label Studio submitted them.
        for folder in (tmp_path / "back", tmp_path / "kept"):
            assert np.array_equal(read_mask_file(mask_file(folder, name)), sent), (folder, name)
