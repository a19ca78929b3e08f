"""The metrics of NeuroBench from our own simulation, without PyTorch.

    Footprint            bytes of all arrays of the SNN
    ParameterCount       their entries
    ConnectionSparsity   zeros among the weights of products, 0..1, to four decimals
    ActivationSparsity   1 - spikes / (neurons x steps), 0..1
    SynapticOperations   per image, of convolutions and matrix products, biases and
                         products with padding apart: Dense counts every connection at
                         every step; effective ones have an input and a weight that are
                         not zero. They are ACs at a step where all inputs of the
                         product are 0 or +-1, otherwise MACs
    MembraneUpdates      per image: every neuron at the first step, then those whose
                         potential, before it fires, differs from the step before

Here a spike carries V_th, which the next weights can absorb: "1" is the value that an
input has when all neurons fire. As in NeuroBench, an analog input counts anew at every
step, although `snnjax.measure` and the simulation compute a constant one once.
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

from snnjax.measures.metrics import accuracy
from snnjax.measures.operations import (
    Work,
    driven_input,
    product,
    products,
    shape_of,
    weights_of,
)
from snnjax.network.capture import capture
from snnjax.network.equations import Equation, Network, evaluate, firing, read
from snnjax.neurons import NeuronParams, initial_state, integrate_and_fire
from snnjax.simulation.executions import observed_by_layer
from snnjax.simulation.snn import SNN, check_neurons, checked_fit, corrected


def neurobench(
    fn: Callable,
    snn: SNN,
    x: jax.Array,
    *,
    steps: int | None = None,
    delay: int | None = None,
    labels: chex.Array | None = None,
) -> dict[str, Any]:
    """NeuroBench's metrics of an SNN, with its names, ready for ``json.dumps``.

    Args:
        fn: network, ``fn(params, x) -> outputs``.
        snn: its SNN.
        x: images [B, ...], a constant current.
        steps, delay: T, and what every layer waits; by default those that the SNN was
            fitted to. The steps in which a layer waits update membranes too.
        labels: int [B], to have ClassificationAccuracy too; fn must give logits.

    Returns:
        The metrics above; whole numbers, or averages over the B images.

    Raises: as `snnjax.spiking`; ValueError for labels of another shape, and inside of
        a transformation.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn = lambda p, x: jax.nn.relu(x @ p[0]) @ p[1]
    >>> params = [jnp.array([[1.0, 0.0]]), jnp.ones((2, 3))]
    >>> snn = snnjax.init(fn, params, jnp.ones((1, 1)),
    ...                   neuron=snnjax.integrate_and_fire())
    >>> found = neurobench(fn, snn, jnp.array([[0.5]]), steps=4)
    >>> found["ConnectionSparsity"], found["ActivationSparsity"]
    (0.125, 0.75)
    >>> found["SynapticOperations"]
    {'Effective_MACs': 4.0, 'Effective_ACs': 6.0, 'Dense': 32.0}
    """
    steps, delay = checked_fit(snn, steps, delay)
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((snn, x))):
        raise ValueError(
            "neurobench gives numbers for json.dumps, and inside jit (or another "
            "transformation) there are none yet: call it outside, it compiles what it "
            "runs; snnjax.measure works inside"
        )
    network = capture(fn, snn.params, x, inline_all=True)
    check_neurons(snn.neurons, network.sites)
    if labels is not None:
        _check_labels(labels, network, len(x))
    sizes = [math.prod(site.shape) for site in network.sites if site.fires]
    weights = [math.prod(shape_of(network, v)) for v in weights_of(network)]
    macs = sum(found.macs for _, found in products(fn, snn.params, x, network))
    seen = jax.device_get(_count(Work(fn, network), snn, x, steps, delay))
    arrays = [_numbers(leaf) for leaf in jax.tree.leaves(snn)]
    batch = len(x)
    spikes = _total(seen["spikes"])
    found = {
        "Footprint": sum(array.nbytes for array in arrays),
        "ParameterCount": sum(array.size for array in arrays),
        "ConnectionSparsity": round(_total(seen["zeros"]) / max(1, sum(weights)), 4),
        "ActivationSparsity": 1 - spikes / (steps * batch * sum(sizes)),
        "SynapticOperations": {
            "Effective_MACs": _total(seen["macs"]) / batch,
            "Effective_ACs": _total(seen["acs"]) / batch,
            "Dense": steps * macs,
        },
        "MembraneUpdates": _total(seen["updates"]) / batch,
    }
    if labels is not None:
        reached = accuracy(seen["outputs"], jnp.asarray(labels))[-1]
        found["ClassificationAccuracy"] = float(reached)
    return found


def _numbers(leaf) -> np.ndarray:
    """A leaf on the host; of random keys what they are made of."""
    if jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)


def _check_labels(labels, network: Network, batch: int) -> None:
    """Raise unless accuracy has a meaning: one label per image, logits as output."""
    if np.shape(labels) != (batch,):
        raise ValueError(
            f"labels have shape {np.shape(labels)}; allowed: the class of each image, "
            f"({batch},)"
        )
    shapes = [shape_of(network, v) for v in network.outputs]
    if len(shapes) != 1 or len(shapes[0]) != 2:
        raise ValueError(
            f"labels need logits [batch, classes] as output of fn; found {shapes}"
        )


@functools.partial(jax.jit, static_argnames=("work", "steps", "delay"))
def _count(work: Work, snn: SNN, x, steps: int, delay: int) -> dict[str, Any]:
    """Counts of parts, to be added where whole numbers are as long as need be."""
    network = capture(work.fn, snn.params, x, inline_all=True)
    neuron = integrate_and_fire(reset=snn.reset)
    spikes, updates = [], []

    def observe(site, currents, fired):
        params = snn.neurons[site.name]
        spikes.append((fired > 0).sum((0, *range(2, fired.ndim))))
        updates.append(_membrane_updates(neuron, params, currents, delay))

    values, streams = observed_by_layer(network, snn, x, steps, delay, observe)
    full = _all_fire(network, snn, x)
    macs, acs = [], []
    for equation in network.equations:
        v = driven_input(equation, network)
        if v is None:
            continue
        stream = values[v] if v in streams else values[v][None]
        repeats = 1 if v in streams else steps
        one = full[v] if v in streams else jnp.ones((), stream.dtype)
        operations = repeats * _effective(equation, values, v, stream)
        events = _are_events(stream, one)[:, None]
        acs.append(jnp.where(events, operations, 0))
        macs.append(jnp.where(events, 0, operations))
    return {
        "zeros": [(read(values, v) == 0).sum() for v in weights_of(network)],
        "spikes": spikes,
        "updates": updates,
        "macs": macs,
        "acs": acs,
        "outputs": corrected(network.results(values), snn),
    }


def _membrane_updates(neuron, params: NeuronParams, currents, delay: int) -> jax.Array:
    """How many potentials of each image are new at each step, [T + delay, B]."""
    silence = jnp.zeros((delay, *currents.shape[1:]), currents.dtype)
    heard = jnp.concatenate([currents + params.bias, silence])

    def step(state, now):
        current, fires = now
        charged = neuron.integrate(params, state, current)
        after, _ = neuron.fire(params, charged)
        potential = jnp.where(fires, after.potential, charged.potential)
        return state._replace(potential=potential), charged.potential

    start = initial_state(params, currents.shape[1:])
    fires = jnp.arange(len(heard)) >= delay
    _, potentials = jax.lax.scan(step, start, (heard, fires))
    changed = potentials[1:] != potentials[:-1]
    changed = jnp.concatenate([jnp.ones_like(potentials[:1], bool), changed])
    return changed.sum(tuple(range(2, changed.ndim)))


def _all_fire(network: Network, snn: SNN, x) -> dict[int, Any]:
    """Every variable's value at a step in which all neurons fire."""
    values = network.arguments(snn.params, x)

    def fire(site, params, current):
        threshold = jnp.asarray(params.threshold, current.dtype)
        return jnp.broadcast_to(threshold, current.shape)

    evaluate(network.equations, values, firing(fire, snn.neurons))
    return values


def _are_events(stream: jax.Array, one: jax.Array) -> jax.Array:
    """Whether all inputs of a step are 0 or +-``one``, bool [T]."""
    size = jnp.abs(stream)
    event = (size == 0) | jnp.isclose(size, jnp.abs(one), rtol=1e-5, atol=0)
    return event.all(tuple(range(1, stream.ndim)))


def _effective(equation: Equation, values, v: int, stream: jax.Array) -> jax.Array:
    """Products of two numbers that are not zero, for each step and image: int [T, B].

    With inputs and weights 0 or 1 the sum of the outputs is their number.
    """
    place = equation.inputs.index(v)
    operands = [read(values, u) for u in equation.inputs]

    def count(inputs):
        here = [inputs if i == place else x for i, x in enumerate(operands)]
        pairs = product(equation, [(x != 0).astype(jnp.float32) for x in here])
        return pairs.astype(jnp.int32).sum(tuple(range(1, pairs.ndim)))

    return jax.lax.map(count, stream)


def _total(counts) -> int:
    return sum(int(np.asarray(c, np.int64).sum()) for c in jax.tree.leaves(counts))
