"""Simulation: the same function, but a neuron fires at every site, for T steps.

    outputs[t] = fn(params, x) with spikes of step t in the place of activations

`spiking` is a transform like ``jax.grad``; ``executions.py`` computes it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import chex
import jax
import jax.numpy as jnp
import numpy as np

from snnjax import sharding
from snnjax._checks import called_as, check_examples, check_numbers, check_wait, warn
from snnjax._text import Named, has_numbers
from snnjax._trees import batch_of
from snnjax._types import Execution, Inputs
from snnjax.codes import Code, rate
from snnjax.conformance import passes_gradient
from snnjax.network.capture.capture import capture
from snnjax.network.sites import Site, Sites
from snnjax.neurons.by_site import model_of, models_in
from snnjax.neurons.gradients import WithoutGradient, WithSurrogate
from snnjax.neurons.models import is_plain, lif
from snnjax.neurons.protocol import Neuron, chain, field, takes_surrogate
from snnjax.simulation.choice import Choice, choose, leaves_cache
from snnjax.simulation.executions import (
    Job,
    mean_over_steps,
    run_answer,
    run_closed_form,
    run_closed_training,
    run_in_time,
    run_training,
    time_in_batch,
)
from snnjax.simulation.options import Simulation, check_arguments, check_options
from snnjax.simulation.sequences import capture_step, check_sequence
from snnjax.snn import (
    SNN,
    check_models,
    check_neurons,
    check_values,
    checked_fit,
    is_fitted,
    models_of_sites,
)
from snnjax.surrogate import Surrogate, check_surrogate, dspike, is_step


def init(
    fn: Callable,
    params: chex.ArrayTree,
    x: chex.ArrayTree,
    *,
    model: Neuron | Mapping[str, Neuron] | None = None,
    code: Code | None = None,
    key: jax.Array | None = None,
    has_aux: bool = False,
) -> SNN:
    """An SNN with fresh neurons at every site, for direct training.

    Args:
        fn: network, ``fn(params, x) -> outputs``.
        params: its parameters.
        x: float [B, ...] or a ``jax.ShapeDtypeStruct``, one step of the input.
        model: of all sites: `snnjax.lif` with leak 1/2 by default, or another of
            `snnjax.neurons` or of your own (docs/neurons.md). Or a dict, site name or
            shell pattern -> model: a site takes the model of its own name, else of the
            first pattern that matches it, else the default.
        code: what a spike is worth at each step, see `snnjax.codes`; rate coding by
            default. Others need integrate-and-fire neurons, and usually a wait
            (`snnjax.codes.Code.least_wait`), an argument of `spiking`.
        key: random key for models that draw parameters, such as recurrent ones.
        has_aux: fn returns (outputs, aux), see `spiking`.

    Raises:
        snnjax.ConversionError: as `snnjax.sites`.
        ValueError: model is no neuron model, a pattern decides for no site, a key is
            missing, or a number is out of its range.

    >>> import jax, jax.numpy as jnp
    >>> fn = lambda w, x: jax.nn.relu(x @ w)
    >>> init(fn, jnp.ones((3, 2)), jnp.ones((1, 3))).neurons["relu"].threshold
    Array(1., dtype=float32)
    """
    network = capture(fn, params, x, has_aux=has_aux)
    firing_sites = [site for site in network.sites if site.fires]
    site_models = models_of_sites(model, network.sites, lif())
    if code is None:
        code = rate()
    check_models(code, models_in(site_models))
    for site_model in models_in(site_models):
        _check_no_surrogate(site_model)
    neurons = {}
    site_keys = _keys(key, len(firing_sites))
    for site, site_key in zip(firing_sites, site_keys, strict=True):
        site_model = model_of(site_models, site.name)
        neurons[site.name] = site_model.init(site.shape, site_key)
    snn = SNN(params, neurons, model=site_models, code=code)
    check_values(snn)
    return snn


def _keys(key: Any, count: int) -> Any:
    """A random key for each of ``count`` sites; None for each if there is no key."""
    if key is None:
        return [None] * count
    try:
        return jax.random.split(key, count)
    except (TypeError, ValueError):
        raise ValueError(
            f"key is {key!r}; allowed: a random key, jax.random.key(0)"
        ) from None


class SpikingFunction(Protocol):
    """What `spiking` returns: ``spiking_fn(snn, x, state=None) -> outputs``."""

    def __call__(
        self,
        snn: SNN,
        x: chex.ArrayTree,
        *,
        state: Mapping[str, Any] | None = None,
    ) -> Any: ...


@called_as("snnjax.spiking(fn, ...)(snn, x), options by name")
def spiking(
    fn: Callable,
    *,
    steps: int | None = None,
    wait: int | None = None,
    surrogate: Surrogate = dspike,
    detach_reset: bool = False,
    execution: Execution = "auto",
    inputs: Inputs = "constant",
    micro_batch: int | None = None,
    has_aux: bool = False,
    answer: bool = False,
    state: bool = False,
) -> SpikingFunction:
    """Turn ``fn(params, x)`` into ``spiking_fn(snn, x, state=None)``.

    Args:
        fn: network, ``fn(params, x) -> outputs``, each output with the batch first.
        steps: T >= 1, for which every neuron fires. None: those that the SNN was fitted
            to; an SNN of `init` was fitted to none, so give them.
        wait: steps that each layer integrates before it fires, 0..T. It then fires for
            T steps, and in the last ``wait`` of them gets neither input nor bias. The
            answer comes after T + depth x wait steps (`latency`). Of a sequence, step j
            then depends on steps up to j + wait. None: that of the SNN, or 0 for one of
            `init`.
        surrogate: spike function for the gradient, of (v - V_th) / (2 V_th) and of the
            temperature of a site that has one; see `snnjax.surrogate`.
        detach_reset: no gradient through the reset; the spikes stay the same.
        execution: "auto" chooses by neurons and device. A whole number n, 1..T: n steps
            at a time; fewer than T need rate coding and no wait. "closed_form": no loop
            over time, for IF neurons with reset by subtraction that wait for all of
            their input. docs/accelerators.md compares them.
        inputs: "constant": x [B, ...] is the current of every step (direct coding);
            "sequence": x [T, B, ...] has a leading time axis.
        micro_batch: examples at a time on each device, one group after the other;
            None: all at once, or what "auto" takes.
        has_aux: fn is in training mode, ``fn(params, x) -> (outputs, aux)``, and gets
            T B examples, time first (docs/training.md).
        answer: return the answer alone, [B, ...] in the place of [T, B, ...]. What lies
            behind the last neurons is then computed once, of means.
        state: return (outputs, state), site name -> the state after step T. A call that
            gets it as ``state`` goes on from there (docs/training.md). For rate coding
            without a wait and without dead zones, on one device.

    Returns:
        ``spiking_fn(snn, x) -> outputs`` [T, B, ...], what arrives at the
        readout at each step. The answer is ``outputs.mean(0)`` for every code;
        ``snn.code.answers(outputs)`` has the answers after each step. With
        has_aux ``(outputs, aux)``. If x is sharded over a mesh, each device computes
        the outputs of its own examples, without communication. A gradient, and with
        has_aux the statistics of a BatchNorm, are sums over all devices.

    Raises:
        ValueError: an argument is out of range, or two exclude each other. From
            spiking_fn: the SNN or x does not fit them, or there is no closed form.
            Inside ``jit`` numbers are unknown: NaN in x then causes no spikes.
        snnjax.ConversionError: from spiking_fn, as `snnjax.sites`.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> from snnjax import integrate_and_fire
    >>> fn = lambda w, x: jax.nn.relu(w * x)
    >>> snn = init(fn, jnp.array(1.0), jnp.ones((1, 1)), model=integrate_and_fire())
    >>> outputs = spiking(fn, steps=4)(snn, jnp.array([[0.5]]))
    >>> print(outputs[:, 0, 0])
    [0. 1. 0. 1.]

    An SNN of `snnjax.convert` brings its own steps and wait:

    >>> x = jnp.array([[0.5], [1.0]])
    >>> snn = snnjax.convert(fn, jnp.array(1.0), x, steps=4, wait=1)
    >>> spiking(fn)(snn, x).shape
    (4, 2, 1)
    >>> spiking(fn, wait=1)
    spiking(<lambda>, wait=1)
    """
    simulation = Simulation(
        fn=fn,
        steps=steps,
        wait=wait,
        surrogate=surrogate,
        detach_reset=detach_reset,
        execution=execution,
        inputs=inputs,
        micro_batch=micro_batch,
        has_aux=has_aux,
        answer=answer,
        returns_state=state,
    )
    check_arguments(simulation)

    @called_as("snnjax.spiking(fn)(snn, x, state=None)")
    def spiking_fn(
        snn: SNN,
        x: chex.ArrayTree,
        *,
        state: Mapping[str, Any] | None = None,
    ) -> Any:
        return simulate(simulation, snn, x, state)

    return Named(spiking_fn, str(simulation))


def latency(sites: Sites, *, steps: int, wait: int = 0) -> int:
    """Steps until the answer is complete: T + depth x wait.

    Args:
        sites: from `snnjax.sites`.
        steps: T.
        wait: of every layer.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> sites = snnjax.sites(lambda w, x: jax.nn.relu(x @ w), jnp.eye(2), jnp.eye(2))
    >>> latency(sites, steps=4, wait=1)
    5
    """
    check_wait(steps, wait)
    if not isinstance(sites, Sites):
        raise ValueError(
            f"sites is {type(sites).__name__}; allowed: the Sites of "
            "snnjax.sites(fn, params, x)"
        )
    return steps + wait * max(site.depth for site in sites)


# ------------------------------------------------------------- one simulation


def simulate(sim: Simulation, snn: SNN, x: chex.ArrayTree, state: Any) -> Any:
    """Check SNN and input, and run on the devices of x.

    Args:
        sim: how; its steps and wait may be None.
        snn, x, state: the arguments of the function that `spiking` returns.

    Returns:
        The outputs, beside them the aux or the state if ``sim`` asks for it.
    """
    steps, wait = checked_fit(snn, sim.steps, sim.wait)
    sim = sim._replace(steps=int(steps), wait=int(wait))
    check_options(sim, snn.code)
    check_values(snn)
    check_examples(x, sim.batch_axis)
    check_numbers(x)
    if sim.sequence:
        check_sequence(x, sim.steps)
    x, snn = sharding.automatic(x, snn)
    batch_sharding = sharding.batch_sharding(x, sim.batch_axis)
    choice = choose(sim, snn, sharding.platform(x))
    if sim.returns_state:
        if batch_sharding is not None:
            raise ValueError(
                "state=True runs on one device; found an x that several share. Give "
                "each its own examples, or leave state out"
            )
        return _simulate_piece(sim, snn, x, state)
    if state is not None:
        raise ValueError(
            "a state is given to a function that returns none; allowed: "
            "snnjax.spiking(fn, state=True)(snn, x, state=state)"
        )
    if sim.has_aux:
        # Outputs are split over the devices by their axis 1; aux is on all of them.
        devices = sharding.size(batch_sharding)
        train = functools.partial(simulate_training, sim, devices)
        return sharding.on_all_devices(train, batch_sharding, (1, None))(snn, x)
    run = sharding.on_each_device(
        functools.partial(_simulate_on_device, sim, choice),
        batch_sharding,
        in_axes=(None, sim.batch_axis),
        out_axes=sim.output_axis,
    )
    outputs = run(snn, x)
    _warn_of_equal_outputs(outputs, sim.output_axis, x, sim.batch_axis)
    return outputs


def _warn_of_equal_outputs(
    outputs: Any, output_axis: int, x: chex.ArrayTree, batch_axis: int
) -> None:
    """Warn if examples that differ have the same outputs, as if no neuron fires.

    Under `jax.jit` nothing is known of them, and so nothing is said.
    """
    if _are_equal(outputs, output_axis) and not _are_equal(x, batch_axis):
        warn(
            f"all {batch_of(x, batch_axis)} examples have the same outputs, so perhaps "
            "no neuron fires. Give images of the same scale as those of the "
            "conversion; snnjax.measure shows the rates of all sites"
        )


def _are_equal(tree: chex.ArrayTree, axis: int) -> bool:
    """Whether all slices of each array along an axis are known to be equal."""
    for leaf in jax.tree.leaves(tree):
        if not has_numbers(leaf):  # it is traced, or other processes have a part
            return False
        slices = np.moveaxis(np.asarray(leaf), axis, 0)
        # As a rule the first two differ, which spares the others.
        if len(slices) < 2 or not (slices[1] == slices[0]).all():
            return False
        if not (slices[2:] == slices[0]).all():
            return False
    return True


def _simulate_piece(
    sim: Simulation,
    snn: SNN,
    x: chex.ArrayTree,
    state: Mapping[str, Any] | None,
) -> tuple[Any, dict[str, Any]]:
    """The outputs [T, B, ...] of a piece of a stream, and the states after it.

    ``state`` has the states after the piece before; None: this piece is the first one.
    """
    if state is not None and is_fitted(snn):
        raise ValueError(
            f"state continues a stream after its first {sim.steps} steps, and this SNN "
            f"was fitted to {sim.steps} steps from its own initial potentials: its "
            "error would grow from piece to piece. Run each window of T steps by "
            "itself, snnjax.spiking(fn)(snn, x). Thresholds that depend on no T, as "
            "those of snnjax.max_activation(), may go on: give "
            "dataclasses.replace(snn, steps=None, wait=None), and steps=T"
        )
    job = _job(sim, snn, x)
    for name, model in job.models.items():
        innermost_model = chain(model)[-1]  # without its wrappers
        if getattr(innermost_model, "has_zones", False):
            raise ValueError(
                f"state=True computes a stream in pieces, and a dead zone asks which "
                f"step is the last one of the whole; found {model.neuron!r} at site "
                f"{name!r}; allowed: dead_zone and last_zone up to 1/2. Leave state out"
            )
    # A piece is always computed in time. An execution is a number of steps or "auto".
    segment_steps: Any = sim.execution
    if segment_steps == "auto":
        segment_steps = sim.steps
    return run_in_time(job, segment_steps, state)


def _simulate_on_device(
    sim: Simulation,
    choice: Choice,
    snn: SNN,
    x: chex.ArrayTree,
) -> Any:
    """The outputs of a device's own examples, as many at a time as fit."""
    batch = batch_of(x, sim.batch_axis)
    is_symbol = not isinstance(batch, int)  # where any batch is exported
    if is_symbol and sim.micro_batch is not None:
        raise ValueError(
            f"micro_batch={sim.micro_batch} needs a number of examples; found {batch}, "
            "a symbol of jax.export. Leave micro_batch out, or export for one batch "
            "size"
        )
    group_size = sim.micro_batch
    if group_size is None:
        group_size = choice.group
    if group_size is None or is_symbol:
        return _simulate_group(sim, choice, snn, batch, x)
    run = functools.partial(_simulate_group, sim, choice, snn, min(batch, group_size))
    if batch <= group_size:
        return run(x)
    if choice.group is not None:
        # Without recomputation the gradient would keep the states of all groups. A
        # choice without groups may have a surrogate that jax.checkpoint refuses.
        run = jax.checkpoint(run)
    return _in_groups(run, x, group_size, sim.batch_axis, sim.output_axis)


