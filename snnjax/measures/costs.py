"""Energy of a spiking network and its ANN: estimates side by side.

    operations   a spike of level k is |k| additions for each synapse, a MAC is a
                 product and an addition, all in 32-bit floating point
    memory       the operations, and the reads and writes of memory
    quantized    operations in integers, against an ANN whose activations have
                 b = ceil(log2(n)) bits, n as many values as T steps can tell apart
    chip         what a chip's makers state for a synaptic operation and for the update
                 of a neuron at a step, see `snnjax.deploy.Chip.joules`

The first three are models to compare networks; they do not predict the energy of a
chip. docs/energy.md compares all with a measurement. All assume that the SNN computes
the constant current of an image once, and that a synapse without a spike costs nothing.

Memory: all words have 32 bits. There is no cache and no reuse, except a register for
the sum of an ANN's neuron. A MAC reads a weight and an activation, and a neuron of the
ANN writes its activation once. A synaptic operation reads a weight, and reads and
writes a potential. A neuron of the SNN writes its constant current (or bias) once. At
every step it reads the current and the potential and writes the potential. A spike is
an address that is written and read once. One memory holds the weights, and another
holds one word per neuron. The energy of an access depends on the size of the memory:
SRAM up to 1 MB, interpolated between the sizes of the source on logarithmic axes, then
DRAM.

Quantized: weights and images have 8 bits, sums have 32. A product of b x 8 bits costs b
/ 8 times a product of 8 x 8 bits. A synaptic operation of the SNN is then an addition
to a 32-bit sum.

Constants: 45 nm, 0.9 V; Horowitz, *Computing's energy problem*, ISSCC 2014.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from snnjax._text import (
    Table,
    has_numbers,
    numbers,
    repr_of_numbers,
    shown_as_table,
)
from snnjax.measures.metrics import Measures

# J per operation.
ENERGY_PER_MAC = 4.6e-12  # both in 32-bit floating point
ENERGY_PER_AC = 0.9e-12
ENERGY_PER_INT8_PRODUCT = 0.2e-12
ENERGY_PER_INT32_ADDITION = 0.1e-12
# Bytes of an SRAM -> J per access of 64 bits. J per access of DRAM, of which the source
# states a range: this is the least.
SRAM = {8 * 2**10: 10e-12, 32 * 2**10: 20e-12, 2**20: 100e-12}
DRAM = 1.3e-9

_WORD = 4  # bytes


class Joules(NamedTuple):
    """Energy per image, in J.

    Attributes:
        spiking: energy of the SNN.
        ann: energy of the ANN.
    """

    spiking: jax.Array
    ann: jax.Array

    __repr__ = repr_of_numbers


@shown_as_table
class Energy(NamedTuple):
    """The estimates, which ``print`` shows as a table.

    Attributes:
        operations: additions for spikes, products and additions for analog inputs.
        memory: the operations, and the reads and writes of memory.
        quantized: operations in integers, against an ANN of as many values.
        chip: of the SNN on a chip; None without one.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn = lambda p, x: jax.nn.relu(x @ p[0]) @ p[1]
    >>> params, x = [jnp.ones((1, 9)), jnp.ones((9, 9))], jnp.full((1, 1), 0.5)
    >>> snn = snnjax.init(fn, params, x, model=snnjax.integrate_and_fire())
    >>> estimates = energy(snnjax.measure(fn, snn, x, params=params, steps=4))
    >>> spiking, ann = estimates.operations
    >>> print(f"{1e12 * spiking:.1f} pJ, {1e12 * ann:.1f} pJ")
    187.2 pJ, 414.0 pJ
    >>> print(estimates)
    estimate    SNN, nJ  ANN, nJ  SNN / ANN %  leaves out
    operations  0.187    0.414    45.2         memory
    memory      3.47     1.36     255          caches, reuse
    quantized   0.0189   0.0169   112          memory
    An image takes 45.2 % of the ANN's energy by operations, 255 % with memory,
    and 112 % of that of a quantized ANN. A model of 45 nm, without idling,
    leakage and control.
    """

    operations: Joules
    memory: Joules
    quantized: Joules
    chip: jax.Array | None = None

    def _table(self) -> Table:
        estimates = [
            ("operations", self.operations, "memory"),
            ("memory", self.memory, "caches, reuse"),
            ("quantized", self.quantized, "memory"),
        ]
        factor, unit = self._unit()
        rows = [
            ("estimate", f"SNN, {unit}", f"ANN, {unit}", "SNN / ANN %", "leaves out")
        ]
        percentages = {}  # name -> SNN / ANN, as text
        for name, joules, omission in estimates:
            spiking_text = numbers(joules.spiking, factor=factor)
            ann_text = numbers(joules.ann, factor=factor)
            percentages[name] = numbers(joules.spiking / joules.ann, factor=100)
            rows.append((name, spiking_text, ann_text, percentages[name], omission))
        if self.chip is not None:
            chip_text = numbers(self.chip, factor=factor)
            rows.append(("chip", chip_text, "", "", "idling, routing, input"))
        below = (
            f"An image takes {percentages['operations']} % of the ANN's energy by "
            f"operations, {percentages['memory']} % with memory,\n"
            f"and {percentages['quantized']} % of that of a "
            "quantized ANN. A model of 45 nm, without idling,\nleakage and control."
        )
        if self.chip is not None:
            below += " The last row is what makers of the chip state."
        return Table(rows, below=below)

    def _unit(self) -> tuple[float, str]:
        """The unit of the table, and how many of it are a joule.

        It is the largest unit in which the largest energy is at least 1, or nJ.
        """
        estimates = self.operations, self.memory, self.quantized
        largest = 0.0
        for joules in jax.tree.leaves(estimates):
            if has_numbers(joules):
                largest = max(largest, float(np.max(joules)))
        for factor, unit in ((1, "J"), (1e3, "mJ"), (1e6, "uJ")):
            if largest * factor >= 1:
                return factor, unit
        return 1e9, "nJ"


def energy(measures: Measures, *, chip: Any = None) -> Energy:
    """Energy per image: operations only, with memory, against a quantized ANN.

    The module's documentation states what each estimate assumes.

    Args:
        measures: from `snnjax.measure`. The steps of a wait count too, because neurons
            integrate then.
        chip: a profile whose makers state energies, e.g. ``snnjax.deploy.loihi1()``.

    Raises:
        ValueError: an argument that is not `Measures`; a chip without energies.
    """
    if not isinstance(measures, Measures):
        raise ValueError(
            f"measures is {type(measures).__name__}; allowed: the Measures that "
            "snnjax.measure(fn, snn, x, params=params) returns"
        )
    operations, memory, quantized = _estimates(jax.tree.map(jnp.float32, measures))
    on_chip = None
    if chip is not None:
        # Every neuron is updated at every step.
        updates = measures.neurons * (measures.steps + measures.wait)
        on_chip = energy_on(chip, measures.synaptic_operations, updates)
    return Energy(operations, memory, quantized, on_chip)


def energy_on(chip: Any, synaptic_operations: Any, updates: Any) -> Any:
    """J that a chip takes for so many operations and updates of neurons.

        E = E_operation operations + E_update updates

    For counts of one's own, as of a sequence; `energy` takes those of `Measures`.

    Args:
        chip: a profile whose ``joules`` are (E_operation, E_update), in J.
        synaptic_operations: spikes, each times its synapses.
        updates: neurons times steps.

    Raises:
        ValueError: no source states the chip's energies.

    >>> import snnjax
    >>> loihi = snnjax.deploy.loihi1()
    >>> print(f"{1e9 * energy_on(loihi, 1000, 100):.1f} nJ")  # 23.6 nJ and 8.1 nJ
    31.7 nJ
    """
    joules = getattr(chip, "joules", None)
    if joules is None:
        raise ValueError(
            f"chip is {getattr(chip, '__name__', repr(chip))}, of which no source "
            "states energies; allowed: a profile with joules, snnjax.deploy.loihi1() "
            "or spinnaker2() (called), or dataclasses.replace(chip, joules=(of an "
            "operation, of an update))"
        )
    joules_per_operation, joules_per_update = joules
    return joules_per_operation * synaptic_operations + joules_per_update * updates


def access_energy(size: jax.Array | float) -> jax.Array:
    """J to read or write 32 bits in a memory of ``size`` bytes.

    The module's documentation has the source and how sizes are interpolated.

    >>> print([f"{access_energy(n):.3g}" for n in (100, 32 * 2**10, 2**21)])
    ['5e-12', '1e-11', '6.5e-10']
    """
    size = jnp.asarray(size, jnp.float32)
    log_sizes = jnp.log(jnp.array(list(SRAM)))
    log_energies = jnp.log(jnp.array(list(SRAM.values())))
    log_size = jnp.log(jnp.maximum(size, 1))
    sram = jnp.exp(jnp.interp(log_size, log_sizes, log_energies))
    # The energies of the source are for 64 bits.
    return jnp.where(size <= max(SRAM), sram, DRAM) / 2


# One program, and not one for each of some thirty operations.
@jax.jit
def _estimates(measures: Measures) -> tuple[Joules, Joules, Joules]:
    """J per image: operations, operations with memory, and in whole numbers.

    Args:
        measures: each of them in float32, as counts may be above 2^31.
    """
    operations = _operations(measures)
    memory = _with_memory(operations, measures)
    return operations, memory, _quantized(measures)


def _operations(measures: Measures) -> Joules:
    """J per image of all additions and products, in floating point."""
    additions = measures.synaptic_additions * ENERGY_PER_AC
    # The SNN computes these products as the ANN does.
    dense_macs = measures.input_macs + measures.operator_macs
    products = dense_macs * ENERGY_PER_MAC
    return Joules(additions + products, measures.macs * ENERGY_PER_MAC)


def _with_memory(operations: Joules, measures: Measures) -> Joules:
    """J per image of operations and of the accesses that the module's header lists.

    Args:
        operations: J of the operations alone.
        measures: how many there are.
    """
    weight_access = access_energy(_WORD * measures.weights)
    neuron_access = access_energy(_WORD * measures.neurons)
    synaptic = measures.synaptic_operations
    # Each of these products reads a weight and an activation.
    dense_macs = measures.input_macs + measures.operator_macs
    # At every step a neuron reads its current and its potential and writes its
    # potential. It writes the constant current once.
    accesses_per_neuron = 3 * (measures.steps + measures.wait) + 1
    update_accesses = measures.neurons * accesses_per_neuron
    # The address of a spike is written and read once.
    spike_accesses = 2 * measures.spikes * measures.neurons
    # A synaptic operation reads a potential and writes it.
    potential_accesses = 2 * synaptic
    spiking = weight_access * (synaptic + dense_macs)
    spiking += neuron_access * (
        potential_accesses + dense_macs + update_accesses + spike_accesses
    )
    ann = weight_access * measures.macs
    ann += neuron_access * (measures.macs + measures.neurons)
    return Joules(operations.spiking + spiking, operations.ann + ann)


def _quantized(measures: Measures) -> Joules:
    """J per image with operations in integers, as the module's header describes."""
    # Bits of an activation of the ANN. The 1e-4 keeps rounding from adding a bit where
    # the number of values is a power of two.
    bits = jnp.ceil(jnp.log2(measures.values) - 1e-4)
    per_image_mac = ENERGY_PER_INT8_PRODUCT + ENERGY_PER_INT32_ADDITION
    per_activation_mac = ENERGY_PER_INT8_PRODUCT * bits / 8 + ENERGY_PER_INT32_ADDITION
    image = measures.input_macs * per_image_mac
    dense = measures.operator_macs * per_activation_mac
    ann = image + (measures.macs - measures.input_macs) * per_activation_mac
    spiking = measures.synaptic_additions * ENERGY_PER_INT32_ADDITION + image + dense
    return Joules(spiking, ann)
