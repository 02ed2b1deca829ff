import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tagseg.rca.eps import saliency_estimate, saliency_loss


def slow_loss(classes: Tensor, background: Tensor, saliency: Tensor, tags: Tensor) -> float:
    """Section 3.2 of EPS with loops: class by class, cell by cell."""
    b, c, h, w = classes.shape
    cells = [(y, x) for y in range(h) for x in range(w)]
    total = 0.0
    for i in range(b):
        maps = {}  # (channel, cell) -> softmax over all classes and background (channel c)
        for y, x in cells:
            powers = [math.exp(classes[i, k, y, x]) for k in range(c)] + [math.exp(background[i, y, x])]
            for k in range(c + 1):
                maps[k, y, x] = powers[k] / sum(powers)
        foreground = []
        for k in range(c):
            inside = [(y, x) for y, x in cells if maps[k, y, x] > 0.5]
            salient = [(y, x) for y, x in inside if saliency[i, y, x] > 0.5]
            if tags[i, k] and (not inside or len(salient) / len(inside) > 0.4):
                foreground.append(k)
        others = [k for k in range(c) if tags[i, k] and k not in foreground]
        for y, x in cells:
            front = sum(maps[k, y, x] for k in foreground)
            back = maps[c, y, x] + sum(maps[k, y, x] for k in others)
            estimate = 0.5 * front + 0.5 * (1 - back)
            total += (float(saliency[i, y, x]) - estimate) ** 2
    return total / (b * h * w)


@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 4), st.floats(0.1, 8.0))
def test_loss_equals_the_loops(seed: int, b: int, c: int, spread: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randn(b, c, 3, 4, generator=generator) * spread
    background = torch.randn(b, 3, 4, generator=generator) * spread
    saliency = torch.rand(b, 3, 4, generator=generator)
    tags = torch.rand(b, c, generator=generator) > 0.4
    found = saliency_loss(classes, background, saliency, tags)
    assert found.item() == pytest.approx(slow_loss(classes, background, saliency, tags), rel=1e-4)
    order = torch.randperm(b, generator=generator)
    permuted = saliency_loss(classes[order], background[order], saliency[order], tags[order])
    torch.testing.assert_close(permuted, found)


def test_a_case_by_hand() -> None:
    """One row of five cells; the first class lies on the first two, the second on the last two."""
    classes = torch.full((1, 2, 1, 5), -20.0)
    classes[0, 0, 0, :2] = 20.0
    classes[0, 1, 0, 3:] = 20.0
    background = torch.zeros(1, 1, 5)
    both = torch.tensor([[True, True]])
    saliency = torch.tensor([[[1.0, 1.0, 0.0, 0.0, 0.0]]])
    # The second class overlaps nothing salient: it counts as background.
    estimate = saliency_estimate(classes, background, saliency, both)
    torch.testing.assert_close(estimate, saliency)
    assert saliency_loss(classes, background, saliency, both).item() == pytest.approx(0)
    # Half of the second class's cells are salient: more than 0.4, so all of it is foreground.
    saliency = torch.tensor([[[1.0, 1.0, 0.0, 1.0, 0.0]]])
    estimate = saliency_estimate(classes, background, saliency, both)
    torch.testing.assert_close(estimate, torch.tensor([[[1.0, 1.0, 0.0, 1.0, 1.0]]]))
    # A class without a tag is neither foreground nor background: 0.5 x 0 + 0.5 x (1 - 0).
    estimate = saliency_estimate(classes, background, saliency, torch.tensor([[True, False]]))
    torch.testing.assert_close(estimate, torch.tensor([[[1.0, 1.0, 0.0, 0.5, 0.5]]]))


def test_untrained_maps_are_drawn_to_the_salient_cells() -> None:
    classes = torch.zeros(1, 2, 1, 2, requires_grad=True)
    saliency = torch.tensor([[[1.0, 0.0]]])
    saliency_loss(classes, torch.zeros(1, 1, 2), saliency, torch.tensor([[True, False]])).backward()
    assert classes.grad is not None
    assert classes.grad[0, 0, 0, 0] < 0 < classes.grad[0, 0, 0, 1]  # a step against the gradient: up, and down


def test_half_precision_is_computed_in_single() -> None:
    classes, background = torch.randn(2, 3, 4, 4).bfloat16(), torch.randn(2, 4, 4).bfloat16()
    saliency, tags = torch.rand(2, 4, 4), torch.ones(2, 3, dtype=torch.bool)
    found = saliency_loss(classes, background, saliency, tags)
    assert found.dtype == torch.float32
    assert torch.equal(found, saliency_loss(classes.float(), background.float(), saliency, tags))


def test_gradient_of_the_loss_in_double_precision() -> None:
    saliency, tags = torch.rand(2, 2, 3).double(), torch.tensor([[True, False], [True, True]])
    given_maps = torch.randn(2, 2, 2, 3, dtype=torch.double), torch.randn(2, 2, 3, dtype=torch.double)
    inputs = tuple(maps.requires_grad_() for maps in given_maps)
    assert torch.autograd.gradcheck(lambda c, b: saliency_loss(c, b, saliency, tags), inputs)
