"""Segmentation networks on timm's encoders: DeepLab-v2, DeepLabV3+ and UPerNet, behind one interface."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import segmentation_models_pytorch as smp
import timm
import torch
from jaxtyping import Float
from torch import Tensor, nn

from tagseg.networks.backbones import RANDOM, TIMM, freeze, freeze_batch_norm, is_known, no_weights, weight_options
from tagseg.networks.deeplabv2 import DeepLabV2
from tagseg.networks.grid import Grid
from tagseg.networks.registration import measured_shift, resize_cells
from tagseg.networks.resnet38 import RESNET38
from tagseg.settings.segment import DECODER_CHANNELS, NetworkName


class Segmenter(nn.Module):
    """A network that takes RGB in 0..1 and returns class scores at image size; id 0 is background.

    `network` is what is built around `encoder`, a timm model that starts from `weights` (see `weight_options`);
    `freezing`: the stride up to which its stages keep their weights (0: none), and whether its batch norms do.

    `grid` says where the cells of the encoder's last map lie: measured (for new networks), as saved with a network, or
    None, as before it was measured: DeepLabV3+ then enlarges as segmentation-models-pytorch does, with the corners of
    every map on those of the image, which moves the last map by up to 15 pixels. UPerNet has None.

    `decoder_channels`: those of DeepLabV3+'s and UPerNet's decoder; DeepLab-v2 has none.

    Raises:
        ValueError: when the encoder is unknown, does not fit network or stride, or its weights are not available.
    """

    mean: Float[Tensor, "1 3 1 1"]
    std: Float[Tensor, "1 3 1 1"]

    def __init__(
        self,
        encoder: str,
        ids: int,
        stride: int,
        weights: str,
        freezing: tuple[int, bool],
        network: NetworkName = "deeplabv3plus",
        grid: Grid | Literal["measured"] | None = "measured",
        decoder_channels: int = DECODER_CHANNELS,
    ) -> None:
        super().__init__()
        if not is_known(encoder):
            raise ValueError(f"encoder {encoder!r}: timm has no such model; choose another --segment.encoder")
        self.net = (
            DeepLabV2(encoder, ids, None if plain_transformer(encoder) else stride, weights, _known_shift(grid))
            if network == "deeplabv2"
            else _pyramid_network(network, encoder, ids, stride, weights, decoder_channels)
        )
        self.multiple = fitting_multiple(network, stride)
        if network == "deeplabv2":
            grid = self.net.encoder.grid
        elif grid == "measured":
            grid = _measured_grid(self.net, self.multiple, stride) if network == "deeplabv3plus" else None
        self.grid: Grid | None = grid
        mean, std = _normalisation(self.net, encoder)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)
        up_to_stride, self.frozen_norms = freezing
        model: Any = self.net.encoder.model
        info = model.feature_info
        freeze(model, info if isinstance(info, list) else info.info, up_to_stride)

    def train(self, mode: bool = True) -> "Segmenter":
        """Switch to training; frozen batch norms of the encoder stay in evaluation."""
        super().train(mode)
        if self.frozen_norms:
            freeze_batch_norm(self.net.encoder)
        return self

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b ids H W"]:
        """Return scores per id (before softmax) of images whose size is a `fitting_size`."""
        if self.grid is not None:
            return resize_cells(self.coarse_scores(images), images.shape[2:], self.grid.cornered, self.shift)
        scores: Tensor = self.net((images - self.mean) / self.std)
        return scores

    @property
    def cornered(self) -> bool:
        """Whether the corner cells of `coarse_scores` lie on the corner pixels of the image."""
        return self.grid is None or self.grid.cornered

    @property
    def shift(self) -> float:
        """By what part of a cell the cells of `coarse_scores` lie further to the right and down than regular ones."""
        return self.net.encoder.grid.shift if isinstance(self.net, DeepLabV2) else 0.0

    def coarse_scores(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b ids h w"]:
        """Return the scores before they are enlarged to the size of the images, which is the last step of `forward`."""
        if isinstance(self.net, DeepLabV2):  # its encoder is the classifier's backbone, which normalises by itself
            scores: Tensor = self.net.head(self.net.encoder(images))
            return scores
        net: Any = self.net
        features = net.encoder((images - self.mean) / self.std)
        decoded = net.decoder(features) if self.grid is None else _decode(net.decoder, features, self.grid)
        scores = net.segmentation_head[0](decoded)
        return scores

    def fitting_size(self, height: int | float, width: int | float) -> tuple[int, int]:
        """Return the image size nearest to `height` x `width` pixels that the network takes."""
        if isinstance(self.net, DeepLabV2):
            return self.net.encoder.fitting_size(height, width)
        extra = int(self.grid is not None and self.grid.cornered)
        h, w = (max(round((side - extra) / self.multiple), 2) * self.multiple + extra for side in (height, width))
        return h, w

    def start_encoder(self, tensors: Mapping[str, Tensor]) -> None:
        """Start the encoder at the tensors of a backbone that was built from the same timm model.

        Raises:
            ValueError: when a tensor of the encoder is missing or has another shape.
        """
        # timm's feature extractors call a module stages_0 that the model itself calls stages.0.
        found = {name.replace(".", "_"): tensor for name, tensor in tensors.items()}
        model: nn.Module = self.net.encoder.model
        own = model.state_dict()
        taken = {name: found.get(name.replace(".", "_")) for name in own}
        wrong = [name for name, one in taken.items() if one is None or one.shape != own[name].shape]
        if wrong:
            raise ValueError(
                f"the encoder cannot start at the classification network's backbone: {len(wrong)} of {len(own)} "
                f"tensors are missing or have another shape, first {wrong[0]}; add --segment.start weights"
            )
        model.load_state_dict({name: one for name, one in taken.items() if one is not None})

    def encoder_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that come with start weights."""
        return list(self.net.encoder.parameters())

    def new_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of everything built around the encoder."""
        return [parameter for name, parameter in self.net.named_parameters() if not name.startswith("encoder.")]


def fitting_multiple(network: NetworkName, stride: int) -> int:
    """Return the pixels that the image sides of a pyramid network are multiples of."""
    return 32 if network == "upernet" else max(stride, 16)


def empty_segmenter(
    encoder: str,
    ids: int,
    stride: int,
    network: NetworkName = "deeplabv3plus",
    grid: Grid | None = None,
    decoder_channels: int = DECODER_CHANNELS,
) -> Segmenter:
    """Return a segmenter whose weights are about to be loaded."""
    return Segmenter(encoder, ids, stride, RANDOM, (0, True), network, grid, decoder_channels)


def foreign_config(segmenter: Segmenter) -> dict[str, Any] | None:
    """Return what `from_pretrained` of segmentation-models-pytorch builds a segmenter's network from, the content of
    its config.json; None if the network is not one of theirs.

    Theirs takes normalised images; sizes must suit it (see `Segmenter.fitting_size`).
    """
    net: Any = segmenter.net
    return None if segmenter.grid is not None else {**net.config, "_model_class": type(net).__name__}


def _known_shift(grid: Grid | Literal["measured"] | None) -> float | None:
    """Return the shift of a backbone whose grid is known; before it was measured all were taken for regular."""
    if grid is None:
        return 0.0
    return None if grid == "measured" else grid.shift


@torch.no_grad()
def _measured_grid(net: Any, multiple: int, stride: int) -> Grid:
    """Return how the cells of a DeepLabV3+ network's encoder lie."""
    training = net.training
    size = 4 * multiple + 1
    try:
        features = net.encoder.eval()(torch.zeros(1, 3, size, size))
    except (AssertionError, RuntimeError, ValueError):  # sides must be multiples
        cornered = False
    else:
        cornered = all(features[i].shape[2] == (size - 1) // step + 1 for i, step in ((2, 4), (-1, stride)))
    net.train(training)
    shift = measured_shift(net.encoder, lambda found: found[-1], 4 * multiple, stride, cornered)
    return Grid(cornered, shift)


def _decode(decoder: Any, features: Sequence[Tensor], grid: Grid) -> Tensor:
    """Return the output of a DeepLabV3+ decoder, with the last map of the encoder placed as its `grid` says."""
    fine = decoder.block1(features[2])
    deep = resize_cells(decoder.aspp(features[-1]), fine.shape[2:], grid.cornered, grid.shift)
    decoded: Tensor = decoder.block2(torch.cat([deep, fine], 1))
    return decoded


def choose_network(asked: Literal["auto"] | NetworkName, encoder: str, stride: int) -> NetworkName:
    """Return the network that `auto` stands for.

    DeepLabV3+ where the encoder can have that output stride; UPerNet where it has several strides but no choice;
    DeepLab-v2 around a plain vision transformer, whose features have one scale, around ResNet-38, and wherever timm
    gives features of the last scale alone.

    Raises:
        ValueError: when timm does not know the encoder.
    """
    if asked != "auto":
        return asked
    if not is_known(encoder):
        raise ValueError(f"encoder {encoder!r}: timm has no such model; choose another --segment.encoder")
    if encoder == RESNET38 or plain_transformer(encoder):
        return "deeplabv2"
    if _has_features(encoder, output_stride=stride):
        return "deeplabv3plus"
    return "upernet" if _has_features(encoder) else "deeplabv2"


@functools.cache
def _has_features(encoder: str, **options: Any) -> bool:
    """Tell whether timm gives the features of all strides of a model that is built with these options, for images of
    any size."""
    try:
        with torch.device("meta"), torch.no_grad():
            timm.create_model(encoder, features_only=True, **options).eval()(torch.zeros(1, 3, 64, 96))
    except (AssertionError, AttributeError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return False
    return True


@functools.cache
def plain_transformer(encoder: str) -> bool:
    """Tell whether a timm model has features at a single stride and supports no other (ViT, DINOv2, DINOv3, CLIP)."""
    if encoder == RESNET38:
        return False
    with torch.device("meta"):
        model = timm.create_model(encoder, num_classes=0)
    info: list[dict[str, Any]] = getattr(model, "feature_info", [])
    return hasattr(model, "patch_embed") and len({stage["reduction"] for stage in info}) == 1


def _normalisation(net: nn.Module, encoder: str) -> tuple[Float[Tensor, "1 3 1 1"], Float[Tensor, "1 3 1 1"]]:
    if isinstance(net, DeepLabV2):
        return net.encoder.mean.clone(), net.encoder.std.clone()
    config = timm.get_pretrained_cfg(encoder)
    assert config is not None  # or the model could not have been built
    return torch.tensor(config.mean).view(1, 3, 1, 1), torch.tensor(config.std).view(1, 3, 1, 1)


def _pyramid_network(
    network: NetworkName, encoder: str, ids: int, stride: int, weights: str, decoder_channels: int
) -> Any:
    """A network of segmentation-models-pytorch, on an encoder that has features at several strides."""
    if encoder == RESNET38:
        raise ValueError(
            f"encoder {encoder}: goes with DeepLab-v2 alone, not {network}; use --segment.network deeplabv2"
        )
    if plain_transformer(encoder):
        raise ValueError(
            f"encoder {encoder}: has features at one scale, {network} needs several; use --segment.network deeplabv2"
        )
    options = weight_options(encoder, weights)
    pretrained = True if options.pop("pretrained") else None
    options |= {"decoder_channels": decoder_channels, "classes": ids}
    try:
        if network == "upernet":
            net = smp.UPerNet(f"tu-{encoder}", encoder_weights=pretrained, **options)
        else:
            net = smp.DeepLabV3Plus(
                f"tu-{encoder}", encoder_weights=pretrained, encoder_output_stride=stride, **options
            )
        image = torch.zeros(1, 3, 64, 96)
        # On the meta device operators are interpreted: most of the time that reading a network would take.
        if not image.is_meta:
            with torch.no_grad():
                net.eval()(image)  # encoders with a fixed image size fail here
        return net
    except (RuntimeError, OSError) as error:
        if weights != TIMM:
            raise
        raise no_weights(encoder, error) from error
    except (AssertionError, TypeError, NotImplementedError, ValueError) as error:
        raise ValueError(
            f"encoder {encoder}: does not suit {network} with output stride {stride} "
            f"({str(error).splitlines()[0][:120] if str(error) else type(error).__name__}); choose another "
            f"--segment.encoder or --segment.network {' or '.join(n for n in get_args(NetworkName) if n != network)}"
        ) from error
