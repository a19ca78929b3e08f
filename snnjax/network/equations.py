"""A captured network: equations over numbered variables, and its sites.

A *site* is a place where the ANN applies ReLU (or clipped ReLU, or max-pool).
`evaluate` runs the equations with a rule of one's choice at every site: the ANN's
own activation (`identity`), a spiking neuron, a calibrator. ``capture.py`` makes
networks from functions.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

Rule = Callable[..., jax.Array]
Values = dict[int, Any]


def clipped_relu(x: jax.Array, maximum: jax.Array | float) -> jax.Array:
    """min(max(x, 0), maximum): the activation of the ICLR 2021 source networks.

    The derivative in x is 1 on the closed interval [0, maximum] and 0 outside it;
    in ``maximum`` it is 1[x > maximum], so a maximum can be trained too.

    Args:
        x: float array of any shape.
        maximum: > 0, scalar or broadcastable; the threshold to convert to.

    Source: Deng and Gu, ICLR 2021 ("threshold ReLU").

    >>> import jax.numpy as jnp
    >>> print(clipped_relu(jnp.array([-1.0, 0.5, 3.0]), 1.0))
    [0.  0.5 1. ]
    """
    return snnjax_clipped_relu(x, maximum)


# The capture knows it by this name, which nobody else is likely to use.
@jax.custom_jvp
def snnjax_clipped_relu(x, maximum):
    return jnp.clip(x, 0, jnp.asarray(maximum, x.dtype))


@snnjax_clipped_relu.defjvp
def _clipped_relu_jvp(primals, tangents):
    (x, maximum), (dx, dmaximum) = primals, tangents
    inside = (x >= 0) & (x <= maximum)
    slope = inside.astype(x.dtype) * dx + jnp.where(x > maximum, dmaximum, 0)
    return clipped_relu(x, maximum), slope.astype(x.dtype)


class Site(NamedTuple):
    """A place where a neuron fires instead of an activation.

    Attributes:
        name: its path in the network, e.g. ``ResNet/Block_0/relu_1``.
        kind: "relu", "clipped relu", "max-pool", or the internal "delay line".
        shape: of one example, without the batch axis.
        parameters: paths of the parameters that reach it without crossing
            another site; weight calibration changes only these.
        depth: number of firing sites on the longest way from the input to here.
        dtype: of its input and output.
        channel: axis that counts channels, from the end: -1 is the last.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: tuple[str, ...]
    depth: int
    dtype: Any
    channel: int = -1

    @property
    def fires(self) -> bool:
        """Whether neurons sit here; a max-pool only passes spikes on."""
        return self.kind in ("relu", "clipped relu")


class Sites(tuple[Site, ...]):
    """The sites of a network, in order of execution; ``print`` shows a table."""

    def __str__(self) -> str:
        head = ("site", "kind", "shape", "depth", "parameters")
        rows = [head] + [
            (
                site.name,
                site.kind,
                "x".join(map(str, site.shape)) or "scalar",
                str(site.depth),
                _shorten(site.parameters),
            )
            for site in self
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True))
            for row in rows
        ]
        return "\n".join(line.rstrip() for line in lines)


class Static:
    """A value that a static argument may hold: compared by content if it can be."""

    def __init__(self, value: Any):
        self.value = value
        dtype = getattr(value, "dtype", None)
        if dtype is not None and not isinstance(value, Tracer):
            array = np.asarray(value)
            self.key = (str(dtype), array.shape, array.tobytes())
        else:
            self.key = value if _hashable(value) else id(value)

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Static) or type(self.value) is not type(other.value):
            return False
        return bool(self.key == other.key)


class Equation(NamedTuple):
    """outputs = primitive(inputs), or outputs = rule(site, inputs).

    Inputs are variables (int) or constants (`Static`); ``path`` and ``calls`` only
    serve messages and names, so that equal work has equal equations.
    """

    primitive: Any
    params: tuple[tuple[str, Static], ...]
    inputs: tuple[int | Static, ...]
    outputs: tuple[int, ...]
    site: Site | None = None
    path: str = ""
    calls: tuple[str, ...] = ()

    @property
    def place(self) -> Site:
        """The site of an equation that has one."""
        assert self.site is not None
        return self.site


