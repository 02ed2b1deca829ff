import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor

from tagseg.data.records import Dataset
from tagseg.errors import RunError
from tagseg.rca import train as module
from tagseg.rca.bank import Bank
from tagseg.rca.contrast import contrast, mixed_contrast
from tagseg.rca.network import Maps
from tagseg.rca.regions import mine_regions, pool_regions
from tagseg.rca.step import contrast_loss, tag_loss
from tagseg.rca.train import load_network, train
from tagseg.settings.rca import RcaSettings
from tagseg.settings.settings import Settings
from tagseg.settings.train import TrainSettings
from tagseg.system.progress import T
from tagseg.training.checkpoint import load_tensors
from tagseg.training.loading import epoch_seed

SETTINGS = Settings(
    device="cpu",
    workers=0,
    train=TrainSettings(
        backbone="test_resnet", weights="random", neck=8, epochs=2, batch=4, crop=33, freeze_stride=0, lr=0.01
    ),
    rca=RcaSettings(slots=6, prototypes=2, confidence=0.0),
)


def changed(settings: Settings = SETTINGS, train: dict[str, object] | None = None, **rca: object) -> Settings:
    return dataclasses.replace(
        settings,
        train=dataclasses.replace(settings.train, **(train or {})),
        rca=dataclasses.replace(settings.rca, **rca),
    )


