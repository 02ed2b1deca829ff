"""The model card: what an exported network is, what it learned from, how good it is, and what it may be used for."""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import timm

from tagseg.errors import RunError
from tagseg.evaluate.evaluate import read_evaluation
from tagseg.evaluate.gain import calibration_images
from tagseg.networks.backbones import RANDOM, TIMM
from tagseg.run.folder import Run
from tagseg.settings.toml import to_toml
from tagseg.system.untrusted import check_shape, read_json

_HUB_LICENCES = ("apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc-by-nc-4.0")
"""Licences that timm and the Hugging Face hub call by the same name; others are `other` with a name of their own."""

_MARKS = {ord(mark): f"&#{ord(mark)};" for mark in "\\`*_[]<>|~&@:#$"}


@dataclass(frozen=True)
class Licence:
    """The licence of start weights: its id in timm, None where there is none to know, and a sentence about it."""

    id: str | None
    text: str


def weights_licence(encoder: str, weights: str) -> Licence:
    """Return what is known about the licence of `weights` (timm, random or a file) of a timm encoder."""
    if weights == RANDOM:
        return Licence(None, "none, training started from random weights")
    if weights != TIMM:
        return Licence(None, "from a file, whose licence tagseg does not know: look it up where it is from")
    config = timm.get_pretrained_cfg(encoder) if timm.is_model(encoder) else None
    origin = f"{config.hf_hub_id or encoder} of timm" if config else f"timm's for {encoder}"
    if config is None or config.license in (None, "", "unknown"):
        return Licence(None, f"{origin}, which names no licence: look it up where they are from")
    return Licence(config.license, f"{origin}, licence {config.license}")


def model_card(
    run: Run, about: Mapping[str, Any], settings: Mapping[str, Any], onnx: bool = False, difference: float | None = None
) -> str:
    """Return the model card of a run's segmentation network as Markdown with Hugging Face's front matter.

    Args:
        run: the run that trained it.
        about: what the exported network says about itself (classes, licence, versions, ...).
        settings: the run's settings as nested plain values, without the folders of this machine.
        onnx: whether a model.onnx lies beside the card.
        difference: by how much its probabilities differ from PyTorch's at most, None where that was not checked.

    Raises:
        RunError: when the run's record of its data is missing or damaged.
    """
    parts = (
        _front_matter(about["licence"]["id"], bool(settings["segment"]["labels"])),
        _summary(about, settings),
        _data(run, about["classes"], settings),
        _figures(run),
        _PYTHON + (_by_onnx(about["max_side"], difference) if onnx else ""),
        _settings(run, about, settings),
        _licence(about["licence"]["text"]),
        _limits(settings),
    )
    return "\n".join(parts)


def as_text(words: str) -> str:
    """Return words that Markdown shows as they are, on one line, in tables too."""
    printable = "".join(c if c.isprintable() else " " for c in words)
    return " ".join(printable.split()).translate(_MARKS)


def _front_matter(licence: str | None, foreign: bool) -> str:
    named = licence if licence in _HUB_LICENCES else f"other\nlicense_name: {licence or 'see-licence-below'}"
    weak = "- weakly-supervised\n"  # what masks of another tool cost is not known
    return f"""---
license: {named}
library_name: tagseg
pipeline_tag: image-segmentation
tags:
- tagseg
- semantic-segmentation
{"" if foreign else weak}---
"""


