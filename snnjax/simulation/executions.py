"""Executions: several ways to compute the same spikes.

`run_in_time` computes n steps at a time, from one (by step) to all of them (by layer).
`run_closed_form` needs no loop over time, since each layer waits for all its input.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from snnjax._arrays import add_offset, lead, subtract_offset, wide
from snnjax._ranges import COUNT
from snnjax._trees import batch_of, is_floating, name_of
from snnjax.codes import Code
from snnjax.firing import over_time
from snnjax.network.equations import Equation, Network, Values, read
from snnjax.network.evaluate import (
    evaluate,
    firing,
    identity,
    operator,
    operator_rule,
)
from snnjax.network.increments import Operator
from snnjax.network.sites import Site
from snnjax.network.stages import needed, streaming
from snnjax.neurons.gradients import WithSurrogate
from snnjax.neurons.models import NeuronParams
from snnjax.neurons.schedule import schedule
from snnjax.neurons.unroll import after_all_input, closed_form, fold, unroll
from snnjax.snn import SNN


class Job(NamedTuple):
    """One simulation of a captured network: the argument of every execution.

    Attributes:
        network: captured for x (one step of a sequence).
        models: site name -> its model, with the surrogate of the simulation.
        x: [B, ...], or [T, B, ...] if it is a sequence.
        steps, wait: T, and how many steps every layer integrates before it fires.
        sequence: x has a time axis.
        answer: the mean over T is asked for, not every step.

    Between the sites, streams hold spikes if the SNN's code is rate coding, and decoded
    values otherwise (`snnjax.codes.Code.stream`).
    """

    network: Network
    snn: SNN
    models: Mapping[str, WithSurrogate]
    x: chex.ArrayTree
    steps: int
    wait: int
    sequence: bool
    answer: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class ByLayer:
    """The execution layer by layer, some steps at a time.

    Args:
        segment: steps at a time, 1..T. The gradient keeps only the states between the
            segments and computes each of them again, so the memory is least near
            sqrt(T). On CPU, 25 steps of dense layers stay in the cache, and a long T is
            faster; the gradient of a convolution is ten times slower.

    Raises:
        ValueError: segment is no whole number >= 1.

    A value for ``snnjax.spiking(..., execution=...)``:

    >>> ByLayer(segment=25)
    ByLayer(segment=25)
    """

    segment: int

    def __post_init__(self):
        COUNT.check("segment", self.segment)


def run_in_time(
    job: Job, size: int, state: Mapping[str, Any] | None = None
) -> tuple[Any, dict[str, Any]]:
    """T steps in segments of ``size`` steps, from one state to the next.

    Within a segment it goes layer by layer: equations map over time, and each site
    scans over it. All T steps at once are "by_layer". One at a time is "by_step", a
    loop over the whole network as a chip runs it. A wait, and a code other than rate
    coding, need all of them.

    A gradient of one step at a time keeps the state of each neuron before it fires.
    One of segments keeps the states between them, and a segment of steps while it is
    computed: the least memory if ``size`` is sqrt(T).

    Args:
        state: site name -> the state before the first step; None: that of the start.

    Returns:
        Outputs [T, B, ...], and the states after the last step.
    """
    network, code = job.network, job.snn.code
    constants, streams, live = prepare(job)
    states = {
        eq.place.name: start_state(job, eq, constants, streams)
        for eq in live
        if eq.site is not None
    }
    if state is not None:
        states = _checked_state(state, states)
    constants_of_loop = _held_wide(constants)

    def segment(length: int, states: dict[str, Any], now: Any) -> tuple[Any, Any]:
        x, ticks = now  # of the steps of this segment
        after: dict[str, Any] = {}

        def rule(site: Site, current: jax.Array, *operands: Any) -> Any:
            name = site.name
            if site.fires:
                currents = code.arriving(over_time(current, length, len(site.shape)))
                neurons = job.models[name], job.snn.neurons[name], states[name]
                options = {"wait": job.wait, "code": code}
                after[name], spikes = fold(*neurons, currents, ticks[name], **options)
                return code.stream(spikes)
            *arguments, function = operands
            outputs, after[name] = code.operate(
                function, (current, *arguments), states[name]
            )
            return outputs

        values: dict[Any, Any] = constants_of_loop()
        if job.sequence:
            values |= network.inputs(x)
        evaluate(live, values, rule, streams=streams)
        return after, {v: values[v] for v in network.outputs if v in streams}

    def body(length: int) -> Callable:
        function = functools.partial(segment, length)
        if size == job.steps:
            return function
        if size > 1:
            return jax.checkpoint(function)
        # Nothing between the sites is kept: from a state it is one step to recompute.
        keep = jax.checkpoint_policies.save_only_these_names("state")
        return jax.checkpoint(function, policy=keep, prevent_cse=False)

    ticks = {name: schedule(code, m, job.steps) for name, m in job.models.items()}
    in_time = (job.x if job.sequence else None, ticks)  # None has no leaves
    states, outputs = _scan(body, states, in_time, job.steps, size)
    return over_steps(job, constants | outputs, streams), states


def _checked_state(given: Any, start: dict[str, Any]) -> dict[str, Any]:
    """A state that somebody gives, if it has the structure and shapes of the start."""

    def described(tree: Any) -> dict[str, str]:
        pairs = jax.tree_util.tree_leaves_with_path(tree)
        return {name_of(p): f"{a.dtype}{list(jnp.shape(a))}" for p, a in pairs}

    found, allowed = described(given), described(start)
    if found != allowed or jax.tree.structure(given) != jax.tree.structure(start):
        odd = [n for n in found | allowed if found.get(n) != allowed.get(n)]
        raise ValueError(
            f"state is not of this SNN and batch: found "
            f"{', '.join(f'{n} {found.get(n)}' for n in odd[:3]) or 'other classes'}; "
            f"allowed: {', '.join(f'{n} {allowed.get(n)}' for n in odd[:3]) or 'those'}"
            ", of the second result of a call before, or None for the start"
        )
    return given


def _held_wide(constants: Values) -> Callable[[], Values]:
    """A function that gives these values; it holds them in float32 or wider.

    The gradient of a constant of a loop is summed over its turns in the type in which
    it enters. A number of Python has neither gradient nor type.
    """
    arrays = {v: a for v, a in constants.items() if hasattr(a, "dtype")}
    types = {v: a.dtype for v, a in arrays.items() if is_floating(a)}
    widened = {v: wide(constants[v]) for v in types}
    return lambda: constants | {v: a.astype(types[v]) for v, a in widened.items()}


def _scan(
    body: Callable[[int], Callable], state: Any, xs: Any, steps: int, size: int
) -> tuple[Any, Any]:
    """The last state and all outputs; ``body(n)(state, xs of n steps)`` gives both."""
    if size == steps:
        return body(steps)(state, xs)
    count, rest = divmod(steps, size)
    whole = count * size

    def split(leaf: jax.Array) -> jax.Array:
        return leaf[:whole].reshape(count, size, *leaf.shape[1:])

    state, outputs = jax.lax.scan(body(size), state, jax.tree.map(split, xs), count)
    outputs = jax.tree.map(lambda a: a.reshape(whole, *a.shape[2:]), outputs)
    if rest:
        last = jax.tree.map(lambda leaf: leaf[whole:], xs)
        state, more = body(rest)(state, last)
        outputs = jax.tree.map(lambda *a: jnp.concatenate(a), outputs, more)
    return state, outputs


def run_closed_form(job: Job) -> Any:
    """One pass over mean values, and then the readout at every step.

    A layer that has waited T steps fires as early as its levels allow.
    """
    network, neurons = job.network, job.snn.neurons
    steps, code = job.steps, job.snn.code
    x = jax.tree.map(lambda leaf: leaf.mean(0), job.x) if job.sequence else job.x
    values = network.arguments(job.snn.params, x)
    fires = [equation for equation in network.equations if equation.fires]
    spikes = [equation.outputs[0] for equation in fires]
    # Only what follows the last neurons on the way to an output has steps. The neurons
    # whose spikes it reads become trains again; of all others the mean is enough.
    tail = needed(network.equations, network.outputs, available=spikes)
    tail_reads = {v for eq in tail for v in eq.inputs} | set(network.outputs)
    last = {eq.place.name: eq.outputs[0] for eq in fires if eq.outputs[0] in tail_reads}
    trains: dict[int, jax.Array] = {}  # what the readout reads of each step

    def fire(site: Site, params: NeuronParams, current: jax.Array) -> jax.Array:
        model = job.snn.model_of(site.name)
        mean = closed_form(model, params, current, steps, code=code)
        if site.name not in last:
            return mean
        if schedule(code, model, steps) is None:  # all steps are alike
            spikes = _first_spikes(mean, params, steps, model.levels)
        else:
            spikes = after_all_input(model, params, current, steps, code=code)
        stop = jax.lax.stop_gradient  # the derivative is that of the mean
        train = stop(code.stream(spikes)) + (mean - stop(mean))[None]
        trains[last[site.name]] = train
        return mean

    evaluate(network.equations, values, firing(fire, neurons, operator_rule(code)))
    if job.answer:
        return network.results(values)
    # What reaches the readout directly comes step by step.
    values |= trains | (network.inputs(job.x) if job.sequence else {})
    streams = streaming(tail, [*spikes, *(network.x if job.sequence else ())])
    evaluate(tail, values, firing(fire, {}, operator_rule(code)), streams=streams)
    return over_steps(job, values, streams)


def run_answer(job: Job, run: Callable[[Job], Any]) -> Any:
    """The mean over T; ``run`` computes T steps, here as far as the last neurons."""
    network, equations = job.network, job.network.equations
    before = equations[: 1 + max(i for i, eq in enumerate(equations) if eq.fires)]
    in_time = streaming(before, network.x if job.sequence else ())
    tail = needed(equations, network.outputs, in_time)
    tail_reads = {v for eq in tail for v in eq.variables} | set(network.outputs)
    ends = tuple(in_time & tail_reads)
    tree = jax.tree.structure(ends)
    head = network._replace(equations=before, outputs=ends, tree=tree)
    outputs = run(job._replace(network=head, answer=False))
    values = network.arguments(job.snn.params, None if job.sequence else job.x)
    for v, output in zip(ends, outputs, strict=True):
        mean = wide(output).mean(0).astype(output.dtype)
        values[v] = mean if is_floating(output) else output[-1]
    evaluate(tail, values, identity)
    return network.results(values)


# ------------------------------------------------ a function in training mode
#
#     fn(params, x) -> (outputs, aux)    with x of T B examples, time first
#
# It takes its statistics over all of its input, so time is a part of the batch, and the
# neurons separate the steps again. In closed form fn gets the B examples once.


def run_closed_training(job: Job) -> tuple[Any, Any]:
    """A function in training mode, once, on the values that neurons end with.

    Its outputs [T, B, ...] are the answer at each step; aux is as fn gave it.
    """
    network, neurons, steps = job.network, job.snn.neurons, job.steps

    def fire(site: Site, params: NeuronParams, current: jax.Array) -> jax.Array:
        model = job.snn.model_of(site.name)
        return closed_form(model, params, current, steps, code=job.snn.code)

    values = network.arguments(job.snn.params, job.x)
    evaluate(network.equations, values, firing(fire, neurons))
    outputs, aux = network.results(values)
    return jax.tree.map(lambda a: over_time(a, steps, a.ndim - 1), outputs), aux


def run_training(job: Job, devices: int = 1) -> tuple[Any, Any]:
    """The function itself on T B examples; its neurons separate the steps again.

    Args:
        job: with an x from `time_in_batch`, for so many ``devices``.
    """
    steps, code = job.steps, job.snn.code

    def split(a: jax.Array) -> jax.Array:  # [D T B / D, ...] -> [T, B, ...]
        a = a.reshape(devices, steps, -1, *a.shape[1:])
        return jnp.moveaxis(a, 0, 1).reshape(steps, -1, *a.shape[3:])

    def fire(site: Site, params: Any, current: jax.Array) -> jax.Array:
        currents = code.arriving(split(current))
        model = job.models[site.name]
        spikes = unroll(model, params, currents, wait=job.wait, code=code)
        return time_in_batch(code.stream(spikes), devices)

    def at_operator(site: Site, current: jax.Array, function: Operator) -> jax.Array:
        del site
        outputs, _ = code.operate(function._replace(live=(True,)), [split(current)])
        (output,) = outputs
        return time_in_batch(output, devices)

    network = job.network
    values = network.arguments(job.snn.params, job.x)
    rule = firing(fire, job.snn.neurons, at_operator)
    evaluate(network.equations, values, rule)
    outputs, aux = network.results(values)
    return jax.tree.map(lambda a: arriving(code, split(a)), outputs), aux


def time_in_batch(stream: jax.Array, devices: int = 1) -> jax.Array:
    """[T, B, ...] -> [T B, ...], time first within each device's part of the batch.

    No example moves to another device. Two devices, T = 2 and the examples a b c d:

        a1 b1 c1 d1 | a2 b2 c2 d2    ->    a1 b1 a2 b2 | c1 d1 c2 d2
    """
    steps, batch, *rest = stream.shape
    parts = stream.reshape(steps, devices, batch // devices, *rest)
    return jnp.moveaxis(parts, 1, 0).reshape(-1, *rest)


# -------------------------------------------------------------- parts of executions


def prepare(job: Job) -> tuple[Values, frozenset[int], list[Equation]]:
    """Compute once what no step changes.

    Returns:
        Variable -> value, of all that no step changes; the variables that have a time
        axis; the equations that compute these.
    """
    network = job.network
    values = network.arguments(job.snn.params, None if job.sequence else job.x)
    streams = streaming(network.equations, network.x if job.sequence else ())
    # With a constant x the first layer is computed once, not at every step.
    live = [eq for eq in network.equations if streams.intersection(eq.outputs)]
    constant = [eq for eq in network.equations if not streams.intersection(eq.outputs)]
    evaluate(constant, values, identity)
    return values, streams, live


def over_steps(job: Job, values: Values, streams: frozenset[int]) -> Any:
    """What arrives of the outputs at each step, even of those no spike reaches."""
    outputs: dict[Any, Any] = dict(values)
    for v in job.network.dependent.intersection(job.network.outputs) - streams:
        outputs[v] = jnp.broadcast_to(values[v], (job.steps, *values[v].shape))
    results = job.network.results(outputs)
    return jax.tree.map(functools.partial(arriving, job.snn.code), results)


def arriving(code: Code, output: jax.Array) -> jax.Array:
    """What arrives of an output [T, B, ...] at each step; a choice stays as it is."""
    floating = jnp.issubdtype(output.dtype, jnp.floating)
    return code.arriving(output) if floating else output


def start_state(
    job: Job, equation: Equation, values: Values, streams: frozenset[int]
) -> Any:
    """State of a site or an operator before its first step; values as of `prepare`."""
    site, batch = equation.place, batch_of(job.x, job.sequence)
    if site.fires:
        shape = (batch, *site.shape)
        return job.models[site.name].start(job.snn.neurons[site.name], shape)

    def argument(v: Any) -> Any:
        if v not in streams:
            return read(values, v)
        aval = job.network.avals[v]
        return jax.ShapeDtypeStruct((batch, *aval.shape), aval.dtype)

    live = tuple(v in streams for v in equation.inputs)
    arguments = [argument(v) for v in equation.inputs]
    return job.snn.code.operator_state(operator(equation, live), arguments)


def _first_spikes(
    mean: jax.Array, params: NeuronParams, steps: int, levels: tuple[int, int]
) -> jax.Array:
    """The spike train [T, B, ...] with this mean that fires as early as it can.

    Of the N = T (mean - offset) / V_th levels, step t has clip(N - t high, 0, high)
    and, where N is negative, clip(N - t low, low, 0).
    """
    threshold = wide(lead(params.threshold, mean.ndim + 1))
    # A count is a whole number but for rounding.
    count = jnp.round(
        subtract_offset(wide(mean[None]), params.offset) * steps / threshold
    )
    low, high = levels
    order = jnp.arange(steps, dtype=count.dtype).reshape(-1, *[1] * mean.ndim)
    level = jnp.clip(count - high * order, 0, high)
    if low:
        level += jnp.clip(count - low * order, low, 0)
    spikes = add_offset(level * threshold.astype(count.dtype), params.offset)
    return spikes.astype(mean.dtype)
