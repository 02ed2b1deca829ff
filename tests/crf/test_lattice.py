import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import tagseg
from tagseg.crf.compiled import jit
from tagseg.crf.dense_crf import cores, threaded_runner
from tagseg.crf.kernels import FEW, MANY, add_slice, exponential
from tagseg.crf.lattice import Lattice, build_lattices, embedding, run_here
from tagseg.crf.mean_field import filtered, normalised


def build(features: np.ndarray) -> Lattice:
    with ThreadPoolExecutor(1) as pool:
        return build_lattices([features.astype(np.float32)], run_here, pool)[0]


def lattice_filter(lattice: Lattice, values: np.ndarray) -> np.ndarray:
    width = FEW if values.shape[1] <= FEW else -(-values.shape[1] // MANY) * MANY
    rows = np.zeros((len(values), width), np.float32)
    rows[:, : values.shape[1]] = values
    buffer = np.empty((lattice.size + lattice.first_half, rows.shape[1]), np.float32)
    out = np.zeros_like(rows)
    add_slice(0, len(values), lattice.corners, lattice.weights, filtered(lattice, rows, buffer, run_here), out)
    return out[:, : values.shape[1]]


def exact_filter(features: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return D K D values over all pairs of points, D = diag(K 1)^(-1/2)."""
    apart = features[:, None].astype(float) - features[None]
    kernel = np.exp(-(apart**2).sum(2) / 2)
    norm = 1 / np.sqrt(kernel.sum(1))
    return norm[:, None] * (kernel @ (norm[:, None] * values))


def picture_features(sxy: float, srgb: float | None) -> np.ndarray:
    """Return the features of a 24 x 30 picture with an edge, a ramp and some noise."""
    rows, columns = np.indices((24, 30)).reshape(2, -1)
    places = np.stack([columns, rows], 1) / sxy
    if srgb is None:
        return places
    grey = 60 + 120 * (columns > 14) + rows
    colours = np.stack([grey, 255 - grey, grey // 2], 1) + np.random.default_rng(0).normal(0, 6, (24 * 30, 3))
    return np.concatenate([places, colours / srgb], 1)


@pytest.mark.parametrize(("sxy", "srgb"), [(3, None), (6, None), (20, 13), (80, 13), (10, 40)])
def test_the_filter_is_close_to_the_exact_gaussian(sxy: float, srgb: float | None) -> None:
    features = picture_features(sxy, srgb)
    lattice = normalised(build(features), 1.0, run_here)
    left = (np.arange(720) % 30 < 12).astype(np.float32)
    values = np.stack([left, 1 - left, np.random.default_rng(1).random(720, np.float32)], 1)
    found, exact = lattice_filter(lattice, values), exact_filter(features, values)
    # Linear splatting and slicing and a blur of three values per axis only approximate a Gaussian. For values 0..1, the
    # mean error is about 0.01. A Gaussian that is a quarter wider or narrower has a larger error.
    assert np.abs(found - exact).mean() < 0.0125 and np.abs(found - exact).max() < 0.12
    for factor in (0.8, 1.25):
        other = exact_filter(features * factor, values)
        assert np.abs(found - exact).mean() < np.abs(found - other).mean()


@pytest.mark.parametrize("d", [1, 2, 3, 5])
def test_weights_are_shares_and_constant_values_stay_constant(d: int) -> None:
    lattice = build(np.random.default_rng(d).normal(0, 3, (200, d)))
    assert lattice.corners.shape == lattice.weights.shape == (200, d + 1)
    assert lattice.corners.max() == lattice.size - 1 and len(lattice.axes) == d + 1
    assert lattice.weights.min() > -1e-5 and np.allclose(lattice.weights.sum(1), 1, atol=1e-5)
    narrow = build(np.zeros((50, d)))
    one = normalised(narrow, 1.0, run_here)
    assert np.allclose(lattice_filter(one, np.full((50, 2), 0.7)), 0.7, atol=1e-5)


def test_the_lattice_on_a_line_by_hand() -> None:
    # In one dimension the vertices are 1 / (2 sqrt(2/3) / sqrt(2)) = sqrt(3) / 2 standard deviations apart. Two steps
    # of the blur (1/2, 1, 1/2), one for each of the two directions of the line, give (1, 4, 6, 4, 1) / 4.
    spacing = 3**0.5 / 2
    lattice = build(np.arange(-20, 21)[:, None] * spacing)
    assert lattice.size in (41, 42)
    values = np.zeros((41, 1))
    values[20] = 1
    found = lattice_filter(lattice, values)[:, 0]
    assert np.allclose(found[18:23], np.array([1, 4, 6, 4, 1]) / 4, atol=1e-3)
    assert np.abs(found[:18]).max() < 1e-3


def test_an_isolated_point_is_influenced_only_by_itself() -> None:
    features = np.array([[0.0, 0.0], [500.0, 0.0], [0.0, 700.0]])
    lattice = normalised(build(features), 1.0, run_here)
    assert np.allclose(lattice_filter(lattice, np.eye(3)), np.eye(3), atol=1e-5)


def test_the_weight_of_a_kernel_multiplies_the_filtered_values() -> None:
    features, values = picture_features(20, 13), np.random.default_rng(0).random((720, 3))
    plain, weighted, off = (lattice_filter(normalised(build(features), w, run_here), values) for w in (1.0, 2.5, 0.0))
    assert np.allclose(weighted, 2.5 * plain, rtol=1e-4) and plain.min() > 0.1 and not off.any()


def test_short_and_long_rows_are_filtered_in_the_same_way() -> None:
    lattice = normalised(build(picture_features(20, 13)), 1.0, run_here)
    values = np.random.default_rng(0).random((720, 9)).astype(np.float32)
    long = lattice_filter(lattice, values)
    for i in range(0, 9, 3):
        assert np.allclose(long[:, i : i + 3], lattice_filter(lattice, values[:, i : i + 3]), atol=1e-6)


def test_threads_do_not_change_the_lattice() -> None:
    features = picture_features(20, 13).astype(np.float32)
    alone = build(features)
    with ThreadPoolExecutor(3) as pool:
        (shared,) = build_lattices([features], threaded_runner(pool, 3), pool)
    for one, other in zip(alone, shared, strict=True):
        if isinstance(one, tuple):
            assert all((x == y).all() for a, b in zip(one, other, strict=True) for x, y in zip(a, b, strict=True))
        else:
            assert np.array_equal(one, other)


def test_too_many_standard_deviations_are_refused() -> None:
    high = np.full(5, 1e6, np.float32)
    with pytest.raises(ValueError, match=r"spans 1e\+06, 1e\+06, .* too many to number; use a smaller image"):
        embedding(np.stack([np.zeros(5, np.float32), high]))


def test_ranges_cover_everything_exactly_once_and_errors_are_raised() -> None:
    seen: list[int] = []
    with ThreadPoolExecutor(2) as pool:
        for size in (0, 1, 2, 7):
            seen.clear()
            threaded_runner(pool, 3)(lambda first, last: seen.extend(range(first, last)), size)
            assert sorted(seen) == list(range(size))

        def fail(first: int, last: int) -> None:
            if first:
                raise OverflowError(f"{first} to {last}")

        with pytest.raises(OverflowError, match="2 to 4"):
            threaded_runner(pool, 2)(fail, 4)
    assert 1 <= cores() <= (os.cpu_count() or 1)


def test_the_exponential_is_that_of_numpy() -> None:
    x = np.linspace(-60, 0, 10_001, dtype=np.float32)[1:]
    found = np.array([exponential(value) for value in x])
    assert np.allclose(found, np.exp(x.astype(float)), rtol=1e-5, atol=0)
    assert [exponential(np.float32(value)) for value in (-60, -61, -1e4, -1e30)] == [0, 0, 0, 0]


def test_kernels_are_cached_on_disk_and_work_where_they_cannot_be(tmp_path: Path) -> None:
    assert all(getattr(kernel, "_cache").cache_path for kernel in (exponential, add_slice))  # noqa: B009
    module = tmp_path / "frozen.py"
    module.write_text("from tagseg.crf.compiled import jit\n\n\n@jit\ndef double(x):\n    return 2 * x\n")
    (tmp_path / "__pycache__").write_text("a file where the folder would be")
    code = "import frozen; print(frozen.double(21), type(frozen.double._cache).__name__)"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
    environment |= {"XDG_CACHE_HOME": str(module), "HOME": str(module), "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(tagseg.__file__).parents[1])])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["42", "NullCache"], done.stderr


def test_jit_compiles_the_function_itself() -> None:
    def add(x: int, y: int) -> int:
        return x + y

    assert jit(add)(1, 2) == 3
