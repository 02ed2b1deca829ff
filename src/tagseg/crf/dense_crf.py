"""The dense CRF, which connects every pixel to all pixels that are near or similar (Kraehenbuehl and Koltun 2011)."""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, TypeVar, cast

import numpy as np
from jaxtyping import Float32, UInt8

from tagseg.crf.lattice import SMALLEST, build_lattices
from tagseg.crf.mean_field import mean_field
from tagseg.settings.crf import CrfSettings
from tagseg.system.process import cores

Array = TypeVar("Array", bound=Any)
"""A NumPy array or a PyTorch tensor."""


def dense_crf(
    probabilities: Array, image: Array, settings: CrfSettings = CrfSettings(), threads: int | None = None
) -> Array:
    """Return the probabilities of an image's labels after mean field inference in a fully connected CRF.

    The energy of a labelling is the sum of `-log probabilities`, plus `gaussian_compat g + bilateral_compat b` for
    every pair of pixels whose labels differ, where g is a Gaussian kernel of the positions of the two pixels and b one
    of their positions and colours (Kraehenbuehl and Koltun 2011, eqs. 1 to 3, normalised symmetrically as in the
    authors' code). The kernels are filters on a permutohedral lattice (Adams, Baek and Davis 2010), so time and memory
    are proportional to pixels x labels. Both sxy are in pixels of this image.

    Args:
        probabilities: float32 `l h w`, of each label at each pixel, 0 or more; they need not sum to 1. An array is
            processed on the CPU with Numba, a PyTorch tensor on its own device with PyTorch; the result is of the same
            type.
        image: uint8 `h w 3`, RGB; an array or a tensor like the probabilities.
        settings: reach, weights and steps; with 0 steps the probabilities are only normalised.
        threads: number of threads for arrays; by default one per core available to this process. The result does not
            depend on it.

    Raises:
        ValueError: when the sizes differ, the image is not uint8, a probability is negative or not finite, or the
            kernels are too small for the image.

    >>> image = np.zeros((20, 30, 3), np.uint8)
    >>> image[:, 15:] = 255  # an edge in the middle
    >>> likely = np.where(np.arange(30) < 12, 0.8, 0.4).astype(np.float32)  # the boundary is too far left
    >>> probabilities = np.stack([np.tile(likely, (20, 1)), np.tile(1 - likely, (20, 1))])
    >>> dense_crf(probabilities, image).argmax(0).sum(1).tolist() == 20 * [15]
    True
    """
    kinds = [f"{type(given).__name__} of {getattr(given, 'dtype', 'no dtype')}" for given in (probabilities, image)]
    arrays = [isinstance(given, np.ndarray) for given in (probabilities, image)]
    if arrays[0] != arrays[1] or not kinds[1].endswith(("of uint8", "torch.uint8")) or kinds[0].endswith("no dtype"):
        raise ValueError(
            "dense CRF: expected probabilities and an image of uint8 (RGB, 0 to 255), both as arrays or both as "
            f"tensors; got {kinds[0]} and {kinds[1]}. Multiply an image with values from 0 to 1 by 255 and round it"
        )
    shapes = tuple(probabilities.shape), tuple(image.shape)
    if len(shapes[0]) != 3 or shapes[1] != (*shapes[0][1:], 3) or 0 in shapes[0]:
        raise ValueError(
            "dense CRF: expected probabilities of shape (labels, height, width) and an image of shape (height, width, "
            f"3); got probabilities of shape {shapes[0]} and an image of shape {shapes[1]}"
        )
    # Also false for NaN.
    if not ((probabilities >= 0) & (probabilities < math.inf)).all():
        raise ValueError("dense CRF: probabilities must be 0 or more; got one that is negative or not finite")
    if isinstance(probabilities, np.ndarray):
        return cast(Array, _on_cpu(probabilities, image, settings, threads or cores()))
    # The workers that make masks never import PyTorch, which takes a second and 200 MB.
    from tagseg.crf.torch_crf import on_tensors

    return cast(Array, on_tensors(probabilities.float(), image, settings))


def _on_cpu(
    probabilities: Float32[np.ndarray, "l h w"], image: UInt8[np.ndarray, "h w 3"], settings: CrfSettings, threads: int
) -> Float32[np.ndarray, "l h w"]:
    labels, height, width = probabilities.shape
    logs = np.log(np.maximum(probabilities.reshape(labels, -1).T, np.float32(SMALLEST)))
    with ThreadPoolExecutor(threads) as pool:
        run = threaded_runner(pool, threads)
        lattices = build_lattices(kernel_features(image, settings), run, pool)
        weights = settings.gaussian_compat, settings.bilateral_compat
        refined = mean_field(logs, list(zip(lattices, weights, strict=True)), settings.steps, run)
    return np.ascontiguousarray(refined.T).reshape(labels, height, width)


def kernel_features(
    image: UInt8[np.ndarray, "h w 3"], settings: CrfSettings
) -> tuple[Float32[np.ndarray, "n 2"], Float32[np.ndarray, "n 5"]]:
    """Return the features of the Gaussian and of the bilateral kernel, in units of their standard deviations."""
    height, width = image.shape[:2]
    rows, columns = np.indices((height, width), np.float32).reshape(2, -1)
    positions = np.stack([columns, rows], axis=1)
    colours = image.reshape(-1, 3).astype(np.float32) / np.float32(settings.bilateral_srgb)
    near = positions / np.float32(settings.gaussian_sxy)
    return near, np.concatenate([positions / np.float32(settings.bilateral_sxy), colours], axis=1)


def threaded_runner(pool: ThreadPoolExecutor, threads: int) -> Callable[..., None]:
    """Return a `Runner` that splits the work into as many ranges as there are threads, one of them in this thread."""

    def run(kernel: Callable[..., None], size: int, *arrays: Any) -> None:
        step = max(-(-size // threads), 1)
        others = [pool.submit(kernel, start, min(start + step, size), *arrays) for start in range(step, size, step)]
        kernel(0, min(step, size), *arrays)
        wait(others)
        for other in others:
            other.result()

    return run
