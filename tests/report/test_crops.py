import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tagseg.report.crops import crop_box, crop_region, outline_regions

COLOUR = (255, 0, 0)


def shape_of(height, width, top, bottom, left, right):
    shape = np.zeros((height, width), bool)
    shape[top:bottom, left:right] = True
    return shape


def test_boxes_by_hand():
    # 100 pixels with a margin of 10% on both sides are 120; the width is 4/3 of that.
    assert crop_box(shape_of(300, 400, 100, 200, 150, 250)) == (120, 90, 280, 210)
    # At a corner, the box is shifted into the photo.
    assert crop_box(shape_of(300, 400, 0, 100, 0, 100)) == (0, 0, 160, 120)
    # A small region is shown with its surroundings: 35% of the long side.
    assert crop_box(shape_of(300, 400, 150, 151, 200, 201)) == (130, 98, 270, 203)
    assert crop_box(np.ones((300, 100), bool)) == (0, 0, 100, 300)


@given(st.data(), st.integers(1, 60), st.integers(1, 60))
def test_boxes_contain_the_region_and_are_inside_the_photo(data, height, width):
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    bottom, right = data.draw(st.integers(top + 1, height)), data.draw(st.integers(left + 1, width))
    x0, y0, x1, y1 = crop_box(shape_of(height, width, top, bottom, left, right))
    assert 0 <= x0 <= left and right <= x1 <= width and 0 <= y0 <= top and bottom <= y1 <= height


def test_a_crop_shows_the_region_outlines_it_and_dims_the_rest():
    photo = Image.new("RGB", (400, 300), (200, 180, 160))
    crop = crop_region(photo, shape_of(300, 400, 100, 200, 150, 250), COLOUR)
    assert crop.size == (160, 120)
    pixels = np.asarray(crop).astype(int)
    assert pixels[60, 80].tolist() == [200, 180, 160]  # the middle of the region, box (120, 90) to (280, 210)
    assert (pixels[5, 5] < 100).all(), "outside"
    line = pixels[60, 20:31]  # the region starts 30 pixels from the left
    assert any(r > 200 and g < 90 and b < 90 for r, g, b in line), "the class's colour"
    assert any(min(pixel) > 150 for pixel in line), "white around it"


def test_small_photos_are_enlarged_and_tall_ones_keep_their_proportions():
    assert crop_region(Image.new("RGB", (40, 30)), np.ones((30, 40), bool), COLOUR).size == (160, 120)
    assert crop_region(Image.new("RGB", (30, 90)), np.ones((90, 30), bool), COLOUR).size == (53, 160)


def test_outlines_are_inside_their_regions():
    photo = Image.new("RGB", (200, 100), (100, 100, 100))
    left, right = shape_of(100, 200, 0, 100, 0, 100), shape_of(100, 200, 0, 100, 100, 200)
    pixels = np.asarray(outline_regions(photo, [(left, COLOUR), (right, (0, 0, 255))], 400)).astype(int)
    assert pixels.shape == (100, 200, 3), "not enlarged"
    assert pixels[50, 50].tolist() == pixels[50, 150].tolist() == [100, 100, 100]
    assert pixels[50, 99, 0] > 200 and pixels[50, 99, 2] < 90, "red on the left of the border"
    assert pixels[50, 100, 2] > 200 and pixels[50, 100, 0] < 90, "blue on its right"
    assert pixels[50, 0].tolist() == [100, 100, 100], "none along the photo's edge"
    assert np.asarray(outline_regions(photo, [(left, COLOUR)], 50)).shape == (25, 50, 3)
