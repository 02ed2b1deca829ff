"""Measure how fast the review page opens and turns pages, and its memory, with 50,000 images.

    python -m benchmarks.scale.review --images 50000

The images are 200 drawn ones of 500 x 375 pixels under many names. The server is a separate process; it gets the
requests that a browser sends when the page opens, when a page of the list is turned, and for a decision.
"""

import argparse
import contextlib
import http.client
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
from benchmarks.harness import record
from PIL import Image

from tagseg.evaluate.quality import ImageQuality, write_quality
from tagseg.masks.mask_files import mask_file, write_mask
from tagseg.run.folder import Run
from tagseg.settings.settings import Settings
from tagseg.system.files import write_atomically

SIZE = (375, 500)
DRAWN = 200


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=50_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(Path(folder), options.images)
        figures: dict[str, Any] = {"images": options.images}
        with serve(run, figures) as ask:
            figures |= measure(ask, options.images)
    rows = ["| figure | |", "|---|---:|", *(f"| {name} | {value:g} |" for name, value in figures.items())]
    rows += ["", "Seconds, but for images and peak_mb; open: the page, its list and the first image with its mask."]
    print(record("review", [0], figures, "\n".join(rows)).read_text())


def make_run(folder: Path, images: int) -> Run:
    """Return a run with that many images, and masks for the first 200."""
    run = Run(folder / "run")
    (folder / "data").mkdir()
    for i in range(DRAWN):
        pixels = np.random.default_rng(i).integers(0, 256, (12, 16, 3), np.uint8)
        Image.fromarray(pixels).resize(SIZE[::-1], Image.Resampling.BICUBIC).save(folder / "data" / f"{i}.jpg")
    samples = []
    for i in range(images):
        image = str(folder / "data" / f"{i % DRAWN}.jpg")
        values = {"id": f"set/{i:06}", "tags": [1 + i % 80], "split": "train", "image": image, "size": SIZE}
        samples.append({**values, "mask": False, "scored": True})
    for sample in samples[:DRAWN]:
        mask = np.full(SIZE, sample["tags"][0], np.uint8)
        for masks in (run.masks, run.decided_masks):
            write_mask(mask_file(masks, sample["id"]), mask)
    classes = [f"class {i}" for i in range(80)]
    about = {"layout": "folder", "classes": classes, "notes": [], "broken": [], "samples": samples}
    write_atomically(run.data_file, json.dumps(about, indent=1))
    write_atomically(run.settings_file, Settings().to_toml())
    manifest = {"tagseg": "", "data": str(folder / "data"), "stages": {"masks": {}}}
    write_atomically(run.manifest_file, json.dumps(manifest))
    write_quality(run, (ImageQuality(sample["id"], i / images, {}, {}) for i, sample in enumerate(samples)))
    return run


@contextlib.contextmanager
def serve(run: Run, figures: dict[str, Any]) -> Iterator[Any]:
    """Start the server and yield a function that sends requests; record its start in seconds and its peak memory."""
    started = time.monotonic()
    command = [sys.executable, "-m", "tagseg", "review", str(run.root), "--no-browser"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"COLUMNS": "200"})
    assert process.stdout is not None
    address = urlsplit(process.stdout.readline().split()[1])
    figures["start"] = round(time.monotonic() - started, 2)
    connection = http.client.HTTPConnection("127.0.0.1", address.port)

    def ask(path: str, body: str | None = None) -> bytes:
        headers = {"origin": f"http://{address.netloc}", "content-type": "application/json"} if body else {}
        connection.request("POST" if body else "GET", address.path + path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        assert answer.status == 200, content
        return content

    yield ask
    status = Path(f"/proc/{process.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+)", status)
    figures["peak_mb"] = round(int(found[1]) / 1024) if found else 0
    process.terminate()  # a process in the background may ignore SIGINT
    process.wait()


def measure(ask: Any, images: int) -> dict[str, float]:
    """Return the seconds that each request takes."""

    def seconds(*paths: str, body: str | None = None) -> float:
        started = time.monotonic()
        for path in paths:
            ask(path, body)
        return round(time.monotonic() - started, 3)

    first = quote("set/000000")
    page = json.loads(ask(f"list?verdict=all&from={images // 2}"))["items"]
    decision = json.dumps({"id": "set/000003", "verdict": "accepted", "off": [], "threshold": 0.5})
    return {
        "open": seconds("", "list?verdict=open", f"photo?id={first}", f"mask?id={first}"),
        "turn_page": seconds(f"list?verdict=all&from={images - 60}"),
        "one_class": seconds("list?verdict=open&class=7"),
        "thumbs_of_a_page": seconds(*(f"thumb?id={quote(item['id'])}" for item in page)),
        "thumbs_again": seconds(*(f"thumb?id={quote(item['id'])}" for item in page)),
        "decide": seconds("decide", body=decision),
    }


if __name__ == "__main__":
    main()
