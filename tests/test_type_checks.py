"""The types and shapes in tagseg's signatures are checked in tests, whichever way conftest.py has chosen."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jaxtyping import TypeCheckError

from tagseg.data.records import Dataset, Sample
from tagseg.evaluate.iou import iou
from tagseg.masks import palette
from tagseg.settings.settings import Settings


@pytest.mark.parametrize(
    ("call", "arguments"),
    [
        (iou, (np.zeros((2, 3), int),)),  # one letter, two sizes
        (iou, (np.zeros((2, 2)),)),
        (palette.class_colours, ("2",)),
        (Settings.from_dict, ([],)),
        (Sample, ("1", "1.png", (1,))),
        (Dataset(Path(), "folder", (), ()).split, (3,)),
    ],
)
def test_wrong_arguments_are_found(call: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    with pytest.raises(TypeCheckError):
        call(*arguments)


def test_wrong_results_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(palette, "_colour", str)
    with pytest.raises(TypeCheckError):
        palette.class_colours(2)
