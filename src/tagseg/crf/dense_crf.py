"""The dense CRF, which ties every pixel to every other that is near or alike (Kraehenbuehl and Koltun 2011)."""

import math
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, TypeVar, cast

import numpy as np
from jaxtyping import Float32, UInt8

from tagseg.crf.lattice import SMALLEST, build_lattices
from tagseg.crf.mean_field import mean_field
from tagseg.settings.crf import CrfSettings
from tagseg.system.process import cores
from tagseg.system.progress import map_ahead

Array = TypeVar("Array", bound=Any)
"""A NumPy array or a PyTorch tensor."""


def dense_crf(
    probabilities: Array, image: Array, settings: CrfSettings = CrfSettings(), threads: int | None = None
) -> Array:
    """Return the probabilities of an image's labels after mean field inference in a fully connected CRF.

    The energy of a labelling is the sum of `-log probabilities` and, over all pairs of pixels whose labels differ, of
    `gaussian_compat g + bilateral_compat b`, with Gaussian kernels g of the two pixels' places and b of places and
    colours (Kraehenbuehl and Koltun 2011, eqs. 1 to 3, normalised symmetrically as in the authors' code). The kernels
    are filters on a permutohedral lattice (Adams, Baek and Davis 2010), so that time and memory grow with pixels x
    labels. Both sxy are in pixels of this image.

    Args:
        probabilities: float32 `l h w`, of each label at each pixel, 0 or more; they need not sum to 1. An array is
            worked on by Numba on the CPU; a PyTorch tensor by PyTorch where it lies, and a tensor comes back.
        image: uint8 `h w 3`, RGB; an array or a tensor as the probabilities.
        settings: reach, weights and steps; with 0 steps probabilities are merely normalised.
        threads: how many to use for arrays; by default one for each core this process may run on. The result is the
            same with any number.

    Raises:
        ValueError: when the sizes differ, a probability is negative or not finite, or the kernels are too small for
            the image.

    >>> image = np.zeros((20, 30, 3), np.uint8)
    >>> image[:, 15:] = 255  # an edge in the middle
    >>> likely = np.where(np.arange(30) < 12, 0.8, 0.4).astype(np.float32)  # found too far left
    >>> probabilities = np.stack([np.tile(likely, (20, 1)), np.tile(1 - likely, (20, 1))])
    >>> dense_crf(probabilities, image).argmax(0).sum(1).tolist() == 20 * [15]
    True
    """
    shapes = tuple(probabilities.shape), tuple(image.shape)
    if len(shapes[0]) != 3 or shapes[1] != (*shapes[0][1:], 3) or 0 in shapes[0]:
        raise ValueError(
            f"dense CRF: probabilities of shape {shapes[0]} and an image of shape {shapes[1]}, expected (labels, "
            "height, width) and (height, width, 3)"
        )
    # False for NaN too.
    if not ((probabilities >= 0) & (probabilities < math.inf)).all():
        raise ValueError("dense CRF: got a probability that is negative or not finite, expected 0 or more")
    if isinstance(probabilities, np.ndarray):
        return cast(Array, _on_cpu(probabilities, image, settings, threads or cores()))
    # The workers that make masks never import PyTorch: it takes a second and 200 MB.
    from tagseg.crf.torch_crf import on_tensors

    return cast(Array, on_tensors(probabilities, image, settings))


def _on_cpu(
    probabilities: Float32[np.ndarray, "l h w"], image: UInt8[np.ndarray, "h w 3"], settings: CrfSettings, threads: int
) -> Float32[np.ndarray, "l h w"]:
    labels, height, width = probabilities.shape
    logs = np.log(np.maximum(probabilities.reshape(labels, -1).T, np.float32(SMALLEST)))
    with ThreadPoolExecutor(threads) as pool:
        run = shared_among(pool, threads)
        lattices = build_lattices(kernel_features(image, settings), run, pool)
        weights = settings.gaussian_compat, settings.bilateral_compat
        refined = mean_field(logs, list(zip(lattices, weights, strict=True)), settings.steps, run)
    return np.ascontiguousarray(refined.T).reshape(labels, height, width)


def dense_crfs(
    images: Iterable[tuple[Float32[np.ndarray, "..."], UInt8[np.ndarray, "..."]]],
    settings: CrfSettings,
    threads: int | None = None,
) -> Iterator[Float32[np.ndarray, "..."]]:
    """Yield the refined probabilities of many images in their order, as `dense_crf` does, one image a thread.

    No more images are taken than there are threads, and one.

    Raises:
        ValueError: as `dense_crf`.
    """

    def refine(pair: tuple[Float32[np.ndarray, "..."], UInt8[np.ndarray, "..."]]) -> Float32[np.ndarray, "..."]:
        return dense_crf(*pair, settings=settings, threads=1)

    yield from map_ahead(images, refine, threads or cores())


def kernel_features(
    image: UInt8[np.ndarray, "h w 3"], settings: CrfSettings
) -> tuple[Float32[np.ndarray, "n 2"], Float32[np.ndarray, "n 5"]]:
    """Return the features of the Gaussian and of the bilateral kernel, in units of their standard deviations."""
    height, width = image.shape[:2]
    rows, columns = np.indices((height, width), np.float32).reshape(2, -1)
    places = np.stack([columns, rows], axis=1)
    colours = image.reshape(-1, 3).astype(np.float32) / np.float32(settings.bilateral_srgb)
    near = places / np.float32(settings.gaussian_sxy)
    return near, np.concatenate([places / np.float32(settings.bilateral_sxy), colours], axis=1)


def shared_among(pool: ThreadPoolExecutor, threads: int) -> Callable[..., None]:
    """Return what runs a kernel over as many ranges as there are threads, one of them in this thread (see `Runner`)."""

    def run(kernel: Callable[..., None], size: int, *arrays: Any) -> None:
        step = max(-(-size // threads), 1)
        others = [pool.submit(kernel, at, min(at + step, size), *arrays) for at in range(step, size, step)]
        kernel(0, min(step, size), *arrays)
        wait(others)
        for other in others:
            other.result()

    return run
