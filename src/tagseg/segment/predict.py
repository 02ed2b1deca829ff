"""Masks for images without tags, from a trained segmentation network."""

import glob
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from PIL import Image

from tagseg.checkpoint import load_tensors, restore
from tagseg.data.images import IMAGE_SUFFIXES, read_image, reduction
from tagseg.data.loading import to_tensor
from tagseg.data.records import DataError
from tagseg.masks.palette import class_colours
from tagseg.masks.write import mask_file, write_classes, write_mask
from tagseg.optimise import choose_device
from tagseg.progress import Track, silent
from tagseg.run import Run, RunError, atomic_path
from tagseg.segment.about import check_about, check_twin
from tagseg.segment.networks import Segmenter, empty_segmenter, probabilities

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Predictor:
    """A trained segmentation network ready to use; class id i is `classes[i]`."""

    network: Segmenter
    classes: tuple[str, ...]
    scales: tuple[float, ...]
    flip: bool
    max_side: int

    def __call__(self, image: Image.Image) -> UInt8[np.ndarray, "h w"]:
        """Return the mask of an RGB image at its own size."""
        device = next(self.network.parameters()).device
        reduce = reduction(image, self.max_side)
        small = image.resize(
            (max(round(image.width * reduce), 1), max(round(image.height * reduce), 1)), reducing_gap=2.0
        )
        seen = probabilities(self.network, to_tensor(small).to(device), self.scales, self.flip)
        if small.size != image.size:
            seen = F.interpolate(seen[None], image.size[::-1], mode="bilinear", align_corners=False)[0]
        ids: UInt8[np.ndarray, "h w"] = seen.argmax(0).to(torch.uint8).cpu().numpy()
        return ids


@dataclass(frozen=True)
class Predictions:
    """What `predict` wrote: the folder, the ids of the images in it, and the unreadable images with their reasons."""

    folder: Path
    ids: tuple[str, ...]
    skipped: tuple[tuple[str, str], ...]


def load(path: str | Path, device: str = "auto") -> Predictor:
    """Restore a segmentation network, ready to predict: the same output in every process of one machine.

    Args:
        path: a run folder, its segmenter folder, or a folder made by `tagseg export-model`.
        device: as `--device`.

    Raises:
        RunError: when no trained segmenter is there, or its files are damaged or describe something else.
        ValueError: when the device cannot be had.
    """
    folder, run = Path(path), Run(Path(path))
    if run.manifest_file.exists():
        run.require("segment")
        folder = run.segmenter
    elif not (folder / "network.safetensors").is_file():
        raise RunError(
            f"{folder}: not a run folder (no {run.manifest_file.name}), and no network.safetensors in it; expected a "
            "run with a trained segmenter, its segmenter folder, or what `tagseg export-model RUN --out DIR` made"
        )
    try:
        return read_predictor(folder, device)
    except RunError as error:
        raise RunError(
            f"{error}. Copy the folder again, or make it anew: `tagseg segment RUN --force`, then, if it was exported, "
            "`tagseg export-model RUN --out DIR`"
        ) from error


