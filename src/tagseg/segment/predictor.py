"""A trained segmentation network, loaded from a run or an exported folder and ready to predict."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float32, UInt8
from PIL import Image
from torch import Tensor

from tagseg.data.images import AnyImage, any_image
from tagseg.errors import RunError
from tagseg.networks.segmenters import Segmenter, empty_segmenter
from tagseg.run.folder import EXPORTED_WEIGHTS, TRAINED_WEIGHTS, Run, network_folder
from tagseg.run.hub import HubNetwork, fetch_network, is_hub_address, parse_hub_address
from tagseg.segment.about import check_about, check_twin
from tagseg.segment.infer import ClassProbabilities, as_tensor, probabilities, windowed_probabilities
from tagseg.segment.label_pixels import Decided, label_pixels, likely_candidates, refine
from tagseg.segment.prediction import Prediction
from tagseg.segment.resolution import Resolution, resize_to_picture
from tagseg.settings.crf import CrfSettings
from tagseg.settings.predict import Precision, PredictOptions
from tagseg.training.checkpoint import load_tensors, restore
from tagseg.training.device import choose_device

DEFAULT_GPU_BATCH = 8
"""Images that go through the network together on a GPU by default."""


_INNER = "net."
"""What the names of a segmenter's tensors begin with: all of them belong to the network that it wraps."""


