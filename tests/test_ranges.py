"""Ranges: one declaration for the check, the message and the optimizer."""

import dataclasses
import inspect
import math
from typing import Annotated, NamedTuple

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import snnjax
from snnjax import neurons
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


# One value of each class of `snnjax.neurons` that declares ranges and checks them.
DECLARING = [
    snnjax.integrate_and_fire(),
    neurons.ResonateAndFire(),
    neurons.Synaptic(snnjax.lif()),
    neurons.Adaptive(snnjax.lif()),
    neurons.Uniform(0.0, 1.0),
    neurons.TimeConstants(1.0, 2.0),
]
DECLARED = [
    pytest.param(value, name, limits, id=f"{type(value).__name__}.{name}")
    for value in DECLARING
    for name, limits in ranges_of(type(value)).items()
]


def test_every_public_class_that_declares_ranges_is_among_these():
    public = [getattr(neurons, name) for name in neurons.__all__]
    declaring = {
        cls
        for cls in public
        if inspect.isclass(cls) and dataclasses.is_dataclass(cls) and ranges_of(cls)
    }
    assert declaring <= {type(value) for value in DECLARING}


def outside(limits):
    """Numbers of float32 that a range excludes."""
    numbers = st.sampled_from([math.nan, math.inf, -math.inf])
    if limits.least > -math.inf:
        lower_end = float(np.float32(limits.least))
        numbers |= st.floats(max_value=lower_end, width=32)
    if limits.most < math.inf:
        upper_end = float(np.float32(limits.most))
        numbers |= st.floats(min_value=upper_end, width=32)
    return numbers.filter(lambda number: not limits.holds(number))


@pytest.mark.parametrize("value, name, limits", DECLARED)
@given(data=st.data())
def test_a_number_outside_of_a_declared_range_is_refused(value, name, limits, data):
    number = data.draw(outside(limits))
    with pytest.raises(ValueError, match=f"{name} is .*; allowed: ") as caught:
        dataclasses.replace(value, **{name: number})
    assert str(caught.value).endswith(limits.describe(name))


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
        synaptic_leak: Annotated[float, LEAK] | None = None
        bias: float = 0.0

    assert ranges_of(Params) == {"leak": LEAK, "synaptic_leak": LEAK}
