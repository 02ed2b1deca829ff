"""Torch data sets over samples: decode, augment, collate. Randomness depends on (seed, epoch, image) alone, not on
workers."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64, UInt8
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision import tv_tensors
from torchvision.transforms import v2

from tagseg.data.images import read_image, read_mask_file, read_saliency, reduction
from tagseg.data.records import VOID, Sample
from tagseg.training.distributed import ALONE, Group, Shares

T = TypeVar("T")


class Crop(NamedTuple):
    """A randomly cropped image, or a batch of them (dimensions `...` in front).

    picture: RGB in 0..1. tags: multi-hot. sample: its number. box: the crop's top, left, height and width as shares of
    the whole image's. mirrored: whether left and right were swapped after cropping. saliency: 0..1, crop and mirror as
    the picture's; without saliency it has no pixels.
    """

    picture: Float[Tensor, "... 3 H W"]
    tags: Float[Tensor, "... c"]
    sample: Int[Tensor, "..."]
    box: Float[Tensor, "... 4"]
    mirrored: Bool[Tensor, "..."]
    saliency: Float[Tensor, "... y x"]


class TagImages(Dataset[Crop]):
    """Randomly cropped images with their tags and, where `saliency` asks for them, their saliency maps."""

    def __init__(
        self,
        samples: Sequence[Sample],
        classes: int,
        crop: int,
        scale: tuple[float, float],
        jitter: float,
        max_megapixels: float,
        seed: int,
        saliency: bool = False,
    ) -> None:
        self.samples, self.classes, self.max_megapixels, self.seed = samples, classes, max_megapixels, seed
        self.crop = v2.RandomResizedCrop(crop, scale=scale, antialias=True)
        self.recolour = colour_jitter(jitter)
        self.saliency = saliency

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Crop:
        sample = self.samples[index]
        image = read_image(sample.image, self.max_megapixels)
        width, height = image.size
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed * 1_000_003 + index)  # not those of GPUs
            place = self.crop.make_params([image])
            mirrored = torch.rand(1) < 0.5
            picture = self._cut(image, place, mirrored)
            for recolour in self.recolour:
                picture = recolour(picture)
        tags = torch.zeros(self.classes)
        tags[[tag - 1 for tag in sample.tags]] = 1
        box = torch.tensor([place["top"], place["left"], place["height"], place["width"]])
        saliency = torch.zeros(0, 0)
        if self.saliency:
            assert sample.saliency is not None, f"{sample.id} has no saliency map"
            whole = read_saliency(sample.saliency, (height, width), self.max_megapixels)
            saliency = torch.from_numpy(np.array(self._cut(whole, place, mirrored))).float() / 255
        shares = box / torch.tensor([height, width, height, width])
        return Crop(to_tensor(picture), tags, torch.tensor(index), shares, mirrored[0], saliency)

    def _cut(self, image: Image.Image, place: dict[str, int], mirrored: Tensor) -> Image.Image:
        cropped: Image.Image = self.crop.transform(image, place)
        return cropped.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else cropped


class Shuffled(Sampler[int]):
    """A permutation drawn from a seed, without its first `skip`; a last batch of a single image is left out by
    `loader`."""

    def __init__(self, length: int, seed: int, skip: int = 0) -> None:
        self.order = torch.randperm(length, generator=torch.Generator().manual_seed(seed)).tolist()[skip:]

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter(self.order)


def loader(data: Dataset[T], batch: int, workers: int, seed: int, skip: int = 0, group: Group = ALONE) -> DataLoader[T]:
    """Return a shuffled loader of an epoch, without its first `skip` batches; the last batch is dropped when it has
    only one image (batch norm).

    Of several processes each gets its share of every batch, to be read through `group.batches`.
    """
    length = len(data)  # type: ignore[arg-type]
    order, drop_last = Shuffled(length, seed, skip * batch), length > batch and length % batch == 1
    settled: dict[str, Any] = {"drop_last": drop_last, "batch_size": batch, "sampler": order}
    if group.world_size > 1:
        settled = {"batch_sampler": Shares(order.order, batch, drop_last, group)}
    return DataLoader(
        data,
        num_workers=-(-workers // group.local_world_size),
        pin_memory=torch.cuda.is_available(),
        generator=torch.Generator().manual_seed(seed),
        worker_init_fn=_apart,
        **settled,
    )


def _apart(worker: int) -> None:
    # Its own group: Ctrl-C reaches the main process alone, which still needs the batches of the step it finishes.
    if hasattr(os, "setpgid"):
        os.setpgid(0, 0)


def colour_jitter(strength: float) -> list[v2.Transform]:
    """Return the random change of brightness, contrast and saturation, or nothing at strength 0."""
    return [v2.ColorJitter(strength, strength, strength)] if strength else []


def to_tensor(image: Image.Image) -> Float[Tensor, "3 h w"]:
    """Return an RGB picture as floats in 0..1."""
    return to_bytes(image).float().div_(255)


def to_bytes(image: Image.Image) -> UInt8[Tensor, "3 h w"]:
    """Return an RGB picture as bytes."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def epoch_seed(seed: int, epoch: int) -> int:
    """Return the seed of an epoch: what is random in it does not depend on the epochs before, so it can be resumed."""
    return (seed * 9_176_471 + epoch * 7_919 + 12_345) % (2**31)


class MaskImages(Dataset[tuple[Tensor, Tensor]]):
    """Randomly scaled and cropped images with their masks: RGB `3 crop crop` in 0..1 and ids `crop crop` (255 void)."""

    def __init__(
        self,
        pairs: Sequence[tuple[Path, Path]],
        crop: int,
        scale: tuple[float, float],
        max_side: int,
        jitter: float,
        max_megapixels: float,
        seed: int,
    ) -> None:
        self.pairs, self.scale, self.max_side = pairs, scale, max_side
        self.max_megapixels, self.seed = max_megapixels, seed
        fill = {tv_tensors.Image: 127, tv_tensors.Mask: VOID}
        self.augment = v2.Compose(
            [v2.RandomCrop(crop, pad_if_needed=True, fill=fill), v2.RandomHorizontalFlip(), *colour_jitter(jitter)]
        )

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Float[Tensor, "3 crop crop"], Int64[Tensor, "crop crop"]]:
        image_file, mask_file = self.pairs[index]
        image, mask = read_image(image_file, self.max_megapixels), Image.fromarray(read_mask_file(mask_file))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed * 1_000_003 + index)  # not those of GPUs
            factor = torch.empty(1).uniform_(*self.scale).item() * reduction(image.size, self.max_side)
            size = max(round(image.width * factor), 1), max(round(image.height * factor), 1)
            picture = tv_tensors.Image(to_bytes(image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)))
            labels = tv_tensors.Mask(torch.from_numpy(np.array(mask.resize(size, Image.Resampling.NEAREST))))
            picture, labels = self.augment(picture, labels)
        return picture.as_subclass(Tensor).float().div_(255), labels.as_subclass(Tensor).long()
