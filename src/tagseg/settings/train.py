"""Settings of [train]."""

from dataclasses import dataclass
from typing import Literal

from tagseg.settings.bounds import check, check_learning


@dataclass(frozen=True)
class TrainSettings:
    """The classification network that yields the class activation maps, and how it is trained."""

    backbone: str = "mobilenetv2_100"
    """Any timm model with feature maps (resnet50, convnext_tiny, vgg16, ...). vgg16 is dilated as in the paper."""

    weights: str = "timm"
    """Start weights: timm (downloaded once), a .safetensors FILE with timm's names, or random (from scratch)."""

    stride: Literal[8, 14, 16, 32] = 16
    """Image pixels per feature-map cell. 8 is finer and two to three times slower. Vision transformers have that of
    their patches: 16, or 14 (DINOv2)."""

    freeze_stride: int = 4
    """Backbone stages up to this stride keep their start weights (0: all are trained)."""

    freeze_batch_norm: bool = True
    """Keep the batch norms' statistics and weights as they came."""

    neck: int = 256
    """Channels of the features the bank works on: a 1x1 convolution with ReLU after the backbone (0: its own)."""

    head_convs: int = 0
    """3x3 convolutions before the coarse map (the paper has 3)."""

    epochs: int = 0
    """Passes over the training images (0: as many as make about 500 steps, 3 to 60)."""

    batch: int = 16
    """Images in a step."""

    crop: int = 225
    """Side of the square training crop in pixels (the nearest size that the backbone takes)."""

    scale: tuple[float, float] = (0.35, 1.0)
    """Share of the image's area that a random crop covers, from, to."""

    jitter: float = 0.3
    """Strength of the random change of brightness, contrast and saturation (0: off)."""

    optimiser: Literal["sgd", "adamw"] = "sgd"
    """sgd (Nesterov momentum 0.9, as in the paper) for pretrained weights; adamw learns faster from scratch."""

    lr: float = 0.002
    """Learning rate of the backbone."""

    head_lr: float = 10.0
    """New layers learn this many times faster."""

    bias_lr: float = 1.0
    """Biases and norms learn this many times faster than the weights of their layer (the paper: 2)."""

    weight_decay: float = 5e-4
    """L2 penalty on weights (not on biases and norms)."""

    schedule: Literal["poly", "steps"] = "poly"
    """Learning rate: falls to zero along a power of 0.9, or is divided by 10 at `steps`."""

    steps: tuple[int, ...] = (5, 10)
    """Epochs at which the `steps` schedule divides the learning rate by 10."""

    coarse_weight: float = 0.4
    """Weight of the coarse map's losses beside the refined map's."""

    saliency_weight: float = 1.0
    """Weight of the saliency loss beside the tag loss (maps = eps)."""

    def __post_init__(self) -> None:
        check(self.epochs >= 0, "train.epochs", self.epochs, "0 or more")
        check(self.batch >= 1, "train.batch", self.batch, "at least 1")
        check(self.crop >= 32, "train.crop", self.crop, "at least 32 pixels")
        check(self.neck >= 0, "train.neck", self.neck, "0 or more channels")
        check(0 < self.scale[0] <= self.scale[1] <= 1, "train.scale", self.scale, "two shares, 0 < from <= to <= 1")
        check(bool(self.weights), "train.weights", self.weights, "timm, random or a .safetensors file")
        check_learning("train", self)
        check(self.head_convs >= 0, "train.head-convs", self.head_convs, "0 or more")
        for name in ("coarse_weight", "saliency_weight"):
            check(getattr(self, name) >= 0, f"train.{name.replace('_', '-')}", getattr(self, name), "0 or more")
        check(self.bias_lr > 0, "train.bias-lr", self.bias_lr, "more than 0")
