import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as coco_rle

from tagseg.export.outlines import outlines, polygon, simplify
from tagseg.export.regions import regions

PIXELS = arrays.arrays(
    np.bool_, st.tuples(st.integers(1, 10), st.integers(1, 10)), elements=st.integers(0, 3).map(bool)
)


def parts(pixels: np.ndarray) -> list[np.ndarray]:
    """Return the pixels of each connected part, at the mask's size."""
    found = []
    for region in regions(pixels.astype(np.uint8)):
        for part in region.parts():
            whole = np.zeros(pixels.shape, bool)
            left, top, width, height = part.box()
            whole[top : top + height, left : left + width] = part.pixels()
            found.append(whole)
    return found


def filled(points: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return what OpenCV's fillPoly draws: the pixels on the lines, and those inside by the even-odd rule.

    Lines must be horizontal, vertical or diagonal, as in exact outlines.
    """
    drawn = np.zeros(shape, bool)
    ends = np.roll(points, -1, axis=0)
    for (x0, y0), (x1, y1) in zip(points.tolist(), ends.tolist(), strict=True):
        steps = int(max(abs(x1 - x0), abs(y1 - y0)))
        assert x0 == x1 or y0 == y1 or abs(x1 - x0) == abs(y1 - y0)
        for i in range(steps + 1):
            drawn[int(y0 + np.sign(y1 - y0) * i), int(x0 + np.sign(x1 - x0) * i)] = True
    for y, x in np.argwhere(~drawn):
        crossed = 0
        for (x0, y0), (x1, y1) in zip(points.tolist(), ends.tolist(), strict=True):
            if (y0 <= y < y1) or (y1 <= y < y0):
                crossed += x0 + (y - y0) / (y1 - y0) * (x1 - x0) > x
        drawn[y, x] = crossed % 2
    return drawn


def from_line(point: np.ndarray, line: np.ndarray) -> float:
    """Return a point's distance from a closed line."""
    distances = []
    for one, two in zip(line.astype(float), np.roll(line, -1, axis=0).astype(float), strict=True):
        along = two - one
        share = np.clip((point - one) @ along / max(along @ along, 1e-12), 0, 1)
        distances.append(float(np.linalg.norm(point - one - share * along)))
    return min(distances)


@settings(max_examples=40)
@given(PIXELS)
def test_exact_outlines_decode_to_the_same_pixels(pixels: np.ndarray) -> None:
    for part in parts(pixels):
        points = polygon(part)
        code = coco_rle.merge(coco_rle.frPyObjects([points.ravel().tolist()], *part.shape))
        assert np.array_equal(np.asarray(coco_rle.decode(code)).astype(bool), part)


@settings(max_examples=40)
@given(PIXELS)
def test_lines_through_pixels_fill_to_the_same_pixels(pixels: np.ndarray) -> None:
    for part in parts(pixels):
        assert np.array_equal(filled(polygon(part, 0.0, "centres"), part.shape), part)


def test_by_hand() -> None:
    pixels = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]], bool)
    outer, hole = outlines(pixels)
    assert {tuple(corner) for corner in outer.tolist()} == {(0, 0), (3, 0), (3, 3), (0, 3)}
    assert {tuple(corner) for corner in hole.tolist()} == {(1, 1), (2, 1), (2, 2), (1, 2)}
    # Up from the hole's first corner to the outline, around, and back.
    walk = [tuple(corner) for corner in polygon(pixels).tolist()]
    assert walk.count((1.0, 0.0)) == 2 and walk.count((1.0, 1.0)) == 2 and len(walk) == 4 + 4 + 1 + 2
    assert polygon(np.ones((1, 1), bool), 0.0, "centres").tolist() == [[0, 0]]


@settings(max_examples=40)
@given(PIXELS, st.sampled_from([0.5, 1.0, 3.0]))
def test_no_corner_moves_by_more_than_the_tolerance(pixels: np.ndarray, tolerance: float) -> None:
    for part in parts(pixels):
        for ring in outlines(part):
            simple = simplify(ring, tolerance)
            assert 3 <= len(simple) <= len(ring)
            assert {tuple(corner) for corner in simple.tolist()} <= {tuple(corner) for corner in ring.tolist()}
            assert max(from_line(corner, simple) for corner in ring) <= tolerance + 1e-6
        assert np.isfinite(polygon(part, tolerance)).all()


def test_a_staircase_becomes_a_slope() -> None:
    pixels = np.tri(20, dtype=bool)
    assert len(outlines(pixels)[0]) == 42
    assert len(simplify(outlines(pixels)[0], 1.0)) <= 5
    assert len(simplify(outlines(pixels)[0], 0.0)) == 42