def _summary(about: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    teacher = "masks" if settings["segment"]["labels"] else "image tags"
    return f"""# A segmentation network learned from {teacher}

It gives every pixel of a photograph one of {len(about["classes"])} ids: background, or one of the classes below. It was
made by tagseg, which trains such networks from photographs and the names of what they show (RCA, CVPR 2022).
"""


def _data(run: Run, classes: list[str], settings: Mapping[str, Any]) -> str:
    try:
        data = read_json(run.data_file)
        check_shape(data, {"samples": [{"split": str, "tags": [int]}], "broken": list})
        splits = Counter(row["split"] for row in data["samples"])
        tagged = Counter(tag for row in data["samples"] if row["split"] == "train" for tag in row["tags"])
        skipped = len(data["broken"])
    except (OSError, ValueError) as error:
        raise RunError(f"{run.data_file}: missing or damaged ({error}); the model card needs it") from error
    saliency = settings["maps"] == "eps" or settings["masks"]["saliency"]
    beside = " and saliency maps" if saliency else ""
    learned = f"from the tags of the training images{beside}; no masks were used in training"
    if maps := settings["localise"]["maps_from"]:
        learned = f"from the tags of the training images and maps that tagseg did not make (folder {as_text(maps)})"
    if drawn := settings["segment"]["labels"]:
        count = len(list(run.labels.rglob("*.png")))
        learned = f"from masks of {count} training images that tagseg did not make (folder {as_text(drawn)})"
    lines = [
        "## Data\n",
        f"Data folder: {as_text(run.data_root().name)}; {splits['train']} training images, {splits['val']} validation "
        f"images, {skipped} unreadable ones left out. It learned {learned}.",
    ]
    if calibration := len(calibration_images(run)):
        lines.append(f"Settings of its pseudo-masks were tried on the true masks of {calibration} training images.")
    lines += ["", "| id | class | training images with this tag |", "|---:|---|---:|", "| 0 | background | - |"]
    lines += [f"| {i} | {as_text(name)} | {tagged[i]} |" for i, name in enumerate(classes[1:], start=1)]
    return "\n".join(lines) + "\n"


def _figures(run: Run) -> str:
    if not run.done("evaluate"):
        return "## Figures\n\nThis network has not been evaluated.\n"
    evaluation = read_evaluation(run)
    shown = dataclasses.replace(evaluation, classes=tuple(map(as_text, evaluation.classes)))
    return (
        "## Figures\n\nIntersection over union in per cent, pooled over all pixels of a set, background included.\n"
        f"Pseudo-masks are what it learned from, the segmenter is this network.\n\n{shown.table()}"
    )


def _limits(settings: Mapping[str, Any]) -> str:
    return f"## Limits\n\n{'' if settings['segment']['labels'] else _FROM_TAGS}{_LIMITS}"


def _by_onnx(max_side: int, difference: float | None) -> str:
    checked = "It was not checked against PyTorch."
    if difference is not None:
        checked = f"Its probabilities were those of PyTorch to within {difference:.1g}."
    return _ONNX.replace("MAX_SIDE", str(max_side)).replace("CHECKED", checked)


def _settings(run: Run, about: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    history = run.segmenter / "history.jsonl"
    epochs = len(history.read_text(encoding="utf-8").splitlines()) if history.exists() else 0
    trained = f"The segmentation network saw the training images {epochs} times. " if epochs else ""
    shown = {"seed": settings["seed"], "segment": settings["segment"], "train": settings["train"]}
    version = as_text(run.manifest().tagseg or "(unknown)")
    return (
        f"## Settings\n\n{trained}Encoder `{about['encoder']}`. Trained with tagseg {version}, exported with tagseg "
        f"{about['tagseg']} and PyTorch {about['torch']}.\n\n````toml\n{to_toml(shown)}````\n"
    )


def _licence(text: str) -> str:
    return (
        f"## Licence\n\nStart weights: {text}. tagseg does not know the terms of the photographs it was "
        "trained on: whoever publishes this network has to.\n"
    )


_PYTHON = """## How to use it

```python
import tagseg
from PIL import Image

predictor = tagseg.load("path/to/this/folder")
mask = predictor(Image.open("photo.jpg").convert("RGB"))  # height x width, ids of predictor.classes
```

or for a folder of photographs: `tagseg predict path/to/this/folder photos/ --out masks/`.
"""

_ONNX = """
Without PyTorch, by ONNX Runtime: any size and number of images, normalisation is inside. This is one pass at one scale,
where tagseg averages over scales and the mirrored image if the settings below say so. CHECKED

```python
import json

import numpy as np
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession("path/to/this/folder/model.onnx")
classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
image = Image.open("photo.jpg").convert("RGB")
image.thumbnail((MAX_SIDE, MAX_SIDE))  # the size it was trained at
images = np.asarray(image, np.float32).transpose(2, 0, 1)[None] / 255
(probabilities,) = session.run(["probabilities"], {"images": images})
mask = probabilities[0].argmax(0)  # height x width of the reduced image, ids of classes
```
"""

_FROM_TAGS = """\
- It learned from tags, not from drawn masks: borders and thin parts are rough, and what often stands beside a class
  (water under a boat) may be taken for it. Look at its masks before anything depends on them.
"""

_LIMITS = """- It knows the classes above alone: anything else becomes background, or the class it is most like.
- Objects of one class are not told apart: masks are semantic, not instances.
- Figures hold for photographs like those it was trained and scored on.
"""
