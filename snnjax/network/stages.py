"""Stages: the parts of a network between its firing sites.

A firing site needs all of its input before its neurons can be fitted. So calibration
runs a network in stages: each `Stage` computes the current of one firing site from
variables that are known, and the last one computes the outputs. A kernel that only one
product of a stage reads may be refitted to the spikes that reach this product.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from snnjax._trees import is_kernel
from snnjax.network.equations import (
    PRODUCTS,
    Body,
    Equation,
    Network,
    Static,
    computed_by,
    spread_out,
    variables_in,
)
from snnjax.network.sites import Site


def needed(
    equations: Sequence[Equation],
    targets: Iterable[Any],
    available: Iterable[int] = (),
) -> tuple[Equation, ...]:
    """The equations, in order, that must run to compute the ``targets``.

    Args:
        equations: of which some are needed.
        targets: variables.
        available: variables whose values are known without running an equation.
    """
    needed_variables = set(targets)
    available = set(available)
    needed_equations = []
    # Backwards, since an equation is needed for what later ones read.
    for equation in reversed(equations):
        outputs = set(equation.outputs)
        if outputs & needed_variables and not outputs <= available:
            needed_equations.append(equation)
            needed_variables |= set(equation.variables) - available
    return tuple(reversed(needed_equations))


def streaming(
    equations: Sequence[Equation], sources: Iterable[int] = ()
) -> frozenset[int]:
    """Variables that change from step to step.

    These are ``sources``, spikes, and all that is computed from either, also inside of
    operators.
    """
    streams = set(sources)
    for equation in equations:
        if equation.fires or streams.intersection(equation.variables):
            streams.update(equation.outputs)
            streams |= computed_by(spread_out([equation]))
    return frozenset(streams)


class Segment(NamedTuple):
    """The equations of a stage, with variables numbered within the segment.

    Equal layers have equal segments wherever they stand. So ``jit``, which takes a
    segment as a static argument, compiles a repeated block only once.

    Attributes:
        equations: in order of execution; no firing site among them.
        inputs: variables that the equations read and do not compute.
        outputs: variables or constants that the site reads, or the network's outputs.
        carried: variables that the equations compute and later stages read too, as a
            residual sum.
    """

    equations: tuple[Equation, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int | Static, ...]
    carried: tuple[int, ...]


class Stage(NamedTuple):
    """A segment at its place in the network.

    Attributes:
        site: the firing site whose input it computes; None for the last stage, which
            computes the network's outputs.
        output: network variable of the site's output; None for the last stage.
        segment: the equations.
        sources: network variables that ``segment.inputs`` stand for.
        carried: network variables that ``segment.carried`` stand for.
    """

    site: Site | None
    output: int | None
    segment: Segment
    sources: tuple[int, ...]
    carried: tuple[int, ...]

    @property
    def place(self) -> Site:
        """The site of a stage that has one; the last stage has none."""
        assert self.site is not None
        return self.site


def stages(network: Network) -> list[Stage]:
    """The stages of a network in order; what depends on x is computed in one only."""
    available = {*network.parameters, *network.x, *network.constants}
    waiting_sites = [eq for eq in network.equations if eq.fires]
    # Equations that no stage has taken yet. What does not depend on x, such as a
    # reshaped kernel, is never taken: every stage that needs it computes it again, so
    # that it need not be carried.
    remaining = [eq for eq in network.equations if not eq.fires]
    stage_list = []
    while waiting_sites:
        firing = waiting_sites.pop(0)
        work = needed(remaining, firing.variables, available)
        results = computed_by(work) & network.dependent
        remaining = [eq for eq in remaining if results.isdisjoint(eq.outputs)]
        # Results that a later stage reads too, as a residual sum, are carried to it.
        read_later = set(variables_in(network.outputs))
        for later_equation in [*remaining, *waiting_sites]:
            read_later.update(later_equation.variables)
        stage = _stage(
            work=work,
            targets=firing.inputs,
            carried=tuple(sorted(results & read_later)),
            site=firing.site,
            output=firing.outputs[0],
        )
        stage_list.append(stage)
        available |= results | set(firing.outputs)
    work = needed(remaining, variables_in(network.outputs), available)
    stage_list.append(_stage(work=work, targets=network.outputs))
    return stage_list


def _stage(
    work: Sequence[Equation],
    targets: Sequence[int | Static],
    carried: tuple[int, ...] = (),
    site: Site | None = None,
    output: int | None = None,
) -> Stage:
    """A stage whose segment holds these equations.

    The segment numbers variables in the order in which its equations name them. Two
    equal layers at different places of the network then have equal segments:

        5 = dot(3, 4); 7 = add(5, 6)        ->    2 = dot(0, 1); 4 = add(2, 3)
        12 = dot(10, 11); 14 = add(12, 13)  ->    2 = dot(0, 1); 4 = add(2, 3)

    Args:
        work: equations of the network, over its variables.
        targets: variables or constants of the network that the work computes.
        carried, site, output: see `Stage`.
    """
    numbers: dict[int, int] = {}  # variable of the network -> of the segment

    def number(v: Any) -> Any:
        if not isinstance(v, int):  # a constant
            return v
        return numbers.setdefault(v, len(numbers))

    # In this order: a variable gets its number where it is named first.
    equations = tuple(_renumbered(equation, number) for equation in work)
    segment_outputs = tuple(map(number, targets))
    segment_carried = tuple(map(number, carried))
    # What the work reads and does not compute comes from outside.
    computed = computed_by(spread_out(work))
    sources = tuple(v for v in numbers if v not in computed)
    segment = Segment(
        equations=equations,
        inputs=tuple(map(number, sources)),
        outputs=segment_outputs,
        carried=segment_carried,
    )
    return Stage(site, output, segment, sources=sources, carried=carried)


def _renumbered(equation: Equation, number: Callable[[Any], Any]) -> Equation:
    """The equation over a segment's variables, without its place in the network.

    Args:
        number: variable of the network -> of the segment; a constant -> itself.
    """
    # Inputs before outputs: a variable gets its number where it is named first.
    inputs = tuple(map(number, equation.inputs))
    body = equation.body
    if body is not None:
        inner_equations = [_renumbered(inner, number) for inner in body.equations]
        body = Body(
            equations=tuple(inner_equations),
            inputs=tuple(map(number, body.inputs)),
        )
    return equation._replace(
        inputs=inputs,
        outputs=tuple(map(number, equation.outputs)),
        site=nameless(equation.site) if equation.site else None,
        path="",
        calls=(),
        body=body,
    )


def nameless(site: Site) -> Site:
    """The site without its place in the network: equal layers have equal ones."""
    return site._replace(name="", parameters=(), depth=0, channel=-1)


# ------------------------------------------------------------- products with weights


class LoneProduct(NamedTuple):
    """A product of a stage with a kernel that nothing else in the network reads.

    Attributes:
        kernel: network variable of the weights.
        segment: computes the product's result, from all inputs of the stage.
        channel: axis of the result that counts its channels, from the end: -1, ...
    """

    kernel: int
    segment: Segment
    channel: int


def lone_products(
    network: Network, stages: Sequence[Stage], i: int
) -> list[LoneProduct]:
    """The products of stage ``i`` with a kernel that nothing else reads.

    A product is a matrix product or a convolution of what depends on x (first) and of
    weights (second). Its weights are made of one kernel alone: a low-rank layer,
    x @ (A @ B), has two and does not count.
    """
    stage = stages[i]
    segment = stage.segment
    read_elsewhere = set()
    for number, other_stage in enumerate(stages):
        if number != i:
            read_elsewhere.update(other_stage.sources)
    network_variables = dict(zip(segment.inputs, stage.sources, strict=True))
    kernels = []
    for variable, source in network_variables.items():
        if source in network.parameters and is_kernel(network.avals[source]):
            kernels.append(variable)
    readers, origins = _readers(segment, network, network_variables)
    products = []
    for kernel in kernels:
        # Weights that something else reads cannot follow the spikes of one product.
        kernel_readers = readers.get(kernel, [])
        if network_variables[kernel] in read_elsewhere or len(kernel_readers) != 1:
            continue
        equation = kernel_readers[0]
        if equation is None or equation.name not in PRODUCTS:
            continue
        # The first operand must depend on x, and the second on weights alone.
        values, weights = equation.inputs[:2]
        channel = _channel(equation)
        if values in origins or weights not in origins or channel is None:
            continue
        # These may be made of several parameters, but of no other kernel.
        if origins[weights].intersection(kernels) != {kernel}:
            continue
        (result,) = equation.outputs
        work = Segment(
            equations=needed(segment.equations, [result], segment.inputs),
            inputs=segment.inputs,
            outputs=(result,),
            carried=(),
        )
        product = LoneProduct(network_variables[kernel], work, channel)
        products.append(product)
    return products


def _readers(
    segment: Segment, network: Network, network_variables: dict[int, int]
) -> tuple[dict[int, list[Equation | None]], dict[Any, frozenset[int]]]:
    """What reads the parameters of a segment, and what is made of parameters alone.

    Args:
        network_variables: input of the segment -> variable of the network.

    Returns:
        readers: parameter -> equations that read it together with x, or that read what
            is made of it, as a transposed kernel; None among them is a later stage.
        origins: value that does not depend on x -> parameters that it is made of.
    """
    origins: dict[Any, frozenset[int]] = {}
    for variable, network_variable in network_variables.items():
        if network_variable in network.constants:
            origins[variable] = frozenset()
        elif network_variable in network.parameters:
            origins[variable] = frozenset([variable])
    readers: dict[int, list[Equation | None]] = {}
    for equation in segment.equations:
        parameters: set[int] = set()
        reads_weights_only = True
        for variable in equation.variables:
            if variable in origins:
                parameters |= origins[variable]
            else:
                reads_weights_only = False
        # What is computed of parameters alone is still weights, as a transposed kernel.
        if reads_weights_only and equation.body is None:
            origins.update(dict.fromkeys(equation.outputs, frozenset(parameters)))
            continue
        for parameter in parameters:
            readers.setdefault(parameter, []).append(equation)
    for variable in (*segment.outputs, *segment.carried):
        for parameter in origins.get(variable, ()):
            readers.setdefault(parameter, []).append(None)
    return readers, origins


def _channel(equation: Equation) -> int | None:
    """The axis of a product's result that counts channels, from the end: -1, ...

    None for a convolution whose result does not have the examples first, because a fit
    of kernels takes the first axis for the images.
    """
    if equation.name == "dot_general":
        # The result has the free axes of the second operand, the kernel, last.
        return -1
    # Where examples and channels lie in the result, then the axes of the image.
    out_spec = equation.options["dimension_numbers"].out_spec
    example_axis, channel_axis, *_ = out_spec
    if example_axis != 0:
        return None
    return channel_axis - len(out_spec)
