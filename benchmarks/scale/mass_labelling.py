"""Compare images per second of `tagseg predict --on ray` and the local engine, and the memory of all processes.

    python -m benchmarks.scale.mass_labelling --images 5000      # needs tagseg[ray]

The first prediction by another engine than PyTorch exports the network and checks it, so one image is predicted before
the rounds. Uses the segmenter of a run of voc_animals.py (--run names another) and the images of its data, repeated
under other names until there are enough. They are divided into rounds. In each round the two sides predict the same
images, in turn, each in its own process, and their output is compared byte for byte. The time to the first image
(network loaded, cluster started) and the throughput after it are measured separately; ray_over_local is for all images
predicted at once, with each side started once. Memory is the proportional set size of the process and all its
descendants, Ray's own included, sampled every half second: its peak up to half of the images, and up to the end. Ray's
workers have the priority of the process. The run folder keeps only the exported network. Another engine than
PyTorch is a result of its own, named after it.

It also measures what a_billion_images.py needs: images that a core decodes and that a process writes per second, and
the memory per listed image.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from benchmarks import harness
from benchmarks.harness import record

from tagseg.data.images import IMAGE_SUFFIXES
from tagseg.prediction.chunks import cut_chunks
from tagseg.prediction.find_images import Location
from tagseg.prediction.lines import LINES, read_predictions
from tagseg.prediction.outputs import Outcome, write_files
from tagseg.prediction.parquet import pending_rows, write_parts
from tagseg.prediction.predict import predict
from tagseg.prediction.ray_workers import chunk_json
from tagseg.prediction.read import read_input
from tagseg.run.folder import Run
from tagseg.segment.load import load
from tagseg.settings.predict import PredictOptions

ONE = """
import json, sys, time
from tagseg.settings.predict import PredictOptions
from tagseg.prediction.predict import predict
run, images, out, options = sys.argv[1:]
first = []
def track(items, title, total):
    for item in items:
        first.append(time.time())
        yield item
