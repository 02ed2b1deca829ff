import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tagseg.data.images import read_image
from tagseg.data.records import Sample
from tagseg.errors import DataError, RunError
from tagseg.features import extract as module
from tagseg.features import plan
from tagseg.features.cache import FeatureCache, open_features
from tagseg.features.fused import fuse
from tagseg.features.layers import choose_layers
from tagseg.features.projection import project
from tagseg.networks.backbones import Backbone, build_backbone
from tagseg.settings.features import FeatureSettings
from tagseg.settings.train import TrainSettings
from tagseg.system.progress import silent
from tagseg.training.loading import to_tensor

Cached = Callable[..., FeatureCache]
Photographs = tuple[tuple[Sample, ...], dict[str, tuple[int, int]]]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "layers"), [("test_resnet", ["last", "layer3", "layer2"]), ("test_vit", ["last", "blocks.4"])]
)
def test_features_are_those_of_the_backbone_image_by_image(
    name: str, layers: list[str], cached: Cached, photographs: Photographs, tiny_backbones: dict[str, Backbone],
    tmp_path: Path,
) -> None:  # fmt: skip
    cache, backbone = cached(tmp_path, name), tiny_backbones[name]
    assert [layer.name for layer in cache.layers] == layers and cache.scales == (1.0, 2.0)
    assert cache.ids == tuple(sample.id for sample in photographs[0])
    for sample in photographs[0]:
        image = read_image(sample.image)
        maps, pooled = cache.maps(sample.id), cache.pooled(sample.id)
        assert len(maps) == len(pooled) == 2 * len(layers)
        assert cache.size(sample.id) == (image.height, image.width)
        for number, (h, w) in enumerate(cache.views(sample.id)):
            picture = to_tensor(image.resize((w, h), Image.Resampling.BILINEAR))[None]
            full = backbone.layer_maps(picture, layers)
            for row, (layer, map_) in enumerate(zip(cache.layers, full, strict=True)):
                expected = project(map_, cache.projections[layer.name])[0]
                np.testing.assert_allclose(maps[2 * row + number], expected, atol=0.02)
                np.testing.assert_allclose(pooled[2 * row + number], map_[0].mean((1, 2)), atol=1e-4)
    assert all(map_.dtype == np.float16 and map_.shape[0] == 8 + 1 for map_ in maps)
    assert maps[0].base is not None and not maps[0].flags.owndata and not maps[0].flags.writeable


