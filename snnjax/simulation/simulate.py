"""Simulation: the same function, but a neuron fires at every site, for T steps.

    outputs[t] = fn(params, x) with spikes of step t in the place of activations

`spiking` is a transform like ``jax.grad``; ``executions.py`` has the ways to compute
it. The delay is ours; docs/accuracy.md says what it buys and costs.
"""

import functools
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.sharding import Mesh

from snnjax._checks import (
    check_choice,
    check_delay,
    check_flags,
    check_function,
    check_images,
    check_size,
)
from snnjax.network.capture import capture
from snnjax.network.equations import Sites
from snnjax.neurons import Neuron, check_plain, integrate_and_fire, lif
from snnjax.simulation import executions, sharding
from snnjax.simulation.snn import SNN, check_fit, check_neurons, corrected
from snnjax.surrogate import (
    Surrogate,
    check_surrogate,
    closes_over_traced,
    dspike,
    is_step,
)

EXECUTIONS = ("auto", "by_step", "by_layer", "closed_form")
INPUTS = ("constant", "poisson", "sequence")


def init(
    fn: Callable,
    params: chex.ArrayTree,
    x: chex.Array,
    *,
    neuron: Neuron | None = None,
    has_aux: bool = False,
) -> SNN:
    """An SNN with fresh neurons at every site, for direct training.

    Args:
        fn: network, ``fn(params, x) -> outputs``.
        params: its parameters.
        x: float [B, ...] or a ``jax.ShapeDtypeStruct``, one step of the input.
        neuron: model of all sites, from `lif` (by default, with leak 1/2) or
            `integrate_and_fire`; the SNN keeps its parameters and its reset.
        has_aux: fn returns (outputs, aux), see `spiking`.

    Raises:
        snnjax.ConversionError: as `snnjax.sites`.
        ValueError: a neuron with a surrogate, a detached reset or functions of its
            own; the first two are arguments of `spiking`.

    >>> import jax, jax.numpy as jnp
    >>> fn = lambda w, x: jax.nn.relu(x @ w)
    >>> init(fn, jnp.ones((3, 2)), jnp.ones((1, 3))).neurons["relu"].threshold
    Array(1., dtype=float32)
    """
    neuron = lif() if neuron is None else neuron
    check_plain(neuron)
    network = capture(fn, params, x, affine=not has_aux, has_aux=has_aux)
    neurons = {s.name: neuron.init() for s in network.sites if s.fires}
    return SNN(params, neurons, reset=neuron.reset)


