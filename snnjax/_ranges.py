"""Ranges: which numbers an argument or a parameter may be, declared once.

    threshold: Annotated[float, POSITIVE]

The declaration stands where the number is declared. It is read by the check of an
argument, by the message of its error, and by the optimizer that keeps a trained
parameter in its range.
"""

import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.core import Tracer


@dataclass(frozen=True)
class Range:
    """An interval of finite numbers, of a parameter: ``Annotated[Array, Range(0, 1)]``.

    `snnjax.training.optimizer` keeps such a parameter of a neuron model within it.

    Attributes:
        least, most: its ends.
        open_least, open_most: whether an end is excluded.
        whole: whether only whole numbers are allowed.

    >>> LEAK.describe("leak"), POSITIVE.describe("threshold")
    ('0 < leak <= 1', '> 0, and finite')
    >>> Range(0, 1, open_most=True).holds(np.array([0.0, 1.0])).tolist()
    [True, False]
    """

    least: float = -math.inf
    most: float = math.inf
    open_least: bool = False
    open_most: bool = False
    whole: bool = False

    def __post_init__(self):
        # An interval of one number holds both of its ends.
        is_open = self.open_least or self.open_most
        if not (self.least < self.most or (self.least == self.most and not is_open)):
            ends = f"from {self.least} to {self.most}"
            raise ValueError(f"a Range {ends} is empty; allowed: least <= most")

    def describe(self, name: str) -> str:
        """What is allowed, as a user reads it, e.g. ``0 < leak <= 1``.

        Args:
            name: of the number.
        """
        if self == Range():
            return "a finite number"
        kind = "a whole number " if self.whole else ""
        if self.most == math.inf:
            sign = ">" if self.open_least else ">="
            lower_end = f"{sign} {self.least:g}"
            return f"{kind}{lower_end}" if self.whole else f"{lower_end}, and finite"
        lower_sign = "<" if self.open_least else "<="
        upper_sign = "<" if self.open_most else "<="
        return f"{kind}{self.least:g} {lower_sign} {name} {upper_sign} {self.most:g}"

    def holds(self, numbers: Any) -> Any:
        """Which of the numbers lie in the interval, a bool array of their shape."""
        # Parameters are float32. If an end rounded to float32 lies outside, it counts
        # as the end.
        lower_end = min(self.least, float(np.float32(self.least)))
        upper_end = max(self.most, float(np.float32(self.most)))
        if self.open_least:
            is_above = numbers > lower_end
        else:
            is_above = numbers >= lower_end
        if self.open_most:
            is_below = numbers < upper_end
        else:
            is_below = numbers <= upper_end
        return is_above & is_below & np.isfinite(numbers)

    def check(self, name: str, number: Any) -> None:
        """Raise unless this is one concrete number in the interval.

        Args:
            name: of the number, for messages.
            number: of Python or NumPy; of JAX, too, unless it has to be whole.
        """
        if isinstance(number, Tracer):
            raise ValueError(
                f"{name} is traced, so its value is not known yet; allowed: a number "
                "that is given outside of jit, or to it as one of its static_argnames"
            )
        right_kind = is_whole(number) if self.whole else is_number(number)
        # A float, since integers of Python may be larger than those of NumPy.
        if not right_kind or not self.holds(np.float64(number)):
            raise ValueError(f"{name} is {number!r}; allowed: {self.describe(name)}")


POSITIVE = Range(0, open_least=True)
NOT_NEGATIVE = Range(0)
NOT_POSITIVE = Range(most=0, open_least=True)
LEAK = Range(0, 1, open_least=True)  # 1: none
SHARE = Range(0, 1)
COUNT = Range(1, whole=True)
WHOLE = Range(0, whole=True)  # from 0 on


def ranges_of(declared: Any) -> Mapping[str, Range]:
    """Name -> range, of the fields of a class, or of the arguments of a function.

    Names whose annotation has no range are left out.

    >>> from typing import Annotated, NamedTuple
    >>> class Params(NamedTuple):
    ...     threshold: Annotated[float, POSITIVE]
    ...     bias: float
    >>> ranges_of(Params) == {"threshold": POSITIVE}
    True
    """
    ranges = {}
    for name, hint in typing.get_type_hints(declared, include_extras=True).items():
        # The number may be one of several options: Annotated[float, LEAK] | None.
        for option in (hint, *typing.get_args(hint)):
            for annotation in getattr(option, "__metadata__", ()):
                if isinstance(annotation, Range):
                    ranges[name] = annotation
    return ranges


def is_number(value: Any) -> bool:
    """Whether this is one real number, of Python, NumPy or JAX, and not traced."""
    if isinstance(value, Tracer):
        return False
    return np.ndim(value) == 0 and np.asarray(value).dtype.kind in "iuf"


def is_whole(value: Any) -> bool:
    """Whether this is a whole number of Python or NumPy, and no truth value."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
