"""The three baselines (maps = cam, oaa, eps) from training to maps, each with and without contrast and aggregation."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tagseg.data.records import Dataset
from tagseg.errors import DataError, RunError
from tagseg.masks.localise import complete, localise, localise_image, views
from tagseg.masks.map_files import map_file, read_maps
from tagseg.rca.oaa import GRID, read_accumulated
from tagseg.rca.train import load_network, train
from tagseg.run.folder import Run
from tagseg.run.open import SECTIONS, change_settings, open_run
from tagseg.settings.localise import LocaliseSettings
from tagseg.settings.rca import RcaSettings
from tagseg.settings.settings import Baseline, Settings
from tagseg.settings.train import TrainSettings
from tagseg.system.progress import T

SETTINGS = Settings(
    device="cpu",
    workers=0,
    train=TrainSettings(
        backbone="test_resnet", weights="random", neck=8, epochs=2, batch=4, crop=33, freeze_stride=0, lr=0.01
    ),
    rca=RcaSettings(slots=6, prototypes=2, confidence=0.0, background_threshold=0.95),
    localise=LocaliseSettings(scales=(1.0,), max_side=64),
)


def settings(maps: Baseline, contrast: bool = True, aggregation: bool = True, epochs: int = 2) -> Settings:
    return dataclasses.replace(
        SETTINGS,
        maps=maps,
        train=dataclasses.replace(SETTINGS.train, epochs=epochs),
        rca=dataclasses.replace(SETTINGS.rca, contrast=contrast, aggregation=aggregation),
    )


@pytest.fixture(scope="module")
def dataset(draw_squares: Callable[..., Dataset], tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Return eight noisy images of two classes, red and green, the last one of both; saliency maps of half the size."""
    return draw_squares(tmp_path_factory.mktemp("pictures"), count=8, height=48, saliency=True)


@pytest.mark.parametrize("aggregation", [True, False], ids=["aggregation", "no aggregation"])
@pytest.mark.parametrize("contrast", [True, False], ids=["contrast", "no contrast"])
@pytest.mark.parametrize("maps", ["cam", "oaa", "eps"])
def test_two_epochs_and_localising(
    maps: Baseline, contrast: bool, aggregation: bool, dataset: Dataset, tmp_path: Path
) -> None:
    run = open_run(tmp_path / "run", dataset.root, settings(maps, contrast, aggregation))
    history = train(dataset, run.settings(), run.network).history
    assert len(history) == 2 and all(math.isfinite(value) for row in history for value in row.values())
    for row in history:
        assert ("saliency_refined" in row) == (maps == "eps")
        assert ("contrast" in row) == (contrast or aggregation)
        coarse = 0.4 if aggregation else 0.0
        total = row["tag_refined"] + coarse * row["tag_coarse"] + 0.1 * row.get("contrast", 0.0)
        total += row.get("saliency_refined", 0.0) + coarse * row.get("saliency_coarse", 0.0)
        assert row["loss"] == pytest.approx(total, rel=1e-5)
    localise(dataset, run)
    for sample in dataset.samples:
        values, classes = read_maps(map_file(run, sample.id))
        assert classes == sample.tags and values.shape == (len(classes), 12, 16)
        # A posterior is a probability; all other maps are shares of their peak. OAA takes either, if sure of the tag.
        assert values.max() > 0 if aggregation and maps != "eps" else values.max() == 255
    network, _ = load_network(run.network, torch.device("cpu"))
    assert network.background == (maps == "eps")
    assert (run.network / "accumulated.npy").exists() == (maps == "oaa")


def test_the_weight_of_the_saliency_loss(dataset: Dataset, tmp_path: Path) -> None:
    light = settings("eps", epochs=1)
    light = dataclasses.replace(light, train=dataclasses.replace(light.train, saliency_weight=0.25))
    [row] = train(dataset, light, tmp_path).history
    total = row["tag_refined"] + 0.4 * row["tag_coarse"] + 0.1 * row["contrast"]
    total += 0.25 * (row["saliency_refined"] + 0.4 * row["saliency_coarse"])
    assert row["loss"] == pytest.approx(total, rel=1e-5)


def test_saliency_teaches_where_things_are(dataset: Dataset, tmp_path: Path) -> None:
    taught = settings("eps", contrast=False, aggregation=False, epochs=12)
    options = dataclasses.replace(taught.train, freeze_batch_norm=False, lr=0.02, jitter=0.0, stride=8, crop=49)
    history = train(dataset, dataclasses.replace(taught, train=options), tmp_path).history
    losses = [row["saliency_refined"] for row in history]
    assert losses[-1] < 0.7 * losses[0]


