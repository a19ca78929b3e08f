"""Ranges: one declaration for the check, the message and the optimizer."""

from typing import Annotated, NamedTuple

import jax
import numpy as np
import pytest

from snnjax._ranges import COUNT, LEAK, NOT_NEGATIVE, POSITIVE, SHARE, Range, ranges_of

# (range, allowed numbers, refused ones, what the message allows)
RANGES = [
    (POSITIVE, (1e-9, 3, np.float32(2)), (0, -1, np.inf, np.nan), "> 0, and finite"),
    (NOT_NEGATIVE, (0, 2.5), (-1e-9, np.inf), ">= 0, and finite"),
    (LEAK, (0.1, 1), (0, 1.01, np.nan), "0 < n <= 1"),
    (SHARE, (0, 1, np.array(0.5)), (-0.1, 1.1, [0.5]), "0 <= n <= 1"),
    (COUNT, (1, np.int64(3)), (0, 1.0, True, "1", None), "a whole number >= 1"),
]


@pytest.mark.parametrize("limits, inside, outside, allowed", RANGES)
def test_a_number_outside_is_refused_by_what_is_allowed(
    limits, inside, outside, allowed
):
    for number in inside:
        limits.check("n", number)
    for number in outside:
        with pytest.raises(ValueError, match="n is .*; allowed: ") as caught:
            limits.check("n", number)
        assert str(caught.value).endswith(allowed)


def test_a_range_has_its_ends_in_order():
    with pytest.raises(
        ValueError, match="from 2 to 1 is empty; allowed: least <= most"
    ):
        Range(2, 1)


def test_a_traced_number_is_refused_since_its_value_is_not_known():
    with pytest.raises(ValueError, match="static_argnames"):
        jax.jit(lambda n: LEAK.check("leak", n))(0.5)


def test_a_parameter_that_may_be_left_out_has_a_range_too():
    class Params(NamedTuple):
        leak: Annotated[float | None, LEAK] = None
        other: Annotated[float, LEAK] | None = None
        bias: float = 0.0

    assert ranges_of(Params) == {"leak": LEAK, "other": LEAK}
