"""The values that a setting may have: declared in its annotation, checked when the record is made, shown in the help.

    crop: Annotated[int, Ge(32), Unit("pixels")] = 225

`check_fields(self, ...)` in `__post_init__` checks every field of a record. The help of the command line shows
`bounds(hint)`. Rules that concern several fields stay in `__post_init__`.
"""

import dataclasses
import functools
import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType, NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt, MinLen, Unit

from tagseg.system.untrusted import shown

MAX_NUMBER = 2**62
"""Larger whole numbers are refused, whatever their setting."""

NOUNS: dict[Any, tuple[str, str]] = {
    bool: ("true or false", "values, true or false"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("a text", "texts"),
}
"""One value of a type and several, in words."""


@dataclass(frozen=True)
class OrZero:
    """Allows 0 besides what the other bounds of an annotation allow; 0 switches something off."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        # cyclopts also lets pydantic check the flags as soon as anything has imported it.
        from pydantic_core import core_schema

        return core_schema.union_schema([core_schema.literal_schema([0]), handler(source)])


AtLeastOne = Annotated[int, Ge(1)]
"""The type of a count, as of processes or seeds."""

Port = Annotated[int, Ge(0), Le(65_535)]
"""The type of a port to listen on; 0 takes any free one."""

Scales = Annotated[tuple[Annotated[float, Ge(0.05), Le(20)], ...], MinLen(1)]
"""The type of a list of image scales: at smaller ones nothing is left of an image, larger ones fill any memory."""

MaxSide = Annotated[int, Ge(64), Le(32_768), Unit("pixels")]
"""The type of the long side to which larger images are reduced."""


def check_fields(record: Any, prefix: str, error: type[ValueError] = ValueError) -> None:
    """Check every field of a dataclass against its annotation.

    Args:
        record: an instance, its fields already set.
        prefix: stands before a field's name in the message, such as `setting train.` or `--`.
        error: what is raised.

    Raises:
        ValueError: when a value has the wrong type or is out of bounds.
    """
    for name, hint in type_hints(type(record)).items():  # type: ignore[arg-type]  # mypy doubts a class's hash
        check_value(f"{prefix}{name.replace('_', '-')}", getattr(record, name), hint, error)


def check_value(name: str, value: object, hint: Any, error: type[ValueError] = ValueError) -> None:
    """Raise a ValueError that names a setting, its bounds and the value found, unless the value fits the annotation."""
    base, _ = _taken_apart(hint)
    if value is None and NoneType in get_args(base):
        return
    if not _has_type(value, hint):
        infinite = isinstance(value, float) and not math.isfinite(value)
        raise error(f"{name} must be {'a finite number' if infinite else _noun(hint)}, got {shown(value)}")
    if isinstance(value, int) and abs(value) > MAX_NUMBER:
        raise error(f"{name} must be a number of at most {MAX_NUMBER}, got {shown(value)}")
    if not _in_bounds(value, hint):
        said = _noun(hint) if isinstance(value, (tuple, list)) else bounds(hint)
        raise error(f"{name} must be {said}, got {shown(value)}")


def bounds(hint: Any) -> str:
    """Return in words which numbers an annotation allows, or nothing where it allows all.

    >>> bounds(Annotated[int, Ge(32), Unit("pixels")])
    '32 pixels or more'
    >>> bounds(Annotated[float, Ge(0), Lt(1)])
    '0 or more and below 1'
    """
    base, marks = _taken_apart(hint, optional=False)
    if get_origin(base) is tuple:
        return bounds(get_args(base)[0])
    unit = next((mark.unit for mark in marks if isinstance(mark, Unit)), "")
    said = []
    for mark in marks:
        if isinstance(mark, Gt):
            said.append(f"above {_with_unit(mark.gt, unit)}")
        elif isinstance(mark, Ge):
            said.append(f"{_with_unit(mark.ge, unit)} or more")
        elif isinstance(mark, Lt):
            said.append(f"below {_with_unit(mark.lt, unit)}")
        elif isinstance(mark, Le):
            said.append(f"at most {_with_unit(mark.le, unit)}")
        elif isinstance(mark, MinLen):
            said.append(f"{_with_unit(mark.min_length, 'characters')} or more")
    text = " and ".join(said)
    return f"{text}, or 0" if OrZero() in marks else text


@functools.cache
def type_hints(cls: type) -> Mapping[str, Any]:
    """Return the annotations of a dataclass's fields with their bounds."""
    return MappingProxyType(get_type_hints(cls, include_extras=True))


def plain_type(hint: Any) -> Any:
    """Return an annotation without its bounds and without None."""
    return _taken_apart(hint, optional=False)[0]


def element_type(hint: Any) -> tuple[Any, bool]:
    """Return the plain type of the values of an annotation, and whether it is a list of them."""
    base = plain_type(hint)
    listed = get_origin(base) in (list, tuple)
    return (plain_type(get_args(base)[0]) if listed else base), listed


def _with_unit(number: Any, unit: str) -> str:
    return f"{number} {unit.removesuffix('s') if number == 1 else unit}".rstrip()


def _taken_apart(hint: Any, optional: bool = True) -> tuple[Any, tuple[Any, ...]]:
    """The type of an annotation, and its marks."""
    marks: tuple[Any, ...] = ()
    while True:
        if get_origin(hint) is Annotated:
            hint, *more = get_args(hint)
            marks = (*more, *marks)
        elif get_origin(hint) in (Union, UnionType) and not optional:
            (hint,) = (kind for kind in get_args(hint) if kind is not NoneType)
        else:
            return hint, marks


def _has_type(value: Any, hint: Any) -> bool:
    base = plain_type(hint)
    if get_origin(base) is Literal:
        return value in get_args(base) and not isinstance(value, bool)
    if get_origin(base) is tuple:
        kinds = get_args(base)
        return (
            isinstance(value, (tuple, list))
            and (kinds[-1] is Ellipsis or len(value) == len(kinds))
            and all(_has_type(item, kinds[0]) for item in value)
        )
    if base is float:
        return isinstance(value, numbers.Real) and not isinstance(value, bool) and _is_finite(value)
    if base is int:
        return isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return isinstance(value, base)


def _is_finite(number: numbers.Real) -> bool:
    return isinstance(number, int) or math.isfinite(number)


def _in_bounds(value: Any, hint: Any) -> bool:
    base, marks = _taken_apart(hint, optional=False)
    if OrZero() in marks and value == 0:
        return True
    for mark in marks:
        if (
            (isinstance(mark, Gt) and not value > mark.gt)
            or (isinstance(mark, Ge) and not value >= mark.ge)
            or (isinstance(mark, Lt) and not value < mark.lt)
            or (isinstance(mark, Le) and not value <= mark.le)
            or (isinstance(mark, MinLen) and len(value) < mark.min_length)
        ):
            return False
    return get_origin(base) is not tuple or all(_in_bounds(item, get_args(base)[0]) for item in value)


def _noun(hint: Any) -> str:
    """What an annotation allows, in words: 'a whole number', 'one of sgd, adamw', 'a list of 2 numbers above 0'."""
    base, marks = _taken_apart(hint, optional=False)
    if get_origin(base) is Literal:
        return f"one of {', '.join(map(str, get_args(base)))}"
    if get_origin(base) is tuple:
        kinds = get_args(base)
        least = next((f"{mark.min_length} or more " for mark in marks if isinstance(mark, MinLen)), "")
        count = least if kinds[-1] is Ellipsis else f"{len(kinds)} "
        element, limits = plain_type(kinds[0]), bounds(kinds[0])
        return f"a list of {count}{NOUNS[element][1]}{' ' + limits if limits else ''}"
    if dataclasses.is_dataclass(base):
        return f"{getattr(base, '__name__', 'a record')}"
    return NOUNS[base][0]
