"""Runs to review, their server over a real socket, and the page in a real browser."""

import contextlib
import http.client
import json
from dataclasses import dataclass
from urllib.parse import urlencode

import msgspec
import numpy as np
import pytest
from PIL import Image

from tagseg.data.records import Sample
from tagseg.evaluate.quality import ClassQuality, ImageQuality, write_quality
from tagseg.masks.make import make_mask
from tagseg.masks.map_files import map_file, write_maps
from tagseg.review.queue import read_queue
from tagseg.review.server import make_app
from tagseg.run.folder import Run
from tagseg.settings.settings import Settings

HEIGHT, WIDTH = 24, 32
TOKEN = "a-token-of-tests"
SETTINGS = Settings.from_dict(
    {"workers": 0, "masks": {"background": "threshold"}, "crf": {"steps": 0}, "segment": {"rounds": 1}}
)
SCORES = {"img2": 0.1, "img0": 0.4, "img1": 0.9}


def build_run(folder, names=("img0", "img1", "img2", "img3"), classes=("cat", "dog"), scores=SCORES):
    """Return a run with masks; its images are tagged with both classes.

    The first class is on the left, the second on the right; the probability of each falls towards the middle.
    """
    (folder / "data").mkdir(parents=True)
    run = Run(folder / "run")
    run.root.mkdir()
    run.settings_file.write_text(SETTINGS.to_toml())
    stages = {name: {"seconds": 1.0, "peak_mb": 1, "files": {}} for name in ("train", "localise", "masks")}
    run.manifest_file.write_text(
        json.dumps({"tagseg": "0.1.0", "data": str(folder / "data"), "stages": stages}), encoding="utf-8"
    )
    records = []
    for number, name in enumerate(names):
        path = folder / "data" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT), (60 + 20 * number, 120, 90)).save(path)
        sample = Sample(name, path, (1, 2))
        left = np.tile(np.clip(np.linspace(1.4, -0.6, WIDTH), 0, 1), (HEIGHT, 1))
        write_maps(map_file(run, name), np.stack([left, left[:, ::-1]]), sample.tags)
        make_mask(run, sample, (HEIGHT, WIDTH), SETTINGS)
        records.append(record_of(name, path))
    write_data(run, records, classes)
    judge(run, scores)
    return run


def judge(run, scores):
    """Write scores of images; those of the second class are half as high."""
    judged = ((one, score, {1: score, 2: score / 2}) for one, score in scores.items())
    fine = ClassQuality(0.0, 0.9, 0.9, 0.1, 0.2)
    write_quality(
        run,
        (
            ImageQuality(
                one, score, {key: msgspec.structs.replace(fine, score=value) for key, value in classes.items()}, {}
            )
            for one, score, classes in judged
        ),
    )


def record_of(name, path, tags=(1, 2)):
    size = [HEIGHT, WIDTH]
    values = {"id": name, "tags": list(tags), "split": "train", "image": str(path), "size": size}
    return {**values, "mask": False, "scored": True}


def write_data(run, records, classes=("cat", "dog")):
    about = {"layout": "folder", "classes": list(classes), "notes": [], "broken": [], "samples": records}
    run.data_file.write_text(json.dumps(about, ensure_ascii=False), encoding="utf-8")


@pytest.fixture
def run(tmp_path):
    return build_run(tmp_path)


@dataclass(frozen=True)
class Served:
    """A running server, with functions that send requests and return status, headers and body."""

    port: int

    @property
    def address(self):
        return f"http://127.0.0.1:{self.port}/{TOKEN}/"

    def ask(self, path, token=TOKEN, method="GET", body=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            headers = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, f"/{token}/{path}" if token else path, body, headers)
            response = connection.getresponse()
            return response.status, dict(response.getheaders()), response.read()

    def list(self, **values):
        status, _, body = self.ask(f"list?{urlencode(values)}")
        assert status == 200, body
        return json.loads(body)

    def decide(self, sample_id, verdict="open", off=(), threshold=0.5):
        body = json.dumps({"id": sample_id, "verdict": verdict, "off": list(off), "threshold": threshold})
        return self.post(body)

    def post(self, body, path="decide", **headers):
        usual = {"content-type": "application/json", "origin": f"http://127.0.0.1:{self.port}"}
        status, _, answer = self.ask(path, method="POST", body=body, **{**usual, **headers})
        return status, json.loads(answer)


@pytest.fixture
def serve(serving):
    """Return a function that serves a run's page until the test and its browser end."""
    with contextlib.ExitStack() as stack:
        yield lambda run: Served(stack.enter_context(serving(make_app(read_queue(run), TOKEN))))


@pytest.fixture
def served(run, serve):
    return serve(run)


@pytest.fixture
def open_page(chromium, serve):
    """Return a function that opens an address; at the end, check for errors and for requests to other addresses."""
    contexts, wrong, asked, allowed = [], [], set(), set()

    def open_page(address, forgiving=False):
        context = chromium.new_context(viewport={"width": 1200, "height": 800})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        if not forgiving:
            page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
            page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: asked.add(request.url))
        allowed.add(address)
        page.goto(address)
        page.wait_for_selector("#layers[aria-busy=false]")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []
    schemes = (*allowed, *(f"blob:{address.split('/', 3)[0]}//" for address in allowed), "data:")
    assert [url for url in asked if not url.startswith(schemes)] == []
