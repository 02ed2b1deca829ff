"""Presets: settings under a name. They override the defaults; a TOML file and flags override them.

`paper-voc` and `paper-coco` are RCA's own settings (Zhou et al., CVPR 2022) on top of OAA: the method as published.
Settings they do not name keep their defaults. They differ from the paper where tagseg itself does: one shared head
instead of one per class; a free slot of the bank takes a region unblended, and the bank holds only regions; attention
uses the cosine with a temperature, the paper plain inner products; background is cut from the maps, not from a saliency
map (masks.saliency does that, given one). Region rule and bank follow the authors' table, with the paper's backbone
(VGG16 dilated by stages). The segmentation network is DeepLab-v2 with the schedule of its own paper (Chen et al., TPAMI
2018): poly, 20,000 steps of 10 crops of 321 pixels.

`dinov2`, `dinov3` and `clip` run bank, contrast and aggregation on timm's vision transformers that were pretrained on
hundreds of millions of images. They are reasoned, not measured: docs/backbones.md gives the reasons.
"""

from typing import Any, Literal

from tagseg.settings.settings import Settings

Preset = Literal["paper-voc", "paper-coco", "dinov2", "dinov3", "clip"]
Quality = Literal["fast", "balanced", "best"]

_FROZEN: dict[str, Any] = {
    "train": {"method": "frozen"},
    "rca": {
        "contrast": False,  # learned on frozen features it costs points, see docs/what_was_tried.md
        "slots": 2000,
        "region_threshold": 0.5,
        "background_threshold": 0.15,
        "prototypes": 10,
        "background_prototypes": 30,
        "posterior": "nearest",
        "rounds": 3,
    },
}
"""Frozen features; chosen on images of two data sets that are not scored (docs/what_was_tried.md)."""

_QUALITIES: dict[str, dict[str, Any]] = {
    "fast": _FROZEN | {"segment": {"steps": 300}},
    "balanced": _FROZEN | {"segment": {"rounds": 2, "teacher_steps": 300, "teacher_views": "one"}},
    "best": _FROZEN | {"segment": {"rounds": 2, "teacher_steps": 1000, "teacher_views": "one", "steps": 2000}},
}

DEFAULT_QUALITY: Quality = "balanced"
"""What `fit` takes in a new run folder when nothing else is asked for."""

_FROZEN_READS = {
    "train": {"backbone", "weights", "method", "stride"},
    "rca": {"contrast", "temperature", "negatives", "region_threshold", "background", "background_threshold", "slots",
            "update", "momentum", "aggregation", "prototypes", "background_prototypes", "posterior", "rounds",
            "attention_temperature", "attended"},
}  # fmt: skip
"""Settings of two sections that count with train.method = frozen."""

_PAPER: dict[str, Any] = {
    "maps": "oaa",
    "train": {
        "backbone": "vgg16",
        "stride": 8,
        "freeze_stride": 0,
        "neck": 0,  # the bank stores the backbone's own 512 channels
        "head_convs": 3,
        "epochs": 30,
        "batch": 8,
        "crop": 368,
        "optimiser": "sgd",
        "lr": 0.001,
        "head_lr": 10.0,
        "bias_lr": 2.0,
        "weight_decay": 5e-4,
        "schedule": "steps",
        "steps": [5, 10],
        "coarse_weight": 0.4,
    },
    "rca": {
        "layer": "last",
        "negatives": 0,
        "attended": 0,
        "contrast": True,
        "contrast_weight": 0.01,
        "temperature": 0.07,
        "mix": True,
        "mix_alpha": 8.0,
        "warmup": 2,
        "region_rule": "softmax-mean",
        "background": False,
        "confidence": 0.7,
        "slots": 500,
        "update": "blend",
        "momentum": 0.99,
        "aggregation": True,
        "prototypes": 10,
    },
    "segment": {
        "network": "deeplabv2",
        "encoder": "resnet101",
        "weights": "timm",
        "stride": 8,
        "freeze_stride": 0,
        "epochs": 19,  # of VOC's 10,582 images
        "batch": 10,
        "crop": 321,
        "optimiser": "sgd",
        "lr": 0.00025,
        "head_lr": 10.0,
        "weight_decay": 5e-4,
        "predict_scales": [0.5, 0.75, 1.0],
    },
}


def _transformer(backbone: str, patch: Literal[14, 16], layer: str, frozen: bool) -> dict[str, Any]:
    """Settings of a vision transformer: AdamW with a learning rate that its weights survive, crops of whole patches of
    14 and 16 pixels, and maps of at most about 2,600 cells, because attention grows with their square."""
    learning = {"optimiser": "adamw", "lr": 1e-5, "head_lr": 100.0, "weight_decay": 0.01, "crop": 336}
    # All blocks have the stride of a patch: this value freezes all of them, 0 none.
    learning["freeze_stride"] = patch if frozen else 0
    return {
        "train": {"backbone": backbone, "stride": patch, **learning},
        "rca": {"layer": layer},
        "localise": {"scales": [0.5, 1.0, 1.5], "max_side": 480},
        "segment": {"network": "deeplabv2", **learning},
    }


# The paper gives no schedule for COCO 2014 (80 classes): it keeps VOC's.
_PRESETS: dict[str, dict[str, Any]] = {
    "paper-voc": {"data": {"layout": "voc"}, **_PAPER},
    "paper-coco": {"data": {"layout": "coco"}, **_PAPER},
    # Cells match prototypes by the tokens of the last norm: general features, which know nothing of our classes.
    "dinov2": _transformer("vit_small_patch14_reg4_dinov2.lvd142m", patch=14, layer="norm", frozen=True),
    "dinov3": _transformer("vit_small_patch16_dinov3.lvd1689m", patch=16, layer="norm", frozen=True),
    # CLIP's last block gathers the whole image for its text; the input of that block, normalised, is still local.
    "clip": _transformer("vit_base_patch16_clip_quickgelu_224.openai", patch=16, layer="blocks.11.norm1", frozen=False),
}


def preset_values(name: str) -> dict[str, Any]:
    """Return the settings of a preset or a quality as nested plain values.

    Raises:
        ValueError: when there is no such preset.
    """
    if name in _QUALITIES:
        return _QUALITIES[name]
    if name not in _PRESETS:
        raise ValueError(f"--preset must be one of {', '.join(_PRESETS)}, got {name}")
    return _PRESETS[name]


def quality_values(name: str) -> dict[str, Any]:
    """Return the settings of a quality as nested plain values.

    Raises:
        ValueError: when there is no such quality.
    """
    if name not in _QUALITIES:
        raise ValueError(f"--quality must be one of {', '.join(_QUALITIES)}, got {name}")
    return _QUALITIES[name]


def without_effect_when_frozen(name: str) -> bool:
    """Tell whether a setting, such as `train.epochs`, has no effect with train.method = frozen."""
    section, _, field = name.partition(".")
    return section in _FROZEN_READS and field not in _FROZEN_READS[section]


def preset(name: str) -> Settings:
    """Return the settings of a preset, as in `tagseg.fit(data, out, preset("paper-voc"))`.

    >>> preset("dinov2").train.stride
    14

    Raises:
        ValueError: when there is no such preset.
    """
    return Settings.from_dict(preset_values(name), f"preset {name}")
