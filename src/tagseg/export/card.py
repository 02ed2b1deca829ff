"""The model card of an exported network: what it is, what it was trained on, how accurate it is, and its limits."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import timm

from tagseg.data.data_file import read_data_file
from tagseg.evaluate.gain import calibration_images
from tagseg.evaluate.scores import read_evaluation
from tagseg.export.int8 import Int8Loss
from tagseg.networks.backbones import RANDOM, TIMM
from tagseg.networks.segmenters import fitting_multiple
from tagseg.run.folder import Run
from tagseg.run.history import read_history
from tagseg.segment.about import ExportedAbout, Licence
from tagseg.settings.toml import to_toml

_HUB_LICENCES = ("apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0")
"""Licences whose ids in timm are ids of the Hugging Face Hub too; any other is `other` with a `license_name`."""

_MARKS = {ord(mark): f"&#{ord(mark)};" for mark in "\\`*_[]<>|~&@:#$"}


def weights_licence(encoder: str, weights: str) -> Licence:
    """Return what is known about the licence of `weights` (timm, random or a file) for a timm encoder."""
    if weights == RANDOM:
        return Licence(None, "none (training started from random weights)")
    if weights != TIMM:
        return Licence(None, "from a file; tagseg does not know its licence, so check it at the source")
    config = timm.get_pretrained_cfg(encoder) if timm.is_model(encoder) else None
    origin = f"{config.hf_hub_id or encoder} from timm" if config else f"timm's weights for {encoder}"
    if config is None or config.license in (None, "", "unknown"):
        return Licence(None, f"{origin}; timm states no licence, so check it at the source")
    return Licence(config.license, f"{origin}, licence {config.license}")


def model_card(
    run: Run,
    about: ExportedAbout,
    settings: Mapping[str, Any],
    onnx: bool = False,
    difference: float | None = None,
    int8: Int8Loss | None = None,
) -> str:
    """Return the model card of a run's segmentation network as Markdown with Hugging Face's front matter.

    Args:
        run: the run that trained the network.
        about: the description of the exported network (classes, licence, versions, ...).
        settings: the run's settings as nested plain values, without folders of this machine.
        onnx: whether the export includes a model.onnx.
        difference: the largest difference of its probabilities from PyTorch's; None if they were not compared.
        int8: what model.int8.onnx loses; None without it.

    Raises:
        RunError: when the run's data.json is missing or damaged.
    """
    parts = (
        _front_matter(about.licence.id, bool(settings["segment"]["labels"])),
        _summary(about, settings),
        _data(run, about.classes, settings),
        _results(run),
        _PYTHON + _elsewhere(about) + (_by_onnx(about.max_side, difference) if onnx else "") + _by_int8(int8),
        _settings(run, about, settings),
        _licence(about.licence.text),
        _limits(settings),
    )
    return "\n".join(parts)


def as_text(words: str) -> str:
    """Return text that Markdown shows literally and on one line, also in tables."""
    printable = "".join(c if c.isprintable() else " " for c in words)
    return " ".join(printable.split()).translate(_MARKS)


def _front_matter(licence: str | None, foreign: bool) -> str:
    named = licence if licence in _HUB_LICENCES else f"other\nlicense_name: {licence or 'see-licence-below'}"
    weak = "- weakly-supervised\n"  # masks of another tool may have been drawn by hand
    return f"""---
license: {named}
library_name: tagseg
pipeline_tag: image-segmentation
tags:
- tagseg
- semantic-segmentation
{"" if foreign else weak}---
"""


def _summary(about: ExportedAbout, settings: Mapping[str, Any]) -> str:
    teacher = "masks" if settings["segment"]["labels"] else "image tags"
    return f"""# A segmentation network trained on {teacher}

