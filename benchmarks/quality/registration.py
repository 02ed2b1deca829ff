"""Where networks look, and what it is worth: cells of backbones, deep features of the segmenter, mIoU at borders.

    python -m benchmarks.quality.registration                 measure, and score perfect maps
    python -m benchmarks.quality.registration --train 300     also train DeepLabV3+ both ways for 300 steps per seed

Gradients say which pixels a cell sees; their energy's centre is where the cell lies. Kernels are made equal to their
mirror images for this. For the segmenter the library's way of enlarging is compared with tagseg's. Perfect maps hold,
for every cell, the share of each class among the pixels of the true mask around the place where the network looks; what
they score when enlarged says what a wrong place costs. The training takes true masks of train_aug.txt. val.txt scores
all of them: all pixels, and those within 8 pixels of a border.
"""

import argparse
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from benchmarks import harness
from benchmarks.harness import record
from torch import Tensor, nn

from tagseg.data.images import read_image
from tagseg.data.read import read_dataset
from tagseg.data.records import VOID, Dataset
from tagseg.data.true_masks import load_mask
from tagseg.evaluate.iou import confusion, iou
from tagseg.masks.mask_files import write_mask
from tagseg.networks import segmenters
from tagseg.networks.backbones import build_backbone
from tagseg.networks.registration import resize_cells
from tagseg.networks.segmenters import Segmenter
from tagseg.segment.infer import picture_probabilities
from tagseg.segment.resolution import Resolution, resize_to_picture
from tagseg.segment.train import mask_loss
from tagseg.training.loading import MaskImages
from tagseg.training.optimizer import build_optimizer, poly, set_lr

SIZES = (320, 1024)
ENCODERS = ("resnet18", "mobilenetv2_100")
WAYS = ("library", "tagseg")
FAMILIES = (
    ("mobilenetv2_100", (8, 16, 32)), ("tf_efficientnet_b0", (16,)), ("mobilenetv3_small_100", (32,)),
    ("resnet18", (16,)), ("resnet18d", (16,)), ("regnety_002", (16,)), ("vgg11_bn", (8,)),
    ("convnext_atto", (8, 16, 32)),
    ("inception_next_atto", (16,)), ("mambaout_femto", (32,)), ("vit_tiny_patch16_224", (16,)),
)  # fmt: skip
Built = TypeVar("Built")
CROP, BATCH, BAND = 160, 8, 8


def main() -> None:
    """Measure, train if asked to, and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", type=int, default=0, help="steps per training")
    parser.add_argument("--seeds", type=int, default=2)
    options = harness.parse(parser, "registration")
    logging.disable(logging.WARNING)
    figures: dict[str, Any] = {"segmenter": {name: deep_errors(name) for name in ENCODERS}}
    figures["cells"] = {
        f"{name} {stride}": cell_error(name, stride) for name, strides in FAMILIES for stride in strides
    }
    figures["perfect"] = perfect(options)
    if options.train:
        figures["worth"] = worth(options)
    print(record("registration", [], figures, table(figures)))


def plain(network: nn.Module) -> None:
    """Make the kernels of a network equal to their mirror images, and switch on branches that start switched off."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = (module.weight.data + module.weight.data.flip(-1)) / 2
            module.weight.data = (module.weight.data + module.weight.data.flip(-2)) / 2
        if isinstance(module, nn.BatchNorm2d) and module.weight is not None and not module.weight.any():
            module.weight.data.fill_(1.0)


def centre(value: Tensor, image: Tensor) -> float:
    """Return the column around which an image's pixels reach a vector."""
    total = torch.zeros(image.shape[3])
    for number in range(4):
        weights = torch.randn(len(value), generator=torch.Generator().manual_seed(number))
        (gradient,) = torch.autograd.grad((value * weights).sum(), image, retain_graph=True)
        total += gradient[0].square().sum((0, 1))
    return float((total * torch.arange(len(total))).sum() / total.sum())


