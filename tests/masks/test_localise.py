import dataclasses
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tagseg.data.images import read_mask_file
from tagseg.data.prepare import Prepared
from tagseg.data.records import Dataset, Sample
from tagseg.errors import DataError, RunError
from tagseg.features.fused import LayerMaps, fuse
from tagseg.masks import localise as localise_module
from tagseg.masks.localise import localise, localise_image
from tagseg.masks.make import make_masks
from tagseg.masks.map_files import map_file, read_maps, write_maps
from tagseg.masks.mask_files import mask_file
from tagseg.networks.backbones import Backbone
from tagseg.rca.aggregation import posterior
from tagseg.rca.network import RcaNetwork, build_network
from tagseg.rca.train import load_network, train
from tagseg.run.folder import Run
from tagseg.run.open import open_run
from tagseg.settings.localise import LocaliseSettings
from tagseg.settings.rca import RcaSettings
from tagseg.settings.settings import Settings
from tagseg.settings.train import TrainSettings
from tagseg.training.loading import to_tensor

TRAIN = TrainSettings(backbone="test_resnet", weights="random", neck=8, crop=33, epochs=1, batch=4, freeze_stride=0)
RCA = RcaSettings(layer="last", slots=4, prototypes=2)
SETTINGS = LocaliseSettings(scales=(1.0, 1.5), max_side=96)


@pytest.fixture(scope="module")
def network() -> RcaNetwork:
    """Return a network of three classes whose maps are not flat."""
    torch.manual_seed(0)
    network = build_network(3, TRAIN, RCA).eval()
    with torch.no_grad():
        maps = network(to_tensor(noise(72, 48))[None])
        # Half of every map is below zero; otherwise the maps would be almost constant.
        network.coarse_head[-1].bias -= maps.coarse.mean((0, 2, 3))
        network.refined_head.bias -= maps.refined.mean((0, 2, 3))
    return network


def noise(width: int, height: int) -> Image.Image:
    coarse = np.random.default_rng(width * height).integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR)


@pytest.mark.parametrize(
    ("size", "shape"),
    [
        ((64, 48), (12, 16)),
        ((65, 49), (13, 17)),  # cells at the border are cut
        ((192, 96), (12, 24)),  # reduced to 96 x 48 first
        ((1, 50), (13, 1)),
        ((50, 1), (1, 13)),
        ((1, 900), (24, 1)),  # reduced, its width stays one pixel
        ((900, 1), (1, 24)),
        ((1, 1), (1, 1)),
        ((3, 2), (1, 1)),
    ],
)
def test_maps_have_a_quarter_of_the_resolution_and_peak_1(
    size: tuple[int, int], shape: tuple[int, int], network: RcaNetwork
) -> None:
    maps = localise_image(network, noise(*size), (1, 2, 3), SETTINGS)
    assert maps.shape == (3, *shape) and maps.dtype == torch.float32
    assert maps.min() >= 0 and torch.isfinite(maps).all()
    assert all(peak == 0 or peak == pytest.approx(1) for peak in maps.amax((1, 2)).tolist())
    assert maps.amax() > 0.99


def test_a_map_without_positive_values_stays_zero(network: RcaNetwork) -> None:
    silent = build_network(3, TRAIN, dataclasses.replace(RCA, aggregation=False)).eval()
    torch.nn.init.zeros_(silent.coarse_head[0].weight)
    torch.nn.init.constant_(silent.coarse_head[0].bias, -1.0)
    assert not localise_image(silent, noise(40, 40), (1, 2), SETTINGS).any()


@pytest.mark.parametrize("kind", ["refined", "coarse"])
def test_a_mirrored_image_has_mirrored_maps(kind: str, network: RcaNetwork) -> None:
    settings = dataclasses.replace(SETTINGS, kind=kind)
    image = noise(72, 48)
    straight = localise_image(network, image, (1, 2, 3), settings)
    mirrored = localise_image(network, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), (1, 2, 3), settings)
    assert torch.allclose(mirrored.flip(-1), straight, atol=0.01)
    assert not torch.allclose(mirrored, straight, atol=0.05)