def _simulate_group(
    sim: Simulation,
    choice: Choice,
    snn: SNN,
    batch: Any,
    x: chex.ArrayTree,
) -> Any:
    """The outputs of all examples of x at once; ``batch`` is their number.

    In `_in_groups` the shape of x does not tell it.
    """
    job = _job(sim, snn, x)
    if choice.may_segment and leaves_cache(job.network, job.steps, batch):
        choice = choice.with_segments()
    if choice.gradient_steps is None:
        return execute(job, choice.execution)
    return _with_gradient_of(job, choice.execution, choice.gradient_steps)


def _in_groups(run: Callable, x: Any, size: int, axis: int, out_axis: int) -> Any:
    """The outputs of all examples, computed for some of them at a time.

    Args:
        run: x -> outputs.
        x: arrays with the examples along ``axis``.
        size: examples at a time.
        axis: of the examples in x.
        out_axis: of the examples in the outputs.
    """

    # lax.map maps a function of one example, and computes ``size`` of them by vmap.
    def run_one(example: chex.ArrayTree) -> Any:
        batch = jax.tree.map(lambda leaf: jnp.expand_dims(leaf, axis), example)
        return jax.tree.map(lambda y: y.squeeze(out_axis), run(batch))

    examples = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, axis, 0), x)
    outputs = jax.lax.map(run_one, examples, batch_size=size)
    return jax.tree.map(lambda y: jnp.moveaxis(y, 0, out_axis), outputs)


