import dataclasses
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from tagseg.errors import RunError
from tagseg.prediction import predict as predict_module
from tagseg.prediction.local_engine import local_outcomes
from tagseg.prediction.outputs import Outcome
from tagseg.prediction.plan import Plan
from tagseg.prediction.predict import predict
from tagseg.prediction.ray_engine import TASK_CPUS, Actors, byte_budget, choose_actors
from tagseg.run.folder import Run
from tagseg.segment.engines import Opened
from tagseg.segment.load import load
from tagseg.segment.resolution import Resolution
from tagseg.settings.crf import CrfSettings
from tagseg.settings.predict import Engine, EngineName, PredictOptions
from tagseg.system.progress import Track

Interrupted = Callable[[int], Track]

CPU, RAY = PredictOptions(device="cpu"), PredictOptions(device="cpu", on="ray")


def written(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Rows:
    """A stand-in for a Ray data set that runs its steps in this process, one row at a time."""

    def __init__(self, rows: Iterable[Any], steps: list[str]) -> None:
        self.rows, self.steps = rows, steps

    def map(self, step: Any, num_cpus: float) -> "Rows":
        assert num_cpus == TASK_CPUS
        self.steps.append(step.func.__name__)
        return Rows(map(step, self.rows), self.steps)

    def flat_map(self, kind: Any, *, fn_constructor_args: Any, compute: int, num_cpus: float, num_gpus: int) -> "Rows":
        assert (compute, num_gpus) == (2, 0) and num_cpus > 0
        self.steps.append(kind.__name__)
        actor = kind(*fn_constructor_args)
        return Rows((row for before in self.rows for row in actor(before)), self.steps)

    def iter_rows(self) -> Iterator[Any]:
        return iter(self.rows)


@pytest.fixture
def one_process(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Replace Ray by a stand-in that works in this process, and return the context that was configured."""
    ray, data, context = ModuleType("ray"), ModuleType("ray.data"), SimpleNamespace()
    context.execution_options, context.calls, context.steps = SimpleNamespace(), [], []

    def init(address: str, **about: Any) -> None:
        context.calls.append((address, about))
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as Ray replaces it

    class RayError(Exception): ...

    parts = {"DataContext": SimpleNamespace(get_current=lambda: context), "ActorPoolStrategy": lambda size: size}
    parts |= {"from_items": lambda items, override_num_blocks: Rows(items, context.steps), "ExecutionResources": dict}
    for name, part in parts.items():
        setattr(data, name, part)
    parts = {"init": init, "shutdown": lambda: context.calls.append("shutdown"), "is_initialized": lambda: False}
    parts |= {"cluster_resources": lambda: {"CPU": 2.0 * torch.get_num_threads()}, "data": data}
    parts |= {"exceptions": SimpleNamespace(RayError=RayError)}
    for name, part in parts.items():
        setattr(ray, name, part)
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.data", data)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    context.error = RayError
    return context


@pytest.mark.parametrize(
    "options",
    [
        CPU,
        PredictOptions(device="cpu", batch=3),
        PredictOptions(device="cpu", crf=True, overlays=True, probabilities=True),
    ],
)
def test_the_steps_write_what_the_local_engine_writes(
    options: PredictOptions, run: Run, photos: list[Path], tmp_path: Path, one_process: SimpleNamespace
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    predict(run.root, photos, tmp_path / "local", options)
    assert not one_process.calls
    done = predict(run.root, photos, tmp_path / "ray", dataclasses.replace(options, on="ray"))
    assert len(done.ids) == 42 and written(tmp_path / "ray") == written(tmp_path / "local")
    (address, _), ended = one_process.calls
    assert (address, ended) == ("local", "shutdown") and signal.getsignal(signal.SIGTERM) == before
    # In order, and with memory for a few chunks only.
    assert one_process.execution_options.preserve_order
    limits = one_process.execution_options.resource_limits
    crf = CrfSettings() if options.crf else None
    plan = Plan(load(run.root, "cpu").classes, Resolution(64, 64), 120.0, crf, probabilities=options.probabilities)
    assert limits == {"object_store_memory": byte_budget(plan, options.batch or 1, 2)}
    # Only the dense CRF, which takes longer than the network, is worth sending probabilities to other processes.
    assert one_process.steps == (["read_chunk", "NetworkActor", "finish_row"] if options.crf else ["ChunkActor"])


@pytest.mark.parametrize(
    ("address", "device", "gpu", "engine", "handed"),
    [
        (None, "auto", False, "auto", "onnxruntime"),
        (None, "cpu", False, "auto", "onnxruntime"),
        (None, "auto", True, "auto", "torch"),
        ("ray://elsewhere:10001", "auto", False, "auto", "torch"),
        ("ray://elsewhere:10001", "auto", False, "onnxruntime", "onnxruntime"),
    ],
)
def test_workers_of_our_own_cluster_take_the_engine_that_is_fastest_here(
    address: str | None,
    device: str,
    gpu: bool,
    engine: Engine,
    handed: str,
    run: Run,
    photos: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(predict_module, "may_have_gpu", lambda: gpu)
    asked: list[PredictOptions] = []

    def fastest(root: Path, options: PredictOptions, *rest: Any) -> Opened:
        asked.append(options)
        chosen: EngineName = "onnxruntime" if options.engine == "auto" else options.engine  # type: ignore[assignment]
        return Opened(load(root, "cpu"), chosen, "the fastest")

    def outcomes(
        run: Path, found: dict[str, Any], todo: Sequence[str], plan: Plan, options: PredictOptions
    ) -> Iterator[Outcome]:
        asked.append(options)
        return local_outcomes(load(run, "cpu"), found, todo, plan)

    monkeypatch.setattr(predict_module, "open_predictor", fastest)
    monkeypatch.setattr(predict_module, "ray_outcomes", outcomes)
    done = predict(run.root, photos, tmp_path / "ray", PredictOptions(device=device, on="ray", engine=engine))
    here, workers = asked
    assert here.device == "cpu" and (workers.engine, workers.device) == (handed, device)
    assert done.engine == handed and len(done.ids) == 42


def test_one_engine_resumes_what_the_other_began(
    run: Run, photos: list[Path], tmp_path: Path, one_process: SimpleNamespace, interrupted: Interrupted
) -> None:
    once = predict(run.root, photos, tmp_path / "once", CPU)
    for first, second in ((CPU, RAY), (RAY, CPU)):
        out = tmp_path / first.on
        with pytest.raises(KeyboardInterrupt):
            predict(run.root, photos, out, first, interrupted(7))
        done = predict(run.root, photos, out, dataclasses.replace(second, resume=True))
        assert done.ids == once.ids and done.kept > 0 and written(out) == written(tmp_path / "once")


def test_an_error_of_ray_says_how_to_resume(
    run: Run, photos: list[Path], tmp_path: Path, one_process: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(said: str) -> Any:
        def rows(self: Rows) -> Iterator[Any]:
            raise one_process.error(said)

        return rows

    for said, message in (
        (
            "a worker died\nand again",
            r"stopped: a worker died and again\. Finished images are kept: run the same command with --resume",
        ),
        (
            "ray::f()\nMemoryError: no",
            r"Finished images are kept: lower --actors, --batch, .* and run the same command with --resume",
        ),
    ):
        monkeypatch.setattr(Rows, "iter_rows", fail(said))
        with pytest.raises(RunError, match=message):
            predict(run.root, photos, tmp_path / "out", RAY)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    ray = sys.modules["ray"]
    monkeypatch.setattr(ray, "init", lambda address, **_: (_ for _ in ()).throw(ConnectionError(f"{address} is off")))
    with pytest.raises(RunError, match=r"--on ray: cannot connect to 10\.0\.0\.1:6379 \(RAY_ADDRESS\): 10\.0\.0\.1"):
        predict(run.root, photos, tmp_path / "out", RAY)


def test_batches_are_the_same_after_an_interruption(
    run: Run, photos: list[Path], tmp_path: Path, interrupted: Interrupted
) -> None:
    options = PredictOptions(device="cpu", batch=3)
    predict(run.root, photos, tmp_path / "once", options)
    with pytest.raises(KeyboardInterrupt):
        predict(run.root, photos, tmp_path / "out", options, interrupted(7))
    assert 0 < len(list((tmp_path / "out").rglob("*.png"))) < 42
    # A process that is killed while it writes leaves such a file.
    (tmp_path / "out/sub/.writing-0123456789abcdef.png").write_bytes(b"half")
    predict(run.root, photos, tmp_path / "out", PredictOptions(device="cpu", batch=3, resume=True))
    assert written(tmp_path / "out") == written(tmp_path / "once")


def test_actors_fill_the_cluster() -> None:
    threads = torch.get_num_threads()
    assert choose_actors({"CPU": 64.0, "GPU": 4.0}) == Actors(4, "cuda", 1.0, 1, threads)
    assert choose_actors({"CPU": 8.0 * threads}) == Actors(8, "cpu", threads / 2, 0, threads)
    found = choose_actors({"CPU": 2.0, "GPU": 4.0}, "cpu", 3)
    # Half of the cluster is left for the tasks.
    assert (found.number, found.device, found.gpus) == (3, "cpu", 0) and found.cpus * 3 <= 1
    assert found.cpus != TASK_CPUS
    with pytest.raises(RunError, match=r"--device cuda: the Ray cluster has no GPU"):
        choose_actors({"CPU": 2.0}, "cuda")


def test_memory_is_that_of_a_few_chunks() -> None:
    plan = Plan(("background", "cat", "Bär"), Resolution(64, 64), 120.0)
    assert byte_budget(plan, 1, 2) == 4 * 2 * 16 * 64 * 64 * (3 + 4 * 3)
    assert byte_budget(plan, 8, 2) == 8 * byte_budget(plan, 1, 2)
    many = dataclasses.replace(plan, classes=tuple(map(str, range(21))))
    crf = dataclasses.replace(many, crf=CrfSettings())
    assert byte_budget(many, 1, 2) * (3 + 4 * 21) == byte_budget(crf, 1, 2) * (3 + 4 * 4)


def test_without_ray_the_extra_is_named_and_no_file_changes(
    run: Run, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict(run.root, photos[1], tmp_path / "out", CPU)
    before = written(tmp_path / "out")
    monkeypatch.setitem(sys.modules, "ray", None)
    for out in ("out", "new"):
        with pytest.raises(RunError, match=r"--on ray needs Ray: pip install 'tagseg\[ray\]'"):
            predict(run.root, photos, tmp_path / out, dataclasses.replace(RAY, force=True))
    assert written(tmp_path / "out") == before and not (tmp_path / "new").exists()
