import itertools
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
from PIL import Image

from tagseg.data.prepare import Prepared
from tagseg.data.records import Dataset, Sample
from tagseg.masks import pool
from tagseg.masks.maps import map_file, write_maps
from tagseg.masks.write import make_masks, mask_file
from tagseg.run import Run, RunError, open_run
from tagseg.settings import Settings

T = TypeVar("T")

SIZES = [(40, 60), (900, 1200), (1, 7), (33, 20), (64, 64), (20, 31)]
"""The second is larger than masks.max-side, and is finished last."""


def localised(root: Path, workers: int) -> tuple[Prepared, Run]:
    """Return a run and its data of six images that have maps of one or two tags."""
    (root / "data").mkdir(parents=True, exist_ok=True)
    run = open_run(root / f"run {workers}", root / "data", Settings(workers=workers))
    samples, sizes = [], {}
    for i, (height, width) in enumerate(SIZES):
        noise = np.random.default_rng(i)
        path = root / "data" / f"{i} ü.jpg"
        Image.fromarray(noise.integers(0, 256, (height, width, 3), np.uint8)).save(path)
        tags = (1, 2) if i % 2 else (2,)
        samples.append(Sample(f"sub/{i} ü", path, tags))
        sizes[samples[-1].id] = height, width
        write_maps(map_file(run, samples[-1].id), noise.random((len(tags), 5, 6), np.float32), tags)
    return Prepared(Dataset(root / "data", "folder", ("cat", "dog"), tuple(samples)), sizes), run


def pngs(run: Run) -> dict[str, bytes]:
    folders = run.masks, run.decided_masks
    return {
        path.relative_to(run.root).as_posix(): path.read_bytes()
        for folder in folders
        for path in folder.rglob("*.png")
        if not path.name.startswith(".writing-")
    }


def leftovers(run: Run) -> list[Path]:
    return list(run.root.rglob(".writing-*"))


def started(monkeypatch: pytest.MonkeyPatch) -> list["subprocess.Popen[str]"]:
    """Return a list into which every worker is put that starts."""
    children: list[subprocess.Popen[str]] = []
    start = pool._start

    def remember(run: Run) -> "subprocess.Popen[str]":
        children.append(start(run))
        return children[-1]

    monkeypatch.setattr(pool, "_start", remember)
    return children


def interrupted(items: Iterable[T], title: str, total: int) -> Iterator[T]:
    yield from itertools.islice(items, 1)
    raise KeyboardInterrupt


def test_any_number_of_workers_makes_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    children = started(monkeypatch)
    found = {}
    for workers in (0, 1, 2):
        prepared, run = localised(tmp_path, workers)
        done = make_masks(prepared, run)
        assert done.images == 6 and done.images_per_s > 0 and (done.worker_peak_mb > 10) == (workers > 0)
        found[workers] = pngs(run)
        assert len(found[workers]) == 12 and not leftovers(run)
    assert found[0] == found[1] == found[2]
    assert len(children) == 3 and all(child.returncode == 0 for child in children)


def test_no_worker_starts_where_nothing_is_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared, run = localised(tmp_path, 0)
    make_masks(prepared, run)
    before = pngs(run)
    again = open_run(run.root, tmp_path / "data", Settings(workers=2))
    children = started(monkeypatch)
    done = make_masks(prepared, again)
    assert (done.images, done.images_per_s, done.worker_peak_mb) == (0, 0, 0)
    assert not children and pngs(run) == before


def test_masks_come_in_the_order_of_completion(tmp_path: Path) -> None:
    prepared, run = localised(tmp_path, 2)
    order = []

    def watch(items: Iterable[T], title: str, total: int) -> Iterator[T]:
        assert (title, total) == ("masks", 6)
        for item in items:
            assert isinstance(item, pool.Made)
            order.append(item.id)
            yield item

    make_masks(prepared, run, watch)
    assert sorted(order) == [sample.id for sample in prepared.dataset.samples]