def spiking(
    fn: Callable,
    *,
    steps: int,
    delay: int = 0,
    surrogate: Surrogate = dspike,
    detach_reset: bool = False,
    execution: str = "auto",
    inputs: str = "constant",
    micro_batch: int | None = None,
    segment: int | None = None,
    remat: bool = False,
    mesh: Mesh | None = None,
    has_aux: bool = False,
) -> Callable:
    """Turn ``fn(params, x)`` into ``spiking_fn(snn, x, key=None)``.

    Args:
        fn: network, ``fn(params, x) -> outputs``, each output with the batch first.
        steps: T >= 1, for which every neuron fires.
        delay: steps that each layer waits, integrating, before it fires, 0..T; while
            it fires its last ones, neither input nor bias comes any more. The answer
            comes after T + depth x delay steps (`latency`).
        surrogate: spike function of (v - V_th) / (2 V_th) for the gradient, see
            `snnjax.surrogate`; leak, reset and temperature are the SNN's own. Sites
            with a temperature give it as a second argument.
        detach_reset: no gradient through the reset; the spikes stay the same.
        execution: "by_step", "by_layer", "closed_form" (delay T, IF with reset by
            subtraction only; its floor has a straight-through gradient, so neither
            surrogate nor detach_reset can be given), or "auto", which takes
            closed_form where its spikes are the same, otherwise by_step on CPU without
            a delay and by_layer elsewhere, always with the gradient of by_layer, and
            by_layer if the surrogate closes over a value that is being traced.
        inputs: "constant": x [B, ...] is the current of every step (direct coding);
            "poisson": at each step a spike of size 1 with probability x in [0, 1],
            drawn by ``key``; "sequence": x [T, B, ...] has a leading time axis.
        micro_batch: examples at a time on each device, one group after the other;
            None: all at once. On CPU 16 to 32 keep the state in the cache, which is
            faster.
        segment: steps at a time of by_layer, 1..T; None: all at once. For a long T of
            dense layers on CPU, 25 stay in the cache: faster, and a third less memory.
        remat: keep less for the gradient of by_layer and compute the rest anew: only
            the spikes, as bits (reverse mode only); with ``segment`` only the states
            between segments, least if it is near sqrt(T). A single layer gains nothing.
            On CPU set XLA_FLAGS=--xla_cpu_enable_concurrency_optimized_scheduler=false,
            or XLA trades the memory back for speed; and there the gradient of a
            convolution is ten times slower in segments.
        mesh: devices that share the examples along its first axis, each in groups
            of its own, without communication; the gradient is summed over all. With
            has_aux a BatchNorm takes its statistics over all devices.
        has_aux: fn is in training mode, ``fn(params, x) -> (outputs, aux)``, and is
            given T B examples, time first (on each device): a BatchNorm takes its
            statistics over time and batch, and its running averages come back as aux.
            Whatever stands between the sites is allowed then.

    Returns:
        ``spiking_fn(snn, x, key=None) -> outputs`` [T, B, ...], the readout at each
        step; the rate-coded answer after t steps is ``outputs[:t].mean(0)``. With
        has_aux ``(outputs, aux)``.

    Raises:
        ValueError: an argument outside these ranges, or two that exclude each
            other; from spiking_fn, an SNN whose steps, delay or site names differ,
            a missing key, a wrong time axis, a closed form that does not exist, a
            batch that the devices cannot share evenly.
        snnjax.ConversionError: from spiking_fn, as `snnjax.sites`.

    >>> import jax, jax.numpy as jnp
    >>> fn = lambda w, x: jax.nn.relu(w * x)
    >>> snn = init(fn, jnp.array(1.0), jnp.ones((1, 1)), neuron=integrate_and_fire())
    >>> outputs = spiking(fn, steps=4)(snn, jnp.array([[0.5]]))
    >>> print(outputs[:, 0, 0])
    [0. 1. 0. 1.]
    """
    check_function(fn)
    check_delay(steps, delay)
    check_choice("execution", execution, EXECUTIONS)
    check_choice("inputs", inputs, INPUTS)
    check_flags(detach_reset=detach_reset, remat=remat, has_aux=has_aux)
    check_size("micro_batch", micro_batch)
    check_size("segment", segment)
    if segment is not None and segment > steps:
        raise ValueError(f"segment is {segment}; allowed: 1 to steps={steps}, or None")
    if has_aux:
        _check_aux(execution, micro_batch, segment)
    execution = _memory_saving(execution, delay, segment, remat)
    check_surrogate(surrogate)
    if execution == "closed_form" and (surrogate is not dspike or detach_reset):
        raise ValueError(
            "execution='closed_form' has a straight-through gradient: leave surrogate "
            "and detach_reset out, or take 'auto', which has them"
        )
    in_bits = remat and segment is None
    if in_bits:
        _check_binary(is_step(surrogate), has_aux)
    sequence = inputs != "constant"
    spread = sharding.over_batch(mesh)

    def model(snn: SNN) -> Neuron:
        return integrate_and_fire(
            reset=snn.reset, surrogate=surrogate, detach_reset=detach_reset
        )

    def check(snn: SNN, network) -> None:
        check_neurons(snn.neurons, network.sites)
        if in_bits:
            _check_binary(_fires_binary(surrogate, snn.neurons), has_aux)

    def simulate(snn: SNN, x: jax.Array):
        network = capture(fn, snn.params, x[0] if sequence else x)
        check(snn, network)

        def run(name: str, snn: SNN, x: jax.Array, constants):
            here = network._replace(constants=constants)
            if name == "closed_form":
                return executions.by_closed_form(here, snn, x, steps, sequence)
            job = (here, snn, x, model(snn), steps)
            if name == "by_step":
                return executions.by_step(*job, delay, sequence)
            if segment is not None:
                return executions.by_segment(*job, sequence, size=segment, remat=remat)
            return executions.by_layer(*job, delay, sequence, remat=remat)

        name = _choose(execution, steps, delay, snn, surrogate)
        execute = functools.partial(run, name)
        if execution == "auto" and name != "by_layer":
            # A loop over the whole network has a slow gradient on CPU, the closed form
            # none of the surrogate: the derivative is that of the layers, which
            # compute the same numbers.
            layers = functools.partial(run, "by_layer")
            execute = jax.custom_jvp(execute)
            execute.defjvp(lambda primals, tangents: jax.jvp(layers, primals, tangents))
        return corrected(execute(snn, x, network.constants), snn)

    def simulate_folded(snn: SNN, x: jax.Array):
        x = x if sequence else jnp.broadcast_to(x, (steps, *x.shape))
        shares = sharding.size(spread)
        x = executions.fold(x, shares)
        network = capture(fn, snn.params, x, affine=False, has_aux=True)
        check(snn, network)
        outputs, aux = executions.folded(
            network, snn, x, model(snn), steps, delay, shares, remat=remat
        )
        return corrected(outputs, snn), aux

    def spiking_fn(snn: SNN, x: jax.Array, key: jax.Array | None = None):
        check_fit(snn, steps, delay)
        check_images(x)
        x = _encode(x, inputs, steps, key)
        axis = 1 if sequence else 0
        if spread is not None:
            sharding.check_batch("x", x.shape[axis], spread)
            x = sharding.place(x, sharding.along(axis, spread))
            snn = sharding.on_mesh(snn, spread)
        if has_aux:
            return simulate_folded(snn, x)
        run = functools.partial(_in_groups, simulate, micro_batch, axis)
        return sharding.on_each_device(run, spread, (None, axis), 1)(snn, x)

    return spiking_fn


