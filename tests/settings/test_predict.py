import math
import re
from typing import Any

import pytest

from tagseg.settings.predict import PredictOptions


def test_options_that_are_not_given_are_the_networks_own() -> None:
    options = PredictOptions()
    assert (options.scales, options.flip, options.max_side, options.window) == (None,) * 4
    assert PredictOptions(scales=(0.5, 2.0), max_side=0, batch=3).scales == (0.5, 2.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"scales": (1.0, 0.0)},
            "--scales must be a list of 1 or more numbers 0.05 or more and at most 20, got (1.0, 0.0)",
        ),
        ({"scales": ()}, "--scales must be a list of 1 or more numbers 0.05 or more and at most 20, got ()"),
        (
            {"scales": (math.nan,)},
            "--scales must be a list of 1 or more numbers 0.05 or more and at most 20, got (nan,)",
        ),
        ({"max_side": 5}, "--max-side must be 64 pixels or more, or 0, got 5"),
        ({"max_side": -1}, "--max-side must be 64 pixels or more, or 0, got -1"),
        ({"window": 0}, "--window must be 64 pixels or more, got 0"),
        ({"batch": -1}, "--batch must be 0 images or more, got -1"),
        ({"max_megapixels": 0.0}, "--max-megapixels must be above 0 megapixels, got 0.0"),
        ({"rows": 0}, "--rows must be 1 image or more, got 0"),
        ({"actors": 2}, "--actors requires --on ray, got --on local"),
        ({"format": "parquet", "overlays": True}, "--overlays and --probabilities require --format png, got --format"),
        ({"resume": True, "force": True}, "--resume continues and --force starts over: give one of them"),
    ],
)
def test_a_wrong_value_names_its_flag(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        PredictOptions(**options)


@pytest.mark.parametrize("place", ["local", "ray"])
def test_the_places_that_engine_named_before_still_work(place: Any) -> None:
    with pytest.warns(DeprecationWarning, match=f"--engine {place} is deprecated: write --on {place}"):
        options = PredictOptions(engine=place)
    assert (options.on, options.engine) == (place, "auto")