@pytest.mark.parametrize("workers", [0, 1, 2])
@pytest.mark.parametrize("what", ["image", "maps"])
def test_a_broken_file_in_the_middle_is_named_and_can_be_mended(what: str, workers: int, tmp_path: Path) -> None:
    prepared, run = localised(tmp_path, workers)
    sample = prepared.dataset.samples[3]
    broken = sample.image if what == "image" else map_file(run, sample.id)
    whole = broken.read_bytes()
    broken.write_bytes(whole[:100])
    message = rf"{re.escape(str(sample.image))}: no mask could be made of it: {re.escape(str(broken))}: .*damaged"
    with pytest.raises(RunError, match=message):
        make_masks(prepared, run)
    assert mask_file(run.decided_masks, "sub/0 ü").exists() and not mask_file(run.masks, sample.id).exists()
    assert not leftovers(run)
    broken.write_bytes(whole)
    before = pngs(run)
    assert make_masks(prepared, run).images == 6 - len(before) // 2
    assert before.items() <= pngs(run).items() and len(pngs(run)) == 12


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_a_worker_that_is_killed_is_told_of_and_the_rest_is_made_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared, run = localised(tmp_path, 1)
    children = started(monkeypatch)

    def kill(items: Iterable[T], title: str, total: int) -> Iterator[T]:
        for item in items:
            children[0].kill()
            yield item

    with pytest.raises(RunError, match=r"jpg: the worker process that made its mask was killed by signal 9, as systems "
                       "do that run out of memory; run the same command again to continue, and with fewer --workers"):  # fmt: skip
        make_masks(prepared, run, kill)
    before = len(pngs(run)) // 2
    assert 1 <= before < 6
    run.remove_leftovers("masks")
    assert make_masks(prepared, run).images >= 6 - before and len(pngs(run)) == 12 and not leftovers(run)


def test_a_worker_that_cannot_start_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared, run = localised(tmp_path, 2)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RunError, match=r"\.jpg: the worker process that made its mask ended with status 1; run the"):
        make_masks(prepared, run)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_after_an_interruption_no_worker_and_no_half_file_is_left(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared, run = localised(tmp_path, workers)
    children = started(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        make_masks(prepared, run, interrupted)
    assert len(children) == workers and all(child.returncode == 0 for child in children)
    assert not leftovers(run)
    before = pngs(run)
    assert {name.partition("/")[2] for name in before if name.startswith("masks/")} == {
        name.partition("/")[2] for name in before if name.startswith("masks_without_void/")
    }
    make_masks(prepared, run)
    undisturbed = localised(tmp_path / "other", workers)
    make_masks(*undisturbed)
    assert pngs(run) == pngs(undisturbed[1])


def test_a_worker_that_hangs_is_killed_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared, run = localised(tmp_path, 1)
    children = started(monkeypatch)
    monkeypatch.setattr(pool, "GRACE_S", 0.2)

    def hang(items: Iterable[T], title: str, total: int) -> Iterator[T]:
        yield from itertools.islice(items, 1)
        children[0].send_signal(signal.SIGSTOP)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_masks(prepared, run, hang)
    # It may have been stopped with nothing left to do but to end.
    assert children[0].returncode == -signal.SIGKILL


def test_a_failure_reaches_whoever_hands_over_the_next_image(tmp_path: Path) -> None:
    prepared, run = localised(tmp_path, 1)
    first, second = prepared.dataset.samples[:2]
    first.image.write_bytes(b"")
    with (
        pytest.raises(RunError, match=re.escape(str(first.image))),
        pool.mask_workers(run, prepared.sizes, 1, lambda sample: pool.Made(sample.id, False, 0.0)) as workers,
    ):
        workers.give(first)
        with pytest.raises(RunError):
            list(workers.made())
        workers.give(second)
    assert not pngs(run)