def test_maps_are_in_the_order_of_the_tags(network: RcaNetwork) -> None:
    image = noise(64, 48)
    all_three = localise_image(network, image, (1, 2, 3), SETTINGS)
    assert torch.equal(localise_image(network, image, (3, 1), SETTINGS), all_three[[2, 0]])
    assert torch.equal(localise_image(network, image, (2,), SETTINGS), all_three[[1]])


def test_one_scale_without_flip_is_the_networks_own_map(network: RcaNetwork) -> None:
    image = noise(65, 49)  # fits the cells: no resizing
    settings = LocaliseSettings(scales=(1.0,), flip=False, max_side=96, kind="coarse")
    assert network.backbone.fitting_size(49.0, 65.0) == (49, 65)
    with torch.no_grad():
        coarse = torch.relu(network(to_tensor(image)[None]).coarse)
    large = network.backbone.enlarge(coarse, (49, 65))
    expected = torch.nn.functional.adaptive_avg_pool2d(large, (13, 17))[0]
    expected = expected / expected.amax((1, 2), keepdim=True).clamp_min(1e-6)
    assert torch.allclose(localise_image(network, image, (1, 2, 3), settings), expected, atol=1e-5)


def test_coarse_and_refined_maps_differ(network: RcaNetwork) -> None:
    image = noise(64, 48)
    refined, coarse = (
        localise_image(network, image, (1, 2, 3), dataclasses.replace(SETTINGS, kind=kind))
        for kind in ("refined", "coarse")
    )
    assert not torch.allclose(refined, coarse, atol=0.05)


def test_maps_survive_a_file(tmp_path: Path) -> None:
    maps = torch.rand(2, 5, 7)
    write_maps(tmp_path / "sub" / "a.npz", maps.numpy(), (3, 200))
    values, classes = read_maps(tmp_path / "sub" / "a.npz")
    assert values.dtype == np.uint8 and values.shape == (2, 5, 7) and classes == (3, 200)
    assert np.abs(values / 255 - maps.numpy()).max() <= 0.5 / 255 + 1e-6
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["a.npz"]


@pytest.fixture
def trained(tmp_path: Path) -> tuple[Dataset, Run]:
    """Return a run with a trained network, and its data: five training images and one validation image."""
    samples = []
    for i in range(6):
        path = tmp_path / "data" / f"{i} ü.png"
        path.parent.mkdir(exist_ok=True)
        noise(40 + i, 36).save(path)
        samples.append(Sample(f"sub/{i} ü", path, (1, 2) if i % 2 else (2,), "val" if i == 5 else "train"))
    settings = Settings(device="cpu", workers=0, train=TRAIN, rca=RCA, localise=SETTINGS)
    run = open_run(tmp_path / "run", tmp_path / "data", settings)
    dataset = Dataset(tmp_path / "data", "folder", ("cat", "dog"), tuple(samples))
    train(dataset, settings, run.network)
    return dataset, run


def test_an_interrupted_stage_resumes(trained: tuple[Dataset, Run]) -> None:
    dataset, run = trained

    def interrupted(items, title, total):  # type: ignore[no-untyped-def]
        assert (title, total) == ("localise", 5)
        for i, item in enumerate(items):
            if i == 0:  # while threads write the next two
                raise KeyboardInterrupt
            yield item

    with pytest.raises(KeyboardInterrupt):
        localise(dataset, run, interrupted)
    done = sorted(run.maps.rglob("*.npz"))
    assert [path.stem for path in done] == ["0 ü", "1 ü", "2 ü"]
    for path in done:
        os.utime(path, ns=(1, 1))
    assert localise(dataset, run).images == 2
    assert {path.relative_to(run.maps).as_posix() for path in run.maps.rglob("*.*")} == {
        f"sub/{i} ü.npz" for i in range(5)
    }
    assert [path.stat().st_mtime_ns for path in done] == [1, 1, 1]
    for sample in dataset.split("train"):
        maps, classes = read_maps(map_file(run, sample.id))
        assert classes == sample.tags and len(maps) == len(sample.tags)


