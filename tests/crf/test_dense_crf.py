"""recorded/crf.npz holds the results of pydensecrf2 1.1 (the authors' own C++ code, wrapped in Cython) for the cases
drawn below:

pip install pydensecrf2 && python tests/crf/test_dense_crf.py
"""

import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float32, UInt8

from tagseg.crf.compiled import jit
from tagseg.crf.dense_crf import dense_crf, kernel_features
from tagseg.crf.lattice import SMALLEST, build_lattices, run_here
from tagseg.crf.torch_crf import torch_filtered, torch_lattice
from tagseg.settings.crf import CrfSettings

FILE = Path(__file__).parent / "recorded" / "crf.npz"

CASES = {
    "two labels, smooth": (2, 0, 3.0, 80.0, 13.0),
    "two labels, noisy": (2, 60, 3.0, 80.0, 13.0),
    "four labels": (4, 20, 2.0, 30.0, 20.0),
    "twenty-one labels": (21, 20, 3.0, 50.0, 13.0),
}
"""Labels, noise in grey levels, gaussian sxy, bilateral sxy, bilateral srgb; weights 3 and 10, ten steps."""


def picture(noise: float) -> UInt8[np.ndarray, "32 40 3"]:
    """Return a picture of a disc on a slope, with noise."""
    rows, columns = np.mgrid[:32, :40]
    inside = (rows - 15) ** 2 + (columns - 18) ** 2 < 90
    colours = np.where(inside[..., None], [200, 80, 60], np.stack([90 + 2 * columns, 120 - rows, 60 + rows], -1))
    noisy = colours + np.random.default_rng(1).normal(0, noise or 1e-9, colours.shape)
    return np.clip(noisy, 0, 255).round().astype(np.uint8)


def start(labels: int) -> Float32[np.ndarray, "labels 32 40"]:
    """Return blocky probabilities of labels."""
    rough = np.random.default_rng(labels).random((labels, 8, 10)) ** 3 + 0.05
    large = np.kron(rough, np.ones((1, 4, 4)))
    return (large / large.sum(0)).astype(np.float32)


def by_pydensecrf(
    probabilities: Float32[np.ndarray, "l h w"],
    image: UInt8[np.ndarray, "h w 3"],
    gaussian_sxy: float,
    bilateral_sxy: float,
    bilateral_srgb: float,
) -> Float32[np.ndarray, "l h w"]:
    """Return the result of pydensecrf."""
    from pydensecrf.densecrf import DenseCRF2D

    labels, height, width = probabilities.shape
    crf = DenseCRF2D(width, height, labels)
    crf.setUnaryEnergy(np.ascontiguousarray(-np.log(probabilities).reshape(labels, -1)))
    crf.addPairwiseGaussian(sxy=gaussian_sxy, compat=3)
    crf.addPairwiseBilateral(sxy=bilateral_sxy, srgb=bilateral_srgb, rgbim=image.copy(), compat=10)
    return np.array(crf.inference(10), np.float32).reshape(labels, height, width)


def crf(case: str) -> CrfSettings:
    _, _, gaussian_sxy, bilateral_sxy, bilateral_srgb = CASES[case]
    return CrfSettings(10, gaussian_sxy, 3.0, bilateral_sxy, bilateral_srgb, 10.0)


def refine(
    kind: str, probabilities: np.ndarray, image: np.ndarray, options: CrfSettings, threads: int = 2
) -> np.ndarray:
    """Return the result of the Numba or of the PyTorch implementation."""
    if kind == "numba":
        return dense_crf(probabilities, image, options, threads)
    return dense_crf(torch.from_numpy(probabilities), torch.from_numpy(image), options).numpy()


