"""Simulation: the same function, but a neuron fires at every site, for T steps.

    outputs[t] = fn(params, x) with spikes of step t in the place of activations

`spiking` is a transform like ``jax.grad``. Three executions give the same numbers:
``by_step`` scans over the whole network, ``by_layer`` folds time into the batch and
scans inside each site, ``closed_form`` needs no time loop where each layer waits for
all of its input. The delay is ours; the README says what it buys and costs.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax.core import Tracer

from snnjax.capture import capture
from snnjax.network import (
    Equation,
    Network,
    Site,
    Sites,
    Values,
    delay_lines,
    evaluate,
    identity,
    needed,
    streaming,
    variables,
)
from snnjax.neurons import (
    Neuron,
    NeuronParams,
    check_delay,
    closed_form,
    initial_state,
    integrate_and_fire,
    lif,
    unroll,
)
from snnjax.surrogate import Surrogate, dspike

EXECUTIONS = ("auto", "by_step", "by_layer", "closed_form")
INPUTS = ("constant", "poisson", "sequence")


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("params", "neurons", "readout"),
    meta_fields=("steps", "delay", "reset"),
)
@dataclasses.dataclass(frozen=True)
class SNN:
    """A spiking network: a plain pytree, to jit, differentiate, shard and save.

    Attributes:
        params: as the user gave them; weights perhaps calibrated.
        neurons: site name -> `NeuronParams`.
        readout: added to the outputs at every step (correction of the logits), a
            pytree like one step's outputs; None adds nothing.
        steps: T that it was fitted to; None (from `init`): any.
        delay: that it was fitted to; None (from `init`): any.
        reset: of its neurons, "subtract" or "zero"; what leaks has ``leak``.
    """

    params: chex.ArrayTree
    neurons: dict[str, NeuronParams]
    readout: Any = None
    steps: int | None = None
    delay: int | None = None
    reset: str = "subtract"


def init(
    fn: Callable, params: chex.ArrayTree, x: chex.Array, *, neuron: Neuron | None = None
) -> SNN:
    """An SNN with fresh neurons at every site, for direct training.

    Args:
        fn: network, ``fn(params, x) -> outputs``.
        params: its parameters.
        x: float [B, ...] or a ``jax.ShapeDtypeStruct``.
        neuron: model of all sites; LIF with leak 1/2 by default.

    Raises: as `snnjax.sites`.

    >>> import jax, jax.numpy as jnp
    >>> fn = lambda w, x: jax.nn.relu(x @ w)
    >>> init(fn, jnp.ones((3, 2)), jnp.ones((1, 3))).neurons["relu"].threshold
    Array(1., dtype=float32)
    """
    neuron = lif() if neuron is None else neuron
    network = capture(fn, params, x)
    neurons = {s.name: neuron.params() for s in network.sites if s.fires}
    return SNN(params, neurons, reset=neuron.reset)


def spiking(
    fn: Callable,
    *,
    steps: int,
    delay: int = 0,
    surrogate: Surrogate = dspike,
    execution: str = "auto",
    inputs: str = "constant",
    micro_batch: int | None = None,
) -> Callable:
    """Turn ``fn(params, x)`` into ``spiking_fn(snn, x, key=None)``.

    Args:
        fn: network, ``fn(params, x) -> outputs``, each output with the batch first.
        steps: T >= 1, for which every neuron fires.
        delay: steps that each layer waits, integrating, before it fires, 0..T. The
            answer then comes after T + depth x delay steps (`latency`).
        surrogate: spike function of (v - V_th) / (2 V_th) for the gradient, see
            `snnjax.surrogate`; leak and reset are the SNN's own.
        execution: "by_step", "by_layer", "closed_form" (delay T, IF with reset by
            subtraction only), or "auto", which takes closed_form where it applies,
            otherwise by_step on CPU without a delay and by_layer elsewhere.
        inputs: "constant": x [B, ...] is the current of every step (direct coding);
            "poisson": at each step a spike of size 1 with probability x in [0, 1],
            drawn by ``key``; "sequence": x [T, B, ...] has a leading time axis.
        micro_batch: examples at a time, one group after the other; None: all at
            once. On CPU 16 to 32 keep the state in the cache, which is faster.

    Returns:
        ``spiking_fn(snn, x, key=None) -> outputs`` [T, B, ...], the readout at each
        step; the rate-coded answer after t steps is ``outputs[:t].mean(0)``.

    Raises:
        ValueError: an argument outside these ranges; from spiking_fn, an SNN whose
            steps, delay or site names differ, a missing key, a wrong time axis, a
            closed form that does not exist.
        snnjax.ConversionError: from spiking_fn, as `snnjax.sites`.

    >>> import jax, jax.numpy as jnp
    >>> fn = lambda w, x: jax.nn.relu(w * x)
    >>> snn = init(fn, jnp.array(1.0), jnp.ones((1, 1)), neuron=integrate_and_fire())
    >>> outputs = spiking(fn, steps=4)(snn, jnp.array([[0.5]]))
    >>> print(outputs[:, 0, 0])
    [0. 1. 0. 1.]
    """
    check_delay(steps, delay)
    _check_choice("execution", execution, EXECUTIONS)
    _check_choice("inputs", inputs, INPUTS)
    if micro_batch is not None and micro_batch < 1:
        raise ValueError(f"micro_batch is {micro_batch}; allowed: >= 1, or None")

    def simulate(snn: SNN, x: jax.Array):
        example = x[0] if inputs != "constant" else x
        network = capture(fn, snn.params, example)
        check_neurons(snn.neurons, network.sites)
        neuron = integrate_and_fire(reset=snn.reset, surrogate=surrogate)
        run = _executions[_choose(execution, steps, delay, snn)]
        outputs = run(network, snn, x, neuron, steps, delay, inputs != "constant")
        if snn.readout is not None:
            outputs = jax.tree.map(jnp.add, outputs, snn.readout)
        return outputs

    def spiking_fn(snn: SNN, x: jax.Array, key: jax.Array | None = None):
        check_fit(snn, steps, delay)
        x = _encode(x, inputs, steps, key)
        if micro_batch is None:
            return simulate(snn, x)
        axis = 0 if inputs == "constant" else 1
        return _in_groups(functools.partial(simulate, snn), x, micro_batch, axis)

    return spiking_fn


def latency(found: Sites, steps: int, delay: int = 0) -> int:
    """Steps until the answer is complete: T + depth x delay.

    >>> from snnjax.network import Site
    >>> latency(Sites([Site("relu", "relu", (8,), (), 1, float)]), steps=4, delay=1)
    5
    """
    check_delay(steps, delay)
    return steps + delay * max(site.depth for site in found)


# ----------------------------------------------------------------- executions


def by_step(network, snn, x, neuron, steps, delay, sequence):
    """Scan over the whole network, one step after the other, as a chip would run it.

    With a delay this is the pipeline itself: depth k integrates in the steps from
    (k - 1) delay, fires in the T steps from k delay, and delay lines hold back what
    took a shorter way.
    """
    values, streams, changing = _prepare(network, snn.params, x, sequence)
    if delay:
        lined = delay_lines(network, streams)
        fixed = {eq.outputs for eq in network.equations} - {
            eq.outputs for eq in changing
        }
        changing = [eq for eq in lined if eq.outputs not in fixed]
    depth = max(network.depths[v] for v in network.outputs if v in network.depths)
    total = steps + depth * delay
    if sequence:
        tail = jnp.zeros((depth * delay, *x.shape[1:]), x.dtype)
        x = jnp.concatenate([x, tail])

    def body(states, now):
        step, x_t = now
        local, after = dict(values), {}
        if sequence:
            local[network.x] = x_t

        def rule(site, current, *operands):
            clock = None if delay == 0 else (step, steps, delay)
            after[site.name], spikes = _advance(
                site, states[site.name], current, operands, neuron, snn.neurons, clock
            )
            return spikes

        evaluate(changing, local, rule)
        return after, [local[v] if v in streams else None for v in network.outputs]

    states = {
        eq.site.name: _start(eq, network, snn.neurons, delay)
        for eq in changing
        if eq.site is not None
    }
    now = (jnp.arange(total), x if sequence else None)
    _, outputs = jax.lax.scan(body, states, now, length=total)
    windows = {}
    for v, output in zip(network.outputs, outputs, strict=True):
        if output is not None:
            first = network.depths[v] * delay
            windows[v] = output[first : first + steps]
    return _over_steps(network, values | windows, windows, steps)


def by_layer(network, snn, x, neuron, steps, delay, sequence):
    """Fold time into the batch between the sites, and scan inside each site."""
    values, streams, changing = _prepare(network, snn.params, x, sequence)

    def rule(site, current, *operands):
        if site.kind == "max-pool":
            return operands[0](current)
        if current.ndim == len(site.shape) + 1:  # a constant drive has no time axis
            current = jnp.broadcast_to(current, (steps, *current.shape))
        return unroll(neuron, snn.neurons[site.name], current, delay=delay)

    if sequence:
        values[network.x] = x
    evaluate(changing, values, rule, streams=streams)
    return _over_steps(network, values, streams, steps)


def by_closed_form(network, snn, x, neuron, steps, delay, sequence):
    """One pass over mean values; then only the readout is computed at every step.

    A layer that has waited T steps fires its N spikes in the first N steps.
    """
    del neuron, delay
    x = x.mean(0) if sequence else x
    values = network.arguments(snn.params, x)
    trains = {}

    def rule(site, current, *operands):
        if site.kind == "max-pool":
            return operands[0](current)
        params = snn.neurons[site.name]
        mean = closed_form(params, current, steps)
        trains[site.name] = (mean, params.threshold)
        return mean

    evaluate(network.equations, values, rule)
    fires = [eq for eq in network.equations if eq.site is not None and eq.site.fires]
    spikes = [eq.outputs[0] for eq in fires]
    outputs = [v for v in network.outputs if isinstance(v, int)]
    tail = needed(network.equations, outputs, known=spikes)
    read = {v for eq in tail for v in eq.inputs} | set(outputs)
    for equation, v in zip(fires, spikes, strict=True):
        if v in read:
            mean, threshold = trains[equation.site.name]
            values[v] = _first_spikes(mean, threshold, steps)
    streams = streaming(tail, spikes)
    evaluate(tail, values, identity, streams=streams)
    return _over_steps(network, values, streams, steps)


_executions = {
    "by_step": by_step,
    "by_layer": by_layer,
    "closed_form": by_closed_form,
}


# -------------------------------------------------------------------- helpers


def _prepare(network: Network, params, x, sequence: bool):
    """Compute once what no step changes; what is left to do at every step."""
    values = network.arguments(params, None if sequence else x)
    streams = streaming(network.equations, [network.x] if sequence else [])
    changing = [eq for eq in network.equations if streams.intersection(eq.outputs)]
    fixed = [eq for eq in network.equations if not streams.intersection(eq.outputs)]
    evaluate(fixed, values, identity)
    return values, streams, changing


def _over_steps(network: Network, values: Values, streams, steps: int):
    """The outputs with their time axis, also those that no spike reaches."""
    shown = dict(values)
    for v in network.outputs:
        if isinstance(v, int) and v not in streams:
            shown[v] = jnp.broadcast_to(values[v], (steps, *values[v].shape))
    return network.results(shown)


def _start(equation: Equation, network: Network, neurons, delay: int):
    """State of a site before the first step."""
    site, shape = equation.place, network.avals[variables(equation)[0]].shape
    if site.kind == "delay line":
        return jnp.zeros((site.depth * delay, *shape), site.dtype)
    if site.kind == "max-pool":
        pooled = (shape[0], *site.shape)
        return jnp.zeros(shape, jnp.float32), jnp.zeros(pooled, jnp.float32)
    return initial_state(neurons[site.name], shape)


def _advance(site: Site, state, current, operands, neuron, neurons, clock):
    """One step of a site: (state, current) -> (state, output).

    ``clock`` = (step, T, delay) says where in the pipeline we are; None: no delay,
    every site works at every step.
    """
    if site.kind == "delay line":
        return jnp.concatenate([state[1:], current[None]]), state[0]
    if clock is None:
        begun = receiving = firing = True
    else:
        step, steps, delay = clock
        first = (site.depth - site.fires) * delay
        begun = step >= first
        receiving = begun & (step < first + steps)
        firing = (step >= first + delay) & (step < first + delay + steps)
    if site.kind == "max-pool":
        total, pooled = state
        total = total + _when(receiving, current.astype(jnp.float32), 0)
        now = operands[0](total)
        return (total, now), (now - pooled).astype(current.dtype)
    params = neurons[site.name]
    drive = _when(receiving, current + params.bias, 0)
    charged = neuron.integrate(params, state, drive)
    fired, spikes = neuron.fire(params, charged)
    state = jax.tree.map(lambda new, old: _when(begun, new, old), charged, state)
    state = jax.tree.map(lambda new, old: _when(firing, new, old), fired, state)
    return state, _when(firing, spikes, 0).astype(site.dtype)


def _when(condition, value, otherwise):
    return value if condition is True else jnp.where(condition, value, otherwise)


def _first_spikes(mean: jax.Array, threshold: jax.Array, steps: int) -> jax.Array:
    """The spike train [T, B, ...] with N = T mean / V_th spikes in its first steps."""
    order = jnp.arange(steps).reshape(-1, *[1] * mean.ndim)
    count = mean.astype(jnp.float32) * steps / threshold
    # A count is a whole number but for rounding; its gradient is that of the mean.
    hard = threshold * (order + 0.5 < count)
    soft = jnp.broadcast_to(mean, hard.shape)
    spikes = soft + jax.lax.stop_gradient(hard - soft)
    return spikes.astype(mean.dtype)


def _encode(x: jax.Array, inputs: str, steps: int, key) -> jax.Array:
    """x as it enters the network: [B, ...] if constant, otherwise [T, B, ...]."""
    if inputs == "sequence" and x.shape[0] != steps:
        raise ValueError(
            f"inputs='sequence' needs x [steps={steps}, batch, ...]; found shape "
            f"{tuple(x.shape)}"
        )
    if inputs != "poisson":
        if key is not None:
            raise ValueError(f"inputs={inputs!r} draws nothing: leave key out")
        return x
    if key is None:
        raise ValueError("inputs='poisson' needs a key: spiking_fn(snn, x, key)")
    if not isinstance(x, Tracer) and not ((x >= 0) & (x <= 1)).all():
        raise ValueError(
            f"inputs='poisson' takes x as a probability; found values from "
            f"{x.min()} to {x.max()}, allowed: 0 to 1"
        )
    return jax.random.bernoulli(key, x, (steps, *x.shape)).astype(x.dtype)


def _in_groups(run: Callable, x: jax.Array, size: int, axis: int):
    """``run`` on ``size`` examples at a time; the batch is axis 1 of the outputs."""
    batch = x.shape[axis]
    groups, rest = divmod(batch, size)
    parts = []
    if groups:
        whole = jax.lax.slice_in_dim(x, 0, groups * size, axis=axis)
        shape = (*x.shape[:axis], groups, size, *x.shape[axis + 1 :])
        whole = jnp.moveaxis(whole.reshape(shape), axis, 0)
        mapped = jax.lax.map(run, whole)
        parts.append(jax.tree.map(_join_groups, mapped))
    if rest:
        parts.append(run(jax.lax.slice_in_dim(x, groups * size, batch, axis=axis)))
    if len(parts) == 1:
        return parts[0]
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), *parts)


def _join_groups(outputs: jax.Array) -> jax.Array:
    groups, steps, size = outputs.shape[:3]
    return jnp.moveaxis(outputs, 0, 1).reshape(steps, groups * size, *outputs.shape[3:])


def _choose(execution: str, steps: int, delay: int, snn: SNN) -> str:
    leaks = any(neuron.leak is not None for neuron in snn.neurons.values())
    exact = snn.reset == "subtract" and not leaks
    if execution == "closed_form" and not (exact and delay == steps):
        raise ValueError(
            f"execution='closed_form' needs delay == steps and IF neurons with reset "
            f"by subtraction; found delay {delay}, steps {steps}, reset {snn.reset!r}, "
            f"{'a' if leaks else 'no'} leak. Use 'by_layer'"
        )
    if execution != "auto":
        return execution
    if exact and delay == steps:
        return "closed_form"
    return "by_step" if jax.default_backend() == "cpu" and not delay else "by_layer"


def _check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed: {', '.join(allowed)}")


def check_fit(snn: SNN, steps: int, delay: int) -> None:
    """Raise unless the SNN was fitted to this steps and delay (or to none)."""
    found, wanted = (snn.steps, snn.delay), (steps, delay)
    if snn.steps is not None and found != wanted:
        raise ValueError(
            f"this SNN was fitted to steps={snn.steps}, delay={snn.delay} and cannot "
            f"run with steps={steps}, delay={delay}: its thresholds and biases depend "
            "on both. Convert again with these, or read the first t outputs of a "
            "longer run"
        )


def check_neurons(neurons: Mapping[str, Any], found: Sites) -> None:
    """Raise unless there are parameters for exactly the sites that fire."""
    names = {site.name for site in found if site.fires}
    missing, unknown = names - set(neurons), set(neurons) - names
    if missing or unknown:
        raise ValueError(
            f"the neurons do not fit the network's sites. No such site: "
            f"{sorted(unknown) or 'none'}; sites without neurons: "
            f"{sorted(missing) or 'none'}; sites: {sorted(names)}"
        )
