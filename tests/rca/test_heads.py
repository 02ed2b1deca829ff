"""RCA on cached features."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from tagseg.data.images import read_image
from tagseg.data.records import Dataset
from tagseg.features.cache import FeatureCache
from tagseg.features.extract import extract
from tagseg.masks.localise import from_cache
from tagseg.networks.backbones import build_backbone
from tagseg.rca.heads import Heads, average_precision, cached_maps, fit_heads, fit_tags, mine_relative
from tagseg.rca.train import load_network, train_frozen
from tagseg.settings.features import FeatureSettings
from tagseg.settings.presets import preset
from tagseg.settings.train import TrainSettings
from tagseg.training.loading import to_tensor

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
    """Return 12 noisy images of two classes, red and green, the last one of both; the first one loses its tag."""
    drawn = draw_squares(tmp_path_factory.mktemp("pictures"), count=12, height=64)
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
def heads(dataset: Dataset, cache: FeatureCache) -> Heads:
    return fit_heads(dataset, cache, SETTINGS)


def test_every_tagged_class_and_background_enter_the_bank(heads: Heads) -> None:
    assert (heads.bank.filled > 0).all()
    assert heads.network.exists.any(1).all()
    assert len(heads.history) == SETTINGS.rca.rounds


def test_the_backbone_is_not_trained(heads: Heads) -> None:
    assert not any(parameter.requires_grad for parameter in heads.network.backbone.parameters())


def test_posteriors_of_an_image_are_probabilities(heads: Heads, cache: FeatureCache, dataset: Dataset) -> None:
    maps = cached_maps(heads.network, cache, dataset.samples[-1], "posterior")
    assert maps.shape[0] == 2
    assert maps.min() >= 0 and maps.sum(0).max() <= 1 + 1e-5


def test_an_image_without_tags_is_background(heads: Heads, cache: FeatureCache, dataset: Dataset) -> None:
    maps = from_cache(heads.network, cache, dataset.samples[0], SETTINGS)
    assert maps.shape == (0, 16, 16)


def test_two_fits_with_one_seed_are_the_same(heads: Heads, dataset: Dataset, cache: FeatureCache) -> None:
    again = fit_heads(dataset, cache, SETTINGS)
    assert torch.equal(again.network.prototypes, heads.network.prototypes)
    assert torch.equal(again.bank.slots, heads.bank.slots)


@torch.no_grad()
def test_the_saved_network_sees_in_an_image_what_the_cache_holds(
    dataset: Dataset, cache: FeatureCache, tmp_path: Path
) -> None:
    train_frozen(dataset, cache, SETTINGS, tmp_path)
    network, classes = load_network(tmp_path, torch.device("cpu"))
    sample = dataset.samples[-1]
    height, width = cache.views(sample.id)[0]
    picture = to_tensor(read_image(sample.image).resize((width, height), Image.Resampling.BILINEAR))[None]
    assert classes == tuple(dataset.classes)
    maps = [torch.from_numpy(one.astype("f4"))[None] for one in cache.maps(sample.id)[:: len(cache.scales)]]
    assert network.layers is not None
    _, kept = network.layers.join(maps, network.backbone.grid)
    cosine = torch.nn.functional.cosine_similarity(network(picture).features, kept)
    assert cosine.min() > 0.999


def test_a_region_is_never_empty() -> None:
    shares = torch.full((2, 6, 6), 0.1)
    shares[1, 2, 3] = 0.2
    cells, labels = mine_relative(shares, (4, 9), "posterior", SETTINGS.rca)
    assert labels.tolist() == [4, 9]
    assert cells.flatten(1).any(1).all() and cells[1, 2, 3]


def test_the_tag_head_separates_what_is_separable_and_says_how_well() -> None:
    generator = torch.Generator().manual_seed(1)
    tags = (torch.rand(200, 3, generator=generator) < torch.tensor([0.5, 0.2, 0.05])).float()
    features = torch.cat([tags @ torch.randn(3, 6, generator=generator), torch.ones(200, 1)], 1)
    head = fit_tags(features + 0.01 * torch.randn(200, 7, generator=generator), tags, seed=0)
    assert head.precision > 0.95
    assert ((features @ head.weight.T + head.bias > 0) == tags.bool()).float().mean() > 0.99


def test_average_precision_counts_classes_alike_and_skips_absent_ones() -> None:
    scores = torch.tensor([[3.0, 1.0, 0.0], [2.0, 2.0, 0.0], [1.0, 3.0, 0.0]])
    truth = torch.tensor([[True, True, False], [False, False, False], [True, False, False]])
    # class 0: hits at ranks 1 and 3, (1 + 2/3) / 2; class 1: a hit at rank 3
    assert average_precision(scores, truth) == pytest.approx(((1 + 2 / 3) / 2 + 1 / 3) / 2)