def slow_crf(probabilities: np.ndarray, image: np.ndarray, options: CrfSettings) -> np.ndarray:
    """Return the result of mean field inference with exact Gaussians between all pairs of pixels, in double loops."""
    labels, height, width = probabilities.shape
    n = height * width
    kernels = []
    for features, weight in zip(
        kernel_features(image, options), (options.gaussian_compat, options.bilateral_compat), strict=True
    ):
        kernel = np.empty((n, n))
        for i in range(n):
            for j in range(n):
                kernel[i, j] = math.exp(-((features[i].astype(float) - features[j]) ** 2).sum() / 2)
        norm = 1 / np.sqrt(kernel.sum(1))
        kernels.append(weight * norm[:, None] * kernel * norm)
    logs = np.log(np.maximum(probabilities.reshape(labels, n).T.astype(float), SMALLEST))
    q = np.exp(logs) / np.exp(logs).sum(1, keepdims=True)
    for _ in range(options.steps):
        logits = logs + sum(kernel @ q for kernel in kernels)
        q = np.exp(logits - logits.max(1, keepdims=True))
        q /= q.sum(1, keepdims=True)
    return q.T.reshape(labels, height, width)


@pytest.mark.parametrize("kind", ["numba", "torch"])
@pytest.mark.parametrize("case", CASES)
def test_results_match_those_recorded_from_pydensecrf(case: str, kind: str) -> None:
    labels, noise, *_ = CASES[case]
    with np.load(FILE, allow_pickle=False) as file:
        recorded = file[case].astype(np.float32)
    found = refine(kind, start(labels), picture(noise), crf(case))
    assert np.abs(found - recorded).max() < 2e-3
    assert (found.argmax(0) == recorded.argmax(0)).mean() > 0.999
    # The case is not trivial: the labels before inference were different.
    assert (found.argmax(0) != start(labels).argmax(0)).mean() > 0.05


@pytest.mark.parametrize("case", CASES)
def test_results_match_pydensecrf_itself(case: str) -> None:
    pytest.importorskip("pydensecrf.densecrf", reason="pydensecrf2 is not installed (extra: oracle)")
    labels, noise, *rest = CASES[case]
    theirs = by_pydensecrf(start(labels), picture(noise), *rest)
    ours = dense_crf(start(labels), picture(noise), crf(case))
    assert np.abs(ours - theirs).max() < 1e-3 and (ours.argmax(0) == theirs.argmax(0)).all()


@pytest.mark.parametrize("kind", ["numba", "torch"])
def test_the_lattice_approximates_exact_gaussians(kind: str) -> None:
    # The kernel of the lattice is only roughly Gaussian (Adams, Baek and Davis 2010, figure 4), so probabilities near
    # the decision threshold differ; labels hardly do.
    image = picture(10)[8:20, 8:22].copy()
    options = CrfSettings(5, 2.0, 1.0, 6.0, 30.0, 2.0)
    probabilities = start(3)[:, 8:20, 8:22].copy()
    exact = slow_crf(probabilities, image, options)
    found = refine(kind, probabilities, image, options)
    assert np.abs(found - exact).mean() < 0.03 and (found.argmax(0) == exact.argmax(0)).mean() > 0.95
    assert (exact.argmax(0) != probabilities.argmax(0)).mean() > 0.1


@pytest.mark.parametrize("kind", ["numba", "torch"])
def test_one_step_by_hand(kind: str) -> None:
    # Two pixels so far apart in position and colour that each is influenced only by itself: K = 1, so a step adds
    # weight * q.
    image = np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8)
    probabilities = np.array([[[0.6, 0.2]], [[0.4, 0.8]]], np.float32)
    found = refine(kind, probabilities, image, CrfSettings(1, 0.01, 1.5, 0.01, 1.0, 0.5))
    odds = 0.6 / 0.4 * math.exp(2 * (0.6 - 0.4)), 0.2 / 0.8 * math.exp(2 * (0.2 - 0.8))
    assert found[0, 0] == pytest.approx([odd / (1 + odd) for odd in odds], rel=1e-5)


@pytest.mark.parametrize("kind", ["numba", "torch"])
def test_zero_steps_only_normalise(kind: str) -> None:
    found = refine(kind, start(3) * 7, picture(0), CrfSettings(0))
    assert np.allclose(found, start(3), atol=1e-6)


