"""The settings of each stage, a frozen dataclass a stage; docstrings under the fields are the command line's help."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal


def check(holds: bool, name: str, value: object, expected: str) -> None:
    """Raise the ValueError that names a setting, unless it `holds` what is expected."""
    numbers = value if isinstance(value, tuple) else (value,)
    if not holds or any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
        raise ValueError(f"setting {name}: got {value!r}, expected {expected}")


@dataclass(frozen=True)
class DataSettings:
    """How a data folder is read."""

    layout: Literal["auto", "folder", "voc", "coco", "shards"] = "auto"
    """Layout of the data folder (shards: tars as WebDataset writes them); auto recognises it."""

    train_list: str = ""
    """VOC: the list of training images (a name in ImageSets/Segmentation or ImageSets/Main). Empty: train_aug, trainaug
    or train, whichever exists first."""

    val_list: str = ""
    """VOC: the list of validation images. Empty: val, if it exists."""

    masks: str = ""
    """Folder of true masks named like the images, for evaluation only. Empty: `masks` in the data folder, if there."""

    saliency: str = ""
    """Folder of saliency maps named like the images. Empty: `saliency` in the data folder, if there."""

    coco_protocol: bool = False
    """COCO: count as the literature does. Crowds are objects like all others, in tags and masks, and validation images
    without annotations are left out. Otherwise crowds are void, and an empty image is background."""

    min_images: int = 5
    """A class with fewer training images than this is an error."""

    max_broken: float = 0.05
    """Unreadable images are skipped and listed; above this share of the training images the run fails."""

    max_megapixels: float = 120.0
    """Larger images are refused before they are decoded (decompression bombs)."""

    def __post_init__(self) -> None:
        check(self.min_images >= 1, "data.min-images", self.min_images, "at least 1")
        check(0 <= self.max_broken < 1, "data.max-broken", self.max_broken, "a share from 0 to 1")
        check(self.max_megapixels > 0, "data.max-megapixels", self.max_megapixels, "more than 0")


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
        _check_learning("train", self)
        check(self.head_convs >= 0, "train.head-convs", self.head_convs, "0 or more")
        for name in ("coarse_weight", "saliency_weight"):
            check(getattr(self, name) >= 0, f"train.{name.replace('_', '-')}", getattr(self, name), "0 or more")
        check(self.bias_lr > 0, "train.bias-lr", self.bias_lr, "more than 0")


@dataclass(frozen=True)
class RcaSettings:
    """Regional semantic contrast and aggregation: the memory bank and its two uses."""

    layer: str = "auto"
    """Earlier layer of the backbone by which cells find prototypes; the bank holds it beside the features of the coarse
    map. auto: the block before the last; last: none, the features of the coarse map alone, as in the paper; or the name
    of one of the backbone's modules."""

    contrast: bool = True
    """Contrast regions with the bank while learning."""

    contrast_weight: float = 0.1
    """Weight of the contrast in the loss."""

    temperature: float = 0.1
    """Temperature of the contrast."""

    negatives: int = 32_768
    """Regions of classes that a batch does not show are contrasted in full up to this number; of a larger bank so many
    are drawn every step, and their sum is scaled up (0: always all)."""

    mix: bool = True
    """Also contrast regions mixed with a region of another image."""

    mix_alpha: float = 8.0
    """Mixing share is drawn from Beta(alpha, alpha)."""

    warmup: int = 1
    """Epochs before contrast and aggregation start; the bank is filled meanwhile."""

    region_rule: Literal["posterior", "peak", "softmax-mean"] = "posterior"
    """Cells of a region. peak: above a share of the map's peak; softmax-mean: the paper's, softmax over classes above
    its mean; posterior: as peak until there are prototypes, then the cells that attend to the class by more than
    half (needs pretrained weights; from scratch, peak is better)."""

    region_threshold: float = 0.3
    """Share of the map's peak for the peak rule."""

    background: bool = True
    """Keep background regions in the bank as well: cells where every tagged map is low."""

    background_threshold: float = 0.1
    """A cell is background when every tagged map is below this share of its peak."""

    confidence: float = 0.7
    """A region enters the bank only when its tag's probability is above this."""

    slots: int = 500
    """Regions the bank holds per class."""

    update: Literal["fifo", "blend"] = "fifo"
    """A full bank replaces its oldest region, or blends the new one into it."""

    momentum: float = 0.99
    """Share of the old region kept when blending."""

    aggregation: bool = True
    """Refine the maps with context aggregated from the bank's prototypes, learning and predicting."""

    prototypes: int = 10
    """Prototypes per class (k-means over the class's slots)."""

    attention_temperature: float = 0.1
    """Temperature of the softmax over prototypes."""

    attended: int = 80
    """Classes whose prototypes an image's cells attend to, beside background: where there are more classes, those that
    score highest in the coarse map (0: always all)."""

    def __post_init__(self) -> None:
        for name in ("temperature", "attention_temperature", "mix_alpha"):
            check(getattr(self, name) > 0, f"rca.{name.replace('_', '-')}", getattr(self, name), "more than 0")
        for name in ("region_threshold", "background_threshold", "confidence", "momentum"):
            value = getattr(self, name)
            check(0 <= value < 1, f"rca.{name.replace('_', '-')}", value, "from 0 to below 1")
        for name in ("contrast_weight", "warmup", "negatives", "attended"):
            check(getattr(self, name) >= 0, f"rca.{name.replace('_', '-')}", getattr(self, name), "0 or more")
        check(self.slots >= 1, "rca.slots", self.slots, "at least 1")
        check(1 <= self.prototypes <= self.slots, "rca.prototypes", self.prototypes, "1 to rca.slots")


