"""Settings of [segment]."""

from dataclasses import dataclass
from typing import Literal

from tagseg.settings.bounds import check, check_learning


@dataclass(frozen=True)
class SegmentSettings:
    """The segmentation network trained on the pseudo-masks."""

    network: Literal["auto", "deeplabv2", "deeplabv3plus", "upernet"] = "auto"
    """What is built around the encoder. deeplabv2: the paper's, takes any encoder (set stride 8 as the paper has);
    deeplabv3plus, upernet: sharper borders; need an encoder with features at several strides. auto: deeplabv3plus, or
    deeplabv2 around vision transformers (ViT, DINOv2, DINOv3)."""

    encoder: str = ""
    """timm encoder of the network. Empty: the classifier's backbone."""

    weights: str = ""
    """Start weights, as for train.weights. Empty: the same as the classifier's."""

    stride: Literal[8, 16] = 16
    """Output stride of the encoder (upernet and vision transformers have their own)."""

    labels: str = ""
    """Folder of masks of any other tool (PNGs named like the training images) to learn from instead of pseudo-masks:
    the stages before are left out then."""

    rounds: int = 1
    """Rounds of self-training. From the second on the network learns from masks that the one before has improved: it
    predicts the training images, and their tags, maps and the dense CRF correct it. Each takes as long as the first."""

    epochs: int = 0
    """Passes over the training images (0: as many as make about 1,000 steps, 3 to 60)."""

    batch: int = 16
    """Images that go through the network together."""

    accumulate: int = 1
    """Batches whose gradients are added before the weights change: batch 4 and accumulate 4 learn as batch 16 does, in
    a quarter of the memory."""

    crop: int = 224
    """Side of the square training crop in pixels (the nearest size that the network takes)."""

    scale: tuple[float, float] = (0.5, 1.5)
    """Random scale of a training image before the crop, from, to."""

    jitter: float = 0.3
    """Strength of the random colour change (0: off)."""

    optimiser: Literal["sgd", "adamw"] = "sgd"
    """As train.optimiser."""

    ema: float = 0.0
    """Keep an exponential moving average of the weights with this decay a step, 0.99 for example (0: the last weights,
    which are as good where the learning rate falls to zero, as it does here)."""

    lr: float = 0.002
    """Learning rate of the encoder."""

    head_lr: float = 10.0
    """New layers learn this many times faster."""

    weight_decay: float = 5e-4
    """L2 penalty on weights."""

    freeze_stride: int = 4
    """Encoder stages up to this stride keep their start weights (0: all are trained)."""

    freeze_batch_norm: bool = True
    """Keep the encoder's batch norms as they came."""

    predict_scales: tuple[float, ...] = (0.75, 1.0, 1.25)
    """Image scales whose class probabilities are averaged when predicting."""

    predict_flip: bool = True
    """Also average over the mirrored image when predicting."""

    max_side: int = 512
    """Larger images are reduced to this long side, learning and predicting; masks have the image's own size."""

    def __post_init__(self) -> None:
        check(self.rounds >= 1, "segment.rounds", self.rounds, "at least 1")
        check(self.epochs >= 0, "segment.epochs", self.epochs, "0 or more")
        check(self.batch >= 2, "segment.batch", self.batch, "at least 2 (the decoder has batch norm)")
        check(self.crop >= 32, "segment.crop", self.crop, "at least 32 pixels")
        check(self.max_side >= 64, "segment.max-side", self.max_side, "at least 64 pixels")
        check(0 <= self.ema < 1, "segment.ema", self.ema, "from 0 to below 1")
        check(self.accumulate >= 1, "segment.accumulate", self.accumulate, "at least 1")
        check(self.rounds == 1 or not self.labels, "segment.rounds", self.rounds,
              "1 with segment.labels: self-training needs maps")  # fmt: skip
        check_learning("segment", self)
        check(0 < self.scale[0] <= self.scale[1], "segment.scale", self.scale, "two factors, 0 < from <= to")
        check(len(self.predict_scales) > 0 and min(self.predict_scales) > 0, "segment.predict-scales",
               self.predict_scales, "positive numbers")  # fmt: skip
