import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import tagseg
from tagseg.data.prepare import Prepared
from tagseg.data.records import Dataset, Sample
from tagseg.errors import RunError
from tagseg.masks import workers as pool
from tagseg.masks.make import has_masks, make_masks, open_workers
from tagseg.masks.map_files import map_file, write_maps
from tagseg.masks.workers import Made
from tagseg.run.folder import Run
from tagseg.run.open import open_run
from tagseg.settings.settings import Settings

SOURCE = Path(tagseg.__file__).parents[1]
NAMES = [f"sub/{i} ü" for i in range(6)]


def localised(folder: Path, workers: int) -> tuple[Prepared, Run]:
    """Return six images of different sizes, their maps, and a run; the same in every folder."""
    (folder / "data").mkdir(parents=True)
    run = open_run(folder / "run", folder / "data", Settings(workers=workers))
    rng = np.random.default_rng(0)
    samples, sizes = [], {}
    for i, name in enumerate(NAMES):
        tags = (1, 2, 3)[: 1 + i % 3]
        sizes[name] = (30 + 7 * i, 61 - 5 * i)
        image = folder / "data" / f"{i} ü.png"
        Image.fromarray(rng.integers(0, 256, (*sizes[name], 3), np.uint8)).save(image)
        write_maps(map_file(run, name), rng.random((len(tags), 9, 8)), tags)
        samples.append(Sample(name, image, tags))
    return Prepared(Dataset(folder / "data", "folder", ("a", "b", "c"), tuple(samples)), sizes), run


def masks_of(run: Run) -> dict[str, bytes]:
    return {
        path.relative_to(run.root).as_posix(): path.read_bytes()
        for folder in (run.masks, run.decided_masks)
        for path in folder.rglob("*.*")
    }


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> "list[subprocess.Popen[str]]":
    """Return a list to which every worker process is added when it starts."""
    started: list[subprocess.Popen[str]] = []
    start = pool._start

    def noted(run: Run) -> "subprocess.Popen[str]":
        started.append(start(run))
        return started[-1]

    monkeypatch.setattr(pool, "_start", noted)
    return started


def test_any_number_of_workers_writes_the_same_bytes(
    tmp_path: Path, children: "list[subprocess.Popen[str]]", caplog: pytest.LogCaptureFixture
) -> None:
    found = {}
    for workers in (0, 1, 2):
        prepared, run = localised(tmp_path / str(workers), workers)
        with caplog.at_level("INFO", "tagseg"):
            done = make_masks(prepared, run)
        found[workers] = masks_of(run)
        assert done.images == 6 and done.images_per_s > 0 and (done.worker_peak_mb > 10) == (workers > 0)
        assert f"masks: 6 images, {done.images_per_s:.1f} images/s" in caplog.text
    assert len(found[0]) == 14 and found[0] == found[1] == found[2]
    assert len(children) <= 3 and [child.returncode for child in children] == [0] * len(children)


def test_existing_masks_are_not_given_to_workers(tmp_path: Path) -> None:
    prepared, run = localised(tmp_path, 2)
    make_masks(prepared, run)
    whole = masks_of(run)
    # Without one of the two masks, both are made again.
    (run.masks / f"{NAMES[1]}.png").unlink()
    (run.decided_masks / f"{NAMES[4]}.png").unlink()
    kept = run.masks / f"{NAMES[0]}.png"
    os.utime(kept, ns=(1, 1))
    assert make_masks(prepared, run).images == 2
    assert masks_of(run) == whole and kept.stat().st_mtime_ns == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_in_the_middle_is_named(workers: int, tmp_path: Path) -> None:
    prepared, run = localised(tmp_path, workers)
    broken = prepared.dataset.samples[3].image
    content = broken.read_bytes()
    broken.write_bytes(content[:200])
    with pytest.raises(RunError, match=r"data.3 ü\.png: cannot make its mask: .*"):
        make_masks(prepared, run)
    assert not has_masks(run, NAMES[3]) and not list(run.root.rglob(".writing-*"))
    broken.write_bytes(content)
    make_masks(prepared, run)
    assert all(has_masks(run, name) for name in NAMES)


def test_after_a_failure_no_more_samples_are_accepted(tmp_path: Path) -> None:
    prepared, run = localised(tmp_path, 1)
    map_file(run, NAMES[0]).write_bytes(b"no maps")
    with pytest.raises(RunError, match="damaged maps"), open_workers(prepared, run) as workers:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            workers.give(prepared.dataset.samples[0])
            time.sleep(0.01)


def test_a_killed_worker_is_reported_and_the_stage_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared, run = localised(tmp_path, 1)
    ask = pool._ask

    def kill_at_the_third(child: "subprocess.Popen[str]", sample: Sample, size: tuple[int, int]) -> Made:
        if sample.id == NAMES[2]:
            child.send_signal(signal.SIGSTOP)  # it has received the image and does nothing with it
            threading.Timer(0.2, child.kill).start()
        return ask(child, sample, size)

    message = (
        r"2 ü\.png: the worker process that made its mask was killed by signal 9, perhaps because the system ran out"
    )
    with monkeypatch.context() as patch:
        patch.setattr(pool, "_ask", kill_at_the_third)
        with pytest.raises(RunError, match=message + r" of memory; run the same command again .* fewer --workers"):
            make_masks(prepared, run)
    assert [has_masks(run, name) for name in NAMES] == [True, True, False, False, False, False]
    assert make_masks(prepared, run).images == 4
    undisturbed = localised(tmp_path / "undisturbed", 0)
    make_masks(*undisturbed)
    assert masks_of(run) == masks_of(undisturbed[1])


def test_an_interruption_finishes_the_image_in_progress_and_drops_the_rest(
    tmp_path: Path, children: "list[subprocess.Popen[str]]", monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared, run = localised(tmp_path, 1)
    asked, ask = [], pool._ask

    def slowly(child: "subprocess.Popen[str]", sample: Sample, size: tuple[int, int]) -> Made:
        asked.append(sample.id)
        time.sleep(0.3)
        return ask(child, sample, size)

    monkeypatch.setattr(pool, "_ask", slowly)
    with pytest.raises(KeyboardInterrupt), open_workers(prepared, run) as workers:
        for sample in prepared.dataset.samples:
            workers.give(sample)
        while not asked:
            time.sleep(0.01)
        raise KeyboardInterrupt
    assert asked == NAMES[:1] and [has_masks(run, name) for name in NAMES] == [True] + [False] * 5
    assert [child.returncode for child in children] == [0] and not list(run.root.rglob(".writing-*"))


def test_a_worker_that_hangs_does_not_delay_the_exit(
    tmp_path: Path, children: "list[subprocess.Popen[str]]", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "WORKER_GRACE_S", 0.2)
    prepared, run = localised(tmp_path, 1)
    with pytest.raises(KeyboardInterrupt), open_workers(prepared, run) as workers:
        workers.give(prepared.dataset.samples[0])
        while not children:
            time.sleep(0.01)
        children[0].send_signal(signal.SIGSTOP)
        raise KeyboardInterrupt
    assert [child.returncode for child in children] == [-signal.SIGKILL]


def test_a_worker_does_not_import_torch() -> None:
    code = "import sys, tagseg.masks.worker; assert not {'torch', 'torchvision', 'timm'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(SOURCE)}, check=True)
