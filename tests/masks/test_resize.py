import numpy as np

from tagseg.masks.resize import at_size, enlarge
from tagseg.settings.crf import CrfSettings


def test_maps_are_enlarged_to_the_size_of_the_image() -> None:
    maps = np.zeros((2, 3, 4), np.uint8)
    maps[0, :, 2:] = 255
    large = enlarge(maps, (12, 16))
    assert large.shape == (2, 12, 16) and large[1].max() == 0
    assert large[0, 5, 0] == 0 and large[0, 5, 15] == 1 and 0 < large[0, 5, 7] < large[0, 5, 8] < 1
    assert enlarge(maps, (1, 7)).shape == (2, 1, 7)
    assert enlarge(np.zeros((0, 3, 4), np.uint8), (5, 6)).shape == (0, 5, 6)


def test_the_reach_of_the_kernels_grows_with_the_image() -> None:
    options = CrfSettings(gaussian_sxy=3.0, bilateral_sxy=80.0, bilateral_srgb=13.0)
    assert at_size(options, (500, 375)) == options
    half = at_size(options, (100, 250))
    assert (half.gaussian_sxy, half.bilateral_sxy, half.bilateral_srgb) == (1.5, 40, 13)
