"""Where cells lie in the image: measured per backbone, and respected by what resizes maps."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tagseg.networks.backbones import build_backbone
from tagseg.networks.grid import Grid
from tagseg.networks.registration import measured_shift, resize_cells
from tagseg.networks.segmenters import Segmenter, _decode, empty_segmenter, foreign_config

FREE = (0, False)


@pytest.mark.parametrize("cornered", [True, False])
def test_cells_are_resized_to_where_they_lie(cornered: bool) -> None:
    """Values that grow by 1 per pixel are still right between the outermost cells, whatever part of a cell all lie
    further right and down."""
    stride, shift, cells = 8, 0.375, 6
    first = (0 if cornered else 3.5) + shift * stride
    ramp = (first + stride * torch.arange(cells)).expand(1, 1, cells, cells)
    side = stride * (cells - cornered) + cornered
    pixels = torch.arange(side, dtype=torch.float32)
    expected = pixels.clamp(first, first + stride * (cells - 1))
    enlarged = resize_cells(ramp, (side, side), cornered, shift)
    torch.testing.assert_close(enlarged, expected.expand(1, 1, side, side))
    torch.testing.assert_close(resize_cells(ramp.mT, (side, side), cornered, shift), enlarged.mT)
    # And to cells of half the stride that lie a quarter of their own size further right and down.
    finer = 2 * (cells - cornered) + cornered
    places = (0 if cornered else 1.5) + 4 * torch.arange(finer) + 0.25 * 4
    found = resize_cells(ramp, (finer, finer), cornered, shift, 0.25)[0, 0, 0]
    torch.testing.assert_close(found, places.clamp(first, first + stride * (cells - 1)))


def test_without_a_shift_resizing_is_pytorchs() -> None:
    maps = torch.rand(2, 3, 5, 7)
    for cornered in (True, False):
        expected = F.interpolate(maps, (17, 29), mode="bilinear", align_corners=cornered)
        assert torch.equal(resize_cells(maps, (17, 29), cornered), expected)
        by_matrices = resize_cells(maps, (17, 29), cornered, 1e-9)
        torch.testing.assert_close(by_matrices, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("kernel", "padding", "cornered", "shift"), [(3, 1, True, 0.0), (4, 1, False, 0.0), (3, 0, False, 0.375)]
)
def test_the_place_of_a_window_is_measured(kernel: int, padding: int, cornered: bool, shift: float) -> None:
    """Two convolutions of stride 2. By hand: without padding a window of 3 is centred on 2 i + 1, and one of these on
    2 (2 j + 1) + 1 = 4 j + 3, which is 1.5 pixels or 0.375 cells beyond the centre of tile j."""
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(a, 8, kernel, 2, padding) for a in (3, 8)]
    network = nn.Sequential(convolutions[0], nn.ReLU(), convolutions[1])
    before = [parameter.clone() for parameter in network.parameters()]
    assert measured_shift(network, lambda found: found, 64, 4, cornered) == shift
    assert all(torch.equal(one, other) for one, other in zip(before, network.parameters(), strict=True))


@pytest.mark.parametrize("grid", [Grid(True), Grid(False), Grid(False, 0.5)])
def test_the_deepest_features_of_deeplab_lie_on_their_pixels(grid: Grid) -> None:
    """Features that say which pixel they lie on are still right where the finest features, and where the pixels are."""
    first, cells = (0 if grid.cornered else 7.5) + 16 * grid.shift, 6 + grid.cornered
    deep = (first + 16 * torch.arange(cells)).expand(1, 2, cells, cells)
    fine, side = torch.zeros(1, 1, 24 + grid.cornered, 24 + grid.cornered), 96 + grid.cornered
    blocks = SimpleNamespace(aspp=nn.Identity(), block1=nn.Identity(), block2=nn.Identity())
    decoded = _decode(blocks, [fine, fine, fine, deep], grid)
    pixels = resize_cells(decoded, (side, side), grid.cornered)[0, 0, side // 2]
    inside = slice(int(first) + 3, int(first + 16 * (cells - 1)) - 2)
    torch.testing.assert_close(pixels[inside], torch.arange(side, dtype=torch.float32)[inside])


@pytest.mark.parametrize(("encoder", "grid"), [("test_efficientnet", Grid(True)), ("test_convnext", Grid(False, 0.5))])
def test_a_new_segmenter_measures_its_encoder(encoder: str, grid: Grid) -> None:
    network = Segmenter(encoder, 3, 16, "random", FREE)
    assert network.grid == grid and network.cornered == grid.cornered
    side = 32 + grid.cornered
    with torch.no_grad():
        assert network.eval()(torch.rand(1, 3, side, side)).shape == (1, 3, side, side)


@pytest.mark.parametrize(
    ("name", "stride", "shift"),
    [
        ("test_efficientnet", 16, 0.0),
        ("test_convnext", 32, 0.0),
        ("test_convnext", 16, 0.5),
        ("test_convnext", 8, 0.5),
        ("test_vit", 16, 0.0),
        ("test_mambaout", 32, 0.0),
    ],
)
def test_maps_of_every_family_are_enlarged_to_where_the_network_looks(name: str, stride: int, shift: float) -> None:
    """The pixels that a cell sees are centred, to half a pixel, on where the enlarged map shows the cell."""
    torch.manual_seed(0)
    backbone = build_backbone(name, "random", stride)
    assert backbone.grid.shift == shift
    for module in backbone.modules():  # random kernels have centres of their own
        if isinstance(module, nn.Conv2d):
            module.weight.data = (module.weight.data + module.weight.data.flip(-1)) / 2
            module.weight.data = (module.weight.data + module.weight.data.flip(-2)) / 2
    cells = 6 * max(1, 32 // stride)
    side = backbone.fitting_size(stride * cells, stride * cells)[0]
    image = (0.75 + 1e-3 * torch.randn(1, 3, side, side)).requires_grad_()
    map_ = backbone(image)
    cell = cells // 2 - (shift > 0)
    one = torch.zeros(1, 1, *map_.shape[2:])
    one[..., cell, cell] = 1
    pixels = torch.arange(side, dtype=torch.float32)
    shown = backbone.enlarge(one, (side, side))[0, 0].sum(0)
    place = float((shown * pixels).sum() / shown.sum())
    seen = torch.zeros(side)
    for number in range(3):
        weights = torch.randn(map_.shape[1], generator=torch.Generator().manual_seed(number))
        (gradient,) = torch.autograd.grad((map_[0, :, cell, cell] * weights).sum(), image, retain_graph=True)
        seen += gradient[0].square().sum((0, 1))
    assert float((seen * pixels).sum() / seen.sum()) == pytest.approx(place, abs=0.5)


def test_a_saved_network_without_a_grid_enlarges_as_its_library_does() -> None:
    torch.manual_seed(0)
    new = Segmenter("test_resnet", 3, 16, "random", FREE).eval()
    old = empty_segmenter("test_resnet", 3, 16).eval()
    old.load_state_dict(new.state_dict())  # the same tensors
    assert old.grid is None and new.grid is not None and new.grid.cornered
    assert old.fitting_size(70, 100) == (64, 96) and new.fitting_size(70, 100) == (65, 97)
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(old(images), old.net((images - old.mean) / old.std))
    assert foreign_config(old) is not None and foreign_config(new) is None