@pytest.fixture(scope="module")
def dataset(draw_squares: Callable[..., Dataset], tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Return nine noisy images of two classes, red and green, the last one of both."""
    return draw_squares(tmp_path_factory.mktemp("pictures"), count=9, height=56)


@pytest.fixture(scope="module")
def undisturbed(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(dataset, SETTINGS, tmp_path_factory.mktemp("undisturbed") / "network").folder


def files(folder: Path) -> dict[str, bytes]:
    """What a training leaves, but for the seconds in its history."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "history.jsonl"}


def figures(folder: Path) -> list[dict[str, float]]:
    rows = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def test_training_leaves_its_files(dataset: Dataset, undisturbed: Path) -> None:
    assert sorted(files(undisturbed)) == ["bank.safetensors", "network.json", "network.safetensors"]
    about = json.loads((undisturbed / "network.json").read_text())
    assert about["classes"] == ["red", "green"] and about["rca"]["slots"] == 6
    assert [row["epoch"] for row in figures(undisturbed)] == [1, 2]
    for row in figures(undisturbed):
        assert all(math.isfinite(value) for value in row.values())
        total = row["tag_refined"] + 0.4 * row["tag_coarse"] + 0.1 * row["contrast"]
        assert row["loss"] == pytest.approx(total, rel=1e-5)
    first, second = figures(undisturbed)
    assert first["contrast"] == 0 < second["contrast"]  # the first epoch warms up, the bank fills meanwhile
    bank, _ = load_tensors(undisturbed / "bank.safetensors")
    network, classes = load_network(undisturbed, torch.device("cpu"))
    assert classes == dataset.classes
    assert bank["filled"].tolist()[1:] == [6, 6]
    assert network.exists.any(1).tolist() == (bank["filled"] > 0).tolist()


def test_same_seed_gives_identical_tensors(dataset: Dataset, undisturbed: Path, tmp_path: Path) -> None:
    torch.rand(7)  # whatever was drawn before does not matter
    again = train(dataset, SETTINGS, tmp_path / "network").folder
    assert files(again) == files(undisturbed)
    assert figures(again) == figures(undisturbed)


def test_another_seed_gives_another_network(dataset: Dataset, undisturbed: Path, tmp_path: Path) -> None:
    settings = dataclasses.replace(changed(train={"epochs": 1}), seed=1)
    folder = train(dataset, settings, tmp_path / "network").folder
    assert figures(folder)[0]["loss"] != figures(undisturbed)[0]["loss"]


@pytest.mark.parametrize("steps", [0, 1], ids=["before a step", "inside the epoch"])
def test_interrupted_training_continues_to_the_same_bytes(
    steps: int, dataset: Dataset, undisturbed: Path, tmp_path: Path
) -> None:
    seen: list[str] = []

    def interrupted(items: Iterable[T], title: str, total: int) -> Iterator[T]:
        seen.append(title)
        for i, item in enumerate(items):
            if title == "train, epoch 2/2" and i == steps:
                raise KeyboardInterrupt
            yield item

    folder = tmp_path / "network"
    with pytest.raises(KeyboardInterrupt):
        train(dataset, SETTINGS, folder, interrupted)
    assert [path.name for path in folder.iterdir()] == ["checkpoint.safetensors"]

    def watched(items: Iterable[T], title: str, total: int) -> Iterator[T]:
        seen.append(title)
        assert total == 2  # the ninth picture alone would be a batch of one
        return iter(items)

    train(dataset, SETTINGS, folder, watched)
    assert seen == ["train, epoch 1/2", "train, epoch 2/2", "train, epoch 2/2"]
    assert files(folder) == files(undisturbed)
    assert figures(folder) == figures(undisturbed)


def test_workers_do_not_change_the_result(dataset: Dataset, undisturbed: Path, tmp_path: Path) -> None:
    folder = train(dataset, dataclasses.replace(SETTINGS, workers=2), tmp_path / "network").folder
    assert files(folder) == files(undisturbed)


def test_training_learns_from_tags(dataset: Dataset, tmp_path: Path) -> None:
    settings = changed(train={"epochs": 6, "freeze_batch_norm": False, "lr": 0.05, "scale": (0.9, 1.0), "jitter": 0.0})
    losses = [row["tag_refined"] for row in train(dataset, settings, tmp_path / "network").history]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(
    ("rca", "names"),
    [
        ({"contrast": False, "aggregation": False}, {"tag_refined", "tag_coarse"}),
        ({"contrast": True, "aggregation": False, "warmup": 0}, {"tag_refined", "tag_coarse", "contrast"}),
    ],
)
def test_parts_can_be_left_out(rca: dict[str, object], names: set[str], dataset: Dataset, tmp_path: Path) -> None:
    [row] = train(dataset, changed(train={"epochs": 1}, **rca), tmp_path / "network").history
    assert set(row) - {"epoch", "loss", "lr", "seconds"} == names
    assert row["tag_refined"] == row["tag_coarse"]
    assert row["loss"] == pytest.approx(row["tag_refined"] + 0.1 * row.get("contrast", 0.0), rel=1e-5)
    assert row.get("contrast", 1.0) > 0  # already in the first epoch: the second batch finds a bank


def test_a_loss_that_is_no_number_stops_with_a_message(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"network: the loss became (nan|inf) at step \d of epoch 1; lower --train\.lr"):
        train(dataset, changed(train={"lr": 1e20}), tmp_path / "network")
    assert not (tmp_path / "network" / "network.safetensors").exists()


def test_poly_schedule_by_hand() -> None:
    options = TrainSettings(epochs=4, lr=0.1)
    assert module._lr(options, 1, 0.0) == pytest.approx(0.1)
    assert module._lr(options, 2, 0.0) == pytest.approx(0.1 * 0.75**0.9)
    assert module._lr(options, 3, 0.5) == pytest.approx(0.1 * 0.375**0.9)
    assert module._lr(options, 4, 0.99) < 0.001


def test_steps_schedule_by_hand() -> None:
    options = TrainSettings(epochs=30, lr=0.1, schedule="steps", steps=(5, 10))
    rates = {epoch: module._lr(options, epoch, 0.5) for epoch in (1, 5, 6, 10, 11, 30)}
    assert rates == pytest.approx({1: 0.1, 5: 0.1, 6: 0.01, 10: 0.01, 11: 0.001, 30: 0.001})


def test_tag_loss_by_hand() -> None:
    loss = tag_loss(torch.tensor([[2.0, -0.5]]), torch.tensor([[1.0, 0.0]]))
    expected = -(math.log(1 / (1 + math.exp(-2))) + math.log(1 - 1 / (1 + math.exp(0.5)))) / 2
    assert loss.item() == pytest.approx(expected)


def test_seeds_of_epochs_differ() -> None:
    drawn = [epoch_seed(seed, epoch) for seed in range(20) for epoch in range(50)]
    assert len(set(drawn)) == len(drawn)


def random_maps(b: int = 3) -> tuple[Maps, Tensor]:
    coarse = torch.randn(b, 2, 3, 3) * 3
    features = torch.rand(b, 8, 3, 3).requires_grad_(True)
    tags = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0]])[:b]
    return some_maps(features, coarse), tags


def some_maps(features: Tensor, coarse: Tensor) -> Maps:
    scores = coarse.mean((2, 3))
    return Maps(features, coarse, scores, scores, lambda: (coarse, None))


def test_contrast_loss_is_the_mean_of_plain_and_mixed_regions_against_the_bank_before() -> None:
    maps, tags = random_maps()
    rca = RcaSettings(slots=4, prototypes=1, confidence=0.0)
    bank = Bank(3, 4, 8)
    bank.write(torch.rand(6, 8), torch.tensor([0, 1, 1, 2, 2, 2]))
    slots, written = bank.slots.clone(), bank.written.clone()
    regions = mine_regions(maps.coarse, tags.bool(), confidence=0.0)
    loss = contrast_loss(regions, maps.features, bank, rca, True, torch.Generator().manual_seed(3))
    pooled = pool_regions(maps.features, regions)
    generator = torch.Generator().manual_seed(3)
    _, mixed = mixed_contrast(pooled, regions.label, regions.image, slots, written, 0.1, 8.0, generator)
    alone = contrast(pooled, regions.label, slots, written, 0.1)
    torch.testing.assert_close(loss, torch.cat([alone, mixed]).mean())
    # And it can still be differentiated although the bank has been written to: with the same gradient.
    assert not torch.equal(bank.slots, slots)
    loss.backward()
    [expected] = torch.autograd.grad(torch.cat([alone, mixed]).mean(), maps.features)
    assert maps.features.grad is not None and maps.features.grad.any()
    torch.testing.assert_close(maps.features.grad, expected)


