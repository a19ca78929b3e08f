"""Products with weights in a stage, each with the kernel that it alone reads.

    y = I(W),   affine in W

Such a kernel may be refitted to the spikes that reach its product, whatever reads y.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from snnjax._trees import is_kernel
from snnjax.network.equations import PRODUCTS, Equation, Network
from snnjax.network.stages import Segment, Stage, needed


class LoneProduct(NamedTuple):
    """A product with weights on the way to a site, the only reader of its kernel.

    Attributes:
        kernel: network variable of its weights.
        segment: what of the stage leads to its result, with all inputs of the stage.
        channel: axis of the result that counts its channels, from the end.
    """

    kernel: int
    segment: Segment
    channel: int


def lone_products(
    network: Network, stages: Sequence[Stage], i: int
) -> list[LoneProduct]:
    """Products of stage ``i`` whose kernel nothing else reads, here or elsewhere."""
    stage, segment = stages[i], stages[i].segment
    elsewhere = {v for j, other in enumerate(stages) if j != i for v in other.sources}
    outer = dict(zip(segment.inputs, stage.sources, strict=True))
    kernels = {
        n
        for n, v in outer.items()
        if v in network.parameters and is_kernel(network.avals[v])
    }
    readers, derived = _readers(segment, network, outer)
    alone = []
    for n in kernels:
        # Weights that something else reads cannot follow the spikes of one product.
        if outer[n] in elsewhere or len(readers.get(n, ())) != 1:
            continue
        (equation,) = readers[n]
        if equation is None or equation.name not in PRODUCTS:
            continue
        first, second = equation.inputs[:2]
        channel = _channel(equation)
        # x times weights, not weights times weights, weights times x or x times x.
        if first in derived or second not in derived or channel is None:
            continue
        if kernels & derived[second] != {n}:  # as of x @ (A @ B), a low-rank layer
            continue
        (result,) = equation.outputs
        work = needed(segment.equations, [result], segment.inputs)
        leading = Segment(work, segment.inputs, (result,), ())
        alone.append(LoneProduct(outer[n], leading, channel))
    return alone


def _readers(
    segment: Segment, network: Network, outer: dict[int, int]
) -> tuple[dict[int, list[Equation | None]], dict[Any, frozenset[int]]]:
    """Input -> what reads it together with x; value -> the parameters it is made of.

    None among the readers stands for a later stage.
    """
    derived: dict[Any, frozenset[int]] = {
        n: frozenset([n]) for n, v in outer.items() if v in network.parameters
    }
    derived |= {n: frozenset() for n, v in outer.items() if v in network.constants}
    readers: dict[int, list[Equation | None]] = {}
    for equation in segment.equations:
        parts = [derived.get(v) for v in equation.variables]
        # What is computed of parameters alone is still weights, as a transposed kernel.
        if None not in parts and equation.body is None:
            made_of = frozenset().union(*(part for part in parts if part))
            derived.update(dict.fromkeys(equation.outputs, made_of))
            continue
        for n in frozenset().union(*(part for part in parts if part)):
            readers.setdefault(n, []).append(equation)
    for v in (*segment.outputs, *segment.carried):
        for n in derived.get(v, ()) if isinstance(v, int) else ():
            readers.setdefault(n, []).append(None)
    return readers, derived


def _channel(equation: Equation) -> int | None:
    """The channels of a result that has the examples first; None if it may not."""
    numbers = equation.options["dimension_numbers"]
    if equation.name == "conv_general_dilated":
        examples, channel, *_ = numbers.out_spec
        return channel - len(numbers.out_spec) if examples == 0 else None
    return -1  # the free axes of the second operand are the last
