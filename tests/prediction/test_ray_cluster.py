import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tagseg.prediction import chunks
from tagseg.prediction.predict import predict
from tagseg.run.folder import Run
from tagseg.settings.predict import PredictOptions

ray = pytest.importorskip("ray", reason="needs Ray, which is an extra: pip install 'tagseg[ray]'")

pytestmark = pytest.mark.slow

CPU, RAY = PredictOptions(device="cpu"), PredictOptions(device="cpu", on="ray")


def written(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Run one small cluster for all tests, or each would start its own."""
    # By default Ray's workers run at a low priority.
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    address = os.environ.get("RAY_ADDRESS") or "local"
    own = {"num_cpus": 2, "include_dashboard": False, "_node_ip_address": "127.0.0.1"} if address == "local" else {}
    ray.init(address, log_to_driver=False, **own)
    yield
    ray.shutdown()


def actor_processes() -> list[int]:
    """Return the processes that hold the network: Ray names them after what they run."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            title = (process / "cmdline").read_bytes() if process.name.isdigit() else b""
        except OSError:
            continue
        if title.startswith(b"ray::") and b"ChunkActor" in title:
            found.append(int(process.name))
    return found


@pytest.mark.parametrize(
    "options",
    [
        PredictOptions(device="cpu", batch=3, crf=True, overlays=True, probabilities=True),
        PredictOptions(device="cpu", format="parquet", rows=15),
        PredictOptions(device="cpu", engine="onnxruntime"),
    ],
)
def test_ray_writes_the_same_bytes_as_the_local_engine(
    options: PredictOptions, run: Run, photos: list[Path], tmp_path: Path, cluster: None
) -> None:
    if options.engine == "onnxruntime":
        pytest.importorskip("onnxruntime", reason="needs ONNX Runtime: pip install 'tagseg[onnx]'")
    local = predict(run.root, photos, tmp_path / "local", options)
    done = predict(run.root, photos, tmp_path / "ray", dataclasses.replace(options, on="ray"))
    assert (done.ids, done.skipped) == (local.ids, local.skipped) and len(done.ids) == 42
    assert written(tmp_path / "ray") == written(tmp_path / "local")


def test_a_killed_actor_loses_nothing(
    run: Run, photos: list[Path], tmp_path: Path, cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Images go to the actors one by one, so that most are still waiting when the first are written.
    monkeypatch.setattr(chunks, "BATCHES_PER_CHUNK", 1)
    killed: list[int] = []
    after: set[int] = set()

    def kill(items, title, total):  # type: ignore[no-untyped-def]
        for number, item in enumerate(items):
            if number == 2:
                killed.extend(actor_processes())
                for process in killed:
                    os.kill(process, signal.SIGKILL)
            yield item
            after.update(actor_processes())

    predict(run.root, photos, tmp_path / "local", CPU)
    done = predict(run.root, photos, tmp_path / "ray", RAY, kill)
    assert killed and after - set(killed), "new actors have replaced them"
    assert len(done.ids) == len(set(done.ids)) == 42
    # This covers the lines: no image twice, all in their order.
    assert written(tmp_path / "ray") == written(tmp_path / "local")


def test_a_prediction_that_was_stopped_and_then_killed_resumes(
    run: Run, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Relative paths, as a user types them.
    monkeypatch.chdir(tmp_path)
    given = [os.path.relpath(path) for path in photos]
    options = ["--on", "ray", "--device", "cpu", "--no-flip", "--batch", "2"]
    command = [sys.executable, "-m", "tagseg", "predict", run.root, *given, "--out", "ray", *options]
    predict(run.root, given, "local", dataclasses.replace(CPU, flip=False, batch=2))
    lines = Path("ray/predictions.jsonl")
    # With as many threads as here, because rounding may depend on it.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}

    def end(by: signal.Signals, *more: str) -> tuple[int, bytes]:
        """Send the command a signal once it has written more lines."""
        size = lines.stat().st_size if lines.exists() else 0
        process = subprocess.Popen([*map(str, command), *more], env=environment, stderr=subprocess.PIPE)
        with process:
            deadline = time.monotonic() + 600
            while not (lines.exists() and lines.stat().st_size > size) and process.poll() is None:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            process.send_signal(by)
            _, said = process.communicate(timeout=120)
        return process.returncode, said

    status, said = end(signal.SIGTERM)
    assert status == 128 + signal.SIGTERM
    assert b"Run the same command again with --resume to continue." in said, said
    stopped = len(lines.read_bytes().splitlines())
    assert 0 < stopped < 43
    end(signal.SIGKILL, "--resume")
    killed = len(lines.read_bytes().splitlines())
    assert stopped <= killed < 43
    done = predict(run.root, given, "ray", dataclasses.replace(RAY, flip=False, batch=2, resume=True))
    assert done.kept > 0 and len(done.ids) == 42
    assert written(Path("ray")) == written(Path("local"))
