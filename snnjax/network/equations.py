"""A captured network: equations over numbered variables, and its sites.

A *site* is a place where the ANN applies ReLU (or clipped ReLU, or max-pool).
`evaluate` runs the equations with a rule of one's choice at every site: the ANN's
own activation (`identity`), a spiking neuron, a calibrator. ``capture.py`` makes
networks from functions.
"""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from snnjax._checks import check_floating
from snnjax._trees import name_of

Rule = Callable[..., jax.Array]
Values = dict[int, Any]


def clipped_relu(x: jax.Array, maximum: jax.Array | float) -> jax.Array:
    """min(max(x, 0), maximum): the activation of the ICLR 2021 source networks.

    The derivative in x is 1 on the closed interval [0, maximum] and 0 outside it;
    in ``maximum`` it is 1[x > maximum], so a maximum can be trained too.

    Args:
        x: float array of any shape.
        maximum: > 0, the threshold to convert to: one number, or one per channel.
            Others are an activation too, but nothing that `snnjax.convert` takes.

    Raises:
        ValueError: a number that is not positive; x is not of floating point.

    Source: Deng and Gu, ICLR 2021 ("threshold ReLU").

    >>> import jax.numpy as jnp
    >>> print(clipped_relu(jnp.array([-1.0, 0.5, 3.0]), 1.0))
    [0.  0.5 1. ]
    """
    check_floating("x", x)
    numbers = int | float | np.number | np.ndarray | jax.Array
    known = isinstance(maximum, numbers) and not isinstance(maximum, Tracer)
    # By NumPy, since inside jit JAX would trace a comparison of known numbers too.
    if known and not np.all(np.asarray(maximum) > 0):
        raise ValueError(f"maximum is {maximum}; allowed: > 0")
    if not jnp.issubdtype(jnp.result_type(maximum), jnp.floating):
        maximum = jnp.asarray(maximum, x.dtype)  # a whole number has no tangent
    return snnjax_clipped_relu(x, maximum)


@jax.custom_jvp
def snnjax_clipped_relu(x, maximum):
    """Named so that the capture knows it: nobody else is likely to use this name."""
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
        wait: layers that a delay line holds its stream back; 0 elsewhere.
        own_maxima: whether each channel of a clipped ReLU has a maximum of its own.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: tuple[str, ...]
    depth: int
    dtype: Any
    channel: int = -1
    wait: int = 0
    own_maxima: bool = False

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
        readout: parameter variables that reach an output directly.
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
    readout: frozenset[int]
    channels: tuple[int, ...]

    def arguments(self, params: chex.ArrayTree, x: jax.Array | None = None) -> Values:
        """Variable -> array for ``params`` (and ``x``) of the captured structure."""
        leaves = jax.tree_util.tree_leaves(params)
        values = dict(self.constants)
        values.update(zip(self.parameters, leaves, strict=True))
        if x is not None:
            values[self.x] = x
        return values

    def output_names(self) -> list[str]:
        """The path of each output in the function's result, "" if it is all of it."""
        numbered = jax.tree_util.tree_unflatten(self.tree, range(len(self.outputs)))
        return [name_of(p) for p, _ in jax.tree_util.tree_leaves_with_path(numbered)]

    def results(self, values: Values) -> Any:
        """The function's result, from the values of its output variables."""
        outputs = [read(values, output) for output in self.outputs]
        return jax.tree_util.tree_unflatten(self.tree, outputs)


def identity(site: Site, x: jax.Array, *operands: Any) -> jax.Array:
    """The rule of the ANN itself, for every kind of site."""
    if site.kind == "max-pool":
        return operands[0](x)
    if site.kind == "clipped relu":
        return clipped_relu(x, *operands)
    return jax.nn.relu(x)


def pooled(function: Callable, x: jax.Array) -> jax.Array:
    """What a max-pool makes of x by itself."""
    return function(x)


def firing(
    fire: Callable[..., jax.Array],
    neurons: Mapping[str, Any],
    pool: Callable[..., jax.Array] = pooled,
) -> Rule:
    """The rule that fires: ``fire(site, params, x)``, with the params of its neurons.

    Args:
        neurons: site name -> params.
        pool: ``pool(function, x)`` -> what a max-pool makes of spikes.
    """

    def rule(site: Site, x: jax.Array, *operands: Any) -> jax.Array:
        if site.kind == "max-pool":
            return pool(*operands, x)
        return fire(site, neurons[site.name], x)

    return rule


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
    """Its inputs without the constants."""
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