def test_the_lattice_has_weights_that_sum_to_one_and_the_right_neighbours() -> None:
    features = np.random.default_rng(0).normal(0, 2, (500, 5)).astype(np.float32)
    with ThreadPoolExecutor(1) as pool:
        [lattice] = build_lattices([features], run_here, pool)
    theirs = torch_lattice(torch.from_numpy(features))
    assert np.allclose(lattice.weights.sum(1), 1, atol=1e-5) and lattice.weights.min() > -1e-5
    assert np.allclose(lattice.weights, theirs.weights.numpy(), atol=1e-5)
    # Numbered differently, the vertices are the same.
    pairs = set(zip(lattice.corners.ravel().tolist(), theirs.corners.ravel().tolist(), strict=True))
    assert len(pairs) == lattice.size == theirs.neighbours.shape[2]
    name = dict(pairs)
    for j, axis in enumerate(lattice.axes):
        links = {
            (name[int(v)], name[int(w)])
            for first, last in zip(axis.starts[:-1], axis.starts[1:], strict=True)
            for v, w in zip(axis.vertices[first : last - 1], axis.vertices[first + 1 : last], strict=True)
        }
        after = theirs.neighbours[j, 1].tolist()
        assert links == {(v, w) for v, w in enumerate(after) if w < lattice.size} and links


def test_filtering_is_close_to_an_exact_gaussian() -> None:
    features = np.random.default_rng(0).normal(0, 1.0, (300, 2)).astype(np.float32)
    exact = np.exp(-((features[:, None] - features) ** 2).sum(2) / 2)
    lattice = torch_lattice(torch.from_numpy(features))
    found = torch_filtered(lattice, torch.eye(300)).numpy()
    found /= found.sum(1, keepdims=True)
    assert np.corrcoef(found.ravel(), (exact / exact.sum(1, keepdims=True)).ravel())[0, 1] > 0.95


@pytest.mark.parametrize("labels", [1, 2, 3, 4, 5, 8, 9])
def test_any_number_of_labels_gives_the_same_result_as_pytorch(labels: int) -> None:
    options = CrfSettings(4, 3.0, 3.0, 20.0, 13.0, 6.0)
    ours, theirs = (refine(kind, start(labels), picture(30), options) for kind in ("numba", "torch"))
    assert ours.dtype == theirs.dtype == np.float32
    assert np.abs(ours - theirs).max() < 1e-3 and np.allclose(ours.sum(0), 1, atol=1e-5)


