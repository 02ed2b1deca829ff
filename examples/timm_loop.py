"""A plain timm classifier, trained in your own loop with tagseg's memory bank and contrast; prototypes give masks.

python examples/timm_loop.py photos/ masks/
"""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

import tagseg

Batch = tuple[Float[Tensor, "b 3 h w"], Bool[Tensor, "b c"]]
SEE = v2.Compose([v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Resize((224, 224), antialias=True)])


def train(model: Any, head: nn.Conv2d, batches: Iterable[Batch], epochs: int, lr: float = 0.01) -> tagseg.Bank:
    """Train on images and their tags, contrasting regions of the maps with everything in the bank."""
    bank = tagseg.Bank(head.out_channels + 1, slots=200, channels=head.in_channels)  # entry 0 is background
    optimizer = torch.optim.SGD([*model.parameters(), *head.parameters()], lr, momentum=0.9, nesterov=True)
    for epoch in range(epochs):
        for pictures, tags in batches:
            features = model.forward_features(pictures)
            maps = head(features)
            loss = F.multilabel_soft_margin_loss(maps.mean((2, 3)), tags.float())
            regions = tagseg.mine_regions(maps.detach(), tags, confidence=0.5)
            found = tagseg.pool_regions(features, regions)
            if epoch:  # once the bank is filled
                losses = tagseg.contrast(found, regions.label, bank.slots, bank.written, temperature=0.1)
                loss = loss + 0.1 * losses.sum() / max(len(losses), 1)
            bank.write(found.detach()[regions.confident], regions.label[regions.confident])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return bank


@torch.inference_mode()
def find_mask(model: Any, bank: tagseg.Bank, image: Image.Image, tags: tuple[int, ...]) -> Image.Image:
    """Return the mask of an image: each cell belongs to a class by the attention to its prototypes."""
    prototypes, exists = tagseg.kmeans(bank.slots, bank.written, k=5)
    features = model.eval().forward_features(SEE(image)[None])
    of = torch.zeros(len(tags), dtype=torch.long)
    maps = tagseg.posterior(features, prototypes, exists, temperature=0.1, image=of, tag=torch.tensor(tags))
    decided, _ = tagseg.mask_from_maps(np.array(image), maps.numpy(), tags, probabilities=True)
    return Image.fromarray(decided)


def main(data: Path, out: Path) -> None:
    """Train a ResNet-18 on a data folder and write the masks of its training images."""
    dataset = tagseg.read_dataset(data)
    model: Any = timm.create_model("resnet18", pretrained=True, num_classes=0)
    samples = dataset.split("train")
    images = [Image.open(sample.image).convert("RGB") for sample in samples]
    tags = torch.stack([torch.eye(len(dataset.classes) + 1)[list(one.tags)].sum(0)[1:].bool() for one in samples])
    batches = list(zip(torch.stack([SEE(image) for image in images]).split(8), tags.split(8), strict=True))
    bank = train(model, nn.Conv2d(model.num_features, len(dataset.classes), 1), batches, epochs=8)
    out.mkdir(parents=True, exist_ok=True)
    for sample, image in zip(samples, images, strict=True):
        find_mask(model, bank, image, sample.tags).save(out / f"{sample.id.replace('/', '_')}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
