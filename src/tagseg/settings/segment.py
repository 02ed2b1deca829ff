"""Settings of section [segment]: the segmentation network and its training."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, Lt, Unit

from tagseg.settings.bounds import MaxSide, Scales, check_fields

NetworkName = Literal["deeplabv2", "deeplabv3plus", "upernet"]

DECODER_CHANNELS = 256
"""Those of the decoders' papers, and of networks saved before there was a choice."""

_Factor = Annotated[float, Gt(0)]


@dataclass(frozen=True)
class SegmentSettings:
    """The segmentation network that learns from the pseudo-masks."""

    network: Literal["auto", "deeplabv2", "deeplabv3plus", "upernet"] = "auto"
    """Decoder around the encoder. deeplabv2: the paper's, for any encoder (the paper sets stride 8); deeplabv3plus and
    upernet: sharper borders, for encoders with features at several strides. auto: deeplabv3plus, or deeplabv2 for
    vision transformers (ViT, DINOv2, DINOv3)."""

    encoder: str = ""
    """timm model used as encoder. Empty: train.backbone."""

    weights: str = ""
    """Initial weights, as for train.weights. Empty: train.weights."""

    start: Literal["weights", "classifier"] = "weights"
    """Where the encoder starts. weights: at segment.weights; classifier: at the backbone of the run's classification
    network, which has learned the tags (train.method finetuned); without pretrained weights a few passes are enough
    from there. The encoder must be the backbone (segment.encoder empty)."""

    stride: Literal[8, 16] = 16
    """Output stride of the encoder; upernet and vision transformers have their own."""

    decoder_channels: Annotated[int, Ge(8), Le(4096), Unit("channels")] = DECODER_CHANNELS
    """Channels of the decoder of deeplabv3plus and upernet; deeplabv2 has none. Of a network on a small encoder the
    decoder is half of the work: with 128 channels on MobileNetV2 it learns and predicts in four fifths of the time."""

    labels: str = ""
    """Folder of another tool's masks (PNG, named like the training images) to learn from instead of pseudo-masks; the
    earlier stages are skipped."""

    rounds: Annotated[int, Ge(1)] = 1
    """Rounds of self-training. From the second round on, the network learns from masks that it improved itself: it
    predicts the training images, and tags, maps and the dense CRF correct the prediction. Each round takes as long as
    the first."""

    epochs: Annotated[int, Ge(0)] = 0
    """Passes over the training images (0: enough for about segment.steps steps, at least 3 and at most 60)."""

    steps: Annotated[int, Ge(1)] = 1000
    """Steps of the training when segment.epochs is 0: a small data set is seen more often."""

    teacher_steps: Annotated[int, Ge(0)] = 0
    """Steps of the rounds before the last, whose network only improves the masks (0: as segment.steps)."""

    teacher_views: Literal["all", "one"] = "all"
    """How that network looks at a training image. all: at segment.predict_scales, and mirrored with
    segment.predict_flip; one: once, at its own size, in a small part of the time."""

    teacher_engine: Literal["auto", "torch"] = "auto"
    """What computes its predictions of the training images. auto: ONNX Runtime where it is installed, there is no GPU,
    its labels agree with PyTorch's, and there are 200 images or more (1,200 with segment.teacher_views = one); else
    PyTorch."""

    batch: Annotated[int, Ge(2), Unit("images")] = 16
    """Images per forward pass; the decoder's batch norm needs 2."""

    accumulate: Annotated[int, Ge(1)] = 1
    """Batches whose gradients are added up before the weights change. Batch 4 with accumulate 4 learns like batch 16,
    in a quarter of the memory."""

    crop: Annotated[int, Ge(32), Le(8192), Unit("pixels")] = 224
    """Side of the square training crop in pixels, rounded to the nearest size that the network accepts."""

    scale: tuple[_Factor, _Factor] = (0.5, 1.5)
    """Smallest and largest factor by which a training image is scaled at random before the crop."""

    jitter: Annotated[float, Ge(0)] = 0.3
    """Strength of random changes of brightness, contrast and saturation (0: none)."""

    optimiser: Literal["sgd", "adamw"] = "sgd"
    """As train.optimiser."""

    ema: Annotated[float, Ge(0), Lt(1)] = 0.0
    """Decay per step of an exponential moving average of the weights, which is kept as the result; 0.99 for example
    (0: keep the last weights, which are as good because the learning rate falls to zero)."""

    lr: Annotated[float, Gt(0)] = 0.002
    """Learning rate of the encoder."""

    head_lr: Annotated[float, Gt(0)] = 10.0
    """Learning rate of new layers, as a multiple of segment.lr."""

    weight_decay: Annotated[float, Ge(0)] = 5e-4
    """L2 penalty on weights; biases and norms have none."""

    freeze_stride: Annotated[int, Ge(0)] = 4
    """Encoder stages up to this stride keep their initial weights (0: train all stages)."""

    freeze_batch_norm: bool = True
    """Keep the initial statistics and weights of the encoder's batch norms."""

    predict_scales: Scales = (0.75, 1.0, 1.25)
    """Image scales at which class probabilities are predicted and then averaged."""

    predict_flip: bool = True
    """Also average over the mirrored image when predicting."""

    max_side: MaxSide = 512
    """Long side to which larger images are reduced in training and prediction; masks have the image's own size."""

    def __post_init__(self) -> None:
        check_fields(self, "setting segment.")
        if self.rounds > 1 and self.labels:
            raise ValueError(
                f"setting segment.rounds must be 1 with segment.labels, got {self.rounds}: self-training needs "
                "maps; add --segment.rounds 1"
            )
        if self.start == "classifier":
            for name, value in (("encoder", self.encoder), ("weights", self.weights), ("labels", self.labels)):
                if value:
                    raise ValueError(
                        f"setting segment.{name} must be empty with segment.start = classifier, got {value}; add "
                        "--segment.start weights"
                    )
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"setting segment.scale must be the smaller factor, then the larger, got {self.scale}")
