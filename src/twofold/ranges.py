"""The numbers that an option may have. A range stands in the type of its field, and is checked when the class is built::

    @checked
    class Train:
        steps: Count = 100
        beta: Annotated[float, Range(ge=0, lt=1)] = 0.9

``Train(steps=0)`` raises ValueError. ``toml`` checks the same ranges, and names the option as it was written.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any, TypeVar, dataclass_transform, get_args, get_origin, get_type_hints

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Range:
    """The numbers of at least ``ge`` or more than ``gt``, and of at most ``le`` or less than ``lt``.

    They are finite, unless ``lt`` is None.

    >>> [x in Range(ge=0, lt=1) for x in (0, 0.5, 1, math.nan)], str(Range(ge=0, lt=1)), str(Range(ge=0, le=1))
    ([True, True, False, False], 'at least 0 and less than 1', 'from 0 to 1')
    """

    ge: float | None = None
    gt: float = -math.inf
    le: float | None = None
    lt: float | None = math.inf

    def __contains__(self, value: float) -> bool:
        above = value > self.gt and (self.ge is None or value >= self.ge)
        return above and (self.lt is None or value < self.lt) and (self.le is None or value <= self.le)

    def __str__(self) -> str:
        if self.ge is not None and self.le is not None:
            return f"from {self.ge:g} to {self.le:g}"
        bounds = {"at least": self.ge, "more than": self.gt, "at most": self.le, "less than": self.lt}
        said = [f"{words} {bound:g}" for words, bound in bounds.items() if bound is not None and math.isfinite(bound)]
        return " and ".join(said) or "a finite number"


Count = Annotated[int, Range(ge=1)]
Whole = Annotated[int, Range(ge=0)]
Seed = Annotated[int, Range(ge=0, lt=2**63)]
Finite = Annotated[float, Range()]
Positive = Annotated[float, Range(gt=0)]
NonNegative = Annotated[float, Range(ge=0)]
Share = Annotated[float, Range(ge=0, le=1)]
PositiveShare = Annotated[float, Range(gt=0, le=1)]


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def checked(cls: type[T]) -> type[T]:
    """Make ``cls`` a frozen dataclass. Building one raises ValueError for a number out of its range."""
    own = cls.__dict__.get("__post_init__", lambda self: None)

    def check(self: Any) -> None:
        for name, allowed in _ranges(self.__class__).items():
            value = getattr(self, name)
            for number in value if isinstance(value, tuple) else (value,):
                if number is not None and number not in allowed:
                    raise ValueError(f"{name} must be {allowed}, got {number}")
        own(self)

    cls.__post_init__ = check  # type: ignore[attr-defined]
    return dataclass(frozen=True, slots=True)(cls)


@cache
def _ranges(cls: type) -> dict[str, Range]:
    hints = get_type_hints(cls, include_extras=True)
    return {name: range for name, hint in hints.items() for range in ranges_in(hint)}


def ranges_in(hint: Any) -> Iterator[Range]:
    """Yield the range that a type has in it: of the number itself, of an optional number, of a tuple's items."""
    if get_origin(hint) is Annotated:
        yield from (mark for mark in hint.__metadata__ if isinstance(mark, Range))
    else:
        for part in get_args(hint):
            yield from ranges_in(part)
