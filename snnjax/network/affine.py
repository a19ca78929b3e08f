"""What may stand between two sites: what is affine, and what an operator computes.

    f(sum_t s_t / T) = sum_t f(s_t) / T    holds for every affine f and no other

so what is affine is applied to every step, and other functions to running means
(``increments.py``). What is neither, `check` reports, with its path and the remedy:
examples that meet, loops, random and whole numbers.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from snnjax.network.axes import Avals, axes_of_maximum
from snnjax.network.batch import FIRST, Batch
from snnjax.network.equations import Equation, Network, spread_out
from snnjax.network.jaxprs import CUSTOM, hides_site
from snnjax.network.ways import live


class Problem(NamedTuple):
    """Something that stands in the way of a conversion.

    Attributes:
        path: where in the network, e.g. ``Net/LayerNorm_0``.
        operations: names of the operations there.
        reason: why it cannot be converted.
        remedy: the way out.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn = lambda w, x: jax.nn.relu(x @ w).argmax(-1)
    >>> try:
    ...     snnjax.sites(fn, jnp.eye(2), jnp.eye(2))
    ... except snnjax.ConversionError as error:
    ...     (problem,) = error.problems
    >>> problem.operations, problem.remedy
    (('argmax',), 'return the logits from fn and decide on the mean output')
    """

    path: str
    operations: tuple[str, ...]
    reason: str
    remedy: str


class ConversionError(ValueError):
    """The network cannot be converted; ``problems`` lists everything in the way.

    Attributes:
        problems: a `snnjax.network.Problem` for each place in the network.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn = lambda w, x: jax.nn.relu(x @ w).argmax(-1)
    >>> try:
    ...     snnjax.sites(fn, jnp.eye(2), jnp.eye(2))
    ... except snnjax.ConversionError as error:
    ...     print(error)
    this network cannot be converted (1 place):
      (top level): argmax
        places in an order, by sorting activations, have no running mean
        remedy: return the logits from fn and decide on the mean output
    """

    __module__ = "snnjax"  # where users find it

    def __init__(
        self,
        problems: Sequence[Problem],
        headline: str = "this network cannot be converted",
    ):
        self.problems = tuple(problems)
        places = "place" if len(self.problems) == 1 else "places"
        lines = [f"{headline} ({len(problems)} {places}):"]
        for problem in self.problems:
            where = problem.path or "(top level)"
            operations = ", ".join(problem.operations)
            lines.append(f"  {where}: {operations}" if operations else f"  {where}")
            lines.append(f"    {problem.reason}")
            lines.append(f"    remedy: {problem.remedy}")
        super().__init__("\n".join(lines))


# Affine in every operand together.
_ADDITIVE = frozenset(
    "add add_any broadcast_in_dim concatenate convert_element_type copy copy_p cumsum "
    "expand_dims mesh_cast name neg optimization_barrier pad reduce_precision "
    "reduce_sum reduce_window_sum reshape reshard rev sharding_constraint slice split "
    "squeeze stack stop_gradient sub tile transpose unstack".split()
)
# Affine in each operand alone, so only one of them may depend on the input.
_BILINEAR = frozenset("mul dot_general conv_general_dilated".split())
# Affine in these operands only: the others choose or scale.
_AFFINE_IN = {
    "div": {0},
    "gather": {0},
    "dynamic_slice": {0},
    "dynamic_update_slice": {0, 1},
    "scatter": {0, 2},
    "scatter-add": {0, 2},
    "scatter_add": {0, 2},
    "scatter-sub": {0, 2},
    "scatter_sub": {0, 2},
    "scatter-mul": {0},
    "scatter_mul": {0},
}
_RANDOM = frozenset("random_bits threefry2x32 rng_bit_generator rng_uniform".split())
_CURVES = frozenset(
    "tanh logistic erf erfc erf_inv exp exp2 expm1 log log1p sin cos tan asin acos "
    "atan atan2 sinh cosh asinh acosh atanh cumlogsumexp".split()
)
_LOOPS = frozenset("while cond shard_map pallas_call".split())
_POWERS = frozenset(
    "rsqrt sqrt cbrt square integer_pow pow div reduce_prod cumprod".split()
)
_CLIPS = frozenset(
    "max min reduce_max reduce_min reduce_window_max reduce_window_min clamp abs sign "
    "cummax cummin floor ceil round rem".split()
)
_DECISIONS = frozenset(
    "eq ne lt le gt ge and or not xor select_n is_finite reduce_and reduce_or".split()
)
# Not affine, and computed on running means.
_OPERATORS = _CURVES | _POWERS | _CLIPS | _DECISIONS | _BILINEAR
_ORDERS = frozenset("argmax argmin sort top_k".split())

_KINDS = {
    "recurrence": frozenset({"scan"}),  # one over layers is unrolled before
    "loop": _LOOPS,
    "order": _ORDERS,
    "window": frozenset({"reduce_window"}),
}

# Explanations of functions that may be computed once, from the input alone. Not loops
# and unknown functions: in those an example might reach another.
_ONCE = frozenset("order integer".split())
_FLOATING = "fV"  # kinds of NumPy's types; V is bfloat16
OPERATOR = "operator"  # of an equation that is computed on running means
_USE_RELU = (
    "train or fine-tune the ANN with jax.nn.relu, snnjax.clipped_relu or "
    "snnjax.quantized_relu"
)
_EXPLANATIONS = {
    "window": (
        "a reduction over windows by a function of its own is not affine; a max-pool "
        "is known if it starts from the number -inf, not from 0 or an array",
        "write jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, ...), with -jnp.inf as "
        "it is",
    ),
    "maximum": (
        "the maximum of a clipped or quantized ReLU depends on the input: a threshold "
        "cannot",
        "make it a constant or a parameter",
    ),
    "maxima": (
        "the maximum of a clipped or quantized ReLU differs within a channel: a "
        "threshold cannot",
        "give it one number, or one for each channel",
    ),
    "batch": (
        "one example would reach another: this works along the batch axis",
        "keep the examples of a batch apart in fn (statistics belong into params; "
        "h[:, i] in the place of h[jnp.arange(B), i])",
    ),
    "behind": (
        "the batch is not the first axis here; vmap puts it last if weights are "
        "multiplied from the left, W @ x",
        "write x @ W.T in fn, or move the batch to the front before the activation",
    ),
    "recurrence": (
        "a scan along an axis of the input, a recurrence, has a time of its own; one "
        "over stacked parameters is unrolled",
        'give that axis as steps, by inputs="sequence", or write a for loop over it',
    ),
    "loop": (
        "activations inside a loop whose length may depend on values, a branch, "
        "shard_map or a kernel, with or without a ReLU in it, are out of reach",
        "take a loop of fixed length (scan, fori_loop from 0 to a number), or an if on "
        "a static value",
    ),
    "hidden": (
        "a ReLU inside a branch, or a loop that is no scan over layers, is out of "
        "reach: it would not spike",
        "take a loop of fixed length (scan, fori_loop from 0 to a number), or an if on "
        "a static value",
    ),
    "random": (
        "random numbers enter the activations",
        "switch dropout off (deterministic=True) and take augmentation out of fn",
    ),
    "order": (
        "places in an order, by sorting activations, have no running mean",
        "return the logits from fn and decide on the mean output",
    ),
    "decision": (
        "a truth value of activations leaves the function that computes it",
        "choose between values that no ReLU and no product with weights separates from "
        "the comparison; return the logits from fn and decide on the mean output",
    ),
    "integer": (
        "activations are converted to a type that is not floating point",
        "keep activations in float32 or bfloat16; quantise outside fn",
    ),
    "unknown": (
        "neither affine in the activations nor a function that is known by name",
        "compute it outside fn, or write it by other operations",
    ),
}


def check(network: Network, count: int, *, affine: bool) -> None:
    """Raise `ConversionError` unless a rule can take the place of every activation.

    Args:
        network: with every call inlined.
        count: how many of its outputs are answers, with the batch on the first axis.
        affine: between the sites stands what is affine, or in operators; otherwise
            anything may stand there, unless it hides a site.
    """
    batch = Batch(network.x, network.avals)
    trouble = _Affine(network, batch) if affine else _hidden_site
    troubles: dict[str, dict[str, list[str]]] = {}
    for equation in spread_out(network.equations):
        kind = trouble(equation)
        if kind is not None:
            names = troubles.setdefault(equation.path, {}).setdefault(kind, [])
            if equation.name not in names:
                names.append(equation.name)
    problems = [
        Problem(path, tuple(names), *_EXPLANATIONS[kind])
        for path, kinds in troubles.items()
        for kind, names in kinds.items()
    ]
    problems += _shape_problems(network, network.outputs[:count], batch)
    if not problems and not any(site.fires for site in network.sites):
        problems = [
            Problem(
                "",
                (),
                "no ReLU, and no product with weights behind another "
                "activation, so nothing would spike",
                _USE_RELU,
            )
        ]
    if problems:
        raise ConversionError(problems)


def check_streams(network: Network) -> None:
    """Raise if x, as it changes from step to step, gives numbers that have no mean."""
    problems = [
        Problem(
            equation.path,
            tuple(dict.fromkeys(inner.name for inner in equation.body.equations)),
            "truth values or whole numbers of an input that changes in time have no "
            "running mean",
            "compute them outside fn and pass them as numbers, or use "
            "inputs='constant'",
        )
        for equation in network.equations
        if equation.body
        and any(network.avals[v].dtype.kind not in _FLOATING for v in equation.outputs)
    ]
    if problems:
        raise ConversionError(problems, "this network takes a constant input only")


def _hidden_site(equation: Equation) -> str | None:
    return "hidden" if hides_site(equation) else None


class _Affine:
    """equation -> which explanation applies, if any; follows the batch axis along."""

    def __init__(self, network: Network, batch: Batch):
        self.dependent, self.avals = network.dependent, network.avals
        self.live = live(network.equations)
        self.batch = batch
        # What leaves an operator.
        self.results = {v for eq in network.equations if eq.body for v in eq.outputs}

    def __call__(self, equation: Equation) -> str | None:
        kind = _not_affine(equation, self.dependent, self.live, self.avals)
        if kind == OPERATOR:
            results = self.results.intersection(equation.outputs) & self.live
            floating = all(self.avals[v].dtype.kind in _FLOATING for v in results)
            kind = None if floating else "decision"
        mixed, axis = self.batch.follow(equation)
        off = equation.site is not None and axis
        return kind or ("batch" if mixed else "behind" if off else None)


def _not_affine(
    equation: Equation,
    dependent: frozenset[int],
    live: frozenset[int],
    avals: Avals,
) -> str | None:
    """Which of the explanations applies to an equation, if any does.

    What depends on the input alone may be any function of it: it is computed once.
    """
    kind = _explanation(equation, dependent, avals)
    once = not live.intersection((*equation.variables, *equation.outputs))
    if equation.name in ("gather", "dynamic_slice"):  # by numbers from the input
        chosen = {i for i, v in enumerate(equation.inputs) if v in live}
        return OPERATOR if kind and chosen <= {0} else kind
    return OPERATOR if kind in _ONCE and once else kind


def _explanation(
    equation: Equation, dependent: frozenset[int], avals: Avals
) -> str | None:
    """The same, of an equation that spikes reach."""
    name = equation.name
    if name in _RANDOM:
        return "random"
    reached = {i for i, v in enumerate(equation.inputs) if v in dependent}
    if not reached:
        return None
    if equation.site is not None:
        if reached > {0}:
            return "maximum"
        others = axes_of_maximum(equation, avals) - {equation.site.channel}
        return "maxima" if others else None
    if name == "integer_pow" and equation.options["y"] == 1:
        return None
    if name == "convert_element_type":
        if avals[equation.outputs[0]].dtype.kind not in _FLOATING:
            return "integer"
        of_truth = avals[equation.variables[0]].dtype.kind == "b"
        return OPERATOR if of_truth else None
    if name == "select_n" and 0 not in reached:
        return None
    if name in _ADDITIVE or (name in _BILINEAR and len(reached) == 1):
        return None
    if reached <= _AFFINE_IN.get(name, set()):
        return None
    if name in _OPERATORS or name in CUSTOM:  # a ReLU that is part of an operator
        return OPERATOR
    return next((kind for kind, names in _KINDS.items() if name in names), "unknown")


def is_operator(
    equation: Equation,
    dependent: frozenset[int],
    live: frozenset[int],
    avals: Avals,
) -> bool:
    """Whether an equation is not affine in what depends on x, but an operator."""
    if equation.site is not None:
        return False
    return _not_affine(equation, dependent, live, avals) == OPERATOR


def _shape_problems(
    network: Network, outputs: Sequence[Any], followed: Batch
) -> Iterator[Problem]:
    avals, batch = network.avals, network.batch
    remedy = (
        "give x a batch axis, and keep it first: reshape(batch, ...), not (-1, ...)"
    )
    sites = [eq for eq in network.equations if eq.site is not None]
    sites = [eq for eq in sites if not eq.body]  # an operator may lie across
    places = [(eq.path, eq.outputs[0], "a site") for eq in sites]
    places += [("", v, "an output") for v in outputs]
    for path, variable, what in places:
        if not isinstance(variable, int):
            reason = "an output is a number by itself, without the axis of the batch"
            yield Problem(path, (), reason, "leave out of fn what x does not reach")
            continue
        shape = tuple(avals[variable].shape)
        if not shape or shape[0] != batch:
            reason = f"{what} has shape {shape}, but its first axis must be the batch"
            yield Problem(path, (), f"{reason} ({batch})", remedy)
        elif what == "an output" and followed.positions.get(variable, FIRST) != FIRST:
            reason = "an output has the batch on another axis than the first"
            yield Problem(path, (), reason, remedy)
        elif len(shape) == 1 and what == "a site":
            reason = f"a site has shape {shape}: a batch of single numbers"
            remedy = "give it an axis of features: x[:, None], or keepdims=True"
            yield Problem(path, (), reason, remedy)
