import math
import re
from typing import Any

import pytest

from tagseg.settings.predict import PredictOptions


def test_options_leave_to_the_network_what_is_not_asked_for() -> None:
    options = PredictOptions()
    assert (options.scales, options.flip, options.max_side, options.window) == (None,) * 4
    assert PredictOptions(scales=(0.5, 2.0), max_side=0, batch=3).scales == (0.5, 2.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": (1.0, 0.0)}, "--scales: got (1.0, 0.0), expected numbers above 0 with commas between"),
        ({"scales": ()}, "--scales: got (), expected"),
        ({"scales": (math.nan,)}, "--scales: got (nan,), expected"),
        ({"max_side": 5}, "--max-side: got 5, expected at least 64 pixels, or 0"),
        ({"max_side": -1}, "--max-side: got -1"),
        ({"window": 0}, "--window: got 0, expected at least 64 pixels"),
        ({"batch": -1}, "--batch: got -1, expected at least 1 image, or 0"),
        ({"max_megapixels": 0.0}, "--max-megapixels: got 0.0, expected more than 0"),
        ({"resume": True, "force": True}, "--resume: got True, expected it without --force"),
    ],
)
def test_what_cannot_be_names_its_flag(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        PredictOptions(**options)