def simulate_training(
    sim: Simulation,
    devices: int,
    snn: SNN,
    x: chex.ArrayTree,
) -> tuple[Any, Any]:
    """Outputs [T, B, ...] and aux in training mode.

    Args:
        sim: how; it has ``has_aux``.
        devices: how many share the batch.
        snn, x: the arguments of the function that `spiking` returns.
    """
    if sim.execution == "closed_form":
        if sim.sequence:
            x = mean_over_steps(x)
        return run_closed_training(_job(sim, snn, x))

    # fn gets the examples of all steps as one batch, [T B, ...].
    def all_examples(leaf: jax.Array) -> jax.Array:
        if not sim.sequence:
            leaf = jnp.broadcast_to(leaf, (sim.steps, *leaf.shape))
        return time_in_batch(leaf, devices)

    job = _job(sim, snn, jax.tree.map(all_examples, x))
    return run_training(job, devices)


def execute(job: Job, execution: Execution) -> Any:
    """The outputs of a job by one of the executions, but not "auto"."""
    if isinstance(execution, str):
        return run_closed_form(job)
    if job.answer:
        return run_answer(job, lambda head: execute(head, execution))
    outputs, _ = run_in_time(job, execution)
    return outputs


def _job(sim: Simulation, snn: SNN, x: chex.ArrayTree) -> Job:
    """The simulation of the network that x goes through."""
    if sim.has_aux:
        network = capture(sim.fn, snn.params, x, has_aux=True)
    else:
        network = capture_step(sim.fn, snn.params, x, sequence=sim.sequence)
    check_neurons(snn, network.sites)
    models = {}
    for site in network.sites:
        if site.fires:
            models[site.name] = _model_with_surrogate(sim, snn, site)
    return Job(
        network=network,
        snn=snn,
        models=models,
        x=x,
        steps=sim.steps,
        wait=sim.wait,
        sequence=sim.sequence,
        answer=sim.answer,
    )