def test_a_missing_saliency_map_stops_before_anything_is_written(dataset: Dataset, tmp_path: Path) -> None:
    samples = tuple(dataclasses.replace(s, saliency=None) if s.id == "3" else s for s in dataset.samples)
    with pytest.raises(DataError, match=r"3\.png: no saliency map, expected 3\.png or \.jpg in .*saliency \(setting"):
        train(dataclasses.replace(dataset, samples=samples), settings("eps"), tmp_path / "network")
    assert not (tmp_path / "network").exists()


def test_accumulating_changes_nothing_else_in_the_training(dataset: Dataset, tmp_path: Path) -> None:
    for maps in ("cam", "oaa"):
        train(dataset, settings(maps), tmp_path / maps)
    histories = [(tmp_path / maps / "history.jsonl").read_text().splitlines() for maps in ("cam", "oaa")]
    cam, oaa = ([json.loads(line)["loss"] for line in lines] for lines in histories)
    assert cam == oaa
    assert (tmp_path / "cam/bank.safetensors").read_bytes() == (tmp_path / "oaa/bank.safetensors").read_bytes()


@pytest.mark.parametrize("steps", [0, 1], ids=["before a step", "inside the epoch"])
def test_interrupted_accumulating_continues_to_the_same_bytes(steps: int, dataset: Dataset, tmp_path: Path) -> None:
    whole = train(dataset, settings("oaa", epochs=3), tmp_path / "whole").folder

    def interrupted(items: Iterable[T], title: str, total: int) -> Iterator[T]:
        for i, item in enumerate(items):
            if title == "train, epoch 3/3" and i == steps:
                raise KeyboardInterrupt
            yield item

    folder = tmp_path / "network"
    with pytest.raises(KeyboardInterrupt):
        train(dataset, settings("oaa", epochs=3), folder, interrupted)
    assert sorted(path.name for path in folder.iterdir()) == ["accumulated-2.npy", "checkpoint.safetensors"]
    train(dataset, settings("oaa", epochs=3), folder)
    names = sorted(path.name for path in whole.iterdir())
    assert names == sorted(path.name for path in folder.iterdir()) and "accumulated.npy" in names
    for name in names:
        if name != "history.jsonl":  # holds seconds
            assert (folder / name).read_bytes() == (whole / name).read_bytes()
    assert read_accumulated(folder)[0].any()


def test_accumulated_maps_are_localised_where_there_are_any(dataset: Dataset, tmp_path: Path) -> None:
    run = open_run(tmp_path / "run", dataset.root, settings("oaa"))
    train(dataset, run.settings(), run.network)
    array, rows = read_accumulated(run.network)
    changed = np.array(array)
    both = rows["7"]
    changed[both] = 0
    changed[both.start, : GRID // 2] = 128  # the upper half of the first tag's map; nothing of the second's
    np.save(run.network / "accumulated.npy", changed)
    localise(dataset, run)
    values, classes = read_maps(map_file(run, "7"))
    assert classes == (1, 2)
    assert np.all(values[0, :5] == 255) and np.all(values[0, 7:] == 0)  # again divided by its peak
    network, _ = load_network(run.network, torch.device("cpu"))
    own = localise_image(network, Image.open(dataset.samples[7].image), (1, 2), run.settings().localise)
    assert np.abs(values[1] / 255 - own[1].numpy()).max() <= 0.5 / 255 + 1e-6


def test_accumulated_maps_take_the_shape_of_the_images_maps(dataset: Dataset, tmp_path: Path) -> None:
    folder = train(dataset, settings("cam", epochs=1), tmp_path).folder
    network, _ = load_network(folder, torch.device("cpu"))
    accumulated = np.random.default_rng(0).integers(1, 256, (2, GRID, GRID), np.uint8)
    for size in ((40, 30), (65, 300), (1, 7)):
        image = Image.new("RGB", size)
        seen = views(network.backbone, image, SETTINGS.localise)
        found = complete(accumulated, network, seen, (1, 2), SETTINGS.localise)
        assert found.shape == localise_image(network, image, (1, 2), SETTINGS.localise).shape
        assert found.amax((1, 2)).tolist() == pytest.approx([1, 1]) and found.min() >= 0


def test_the_accumulated_maps_must_be_there(dataset: Dataset, tmp_path: Path) -> None:
    run = open_run(tmp_path / "run", dataset.root, settings("oaa"))
    train(dataset, run.settings(), run.network)
    (run.network / "accumulated.npy").unlink()
    with pytest.raises(RunError, match=r"accumulated\.npy: missing or damaged"):
        localise(dataset, run)


def test_other_maps_need_another_training(dataset: Dataset, tmp_path: Path) -> None:
    assert "maps" in SECTIONS["train"]
    run = open_run(tmp_path / "run", dataset.root, settings("cam"))
    Run(run.root).network.mkdir()
    with pytest.raises(RunError, match=r"maps was 'cam', now 'oaa'.*run it again from stage train"):
        change_settings(run, settings("oaa"), force=False)
