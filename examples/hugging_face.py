"""The patch scores of a Hugging Face image classifier become maps, masks and a segmentation network.

pip install 'tagseg[examples]'
python examples/hugging_face.py photos/ maps/ runs/hugging_face my/vit-that-knows-my-tags
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import ViTForImageClassification, ViTImageProcessor

import tagseg


@torch.inference_mode()
def write_maps(data: Path, maps: Path, model: ViTForImageClassification, processor: ViTImageProcessor) -> None:
    """Write the score of every label at every patch, one .npz per image with one array per label."""
    side = model.config.image_size // model.config.patch_size
    labels = [model.config.id2label[i] for i in range(model.config.num_labels)]
    for sample in tagseg.read_dataset(data).split("train"):
        # The processor squashes; one that crops would leave the map without the image's borders.
        pixels = processor(Image.open(sample.image).convert("RGB"), return_tensors="pt")["pixel_values"]
        tokens = model.vit(pixels).last_hidden_state[:, 1:]  # without the class token
        scores = model.classifier(tokens)[0].T.reshape(-1, side, side)
        file = maps / f"{sample.id}.npz"
        file.parent.mkdir(parents=True, exist_ok=True)
        # Labels that are not tags of the image are ignored when the file is read.
        np.savez_compressed(file, **dict(zip(labels, scores.numpy(), strict=True)))


def main(data: Path, maps: Path, out: Path, name: str) -> None:
    """Write the maps of a ViT from the hub, and train a segmentation network on the masks made from them."""
    model = ViTForImageClassification.from_pretrained(name).eval()
    write_maps(data, maps, model, ViTImageProcessor.from_pretrained(name))
    localise = tagseg.LocaliseSettings(maps_from=str(maps.resolve()))
    fitted = tagseg.fit(data, out, tagseg.Settings(localise=localise))
    print(fitted)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