def test_only_confident_regions_enter_the_bank() -> None:
    maps, tags = random_maps()
    coarse = torch.full_like(maps.coarse, 0.2)
    coarse[:, 0, 0, 0] = 20.0  # the first class is sure, the second (probability 0.55) is not
    bank = Bank(3, 4, 8)
    regions = mine_regions(coarse, tags.bool())
    loss = contrast_loss(regions, maps.features, bank, RcaSettings(slots=4, prototypes=1), False, torch.Generator())
    assert loss.item() == 0
    assert bank.filled.tolist() == [1, 2, 0]  # background where all tags are sure: in the second image alone
    assert maps.features.grad is None
    expected = F.normalize(maps.features[:2, :, 0, 0], dim=1)
    torch.testing.assert_close(bank.slots[1, :2], expected.detach())


@settings(max_examples=20)
@given(seed=st.integers(0, 9999), b=st.integers(1, 4), c=st.integers(1, 3))
def test_permuted_batch_has_the_same_contrast_and_leaves_as_much_in_the_bank(seed: int, b: int, c: int) -> None:
    """Also for one image, one class, several tags in an image, the same class twice, and classes without slots."""
    generator = torch.Generator().manual_seed(seed)
    coarse, features = torch.randn(b, c, 3, 3, generator=generator), torch.rand(b, 8, 3, 3, generator=generator)
    tags = (torch.rand(b, c, generator=generator) < 0.6).float()
    order = torch.randperm(b, generator=generator)
    known = torch.rand(5, 8, generator=generator), torch.randint(0, c + 1, (5,), generator=generator)
    rca = RcaSettings(slots=4, prototypes=1, confidence=0.0, mix=False)
    losses, banks = [], []
    for rows in (torch.arange(b), order):
        bank = Bank(c + 1, 4, 8)
        bank.write(*known)
        regions = mine_regions(coarse[rows], tags[rows].bool(), confidence=0.0)
        losses.append(contrast_loss(regions, features[rows], bank, rca, True, torch.Generator()))
        banks.append(bank)
    torch.testing.assert_close(losses[0], losses[1])
    assert torch.equal(banks[0].filled, banks[1].filled) and torch.equal(banks[0].cursor, banks[1].cursor)


@pytest.mark.parametrize("mix", [True, False])
def test_negatives_are_limited_as_the_settings_say(mix: bool) -> None:
    maps, tags = random_maps()
    bank = Bank(9, 4, 8)
    bank.write(torch.rand(36, 8), torch.arange(9).repeat(4))
    rca = RcaSettings(slots=4, prototypes=1, mix=mix, negatives=5, confidence=0.99)  # too sure to write anything
    regions = mine_regions(maps.coarse, tags.bool(), confidence=0.99)
    pooled, state, generator = pool_regions(maps.features, regions), (bank.slots, bank.written, 0.1), seeded()
    if mix:
        expected = torch.cat(mixed_contrast(pooled, regions.label, regions.image, *state, 8.0, generator, 5)).mean()
    else:
        expected = contrast(pooled, regions.label, *state, 5, generator).mean()
    assert torch.equal(contrast_loss(regions, maps.features, bank, rca, True, seeded()), expected)
    everything = dataclasses.replace(rca, negatives=0)
    assert not torch.equal(contrast_loss(regions, maps.features, bank, everything, True, seeded()), expected)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def test_classes_that_never_entered_the_bank_are_named(
    dataset: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(dataset, changed(confidence=0.99), tmp_path / "network")
    [message] = [record.getMessage() for record in caplog.records if "memory bank" in record.getMessage()]
    assert message.startswith("the memory bank holds no region of background, red, green, so the maps")
    caplog.clear()
    train(dataset, changed(contrast=False, aggregation=False, confidence=0.99), tmp_path / "plain")
    assert not [record for record in caplog.records if "memory bank" in record.getMessage()]


def test_a_transformer_learns_from_crops_of_whole_patches(dataset: Dataset, tmp_path: Path) -> None:
    """45 pixels are no whole number of its patches of 16, at which the network would raise."""
    sides: list[int] = []
    images = module.TagImages

    def remember(*given: Any) -> Any:
        sides.append(given[2])
        return images(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "TagImages", remember)
        history = train(dataset, changed(train={"backbone": "test_vit", "crop": 45, "epochs": 1}), tmp_path).history
    assert sides == [48] and math.isfinite(history[-1]["loss"])
