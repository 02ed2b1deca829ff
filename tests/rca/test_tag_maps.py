import math

import pytest
import torch
from torch import Tensor

from tagseg.rca.network import Maps, RcaNetwork, build_network
from tagseg.rca.tag_maps import pair_maps, tag_maps, tag_posterior
from tagseg.settings.rca import RcaSettings
from tagseg.settings.settings import MapKind
from tagseg.settings.train import TrainSettings

TRAIN = TrainSettings(backbone="test_resnet", weights="random", neck=8, freeze_stride=0)
RCA = RcaSettings(slots=4, prototypes=2)


@pytest.fixture
def network() -> RcaNetwork:
    """Return a network of three classes; the bank knows nothing of the second."""
    network = build_network(3, TRAIN, RCA).eval()
    network.prototypes.copy_(torch.rand(network.prototypes.shape))
    network.exists.fill_(True)
    network.exists[2] = False
    return network


@torch.no_grad()
def test_a_class_that_the_bank_knows_gets_its_posterior_and_any_other_its_refined_map(network: RcaNetwork) -> None:
    maps = network(torch.rand(1, 3, 65, 65))
    found = tag_maps(network, maps, (1, 2), "posterior")
    both = torch.tensor([0, 0]), torch.tensor([1, 2])
    assert torch.equal(found[0, 0], network.posterior(maps.features, *both)[0]) and found[0, 0].min() > 0
    assert torch.equal(found[:, 1], maps.refined[:, 1].relu())
    assert torch.equal(tag_maps(network, maps, (2,), "coarse"), maps.coarse[:, 1:2].relu())
    assert torch.equal(tag_maps(network, maps, (3,), "refined"), maps.refined[:, 2:].relu())
    network.exists[0] = False  # without background every class would have all the attention
    assert torch.equal(tag_maps(network, maps, (1,), "posterior"), maps.refined[:, :1].relu())


@torch.no_grad()
@pytest.mark.parametrize("kind", ["posterior", "refined", "coarse"])
@pytest.mark.parametrize("background", [False, True])
def test_pairs_of_a_batch_equal_every_image_alone(kind: MapKind, background: bool, network: RcaNetwork) -> None:
    if background:
        known = network
        network = build_network(3, TRAIN, RCA, background=True).eval()
        network.prototypes.copy_(known.prototypes)
        network.exists.copy_(known.exists)
    images = torch.rand(3, 3, 49, 33)
    tags = [(1, 3), (2,), (1, 2, 3)]
    image = torch.tensor([i for i in range(3) for _ in tags[i]])
    together = pair_maps(network, network(images), image, torch.tensor(sum(tags, ())), kind)
    alone = [tag_maps(network, network(images[i : i + 1]), tags[i], kind)[0] for i in range(3)]
    assert together.min() >= 0
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=1e-4)


def test_the_order_of_tags_is_kept(network: RcaNetwork) -> None:
    maps = network(torch.rand(2, 3, 33, 33))
    straight, turned = (tag_maps(network, maps, tags, "refined") for tags in ((1, 2, 3), (3, 1, 2)))
    assert torch.equal(turned, straight[:, [2, 0, 1]])


def test_probability_against_background_cell_by_cell() -> None:
    classes, background = torch.randn(2, 3, 2, 2), torch.randn(2, 2, 2)
    pairs = [(0, 1), (0, 3), (1, 2)]
    found = tag_posterior(classes, background, *torch.tensor(pairs).T)
    for n, (b, tag) in enumerate(pairs):
        shown = [other for image, other in pairs if image == b]
        for y in range(2):
            for x in range(2):
                powers = {other: math.exp(classes[b, other - 1, y, x]) for other in shown}
                total = sum(powers.values()) + math.exp(background[b, y, x])
                assert float(found[n, y, x]) == pytest.approx(powers[tag] / total, rel=1e-5)


def test_a_network_with_a_background_channel_answers_with_probabilities() -> None:
    network = build_network(2, TRAIN, RCA, background=True).eval()
    maps: Maps = network(torch.rand(2, 3, 33, 33))
    assert maps.coarse.shape == maps.refined.shape == (2, 2, 3, 3)
    for kind, classes, background in (
        ("coarse", maps.coarse, maps.coarse_background),
        ("refined", maps.refined, maps.refined_background),
    ):
        assert isinstance(background, Tensor)
        found = tag_maps(network, maps, (2,), kind)  # type: ignore[arg-type]
        torch.testing.assert_close(found[:, 0], (classes[:, 1] - background).sigmoid())
