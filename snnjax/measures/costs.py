"""Energy of a spiking network and its ANN: three estimates side by side.

    operations   a spike of level k is |k| additions for each synapse, a MAC a product
                 and an addition, all in 32-bit floating point
    memory       the same, and what reading and writing memory costs
    quantized    operations in integers, against an ANN whose activations have
                 b = ceil(log2(T high + 1)) bits, as many levels as T steps count

They are models, to rank networks and not to predict a chip. All assume that the SNN
computes the constant current of an image once and skips every synapse without a spike,
and that idling, leakage and control cost nothing.

Memory: 32-bit words, no cache and no reuse but a register for an ANN's sum. A MAC reads
a weight and an activation; an ANN's neuron writes its activation once. A synaptic
operation reads a weight, reads a potential and writes it. A neuron reads its potential
and its constant current (or bias) at every step and writes the potential; its current
is written once. A spike is an address, written and read once. One memory has a word per
weight, another a word per neuron for all the rest. The size of a memory decides what an
access costs: SRAM up to 1 MB, interpolated between the sizes of the source on
logarithmic axes, then DRAM.

Quantized: weights and image have 8 bits, sums 32; a product of b x 8 bits costs b / 8
of one of 8 x 8. The SNN's synaptic operation is then an addition to a 32-bit sum.

Constants: 45 nm, 0.9 V; Horowitz, *Computing's energy problem*, ISSCC 2014.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from snnjax.measures.metrics import Measures

# J per operation.
ENERGY_PER_MAC = 4.6e-12  # 32-bit floating point, as of the addition (AC) below
ENERGY_PER_AC = 0.9e-12
ENERGY_PER_INT8_PRODUCT = 0.2e-12
ENERGY_PER_INT32_ADDITION = 0.1e-12
# J per access of 64 bits to an SRAM of so many bytes, and to DRAM (its lower bound).
SRAM = {8 * 2**10: 10e-12, 32 * 2**10: 20e-12, 2**20: 100e-12}
DRAM = 1.3e-9

_WORD = 4  # bytes


class Joules(NamedTuple):
    """Energy per image, in J.

    Attributes:
        spiking: of the SNN.
        ann: of the ANN that it is compared with.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn = lambda p, x: jax.nn.relu(x @ p[0]) @ p[1]
    >>> params, x = [jnp.ones((1, 9)), jnp.ones((9, 9))], jnp.full((1, 1), 0.5)
    >>> snn = snnjax.init(fn, params, x, model=snnjax.integrate_and_fire())
    >>> estimates = energy(snnjax.measure(fn, params, snn, x, steps=4))
    >>> spiking, ann = estimates.operations
    >>> print(f"{1e12 * spiking:.1f} pJ, {1e12 * ann:.1f} pJ, {spiking / ann:.0%}")
    187.2 pJ, 414.0 pJ, 45%
    """

    spiking: jax.Array
    ann: jax.Array


class Energy(NamedTuple):
    """Three estimates; see the module for what each assumes.

    Attributes:
        operations: additions for spikes, products and additions for analog inputs.
        memory: the same, and what reading and writing memory costs.
        quantized: operations in integers, against an ANN with T high + 1 levels.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn = lambda p, x: jax.nn.relu(x @ p[0]) @ p[1]
    >>> params, x = [jnp.ones((1, 9)), jnp.ones((9, 9))], jnp.full((1, 1), 0.5)
    >>> snn = snnjax.init(fn, params, x, model=snnjax.integrate_and_fire())
    >>> estimates = energy(snnjax.measure(fn, params, snn, x, steps=4))
    >>> for name, (spiking, ann) in estimates._asdict().items():
    ...     print(f"{name}: {spiking / ann:.2f} of the ANN's")
    operations: 0.45 of the ANN's
    memory: 2.55 of the ANN's
    quantized: 1.12 of the ANN's
    """

    operations: Joules
    memory: Joules
    quantized: Joules


def energy(measures: Measures) -> Energy:
    """Energy per image: operations only, with memory, against a quantized ANN.

    Args:
        measures: from `snnjax.measure`. Neurons integrate in the steps of a wait too.

    Raises:
        ValueError: these are no `Measures`.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn = lambda p, x: jax.nn.relu(x @ p[0]) @ p[1]
    >>> params, x = [jnp.ones((2, 4)), jnp.ones((4, 3))], jnp.full((16, 2), 0.15)
    >>> snn = snnjax.convert(fn, params, x, steps=3)
    >>> estimates = energy(snnjax.measure(fn, params, snn, x, steps=3))
    >>> [name for name, e in estimates._asdict().items() if e.spiking < e.ann]
    ['operations']
    """
    if not isinstance(measures, Measures):
        raise ValueError(
            f"measures is {type(measures).__name__}; allowed: the Measures that "
            "snnjax.measure(fn, params, snn, x, steps=T) returns"
        )
    operations = _operations(measures)
    memory = _with_memory(operations, measures)
    return Energy(operations, memory, _quantized(measures))


def access_energy(size: jax.Array | float) -> jax.Array:
    """J for 32 bits of a memory of ``size`` bytes.

    >>> print([f"{access_energy(n):.3g}" for n in (100, 32 * 2**10, 2**21)])
    ['5e-12', '1e-11', '6.5e-10']
    """
    size = jnp.asarray(size, jnp.float32)
    sizes, costs = (jnp.log(jnp.array(list(part))) for part in (SRAM, SRAM.values()))
    sram = jnp.exp(jnp.interp(jnp.log(jnp.maximum(size, 1)), sizes, costs))
    return jnp.where(size <= max(SRAM), sram, DRAM) / 2


def _operations(measures: Measures) -> Joules:
    additions = measures.synaptic_additions * ENERGY_PER_AC
    dense = measures.input_macs + measures.steps * measures.operator_macs
    products = dense * ENERGY_PER_MAC
    return Joules(additions + products, measures.macs * ENERGY_PER_MAC)


def _with_memory(operations: Joules, measures: Measures) -> Joules:
    """The operations, and accesses as the module's docstring counts them."""
    weight_access = access_energy(_WORD * measures.weights)
    neuron_access = access_energy(_WORD * measures.neurons)
    synaptic = measures.synaptic_operations
    dense = measures.input_macs + measures.steps * measures.operator_macs
    spikes = measures.firing_rate * measures.steps * measures.neurons
    updates = measures.neurons * (3 * (measures.steps + measures.wait) + 1)
    spiking = weight_access * (synaptic + dense)
    spiking += neuron_access * (2 * synaptic + dense + updates + 2 * spikes)
    ann = weight_access * measures.macs
    ann += neuron_access * (measures.macs + measures.neurons)
    return Joules(operations.spiking + spiking, operations.ann + ann)


def _quantized(measures: Measures) -> Joules:
    # 1e-4 below: log2 of a power of two, rounded up, must not become one bit more.
    bits = jnp.ceil(jnp.log2(1.0 * measures.steps * measures.high + 1) - 1e-4)
    per_image_mac = ENERGY_PER_INT8_PRODUCT + ENERGY_PER_INT32_ADDITION
    per_activation_mac = ENERGY_PER_INT8_PRODUCT * bits / 8 + ENERGY_PER_INT32_ADDITION
    image = measures.input_macs * per_image_mac
    dense = measures.steps * measures.operator_macs * per_activation_mac
    ann = image + (measures.macs - measures.input_macs) * per_activation_mac
    spiking = measures.synaptic_additions * ENERGY_PER_INT32_ADDITION + image + dense
    return Joules(spiking, ann)
