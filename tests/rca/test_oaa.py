import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tagseg.data.records import Sample
from tagseg.errors import RunError
from tagseg.rca.network import Maps, RcaNetwork, build_network
from tagseg.rca.oaa import (
    CONFIDENT,
    GRID,
    Accumulation,
    accumulate,
    accumulating,
    finish_accumulating,
    place,
    read_accumulated,
)
from tagseg.rca.tag_maps import tag_maps
from tagseg.settings.rca import RcaSettings
from tagseg.settings.settings import MapKind, Settings
from tagseg.settings.train import TrainSettings
from tagseg.training.loading import Crop

RCA = RcaSettings(slots=4, prototypes=2)
SETTINGS = Settings(maps="oaa", train=TrainSettings(epochs=4), rca=RCA)
SAMPLES = (Sample("a", Path("a.png"), (2,)), Sample("b", Path("b.png"), (1, 3)), Sample("c ü", Path("c.png"), (3,)))


def slow_place(pixels: Tensor, box: list[float], mirrored: bool) -> Tensor:
    """Cell by cell: where its centre lies in the crop, and the bilinear value of the map there."""
    high, wide = pixels.shape
    placed = torch.zeros(GRID, GRID)
    for i in range(GRID):
        for j in range(GRID):
            down = ((i + 0.5) / GRID - box[0]) / box[2]
            right = ((j + 0.5) / GRID - box[1]) / box[3]
            if 0 <= down <= 1 and 0 <= right <= 1:
                y = min(max(down * high - 0.5, 0.0), high - 1.0)
                x = min(max((1 - right if mirrored else right) * wide - 0.5, 0.0), wide - 1.0)
                top, left = min(int(y), high - 2), min(int(x), wide - 2)
                dy, dx = y - top, x - left
                upper = (1 - dx) * pixels[top, left] + dx * pixels[top, left + 1]
                lower = (1 - dx) * pixels[top + 1, left] + dx * pixels[top + 1, left + 1]
                placed[i, j] = (1 - dy) * upper + dy * lower
    return placed


@settings(max_examples=12)
@given(st.integers(0, 10**6), st.floats(0, 0.6), st.floats(0, 0.6), st.floats(0.2, 0.4), st.booleans())
def test_a_crop_is_put_back_into_its_place(seed: int, top: float, left: float, size: float, mirrored: bool) -> None:
    pixels = torch.rand(1, 9, 7, generator=torch.Generator().manual_seed(seed))
    box = [top, left, size, 1 - left]
    found = place(pixels, torch.tensor([box]), torch.tensor([mirrored]))
    # Cells whose centre lies on the crop's edge may fall on either side.
    torch.testing.assert_close(found[0], slow_place(pixels[0], box, mirrored), atol=1e-3, rtol=0)


def test_the_whole_image_fills_the_grid_and_a_quarter_a_quarter() -> None:
    pixels = torch.arange(GRID * GRID, dtype=torch.float32).reshape(1, GRID, GRID)
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    torch.testing.assert_close(place(pixels, whole, torch.tensor([False])), pixels)
    torch.testing.assert_close(place(pixels, whole, torch.tensor([True])), pixels.flip(-1))
    quarter = place(torch.ones(1, 4, 4), torch.tensor([[0.5, 0.0, 0.5, 0.5]]), torch.tensor([False]))[0]
    half = GRID // 2
    expected = torch.zeros(GRID, GRID)
    expected[half:, :half] = 1
    torch.testing.assert_close(quarter, expected)


def seen(features: Tensor, coarse: Tensor, refined: Tensor) -> Maps:
    """What a network sees, with a refined map of our own."""
    return Maps(features, coarse, coarse.mean((2, 3)), refined.mean((2, 3)), lambda: (refined, None))


def batch(sure: float = 5.0) -> tuple[RcaNetwork, Maps, Crop]:
    """The maps of two crops, of the second and the first sample, whose tags are predicted, and of other classes."""
    network = build_network(3, TrainSettings(backbone="test_resnet", weights="random", neck=8), RCA)
    network.prototypes.copy_(torch.rand(network.prototypes.shape))
    network.exists.fill_(True)
    with torch.no_grad():
        maps = network(torch.rand(2, 3, 33, 33))
    refined = torch.randn(2, 3, 3, 3) + sure
    maps = seen(maps.features, maps.coarse, refined)
    tags = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    box = torch.tensor([[0.0, 0.25, 0.5, 0.75], [0.0, 0.0, 1.0, 1.0]])
    crop = Crop(torch.rand(2, 3, 33, 33), tags, torch.tensor([1, 0]), box, torch.tensor([True, False]), torch.zeros(0))
    return network, maps, crop


def memory(folder: Path, rca: RcaSettings = RCA) -> Accumulation:
    with accumulating(folder, SAMPLES, Settings(maps="oaa", train=TrainSettings(epochs=4), rca=rca), 2) as found:
        assert found is not None
        return found