def latency(sites: Sites, *, steps: int, delay: int = 0) -> int:
    """Steps until the answer is complete: T + depth x delay.

    Args:
        sites: that `snnjax.sites` found.
        steps: T.
        delay: of every layer.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> found = snnjax.sites(lambda w, x: jax.nn.relu(x @ w), jnp.eye(2), jnp.eye(2))
    >>> latency(found, steps=4, delay=1)
    5
    """
    check_delay(steps, delay)
    if not isinstance(sites, Sites):
        raise ValueError(
            f"sites is {type(sites).__name__}; allowed: the Sites that "
            "snnjax.sites(fn, params, x) finds"
        )
    return steps + delay * max(site.depth for site in sites)


# -------------------------------------------------------------------- helpers


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
    _check_probability(x)
    # In float32: bfloat16 has too few numbers between 0 and 1 for small rates.
    rate = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return jax.random.bernoulli(key, rate, (steps, *x.shape)).astype(x.dtype)


def _check_probability(x: jax.Array) -> None:
    if isinstance(x, Tracer) or not getattr(x, "is_fully_addressable", True):
        return
    with jax.ensure_compile_time_eval():  # x may be closed over in a jit
        least, most = float(x.min()), float(x.max())
    if not 0 <= least <= most <= 1:
        raise ValueError(
            f"inputs='poisson' takes x as a probability; found values from {least} to "
            f"{most}, allowed: 0 to 1"
        )


def _in_groups(simulate: Callable, size: int | None, axis: int, snn: SNN, x):
    """``simulate`` ``size`` examples at a time; the batch is axis 1 of the outputs."""
    if size is None:
        return simulate(snn, x)
    run = functools.partial(simulate, snn)
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


def _memory_saving(execution: str, delay: int, segment: int | None, remat: bool) -> str:
    """The execution that ``segment`` and ``remat`` ask for; by_layer alone has them."""
    if segment is None and not remat:
        return execution
    what = "segment" if segment is not None else "remat"
    if execution not in ("auto", "by_layer"):
        raise ValueError(f"{what} belongs to execution='by_layer'; found {execution!r}")
    if segment is not None and delay:
        raise ValueError(f"segment needs delay 0; found delay {delay}")
    return "by_layer"


def _check_aux(execution: str, micro_batch: int | None, segment: int | None) -> None:
    if execution not in ("auto", "by_layer") or micro_batch or segment:
        raise ValueError(
            "has_aux=True shows the function all steps of the whole batch at once, so "
            "that a norm sees all of its statistics; found execution="
            f"{execution!r}, micro_batch={micro_batch}, segment={segment}, allowed: "
            "'auto' or 'by_layer', None, None. To save memory use remat=True"
        )


def _fires_binary(surrogate: Surrogate, neurons) -> bool | None:
    """`is_step` at the temperatures of all neurons."""
    temperatures = {id(p.temperature): p.temperature for p in neurons.values()}
    found = {is_step(surrogate, b) for b in temperatures.values()}
    if False in found:
        return False
    return None if None in found else True


def _check_binary(found: bool | None, has_aux: bool) -> None:
    """Raise if it is known that a surrogate is no step: only spikes fit into bits."""
    if found is False:
        raise ValueError(
            "remat keeps spikes as bits, so the surrogate must be a step; found one "
            "that gives other numbers than 0 below and 1 from the threshold on. Use "
            f"remat=False{'' if has_aux else ', or a segment with it: segment=...'}"
        )


def _choose(
    execution: str, steps: int, delay: int, snn: SNN, surrogate: Surrogate
) -> str:
    leaks = any(params.leak is not None for params in snn.neurons.values())
    exact = snn.reset == "subtract" and not leaks
    if execution == "closed_form" and not (exact and delay == steps):
        raise ValueError(
            f"execution='closed_form' needs delay == steps and IF neurons with reset "
            f"by subtraction; found delay {delay}, steps {steps}, reset {snn.reset!r}, "
            f"{'a' if leaks else 'no'} leak. Use 'by_layer'"
        )
    if execution != "auto":
        return execution
    # A custom derivative, as the others have here, must not close over such a value.
    if closes_over_traced(surrogate, next(iter(snn.neurons.values())).temperature):
        return "by_layer"
    if exact and delay == steps and _fires_binary(surrogate, snn.neurons):
        return "closed_form"
    return "by_step" if jax.default_backend() == "cpu" and not delay else "by_layer"
