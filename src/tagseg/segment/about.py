"""The description of a segmentation network: network.json, and the metadata of its weights."""

from pathlib import Path
from typing import Annotated, Any

import msgspec

from tagseg.data.records import MAX_CLASSES
from tagseg.errors import RunError
from tagseg.networks.grid import Grid
from tagseg.settings.segment import DECODER_CHANNELS, NetworkName
from tagseg.system.records import Positive, Record, convert_record, read_json
from tagseg.system.untrusted import shown

_MAX_SCALE, _MAX_SIDE = 32, 8192
"""Largest image scale and largest side of a scaled image in pixels: with more, a file could fill the memory."""

ClassName = Annotated[str, msgspec.Meta(min_length=1, max_length=1000)]

Scale = Annotated[float, msgspec.Meta(ge=0.01, le=_MAX_SCALE)]


class Licence(msgspec.Struct, frozen=True):
    """The licence of pretrained weights: its id in timm (None if unknown or not applicable), and a text about it."""

    id: str | None
    text: str


class SegmenterAbout(Record, frozen=True, kw_only=True):
    """What builds a segmentation network and predicts with it; it may come from an untrusted source.

    classes: `background` and the classes. network: networks saved before there was a choice are DeepLabV3+.
    encoder: the name of a timm model. cornered, shift: the `Grid` of the encoder's last map; `cornered` is None in
    networks saved before it was measured, and for UPerNet. decoder_channels: those of the decoder, if there is one.
    predict_scales, predict_flip, max_side: how to predict (see `SegmentSettings`).
    """

    network: NetworkName = "deeplabv3plus"
    classes: Annotated[tuple[ClassName, ...], msgspec.Meta(min_length=2, max_length=MAX_CLASSES + 1)]
    encoder: Annotated[str, msgspec.Meta(min_length=1, max_length=200)]
    stride: Positive
    predict_scales: Annotated[tuple[Scale, ...], msgspec.Meta(min_length=1, max_length=100)]
    predict_flip: bool
    max_side: Positive
    cornered: bool | None = None
    shift: Annotated[float, msgspec.Meta(ge=-2, le=2)] = 0.0
    decoder_channels: Annotated[int, msgspec.Meta(ge=1, le=4096)] = DECODER_CHANNELS

    def __post_init__(self) -> None:
        if self.classes[0] != "background":
            raise ValueError(f"classes begin with {shown(self.classes[0])}, expected background")
        if self.stride not in (8, 16, 32):
            raise ValueError(f"stride is {self.stride}, expected 8, 16 or 32")
        if max(self.predict_scales) * self.max_side > _MAX_SIDE:
            raise ValueError(
                f"max_side {self.max_side} at scale {max(self.predict_scales):g} is too large, expected at most "
                f"{_MAX_SIDE} pixels"
            )

    @property
    def grid(self) -> Grid | None:
        """How the cells of the encoder's last map lie."""
        return None if self.cornered is None else Grid(self.cornered, self.shift)


class ExportedAbout(SegmenterAbout, frozen=True, kw_only=True):
    """The description of an exported network: also the versions that exported it and the licence of its weights."""

    tagseg: str
    torch: str
    licence: Licence


def check_about(about: object, source: Path) -> SegmenterAbout:
    """Return the description that a network's metadata hold.

    Raises:
        RunError: naming `source`, the place in it, what was found and what was expected.
    """
    if not isinstance(about, dict) or not about:
        raise RunError(f"{source}: has no description of a segmentation network of tagseg")
    try:
        return convert_record(about, SegmenterAbout)
    except ValueError as error:
        raise RunError(f"{source}: does not describe a segmentation network of tagseg ({error})") from error


def check_twin(file: Path, about: dict[str, Any], weights: str = "network.safetensors") -> None:
    """Check that network.json, if it exists, agrees with the description inside the file of `weights` beside it.

    The description inside the weights is used. A file that differs was edited without effect, or belongs to other
    weights.

    Raises:
        RunError: naming the file and what differs.
    """
    try:
        twin = read_json(file)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise RunError(f"{file}: damaged ({error})") from error
    if not isinstance(twin, dict):
        raise RunError(f"{file}: damaged (expected an object)")
    for name, value in about.items():
        if name not in twin or twin[name] != value:
            found = shown(twin[name]) if name in twin else "missing"
            raise RunError(
                f"{file}: {name} is {found}, but {weights} in the same folder has {shown(value)}, which is used"
            )
