"""Several processes that train together learn what one does with the same batches."""

import dataclasses
import datetime
import json
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from PIL import Image

from tagseg.cli.main import main
from tagseg.data.records import VOID, Dataset, Sample
from tagseg.errors import RunError
from tagseg.masks.mask_files import write_mask
from tagseg.rca import train as rca_train
from tagseg.rca.bank import Bank
from tagseg.rca.network import RcaNetwork
from tagseg.rca.oaa import FILE
from tagseg.rca.train import train
from tagseg.segment.train import train_segmenter
from tagseg.settings.rca import RcaSettings
from tagseg.settings.segment import SegmentSettings
from tagseg.settings.settings import Settings
from tagseg.settings.train import TrainSettings
from tagseg.system.progress import Track, silent
from tagseg.system.signals import raised
from tagseg.training.checkpoint import load_tensors, save_tensors
from tagseg.training.distributed import ALONE, Group, LostProcess, Shares, open_group, share_of
from tagseg.training.loading import loader
from tagseg.training.shared_layers import join_network

Together = Callable[..., list[Any]]

SETTINGS = Settings(
    device="cpu",
    workers=0,
    train=TrainSettings(
        backbone="test_resnet", weights="random", neck=8, epochs=2, batch=4, crop=33, freeze_stride=0, lr=0.01,
        freeze_batch_norm=False,
    ),
    rca=RcaSettings(slots=6, prototypes=2, confidence=0.0, region_rule="peak"),
    # Batches of 4, 4 and 3 images, the last one a step of its own; dropout is DeepLabV3+'s own.
    segment=SegmentSettings(
        decoder_channels=8, epochs=2, batch=4, accumulate=2, crop=48, max_side=64, freeze_stride=0,
        freeze_batch_norm=False, ema=0.9,
    ),
)  # fmt: skip
IMAGES = 11


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Eleven noisy pictures of two classes, red and green, with masks and saliency maps."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    samples = []
    for i in range(IMAGES):
        tags = (1, 2) if i in (4, 8) else (1 + i % 2,)
        picture, mask = generator.integers(0, 120, (56, 64, 3), np.uint8), np.zeros((56, 64), np.uint8)
        for tag in tags:
            picture[10:40, 20 * tag : 20 * tag + 20, tag - 1] += 120
            mask[10:40, 20 * tag : 20 * tag + 20] = tag
        Image.fromarray(picture).save(folder / f"{i}.png")
        Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).save(folder / f"saliency{i}.png")
        mask[50:] = VOID
        write_mask(folder / "masks" / f"{i}.png", mask)
        samples.append(Sample(str(i), folder / f"{i}.png", tags, saliency=folder / f"saliency{i}.png"))
    return Dataset(folder, "folder", ("red", "green"), tuple(samples))


def losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows]


