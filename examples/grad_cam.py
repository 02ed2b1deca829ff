"""Maps of pytorch-grad-cam become masks: one file per image, then `tagseg masks`.

pip install 'tagseg[examples]'
python examples/grad_cam.py photos/ cams/ runs/grad_cam
"""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform

import tagseg

OUTPUTS = {"cat": 281, "dog": 207, "horse": 339, "sheep": 348}
"""Which output of the classifier belongs to each tag; these are ImageNet's."""


def write_maps(
    data: Path,
    cams: Path,
    model: torch.nn.Module,
    layer: torch.nn.Module,
    outputs: Mapping[str, int],
    transform: Callable[[Image.Image], torch.Tensor],
) -> None:
    """Write the Grad-CAM of every training image's tags to `cams`, one .npz per image."""
    dataset = tagseg.read_dataset(data)
    with GradCAM(model, [layer]) as cam:
        for sample in dataset.split("train"):
            names = [dataset.classes[tag - 1] for tag in sample.tags]
            picture = transform(Image.open(sample.image).convert("RGB"))[None]
            targets = [ClassifierOutputTarget(outputs[name]) for name in names]
            maps = cam(picture.repeat(len(names), 1, 1, 1), targets)
            file = cams / f"{sample.id}.npz"
            file.parent.mkdir(parents=True, exist_ok=True)
            np.savez_compressed(file, maps=maps, classes=names)


def main(data: Path, cams: Path, out: Path) -> None:
    """Write the maps of a ResNet-50, and make masks from them."""
    model: Any = timm.create_model("resnet50", pretrained=True)
    # Squashed, not cropped: a map covers the whole image.
    config = resolve_model_data_config(model) | {"crop_mode": "squash", "crop_pct": 1.0}
    write_maps(data, cams, model, model.layer4, OUTPUTS, create_transform(**config))
    localise = tagseg.LocaliseSettings(maps_from=str(cams.resolve()))
    tagseg.fit_until(data, out, "masks", tagseg.Settings(localise=localise))  # as: tagseg masks OUT --maps-from CAMS


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
