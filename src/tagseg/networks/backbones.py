"""Backbones: any timm model with feature maps, vision transformers too, the paper's dilated VGG16, and ResNet-38."""

import contextlib
import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from tagseg.data.images import reduction
from tagseg.networks.grid import Grid
from tagseg.networks.registration import measured_shift, resize_cells
from tagseg.networks.resnet38 import RESNET38, ResNet38
from tagseg.settings.train import find_weights

log = logging.getLogger(__name__)

RANDOM = "random"
TIMM = "timm"
LAST = "last"
AUTO = "auto"

FINEST_STRIDE = 8
"""Image pixels per cell of the finest maps that `finer_layers` returns."""

MapOrder = Literal["channels first", "channels last", "tokens", "tokens by patches"]
"""Order of a layer's output; the patches of a vision transformer know how many tokens an image has."""

STRIDES = (8, 14, 16, 32, 64)
"""Image pixels per cell that a feature map may have."""

PROBED = (224, 448)
"""Height and width in pixels of an image of whole cells of any of these strides."""


class Backbone(nn.Module):
    """A timm model that turns images into a feature map and also returns the output of an earlier layer.

    Attributes:
        channels: channels of the feature map.
        earlier_channels: channels of the earlier layer's output.
        stride: image pixels per cell.
        grid: where cells lie in images that fit; decides which sizes these are, and how maps are enlarged.
        mean, std: normalisation the weights expect, for RGB in 0..1.
    """

    mean: Float[Tensor, "1 3 1 1"]
    std: Float[Tensor, "1 3 1 1"]

    def __init__(
        self, name: str, model: nn.Module, stride: int | None, layer: str = LAST, shift: float | None = None
    ) -> None:
        super().__init__()
        self.name = name
        self.model = model
        self._pass: list[Callable[[Tensor], Sequence[Tensor]]] = []  # in a list, or it would become a submodule
        self._kept: dict[str, Tensor] = {}
        self._orders: dict[str, MapOrder] = {}
        self.grid = Grid()  # until probed
        self._earlier = (earlier_layer(model) or LAST) if layer == AUTO else layer
        if self._earlier != LAST:
            module = find_layer(name, model, self._earlier, "rca.layer")
            hook = module.register_forward_hook(partial(self._keep, self._earlier))
        config: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
        self.register_buffer("mean", torch.tensor(config["mean"]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config["std"]).view(1, 3, 1, 1), persistent=False)
        self.eval()
        try:
            probed = self._probe(PROBED)
        except ValueError:  # the earlier layer's output is not a map
            if layer != AUTO or self._earlier == LAST:
                raise
            hook.remove()
            self._earlier = LAST
            probed = self._probe(PROBED)
        if isinstance(probed, Exception):
            raise self._unfit(f"does not take images of {_text(PROBED)} pixels ({_first_line(probed)})")
        features, earlier = probed
        cells = features.shape[2], features.shape[3]
        self.channels, self.earlier_channels = features.shape[1], earlier.shape[1]
        fitting = [one for one in STRIDES if cells == (-(-PROBED[0] // one), -(-PROBED[1] // one))]
        if not fitting:
            raise self._unfit(f"has {_text(cells)} cells for {_text(PROBED)} pixels, not one per 8, 14, 16, 32 or 64")
        self.stride = fitting[0]
        if stride not in (None, self.stride):
            log.warning("backbone %s: has %d image pixels per cell, not %d", name, self.stride, stride)
        small = max(4 * self.stride, 64) // self.stride * self.stride
        larger = self._probe((small + 1, small + 1))
        cornered = not isinstance(larger, Exception) and larger[0].shape[2] == small // self.stride + 1
        if shift is None:
            shift = measured_shift(self, lambda found: found, small, self.stride, cornered)
        self.grid = Grid(cornered, shift)
        other = self._probe(self.fitting_size(128, 192))
        if isinstance(other, Exception):
            raise self._unfit(f"takes images of few sizes only ({_first_line(other)})")

    @property
    def head_layers(self) -> tuple[str, str]:
        """The layers that heads and bank read: the last and the earlier one (`last` where there is none)."""
        return LAST, self._earlier

    def compute_by(self, layer_maps: Callable[[Tensor], Sequence[Tensor]]) -> None:
        """Compute `head_layers` by another function with the same results (see `tagseg.features.fused`); its weights do
        not follow those of the model."""
        self._pass = [layer_maps]

    @property
    def cornered(self) -> bool:
        """Whether cell (0, 0) lies on the corner of images that fit (see `Grid`)."""
        return self.grid.cornered

    @torch.no_grad()
    def _probe(self, size: tuple[int, int]) -> tuple[Tensor, Tensor] | Exception:
        """Return the maps of an image of (height, width) `size` pixels, or why there are none."""
        try:
            return self.with_earlier(torch.zeros(1, 3, *size))
        except (AssertionError, AttributeError, IndexError, RuntimeError, TypeError) as error:  # whatever models raise
            return error

    def _unfit(self, reason: str) -> ValueError:
        return ValueError(
            f"backbone {self.name}: {reason}; tagseg needs a model with an evenly spaced feature map of images of any "
            "size: choose another --train.backbone (docs/backbones.md)"
        )

    def fitting_size(self, height: int | float, width: int | float) -> tuple[int, int]:
        """Return the image size nearest to `height` x `width` pixels that cells cover exactly."""
        extra = int(self.cornered)
        h, w = (max(round((side - extra) / self.stride), 2) * self.stride + extra for side in (height, width))
        return h, w

    def enlarge(self, maps: Float[Tensor, "b c h w"], size: tuple[int, int]) -> Float[Tensor, "b c H W"]:
        """Return maps at `size` pixels (bilinear), with each cell centred on its receptive field."""
        return resize_cells(maps.float(), size, self.cornered, self.grid.shift)

    def reduce(self, pixels: Float[Tensor, "b H W"], size: tuple[int, int]) -> Float[Tensor, "b h w"]:
        """Return maps sampled at the network's `size` (height, width) cells (bilinear); the inverse of `enlarge`."""
        return resize_cells(pixels[:, None], size, self.cornered, target_shift=self.grid.shift)[:, 0]

    def forward(self, images: Float[Tensor, "b 3 H W"]) -> Float[Tensor, "b d h w"]:
        """Return the feature map of RGB images in 0..1."""
        return self.with_earlier(images)[0]

    def with_earlier(
        self, images: Float[Tensor, "b 3 H W"]
    ) -> tuple[Float[Tensor, "b d h w"], Float[Tensor, "b m h w"]]:
        """Return the feature map and the earlier layer's output in the same cells (the same map for `last`)."""
        features, earlier = self._pass[0](images) if self._pass else self._maps(images, self.head_layers)
        if earlier.shape[2:] != features.shape[2:]:
            earlier = resize_cells(earlier, features.shape[2:], self.cornered, target_shift=self.grid.shift)
        return features, earlier

    def layer_maps(self, images: Float[Tensor, "b 3 H W"], layers: Sequence[str]) -> list[Float[Tensor, "b _ _ _"]]:
        """Return the outputs of several layers, each in its own cells.

        Args:
            images: RGB in 0..1.
            layers: `last` for the feature map, or names of the model's modules.

        Raises:
            ValueError: when the model has no such module, or its output is not a map.
        """
        with contextlib.ExitStack() as hooks:
            for name in {*layers} - {LAST}:
                module = find_layer(self.name, self.model, name, "features.layers")
                hooks.enter_context(module.register_forward_hook(partial(self._keep, name)))
            return self._maps(images, layers)

    def view_sizes(self, size: tuple[int, int], max_side: int, scales: Sequence[float]) -> list[tuple[int, int]]:
        """Return the sizes, as (height, width), at which an image of `size` is given to the network: reduced to a long
        side of `max_side` pixels and multiplied by each scale."""
        reduce = reduction(size, max_side)
        return [self.fitting_size(size[0] * reduce * scale, size[1] * reduce * scale) for scale in scales]

    def _maps(self, images: Tensor, layers: Sequence[str]) -> list[Tensor]:
        self._kept = {}
        self._kept[LAST] = self.model.forward_features((images - self.mean) / self.std)  # type: ignore[operator]
        kept, self._kept = self._kept, {}
        for name in layers:
            if name not in kept or not isinstance(kept[name], Tensor) or kept[name].dim() not in (3, 4):
                if name == LAST:
                    raise self._unfit("its output is not a map")
                raise ValueError(
                    f"backbone {self.name}: layer {name!r} gives no map; name a block of the backbone in "
                    "--features.layers and --rca.layer"
                )
        maps = {name: self._as_map(name, kept[name], images) for name in dict.fromkeys(layers)}
        return [maps[name] for name in layers]

    def _keep(self, name: str, module: nn.Module, given: Any, output: Tensor) -> None:
        self._kept[name] = output

    def _as_map(self, name: str, features: Tensor, images: Tensor) -> Tensor:
        """Return a layer's output with its channels first, whatever their place and whether cells are tokens."""
        size = images.shape[2], images.shape[3]
        if name not in self._orders:  # seen once: a traced network must not depend on sizes
            self._orders[name] = self._order(features, size)
        order = self._orders[name]
        if order.startswith("tokens"):  # prefix tokens first
            prefix: int = getattr(self.model, "num_prefix_tokens", 0)
            if order == "tokens by patches":
                cells = self.model.patch_embed.dynamic_feat_size(size)  # type: ignore[union-attr,operator]
            else:
                cells = _token_cells(features.shape[1] - prefix, size)
            map_: Tensor = features[:, prefix:].transpose(1, 2).unflatten(2, cells)
            return map_
        return features.permute(0, 3, 1, 2) if order == "channels last" else features

    def _order(self, features: Tensor, size: tuple[int, int]) -> MapOrder:
        """Tell the order of a layer's output for images of (height, width) `size` pixels."""
        if features.dim() == 3:
            tokens = features.shape[1] - getattr(self.model, "num_prefix_tokens", 0)
            patches: Any = getattr(self.model, "patch_embed", None)
            if hasattr(patches, "dynamic_feat_size") and math.prod(patches.dynamic_feat_size(size)) == tokens:
                return "tokens by patches"
            try:
                _token_cells(tokens, size)
            except ValueError as error:
                raise self._unfit(str(error)) from error
            return "tokens"
        last: bool = getattr(self.model, "output_fmt", "NCHW") == "NHWC"
        orders = tuple(features.shape[2:]), tuple(features.shape[1:3])
        if not _is_even(orders[last], size) and _is_even(orders[not last], size):
            last = not last  # some models have layers of another order than their output
        return "channels last" if last else "channels first"


def _token_cells(tokens: int, size: tuple[int, int]) -> tuple[int, int]:
    """Return how many cells (height, width) the tokens of an image of that size in pixels are."""
    for stride in STRIDES:
        for h, w in ((-(-size[0] // stride), -(-size[1] // stride)), (size[0] // stride, size[1] // stride)):
            if h * w == tokens:
                return h, w
    raise ValueError(f"the {tokens} tokens of an image of {_text(size)} pixels are not a map of it")


def _is_even(cells: tuple[int, ...], size: tuple[int, int]) -> bool:
    """Tell whether a map of (height, width) cells has as many pixels per cell along both sides, but for rounding."""
    return abs(cells[1] - size[1] * cells[0] / size[0]) <= 1


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0][:120] or type(error).__name__


def build_backbone(
    name: str, weights: str, stride: int | None, layer: str = LAST, shift: float | None = None
) -> Backbone:
    """Build a backbone.

    Args:
        name: a timm model, or resnet38.
        weights: `timm` (pretrained weights from the hub), `random`, or a safetensors file with timm's names.
        stride: image pixels per cell: 8, 16 or 32, of a vision transformer those of its patches; None: that of a model
            that has only one.
        layer: the earlier layer: `auto` (see `earlier_layer`), `last` (none), or a name among the model's modules.
        shift: the `Grid.shift` of its cells; None: it is measured.

    Raises:
        ValueError: when timm does not know the model, it does not support the stride, or weights are not available.
    """
    if name == RESNET38:
        return Backbone(name, _resnet38(stride or 32, weights), stride, layer, shift)
    if not timm.is_model(name):
        close = ", ".join(timm.list_models(f"*{name.split('.')[0][:6]}*")[:5])
        raise ValueError(f"backbone {name!r}: timm has no such model" + (f"; close: {close}" if close else ""))
    try:
        timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # the part after the dot
        raise ValueError(f"backbone {name!r}: timm has no such model ({error})") from error
    options = weight_options(name, weights)
    try:
        if name.split(".")[0].startswith("vgg"):
            model = _dilate_vgg(timm.create_model(name, num_classes=0, **options), stride or 32)
        else:
            model = _create(name, stride, options)
    except (RuntimeError, OSError) as error:
        if weights != TIMM:
            raise
        raise no_weights(name, error) from error
    return Backbone(name, model, stride, layer, shift)


def earlier_layer(model: nn.Module) -> str | None:
    """Return the name of the block before the last one of a timm model, None where its blocks cannot be told.

    The last block's output is specific to the classes; the block before it still separates objects from their
    surroundings, which is what comparing regions needs.
    """
    info: list[dict[str, Any]] = getattr(model, "feature_info", [])
    named = {name for name, _ in model.named_modules()}
    last = info[-1]["module"] if info else ""
    if not last or last not in named:
        return None
    stage = model.get_submodule(last)
    inner = f"{last}.blocks" if hasattr(stage, "blocks") else last
    blocks = model.get_submodule(inner)
    if isinstance(blocks, nn.Sequential) and len(blocks) > 1:
        return f"{inner}.{[name for name, _ in blocks.named_children()][-2]}"
    parent, _, own = last.rpartition(".")
    siblings = [name for name, _ in model.get_submodule(parent).named_children()]
    if isinstance(stage, (nn.MaxPool2d, nn.ReLU)):  # VGG: after the last but one convolution and its ReLU
        convolutions = [
            name for name in siblings if isinstance(model.get_submodule(f"{parent}.{name}".lstrip(".")), nn.Conv2d)
        ]
        own = convolutions[-1] if convolutions else siblings[0]
    before = siblings.index(own) - 1
    return f"{parent}.{siblings[before]}".lstrip(".") if before >= 0 else None


def finer_layers(model: nn.Module, stride: int) -> list[str]:
    """Return the names of the last layers of a timm model with 8 or more and fewer than `stride` image pixels per cell,
    one per resolution, from coarse to fine."""
    info: list[dict[str, Any]] = getattr(model, "feature_info", [])
    last = {stage["reduction"]: stage["module"] for stage in info if FINEST_STRIDE <= stage["reduction"] < stride}
    return [last[reached] for reached in sorted(last, reverse=True)]


def find_layer(name: str, model: nn.Module, layer: str, setting: str) -> nn.Module:
    """Return the module called `layer` of the model of backbone `name`.

    Raises:
        ValueError: naming `setting`, when the model has no such module.
    """
    try:
        if layer:
            return model.get_submodule(layer)
        raise AttributeError("an empty name is that of the whole model")
    except AttributeError as error:
        known = ", ".join(module for module, _ in model.named_modules() if module and module.count(".") < 2)
        raise ValueError(f"backbone {name}: has no layer {layer!r} (--{setting}); known: {known[:600]}") from error


def weight_options(name: str, weights: str) -> dict[str, Any]:
    """Return timm's create_model options that load `weights`; a file is checked first, so no layer starts random.

    Raises:
        ValueError: when the file is missing, no safetensors file, or lacks a tensor of the model.
    """
    if weights == RANDOM:
        return {"pretrained": False}
    if weights == TIMM:
        return {"pretrained": True}
    with torch.device("meta"):
        expected = timm.create_model(name, num_classes=0).state_dict()
    return {"pretrained": True, "pretrained_cfg_overlay": {"file": str(_weights_file(name, weights, expected))}}


def is_known(name: str) -> bool:
    """Tell whether there is a backbone of that name."""
    return name == RESNET38 or timm.is_model(name)


def _weights_file(name: str, weights: str, expected: dict[str, Tensor]) -> Path:
    """The path of a safetensors file that has all of the `expected` tensors in their shapes."""
    path = find_weights(weights)
    assert path is not None, "weights of timm and random ones are not in a file"
    shapes = {key: tuple(value.shape) for key, value in expected.items()}
    try:
        with safe_open(path, framework="pt") as file:
            found = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"weights file {weights}: not a safetensors file ({error})") from error
    wrong = [key for key, shape in shapes.items() if found.get(key, shape if "num_batches" in key else None) != shape]
    if wrong:
        raise ValueError(
            f"weights file {weights}: not weights of {name}: {len(wrong)} of {len(expected)} tensors are missing or "
            f"have another shape, first {wrong[0]}"
        )
    return path


def freeze(model: nn.Module, feature_info: list[dict[str, Any]], up_to_stride: int) -> None:
    """Stop learning in all layers up to the last stage whose stride is at most `up_to_stride` (0: none)."""
    stages = [stage["module"] for stage in feature_info if stage["reduction"] <= up_to_stride]
    if not stages:
        return
    modules = [name for name, _ in model.named_modules()]
    # timm's feature extractors call a stage stages_0 where the model itself calls it stages.0.
    end = stages[-1].replace(".", "_")
    last = max(i for i, name in enumerate(modules) if f"{name}.".replace(".", "_").startswith(f"{end}_"))
    for name, module in model.named_modules():
        if modules.index(name) <= last:
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)


def freeze_batch_norm(model: nn.Module) -> None:
    """Put batch norms in evaluation mode and stop their learning; call again after every `train()`."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval().requires_grad_(False)


def _create(name: str, stride: int | None, options: dict[str, Any]) -> nn.Module:
    """Return a timm model with the output stride, if it has the choice; else for images of any size, if it can."""
    tried: list[dict[str, Any]] = [{"output_stride": stride}] if stride is not None else []
    for extra in [*tried, {"dynamic_img_size": True}]:
        with contextlib.suppress(TypeError, NotImplementedError, AssertionError):
            model: nn.Module = timm.create_model(name, num_classes=0, **extra, **options)
            return model
    try:
        model = timm.create_model(name, num_classes=0, **options)
    except (TypeError, NotImplementedError, AssertionError) as error:
        raise ValueError(
            f"backbone {name}: timm cannot build it without a classifier ({_first_line(error)})"
        ) from error
    return model


def _resnet38(stride: int, weights: str) -> ResNet38:
    if weights == TIMM:
        raise ValueError(
            f"pretrained weights of {RESNET38} are not available from timm; give a file with --train.weights "
            "FILE.safetensors (docs/reproduce.md says how it is made), or say so: --train.weights random"
        )
    model = ResNet38(stride)
    if weights != RANDOM:
        tensors, own = load_file(_weights_file(RESNET38, weights, model.state_dict())), model.state_dict()
        model.load_state_dict({key: value for key, value in tensors.items() if key in own}, strict=False)
    return model


def _dilate_vgg(model: nn.Module, stride: int) -> nn.Module:
    """Dilate a VGG as RCA does: pools beyond `stride` get stride 1, and the convolutions after them are dilated."""
    features = model.features
    assert isinstance(features, nn.Sequential)
    reached, dilation = 1, 1
    for index, layer in enumerate(features):
        if isinstance(layer, nn.MaxPool2d):
            if reached < stride:
                reached *= 2
                continue
            features[index] = nn.MaxPool2d(3, stride=1, padding=1)
            dilation = 2
        elif isinstance(layer, nn.Conv2d) and dilation > 1:
            layer.dilation = layer.padding = (dilation, dilation)
    model.pre_logits = nn.Identity()  # 120 million weights of the classifier that feature maps never pass
    return model


def no_weights(name: str, error: Exception) -> ValueError:
    """Return the error that says how to get start weights."""
    reason = str(error).splitlines()[0][:200]
    return ValueError(
        f"pretrained weights of {name} are not available ({reason}). Connect once so that timm can download them, or "
        f"give a file with --train.weights FILE.safetensors (timm's names). To train from scratch, pass "
        f"--train.weights random"
    )


def warn_if_random(name: str, weights: str) -> None:
    """Warn that a network starts without pretrained weights."""
    if weights == RANDOM:
        log.warning("%s starts from random weights (weights = random): it learns everything from your images", name)