@dataclass(frozen=True)
class LocaliseSettings:
    """Maps of the tagged classes over the training images."""

    scales: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Image scales whose maps are averaged."""

    flip: bool = True
    """Also average over the mirrored image."""

    max_side: int = 320
    """Larger images are reduced to this long side before the scales are applied: about 1.4 x train.crop, so that
    objects have the size the network learned."""

    kind: Literal["auto", "posterior", "refined", "coarse"] = "auto"
    """Which map to keep. posterior: the share of each cell's attention that goes to the class's prototypes, not to
    background's; refined: the map after aggregation; coarse: the plain class activation map. auto: posterior, or
    refined where the bank knows no background and with maps = eps, whose refined and coarse maps are the class's
    probability among the image's tags and the background channel."""

    maps_from: str = ""
    """Folder of another method's maps (.npz or .npy, named like the training images) to make masks from instead: no
    network is trained for maps then. docs/bring_your_own_maps.md says what the files hold."""

    maps_hold: Literal["activations", "probabilities"] = "activations"
    """What the values in localise.maps-from are. activations: any numbers, divided by each map's peak, below 0 counts
    as 0; probabilities: 0 to 1, kept as they are, and background has what they leave over."""

    def __post_init__(self) -> None:
        check(len(self.scales) > 0 and min(self.scales) > 0, "localise.scales", self.scales, "positive numbers")
        check(self.max_side >= 64, "localise.max-side", self.max_side, "at least 64 pixels")


@dataclass(frozen=True)
class MaskSettings:
    """From maps to masks."""

    background: Literal["auto", "rest", "otsu", "threshold", "power"] = "auto"
    """Background rule; none needs true masks. rest: background's probability is what those of the tags leave over
    (posterior maps); otsu: the cut that splits each map's own histogram best; threshold: a constant cut; power: the
    background's score is (1 - highest map) ^ power. auto: rest for posterior maps, and others' probabilities
    (localise.maps-hold); otsu for all others (those of maps = oaa too)."""

    threshold: float = 0.5
    """Below this a pixel is background, for the threshold rule: a probability for posterior maps (0.5: class against
    background), a share of the map's peak for others."""

    power: float = 2.0
    """Exponent of the power rule."""

    saliency: bool = False
    """Take background from the saliency maps of data.saliency, as RCA and EPS do; a pixel where maps and saliency
    contradict one another is unsure."""

    unsure: float = 0.05
    """A pixel becomes 255 unless its label's probability (the geometric mean of the one by the maps and the one after
    refinement) exceeds one half by this."""

    max_side: int = 640
    """Long side in pixels at which maps are refined; those of larger images are enlarged from there."""

    def __post_init__(self) -> None:
        check(0 < self.threshold < 1, "masks.threshold", self.threshold, "between 0 and 1")
        check(self.power > 0, "masks.power", self.power, "more than 0")
        check(0 <= self.unsure < 0.5, "masks.unsure", self.unsure, "from 0 to below 0.5")
        check(self.max_side >= 64, "masks.max-side", self.max_side, "at least 64 pixels")

    def resolved(self, probabilities: bool) -> "MaskSettings":
        """Return the settings with the background rule that auto stands for, where maps are `probabilities` or not."""
        if self.background != "auto":
            return self
        return dataclasses.replace(self, background="rest" if probabilities else "otsu")


@dataclass(frozen=True)
class CrfSettings:
    """Dense CRF: refines masks along the edges of the image (Kraehenbuehl and Koltun 2011)."""

    steps: int = 10
    """Steps of mean field inference (0: no CRF)."""

    gaussian_sxy: float = 3.0
    """Reach of the Gaussian kernel, a standard deviation in pixels of an image whose long side is 500 pixels; it is
    scaled for others."""

    gaussian_compat: float = 3.0
    """Weight of the Gaussian kernel, which smooths (0: without)."""

    bilateral_sxy: float = 80.0
    """Reach of the bilateral kernel, as crf.gaussian-sxy."""

    bilateral_srgb: float = 13.0
    """Standard deviation of the bilateral kernel in levels of red, green and blue (0..255)."""

    bilateral_compat: float = 10.0
    """Weight of the bilateral kernel, by which pixels of like colour get the same label (0: without)."""

    def __post_init__(self) -> None:
        check(self.steps >= 0, "crf.steps", self.steps, "0 or more")
        for name in ("gaussian_sxy", "bilateral_sxy", "bilateral_srgb"):
            value = getattr(self, name)
            check(0 < value < math.inf, f"crf.{name.replace('_', '-')}", value, "more than 0")
        for name in ("gaussian_compat", "bilateral_compat"):
            value = getattr(self, name)
            check(0 <= value < math.inf, f"crf.{name.replace('_', '-')}", value, "0 or more")


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
        _check_learning("segment", self)
        check(0 < self.scale[0] <= self.scale[1], "segment.scale", self.scale, "two factors, 0 < from <= to")
        check(len(self.predict_scales) > 0 and min(self.predict_scales) > 0, "segment.predict-scales",
               self.predict_scales, "positive numbers")  # fmt: skip


@dataclass(frozen=True)
class ReportSettings:
    """The report page."""

    examples: int = 24
    """Rows of pictures in the report; the segmenter predicts these training images too."""

    title: str = "tagseg report"
    """Title of the page."""

    def __post_init__(self) -> None:
        check(self.examples >= 0, "report.examples", self.examples, "0 or more")


def _check_learning(section: str, settings: TrainSettings | SegmentSettings) -> None:
    for name in ("lr", "head_lr"):
        value = getattr(settings, name)
        check(value > 0, f"{section}.{name.replace('_', '-')}", value, "more than 0")
    for name in ("weight_decay", "jitter", "freeze_stride"):
        value = getattr(settings, name)
        check(value >= 0, f"{section}.{name.replace('_', '-')}", value, "0 or more")