@pytest.mark.parametrize("rca", [RCA, RcaSettings(slots=4, prototypes=2, background=False)])
def test_a_batch_raises_the_maps_of_its_images_and_tags(rca: RcaSettings, tmp_path: Path) -> None:
    network, maps, crop = batch()
    into = memory(tmp_path, rca)
    before = np.random.default_rng(0).integers(0, 256, into.array.shape, np.uint8)
    into.array[:] = before
    accumulate(into, network, maps, crop)
    expected = before.copy()
    kind: MapKind = "posterior" if rca.background else "refined"
    for i, (tags, rows) in enumerate([((1, 3), (1, 2)), ((2,), (0,))]):  # rows: a/2, b/1, b/3, c/3
        only = slice(i, i + 1)
        one = seen(maps.features[only], maps.coarse[only], maps.refined[only])
        large = network.backbone.enlarge(tag_maps(network, one, tags, kind), (33, 33))[0]
        for values, row in zip(large, rows, strict=True):
            placed = place(values[None], crop.box[i : i + 1], crop.mirrored[i : i + 1])[0]
            quantised = (placed / placed.max() * 255).round().byte().numpy()
            expected[row] = np.maximum(expected[row], quantised)
    assert np.abs(into.array.astype(int) - expected).max() <= 1
    assert np.array_equal(into.array[3], before[3]) and not np.array_equal(into.array[1], before[1])
    once = into.array.copy()
    accumulate(into, network, maps, crop)  # the maximum with itself
    assert np.array_equal(into.array, once)


def test_a_tag_that_is_not_predicted_is_left_out(tmp_path: Path) -> None:
    network, maps, crop = batch()
    assert CONFIDENT == 0.5
    refined = maps.refined.clone()
    refined[0, 0] = torch.linspace(-1, 0.9, 9).reshape(3, 3)  # somewhere positive, on average below 0
    maps = seen(maps.features, maps.coarse, refined)
    into = memory(tmp_path)
    accumulate(into, network, maps, crop)
    assert [bool(into.array[row].any()) for row in range(4)] == [True, False, True, False]
    network, maps, crop = batch(sure=-5.0)
    accumulate(memory(tmp_path / "none"), network, maps, crop)
    assert not memory(tmp_path / "none").array.any()


def train_epochs(folder: Path, epochs: range, fill: Callable[[int], int] = lambda epoch: epoch) -> None:
    for epoch in epochs:
        with accumulating(folder, SAMPLES, SETTINGS, epoch) as found:
            if found is not None:
                found.array[0] = np.maximum(found.array[0], fill(epoch))
                found.array[epoch - 1] = 7


def test_epochs_build_on_one_another_behind_the_warm_up(tmp_path: Path) -> None:
    train_epochs(tmp_path, range(1, 5))
    (tmp_path / ".writing-killed.npy").touch()
    finish_accumulating(tmp_path, SAMPLES, 4)
    array, rows = read_accumulated(tmp_path)
    assert isinstance(array, np.memmap) and array.dtype == np.uint8 and array.shape == (4, GRID, GRID)
    assert array[:, 0, 0].tolist() == [4, 7, 7, 7] and (array == array[:, :1, :1]).all()
    assert {name: array[part, 0, 0].tolist() for name, part in rows.items()} == {"a": [4], "b": [7, 7], "c ü": [7]}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["accumulated.json", "accumulated.npy"]
    index = json.loads((tmp_path / "accumulated.json").read_text())
    assert index == {"grid": GRID, "samples": [["a", [2]], ["b", [1, 3]], ["c ü", [3]]]}
    finish_accumulating(tmp_path, SAMPLES, 4)  # again, as when the training is interrupted right behind it
    assert np.array_equal(read_accumulated(tmp_path)[0], array)


@pytest.mark.parametrize("other", [Settings(), Settings(maps="oaa", rca=RcaSettings(warmup=3))])
def test_nothing_is_accumulated_during_warm_up_or_with_other_maps(other: Settings, tmp_path: Path) -> None:
    for epoch in (1, 2, 3):
        with accumulating(tmp_path, SAMPLES, other, epoch) as found:
            assert found is None
    assert not list(tmp_path.iterdir())


def test_a_broken_off_epoch_leaves_no_trace(tmp_path: Path) -> None:
    train_epochs(tmp_path, range(1, 4))
    with (
        pytest.raises(KeyboardInterrupt),
        accumulating(tmp_path, SAMPLES, SETTINGS, 4) as found,
    ):
        assert found is not None
        found.array[:] = 200
        raise KeyboardInterrupt
    train_epochs(tmp_path, range(4, 5))
    finish_accumulating(tmp_path, SAMPLES, 4)
    assert read_accumulated(tmp_path)[0][:, 0, 0].tolist() == [4, 7, 7, 7]


def test_an_epoch_done_again_starts_from_the_one_before(tmp_path: Path) -> None:
    """As when a training breaks off between an epoch's maps and its checkpoint."""
    train_epochs(tmp_path, range(1, 4), lambda epoch: 100)
    train_epochs(tmp_path, range(2, 5))  # from the second epoch on: the first that accumulates
    finish_accumulating(tmp_path, SAMPLES, 4)
    assert read_accumulated(tmp_path)[0][0, 0, 0] == 4


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"accumulated\.json: missing; train again with --force"):
        read_accumulated(tmp_path)
    with pytest.raises(RunError, match=r"accumulated-2\.npy: missing or damaged .*; train again with --force"):
        train_epochs(tmp_path, range(3, 4))
    train_epochs(tmp_path, range(1, 5))
    finish_accumulating(tmp_path, SAMPLES, 4)
    finish_accumulating(tmp_path, SAMPLES[:1], 4)
    with pytest.raises(RunError, match=r"accumulated\.npy: holds uint8 of \(4, 56, 56\), expected uint8 of \(1, 56"):
        read_accumulated(tmp_path)
    finish_accumulating(tmp_path, SAMPLES, 4)
    (tmp_path / "accumulated.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(RunError, match=r"accumulated\.npy: missing or damaged"):
        read_accumulated(tmp_path)
    np.save(tmp_path / "accumulated.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(RunError, match=r"accumulated\.npy: missing or damaged"):  # never unpickled
        read_accumulated(tmp_path)
