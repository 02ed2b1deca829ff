import itertools

import numpy as np
import pytest
from PIL import Image

from tagseg.masks.palette import VOID_COLOUR, class_colours, png_palette, shown_colours


def test_first_colours_are_those_of_pascal_voc():
    # Background, aeroplane, bicycle, bird, boat, bottle, bus, car, cat; and the last, tvmonitor.
    assert class_colours(20)[:9] == [
        (0, 0, 0),
        (128, 0, 0),
        (0, 128, 0),
        (128, 128, 0),
        (0, 0, 128),
        (128, 0, 128),
        (0, 128, 128),
        (128, 128, 128),
        (64, 0, 0),
    ]
    assert class_colours(20)[20] == (0, 64, 128)


def test_every_id_has_its_own_colour():
    assert len(set(class_colours(255))) == 256
    assert class_colours(0) == [(0, 0, 0)]


@pytest.mark.parametrize("n", [-1, 256])
def test_ids_beyond_a_byte_are_refused(n):
    with pytest.raises(ValueError, match=f"got {n}"):
        class_colours(n)


def test_palette_of_a_png_shows_the_class_colours(tmp_path):
    mask = Image.fromarray(np.array([[0, 1, 255]], dtype=np.uint8))
    mask.putpalette(png_palette())
    mask.save(tmp_path / "mask.png")
    shown = np.asarray(Image.open(tmp_path / "mask.png").convert("RGB"))
    assert [tuple(pixel) for pixel in shown[0].tolist()] == [(0, 0, 0), (128, 0, 0), VOID_COLOUR]
    assert len(png_palette()) == 768


def luminance(colour: tuple[float, ...]) -> float:
    """The relative luminance of WCAG 2."""
    linear = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def as_seen(colour: tuple[int, int, int], rows: list[list[float]]) -> np.ndarray:
    """A colour through the eyes of a dichromat: linear RGB times the matrix of Machado et al. (2009), severity 1."""
    linear = np.array([c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour])
    return np.cbrt(np.clip(np.array(rows) @ linear, 0, 1))


def test_every_shown_colour_shows_on_a_black_photograph_and_is_its_own() -> None:
    colours = shown_colours(255)
    assert len(colours) == 256 and len(set(colours)) == 256
    assert all((luminance(colour) + 0.05) / 0.05 >= 3 for colour in colours[1:])


@pytest.mark.parametrize(
    "rows",
    [
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    ],
    ids=["protanopia", "deuteranopia", "tritanopia"],
)
def test_the_first_seven_classes_are_told_apart_by_every_colour_vision(rows: list[list[float]]) -> None:
    seen = [as_seen(colour, rows) for colour in shown_colours(7)[1:]]
    apart = [float(np.abs(a - b).max()) for a, b in itertools.combinations(seen, 2)]
    assert min(apart) > 0.08
