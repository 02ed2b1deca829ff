"""Mean field inference on the CPU (Kraehenbuehl and Koltun 2011, algorithm 1)."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from tagseg.crf.kernels import FEW, MANY, add_slice, blur, join, softmax, splat, update
from tagseg.crf.lattice import Lattice, Runner, run_here

NEVER = -1e4
"""Log-probability in padding columns: their probability is 0 in every step."""

SMALL = 1 << 17
"""Up to this many values are blurred by one thread."""


def mean_field(
    logs: Float32[np.ndarray, "n l"], kernels: Sequence[tuple[Lattice, float]], steps: int, run: Runner
) -> Float32[np.ndarray, "n l"]:
    """Return the probabilities of the labels after `steps` steps of mean field inference (algorithm 1).

    Each step multiplies every probability (whose logarithm is in `logs`) by e to the power of `weight` times the
    filtered probabilities of its label, for each of two kernels (the Potts model of section 2, up to a factor that all
    labels share), and normalises the result.
    """
    n, labels = logs.shape
    width = FEW if labels <= FEW else -(-labels // MANY) * MANY
    start = np.full((n, width), NEVER, np.float32)
    start[:, :labels] = logs
    one, two = (normalised(lattice, weight, run) for lattice, weight in kernels)
    buffer_one, buffer_two = (
        np.empty((lattice.size + lattice.first_half, width), np.float32) for lattice in (one, two)
    )
    q = start.copy()
    run(softmax, n, q)
    for _ in range(steps):
        values_one = filtered(one, q, buffer_one, run)
        values_two = filtered(two, q, buffer_two, run)
        run(update, n, start, one.corners, one.weights, values_one, two.corners, two.weights, values_two, q)
    return q[:, :labels]


def normalised(lattice: Lattice, weight: float, run: Runner) -> Lattice:
    """Return the lattice with the weights of its symmetrically normalised kernel, times `weight`.

    The kernel K becomes D K D with D = diag(K 1)^(-1/2), as in Kraehenbuehl and Koltun's own code: without this,
    pixels in crowded parts of the feature space would be influenced more than others. Splatting and slicing each apply
    the square root of the factors, so that both use the same weights. The given weights are overwritten.
    """
    n = len(lattice.corners)
    sums, ones = np.zeros((n, FEW), np.float32), np.ones((n, FEW), np.float32)
    buffer = np.empty((lattice.size + lattice.first_half, FEW), np.float32)
    run(add_slice, n, lattice.corners, lattice.weights, filtered(lattice, ones, buffer, run), sums)
    lattice.weights[:] *= np.float32(math.sqrt(weight)) / np.sqrt(sums[:, :1])
    return lattice


def filtered(
    lattice: Lattice, values: Float32[np.ndarray, "n c"], buffer: Float32[np.ndarray, "rows c"], run: Runner
) -> Float32[np.ndarray, "m c"]:
    """Splat the values of the points and blur them in `buffer`; return the part of it that holds the vertices.

    The points are always splatted in two halves, one thread each, so that the sums do not depend on the number of
    threads. The first half has its own rows at the end of the buffer.
    """
    run(splat, 2, lattice.size, lattice.corners, lattice.weights, values, buffer)
    out, first_half = buffer[: lattice.size], buffer[lattice.size :]
    # For a few small rows, handing the work to threads takes longer than the work.
    run = run if out.size > SMALL else run_here
    run(join, len(first_half), first_half, out)
    for axis in lattice.axes:
        run(blur, len(axis.starts) - 1, axis.starts, axis.vertices, out)
    return out
