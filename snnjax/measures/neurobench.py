"""The metrics of NeuroBench from our own simulation, without PyTorch.

    Footprint            bytes of all arrays of the SNN
    ParameterCount       their entries
    ConnectionSparsity   zeros among the weights of products, 0..1, to four decimals
    ActivationSparsity   1 - spikes / (neurons x steps), 0..1
    SynapticOperations   per image, of convolutions and matrix products, without biases
                         and products with padding: Dense counts every connection at
                         every step, the effective ones those whose input and weight
                         are not zero. They are ACs at a step where all inputs of the
                         product are 0 or +-1, otherwise MACs
    MembraneUpdates      per image: every neuron at the first step, then those whose
                         potential, before it fires, differs from that of the last step

Here a spike has the value V_th, which the next weights can absorb: "1" is the value
that an input has when all neurons fire. As in NeuroBench, an analog input counts at
every step, although `snnjax.measure` and the simulation compute a constant one once.
Source: Yik et al., *The neurobench framework for benchmarking neuromorphic computing
algorithms and systems*, Nature Communications 16, 2025; definitions of its version 2.3.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from snnjax._arrays import lead
from snnjax._checks import check_numbers
from snnjax._examples import batch_of
from snnjax.firing import at_level, events, observe_spikes, of_offsets
from snnjax.measures.metrics import accuracy
from snnjax.measures.operations import (
    Work,
    driven_input,
    operator_macs,
    product,
    products,
    weights_of,
)
from snnjax.network.capture import capture
from snnjax.network.equations import Equation, Network, Values, read, shape_of
from snnjax.network.sites import Site
from snnjax.neurons.protocol import Neuron, field, synapses_of_a_spike
from snnjax.neurons.unroll import fire_in_phase, integrate_in_phase, phase_of
from snnjax.snn import SNN, check_neurons, check_values, checked_fit


def neurobench(
    fn: Callable,
    snn: SNN,
    x: chex.ArrayTree,
    *,
    steps: int | None = None,
    wait: int | None = None,
    labels: chex.Array | None = None,
) -> dict[str, Any]:
    """NeuroBench's metrics of an SNN, with its names, ready for ``json.dumps``.

    Args:
        fn: network, ``fn(params, x) -> outputs``.
        snn: its SNN.
        x: images [B, ...], a constant current.
        steps, wait: T, and the steps that every layer waits; by default those of the
            SNN's conversion. The steps of a wait update membranes too.
        labels: int [B], for ClassificationAccuracy; fn must return logits [B, classes].

    Returns:
        The metrics above; whole numbers, or averages over the B images.

    Raises:
        ValueError: labels of another shape, or inside of a transformation; otherwise as
            `snnjax.spiking`.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn = lambda p, x: jax.nn.relu(x @ p[0]) @ p[1]
    >>> params = [jnp.array([[1.0, 0.0]]), jnp.ones((2, 3))]
    >>> snn = snnjax.init(fn, params, jnp.ones((1, 1)),
    ...                   model=snnjax.integrate_and_fire())
    >>> metrics = neurobench(fn, snn, jnp.array([[0.5]]), steps=4)
    >>> metrics["ConnectionSparsity"], metrics["ActivationSparsity"]
    (0.125, 0.75)
    >>> metrics["SynapticOperations"]
    {'Effective_MACs': 4.0, 'Effective_ACs': 6.0, 'Dense': 32.0}
    """
    steps, wait = checked_fit(snn, steps, wait)
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((snn, x))):
        raise ValueError(
            "neurobench returns numbers for json.dumps, and inside jit (or another "
            "transformation) arrays have no values: call it outside, where it compiles "
            "its own programs; snnjax.measure works inside"
        )
    check_values(snn)
    network = capture(fn, snn.params, x, inline_all=True)
    check_numbers(x)
    check_neurons(snn, network.sites)
    if labels is not None:
        _check_labels(labels, network, batch_of(x))
    sizes = [math.prod(site.shape) for site in network.sites if site.fires]
    weights = [math.prod(shape_of(network.avals, v)) for v in weights_of(network)]
    macs = sum(product.macs for _, product in products(fn, snn.params, x, network))
    dense = operator_macs(network, live=True) + operator_macs(network, live=False)
    counts = jax.device_get(_count(Work(fn, network), snn, x, steps, wait))
    arrays = [_numbers(leaf) for leaf in jax.tree.leaves(snn)]
    batch = batch_of(x)
    spikes = _total(counts["spikes"])
    metrics = {
        "Footprint": sum(array.nbytes for array in arrays),
        "ParameterCount": sum(array.size for array in arrays),
        "ConnectionSparsity": round(_total(counts["zeros"]) / max(1, sum(weights)), 4),
        "ActivationSparsity": 1 - spikes / (steps * batch * sum(sizes)),
        "SynapticOperations": {
            "Effective_MACs": _total(counts["macs"]) / batch + steps * dense,
            "Effective_ACs": _total(counts["acs"]) / batch,
            "Dense": steps * (macs + dense),
        },
        "MembraneUpdates": _total(counts["updates"]) / batch,
    }
    if labels is not None:
        final_accuracy = accuracy(counts["outputs"], jnp.asarray(labels))[-1]
        metrics["ClassificationAccuracy"] = float(final_accuracy)
    return metrics


def _numbers(leaf: Any) -> np.ndarray:
    """A leaf on the host; for random keys the integers in them."""
    if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def _check_labels(labels, network: Network, batch: int) -> None:
    """Raise unless there is a label per image and the output is logits."""
    if np.shape(labels) != (batch,):
        raise ValueError(
            f"labels have shape {np.shape(labels)}; allowed: the class of each image, "
            f"({batch},)"
        )
    shapes = [shape_of(network.avals, v) for v in network.outputs]
    if len(shapes) != 1 or len(shapes[0]) != 2:
        raise ValueError(
            "labels need logits [batch, classes] as output of fn; found outputs of "
            f"shapes {shapes}. Return logits only, or leave out labels"
        )


@functools.partial(jax.jit, static_argnames=("work", "steps", "wait"))
def _count(
    work: Work, snn: SNN, x: chex.ArrayTree, steps: int, wait: int
) -> dict[str, Any]:
    """Counts in int32, per step and image; `_total` adds them without overflow."""
    network = capture(work.fn, snn.params, x, inline_all=True)
    spike_counts, updates, inside = [], [], []

    def observe(site: Site, currents: jax.Array, spikes: jax.Array) -> None:
        params = snn.neurons[site.name]
        spike_counts.append((spikes != 0).sum((0, *range(2, spikes.ndim))))
        model = snn.model_of(site.name)
        fan_out = synapses_of_a_spike(model, site.shape)
        active = (spikes[:-1] != 0).sum(tuple(range(2, spikes.ndim)))
        inside.append(fan_out * active)
        updates.append(_membrane_updates(model, params, currents, wait))

    values, streams = observe_spikes(
        network, snn, x, steps=steps, wait=wait, observe=observe
    )
    at_full_rate = at_level(network, snn, x, 1)
    offsets = of_offsets(network, snn, x)
    macs, acs = [], []
    for equation in network.equations:
        v = driven_input(equation, network)
        if v is None:
            continue
        # A value that does not vary over time counts at every step all the same.
        stream = events(values, offsets, v) if v in streams else values[v][None]
        repeats = 1 if v in streams else steps
        one = at_full_rate[v] if v in streams else jnp.ones((), stream.dtype)
        operations = repeats * _effective(equation, values, v, stream)
        sparse = _are_events(stream, one)[:, None]
        acs.append(jnp.where(sparse, operations, 0))
        macs.append(jnp.where(sparse, 0, operations))
    return {
        "zeros": [(read(values, v) == 0).sum() for v in weights_of(network)],
        "spikes": spike_counts,
        "updates": updates,
        "macs": macs,
        "acs": acs + inside,
        "outputs": network.results(values),
    }


def _membrane_updates(
    neuron: Neuron, params: Any, currents: jax.Array, wait: int
) -> jax.Array:
    """How many potentials of each image change at each step, int [T + wait, B].

    Args:
        currents: [T, B, ...] of the neurons of a site.
    """
    steps = len(currents)
    no_current = jnp.zeros((wait, *currents.shape[1:]), currents.dtype)

    def step(state, index_and_current):
        index, current = index_and_current
        step_phase = phase_of(index, steps, wait)
        charged = integrate_in_phase(neuron, params, state, current, step_phase)
        state, _ = fire_in_phase(neuron, params, charged, step_phase)
        return state, _potential(neuron, charged)

    start = neuron.start(params, currents.shape[1:])
    inputs = jnp.arange(steps + wait), jnp.concatenate([currents, no_current])
    _, potentials = jax.lax.scan(step, start, inputs)
    differs = potentials[1:] != potentials[:-1]
    updates = jnp.concatenate([jnp.ones_like(potentials[:1], bool), differs])
    return updates.sum(tuple(range(2, updates.ndim)))


def _potential(neuron: Neuron, state: Any) -> jax.Array:
    """The membrane potential in a state, or in that of a model inside."""
    potential = field(state, "potential")
    if potential is None:
        raise ValueError(
            f"NeuroBench counts changes of the membrane potential, and the state of "
            f"{neuron!r} has no field potential; give its state one"
        )
    return potential


def _are_events(stream: jax.Array, one: jax.Array) -> jax.Array:
    """Whether all inputs of a step are 0 or +-``one``, bool [T].

    Args:
        stream: inputs of a product, [T, ...].
        one: their values when all neurons fire; broadcasts to a step.
    """
    magnitude = jnp.abs(stream)
    one = lead(jnp.abs(one), stream.ndim)
    is_event = (magnitude == 0) | jnp.isclose(magnitude, one, rtol=1e-5, atol=0)
    return is_event.all(tuple(range(1, stream.ndim)))


def _effective(
    equation: Equation, values: Values, v: int, stream: jax.Array
) -> jax.Array:
    """Products of two numbers that are not zero, for each step and image: int [T, B].

    With 1 in place of every number that is not 0, the sum of the outputs counts them.

    Args:
        v: the operand of the equation that depends on the input.
        stream: its value at every step, [T, B, ...].
    """
    position = equation.inputs.index(v)
    operands = [read(values, u) for u in equation.inputs]

    def count(step_input):
        factors = [*operands]
        factors[position] = step_input
        counts = product(equation, [(x != 0).astype(jnp.float32) for x in factors])
        return counts.astype(jnp.int32).sum(tuple(range(1, counts.ndim)))

    return jax.lax.map(count, stream)


def _total(counts) -> int:
    return sum(int(np.asarray(c, np.int64).sum()) for c in jax.tree.leaves(counts))