def files(folder: Path) -> dict[str, bytes]:
    """What a training leaves, but for the seconds in its history."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "history.jsonl"}


def learn(dataset: Dataset, settings: Settings, folder: Path, track: Track = silent) -> int:
    """Train the classifier; every process leaves its bank beside the folder, and says how often it ran k-means."""
    banks: list[Bank] = []
    clustered: list[Bank] = []

    def bank(*arguments: Any) -> Bank:
        banks.append(Bank(*arguments))
        return banks[-1]

    def refresh(network: RcaNetwork, bank: Bank, generator: torch.Generator) -> None:
        clustered.append(bank)
        again(network, bank, generator)

    again = RcaNetwork.refresh_prototypes
    with pytest.MonkeyPatch.context() as patch, open_group("cpu") as group:
        patch.setattr(rca_train, "Bank", bank)
        patch.setattr(RcaNetwork, "refresh_prototypes", refresh)
        train(dataset, settings, folder, track, group)
    save_tensors(folder.with_name(f"bank{group.rank}.safetensors"), banks[0].state_dict(), {})
    return len(clustered)


@pytest.mark.parametrize(("count", "change"), [(2, "plain"), (4, "oaa"), (2, "eps"), (2, "bf16")])
def test_the_classifier_learns_as_by_one_process(
    count: int, change: str, dataset: Dataset, together: Together, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {"oaa": {"maps": "oaa"}, "eps": {"maps": "eps"}, "bf16": {"precision": "bf16"}}
    settings = dataclasses.replace(SETTINGS, **changes.get(change, {}))
    learn(dataset, settings, tmp_path / "one" / "network")
    assert together(count, learn, dataset, settings, tmp_path / "many" / "network") == [2] + [0] * (count - 1)
    one, many = tmp_path / "one" / "network", tmp_path / "many" / "network"
    assert files(one).keys() == files(many).keys()
    tolerance = 2e-2 if change == "bf16" else 1e-5
    assert losses(many) == pytest.approx(losses(one), rel=tolerance)

    banks = [(tmp_path / "many" / f"bank{number}.safetensors").read_bytes() for number in range(count)]
    assert len(set(banks)) == 1
    for name in ("network", "bank") if change != "bf16" else ():  # whose rounding grows in a few steps
        (alone, _), (shared, _) = (load_tensors(folder / f"{name}.safetensors") for folder in (one, many))
        for key, value in alone.items():
            difference = (value.double() - shared[key].double()).abs().max()
            assert difference < 1e-3, key
    if change == "oaa":
        apart = np.abs(np.load(one / FILE).astype(int) - np.load(many / FILE).astype(int))
        assert np.load(one / FILE).any() and apart.max() <= 1


def test_the_segmenter_learns_as_by_one_process(dataset: Dataset, together: Together, tmp_path: Path) -> None:
    def learn_masks(folder: Path) -> None:
        with open_group("cpu") as group:
            train_segmenter(dataset, dataset.root / "masks", SETTINGS, folder, group=group)

    learn_masks(tmp_path / "one")
    assert together(4, learn_masks, tmp_path / "many") == [None] * 4
    assert losses(tmp_path / "many") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    (alone, _), (shared, _) = (load_tensors(tmp_path / name / "network.safetensors") for name in ("one", "many"))
    assert all(torch.allclose(alone[name], shared[name], rtol=1e-2, atol=2e-3) for name in alone)


def test_workers_and_a_second_training_in_the_same_processes_change_nothing(
    dataset: Dataset, together: Together, tmp_path: Path
) -> None:
    once = dataclasses.replace(SETTINGS, train=dataclasses.replace(SETTINGS.train, epochs=1))

    def twice(folder: Path) -> None:
        for name, workers in (("none", 0), ("three", 3)):
            learn(dataset, dataclasses.replace(once, workers=workers), folder / name / "network")

    assert together(2, twice, tmp_path) == [None] * 2
    assert files(tmp_path / "none" / "network") == files(tmp_path / "three" / "network")


def test_after_a_process_died_the_others_say_so_and_the_next_run_continues(
    dataset: Dataset, together: Together, tmp_path: Path
) -> None:
    def dying(items: Iterable[Any], title: str, total: int) -> Iterator[Any]:
        for i, item in enumerate(items):
            if title == "train, epoch 2/2" and i == 1 and os.environ["RANK"] == "1":
                os.kill(os.getpid(), signal.SIGKILL)
            yield item

    broken, whole = tmp_path / "broken" / "network", tmp_path / "whole" / "network"
    main_one, died = together(2, learn, dataset, SETTINGS, broken, dying, seconds=120)
    assert died is None
    assert main_one.startswith("LostProcess: process 0 of 2: another process of this training has ended")
    assert issubclass(LostProcess, RunError)
    assert "Run the same command again to resume after the last finished epoch" in main_one
    assert [path.name for path in broken.iterdir()] == ["checkpoint.safetensors"]
    for folder in (broken, whole):
        assert together(2, learn, dataset, SETTINGS, folder)[1] == 0
    assert files(broken) == files(whole)
    assert losses(broken) == losses(whole)


def test_those_that_wait_for_the_main_process_learn_of_its_end(together: Together) -> None:
    def work() -> int:
        with open_group("cpu") as group:
            group.broadcast_int()  # all are there
            if group.is_main:
                os.kill(os.getpid(), signal.SIGKILL)
            return group.broadcast_int(7)

    killed, *others = together(4, work, seconds=120)
    assert killed is None
    assert all("another process of this training has ended" in other for other in others)


def test_a_process_that_never_joins_is_noticed_but_the_main_process_may_take_its_time(
    together: Together, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tagseg.training.distributed.TIMEOUT", datetime.timedelta(seconds=3))

    def absent() -> int:
        with open_group("cpu") as group:
            group.broadcast_int()  # both have joined
            if group.is_main:
                time.sleep(6)
            return group.broadcast_int(7)  # a collective waits for the timeout and no longer

    main_one, other = together(2, absent, seconds=120)
    assert "another process of this training has ended or does not answer" in other and main_one != 7

    def slow() -> str:
        with open_group("cpu") as group:
            if not group.is_main:
                return group.next_message()
            time.sleep(6)
            group.post("train")
            return "posted"

    def both() -> str:
        found = slow()
        time.sleep(2)  # the store ends with the main process
        return found

    assert together(2, both, seconds=120) == ["posted", "train"]


@pytest.mark.parametrize("asked", ["0", "1"])
def test_a_signal_to_one_process_saves_the_step_and_the_next_run_ends_with_the_same_bytes(
    asked: str, dataset: Dataset, together: Together, tmp_path: Path
) -> None:
    def signalled(items: Iterable[Any], title: str, total: int) -> Iterator[Any]:
        for i, item in enumerate(items):
            if title == "train, epoch 2/2" and i == 1 and os.environ["RANK"] == asked:
                os.kill(os.getpid(), signal.SIGTERM)
            yield item

    def interrupted(folder: Path) -> str:
        with raised():
            try:
                learn(dataset, SETTINGS, folder, signalled)
            except KeyboardInterrupt as stopped:
                return type(stopped).__name__
        return "went on"

    stopped, whole = tmp_path / "stopped" / "network", tmp_path / "whole" / "network"
    ways = together(2, interrupted, stopped)
    assert ways[int(asked)] == "Terminated" and ways[1 - int(asked)] == "KeyboardInterrupt"
    _, about = load_tensors(stopped / "checkpoint.safetensors")
    assert about["partway"]["done"] == 2 and len(about["history"]) == 1
    for folder in (stopped, whole):
        assert together(2, learn, dataset, SETTINGS, folder)[1] == 0
    assert files(stopped) == files(whole)
    assert losses(stopped) == losses(whole)


def test_all_machines_must_see_the_same_state(dataset: Dataset, together: Together, tmp_path: Path) -> None:
    def apart() -> None:
        learn(dataset, SETTINGS, tmp_path / os.environ["RANK"] / "network")

    def stop(items: Iterable[Any], title: str, total: int) -> Iterator[Any]:
        if title.startswith("train, epoch 2"):
            raise KeyboardInterrupt
        return iter(items)

    with pytest.raises(KeyboardInterrupt):
        learn(dataset, SETTINGS, tmp_path / "0" / "network", stop)
    _, other = together(2, apart, seconds=120)
    assert "differs from the main process's; all machines must see the same run folder" in other


def test_rows_are_gathered_in_their_order_and_gradients_flow_into_ones_own(together: Together) -> None:
    def work(counts: list[int]) -> list[Any]:
        with open_group("cpu") as group:
            group.share = share_of(3, group.rank, group.world_size)  # the first of four has no image of its own
            rows = counts[group.rank]
            own = torch.full((rows, 2), group.rank + 1.0, requires_grad=True)
            numbers = torch.arange(rows) + 10 * group.rank
            values, flags, all_numbers = group.all_gather(own, numbers % 2 == 0, numbers)
            (values.square().sum() * 3).backward()
            assert own.grad is not None and flags.dtype == torch.bool
            state = torch.tensor([group.rank == 0, False])
            group.broadcast(state)
            sums = group.sum(float(group.rank), 0.5)
            told = group.broadcast_int(group.rank + 5)
        return [
            values[:, 0].tolist(),
            flags.tolist(),
            all_numbers.tolist(),
            own.grad.tolist(),
            state.tolist(),
            sums,
            told,
        ]

    outcomes = together(4, work, [1, 2, 0, 1])
    for number, (values, flags, numbers, gradient, state, sums, told) in enumerate(outcomes):
        assert values == [2, 2, 4] and numbers == [10, 11, 30] and flags == [True, False, True]
        rows, own = [1, 2, 0, 1][number], 6.0 * (number + 1) * (number > 0)
        assert gradient == [[own, own]] * rows
        assert state == [True, False] and sums == [6, 2] and told == 5


def test_a_single_process_leaves_tensors_and_networks_unchanged() -> None:
    rows = torch.rand(3, 2)
    assert ALONE.all_gather(rows, rows)[1] is rows and ALONE.own(rows)[0] is rows
    assert ALONE.sum(1.0, 2.5) == [1, 2.5] and ALONE.broadcast_int(4) == 4 and ALONE.is_main
    network = torch.nn.Linear(2, 1)
    assert join_network(network, ALONE) is network
    with open_group("anything at all") as group:
        assert group is ALONE


@given(total=st.integers(1, 50), count=st.integers(1, 12))
def test_shares_are_contiguous_and_differ_by_at_most_one_image(total: int, count: int) -> None:
    shares = [share_of(total, number, count) for number in range(count)]
    seen = [image for share in shares for image in range(share.first, share.first + share.own)]
    assert seen == list(range(total)) and all(share.total == total for share in shares)
    assert max(share.own for share in shares) - min(share.own for share in shares) <= 1


@given(length=st.integers(1, 30), batch=st.integers(1, 7), count=st.integers(2, 5))
def test_processes_read_the_batches_of_one(length: int, batch: int, count: int) -> None:
    data = torch.utils.data.TensorDataset(torch.arange(length))
    whole = [numbers.tolist() for (numbers,) in loader(data, batch, 0, 3)]
    loaders = [loader(data, batch, 0, 3, group=Group(number, count)) for number in range(count)]
    assert {len(one) for one in loaders} == {len(whole)}
    parts: list[list[int]] = [[] for _ in whole]
    for number, one in enumerate(loaders):
        sampler = one.batch_sampler
        assert isinstance(sampler, Shares)
        for i, ((numbers,), share) in enumerate(zip(one, sampler.shares, strict=True)):
            assert share == share_of(len(whole[i]), number, count) and len(numbers) == max(share.own, 1)
            parts[i] += numbers.tolist()[: share.own]
            assert share.own or numbers.tolist() == whole[i][:1]
    assert parts == whole


def test_each_process_takes_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"--device cuda:1: 2 processes were launched"), open_group("cuda:1"):
        pass


def test_commands_that_cannot_be_shared_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as left:
        main(["demo", "--out", str(tmp_path / "demo")])
    assert left.value.code == 2 and not (tmp_path / "demo").exists()
    assert "tagseg demo runs in one process, 2 were launched" in capsys.readouterr().err
