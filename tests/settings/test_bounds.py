import dataclasses
import math
import re
from typing import Annotated, Any, Literal

import pytest
from annotated_types import Ge, Gt, Le, Lt, MinLen, Unit
from hypothesis import given
from hypothesis import strategies as st

from tagseg.errors import DataError
from tagseg.settings.bounds import MAX_NUMBER, AtLeastOne, OrZero, Scales, bounds, check_fields, check_value
from tagseg.settings.export import ExportSettings
from tagseg.settings.predict import PredictOptions
from tagseg.settings.settings import Settings

Share = Annotated[float, Gt(0), Le(1)]


@pytest.mark.parametrize(
    ("hint", "text"),
    [
        (int, ""),
        (bool, ""),
        (Literal["a", "b"], ""),
        (AtLeastOne, "1 or more"),
        (Annotated[int, Ge(1), Unit("images")], "1 image or more"),
        (Annotated[int, Ge(64), Unit("pixels")], "64 pixels or more"),
        (Annotated[float, Gt(0)], "above 0"),
        (Annotated[float, Ge(0), Lt(0.5)], "0 or more and below 0.5"),
        (Annotated[int, Le(65_535)], "at most 65535"),
        (Annotated[str, MinLen(1)], "1 character or more"),
        (Annotated[int | None, Ge(64), Unit("pixels"), OrZero()], "64 pixels or more, or 0"),
        (tuple[Share, Share], "above 0 and at most 1"),
        (Scales | None, "0.05 or more and at most 20"),
    ],
)
def test_bounds_in_words(hint: Any, text: str) -> None:
    assert bounds(hint) == text


@pytest.mark.parametrize(
    ("hint", "good", "bad"),
    [
        (Annotated[int, Ge(2)], [2, 3, MAX_NUMBER], [1, -2, 2.0, True, "2", None, MAX_NUMBER + 1]),
        (Annotated[float, Gt(0), Lt(1)], [0.5, 1e-9], [0, 1, 0.0, 1.0, -0.5, math.nan, math.inf, False, "0.5", None]),
        (Annotated[float, Ge(0), Le(1)], [0, 1, 0.0, 1.0], [-1e-9, 1.1, -math.inf]),
        (Annotated[int | None, Ge(64), OrZero()], [None, 0, 64], [63, -1, 1, False]),
        (Annotated[str, MinLen(1)], ["a", " "], ["", None, 1]),
        (Scales, [(1.0,), (1, 0.5), [2.0]], [(), (0.0,), (1.0, -1.0), (math.nan,), 1.0, "1.0", ("1",), (True,)]),
        (Scales | None, [None, (1.0,)], [(), 1.0]),
        (tuple[Share, Share], [(0.1, 1.0)], [(0.1,), (0.1, 1.0, 1.0), (0.0, 1.0), (0.1, 1.5)]),
        (Literal[8, 16], [8, 16], [4, "8", True]),
        (bool, [True, False], [0, 1, "true", None]),
    ],
)
def test_values_within_and_outside_the_bounds(hint: Any, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        check_value("--name", value, hint)
    for value in bad:
        with pytest.raises(ValueError, match=rf"^--name must be .+, got {re.escape(repr(value))}$"):
            check_value("--name", value, hint)


@given(st.integers(-(2**70), 2**70), st.integers(-100, 100))
def test_a_lower_bound_is_kept_for_every_number(value: int, least: int) -> None:
    hint = Annotated[int, Ge(least)]
    if least <= value <= MAX_NUMBER:
        check_value("n", value, hint)
    else:
        with pytest.raises(ValueError, match=r"^n must be "):
            check_value("n", value, hint)


def test_every_number_of_the_settings_has_bounds_or_needs_none() -> None:
    free = {"train.steps", "data.min_score"}  # any epochs; scores of a classifier may be logits
    records = {"": Settings, "export.": ExportSettings, "predict.": PredictOptions}
    sections = {f"{field.name}.": field.default_factory for field in dataclasses.fields(Settings)}
    records |= {name: kind for name, kind in sections.items() if isinstance(kind, type)}
    assert {"train.", "rca.", "crf."} <= set(records)
    unbounded = [
        f"{section}{name}"
        for section, kind in records.items()
        for name, hint in kind.__annotations__.items()
        if re.search(r"\b(float|int)\b", str(hint))
        if not bounds(hint)
    ]
    assert set(unbounded) <= free


def test_a_record_names_the_field_as_its_flag() -> None:
    @dataclasses.dataclass(frozen=True)
    class Record:
        max_side: Annotated[int, Ge(64), Unit("pixels")] = 64

        def __post_init__(self) -> None:
            check_fields(self, "--", DataError)

    with pytest.raises(DataError, match=r"^--max-side must be 64 pixels or more, got 3$"):
        Record(3)
