"""Seconds and memory that opening a data set of a million images takes, the first time and again.

    python benchmarks/scale.py

The data are simulated: a folder of empty files with a tag file (a thousand folders of a thousand), and tar shards of a
thousand images of 100 bytes each, both in a temporary folder (2.5 GB, in --folder) that is deleted at the end. Nothing
is decoded: a run does that once, at its beginning. Every opening is a process of its own; the system still has the
folders in its cache, having written them just before. `_cpu_s` are seconds of the process, the others those that went
by, which depend on what else the machine does. Memory is what the process takes more than before it opens the data, at
the end and at the peak. `prepared` is how later stages of a run open their data, with data.json and all sizes.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from record import record

from tagseg.data.listing import SETTLED_S

FOLDER = 1000
CLASSES = [f"class{i:02}" for i in range(80)]

OPEN = """
import gc, os, sys, time
from pathlib import Path
from tagseg.data.prepare import prepare
from tagseg.data.read import read_dataset
from tagseg.system.process import peak_memory_mb, reset_peak_memory
from tagseg.run.folder import Run
from tagseg.settings.data import DataSettings

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

what, folder, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
gc.collect()
before = resident()
reset_peak_memory()
started, worked = time.perf_counter(), time.process_time()
if what == "prepare":
    dataset = (prepared := prepare(Run(Path(folder)))).dataset
else:
    dataset = read_dataset(folder, DataSettings(), cache=True)
seconds, worked, peak = time.perf_counter() - started, time.process_time() - worked, peak_memory_mb() * 2**20
assert len(dataset.samples) == count, len(dataset.samples)
gc.collect()
print(seconds, worked, (resident() - before) / count, (peak - before) / count)
"""
"""What a process runs whose time and memory are measured."""


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000, help="how many images, a multiple of 1000")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    options = parser.parse_args()
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        os.environ["XDG_CACHE_HOME"] = str(Path(name) / "cache")
        for layout, make in (("", make_folder), ("shards_", make_shards)):
            data = Path(name) / f"{layout}data"
            make(data, options.images)
            time.sleep(SETTLED_S + 1)
            for turn in ("first", "again"):
                took = opened("read", data, options.images)
                figures |= {f"{layout}{figure}_{turn}": value for figure, value in took.items()}
                print(figures, flush=True)
        took = opened("prepare", begun(Path(name) / "run", Path(name) / "data"), options.images)
        figures |= {f"prepared_{figure}_again": value for figure, value in took.items()}
        figures["manifests_mb"] = round(sum(file.stat().st_size for file in Path(name).rglob("*.json.gz")) / 1e6, 1)
    load = os.getloadavg()[1]
    about = f"{options.images:,} images, {len(CLASSES)} classes; other work ran beside (load {load:.0f})."
    rows = [about, "", "| figure | |", "|---|---:|"]
    rows += [f"| {figure} | {value:g} |" for figure, value in figures.items()]
    print(
        record("scale", [0], figures | {"images": options.images, "load": round(load, 1)}, "\n".join(rows)).read_text()
    )


def tags_of(number: int) -> list[str]:
    """Return one to three classes of an image."""
    return [CLASSES[(number * (7 + i) + i) % len(CLASSES)] for i in range(1 + number % 3)]


def make_folder(data: Path, count: int) -> None:
    """Make a folder of empty images with a tag file."""
    with_tags = ["image,tags"]
    for start in range(0, count, FOLDER):
        folder = data / "images" / f"{start // FOLDER:04}"
        folder.mkdir(parents=True)
        for number in range(start, start + FOLDER):
            os.close(os.open(f"{folder}/{number:08}.jpg", os.O_CREAT | os.O_WRONLY))
            with_tags.append(f"{folder.name}/{number:08}.jpg,{' '.join(tags_of(number))}")
    (data / "tags.csv").write_text("\n".join(with_tags) + "\n")


def make_shards(data: Path, count: int) -> None:
    """Make shards of images of 100 bytes with their tags as JSON."""
    data.mkdir()
    for start in range(0, count, FOLDER):
        with (data / f"{start // FOLDER:04}.tar").open("wb") as shard:
            for number in range(start, start + FOLDER):
                tags = json.dumps({"tags": tags_of(number)}).encode()
                shard.write(in_tar(f"{number:08}.jpg", bytes(100)) + in_tar(f"{number:08}.json", tags))
            shard.write(bytes(1024))


def in_tar(name: str, content: bytes) -> bytes:
    """Return a small member as a tar holds it: quicker than by tarfile, which would take most of the time."""
    head = name.encode().ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + b"%011o\0" % len(content)
    head += b"00000000000\0" + b" " * 8 + b"0" + bytes(100) + b"ustar\0" + b"00"
    head = head.ljust(512, b"\0")
    return head[:148] + b"%06o\0 " % sum(head) + head[156:] + content.ljust(512, b"\0")


def opened(what: str, folder: Path, count: int) -> dict[str, float]:
    """Return the seconds, and the bytes per image at the end and at the peak, of opening a data set or a run."""
    command = [sys.executable, "-c", OPEN, what, str(folder), str(count)]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    seconds, worked, held, peak = map(float, said.split())
    return {
        "open_1m_s": round(seconds, 1),
        "open_1m_cpu_s": round(worked, 1),
        "bytes_per_image": round(held),
        "peak_bytes_per_image": round(peak),
    }


def begun(folder: Path, data: Path) -> Path:
    """Make a run of a data set as if its images had been decoded."""
    from tagseg.data.check import Checked
    from tagseg.data.prepare import write_about
    from tagseg.data.read import read_dataset
    from tagseg.run.open import open_run
    from tagseg.settings.settings import Settings

    run = open_run(folder, data, Settings())
    dataset = read_dataset(data, Settings().data, cache=True)
    sizes = {sample.id: (375 + i % 9, 500) for i, sample in enumerate(dataset.samples)}
    write_about(run, dataset, Checked(sizes, ()))
    return run.root


if __name__ == "__main__":
    main()
