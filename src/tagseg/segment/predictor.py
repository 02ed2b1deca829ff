"""A trained segmentation network ready to predict, restored from a run or an exported folder."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from PIL import Image
from torch import Tensor

from tagseg.data.images import as_rgb
from tagseg.errors import RunError
from tagseg.networks.segmenters import Segmenter, empty_segmenter
from tagseg.run.folder import Run
from tagseg.segment.about import check_about, check_twin
from tagseg.segment.infer import ClassProbabilities, as_tensor, in_windows, probabilities
from tagseg.segment.label_pixels import Decided, candidates, label_pixels, refine
from tagseg.segment.resolution import Resolution, picture
from tagseg.settings.crf import CrfSettings
from tagseg.settings.predict import Precision, PredictOptions
from tagseg.training.checkpoint import load_tensors, restore
from tagseg.training.device import choose_device

GPU_BATCH = 8
"""Images that go through the network together on a GPU where nothing else is asked for."""


@dataclass(frozen=True)
class Predictor:
    """A trained segmentation network ready to use; class id i is `classes[i]`.

    scales, flip: what is averaged. max_side: larger images are reduced to this long side (0: never). window: what still
    exceeds this is predicted in windows of this side. batch: how many of these go through the network together.
    precision: of the network's forward pass. crf: the dense CRF that refines masks, if any.
    """

    network: Segmenter
    classes: tuple[str, ...]
    scales: tuple[float, ...]
    flip: bool
    max_side: int
    window: int = 512
    batch: int = 1
    precision: Precision = "fp32"
    crf: CrfSettings | None = None

    def __call__(self, image: Image.Image) -> UInt8[np.ndarray, "h w"]:
        """Return the mask of an image at its own size."""
        image = as_rgb(image)
        return self.decided(self.probabilities(image), (image.height, image.width), image).mask

    def probabilities(self, image: Image.Image) -> ClassProbabilities:
        """Return the probabilities of an image's classes (ids y x) at the resolution of the prediction, or, where it is
        predicted in windows, at a quarter of it."""
        return self.look([self.picture(as_rgb(image))])[0]

    @property
    def resolution(self) -> Resolution:
        """At which resolution images are predicted."""
        return Resolution(self.max_side, self.window)

    def picture(self, image: Image.Image) -> UInt8[Tensor, "3 h w"]:
        """Return an RGB image at the resolution of the prediction."""
        return as_tensor(picture(image, self.resolution))

    def look(self, pictures: Sequence[UInt8[Tensor, "3 h w"]]) -> list[ClassProbabilities]:
        """Return the probabilities of the classes (ids y x) in pictures of one size (see `picture`)."""
        if self._windowed(*pictures[0].shape[1:]):
            return [in_windows(self._see, picture, self.window, self.batch).numpy() for picture in pictures]
        return list(self._see(torch.stack(list(pictures))).cpu().numpy())

    def decided(self, seen: ClassProbabilities, size: tuple[int, int], image: Image.Image | None = None) -> Decided:
        """Return the mask of an image of (height, width) `size` from its probabilities; the dense CRF needs the RGB
        image."""
        if self.crf is None:
            return label_pixels(candidates(seen), size, len(self.classes))
        assert image is not None, "the dense CRF needs the image"
        return label_pixels(refine(seen, image, size, self.crf), size, len(self.classes))

    def _windowed(self, height: int, width: int) -> bool:
        return max(height, width) > self.window

    def _see(self, pictures: UInt8[Tensor, "b 3 h w"]) -> Float32[Tensor, "b ids h w"]:
        # As bytes they are a quarter of what goes to the device.
        pixels = pictures.to(next(self.network.parameters()).device).float().div_(255)
        return probabilities(self.network, pixels, self.scales, self.flip, self.precision)


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
        run.require_unchanged("segment", folder / "network.safetensors", folder / "network.json")
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

    def build(about: dict[str, Any]) -> Segmenter:
        # Networks older than the choice are DeepLabV3+.
        name = about.get("network", "deeplabv3plus")
        try:
            return empty_segmenter(about["encoder"], len(about["classes"]), about["stride"], name)
        except (RuntimeError, TypeError, ValueError) as error:
            raise RunError(f"{file}: the network it describes cannot be built here ({error})") from error

    def expected(about: dict[str, Any]) -> dict[str, Tensor]:
        check_about(about, file)
        check_twin(folder / "network.json", about)
        # Without memory first: it may describe an enormous network, and hold another one.
        with torch.device("meta"):
            return build(about).state_dict()

    tensors, about = load_tensors(file, expected)
    network = build(about)
    restore(network, tensors, file)
    network = network.to(choose_device(device), memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    classes, scales, side = tuple(about["classes"]), tuple(about["predict_scales"]), about["max_side"]
    return Predictor(network, classes, scales, about["predict_flip"], side, window=side)


def adapted(predictor: Predictor, options: PredictOptions) -> Predictor:
    """Return a predictor that predicts as the options say; what they leave open stays as the network came."""
    device = next(predictor.network.parameters()).device.type
    asked = {name: getattr(options, name) for name in ("scales", "flip", "max_side", "window")}
    return dataclasses.replace(
        predictor,
        **{name: value for name, value in asked.items() if value is not None},
        batch=adapted_batch(options, device),
        precision=options.precision,
        crf=CrfSettings() if options.crf else None,
    )


def adapted_batch(options: PredictOptions, device: str) -> int:
    """Return how many images go through the network together on a device."""
    return options.batch or (1 if device == "cpu" else GPU_BATCH)
