"""The rivals of the memory bank: against slow references, by hand, and from settings to maps."""

import copy
import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from tagseg.data.images import read_image
from tagseg.data.records import Dataset
from tagseg.errors import DataError
from tagseg.features.cache import FeatureCache
from tagseg.features.extract import extract
from tagseg.masks.localise import from_cache, localise
from tagseg.masks.map_files import map_file, read_maps
from tagseg.networks.backbones import build_backbone
from tagseg.pipeline import fit_until
from tagseg.rca.heads import cached_maps, fit_heads
from tagseg.rca.network import RcaNetwork
from tagseg.rca.rivals import RIVALS, fit_softmax, reactivate, rival_maps, share_saliency, spread_maps
from tagseg.rca.train import train_frozen
from tagseg.run.open import open_run
from tagseg.settings.features import FeatureSettings
from tagseg.settings.localise import LocaliseSettings
from tagseg.settings.presets import preset
from tagseg.settings.settings import Baseline, Settings
from tagseg.settings.train import TrainSettings

FEATURES = FeatureSettings(scales=(1.0, 2.0), max_side=64, channels=8)
SETTINGS = dataclasses.replace(
    preset("fast"),
    device="cpu",
    workers=0,
    features=FEATURES,
    train=TrainSettings(backbone="test_resnet", weights="random", stride=8, method="frozen"),
)


