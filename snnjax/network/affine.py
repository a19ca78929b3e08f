"""What may stand between two sites: operations that are affine in the activations.

    f(sum_t s_t / T) = sum_t f(s_t) / T    holds for every affine f and no other

so a network converts exactly if everything between its activations is affine.
`check` proves that, or reports everything in the way, with its path and the remedy.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Problem(NamedTuple):
    """Something that stands in the way of a conversion.

    Attributes:
        path: where in the network, e.g. ``Net/LayerNorm_0``.
        operations: what was found there.
        reason: why it cannot be converted.
        remedy: the way out.
    """

    path: str
    operations: tuple[str, ...]
    reason: str
    remedy: str


class ConversionError(ValueError):
    """The network cannot be converted; ``problems`` lists everything in the way."""

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
            found = ", ".join(problem.operations)
            lines.append(f"  {where}: {found}" if found else f"  {where}")
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
}
_REDUCTIONS = frozenset("reduce_sum reduce_max reduce_min reduce_prod".split())
_RANDOM = frozenset("random_bits threefry2x32 rng_bit_generator rng_uniform".split())
_CURVES = frozenset(
    "tanh logistic erf erfc erf_inv exp exp2 expm1 log log1p sin cos".split()
)
_LOOPS = frozenset("scan while cond shard_map pallas_call".split())
_STATISTICS = frozenset("rsqrt sqrt square integer_pow pow div".split())
_ACTIVATIONS = frozenset(
    "celu elu gelu glu hard_sigmoid hard_silu hard_swish hard_tanh leaky_relu "
    "log_sigmoid log_softmax mish prelu selu sigmoid silu soft_sign softmax softplus "
    "sparse_plus squareplus swish tanh hard_tanh relu relu6".split()
)
_CLIPS = frozenset("max min reduce_min clamp abs sign".split())
_DECISIONS = frozenset(
    "eq ne lt le gt ge and or not select_n argmax argmin sort top_k".split()
)

_KINDS = {
    "activation": _CURVES,
    "statistics": _STATISTICS,
    "loop": _LOOPS,
    "clip": _CLIPS,
    "decision": _DECISIONS,
}

_USE_RELU = "train or fine-tune the ANN with jax.nn.relu or snnjax.clipped_relu"
_EXPLANATIONS = {
    "activation": ("spikes can only stand for a ReLU, clipped or not", _USE_RELU),
    "softmax": (
        "a softmax of activations has no rate-coded form",
        "end the network at its logits; replace attention by an affine layer",
    ),
    "clip": (
        "a maximum, minimum or absolute value of activations is no site",
        "write jax.nn.relu(x), snnjax.clipped_relu(x, maximum) or a max-pool (a "
        "min-pool is -max-pool(-x))",
    ),
    "power": (
        "a power, root or quotient of activations is not affine",
        "compute it outside fn, or replace it by affine operations and ReLU",
    ),
    "maximum": (
        "the maximum of a clipped ReLU depends on the input: a threshold cannot",
        "make it a constant or a parameter",
    ),
    "batch": (
        "one example would reach another: this works along the batch axis",
        "keep the examples of a batch apart in fn (statistics belong into params)",
    ),
    "behind": (
        "the batch is not the first axis here; vmap puts it last if weights are "
        "multiplied from the left, W @ x",
        "write x @ W.T in fn, or move the batch to the front before the activation",
    ),
    "statistics": (
        "a norm whose statistics depend on the activations is not affine",
        "use BatchNorm with its running averages (use_running_average=True); to train "
        "with batch statistics, return them as aux: snnjax.spiking(fn, has_aux=True)",
    ),
    "product": (
        "a product of activations is not affine (gate, attention, LayerNorm)",
        "use BatchNorm with running averages for a norm; replace a gate or attention "
        "by an affine layer",
    ),
    "loop": (
        "activations inside a loop or branch (scan, while, cond, shard_map), with or "
        "without a ReLU in it, are out of reach",
        "unroll it in Python: a for loop over the layers, an if on a static value",
    ),
    "hidden": (
        "a ReLU inside a loop or branch is out of reach: it would not spike",
        "unroll it in Python: a for loop over the layers, an if on a static value",
    ),
    "random": (
        "random numbers enter the activations",
        "switch dropout off (deterministic=True) and take augmentation out of fn",
    ),
    "decision": (
        "a comparison or a choice by activations is not affine",
        "write jax.nn.relu(x) for jnp.where(x > 0, x, 0); return the logits from fn "
        "and decide on the mean output",
    ),
    "integer": (
        "activations are converted to a type that is not floating point",
        "keep activations in float32 or bfloat16; quantise outside fn",
    ),
    "unknown": (
        "not affine in the activations",
        "compute it outside fn, or replace it by affine operations and ReLU",
    ),
}


def check(equations, x, dependent, avals, outputs, trouble=None) -> None:
    """Raise `ConversionError` unless all is affine between the sites.

    Args:
        equations: of the network with every call inlined, in order of execution.
        x: variable of the input; its first axis is the batch.
        dependent: variables that depend on the input.
        avals: variable -> shape and dtype.
        outputs: variables or constants that the network returns.
        trouble: equation -> key of its explanation, or None if it is allowed;
            by default allowed is what is affine.
    """
    if trouble is None:
        trouble = _Affine(x, dependent, avals)
    found: dict[str, dict[str, list[str]]] = {}
    for equation in equations:
        kind = trouble(equation)
        if kind is not None:
            names = found.setdefault(equation.path, {}).setdefault(kind, [])
            if (name := _name(equation)) not in names:
                names.append(name)
    problems = [
        Problem(path, tuple(names), *_EXPLANATIONS[kind])
        for path, kinds in found.items()
        for kind, names in _merge(path, kinds).items()
    ]
    sites = [eq for eq in equations if eq.site is not None]
    problems += _shape_problems(sites, avals, avals[x].shape[0], outputs)
    if not problems and not any(eq.site.fires for eq in sites):
        problems = [
            Problem("", (), "it has no ReLU, so nothing would spike", _USE_RELU)
        ]
    if problems:
        raise ConversionError(problems)


def channel_axis(equation, dependent, avals, channels: dict[int, int]) -> int | None:
    """Which axis of an equation's output counts channels; None if that is unknown.

    Convolutions and matrix products make channels; what follows moves them about.

    Args:
        equation: one that depends on the input.
        dependent: variables that depend on the input.
        avals: variable -> shape and dtype.
        channels: variable -> axis, as far as it is known.
    """
    name = getattr(equation.primitive, "name", "")
    params = {key: static.value for key, static in equation.params}
    if name == "conv_general_dilated":
        return params["dimension_numbers"].out_spec[1]
    if name == "dot_general":
        return _dot_channel(equation, dependent, avals, params["dimension_numbers"])
    known = [v for v in equation.inputs if v in channels]
    if not known:
        return None
    before, after = avals[known[0]].shape, avals[equation.outputs[0]].shape
    axis = channels[known[0]]
    return _moved(name, params, axis, before, after)


def _moved(name: str, params, axis: int, before, after) -> int | None:
    """Where an axis of the operand lies in the result; None if that is unknown."""
    if name == "transpose":
        return list(params["permutation"]).index(axis)
    if name == "broadcast_in_dim":
        return params["broadcast_dimensions"][axis]
    if name in _REDUCTIONS:
        gone = params["axes"]
        return None if axis in gone else axis - sum(a < axis for a in gone)
    if name == "stack":
        return axis + (axis >= params["axis"])
    if name == "unstack":
        gone = params["axis"]
        return None if axis == gone else axis - (axis > gone)
    if len(before) == len(after) and name != "reshape":
        return axis
    # A reshape keeps the axis if as much stands behind it as before.
    behind = math.prod(before[axis + 1 :])
    for i, size in enumerate(after):
        if size == before[axis] and math.prod(after[i + 1 :]) == behind:
            return i
    return None


def _dot_channel(equation, dependent, avals, dimension_numbers) -> int | None:
    """The last free axis of the weights, where a product puts it."""
    contract, batch = dimension_numbers
    free = []
    for side, v in enumerate(equation.inputs[:2]):
        taken = {*contract[side], *batch[side]}
        axes = [a for a in range(_ndim(v, avals)) if a not in taken]
        free += [v not in dependent] * len(axes)
    if True not in free:
        return None
    return len(batch[0]) + max(i for i, weights in enumerate(free) if weights)


def _ndim(v, avals) -> int:
    """Axes of a variable, or of a constant."""
    return len(avals[v].shape) if isinstance(v, int) else np.ndim(v.value)


class _Affine:
    """equation -> which explanation applies, if any; follows the batch axis along."""

    def __init__(self, x, dependent, avals):
        self.dependent, self.avals = dependent, avals
        self.batch: dict[int, int] = {x: 0}  # as far as it is known

    def __call__(self, equation) -> str | None:
        kind = _not_affine(equation, self.dependent, self.avals)
        mixed, axis = follow(equation, self.batch, self.avals)
        off = equation.site is not None and axis
        return kind or ("batch" if mixed else "behind" if off else None)


_MIXED = -1


def follow(equation, batch: dict[int, int], avals) -> tuple[bool, int | None]:
    """Whether examples meet, and the batch axis of the outputs if it is known.

    Args:
        batch: variable -> axis, as far as it is known; the outputs are added.
        avals: variable -> shape and dtype.
    """
    found = {
        _batch_axis(equation, i, batch[v], avals)
        for i, v in enumerate(equation.inputs)
        if isinstance(v, int) and v in batch
    }
    known = found - {None}
    if _MIXED in known or len(known) > 1:
        return True, None
    if not known:
        return False, None
    (axis,) = known
    if None not in found:
        batch.update(dict.fromkeys(equation.outputs, axis))
    return False, axis


def _batch_axis(equation, i: int, axis: int, avals) -> int | None:
    """Where the batch axis of input i lies in the output; _MIXED, None if unknown."""
    name = getattr(equation.primitive, "name", "")
    params = {key: static.value for key, static in equation.params}
    before = avals[equation.inputs[i]].shape
    after = avals[equation.outputs[0]].shape
    if name == "dot_general":
        return _dot_batch(i, axis, before, params["dimension_numbers"], equation, avals)
    if name == "conv_general_dilated":
        spec = params["dimension_numbers"]
        if i == 1:
            return None
        return spec.out_spec[0] if spec.lhs_spec[0] == axis else _MIXED
    if name == "gather":
        return None if params["slice_sizes"][axis] == before[axis] else _MIXED
    mixed = {
        "rev": lambda: axis in params["dimensions"],
        "concatenate": lambda: axis == params["dimension"],
        "pad": lambda: params["padding_config"][axis] != (0, 0, 0),
        "slice": lambda: after[axis] != before[axis],
        "dynamic_slice": lambda: after[axis] != before[axis],
        "split": lambda: axis == params["axis"],
        "unstack": lambda: axis == params["axis"],
        "tile": lambda: params["reps"][axis] != 1,
        "cumsum": lambda: axis == params["axis"],
        "reduce_window_sum": lambda: params["window_dimensions"][axis] != 1,
        "reduce_window_max": lambda: params["window_dimensions"][axis] != 1,
    }
    if name in _REDUCTIONS and axis in params["axes"]:
        return _MIXED
    if name in mixed and mixed[name]():
        return _MIXED
    return _moved(name, params, axis, before, after)


def _dot_batch(i, axis, before, dimension_numbers, equation, avals) -> int:
    contract, batch = dimension_numbers
    if axis in contract[i]:
        return _MIXED
    if axis in batch[i]:
        return list(batch[i]).index(axis)
    taken = {*contract[i], *batch[i]}
    place = sum(a not in taken for a in range(axis)) + len(batch[0])
    if i == 1:
        other = _ndim(equation.inputs[0], avals)
        place += other - len(contract[0]) - len(batch[0])
    return place


def _not_affine(equation, dependent, avals) -> str | None:
    """Which of the explanations applies to an equation, if any does."""
    name = getattr(equation.primitive, "name", "")
    if name in _RANDOM:
        return "random"
    reached = {i for i, v in enumerate(equation.inputs) if v in dependent}
    if not reached:
        return None
    if equation.site is not None:
        return "maximum" if reached > {0} else None
    called = _activation(equation)
    if name == "convert_element_type":
        floating = avals[equation.outputs[0]].dtype.kind in "fV"  # V: bfloat16
        return None if floating else "integer"
    if name == "select_n" and 0 not in reached:
        return None
    if name in _ADDITIVE or (name in _BILINEAR and len(reached) == 1):
        return None
    if reached <= _AFFINE_IN.get(name, set()):
        return None
    if called is not None:
        return "softmax" if "softmax" in called else "activation"
    if name in _BILINEAR:
        return "product"
    return next((kind for kind, names in _KINDS.items() if name in names), "unknown")


def _activation(equation) -> str | None:
    """The activation function that an equation is part of: silu, softmax, ..."""
    return next((call for call in equation.calls if call in _ACTIVATIONS), None)


def _name(equation) -> str:
    return _activation(equation) or equation.primitive.name


def _merge(path: str, kinds: dict[str, list[str]]) -> dict[str, list[str]]:
    """One entry for what is one operation to a person: a norm, a softmax, a GELU."""
    found = {name for names in kinds.values() for name in names}
    if {"exp", "div"} <= found:  # a softmax that JAX has inlined
        return {"softmax": ["softmax", *sorted(found)]}
    norm = bool({"sqrt", "rsqrt"} & found)
    if "activation" in kinds and "integer_pow" in found and not norm:  # GELU, likewise
        return {"activation": sorted(found)}
    if not norm or "statistics" not in kinds:
        return {"power" if k == "statistics" else k: v for k, v in kinds.items()}
    merged = dict(kinds)
    absorbed = merged.pop("clip", []) + merged.pop("product", [])
    merged["statistics"] = [*kinds["statistics"], *absorbed]
    return merged


def _shape_problems(sites, avals, batch, outputs):
    remedy = (
        "give x a batch axis, and keep it first: reshape(batch, ...), not (-1, ...)"
    )
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
        elif len(shape) == 1 and what == "a site":
            reason = f"a site has shape {shape}: a batch of single numbers"
            yield Problem(path, (), reason, "give it an axis of features: x[:, None]")