class Network(NamedTuple):
    """A captured function: equations over numbered variables.

    Attributes:
        equations: in order of execution, only those that the outputs need.
        avals: variable -> shape and dtype.
        parameters: variable -> path of the parameter leaf.
        x: variable of the input.
        constants: variable -> array that the function closed over.
        outputs: variables or constants, in the order of ``tree``.
        tree: structure of the function's result.
        sites: see `Sites`.
        depths: variable -> number of firing sites on the longest way to it.
        dependent: variables that depend on x.
        feeds: firing site name -> parameter variables that reach it directly.
        channels: for each output the axis that counts channels, from the end.
    """

    equations: tuple[Equation, ...]
    avals: dict[int, Any]
    parameters: dict[int, str]
    x: int
    constants: Values
    outputs: tuple[int | Static, ...]
    tree: Any
    sites: Sites
    depths: dict[int, int]
    dependent: frozenset[int]
    feeds: dict[str, tuple[int, ...]]
    channels: tuple[int, ...]

    def arguments(self, params: chex.ArrayTree, x: jax.Array | None = None) -> Values:
        """Variable -> array for ``params`` (and ``x``) of the captured structure."""
        leaves = jax.tree_util.tree_leaves(params)
        values = dict(self.constants)
        values.update(zip(self.parameters, leaves, strict=True))
        if x is not None:
            values[self.x] = x
        return values

    def results(self, values: Values) -> Any:
        """The function's result, from the values of its output variables."""
        outputs = [read(values, output) for output in self.outputs]
        return jax.tree_util.tree_unflatten(self.tree, outputs)


def identity(site: Site, x: jax.Array, *operands: Any) -> jax.Array:
    """The rule of the ANN itself; a max-pool's operand is the pooling function."""
    if site.kind == "max-pool":
        return operands[0](x)
    if site.kind == "clipped relu":
        return clipped_relu(x, *operands)
    return jax.nn.relu(x)


def evaluate(
    equations: Iterable[Equation],
    values: Values,
    rule: Rule,
    *,
    streams: frozenset[int] = frozenset(),
) -> None:
    """Run the equations, adding every output to ``values``.

    Args:
        equations: in order of execution.
        values: variable -> array; changed in place.
        rule: ``rule(site, x, *operands) -> array``. Operands: the maximum of a
            clipped ReLU; of a max-pool its function (`running_maximum` of it where
            x is a stream).
        streams: variables that carry a leading time axis; the equations that read
            them are mapped over it, so that time folds into the batch.
    """
    for equation in equations:
        arguments: list[Any] = [read(values, v) for v in equation.inputs]
        axes = [0 if v in streams else None for v in equation.inputs]
        if equation.site is None:
            function = functools.partial(_bind, equation)
            if 0 in axes:
                function = jax.vmap(function, in_axes=axes)
            results = function(*arguments)
        else:
            if equation.site.kind == "max-pool":
                pool = functools.partial(_pool, equation)
                if 0 in axes:
                    pool = functools.partial(running_maximum, pool)
                arguments.append(pool)
            results = [rule(equation.site, *arguments)]
        values.update(zip(equation.outputs, results, strict=True))


def running_maximum(
    pool: Callable, stream: jax.Array, total: jax.Array | None = None
) -> jax.Array:
    """Spiking max-pool: the increments of the pooled running sum, [T, B, ...].

        out[t] = pool(sum_{i <= t} s_i) - pool(sum_{i < t} s_i)

    Its mean is the max-pool of the means, so it converges where a max-pool of the
    spikes of each step overshoots; of spikes 0 or V_th it makes spikes 0 or V_th.

    Args:
        pool: max-pool of one step, [B, ...].
        stream: spikes of T steps, [T, B, ...].
        total: sum of the spikes of earlier steps, [B, ...]; none by default.
    """
    sums = jnp.cumsum(stream.astype(jnp.float32), axis=0)
    sums = sums if total is None else sums + total
    pooled = jax.vmap(pool)(sums)
    # Not pool(0): XLA would compute the pool of a constant, slowly, while compiling.
    before = jnp.zeros_like(pooled[0]) if total is None else pool(total)
    earlier = jnp.concatenate([before[None], pooled[:-1]])
    return (pooled - earlier).astype(stream.dtype)


def read(values: Values, variable: int | Static) -> Any:
    """The value of a variable, or the constant itself."""
    return variable.value if isinstance(variable, Static) else values[variable]


def needed(
    equations: Sequence[Equation], targets: Iterable[int], known: Iterable[int] = ()
) -> tuple[Equation, ...]:
    """The equations that ``targets`` depend on, not looking behind ``known``."""
    wanted, known = set(targets), set(known)
    kept = []
    for equation in reversed(equations):
        outputs = set(equation.outputs)
        if outputs & wanted and not outputs <= known:
            kept.append(equation)
            wanted |= {v for v in equation.inputs if isinstance(v, int)} - known
    return tuple(reversed(kept))


def streaming(
    equations: Sequence[Equation], sources: Iterable[int] = ()
) -> frozenset[int]:
    """Variables that change from step to step: ``sources``, spikes, what they reach."""
    streams = set(sources)
    for equation in equations:
        fires = equation.site is not None and equation.site.fires
        if fires or streams.intersection(variables(equation)):
            streams.update(equation.outputs)
    return frozenset(streams)


