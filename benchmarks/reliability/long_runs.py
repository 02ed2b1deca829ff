"""What happens in the long run: 100,000 predictions in one process, a day of reviewing, 254 classes in every export.

    python -m benchmarks.reliability.long_runs                         needs tagseg[onnx] for the second engine

Memory is that of the process when a tenth of the work is done, and at its end; open files are counted at the same
places. PyTorch makes a fifth of the predictions. A day of reviewing is 10,000 images: each is opened with its photo and
mask and decided, and every tenth decision is taken back. The 254 classes, the most that a mask can hold, have stripes
in 20 images, which go through every export and, where tagseg reads the format, back; a pixel is wrong if it comes back
with another class. On a slow disk every file that is opened, flushed, renamed or deleted in the run folder, and every
folder that is made or listed, takes 50 ms longer, as on a busy network share; the files must be the same. This
benchmark can be interrupted and continued.
"""

import argparse
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing import Pipe
from pathlib import Path
from typing import Any, get_args
from urllib.parse import quote

import numpy as np
import torch
from benchmarks.harness import RUNS, record
from benchmarks.reliability.fit_kills import draw
from benchmarks.reliability.scenarios import FROZEN
from benchmarks.scale.review import DRAWN, make_run, serve
from PIL import Image

from tagseg.data.images import read_mask_file
from tagseg.data.prepare import prepare
from tagseg.errors import DataError
from tagseg.export.formats import MaskFormat, export
from tagseg.importing.import_masks import import_masks
from tagseg.masks.mask_files import mask_file, write_mask
from tagseg.networks.segmenters import empty_segmenter
from tagseg.pipeline import fit
from tagseg.run.doctor import result_checksums
from tagseg.run.folder import Run
from tagseg.run.open import open_run
from tagseg.segment.graphs import installed
from tagseg.segment.load import load
from tagseg.settings.predict import Engine
from tagseg.settings.settings import Settings
from tagseg.training.checkpoint import save_tensors

SLOW_S = 0.05
_ASKING = ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.scandir", "os.listdir", "os.truncate")
CLASSES = 254
STRIPED = 20
MASKS = {"yolo-semantic": "masks/train", "hf": "train/masks", "cvat": "segmentation_mask_1.1.zip"}
"""Where an export has its masks, if photographs of the same names or other forms of the masks lie beside them."""


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predictions", type=int, default=100_000)
    parser.add_argument("--decisions", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=RUNS / "long_runs.json", help="what was measured already")
    options = parser.parse_args()
    kept: Path = options.out
    figures: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {"predictions": {}}
    kept.parent.mkdir(parents=True, exist_ok=True)

    def keep() -> None:
        kept.write_text(json.dumps(figures))

    with tempfile.TemporaryDirectory() as folder:
        network = random_network(Path(folder) / "network")
        engines: list[Engine] = ["torch", *(["onnxruntime"] if installed("onnxruntime") else [])]  # type: ignore[list-item]
        for engine in engines:
            if engine in figures["predictions"]:
                continue
            count = options.predictions // (5 if engine == "torch" else 1)  # as long as the other
            figures["predictions"][engine] = predictions(network, engine, count)
            print(engine, figures["predictions"][engine], flush=True)
            keep()
        if "reviewing" not in figures:
            figures["reviewing"] = reviewing(Path(folder) / "review", options.decisions)
            keep()
        print(figures["reviewing"], flush=True)
        if "exports" not in figures:
            figures["exports"] = exports(Path(folder) / "classes")
            keep()
        figures["slow_disk"] = slow_disk(Path(folder))
    print(record("long_runs", [0], figures, table(figures)).read_text())


def random_network(folder: Path) -> Path:
    """Return the folder of a network with random weights."""
    torch.manual_seed(0)
    about = {"classes": ["background", "cat", "dog"], "encoder": "test_resnet", "stride": 16, "cornered": True}
    about |= {"predict_scales": [1.0], "predict_flip": False, "max_side": 64}
    network = empty_segmenter("test_resnet", 3, 16)
    net: Any = network.net
    torch.nn.init.normal_(net.segmentation_head[0].weight, std=3.0)
    save_tensors(folder / "network.safetensors", network.state_dict(), about)
    (folder / "network.json").write_text(json.dumps(about))
    return folder


