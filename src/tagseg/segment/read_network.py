"""Read a trained segmentation network into PyTorch."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tagseg.errors import RunError
from tagseg.networks.segmenters import Segmenter, empty_segmenter
from tagseg.run.folder import EXPORTED_WEIGHTS, TRAINED_WEIGHTS
from tagseg.segment.about import check_about, check_twin
from tagseg.segment.predictor import Predictor
from tagseg.training.checkpoint import load_tensors, restore
from tagseg.training.device import choose_device

_INNER = "net."
"""What the names of a segmenter's tensors begin with: all of them belong to the network that it wraps."""


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
            ids = len(told.classes)
            return empty_segmenter(told.encoder, ids, told.stride, told.network, told.grid, told.decoder_channels)
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