def delay_lines(network: Network, streams: frozenset[int]) -> list[Equation]:
    """The equations with explicit delay lines, so that all inputs of each are in step.

    A "delay line" is a site whose ``depth`` says how many layers a stream must wait
    for the others that it meets.
    """
    fresh = max(network.avals) + 1
    aligned: dict[tuple[int, int], int] = {}
    lined = []
    for equation in network.equations:
        depth = max(
            (network.depths[v] for v in variables(equation) if v in streams),
            default=0,
        )
        inputs = list(equation.inputs)
        for i, v in enumerate(inputs):
            if not isinstance(v, int) or v not in streams:
                continue
            behind = depth - network.depths[v]
            if behind and (v, depth) not in aligned:
                aligned[v, depth] = fresh
                aval = network.avals[v]
                name = f"delay line {fresh}"
                line = Site(name, "delay line", aval.shape[1:], (), behind, aval.dtype)
                lined.append(Equation(None, (), (v,), (fresh,), line))
                fresh += 1
            inputs[i] = aligned.get((v, depth), v)
        lined.append(equation._replace(inputs=tuple(inputs)))
    return lined


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
        equation: of the firing site that it leads to; `READOUT` for the last stage.
        segment: the work.
        sources: network variables that ``segment.inputs`` stand for.
        carried: network variables that ``segment.carried`` stand for.
    """

    equation: Equation
    segment: Segment
    sources: tuple[int, ...]
    carried: tuple[int, ...]


READOUT = Equation(None, (), (), ())


def stages(network: Network) -> list[Stage]:
    """Cut the network at its firing sites; what depends on x is computed once."""
    known = {*network.parameters, network.x, *network.constants}
    fires = [eq for eq in network.equations if eq.site is not None and eq.site.fires]
    waiting = [eq for eq in network.equations if not (eq.site and eq.site.fires)]
    cut = []
    for i, equation in enumerate([*fires, READOUT]):
        last = equation is READOUT
        ends = network.outputs if last else equation.inputs
        work = needed(waiting, [v for v in ends if isinstance(v, int)], known)
        made = {v for eq in work for v in eq.outputs} & network.dependent
        waiting = [eq for eq in waiting if not made.intersection(eq.outputs)]
        later = {v for eq in [*waiting, *fires[i + 1 :]] for v in variables(eq)}
        later |= {v for v in network.outputs if isinstance(v, int)}
        carried = () if last else tuple(sorted(made & later))
        cut.append(_stage(equation, work, ends, carried))
        known |= made | set(equation.outputs)
    return cut


def _stage(equation, work, ends, carried) -> Stage:
    numbers: dict[int, int] = {}
    made = {v for eq in work for v in eq.outputs}

    def number(v):
        return numbers.setdefault(v, len(numbers)) if isinstance(v, int) else v

    canonical = []
    for eq in work:
        inputs = tuple(map(number, eq.inputs))
        outputs = tuple(map(number, eq.outputs))
        site = _nameless(eq.site) if eq.site else None
        canonical.append(Equation(eq.primitive, eq.params, inputs, outputs, site))
    outputs, kept = tuple(map(number, ends)), tuple(map(number, carried))
    sources = tuple(v for v in numbers if v not in made)
    inputs = tuple(numbers[v] for v in sources)
    segment = Segment(tuple(canonical), inputs, outputs, kept)
    return Stage(equation, segment, sources, carried)


def _nameless(site: Site) -> Site:
    return site._replace(name="", parameters=(), depth=0, channel=-1)


def _bind(equation: Equation, *arguments):
    params = {name: static.value for name, static in equation.params}
    bound = equation.primitive.get_bind_params(params)
    # (subfunctions, params) before jax 0.9.2, params alone since then.
    functions, params = bound if isinstance(bound, tuple) else ((), bound)
    results = equation.primitive.bind(*functions, *arguments, **params)
    return results if equation.primitive.multiple_results else [results]


def _pool(equation: Equation, x):
    return _bind(equation, x)[0]


def variables(equation: Equation) -> list[int]:
    return [v for v in equation.inputs if isinstance(v, int)]


def common(paths: Sequence[str]) -> str:
    """The longest path above all of the paths; a single path is its own."""
    split = [path.split("/") for path in paths]
    if len(split) == 1:
        return paths[0]
    common = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return "/".join(common)


def _shorten(paths: Sequence[str], limit: int = 40) -> str:
    """At most ``limit`` characters: the first paths, and how many more there are."""
    text = ", ".join(paths)
    if len(text) <= limit:
        return text
    above = common(paths)
    return f"{above}/* ({len(paths)})" if above else f"{paths[0]}, ... ({len(paths)})"


def _hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True