def predictions(network: Path, engine: Engine, count: int) -> dict[str, float]:
    """Return memory and open files of a process that predicts images of 40 sizes."""
    torch.set_num_threads(1)
    predictor = load(network, "cpu", engine)
    pictures = [
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (40 + i % 8, 30 + i // 8, 3), np.uint8))
        for i in range(40)
    ]
    found: dict[str, float] = {"count": count}
    started = time.process_time()
    for number in range(1, count + 1):
        predictor(pictures[number % len(pictures)])
        if number in (count // 10, count):
            found |= _state(os.getpid(), "first_tenth" if number < count else "end")
    found["cpu_s"] = round(time.process_time() - started)
    return found


def reviewing(folder: Path, count: int) -> dict[str, float]:
    """Return memory and open files of the review's server, and seconds per decision, over many decisions."""
    folder.mkdir()
    run = make_run(folder, count)
    for number in range(DRAWN, count):
        for masks in (run.masks, run.decided_masks):
            mask_file(masks, f"set/{number:06}").hardlink_to(mask_file(masks, f"set/{number % 80:06}"))
    found: dict[str, float] = {"count": count}
    with serve(run, {}) as ask:
        server = _server_of(run)
        started = time.monotonic()
        for number in range(count):
            sample = f"set/{number:06}"
            ask(f"photo?id={quote(sample)}")
            ask(f"mask?id={quote(sample)}")
            verdict = "rejected" if number % 3 else "accepted"
            ask("decide", json.dumps({"id": sample, "verdict": verdict, "off": [], "threshold": 0.5}))
            if number % 10 == 9:
                ask("decide", json.dumps({"id": sample, "verdict": "open", "off": [], "threshold": 0.5}))
            if number + 1 in (count // 10, count):
                end = number + 1 == count
                found |= _state(server, "end" if end else "first_tenth")
                found["ms_per_image_end" if end else "ms_per_image_first_tenth"] = round(
                    1000 * (time.monotonic() - started) / (count - count // 10 if end else count // 10), 1
                )
                started = time.monotonic()
    found["records_mb"] = round(sum(file.stat().st_size for file in run.root.rglob("*.sqlite*")) / 1e6, 1)
    return found


def _server_of(run: Run) -> int:
    """Return the process that serves a run's review."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it has ended
            continue
        if b"review" in words and str(run.root).encode() in words:
            return int(process.name)
    raise SystemExit("the review's server is not running")


def _state(process: int, when: str) -> dict[str, float]:
    status = Path(f"/proc/{process}/status").read_text()
    memory = re.search(r"VmRSS:\s+(\d+)", status)
    assert memory, status
    files = len(list(Path(f"/proc/{process}/fd").iterdir()))
    return {f"mb_{when}": round(int(memory[1]) / 1024, 1), f"files_{when}": files}


def exports(folder: Path) -> dict[str, Any]:
    """Return, for each format, the pixels that come back wrong, None if tagseg does not read it, or the error."""
    run = striped_run(folder)
    found: dict[str, Any] = {}
    for name in get_args(MaskFormat):
        out = folder / name
        try:
            export(run.root, name, out)
        except DataError as error:
            found[name] = str(error)
            continue
        try:
            import_masks(out / MASKS.get(name, ""), run.root, folder / f"{name}_back")
        except DataError as error:
            found[name], reason = None, str(error)
            print(f"{name}: {reason}", flush=True)
            continue
        found[name] = sum(_wrong(run, folder / f"{name}_back"))
        print(name, found[name], flush=True)
    return found


def _wrong(run: Run, back: Path) -> Iterator[int]:
    for number in range(STRIPED):
        expected = read_mask_file(mask_file(run.decided_masks, str(number)))
        yield int((read_mask_file(mask_file(back, str(number))) != expected).sum())


def striped_run(folder: Path) -> Run:
    """Return a run whose masks show 254 classes, 20 or fewer in each image."""
    data = folder / "photos"
    (data / "images").mkdir(parents=True)
    classes = [f"class {i:03}" for i in range(1, CLASSES + 1)]
    (data / "classes.txt").write_text("\n".join(classes) + "\n")
    rows, masks = ["image\ttags"], {}
    for number in range(STRIPED):
        ids = list(range(1 + number, CLASSES + 1, STRIPED))
        mask = np.zeros((40, 4 * len(ids) + 4), np.uint8)
        for place, one in enumerate(ids):
            mask[4:36, 4 * place + 2 : 4 * place + 6] = one
        masks[str(number)] = mask
        pixels = np.random.default_rng(number).integers(0, 256, (*mask.shape, 3), np.uint8)
        Image.fromarray(pixels).save(data / f"images/{number}.png")
        rows.append(f"{number}.png\t{', '.join(classes[one - 1] for one in ids)}")
    (data / "tags.tsv").write_text("\n".join(rows) + "\n")
    run = open_run(folder / "run", data, Settings.from_dict({"data": {"min_images": 1}}))
    prepare(run)
    with run.stage("masks"):
        for name, mask in masks.items():
            for masks_folder in (run.masks, run.decided_masks):
                write_mask(mask_file(masks_folder, name), mask)
    return run


def slow_disk(folder: Path) -> dict[str, Any]:
    """Return the seconds of a fit whose run folder is on a slow disk and of one that is not, how often the disk was
    asked, and whether the files are the same."""
    draw(folder / "drawn")
    found: dict[str, Any] = {"images": len(list((folder / "drawn/images").iterdir()))}
    for name in ("warm", "quick", "slow"):  # the first one loads what the others have in memory
        answer, asked = Pipe(duplex=False)
        child = os.fork()
        if not child:
            delays = Delays(folder / name) if name == "slow" else None
            started = time.monotonic()
            fit(folder / "drawn", folder / name, FROZEN)
            asked.send((time.monotonic() - started, delays.count if delays else 0))
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0, name
        seconds, count = answer.recv()
        found |= {f"s_{name}": round(seconds, 1), "operations": count}
    del found["s_warm"]
    slow, quick = (result_checksums(Run(folder / name)) for name in ("slow", "quick"))
    return found | {"identical": slow == quick}


class Delays:
    """Makes every operation of this process on files below a folder slow, and counts them."""

    def __init__(self, folder: Path) -> None:
        self.folder = f"{folder}{os.sep}"
        self.count = 0
        sys.addaudithook(self.audited)
        flush = os.fsync

        def flushed(file: int) -> None:
            self.wait()
            flush(file)

        os.fsync = flushed  # type: ignore[assignment]

    def audited(self, event: str, given: tuple[Any, ...]) -> None:
        """Wait if the audited step asks the disk."""
        if event in _ASKING and isinstance(given[0], str | os.PathLike) and str(given[0]).startswith(self.folder):
            self.wait()

    def wait(self) -> None:
        """Wait as long as a slow disk takes to answer."""
        self.count += 1
        time.sleep(SLOW_S)


def table(figures: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    rows = ["| | MB after a tenth | MB at the end | files after a tenth | at the end |", "|---|---:|---:|---:|---:|"]
    works = {f"{one['count']:,} predictions, {name}": one for name, one in figures["predictions"].items()}
    works[f"{figures['reviewing']['count']:,} images reviewed"] = figures["reviewing"]
    for name, one in works.items():
        cells = (one[f"{what}_{when}"] for what in ("mb", "files") for when in ("first_tenth", "end"))
        rows.append(f"| {name} | {' | '.join(map(str, cells))} |")
    review = figures["reviewing"]
    rows += [
        "",
        f"An image under review takes {review['ms_per_image_first_tenth']} ms in the first tenth and "
        f"{review['ms_per_image_end']} ms later; the records have {review['records_mb']} MB.",
        "",
        "| export of 254 classes | pixels wrong after the way back |",
        "|---|---|",
        *(
            f"| {name} | {'not read by tagseg' if value is None else value} |"
            for name, value in figures["exports"].items()
        ),
    ]
    slow = figures["slow_disk"]
    rows += [
        "",
        f"A fit of {slow['images']} drawn images asks the disk {slow['operations']:,} times. Where each answer takes "
        f"{1000 * SLOW_S:.0f} ms longer it takes {slow['s_slow']} s instead of {slow['s_quick']} s, and its files are "
        f"{'the same' if slow['identical'] else 'OTHERS'}.",
    ]
    return "\n".join(rows)


if __name__ == "__main__":
    main()