def cell_error(name: str, stride: int) -> dict[str, float]:
    """Return the shift that a backbone measures of itself, and how far (pixels) the centre of what its middle cells see
    lies from where its maps show them."""
    torch.manual_seed(0)
    backbone = build_backbone(name, "random", stride).eval()
    plain(backbone)
    cells = max(320 // stride // 2 * 2, 8)
    side = backbone.fitting_size(stride * cells, stride * cells)[0]
    image = (0.75 + 1e-3 * torch.randn(1, 3, side, side)).requires_grad_()
    map_ = backbone(image)
    middle = map_.shape[2] // 2
    first = (0 if backbone.cornered else (stride - 1) / 2) + stride * backbone.grid.shift
    errors = [abs(centre(map_[0, :, middle, cell], image) - first - stride * cell) for cell in (middle - 1, middle)]
    return {"shift": backbone.grid.shift, "error": round(min(errors), 2)}


def perfect(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Return the mIoU, in per cent, of perfect maps of the validation images that are enlarged in the right and in the
    old places."""
    dataset = read_dataset(options.data, harness.animal_settings(options).data)
    ids = len(dataset.classes) + 1
    totals: dict[str, dict[str, np.ndarray]] = {}
    for sample in dataset.split("val"):
        whole = load_mask(sample, dataset)
        sides = [(side - 1) // 16 * 16 for side in whole.shape]
        for case in ("ConvNeXt", "DeepLabV3+"):
            extra = int(case == "DeepLabV3+")
            truth = whole[: sides[0] + extra, : sides[1] + extra]
            shares = F.one_hot(torch.from_numpy(truth).long().where(torch.from_numpy(truth != VOID), 0), ids)
            shares = (shares * torch.from_numpy(truth != VOID)[..., None]).permute(2, 0, 1).float()[None]
            # ConvNeXt's cells lie on 16 i + 15.5, which is between four tiles; those of a ResNet on 16 i.
            padded = F.pad(shares, (0, 16, 0, 16)) if not extra else F.pad(shares, (8, 7, 8, 7))
            cells = F.avg_pool2d(padded[..., 8:, 8:] if not extra else padded, 16)
            old, new = (
                (resize_cells(cells, truth.shape, False, shift) for shift in (0.0, 0.5))
                if not extra
                else (library(cells, truth.shape), resize_cells(cells, truth.shape, True))
            )
            for way, enlarged in (("old", old), ("tagseg", new)):
                mask = enlarged[0].argmax(0).numpy().astype(np.uint8)
                total = totals.setdefault(f"{case}, {way}", {"all": 0, "border": 0})  # type: ignore[dict-item]
                for name, counted in (("all", truth), ("border", np.where(near_border(truth), truth, VOID))):
                    total[name] = total[name] + confusion(counted.astype(np.uint8), mask, ids)
    return {
        case: {name: round(100 * iou(matrix).miou, 2) for name, matrix in total.items()}
        for case, total in totals.items()
    }


def library(cells: Tensor, size: tuple[int, int]) -> Tensor:
    """Return maps enlarged as by segmentation-models-pytorch: from corners to corners of an image of `16 n` pixels; the
    last row and column are repeated."""
    n = [(side - 1) // 16 for side in size]
    large = F.interpolate(cells[..., : n[0], : n[1]], [16 * side for side in n], mode="bilinear", align_corners=True)
    return F.pad(large, (0, 1, 0, 1), mode="replicate")


def two_ways(build: Callable[[], Built], way: str) -> Built:
    """Return what is built while new segmenters enlarge as tagseg does, or as segmentation-models-pytorch does."""
    own = segmenters._measured_grid
    if way == "library":
        segmenters._measured_grid = lambda *_: None  # type: ignore[assignment]
    try:
        return build()
    finally:
        segmenters._measured_grid = own


def deep_errors(encoder: str) -> dict[str, Any]:
    """Return, for both ways and some sizes, how far (pixels) to the right of a pixel the deep features lie that are
    shown on it, in the columns at a fifth, the middle and four fifths of the image.

    Gradients say where the middle cell of the encoder's last map lies, and cells lie 16 pixels apart; a map of these
    places is enlarged as scores are.
    """
    figures: dict[str, Any] = {}
    for way in WAYS:
        torch.manual_seed(0)
        network = two_ways(lambda: Segmenter(encoder, 3, 16, "random", (0, False)), way).eval()
        plain(network)
        net: Any = network.net
        for size in SIZES:
            height, width = network.fitting_size(96, size)
            image = (0.75 + 1e-3 * torch.randn(1, 3, height, width)).requires_grad_()
            deep = net.encoder(image)[-1]
            middle = deep.shape[3] // 2
            seen = centre(deep[0, :, deep.shape[2] // 2, middle], image)
            places = (seen + 16.0 * (torch.arange(deep.shape[3]) - middle)).expand(1, 1, *deep.shape[2:])
            if network.grid is None:
                shown = net.segmentation_head[1](net.decoder.up(places))
            else:
                fine = [4 * (side - network.cornered) // 16 + network.cornered for side in (height, width)]
                placed = resize_cells(places, fine, network.grid.cornered, network.grid.shift)
                shown = resize_cells(placed, (height, width), network.grid.cornered)
            columns = [int(share * width) for share in (0.2, 0.5, 0.8)]
            figures.setdefault(way, {})[str(size)] = [round(float(shown[0, 0, 0, x]) - x, 1) for x in columns]
    return figures


def worth(options: argparse.Namespace) -> dict[str, Any]:
    """Return the mIoU of both ways, in per cent, per seed: of all pixels and of those near borders."""
    dataset, labels = read_dataset(options.data, harness.animal_settings(options).data), options.out / "labels"
    figures: dict[str, Any] = {"steps": options.train, "batch": BATCH, "crop": CROP, "band": BAND}
    for seed in range(options.seeds):
        for way in WAYS:
            torch.manual_seed(seed)

            def build() -> Segmenter:
                return Segmenter("mobilenetv2_100", len(dataset.classes) + 1, 16, str(options.weights), (4, True))

            network = two_ways(build, way)
            train(network, dataset, labels, options.train, seed)
            figures.setdefault(way, []).append(score(network.eval(), dataset))
            print(seed, way, figures[way][-1], flush=True)
    return figures


def train(network: Segmenter, dataset: Dataset, labels: Path, steps: int, seed: int) -> None:
    """Learn from the true masks of the training images."""
    samples = [sample for sample in dataset.split("train") if sample.mask is not None]
    chosen = [samples[i % len(samples)] for i in np.random.default_rng(seed).permutation(steps * BATCH)]
    pairs = [(sample.image, labels / f"{sample.id}.png") for sample in chosen]
    for sample, (_, file) in zip(chosen, pairs, strict=True):
        if not file.exists():
            write_mask(file, load_mask(sample, dataset))
    crops = MaskImages(pairs, network.fitting_size(CROP, CROP)[0], (0.5, 1.5), 512, 0.3, 120.0, seed)
    optimizer = build_optimizer(network.encoder_parameters(), network.new_parameters(), 0.002, 10.0, 5e-4, "sgd")
    network.train()
    for step in range(steps):
        pictures, masks = (
            torch.stack(one) for one in zip(*(crops[BATCH * step + i] for i in range(BATCH)), strict=True)
        )
        set_lr(optimizer, 0.002 * poly(step / steps))
        optimizer.zero_grad()
        pictures = pictures.to(memory_format=torch.channels_last)
        (mask_loss(network(pictures), masks) / max(int((masks != VOID).sum()), 1)).backward()
        optimizer.step()


def score(network: Segmenter, dataset: Dataset) -> dict[str, float]:
    """Return the mIoU on the validation images, predicted once at their own size."""
    ids = len(dataset.classes) + 1
    totals = {name: np.zeros((ids, ids), np.int64) for name in ("all", "border")}
    for truth, mask in predicted(network, dataset):
        totals["all"] += confusion(truth, mask, ids)
        totals["border"] += confusion(np.where(near_border(truth), truth, VOID).astype(np.uint8), mask, ids)
    return {name: round(100 * iou(total).miou, 2) for name, total in totals.items()}


def predicted(network: Segmenter, dataset: Dataset) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the true mask and the predicted mask of every validation image."""
    for sample in dataset.split("val"):
        image = read_image(sample.image, 120.0)
        truth = load_mask(sample, dataset)
        picture = resize_to_picture(image, Resolution(512, 512))
        shares = torch.from_numpy(picture_probabilities(network, picture[None], (1.0,), False))
        large = F.interpolate(shares, truth.shape, mode="bilinear", align_corners=False)
        yield truth, large[0].argmax(0).numpy().astype(np.uint8)


def near_border(truth: np.ndarray, band: int = BAND) -> np.ndarray:
    """Tell which pixels have another label, or void, within `band` pixels."""
    labels = torch.from_numpy(truth).float()[None, None]
    highest, lowest = (sign * F.max_pool2d(sign * labels, 2 * band + 1, 1, band) for sign in (1, -1))
    return (highest != lowest)[0, 0].numpy()


def table(figures: dict[str, Any]) -> str:
    """Return the figures as Markdown."""
    rows = [
        "| encoder | enlarged by | image | at a fifth | in the middle | at four fifths |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for encoder, ways in figures["segmenter"].items():
        for way, sizes in ways.items():
            rows += [f"| `{encoder}` | {way} | {size} | {' | '.join(map(str, one))} |" for size, one in sizes.items()]
    rows += ["", "| backbone, stride | shift, cells | error, pixels |", "|---|---:|---:|"]
    rows += [f"| `{name}` | {one['shift']:g} | {one['error']} |" for name, one in figures["cells"].items()]
    rows += ["", "| perfect maps, stride 16 | mIoU, % | within 8 pixels of borders |", "|---|---:|---:|"]
    rows += [f"| {case} | {one['all']} | {one['border']} |" for case, one in figures["perfect"].items()]
    if found := figures.get("worth"):
        rows += ["", "| trained, enlarged by | mIoU, per cent, by seed | within 8 pixels of borders |", "|---|---|---|"]
        for way in WAYS:
            columns = (", ".join(str(one[name]) for one in found[way]) for name in ("all", "border"))
            rows.append(f"| {way} | {' | '.join(columns)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