started = time.time()
predict(run, images, out, PredictOptions(**json.loads(options)), track)
print(json.dumps([first[0] - started, time.time() - first[0], len(first), first[len(first) // 2]]))
"""
"""Code of the process of a round; it prints the seconds to the first image and from there to the end, the number of
images, and when half of them were done."""


def main() -> None:
    """Measure both engines in turn and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, help="run folder with a segmenter; by default the full method's")
    parser.add_argument("--images", type=int, default=5000, help="total number of images")
    parser.add_argument("--rounds", type=int, default=1, help="number of rounds that they are divided into")
    parser.add_argument("--scales", type=float, nargs="+", help="as in tagseg predict; by default the network's own")
    parser.add_argument("--no-flip", action="store_true", help="as in tagseg predict")
    parser.add_argument("--crf", action="store_true", help="as in tagseg predict")
    parser.add_argument(
        "--engine", default="torch", help="what computes the network on both sides, as in tagseg predict"
    )
    options = harness.parse(parser, "voc_animals_fit")
    run = Run(options.run or options.out / "both_0")
    asked: dict[str, Any] = {"device": "cpu", "crf": options.crf, "engine": options.engine}
    asked |= {"scales": options.scales} if options.scales else {}
    asked |= {"flip": False} if options.no_flip else {}
    rounds: dict[str, list[dict[str, float]]] = {"local": [], "ray": []}
    written = 0
    with tempfile.TemporaryDirectory() as folder:
        if options.engine != "torch":
            first = next(iter(run.data_root().rglob("*.jpg")))
            predict(run.root, first, Path(folder) / "first", PredictOptions(**asked))
        parts = linked(run.data_root(), options.images, options.rounds, Path(folder))
        for number, part in enumerate(parts):
            # The engines take turns at being the first.
            for engine in sorted(rounds, reverse=bool(number % 2)):
                out = Path(folder) / f"{engine}_{number}"
                rounds[engine].append(measured(run, part, out, asked | {"on": engine}))
                print(f"round {number}, {engine}: {rounds[engine][-1]}", flush=True)
            written += compared(Path(folder) / f"local_{number}", Path(folder) / f"ray_{number}")
        figures = summary(rounds, options.images) | {"bytes_out_per_image": round(written / options.images)}
        figures |= writing(Path(folder) / "local_0") | reading(run) | listing()
    rows = ["| figure | |", "|---|---:|", *(f"| {name} | {value:g} |" for name, value in figures.items())]
    scales = f"scales {', '.join(map(str, options.scales))}" if options.scales else "the network's own scales"
    about = (
        f"{options.images} images ({figures['distinct_images']:g} distinct) in {options.rounds} rounds, "
        f"{scales}{', no flip' if options.no_flip else ''}"
        f"{', dense CRF' if options.crf else ''}, {torch.get_num_threads()} threads, computed by {options.engine}; "
        f"every file the same, byte for byte. Load of the machine when this ended: {os.getloadavg()[0]:.1f}."
    )
    settings = {"images": options.images, "rounds": options.rounds, "load": round(os.getloadavg()[0], 1)}
    settings |= {"threads": torch.get_num_threads()}
    table = "\n".join([*rows, "", about])
    print(
        record(
            "mass_labelling" if options.engine == "torch" else f"mass_labelling_{options.engine}",
            [run.settings().seed],
            figures | settings,
            table,
        ).read_text()
    )


def summary(rounds: dict[str, list[dict[str, float]]], images: int) -> dict[str, float]:
    """Return the figures of all rounds: throughput, time to the first image, ratio for all images, memory."""
    pace = {name: statistics.median(one["images_per_s"] for one in found) for name, found in rounds.items()}
    start = {name: statistics.median(one["start_s"] for one in found) for name, found in rounds.items()}
    whole = {name: start[name] + images / pace[name] for name in rounds}
    paired = [
        ray["images_per_s"] / local["images_per_s"] for ray, local in zip(rounds["ray"], rounds["local"], strict=True)
    ]
    return {
        "ray_over_local": round(whole["local"] / whole["ray"], 3),
        "ray_over_local_pace": round(statistics.median(paired), 3),
        "images_per_s_ray": round(images / whole["ray"], 2),
        "images_per_s_local": round(images / whole["local"], 2),
        "start_s_ray": round(start["ray"], 1),
        "start_s_local": round(start["local"], 1),
        "peak_mb": round(max(one["peak_mb"] for one in rounds["ray"])),
        "peak_mb_first_half": round(max(one["peak_mb_first_half"] for one in rounds["ray"])),
        "peak_mb_local": round(max(one["peak_mb"] for one in rounds["local"])),
    }


def measured(run: Run, images: Path, out: Path, options: dict[str, Any]) -> dict[str, float]:
    """Return the figures of one prediction in its own process."""
    command = [sys.executable, "-c", ONE, *map(str, (run.root, images, out, json.dumps(options)))]
    environment = os.environ | {"RAY_worker_niceness": "0"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    samples = []
    while process.poll() is None:
        samples.append((time.time(), memory_mb(process.pid)))
        time.sleep(0.5)
    assert process.stdout is not None
    if process.returncode:
        raise SystemExit(f"{options['on']}: ended with status {process.returncode}")
    start, rest, number, half = json.loads(process.stdout.read().splitlines()[-1])
    return {
        "images_per_s": round((number - 1) / rest, 2),
        "start_s": round(start, 1),
        "peak_mb": round(max(memory for _, memory in samples)),
        "peak_mb_first_half": round(max(memory for moment, memory in samples if moment <= half)),
    }


def memory_mb(root: int) -> float:
    """Return the proportional set size of a process and its descendants in MB; shared memory counts once."""
    parents = {}
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            parents[int(process.name)] = parent(process)
    below, added = {root}, True
    while added:
        new = {process for process, above in parents.items() if above in below} - below
        below |= new
        added = bool(new)
    return sum(map(proportional_kb, below)) / 1024


def parent(process: Path) -> int:
    """Return a process's parent, 0 when it has ended."""
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def proportional_kb(process: int) -> int:
    """Return a process's proportional set size, 0 when it has ended."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def linked(data: Path, images: int, rounds: int, folder: Path) -> list[Path]:
    """Return one folder per round with links to the images, repeated under other names until there are enough."""
    found = photos(data)
    parts = [folder / f"images_{number}" for number in range(rounds)]
    for number, file in enumerate(islice(cycle(found), images)):
        part = parts[number * rounds // images]
        part.mkdir(exist_ok=True)
        (part / f"{number:06d}{file.suffix}").symlink_to(file.resolve())
    return parts


def compared(local: Path, ray: Path) -> int:
    """Return the number of bytes that each engine wrote; exit if their files differ."""
    sizes = 0
    for file in sorted(path for path in local.rglob("*") if path.is_file()):
        content = file.read_bytes()
        sizes += len(content)
        if content != (ray / file.relative_to(local)).read_bytes():
            raise SystemExit(f"{file.relative_to(local)}: the engines wrote different bytes")
    assert sum(1 for _ in local.rglob("*")) == sum(1 for _ in ray.rglob("*")), "the engines wrote different files"
    return sizes


def photos(data: Path) -> list[Path]:
    """Return the data's JPEG files."""
    return sorted(file for file in data.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES[:2])


def reading(run: Run) -> dict[str, float]:
    """Return the number of images, their mean size in bytes, and how many a core reads per second."""
    found, resolution = photos(run.data_root()), load(run.root, "cpu").resolution
    some = found[:: max(len(found) // 300, 1)]
    started = time.perf_counter()
    for file in some:
        read_input(file.stem, file, resolution, 120.0)
    pace = len(some) / (time.perf_counter() - started)
    size = statistics.mean(file.stat().st_size for file in found)
    return {"distinct_images": len(found), "bytes_in_per_image": round(size), "read_per_s_core": round(pace, 1)}


def writing(masks: Path) -> dict[str, float]:
    """Return how many masks of a folder one process writes per second, as PNG and as Parquet files."""
    lines = [line for line in read_predictions(masks / LINES) if line.mask][:1000]
    outcomes = [Outcome(line.mask, line, {line.mask: (masks / line.mask).read_bytes()}) for line in lines if line.mask]
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        for outcome in outcomes:
            write_files(outcome, Path(folder))
        png = time.perf_counter() - started
        started = time.perf_counter()
        for _ in write_parts(iter(outcomes), Path(folder), 0, len(outcomes), len(outcomes)):
            pass
        parquet = time.perf_counter() - started
    found = {"written_per_s_png": len(outcomes) / png, "written_per_s_parquet": len(outcomes) / parquet}
    return {name: round(pace, 1) for name, pace in found.items()}


def listing(images: int = 100_000) -> dict[str, float]:
    """Return the bytes of memory per listed image: in the list, the chunks and the order of lines."""
    tracemalloc.start()
    found: dict[str, Location] = {f"{i:09}": f"s3://bucket/2024/01/01/{i:09}.jpg" for i in range(images)}
    with tempfile.TemporaryDirectory() as folder:
        todo, _ = pending_rows(found, Path(folder), PredictOptions(format="parquet"))
    texts = [chunk_json(chunk) for chunk in cut_chunks(found, todo, 128, 8)]
    order = {str(path): place for place, path in enumerate(found.values())}
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(order) == len(todo) == images and texts
    return {"bytes_per_listed_image": round(held / images)}


if __name__ == "__main__":
    main()