def read_predictor(folder: Path, device: str = "auto") -> Predictor:
    """Restore a segmentation network from the folder that its training left.

    Raises:
        RunError: when its files are damaged, or describe what is no segmentation network of ours.
        ValueError: when the device cannot be had.
    """
    file = folder / "network.safetensors"
    tensors, about = load_tensors(file)
    check_about(about, file)
    check_twin(folder / "network.json", about)
    # Networks older than the choice are DeepLabV3+.
    name = about.get("network", "deeplabv3plus")
    try:
        network = empty_segmenter(about["encoder"], len(about["classes"]), about["stride"], name)
    except (RuntimeError, TypeError, ValueError) as error:
        raise RunError(f"{file}: the network it describes cannot be built here ({error})") from error
    restore(network, tensors, file)
    network = network.to(choose_device(device), memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    return Predictor(
        network, tuple(about["classes"]), tuple(about["predict_scales"]), about["predict_flip"], about["max_side"]
    )


def predict(
    run: str | Path,
    images: str | Path | Sequence[str | Path],
    out: str | Path,
    overlays: bool = False,
    device: str = "auto",
    max_megapixels: float = 120.0,
    force: bool = False,
    track: Track = silent,
) -> Predictions:
    """Write a palette mask for every image, named like it, and classes.json, into `out`.

    Args:
        run: a run folder with a trained segmenter, or any other folder that `load` takes.
        images: image files, folders (searched with their subfolders) or glob patterns.
        out: folder of the masks.
        overlays: also write `NAME.overlay.jpg`, the image with its mask laid over.
        device: as `--device`.
        max_megapixels: larger images are skipped.
        force: overwrite masks that exist.

    Raises:
        DataError: when there is no image, none can be read, or a mask exists and `force` is not given.
        RunError: as `load`.
    """
    predictor = load(run, device)
    found = find_images([images] if isinstance(images, str | Path) else images)
    out = Path(out)
    present = [name for name in found if mask_file(out, name).exists()]
    if present and not force:
        raise DataError(
            f"{mask_file(out, present[0])}: exists ({len(present)} masks do); choose another --out or --force"
        )
    write_classes(out, predictor.classes[1:])
    skipped = []
    for name, path in track(found.items(), "predict", len(found)):
        try:
            image = read_image(path, max_megapixels)
        except DataError as error:
            log.warning("skipped: %s", error)
            skipped.append((str(path), str(error)))
            continue
        mask = predictor(image)
        write_mask(mask_file(out, name), mask)
        if overlays:
            with atomic_path(out / f"{name}.overlay.jpg") as temporary:
                overlay(image, mask).save(temporary, quality=90)
    if len(skipped) == len(found):
        raise DataError(f"none of the {len(found)} images could be read; first: {skipped[0][1]}")
    done = {path for path, _ in skipped}
    return Predictions(out, tuple(name for name, path in found.items() if str(path) not in done), tuple(skipped))


def find_images(wanted: Sequence[str | Path]) -> dict[str, Path]:
    """Return images by the name their outputs get: the path below the given folder, without suffix where that is
    unique.

    Raises:
        DataError: when a path does not exist or nothing is found.
    """
    files: dict[Path, Path] = {}  # file -> the folder its name is relative to
    for item in wanted:
        path = Path(item)
        if path.is_dir():
            below = (
                file for file in sorted(path.rglob("*")) if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()
            )
            files.update((file, path) for file in below)
        elif path.is_file():
            files[path] = path.parent
        else:
            matches = sorted(map(Path, glob.glob(str(path), recursive=True)))
            if not matches:
                raise DataError(f"{item}: no such image, folder or pattern")
            files.update((file, file.parent) for file in matches if file.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise DataError(f"{', '.join(map(str, wanted))}: holds no images ({', '.join(IMAGE_SUFFIXES)})")
    relative = {file: file.relative_to(root) for file, root in files.items()}
    stems = Counter(path.with_suffix("") for path in relative.values())
    named: dict[str, Path] = {}
    for file, path in relative.items():
        name = (path.with_suffix("") if stems[path.with_suffix("")] == 1 else path).as_posix()
        if name in named:
            raise DataError(f"{file} and {named[name]}: their masks would have the same name; predict them apart")
        named[name] = file
    return named


def overlay(image: Image.Image, mask: UInt8[np.ndarray, "h w"], opacity: float = 0.55) -> Image.Image:
    """Return an RGB image with its mask's colours laid over everything but background."""
    colours = np.array(class_colours(255), np.float32)[mask]
    pixels = np.asarray(image, np.float32)
    shown = np.where((mask > 0)[..., None], (1 - opacity) * pixels + opacity * colours, pixels)
    return Image.fromarray(shown.round().astype(np.uint8))
