"""Settings of section [train]: the classification network and its training."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, MinLen, Unit

from tagseg.settings.bounds import check_fields
from tagseg.system.untrusted import is_file

_Share = Annotated[float, Gt(0), Le(1)]


@dataclass(frozen=True)
class TrainSettings:
    """The classification network, whose class activation maps become masks, and its training."""

    backbone: str = "mobilenetv2_100"
    """A timm model that returns feature maps, such as resnet50, convnext_tiny or vgg16 (dilated as in the paper)."""

    weights: Annotated[str, MinLen(1)] = "timm"
    """Initial weights. timm: pretrained, downloaded once; random: train from scratch; or the path of a .safetensors
    file with timm's parameter names."""

    method: Literal["finetuned", "frozen"] = "finetuned"
    """How the classification network learns. frozen: the backbone keeps its initial weights, its features are computed
    once, and the tag head and the memory bank are fitted on them: minutes, also for small data sets and rare classes.
    finetuned: the whole network is trained by gradient steps: better maps of many images, in an hour or more."""

    stride: Literal[8, 14, 16, 32] = 16
    """Image pixels per cell of the feature map, along each side. 8 gives finer maps and takes two to three times as
    long. For vision transformers: the side of a patch, 16, or 14 for DINOv2."""

    freeze_stride: Annotated[int, Ge(0)] = 4
    """Backbone stages up to this stride keep their initial weights (0: train all stages)."""

    freeze_batch_norm: bool = True
    """Keep the initial statistics and weights of the backbone's batch norms."""

    neck: Annotated[int, Ge(0), Le(65_536), Unit("channels")] = 256
    """Channels of the features that the memory bank stores: the output of a 1x1 convolution with ReLU after the
    backbone (0: no such layer, the backbone's own channels)."""

    head_convs: Annotated[int, Ge(0), Le(1024)] = 0
    """Number of 3x3 convolutions before the coarse map (the paper has 3)."""

    epochs: Annotated[int, Ge(0)] = 0
    """Passes over the training images (0: enough for about 500 steps, at least 3 and at most 60)."""

    batch: Annotated[int, Ge(1), Unit("images")] = 16
    """Images per training step."""

    crop: Annotated[int, Ge(32), Le(8192), Unit("pixels")] = 225
    """Side of the square training crop in pixels, rounded to the nearest size that the backbone accepts."""

    scale: tuple[_Share, _Share] = (0.35, 1.0)
    """Smallest and largest share of the image's area that a random crop covers."""

    jitter: Annotated[float, Ge(0)] = 0.3
    """Strength of random changes of brightness, contrast and saturation (0: none)."""

    optimiser: Literal["sgd", "adamw"] = "sgd"
    """sgd (Nesterov momentum 0.9, as in the paper) suits pretrained weights; adamw learns faster from scratch."""

    lr: Annotated[float, Gt(0)] = 0.002
    """Learning rate of the backbone."""

    head_lr: Annotated[float, Gt(0)] = 10.0
    """Learning rate of new layers, as a multiple of train.lr."""

    bias_lr: Annotated[float, Gt(0)] = 1.0
    """Learning rate of biases and norms, as a multiple of that of their layer's weights (the paper: 2)."""

    weight_decay: Annotated[float, Ge(0)] = 5e-4
    """L2 penalty on weights; biases and norms have none."""

    schedule: Literal["poly", "steps"] = "poly"
    """Learning rate over time. poly: falls to zero as (1 - progress) ^ 0.9; steps: is divided by 10 at each epoch of
    train.steps."""

    steps: tuple[int, ...] = (5, 10)
    """Epochs at which the schedule `steps` divides the learning rate by 10."""

    coarse_weight: Annotated[float, Ge(0)] = 0.4
    """Weight of the coarse map's losses; the refined map's have weight 1."""

    saliency_weight: Annotated[float, Ge(0)] = 1.0
    """Weight of the saliency loss; the tag loss has weight 1 (with maps = eps)."""

    def __post_init__(self) -> None:
        check_fields(self, "setting train.")
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"setting train.scale must be the smaller share, then the larger, got {self.scale}")


def find_weights(weights: str) -> Path | None:
    """Return the file that a setting of initial weights names; None for timm and random.

    Raises:
        ValueError: when there is no such file, or it is not a safetensors file by its name.
    """
    if weights in ("timm", "random", ""):
        return None
    path = Path(os.path.expanduser(weights))
    if not is_file(path):
        raise ValueError(f"weights file {weights}: not found; give timm, random or the path of a .safetensors file")
    if path.suffix != ".safetensors":  # timm would unpickle it
        raise ValueError(f"weights file {weights}: not a safetensors file (its name must end in .safetensors)")
    return path