@pytest.mark.parametrize("kind", ["numba", "torch"])
@given(size=st.sampled_from([(1, 1), (1, 9), (9, 1), (3, 5)]), labels=st.integers(1, 6), seed=st.integers(0, 9))
@settings(max_examples=15)
def test_labels_may_come_in_any_order(kind: str, size: tuple[int, int], labels: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    probabilities = draw.random((labels, *size), np.float32)
    image = draw.integers(0, 256, (*size, 3), np.uint8)
    order = draw.permutation(labels)
    found = refine(kind, probabilities, image, CrfSettings())
    assert np.isfinite(found).all() and np.allclose(found.sum(0), 1, atol=1e-5)
    assert np.allclose(refine(kind, probabilities[order].copy(), image, CrfSettings()), found[order], atol=1e-4)


@pytest.mark.parametrize("threads", [1, 3, 8])
def test_the_result_does_not_depend_on_the_number_of_threads(threads: int) -> None:
    for labels in (3, 6):
        two = dense_crf(start(labels), picture(20), CrfSettings(), 2)
        assert (dense_crf(start(labels), picture(20), CrfSettings(), threads) == two).all()


def test_an_image_of_one_colour_is_decided_by_the_majority() -> None:
    probabilities = np.full((2, 20, 20), 0.4, np.float32)
    probabilities[1] = 0.6
    probabilities[:, 5:8, 5:8] = probabilities[::-1, 5:8, 5:8]
    found = dense_crf(probabilities, np.full((20, 20, 3), 99, np.uint8), CrfSettings())
    assert (found.argmax(0) == 1).all()


def test_labels_follow_the_edges_of_the_image() -> None:
    image = np.full((24, 24, 3), 30, np.uint8)
    image[:, 12:] = 220
    probabilities = np.full((2, 24, 24), 0.4, np.float32)
    probabilities[0, :, :9], probabilities[1, :, 9:] = 0.6, 0.6  # three columns off
    found = dense_crf(probabilities, image, CrfSettings())
    assert (found.argmax(0)[:, :12] == 0).all() and (found.argmax(0)[:, 12:] == 1).all()


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
@pytest.mark.parametrize("kind", ["numba", "torch"])
def test_invalid_probabilities_are_refused(kind: str, value: float) -> None:
    probabilities = start(2)
    probabilities[1, 3, 4] = value
    with pytest.raises(ValueError, match="negative or not finite"):
        refine(kind, probabilities, picture(0), CrfSettings())


def test_shapes_that_do_not_match_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(2, 32, 40\) and an image of shape \(40, 32, 3\)"):
        dense_crf(start(2), picture(0).transpose(1, 0, 2).copy(), CrfSettings())
    with pytest.raises(ValueError, match="expected"):
        dense_crf(np.zeros((0, 32, 40), np.float32), picture(0), CrfSettings())


@pytest.mark.parametrize(
    ("image", "got"),
    [
        ((picture(0) / 255).astype(np.float32), "ndarray of float32"),
        (picture(0).astype(np.uint16), "ndarray of uint16"),
        (torch.from_numpy(picture(0)), "Tensor of torch.uint8"),
        (picture(0).tolist(), "list of no dtype"),
    ],
    ids=["float", "uint16", "tensor", "list"],
)
def test_an_image_that_is_not_rgb_bytes_is_refused(image: Any, got: str) -> None:
    """As floats from 0 to 1 it would be nearly black, and its colours would have no effect."""
    with pytest.raises(ValueError, match=rf"an image of uint8 .* both as tensors; got ndarray of float32 and {got}"):
        dense_crf(start(2), image, CrfSettings())
    with pytest.raises(ValueError, match=r"got Tensor of torch.float32 and Tensor of torch.float32"):
        dense_crf(torch.from_numpy(start(2)), torch.from_numpy(picture(0)) / 255, CrfSettings())


def test_half_precision_is_refined_like_float32() -> None:
    half = torch.from_numpy(start(2)).half()
    wanted = dense_crf(half.float(), torch.from_numpy(picture(0)), CrfSettings(1))
    assert torch.equal(dense_crf(half, torch.from_numpy(picture(0)), CrfSettings(1)), wanted)


def test_kernels_too_small_for_the_image_are_refused() -> None:
    with pytest.raises(ValueError, match=r"increase crf\.gaussian-sxy"):
        dense_crf(start(2), picture(0), CrfSettings(1, 3.0, 3.0, 0.01, 0.01, 10.0))


def test_functions_are_compiled_where_machine_code_cannot_be_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    import tagseg.crf.compiled as module

    real = module.njit

    def refuse(*args: object, **options: object) -> object:
        if options.get("cache"):
            raise RuntimeError("cannot cache function: no locator available")
        return real(*args, **options)

    monkeypatch.setattr(module, "njit", refuse)
    assert jit(lambda x: x + 1)(2) == 3


def test_the_cpu_version_works_without_pytorch(tmp_path: Path) -> None:
    program = (
        "import sys, numpy as np; from tagseg.crf.dense_crf import dense_crf;"
        "from tagseg.settings.crf import CrfSettings;"
        "dense_crf(np.ones((2, 4, 5), np.float32), np.zeros((4, 5, 3), np.uint8), CrfSettings());"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    FILE.parent.mkdir(exist_ok=True)
    outcomes = {name: by_pydensecrf(start(n), picture(noise), *rest) for name, (n, noise, *rest) in CASES.items()}
    np.savez_compressed(FILE, **{name: outcome.astype(np.float16) for name, outcome in outcomes.items()})
