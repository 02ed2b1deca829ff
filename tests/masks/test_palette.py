import numpy as np
import pytest
from PIL import Image

from tagseg.masks.palette import VOID_COLOUR, class_colours, png_palette


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