This network assigns one of {len(about.classes)} ids to every pixel of a photograph: background, or one of the
classes below. It was trained with tagseg, which trains segmentation networks on photographs and image tags (RCA, CVPR
2022).
"""


def _data(run: Run, classes: Sequence[str], settings: Mapping[str, Any]) -> str:
    data = read_data_file(run)
    splits = Counter(row.split for row in data.samples)
    tagged = Counter(tag for row in data.samples if row.split == "train" for tag in row.tags)
    skipped = len(data.broken)
    saliency = settings["maps"] in ("eps", "saliency") or settings["masks"]["saliency"]
    maps = " and on saliency maps" if saliency else ""
    source = f"on the tags of the training images{maps}, without any masks"
    if foreign_maps := settings["localise"]["maps_from"]:
        source = f"on the tags of the training images and on maps from another tool (folder {as_text(foreign_maps)})"
    if foreign_masks := settings["segment"]["labels"]:
        count = len(list(run.labels.rglob("*.png")))
        source = f"on masks from another tool (folder {as_text(foreign_masks)}) of {_counted(count, 'training image')}"
    lines = [
        "## Data\n",
        f"Data folder: {as_text(run.data_root().name)}, with {_counted(splits['train'], 'training image')} and "
        f"{_counted(splits['val'], 'validation image')}; {_counted(skipped, 'unreadable image')} left out. The network "
        f"was trained {source}.",
    ]
    if calibration := len(calibration_images(run)):
        lines.append(
            f"The settings of the pseudo-masks were calibrated on the true masks of "
            f"{_counted(calibration, 'training image')}."
        )
    lines += ["", "| id | class | training images with this tag |", "|---:|---|---:|", "| 0 | background | - |"]
    lines += [f"| {i} | {as_text(name)} | {tagged[i]} |" for i, name in enumerate(classes[1:], start=1)]
    return "\n".join(lines) + "\n"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _results(run: Run) -> str:
    if not run.done("evaluate"):
        return "## Results\n\nThis network has not been evaluated.\n"
    evaluation = read_evaluation(run)
    shown = msgspec.structs.replace(evaluation, classes=tuple(map(as_text, evaluation.classes)))
    return (
        "## Results\n\nIoU (intersection over union) in percent, over all pixels of a set together. The mean includes "
        "background.\nThe segmenter is this network; the pseudo-masks are what it was trained on.\n\n"
        f"{shown.table()}"
    )


def _limits(settings: Mapping[str, Any]) -> str:
    return f"## Limits\n\n{'' if settings['segment']['labels'] else _FROM_TAGS}{_LIMITS}"


def _elsewhere(about: ExportedAbout) -> str:
    """Return how segmentation-models-pytorch loads the network, or that it cannot."""
    if about.network == "deeplabv2":
        return _NOT_FOREIGN.replace("REASON", "DeepLab-v2, which segmentation-models-pytorch and timm do not have")
    if about.grid is not None:
        return _NOT_FOREIGN.replace("REASON", _PLACED)
    config = timm.get_pretrained_cfg(about.encoder)
    assert config is not None, "or the network could not have been built"
    values = {"MEAN": config.mean, "STD": config.std, "MULTIPLE": fitting_multiple(about.network, about.stride)}
    text = _FOREIGN
    for name, value in values.items():
        text = text.replace(name, str(value))
    return text


def _by_onnx(max_side: int, difference: float | None) -> str:
    checked = "Its results were not compared with PyTorch's."
    if difference is not None:
        checked = f"Its probabilities agreed with PyTorch's to within {difference:.1g}."
    return _ONNX.replace("MAX_SIDE", str(max_side)).replace("CHECKED", checked)


def _by_int8(loss: Int8Loss | None) -> str:
    used = "model.int8.onnx computes its convolutions in 8-bit integers and is used like model.onnx"
    return f"\n{used}: {loss}.\n" if loss else ""


def _settings(run: Run, about: ExportedAbout, settings: Mapping[str, Any]) -> str:
    epochs = len(read_history(run.segmenter / "history.jsonl"))
    trained = f"The segmentation network was trained for {_counted(epochs, 'epoch')}. " if epochs else ""
    shown = {"seed": settings["seed"], "segment": settings["segment"], "train": settings["train"]}
    version = as_text(run.manifest().tagseg or "(unknown)")
    return (
        f"## Settings\n\n{trained}Encoder `{about.encoder}`. Trained with tagseg {version}, exported with tagseg "
        f"{about.tagseg} and PyTorch {about.torch}.\n\n````toml\n{to_toml(shown)}````\n"
    )


def _licence(text: str) -> str:
    return (
        f"## Licence\n\nPretrained weights: {text}. tagseg does not know the licence of the training photographs; "
        "check it before you publish this network.\n"
    )


_PYTHON = """## How to use it

```python
import tagseg

predictor = tagseg.load("path/to/this/folder")  # on the Hugging Face Hub: "hf://owner/name"
prediction = predictor("photo.jpg")  # or a Pillow image, or an array
mask = prediction.mask  # height x width, ids of predictor.classes
```

For a folder of photographs: `tagseg predict path/to/this/folder photos/ --out masks/`.
"""

_FOREIGN = """
Without tagseg, use segmentation-models-pytorch, which the network is from. It takes normalised images whose sides are
multiples of MULTIPLE pixels.

```python
import numpy as np
import segmentation_models_pytorch as smp
import torch
from PIL import Image

network = smp.from_pretrained("path/to/this/folder")  # on the Hugging Face Hub: "owner/name"
image = Image.open("photo.jpg").convert("RGB")
image = image.resize([max(round(side / MULTIPLE), 2) * MULTIPLE for side in image.size])
pixels = (np.asarray(image, np.float32) / 255 - MEAN) / STD
with torch.no_grad():
    scores = network(torch.from_numpy(pixels.transpose(2, 0, 1)[None]).float())
mask = scores[0].argmax(0)  # height x width of the resized image, ids as in the table above
```
"""

_NOT_FOREIGN = """
Only tagseg loads this network: it is REASON. There is therefore no config.json for `from_pretrained`.
"""

_PLACED = """DeepLabV3+ with its deep features
placed where the encoder looks, which that of segmentation-models-pytorch does not do"""

_ONNX = """
Without PyTorch, use ONNX Runtime. The model takes batches of images of any size and normalises them itself. It makes
one pass at one scale; tagseg averages over several scales and the mirrored image if the settings below say so. CHECKED

```python
import json

import numpy as np
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession("path/to/this/folder/model.onnx")
classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
image = Image.open("photo.jpg").convert("RGB")
image.thumbnail((MAX_SIDE, MAX_SIDE))  # the size that tagseg predicts at
images = np.asarray(image, np.float32).transpose(2, 0, 1)[None] / 255
(probabilities,) = session.run(["probabilities"], {"images": images})
mask = probabilities[0].argmax(0)  # height x width of the resized image, ids of classes
```
"""

_FROM_TAGS = """\
- It was trained on tags, not on drawn masks: borders and thin parts are rough, and things that often appear with a
  class (water under a boat) may be labelled as that class. Check its masks before you rely on them.
"""

_LIMITS = """- It knows only the classes above: anything else becomes background or the most similar class.
- It does not separate objects of one class: its masks are semantic, not instance masks.
- The results apply to photographs like those it was trained and evaluated on.
"""
