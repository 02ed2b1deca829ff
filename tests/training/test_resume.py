"""Maps and masks of a run whose stages overlap, break, or are killed: in the end the bytes are the same."""

import dataclasses
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import tagseg
from tagseg.errors import RunError
from tagseg.pipeline import fit_until, run_stage
from tagseg.run.folder import Run
from tagseg.run.stages import OUTPUTS, STAGES, Stage
from tagseg.settings.masks import MaskSettings
from tagseg.settings.settings import Settings

SOURCE = Path(tagseg.__file__).parents[1]
IMAGES = 9


@pytest.fixture(scope="module")
def original(discs: Path, tiny: Settings) -> Run:
    """Return a run whose masks were made one by one in one process."""
    fit_until(discs, discs.parent / "resume", "masks", tiny)
    return Run(discs.parent / "resume")


@pytest.fixture
def run(original: Run, tmp_path: Path) -> Run:
    """Return a copy of it, to be spoiled."""
    return Run(shutil.copytree(original.root, tmp_path / "run"))


def digests(run: Run) -> dict[str, str]:
    stages = run.manifest().stages
    return {name: digest for stage in ("localise", "masks") for name, digest in stages[stage].files.items()}


def images_of(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("[0-9]*")}


def pairs_of(run: Run) -> list[str]:
    return sorted(images_of(run.masks) & images_of(run.decided_masks))


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_masks_are_made_while_maps_are_still_found(run: Run, original: Run, discs: Path, tiny: Settings) -> None:
    run.discard("localise")
    early: set[str] = set()

    def wait_for_masks(items, title, total):  # type: ignore[no-untyped-def]
        for done, item in enumerate(items, 1):
            deadline = time.monotonic() + 60
            while title == "localise" and done == total and not early and time.monotonic() < deadline:
                early.update(images_of(run.masks))
                time.sleep(0.01)
            yield item

    fit_until(discs, run.root, "masks", dataclasses.replace(tiny, workers=2), track=wait_for_masks)
    assert early and digests(run) == digests(original)
    stages = run.manifest().stages
    assert tuple(stages) == STAGES[:3]
    for stage in ("localise", "masks"):
        assert stages[stage].images == IMAGES and stages[stage].images_per_s > 0
    assert stages["masks"].worker_peak_mb > 10
    assert original.manifest().stages["masks"].worker_peak_mb == 0


def test_the_stages_alone_make_the_same(run: Run, original: Run, tiny: Settings) -> None:
    run.discard("localise")
    run_stage(run.root, "localise", dataclasses.replace(tiny, workers=2))
    assert run.done("localise") and not run.masks.exists()
    run_stage(run.root, "masks")
    assert digests(run) == digests(original)


def test_a_broken_image_ends_both_stages_and_can_be_mended(
    original: Run, discs: Path, tiny: Settings, tmp_path: Path
) -> None:
    data = shutil.copytree(discs, tmp_path / "data")
    fit_until(data, tmp_path / "run", "train", dataclasses.replace(tiny, workers=1))
    broken = data / "images/5.png"
    content = broken.read_bytes()
    broken.write_bytes(content[:300])
    with pytest.raises(ValueError, match=r"1 image with another content \(first 5\)"):
        fit_until(data, tmp_path / "run", "masks")
    run = Run(tmp_path / "run")
    assert not run.done("localise") and not run.done("masks") and len(images_of(run.maps)) < IMAGES
    broken.write_bytes(content)
    fit_until(data, tmp_path / "run", "masks")
    assert digests(run) == digests(original)


CHILD = """
import sys, time
from tagseg.pipeline import fit_until

def stalling(items, title, total):
    for done, item in enumerate(items, 1):
        time.sleep(600 if title == sys.argv[3] and done == total - 3 else 0.05)
        yield item

fit_until(sys.argv[1], sys.argv[2], "masks", track=stalling)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
@pytest.mark.parametrize(("stage", "workers"), [("localise", 2), ("masks", 0)])
def test_after_a_kill_the_images_continue(stage: Stage, workers: int, run: Run, discs: Path, tiny: Settings) -> None:
    whole = digests(run)
    run.discard(stage)
    run.settings_file.write_text(dataclasses.replace(tiny, workers=workers).to_toml())
    # Sums are rounded differently by another number of threads.
    environment = os.environ | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    child = subprocess.Popen([sys.executable, "-c", CHILD, discs, run.root, stage], env=environment)
    deadline = time.monotonic() + 100
    try:
        while len(pairs_of(run)) < 2:
            assert child.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        child.kill()
    assert child.wait() == -signal.SIGKILL
    assert not run.done(stage) and not run.done("masks")

    # What has its name is whole.
    maps, pairs = times(run.maps), pairs_of(run)
    assert len(pairs) < IMAGES and (len(images_of(run.maps)) < IMAGES) == (stage == "localise")
    for path in (
        path for output in OUTPUTS["localise"] + OUTPUTS["masks"] for path in (run.root / output).glob("[0-9]*")
    ):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == whole[path.relative_to(run.root).as_posix()]

    # Half a pair, and half a file under a temporary name, are made again.
    (run.decided_masks / f"{pairs[0]}.png").unlink()
    (run.masks / ".writing-0.png").write_bytes(b"half")
    fit_until(discs, run.root, "masks")
    assert digests(run) == whole and not list(run.root.rglob(".writing-*"))
    kept = {name for name in maps if not name.startswith(".")}
    assert {name: stamp for name, stamp in times(run.maps).items() if name in kept} == {n: maps[n] for n in kept}
    if stage == "localise":
        assert run.manifest().stages["localise"].images == IMAGES - len(kept)
    # A worker that outlived the kill may have finished its image since.
    assert 1 <= run.manifest().stages["masks"].images <= IMAGES - len(pairs) + 1


def test_other_mask_settings_need_force_when_masks_were_begun_during_localise(
    run: Run, discs: Path, tiny: Settings
) -> None:
    (run.maps / "3.npz").unlink()
    run.store(run.manifest().without_stages(["localise", "masks"]))
    other = dataclasses.replace(tiny, masks=MaskSettings(background="threshold", threshold=0.6))
    with pytest.raises(RunError, match=r"masks\.background was 'auto', now 'threshold'.*run it again from stage masks"):
        fit_until(discs, run.root, "masks", other)
    maps = times(run.maps)
    fit_until(discs, run.root, "masks", other, force=True)
    assert run.manifest().stages["localise"].images == 1
    assert run.manifest().stages["masks"].images == IMAGES
    assert maps.items() < times(run.maps).items()
