"""Cuts through a network: stages between firing sites.

A firing site needs all of its input before its neurons can be fitted, or their spikes
encoded; between two of them lies a `Stage`. A kernel that only one product of a stage
reads may be refitted to the spikes that reach this product, whatever reads its result.
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
    """The equations that ``targets`` depend on.

    Args:
        available: variables that are known, so that what they are made of is not
            needed for their sake.
    """
    needed_variables = set(targets)
    available = set(available)
    needed_equations = []
    # Backwards: all readers of an output have then asked for it.
    for equation in reversed(equations):
        outputs = set(equation.outputs)
        if outputs & needed_variables and not outputs <= available:
            needed_equations.append(equation)
            needed_variables |= set(equation.variables) - available
    return tuple(reversed(needed_equations))


def streaming(
    equations: Sequence[Equation], sources: Iterable[int] = ()
) -> frozenset[int]:
    """Variables that change from step to step: ``sources``, spikes, what they reach."""
    streams = set(sources)
    for equation in equations:
        if equation.fires or streams.intersection(equation.variables):
            streams.update(equation.outputs)
            for inner_equation in spread_out([equation]):
                streams.update(inner_equation.outputs)
    return frozenset(streams)


class Segment(NamedTuple):
    """Equations that lead to one site, numbered by themselves.

    Equal work gives equal segments, so that ``jit`` with a segment as a static
    argument compiles a block that a network repeats once.

    Attributes:
        equations: in order of execution; no firing site among them.
        inputs: variables that it reads.
        outputs: variables or constants that it leads to.
        carried: variables that it computes on the way and later segments read.
    """

    equations: tuple[Equation, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int | Static, ...]
    carried: tuple[int, ...]


class Stage(NamedTuple):
    """One segment at its place in the network.

    Attributes:
        site: the firing site that it leads to; None for the last one, which leads to
            the outputs.
        output: network variable of that site's output, None likewise.
        segment: the work.
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
        """The site of a stage that leads to one."""
        assert self.site is not None
        return self.site


def stages(network: Network) -> list[Stage]:
    """Cut the network at its firing sites; what depends on x is computed once."""
    available = {*network.parameters, *network.x, *network.constants}
    # Each stage takes from `remaining` what its site needs and no earlier one did. What
    # does not depend on x, such as a reshaped kernel, stays there: every stage that
    # needs it computes it again, so that it need not be carried.
    firing, remaining = [], []
    for equation in network.equations:
        if equation.fires:
            firing.append(equation)
        else:
            remaining.append(equation)
    stage_list = []
    for number, equation in enumerate(firing, 1):
        work = needed(remaining, equation.variables, available)
        results = computed_by(work) & network.dependent
        remaining = [eq for eq in remaining if results.isdisjoint(eq.outputs)]
        # Results that a later stage reads too, as of a residual sum, are carried to it.
        read_later = set(variables_in(network.outputs))
        for later_equation in [*remaining, *firing[number:]]:
            read_later.update(later_equation.variables)
        carried = tuple(sorted(results & read_later))
        stage = _stage(
            work=work,
            targets=equation.inputs,
            carried=carried,
            site=equation.site,
            output=equation.outputs[0],
        )
        stage_list.append(stage)
        available |= results | set(equation.outputs)
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
    """Work as a segment and its place in the network.

    The segment numbers variables in the order in which the work meets them. Two equal
    layers at different places of the network then have equal segments:

        5 = dot(3, 4); 7 = add(5, 6)        ->    2 = dot(0, 1); 4 = add(2, 3)
        12 = dot(10, 11); 14 = add(12, 13)  ->    2 = dot(0, 1); 4 = add(2, 3)

    Args:
        work: equations of the network.
        targets: variables or constants of the network that the work leads to.
        carried, site, output: see `Stage`.
    """
    numbers: dict[int, int] = {}  # variable of the network -> of the segment

    def number(v: Any) -> Any:
        if not isinstance(v, int):  # a constant
            return v
        return numbers.setdefault(v, len(numbers))

    equations = tuple(_renumbered(equation, number) for equation in work)
    segment_outputs = tuple(map(number, targets))
    segment_carried = tuple(map(number, carried))
    # What the work reads and does not compute comes from outside.
    computed = computed_by(spread_out(work))
    sources = tuple(v for v in numbers if v not in computed)
    segment = Segment(
        equations=equations,
        inputs=tuple(numbers[v] for v in sources),
        outputs=segment_outputs,
        carried=segment_carried,
    )
    return Stage(
        site=site,
        output=output,
        segment=segment,
        sources=sources,
        carried=carried,
    )


def _renumbered(equation: Equation, number: Callable[[Any], Any]) -> Equation:
    """The equation over other variables, without what tells it from equal ones."""
    # Inputs before outputs: this order gives the variables of a segment their numbers.
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
    """The site without what tells it from those of equal layers."""
    return site._replace(name="", parameters=(), depth=0, channel=-1)


# ------------------------------------------------------------- products with weights


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
    """Products of stage ``i`` whose kernel nothing else reads, here or elsewhere.

    A product is x times weights: not weights times weights, weights times x, or x
    times x. Its second operand comes from one kernel, unlike that of x @ (A @ B), a
    low-rank layer.
    """
    stage = stages[i]
    segment = stage.segment
    read_elsewhere = set()
    for number, other_stage in enumerate(stages):
        if number != i:
            read_elsewhere.update(other_stage.sources)
    network_variables = dict(zip(segment.inputs, stage.sources, strict=True))
    kernels = set()
    for variable, network_variable in network_variables.items():
        is_parameter = network_variable in network.parameters
        if is_parameter and is_kernel(network.avals[network_variable]):
            kernels.add(variable)
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
        values, weights = equation.inputs[:2]
        channel = _channel(equation)
        if values in origins or weights not in origins or channel is None:
            continue
        if kernels & origins[weights] != {kernel}:
            continue
        (result,) = equation.outputs
        work = Segment(
            equations=needed(segment.equations, [result], segment.inputs),
            inputs=segment.inputs,
            outputs=(result,),
            carried=(),
        )
        product = LoneProduct(
            kernel=network_variables[kernel], segment=work, channel=channel
        )
        products.append(product)
    return products


def _readers(
    segment: Segment, network: Network, network_variables: dict[int, int]
) -> tuple[dict[int, list[Equation | None]], dict[Any, frozenset[int]]]:
    """What reads the parameters of a segment, and what is made of parameters alone.

    Args:
        network_variables: input of the segment -> variable of the network.

    Returns:
        readers: parameter -> equations that read it, or what is made of it, together
            with x; None among them stands for a later stage.
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
    """The axis of a product's result that counts channels, from the end.

    None for a convolution whose result does not have the examples first.
    """
    if equation.name == "dot_general":
        # The result has the free axes of the second operand, the kernel, last.
        return -1
    out_spec = equation.options["dimension_numbers"].out_spec
    example_axis, channel_axis, *_ = out_spec
    if example_axis != 0:
        return None
    return channel_axis - len(out_spec)
