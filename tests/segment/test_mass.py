import importlib.util
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tagseg.checkpoint import save_tensors
from tagseg.progress import Track, silent
from tagseg.run import Run, RunError, open_run
from tagseg.segment import shares
from tagseg.segment.finish import Outcome
from tagseg.segment.mass import (
    TASK_CPUS,
    Actors,
    Network,
    choose_actors,
    finish_row,
    from_row,
    read_share,
    share_text,
    to_row,
)
from tagseg.segment.networks import empty_segmenter
from tagseg.segment.options import PredictOptions
from tagseg.segment.pictures import Resolution
from tagseg.segment.predict import predict
from tagseg.segment.shares import Share, cut, share_size
from tagseg.settings import Settings

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="needs Ray, which is an extra: pip install 'tagseg[ray]'"
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return a run whose segmentation network was drawn at random."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("mass")
    run = open_run(root / "run", root, Settings())
    about = {"classes": ["background", "cat", "Bär"], "encoder": "test_resnet", "stride": 16}
    about |= {"predict_scales": [1.0], "predict_flip": True, "max_side": 64}
    network = empty_segmenter("test_resnet", 3, 16)
    # So that masks have more than one value.
    network.state_dict()["net.segmentation_head.0.weight"].normal_(std=3.0)
    with run.stage("segment"):
        save_tensors(run.segmenter / "network.safetensors", network.state_dict(), about)
    return run


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return a folder of images of three sizes in turn, with odd names, and a broken one; and a shard of two more."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "sub").mkdir()
    for i in range(40):
        size = ((40, 30), (30, 40), (90, 70))[i % 3]
        pixels = np.random.default_rng(i).integers(0, 256, (size[1] // 4 + 1, size[0] // 4 + 1, 3), np.uint8)
        Image.fromarray(pixels).resize(size).save(folder / ("sub" if i % 2 else "") / f"ü {i:02}.png")
    (folder / "ü 18.jpg").write_bytes(b"none")
    shard = tmp_path_factory.mktemp("shards") / "000.tar"
    with tarfile.open(shard, "w") as archive:
        archive.add(folder / "ü 00.png", "key/one.png")
        archive.add(folder / "sub/ü 01.png", "two.png")
    return [folder, shard]


def written(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def by_hand(run: Run, given: list[Share], options: PredictOptions) -> list[Outcome]:
    """Return the outcomes of shares by the functions that Ray runs, in one process."""
    network = Network(str(run.root), options, "cpu", 1)
    predictor = network.predictor
    found = []
    for share in given:
        read = read_share({"share": share_text(share)}, predictor.resolution, options.max_megapixels)
        for row in network(read):
            found.append(from_row(finish_row(row, predictor.classes, options)))
    return found


@pytest.mark.parametrize(
    "options",
    [
        PredictOptions(device="cpu"),
        PredictOptions(device="cpu", batch=3),
        PredictOptions(device="cpu", crf=True, overlays=True, probabilities=True),
    ],
)
def test_the_steps_leave_what_the_local_engine_leaves(
    options: PredictOptions, run: Run, photos: list[Path], tmp_path: Path
) -> None:
    taken: list[Outcome] = []

    def steps(predictor, run, found, todo, options):  # type: ignore[no-untyped-def]
        size = share_size(predictor.batch, predictor.resolution, options.max_megapixels)
        outcomes = by_hand(Run(run), cut(found, todo, size, predictor.batch), options)
        taken.extend(outcomes)
        return iter(outcomes)

    predict(run.root, photos, tmp_path / "local", options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tagseg.segment.predict.ray_outcomes", steps)
        ray = PredictOptions(**{**vars(options), "engine": "ray"})
        predict(run.root, photos, tmp_path / "ray", ray)
    assert len(taken) == 43 and written(tmp_path / "ray") == written(tmp_path / "local")


def test_after_an_interruption_batches_are_the_same(run: Run, photos: list[Path], tmp_path: Path) -> None:
    options = PredictOptions(device="cpu", batch=3)
    predict(run.root, photos, tmp_path / "once", options)
    with pytest.raises(KeyboardInterrupt):
        predict(run.root, photos, tmp_path / "out", options, interrupted(7))
    assert 0 < len(list((tmp_path / "out").rglob("*.png"))) < 42
    # What a process leaves that is killed while it writes.
    (tmp_path / "out/sub/.writing-0123456789abcdef.png").write_bytes(b"half")
    predict(run.root, photos, tmp_path / "out", PredictOptions(device="cpu", batch=3, resume=True))
    assert written(tmp_path / "out") == written(tmp_path / "once")


def interrupted(after: int) -> Track:
    def track(items, title, total):  # type: ignore[no-untyped-def]
        for number, item in enumerate(items):
            if number == after:
                raise KeyboardInterrupt
            yield item

    return track


def test_rows_hold_any_name_and_any_file() -> None:
    outcome = Outcome("a/\udcff", {"image": "in/a/\udcff.jpg", "classes": []}, {"a/\udcff.png": b"\x00\xff"})
    assert from_row(to_row(outcome)) == outcome
    error = Outcome("b", {"image": "s3://b.jpg", "error": "damaged"})
    assert from_row(to_row(error)) == error
    share = Share({"a/\udcff": Path("in/a\n\udcff.jpg"), "b": "s3://bucket/b.jpg"}, frozenset("b"))
    assert json.loads(share_text(share))["wanted"] == ["b"] and share_text(share).isascii()
    reads = json.loads(read_share({"share": share_text(share)}, Resolution(8, 8), 1.0)["share"])["reads"]
    assert [one[:2] for one in reads] == [["a/\udcff", "in/a\n\udcff.jpg"], ["b", "s3://bucket/b.jpg"]]
    assert all(one[3] for one in reads)  # neither is there


def test_actors_fill_what_is_there() -> None:
    threads = torch.get_num_threads()
    auto, cpu = PredictOptions(engine="ray"), PredictOptions(engine="ray", device="cpu", actors=3)
    assert choose_actors({"CPU": 64.0, "GPU": 4.0}, auto) == Actors(4, "cuda", 1.0, 1, threads)
    assert choose_actors({"CPU": 8.0 * threads}, auto) == Actors(8, "cpu", threads / 2, 0, threads)
    found = choose_actors({"CPU": 2.0, "GPU": 4.0}, cpu)
    # Half of the cluster is left to the tasks.
    assert (found.number, found.device, found.gpus) == (3, "cpu", 0) and found.cpus * 3 <= 1
    assert found.cpus != TASK_CPUS
    with pytest.raises(RunError, match=r"--device cuda: the Ray cluster has no GPU"):
        choose_actors({"CPU": 2.0}, PredictOptions(engine="ray", device="cuda"))


def test_without_ray_the_extra_is_named(
    run: Run, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RunError, match=r"--engine ray needs Ray: pip install 'tagseg\[ray\]'"):
        predict(run.root, photos, tmp_path / "out", PredictOptions(engine="ray"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Run a small cluster for all tests: each would start its own."""
    import ray

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    address = os.environ.get("RAY_ADDRESS") or "local"
    own = {"num_cpus": 2, "include_dashboard": False, "_node_ip_address": "127.0.0.1"} if address == "local" else {}
    ray.init(address, log_to_driver=False, **own)
    yield
    ray.shutdown()


def holders() -> list[int]:
    """Return the processes that hold the network: Ray names them by what they run."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            title = (process / "cmdline").read_bytes() if process.name.isdigit() else b""
        except OSError:
            continue
        if title.startswith(b"ray::") and b"Network" in title:
            found.append(int(process.name))
    return found


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        PredictOptions(device="cpu", batch=3),
        PredictOptions(device="cpu", crf=True, overlays=True, probabilities=True),
        PredictOptions(device="cpu", format="parquet", rows=15),
    ],
)
def test_ray_leaves_the_bytes_of_the_local_engine(
    options: PredictOptions, run: Run, photos: list[Path], tmp_path: Path, cluster: None
) -> None:
    local = predict(run.root, photos, tmp_path / "local", options)
    done = predict(run.root, photos, tmp_path / "ray", PredictOptions(**{**vars(options), "engine": "ray"}))
    assert (done.ids, done.skipped) == (local.ids, local.skipped) and len(done.ids) == 42
    assert written(tmp_path / "ray") == written(tmp_path / "local")


@needs_ray
@pytest.mark.slow
def test_a_killed_actor_loses_nothing(
    run: Run, photos: list[Path], tmp_path: Path, cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Images go to the actors one by one, so that most have not when the first are written.
    monkeypatch.setattr(shares, "BATCHES", 1)
    killed: list[int] = []
    after: set[int] = set()

    def kill(items, title, total):  # type: ignore[no-untyped-def]
        for number, item in enumerate(items):
            if number == 2:
                killed.extend(holders())
                for process in killed:
                    os.kill(process, signal.SIGKILL)
            yield item
            after.update(holders())

    predict(run.root, photos, tmp_path / "local", PredictOptions(device="cpu"))
    done = predict(run.root, photos, tmp_path / "ray", PredictOptions(device="cpu", engine="ray"), kill)
    assert killed and after - set(killed), "others have taken their place"
    assert len(done.ids) == len(set(done.ids)) == 42
    # Lines too: no image twice, all in their order.
    assert written(tmp_path / "ray") == written(tmp_path / "local")


@needs_ray
@pytest.mark.slow
def test_what_was_killed_as_a_whole_goes_on(run: Run, photos: list[Path], tmp_path: Path) -> None:
    options = ["--engine", "ray", "--device", "cpu", "--no-flip"]
    command = [sys.executable, "-m", "tagseg", "predict", run.root, *photos, "--out", tmp_path / "ray", *options]
    predict(run.root, photos, tmp_path / "local", PredictOptions(device="cpu", flip=False))
    lines = tmp_path / "ray/predictions.jsonl"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # as here: rounding may depend on it
    process = subprocess.Popen(list(map(str, command)), env=environment)
    deadline = time.monotonic() + 600
    while not (lines.exists() and lines.read_bytes()) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    before = len(lines.read_bytes().splitlines())
    assert 0 < before < 43
    done = predict(
        run.root, photos, tmp_path / "ray", PredictOptions(device="cpu", flip=False, engine="ray", resume=True), silent
    )
    assert done.kept > 0 and len(done.ids) == 42
    assert written(tmp_path / "ray") == written(tmp_path / "local")