def test_every_image_gets_its_own_maps_and_is_passed_on(trained: tuple[Dataset, Run]) -> None:
    dataset, run = trained
    samples = dataset.split("train")
    passed: list[str] = []

    def then(sample: Sample) -> None:
        assert map_file(run, sample.id).exists()
        passed.append(sample.id)

    done = localise(dataset, run, then=then)
    assert passed == [sample.id for sample in samples] and done.images == 5 and done.images_per_s > 0
    network, _ = load_network(run.network, torch.device("cpu"))
    for sample in samples:
        maps = localise_image(network, Image.open(sample.image), sample.tags, SETTINGS).numpy()
        assert (read_maps(map_file(run, sample.id))[0] == (maps * 255).round()).all()
    # Images that already have maps are passed on as well, but not localised again.
    map_file(run, samples[2].id).unlink()
    passed.clear()
    assert localise(dataset, run, then=then).images == 1 and len(passed) == 5


def test_a_fused_pass_gives_the_same_maps(trained: tuple[Dataset, Run], monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, run = trained
    fused: list[LayerMaps | None] = []

    def noted(backbone: Backbone, layers: Sequence[str]) -> LayerMaps | None:
        assert tuple(layers) == backbone.head_layers
        fused.append(fuse(backbone, layers))
        return fused[-1]

    monkeypatch.setattr(localise_module, "fuse", noted)
    localise(dataset, run)
    plain = {sample.id: read_maps(map_file(run, sample.id)) for sample in dataset.split("train")}
    assert not fused, "few images do not repay the trace"
    monkeypatch.setattr(localise_module, "WORTH_A_TRACE", 5)
    shutil.rmtree(run.maps)
    passed: list[str] = []
    assert localise(dataset, run, then=lambda sample: passed.append(sample.id)).images == 5
    assert fused[0] is not None and passed == [sample.id for sample in dataset.split("train")]
    for name, (maps, classes) in plain.items():
        found, kept = read_maps(map_file(run, name))
        assert kept == classes and np.abs(found.astype(int) - maps.astype(int)).max(initial=0) <= 1, name


def test_a_broken_image_in_the_middle_is_named(trained: tuple[Dataset, Run]) -> None:
    dataset, run = trained
    broken = dataset.samples[2].image
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(DataError, match=r"2 ü\.png"):
        localise(dataset, run)
    done = {path.stem for path in run.maps.rglob("*.npz")}
    assert {"0 ü", "1 ü"} >= done and not list(run.maps.rglob(".writing-*"))


def test_an_error_after_the_maps_ends_the_stage(trained: tuple[Dataset, Run]) -> None:
    dataset, run = trained

    def then(sample: Sample) -> None:
        raise RunError(f"no mask of {sample.id}")

    with pytest.raises(RunError, match="no mask of sub/0 ü"):
        localise(dataset, run, then=then)
    assert 1 <= len(list(run.maps.rglob("*.npz"))) < 5 and not list(run.maps.rglob(".writing-*"))


def test_localising_needs_a_network(tmp_path: Path) -> None:
    run = open_run(tmp_path / "run", tmp_path, Settings(device="cpu"))
    with pytest.raises(RunError, match=r"network\.safetensors: missing or damaged"):
        localise(Dataset(tmp_path, "folder", ("cat",), ()), run)


def test_an_image_without_tags_has_no_maps_and_a_mask_of_background(
    network: RcaNetwork, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    maps = localise_image(network, noise(64, 48), (), SETTINGS)
    assert maps.shape == (0, 12, 16)
    none = torch.zeros(0, dtype=torch.long)
    prototypes, exists = torch.ones(4, 2, 3), torch.ones(4, 2, dtype=torch.bool)
    assert posterior(torch.ones(2, 3, 5, 6), prototypes, exists, 0.1, none, none).shape == (0, 5, 6)
    (tmp_path / "data").mkdir()
    run = open_run(tmp_path / "run", tmp_path / "data", Settings(workers=0))
    noise(64, 48).save(tmp_path / "a.png")
    write_maps(map_file(run, "a"), maps.numpy(), ())
    samples = (Sample("a", tmp_path / "a.png", ()),)
    make_masks(Prepared(Dataset(tmp_path, "folder", ("cat",), samples), {"a": (48, 64)}), run)
    for folder in (run.masks, run.decided_masks):
        assert not read_mask_file(mask_file(folder, "a"), (48, 64)).any()
    assert "contain none of" not in caplog.text