def _check_no_surrogate(model: Neuron) -> None:
    """Raise if a model brings a surrogate, which would be ignored."""
    if any(isinstance(part, WithSurrogate) for part in chain(model)):
        raise ValueError(
            f"model is {model!r}; allowed: the model without a surrogate, which is an "
            "argument of snnjax.spiking"
        )


def _model_with_surrogate(sim: Simulation, snn: SNN, site: Site) -> WithSurrogate:
    """The model of a site, with the surrogate of the simulation.

    If that gives no gradient, an error takes the place of a gradient of 0.
    """
    model = snn.model_of(site.name)
    params = snn.neurons[site.name]
    _check_no_surrogate(model)
    if takes_surrogate(model):
        check_surrogate(sim.surrogate, field(params, "temperature") is not None)
    elif sim.sets_gradient:
        raise ValueError(
            f"the model of site {site.name!r}, {model!r}, has a surrogate of its own: "
            "leave surrogate and detach_reset out, or let its fire(params, state, "
            "spike) use the spike function that it is given"
        )
    simulated = WithSurrogate(model, sim.surrogate, sim.detach_reset)
    # Whether a model of one's own uses the surrogate, only a trace of it shows.
    has_gradient = is_plain(model) and is_step(sim.surrogate)
    if has_gradient or passes_gradient(simulated, params, site):
        return simulated
    return dataclasses.replace(simulated, neuron=WithoutGradient(model))


def _with_gradient_of(job: Job, execution: Execution, gradient_steps: int) -> Any:
    """The outputs by one execution, with the derivative of another one.

    Both give equal numbers.

    Args:
        job: the simulation.
        execution: computes the outputs.
        gradient_steps: steps at a time of the execution that is differentiated.
    """

    def run(execution: Execution, snn: SNN, x: chex.ArrayTree, constants: Any) -> Any:
        network = job.network._replace(constants=constants)
        traced_job = job._replace(network=network, snn=snn, x=x)
        return execute(traced_job, execution)

    # A function with a derivative of its own must not close over traced arrays: all of
    # them are arguments.
    gradient = functools.partial(run, gradient_steps)
    executed = jax.custom_vjp(functools.partial(run, execution))
    forward = functools.partial(jax.vjp, gradient)

    def backward(gradient_back: Callable, output_gradients: Any) -> Any:
        return gradient_back(output_gradients)

    executed.defvjp(forward, backward)
    return executed(job.snn, job.x, job.network.constants)