def test_without_components_a_cell_keeps_all_channels(cached: Cached, tmp_path: Path) -> None:
    cache = cached(tmp_path, channels=0, scales=(1.0,), layers=("last", "layer2"))
    assert [layer.channels for layer in cache.layers] == [96, 48]
    assert [map_.shape[0] for map_ in cache.maps("0")] == [96 + 1, 48 + 1]
    assert cache.index.lost == (0.0, 0.0)
    # Cells of unit length: divided back and with the mean added, they have it again.
    one = cache.projections["last"]
    cells = torch.from_numpy(cache.maps("0")[0][:-1].astype(np.float32)).flatten(1).T * one.deviation + one.mean
    torch.testing.assert_close(cells.norm(dim=1), torch.ones(len(cells)), atol=1e-3, rtol=0)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a shard hold two images, and a batch one."""
    monkeypatch.setattr(plan, "SHARD_BYTES", 4_000)
    monkeypatch.setattr(module, "BATCH", 1)


def stopped_after(images: int) -> Any:
    def track(items: Any, title: str, total: int) -> Iterator[Any]:
        for done, item in enumerate(items):
            if title == "features" and done == images:
                raise KeyboardInterrupt
            yield item

    return track


@pytest.mark.usefixtures("small_shards")
def test_a_kill_loses_one_shard_and_the_result_is_the_same(cached: Cached, tmp_path: Path) -> None:
    whole = cached(tmp_path / "whole", channels=4, scales=(1.0,))
    count = len(whole.shards)
    assert count > 2
    seen: list[int] = []

    def counted(items: Any, title: str, total: int) -> Iterator[Any]:
        seen.append(total if title == "features" else 0)
        return silent(items, title, total)

    with pytest.raises(KeyboardInterrupt):
        cached(tmp_path / "again", channels=4, scales=(1.0,), track=stopped_after(4))
    finished = len(list((tmp_path / "again").glob("*.f16")))
    assert 0 < finished < count
    with pytest.raises(RunError, match=r"missing; run the same command as before again"):
        open_features(tmp_path / "again")
    # What a kill may leave: half a file, and data without its JSON file.
    (tmp_path / "again/.writing-0123.f16").write_bytes(b"half")
    (tmp_path / f"again/{finished:06d}.f16").write_bytes(b"half")
    cached(tmp_path / "again", channels=4, scales=(1.0,), track=counted)
    kept = sum(len(shard.images) for shard in whole.shards[:finished])
    assert seen == [7 - kept]
    for file in (tmp_path / "whole").glob("*.f16"):
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()
    assert content(tmp_path / "again").keys() == content(tmp_path / "whole").keys()


@pytest.mark.usefixtures("small_shards")
def test_only_what_has_changed_is_computed_again(
    cached: Cached, tmp_path: Path, photographs: Photographs, tiny_backbones: dict[str, Backbone]
) -> None:
    totals: dict[str, int] = {}

    def counted(items: Any, title: str, total: int) -> Iterator[Any]:
        totals[title] = total
        return silent(items, title, total)

    def again(**options: object) -> dict[str, int]:
        totals.clear()
        cached(tmp_path, track=counted, **({"channels": 4, "scales": (1.0,)} | options))
        return dict(totals)

    everything = {"features": 7, "features: components": 7}
    assert again() == everything
    assert again() == {}
    assert again(precision="auto") == {}
    assert again(channels=5) == again(scales=(0.5,)) == again(layers=("last",)) == again(max_side=96) == everything
    assert again(name="test_vit") == again() == everything
    # Another photograph: only its shard; without the last one: only the last shard.
    stamp = photographs[0][0].image.stat()
    photographs[0][0].image.touch()
    assert 0 < again()["features"] < 7
    assert photographs[0][0].image.stat() != stamp and again() == {}
    assert 0 <= again(count=6).get("features", 0) < 6
    assert again().keys() == {"features"}
    backbone = tiny_backbones["test_resnet"]
    weight = next(backbone.model.parameters())
    with torch.no_grad():
        weight.neg_()
    assert again() == everything
    with torch.no_grad():
        weight.neg_()


@pytest.mark.usefixtures("small_shards")
def test_damaged_files_are_named_and_computed_again(cached: Cached, tmp_path: Path) -> None:
    cached(tmp_path, channels=4, scales=(1.0,))
    before = content(tmp_path)
    damages: dict[str, Callable[[bytes], bytes]] = {
        "000001.f16": lambda old: old[:-1],
        "000001.json": lambda old: old.replace(b'"views"', b'"wiews"'),
        "000000.json": lambda old: b"[]",
        "index.json": lambda old: old.replace(b'"lost"', b'"most"'),
        "projection.safetensors": lambda old: old[:-1] + bytes([old[-1] ^ 1]),
        "000000.f16": lambda old: bytes([old[0] ^ 1]) + old[1:],  # of the same size: found by time and checksum
    }
    for name, damage in damages.items():
        (tmp_path / name).write_bytes(damage(before[name]))
        with pytest.raises(RunError, match=rf"{name}.*run the same command as before again"):
            open_features(tmp_path)
        cached(tmp_path, channels=4, scales=(1.0,))
        after = content(tmp_path)
        assert after.keys() == before.keys()
        assert all(after[file] == before[file] for file in before if file.endswith(".f16")), name
    # A copy has other times, but the same bytes.
    copy = tmp_path / "copy"
    copy.mkdir()
    for name, data in content_of_files(tmp_path).items():
        (copy / name).write_bytes(data)
    assert open_features(copy).ids == open_features(tmp_path).ids


def content_of_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_too_little_space_names_size_and_settings(
    cached: Cached, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Usage:
        free = 1 << 26

    monkeypatch.setattr("shutil.disk_usage", lambda folder: Usage)
    with pytest.raises(
        RunError,
        match=r"the features of 7 images need \d+ kB, but 67 MB are free .* to \d+ kB with --features.channels 2, "
        r"\d+ kB with --features.scales 1, \d+ kB with --features.layers last$",
    ):
        cached(tmp_path)
    assert content(tmp_path) == {}


def test_an_image_of_another_size_is_named(
    photographs: Photographs, tiny_backbones: dict[str, Backbone], tmp_path: Path
) -> None:
    sizes = photographs[1] | {"3": (100, 100)}
    with pytest.raises(DataError, match=r"3.png: has 96 x 64 pixels, expected 100 x 100: it has changed"):
        module.extract(
            photographs[0], sizes, tiny_backbones["test_resnet"], FeatureSettings(precision="fp32"), tmp_path, 1.0
        )


def test_layers_that_do_not_do(tiny_backbones: dict[str, Backbone]) -> None:
    backbone = tiny_backbones["test_resnet"]
    with pytest.raises(ValueError, match=r"test_resnet: has no layer 'layer9' \(--features.layers\); known: .*layer3"):
        choose_layers(backbone, ("layer9",))
    with pytest.raises(ValueError, match=r"test_resnet: layer 'global_pool' gives no map; name a block"):
        choose_layers(backbone, ("global_pool",))
    assert [layer.name for layer in choose_layers(backbone, ("layer2", "auto"))] == ["layer2", "last", "layer3"]


def test_the_estimate_is_the_size_of_the_cache(cached: Cached, photographs: Photographs, tmp_path: Path) -> None:
    cached(tmp_path)
    size = sum(file.stat().st_size for file in tmp_path.glob("*.f16"))
    counts = {(64, 96): 3, (96, 64): 4}
    settings = FeatureSettings(max_side=64, channels=8)
    random = plan.estimate_cache(counts, TrainSettings(backbone="test_resnet", weights="random"), settings)
    assert (random.images, random.size) == (7, size) and random.seconds is not None and random.seconds > 0
    timm = plan.estimate_cache(counts, TrainSettings(backbone="test_resnet"), settings)
    assert (timm.size, timm.seconds) == (size, None)


@torch.no_grad()
@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "mobilenetv2_100"])
def test_fused_passes_give_the_features_of_the_backbone(name: str, tiny_backbones: dict[str, Backbone]) -> None:
    backbone = tiny_backbones.get(name) or build_backbone(name, "random", 16)
    layers = [layer.name for layer in choose_layers(backbone, ("auto",))]
    fused = fuse(backbone.eval(), layers)
    assert fused is not None
    for size in ((112, 96), (61, 133)):
        images = torch.rand(2, 3, *backbone.fitting_size(*size), generator=torch.Generator().manual_seed(1))
        for expected, found in zip(backbone.layer_maps(images, layers), fused(images), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-3 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_cannot_be_fused_is_computed_by_the_backbone_one_batch_at_a_time(
    precision: str, cached: Cached, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*given: Any, **more: Any) -> Any:
        raise RuntimeError("no trace")

    threads: set[int] = set()
    plain = Backbone.layer_maps

    def layer_maps(self: Backbone, images: torch.Tensor, layers: Any) -> Any:
        threads.add(threading.get_ident())
        return plain(self, images, layers)

    monkeypatch.setattr(torch.jit, "trace", wrong)
    monkeypatch.setattr(Backbone, "layer_maps", layer_maps)
    monkeypatch.setattr(module, "cores", lambda: 4)
    monkeypatch.setattr(module, "BATCH", 1)
    cache = cached(tmp_path, precision=precision)
    assert len(cache.ids) > 1 and len(threads - {threading.get_ident()}) == 1  # hooks hold one batch's maps at a time


def test_extraction_leaves_the_number_of_threads(cached: Cached, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    cached(tmp_path)
    assert torch.get_num_threads() == before
