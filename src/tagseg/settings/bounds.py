"""Checks of settings."""

import math
from typing import Any


def check(holds: bool, name: str, value: object, expected: str) -> None:
    """Raise the ValueError that names a setting, unless it `holds` what is expected."""
    numbers = value if isinstance(value, tuple) else (value,)
    if not holds or any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
        raise ValueError(f"setting {name}: got {value!r}, expected {expected}")


def check_learning(section: str, settings: Any) -> None:
    """Check the learning rates and penalties that two networks share."""
    for name in ("lr", "head_lr"):
        value = getattr(settings, name)
        check(value > 0, f"{section}.{name.replace('_', '-')}", value, "more than 0")
    for name in ("weight_decay", "jitter", "freeze_stride"):
        value = getattr(settings, name)
        check(value >= 0, f"{section}.{name.replace('_', '-')}", value, "0 or more")