@pytest.fixture(scope="module")
def dataset(draw_squares: Callable[..., Dataset], tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Return 12 noisy images of two classes with saliency maps; the last one has both, the first one no tags."""
    drawn = draw_squares(tmp_path_factory.mktemp("pictures"), count=12, height=64, saliency=True)
    untagged = dataclasses.replace(drawn.samples[0], tags=())
    return dataclasses.replace(drawn, samples=(untagged, *drawn.samples[1:]))


@pytest.fixture(scope="module")
def cache(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> FeatureCache:
    torch.manual_seed(0)
    backbone = build_backbone("test_resnet", "random", 8)
    images = {sample.id: read_image(sample.image) for sample in dataset.samples}
    sizes = {name: (image.height, image.width) for name, image in images.items()}
    return extract(dataset.samples, sizes, backbone, FEATURES, tmp_path_factory.mktemp("features"), 100.0)


@pytest.fixture(scope="module")
def network(dataset: Dataset, cache: FeatureCache) -> RcaNetwork:
    return fit_heads(dataset, cache, SETTINGS).network


@pytest.fixture(scope="module")
def trained(dataset: Dataset, cache: FeatureCache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_frozen(dataset, cache, SETTINGS, tmp_path_factory.mktemp("trained") / "network").folder


def with_maps(maps: Baseline) -> Settings:
    return dataclasses.replace(SETTINGS, maps=maps)


@pytest.mark.parametrize(("power", "steps", "radius"), [(1.0, 1, float("inf")), (3.0, 2, 1.5), (8.0, 5, 1.0)])
def test_a_random_walk_as_loops_do_it(power: float, steps: int, radius: float) -> None:
    maps, features = torch.rand(2, 3, 4), torch.randn(5, 3, 4)
    cells = [(y, x) for y in range(3) for x in range(4)]
    expected = maps.clone()
    for _ in range(steps):
        before = expected.clone()
        for y, x in cells:
            weights = {}
            for v, u in cells:
                if ((y - v) ** 2 + (x - u) ** 2) ** 0.5 <= radius:
                    cosine = torch.cosine_similarity(features[:, y, x], features[:, v, u], dim=0)
                    weights[v, u] = max(0.0, float(cosine)) ** power
            for k in range(2):
                moved = sum(weight * float(before[k, v, u]) for (v, u), weight in weights.items())
                expected[k, y, x] = moved / sum(weights.values())
    assert torch.allclose(spread_maps(maps, features, power, steps, radius), expected, atol=1e-5)


def test_cells_at_right_angles_keep_their_values_and_equal_cells_share_theirs() -> None:
    maps = torch.tensor([[[1.0, 0.0, 0.4, 0.0]]])
    different = torch.eye(4)[:, None]
    assert torch.allclose(spread_maps(maps, different, steps=7), maps)
    assert torch.allclose(spread_maps(maps, torch.ones(3, 1, 4)), torch.full((1, 1, 4), 0.35))
    assert torch.equal(spread_maps(maps, torch.zeros(3, 1, 4)), maps)  # cells without features keep theirs


def test_a_walk_commutes_with_mirroring() -> None:
    maps, features = torch.rand(2, 4, 5), torch.randn(3, 4, 5)
    mirrored = spread_maps(maps.flip(-1), features.flip(-1), 2.0, 3, 2.0).flip(-1)
    assert torch.allclose(mirrored, spread_maps(maps, features, 2.0, 3, 2.0), atol=1e-6)


def test_softmax_weights_are_where_the_gradient_is_zero() -> None:
    features, labels = torch.randn(40, 3), torch.randint(3, (40,))
    weight = fit_softmax(features, labels, 4, penalty=0.05)
    scale = features.square().mean(0).sqrt() * 3**0.5
    own = (weight * scale).requires_grad_()
    loss = torch.nn.functional.cross_entropy(features / scale @ own.T, labels) + 0.05 * own.square().sum()
    (gradient,) = torch.autograd.grad(loss, own)
    assert gradient.abs().max() < 1e-3


def test_one_tag_gets_the_saliency_and_several_share_it() -> None:
    salient = torch.tensor([[0.2, 0.9]])
    assert torch.equal(share_saliency(torch.tensor([[[0.0, 0.7]]]), salient)[0], salient)
    shared = share_saliency(torch.tensor([[[0.0, 0.6]], [[0.0, 0.2]]]), salient)
    assert torch.allclose(shared, torch.tensor([[[0.1, 0.675]], [[0.1, 0.225]]]))
    assert share_saliency(torch.zeros(0, 1, 2), salient).shape == (0, 1, 2)


def test_reactivated_maps_tell_the_classes_apart(network: RcaNetwork, cache: FeatureCache, dataset: Dataset) -> None:
    changed = copy.deepcopy(network)
    reactivate(changed, cache, dataset.samples)
    (before,), (after,) = network.coarse_head, changed.coarse_head
    weight = after.get_parameter("weight")
    assert not torch.equal(weight, before.get_parameter("weight"))
    assert weight.sum(0).abs().max() < 1e-2 * weight.abs().max()  # a softmax sees differences alone
    with torch.no_grad():
        for sample in dataset.samples[1:-1]:
            maps = cached_maps(changed, cache, dataclasses.replace(sample, tags=(1, 2)), "coarse")
            assert maps.shape[0] == 2 and maps.max() <= 1
    again = copy.deepcopy(network)
    reactivate(again, cache, dataset.samples)
    assert torch.equal(again.coarse_head[0].get_parameter("weight"), weight)


def test_a_single_class_leaves_nothing_to_tell_apart(
    network: RcaNetwork, cache: FeatureCache, dataset: Dataset
) -> None:
    one = copy.deepcopy(network)
    reactivate(one, cache, [sample for sample in dataset.samples if sample.tags in ((), (1,))])
    assert torch.equal(one.coarse_head[0].get_parameter("weight"), network.coarse_head[0].get_parameter("weight"))


@pytest.mark.parametrize("rival", RIVALS)
def test_maps_of_a_rival_in_a_run(
    rival: Baseline, trained: Path, dataset: Dataset, cache: FeatureCache, tmp_path: Path
) -> None:
    run = open_run(tmp_path / "run", dataset.root, with_maps(rival))
    shutil.copytree(trained, run.network)
    with run.stage("train"):
        pass
    localise(dataset, run, cache=cache)
    for sample in dataset.samples:
        values, classes = read_maps(map_file(run, sample.id))
        assert classes == sample.tags and values.shape == (len(classes), 16, 16)
        if rival == "saliency" and len(classes) == 1:
            assert sample.saliency is not None
            salient = Image.open(sample.saliency).convert("L").resize((16, 16), Image.Resampling.BILINEAR)
            assert values[0].tobytes() == salient.tobytes()


@pytest.mark.parametrize("rival", RIVALS)
def test_maps_are_shares_and_do_not_depend_on_other_images(
    rival: Baseline, network: RcaNetwork, cache: FeatureCache, dataset: Dataset
) -> None:
    both = dataset.samples[-1]
    maps = rival_maps(network, cache, both, rival)
    assert maps.shape[0] == 2 and maps.min() >= 0
    assert maps.amax((1, 2)).tolist() == pytest.approx([1, 1])
    found = from_cache(network, cache, both, with_maps(rival))
    assert found.shape == (2, 16, 16) and found.sum(0).max() <= (1 + 1e-5 if rival == "saliency" else 2)
    turned = from_cache(network, cache, dataclasses.replace(both, tags=both.tags[::-1]), with_maps(rival))
    assert torch.allclose(turned.flip(0), found, atol=1e-5)


def test_a_missing_saliency_map_stops_before_features_are_computed(discs: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"maps = saliency needs one for every .*docs/rivals.md has a command"):
        fit_until(discs, tmp_path / "run", "train", with_maps("saliency"))
    assert not (tmp_path / "run" / "features").exists()


@pytest.mark.parametrize("rival", RIVALS)
def test_rivals_need_frozen_features_and_class_activation_maps(rival: Baseline) -> None:
    assert SETTINGS.train.method == "frozen"
    with pytest.raises(ValueError, match=f"train.method must be frozen with maps = {rival}, got 'finetuned'"):
        Settings(maps=rival)
    with pytest.raises(ValueError, match=f"localise.kind must be auto or coarse with maps = {rival}, got 'posterior'"):
        dataclasses.replace(with_maps(rival), localise=LocaliseSettings(kind="posterior"))
    rule = with_maps(rival).mask_rule().background
    assert rule == ("rest" if rival == "saliency" else "otsu")