@dataclass(frozen=True)
class Predictor:
    """A trained segmentation network, ready to predict; class id i is `classes[i]`.

    Probabilities are averaged over `scales` and, with `flip`, the mirrored image. Larger images are reduced to a long
    side of `max_side` pixels (0: never); if that exceeds `window`, they are predicted in windows of this side, `batch`
    at a time. `precision` is the number format of the forward pass. `crf` refines masks, if it is given.
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

    def __call__(self, image: AnyImage) -> Prediction:
        """Return the prediction for an image: a file, a Pillow image or an array, all with the same result.

        Files and Pillow images are turned upright by their EXIF orientation, as by `tagseg predict`. An array is uint8,
        `h w 3` in RGB, `h w 4` with alpha, or grey `h w`.

        Raises:
            DataError: when a file cannot be read, or an array is not such an image.
        """
        rgb = any_image(image)
        decided = self.decided(self.look([self.picture(rgb)])[0], (rgb.height, rgb.width), rgb)
        return Prediction(rgb, decided.mask, self.classes, decided.area, decided.confidence)

    def probabilities(self, image: AnyImage) -> ClassProbabilities:
        """Return the class probabilities of an image (ids y x), at the resolution of the prediction, or at a quarter of
        it if the image is predicted in windows.

        Raises:
            DataError: as for a call.
        """
        return self.look([self.picture(any_image(image))])[0]

    @property
    def resolution(self) -> Resolution:
        """The resolution at which images are predicted."""
        return Resolution(self.max_side, self.window)

    def picture(self, image: Image.Image) -> UInt8[Tensor, "3 h w"]:
        """Return an RGB image at the resolution of the prediction."""
        return as_tensor(resize_to_picture(image, self.resolution))

    def look(self, pictures: Sequence[UInt8[Tensor, "3 h w"]]) -> list[ClassProbabilities]:
        """Return the class probabilities (ids y x) of pictures of one size (see `picture`)."""
        if self._windowed(*pictures[0].shape[1:]):
            return [
                windowed_probabilities(self._predict, picture, self.window, self.batch).numpy() for picture in pictures
            ]
        return list(self._predict(torch.stack(list(pictures))).cpu().numpy())

    def decided(self, seen: ClassProbabilities, size: tuple[int, int], image: Image.Image | None = None) -> Decided:
        """Return the mask of an image of (height, width) `size` from its probabilities `seen`; the dense CRF needs the
        RGB image."""
        if self.crf is None:
            return label_pixels(likely_candidates(seen), size, len(self.classes))
        assert image is not None, "the dense CRF needs the image"
        return label_pixels(refine(seen, image, size, self.crf), size, len(self.classes))

    def _windowed(self, height: int, width: int) -> bool:
        return max(height, width) > self.window

    def _predict(self, pictures: UInt8[Tensor, "b 3 h w"]) -> Float32[Tensor, "b ids h w"]:
        # Sent to the device as bytes, a quarter of the size of floats.
        pixels = pictures.to(next(self.network.parameters()).device).float().div_(255)
        return probabilities(self.network, pixels, self.scales, self.flip, self.precision)


def load(path: str | Path, device: str = "auto") -> Predictor:
    """Load a segmentation network, ready to predict; it gives the same output in every process on one machine.

    Args:
        path: a run folder, its segmenter folder, a folder written by `tagseg export-model`, or the address of a network
            on the Hugging Face Hub, hf://owner/name or hf://owner/name@revision (see `fetch_network`).
        device: as `--device`.

    Raises:
        RunError: if there is no trained segmenter, its files are damaged or do not describe one, or the Hub cannot be
            reached.
        ValueError: if the device is not available.
    """
    if is_hub_address(path):
        return _load_from_hub(parse_hub_address(path), device)
    folder, run = network_folder(Path(path)), Run(Path(path))
    if run.manifest_file.exists():
        run.require_unchanged("segment", folder / "network.safetensors", folder / "network.json")
    try:
        return read_predictor(folder, device)
    except RunError as error:
        raise RunError(
            f"{error}. Copy the folder again, or recreate it: `tagseg segment RUN --force`, then, if it was exported, "
            "`tagseg export-model RUN --out DIR`"
        ) from error


def _load_from_hub(network: HubNetwork, device: str) -> Predictor:
    folder = fetch_network(network, check_about)
    try:
        return read_predictor(folder, device)
    except RunError as error:
        raise RunError(
            f"{network}: {error}. If the download was damaged, delete this folder and load the network again: "
            f"{folder.parents[1]}"
        ) from error


def read_predictor(folder: Path, device: str = "auto") -> Predictor:
    """Load a segmentation network from the folder that its training wrote.

    Raises:
        RunError: if its files are damaged, or do not describe a segmentation network of tagseg.
        ValueError: if the device is not available.
    """
    file = folder / TRAINED_WEIGHTS
    if exported := not file.is_file() and (folder / EXPORTED_WEIGHTS).is_file():
        file = folder / EXPORTED_WEIGHTS

    def build(about: dict[str, Any]) -> Segmenter:
        told = check_about(about, file)
        try:
            return empty_segmenter(told.encoder, len(told.classes), told.stride, told.network)
        except (RuntimeError, TypeError, ValueError) as error:
            raise RunError(f"{file}: the network it describes cannot be built here ({error})") from error

    def expected(about: dict[str, Any]) -> dict[str, Tensor]:
        check_about(about, file)
        check_twin(folder / "network.json", about, file.name)
        # Built without memory first: the description may be of an enormous network that the file does not contain.
        with torch.device("meta"):
            network = build(about)
        return exported_tensors(network) if exported else network.state_dict()

    tensors, about = load_tensors(file, expected)
    network = build(about)
    if exported:
        tensors = {f"{_INNER}{name}": tensor for name, tensor in tensors.items()}
    restore(network, tensors, file)
    network = network.to(choose_device(device), memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    told = check_about(about, file)
    return Predictor(network, told.classes, told.predict_scales, told.predict_flip, told.max_side, window=told.max_side)


def exported_tensors(network: Segmenter) -> dict[str, Tensor]:
    """Return a network's tensors by the names that they have in an exported folder: those of the library that the
    network is from."""
    return {name.removeprefix(_INNER): tensor for name, tensor in network.state_dict().items()}


def configure(predictor: Predictor, options: PredictOptions) -> Predictor:
    """Return a predictor that follows the options; what they leave open stays as the network was saved."""
    device = next(predictor.network.parameters()).device.type
    chosen = {name: getattr(options, name) for name in ("scales", "flip", "max_side", "window")}
    return dataclasses.replace(
        predictor,
        **{name: value for name, value in chosen.items() if value is not None},
        batch=batch_size(options.batch, device),
        precision=options.precision,
        crf=CrfSettings() if options.crf else None,
    )


def batch_size(batch: int, device: str) -> int:
    """Return how many images go through the network together on a device: `batch`, or the device's default if it is
    0."""
    return batch or (1 if device == "cpu" else DEFAULT_GPU_BATCH)
