"""Measures of a spiking network: accuracy over time, rates, errors, operations."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from snnjax._arrays import lead, per_step, wide_dtype
from snnjax._checks import (
    called_as,
    check_examples,
    check_inputs,
    check_labels,
    check_numbers,
    warn,
)
from snnjax._text import (
    Table,
    counted,
    has_numbers,
    numbers,
    shown_as_table,
    sites_in_words,
)
from snnjax._types import Inputs
from snnjax.measures import operations
from snnjax.measures.cautions import caution_of_sites, warn_of_broken_outputs
from snnjax.measures.errors import SiteMeasures, measured_site
from snnjax.measures.observation import observe, threshold_of
from snnjax.network.capture.capture import capture
from snnjax.network.equations import Network
from snnjax.network.evaluate import evaluate, identity
from snnjax.network.sites import Site
from snnjax.neurons.by_site import models_in
from snnjax.neurons.protocol import levels_of
from snnjax.neurons.spike_trains import BINARY, level_indices
from snnjax.neurons.unroll import needs_no_time
from snnjax.sharding import automatic
from snnjax.simulation.sequences import capture_step, check_sequence
from snnjax.snn import (
    SNN,
    check_neurons,
    check_params,
    check_values,
    check_weights,
    checked_fit,
)


@shown_as_table
class Measures(NamedTuple):
    """Activity and operations of a spiking network, averaged over images.

    ``print`` shows a table of its sites, ``repr`` a line.

    Attributes:
        sites: site name -> `SiteMeasures`.
        firing_rate: mean over all neurons of all sites.
        synaptic_operations: operations per image that spikes cause in T steps. Each
            input of a convolution or matrix product that spikes change causes one
            operation for each output that it reaches. A constant beside them, such as
            the shift of a BatchNorm, causes none, since the next bias can absorb it.
            Each spike of a recurrent site causes one for each neuron that it reaches,
            except at the last step. An operation is an addition for spikes of level 1
            or -1; for other levels it is a multiplication and an addition.
        synaptic_additions: the same operations as additions alone; a spike of level k
            counts as |k| additions. NaN if a neuron model states no levels.
        input_macs: multiply-adds per image that read the analog input, alone or beside
            spikes. They are computed once, because the input is constant.
        operator_macs: multiply-adds per image of products of two values, as in
            attention: those of all T steps, or of one pass if every layer waits for all
            of its input. The other work of operators, such as exponentials and roots,
            is not counted.
        macs: multiply-adds per image of the ANN.
        neurons: number of neurons of all sites.
        weights: number of weights of all convolutions and matrix products, and of
            recurrent connections.
        steps, wait: T and the wait of the measurement.
        bits: bits that a neuron sends in one inference, T log2(high - low + 1), on
            average. NaN if a neuron model states no levels.
        values: how many values >= 0 a neuron can tell apart, if none of them is left
            out: T high + 1 with rate coding, B^T with a radix code of base B and the
            levels (0, B - 1). NaN if a neuron model states no levels.
        zero_weights: number of weights of convolutions and matrix products that are 0;
            NaN in results of an older version.
    """

    sites: dict[str, SiteMeasures]
    firing_rate: jax.Array
    synaptic_operations: jax.Array
    synaptic_additions: jax.Array
    input_macs: jax.Array
    operator_macs: jax.Array
    macs: jax.Array
    neurons: jax.Array
    weights: jax.Array
    steps: jax.Array
    wait: jax.Array
    bits: jax.Array
    values: jax.Array
    zero_weights: jax.Array | float = math.nan

    @property
    def spikes(self) -> jax.Array:
        """Spikes per neuron and inference, of either sign: T times the rate."""
        return self.steps * self.firing_rate

    def caution(self, snn: SNN) -> str | None:
        """What is wrong if most sites are silent, or saturated; None if they are not.

        `measure` warns of it. Within ``jit`` it cannot, since numbers are not known.

        Args:
            snn: the one that was measured.
        """
        if not has_numbers(self.steps):
            return None
        return caution_of_sites(self.sites, snn, int(self.steps))

    def __repr__(self) -> str:
        return (
            f"Measures(steps={numbers(self.steps)}, wait={numbers(self.wait)}, "
            f"firing_rate={numbers(self.firing_rate)}, {sites_in_words(self.sites)})"
        )

    def _table(self) -> Table:
        # The first three columns are fractions, shown in percent.
        fractions = SiteMeasures._fields[:3]
        head = ["site", "firing rate %", "silent %", "saturated %"]
        rows = [head + list(SiteMeasures._fields[3:])]
        for name, site in self.sites.items():
            cells = [name]
            for field, value in site._asdict().items():
                factor = 100 if field in fractions else 1
                cells.append(numbers(value, factor=factor))
            rows.append(cells)
        # Shapes, as of jax.eval_shape, cannot be multiplied.
        are_shapes = isinstance(self.firing_rate, jax.ShapeDtypeStruct)
        spikes = self.firing_rate if are_shapes else self.spikes
        summary = (
            f"{numbers(self.neurons, 6)} neurons send {numbers(spikes)} spikes each, "
            f"in T = {counted(numbers(self.steps), 'step')} with wait "
            f"{numbers(self.wait)}.\n"
            f"They cause {numbers(self.synaptic_operations, 4)} synaptic operations; "
            f"the ANN has {numbers(self.macs, 4)} multiply-adds."
        )
        return Table(rows, below=summary)


@called_as(
    "snnjax.accuracy(outputs, labels), the outputs of snnjax.spiking(fn)(snn, x)"
)
def accuracy(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Accuracy after every number of steps, from one run.

    Args:
        outputs: readout at each step, [T, B, classes].
        labels: number of the class of each image, int [B].

    Returns:
        [T], from 0 to 1. Entry t - 1 is the accuracy of the mean of the first t
        outputs. An output that is NaN counts as a wrong answer.

    Raises:
        ValueError: wrong shapes or types, or no examples; outside of ``jit``, a label
            that is not a class.

    Outside of ``jit`` it warns of outputs that are NaN, and if nine of ten images have
    the same outputs, though labels differ: then no neuron fires, as for images of
    another scale.

    >>> import jax.numpy as jnp
    >>> outputs = jnp.array([[[0.0, 1.0]], [[3.0, 0.0]]])
    >>> print(accuracy(outputs, jnp.array([0])))
    [0. 1.]
    """
    check_labels(outputs, labels)
    warn_of_broken_outputs(outputs, labels)
    outputs, labels = automatic(jnp.asarray(outputs), jnp.asarray(labels))
    return _accuracy(outputs, labels)


@jax.jit  # One program, where each operation alone would be another.
def _accuracy(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    """The `accuracy` [T] of outputs [T, B, classes] and labels [B]."""
    dtype = wide_dtype(outputs)  # sums in bfloat16 are inexact
    # The sum of the first t outputs has the same largest class as their mean.
    answers = jnp.cumsum(outputs, axis=0, dtype=dtype)
    classes = answers.argmax(-1)  # [T, B]
    # Compared in the dtype of the classes: class 256 would become 0 in eight bits.
    is_right = classes == lead(labels.astype(classes.dtype), outputs.ndim - 1)
    is_number = ~jnp.isnan(answers).any(-1)
    return (is_right & is_number).mean(-1)


@called_as("snnjax.measure(fn, snn, x, params=params), params those of the ANN")
def measure(
    fn: Callable,
    snn: SNN,
    x: chex.ArrayTree,
    *,
    params: chex.ArrayTree,
    steps: int | None = None,
    wait: int | None = None,
) -> Measures:
    """Compare an SNN with its ANN, site by site, and count operations.

    Args:
        fn: network, ``fn(params, x) -> outputs``.
        snn: from `snnjax.convert`.
        x: images [B, ...], a constant current.
        params: parameters of the ANN; a calibration may have changed those of ``snn``.
        steps, wait: T, and the steps that every layer waits; by default those that the
            SNN was fitted to.

    Returns:
        `Measures`. Each call compiles one program. To measure several SNNs with the
        same program, apply ``jax.jit`` to a function that calls `measure`. A
        measurement needs about T times the memory of the ANN.

    Raises:
        ValueError: as `snnjax.spiking`; params have another structure than the SNN's;
            or steps is missing for an SNN that was not fitted to a number of steps.
        FloatingPointError: outside of ``jit``, a count that is not finite.

    Outside of ``jit`` it warns if most sites are silent, or saturated, and says why.
    `Measures.caution` says it of a result of ``jit``.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn = lambda params, x: jax.nn.relu(x @ params[0]) @ params[1]
    >>> params, x = [jnp.eye(2), jnp.ones((2, 10))], jnp.array([[0.5, 0.25]])
    >>> snn = snnjax.init(fn, params, x, model=snnjax.integrate_and_fire())
    >>> measures = measure(fn, snn, x, params=params, steps=4)
    >>> float(measures.synaptic_operations)  # 3 spikes, each to 10 outputs
    30.0
    >>> float(measures.input_macs), float(measures.macs)  # 2 x 2, and 2 x 10 besides
    (4.0, 24.0)
    """
    steps, wait = checked_fit(snn, steps, wait)
    check_params(snn, params)
    check_weights(params)
    check_values(snn)
    # All arrays on the mesh of x, with Auto axes, along which JAX may reshape them.
    x, params, snn = automatic(x, params, snn)
    # With all calls inlined, so that no product is within a call.
    network = capture(fn, params, x, inline_all=True)
    check_numbers(x)
    check_neurons(snn, network.sites)

    measure_sites = functools.partial(_measure_sites, network, steps=steps, wait=wait)
    site_measures, counts = jax.jit(measure_sites)(params, snn, x)
    _check_counts(counts)
    sites = [site for site in network.sites if site.fires]
    neuron_counts = [math.prod(site.shape) for site in sites]  # of each site
    neuron_count = sum(neuron_counts)
    # In the order of execution, because jit sorts the keys of a dict.
    ordered_measures = {}
    for site in sites:
        ordered_measures[site.name] = _without_none(site_measures[site.name])
    rates = jnp.stack([site.firing_rate for site in ordered_measures.values()])
    # The mean over all neurons weights each site by its neurons.
    firing_rate = rates @ jnp.array(neuron_counts, jnp.float32) / neuron_count
    fields = counts | _information(snn, sites, neuron_counts, steps)
    measures = Measures(
        sites=ordered_measures,
        firing_rate=firing_rate,
        neurons=jnp.asarray(neuron_count),
        steps=jnp.asarray(steps),
        wait=jnp.asarray(wait),
        **fields,
    )
    caution = measures.caution(snn)
    if caution is not None:
        warn(caution)
    return measures


def _measure_sites(
    network: Network,
    params: chex.ArrayTree,
    snn: SNN,
    x: chex.ArrayTree,
    steps: int,
    wait: int,
) -> tuple[dict[str, SiteMeasures], dict[str, jax.Array]]:
    """Measures of the sites by name, and counts named as in `Measures`.

    Args:
        network: with all calls inlined.
        params: of the ANN.
        snn: the SNN.
        x: images [B, ...].
        steps: T.
        wait: steps that every layer waits.
    """
    # Site name -> the activation of the ANN, and the operands of its function besides
    # the current, as the maximum of a clipped ReLU.
    activations, other_operands = {}, {}

    def ann_rule(site: Site, current: jax.Array, *operands: Any) -> Any:
        activations[site.name] = identity(site, current, *operands)
        other_operands[site.name] = operands
        return activations[site.name]

    evaluate(network.equations, network.arguments(params, x), ann_rule)

    observation = observe(network, snn, x, steps=steps, wait=wait)
    site_measures = {}
    for site in network.sites:
        if not site.fires:
            continue
        currents = observation.currents[site.name]
        activation_of_mean = identity(
            site, currents.mean(0), *other_operands[site.name]
        )
        site_measures[site.name] = measured_site(
            site,
            snn,
            activation=activations[site.name],
            activation_of_mean=activation_of_mean,
            currents=currents,
            spikes=observation.spikes[site.name],
        )
    # Where every layer waits for all of its input, one pass computes the operators.
    sums_suffice = needs_no_time(snn.code, steps, wait, models_in(snn.model))
    operator_steps = 1 if sums_suffice else steps
    counts = operations.counts(network, snn, x, observation, operator_steps)
    return site_measures, counts


def _check_counts(counts: Mapping[str, Any]) -> None:
    """Raise unless all counts are finite, where their numbers are known."""
    for name, count in counts.items():
        if not isinstance(count, Tracer) and not np.isfinite(count):
            raise FloatingPointError(
                f"{name} is {count}, and counts are finite whatever the network "
                f"computes, so XLA of jax {jax.__version__} has compiled the counting "
                "wrongly. Take another version of JAX, and report the network, please"
            )


def _information(
    snn: SNN, sites: Sequence[Site], neuron_counts: Sequence[int], steps: int
) -> dict[str, Any]:
    """Fields of `Measures` that follow from levels; NaN if a model states no levels.

    Args:
        snn: its models and code.
        sites: that fire.
        neuron_counts: number of neurons of each site.
        steps: T.
    """
    bits_per_step = 0.0  # of all neurons
    highest_level = 0
    for count, site in zip(neuron_counts, sites, strict=True):
        levels = levels_of(snn.model_of(site.name))
        if levels is None:
            # `measure` has counted synaptic additions as if all spikes had the level 1.
            # This NaN takes the place of that number.
            return dict.fromkeys(("synaptic_additions", "bits", "values"), _MISSING)
        low, high = levels
        bits_per_step += count * math.log2(high - low + 1)
        highest_level = max(highest_level, high)
    # The values >= 0 of a neuron are 0 and the multiples of the finest one up to the
    # largest, which it has if it sends the highest level at every step.
    largest_value = highest_level * snn.code.reach(steps)  # in thresholds
    finest_value = snn.code.finest(steps)
    values = 1 + largest_value / finest_value
    return {
        "bits": jnp.asarray(steps * bits_per_step / sum(neuron_counts)),
        "values": jnp.asarray(values),
    }


_MISSING = np.float32(np.nan)  # by NumPy: jax_debug_nans refuses NaN in JAX


def _without_none(measures: SiteMeasures) -> SiteMeasures:
    """NaN in place of None; jit could not return NaN under ``jax_debug_nans``."""
    return measures._make(_MISSING if value is None else value for value in measures)


def spike_trains(
    fn: Callable,
    snn: SNN,
    x: chex.ArrayTree,
    *,
    steps: int | None = None,
    wait: int | None = None,
    inputs: Inputs = "constant",
) -> dict[str, jax.Array]:
    """The levels of the spikes of every site, name -> [T, B, ...], for images x.

    They are bool for levels (0, 1), int16 for other levels. If a neuron model states no
    levels, the result is its outputs.

    Args:
        fn, snn, x, steps, wait: as for `measure`; a sequence x is [T, B, ...].
        inputs: as for `snnjax.spiking`.

    Raises:
        ValueError: as `snnjax.spiking`.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn = lambda w, x: jax.nn.relu(w * x)
    >>> neuron = snnjax.integrate_and_fire()
    >>> snn = snnjax.init(fn, jnp.array(1.0), jnp.ones((1, 1)), model=neuron)
    >>> events = jnp.array([0.0, 1.0, 0.6, 0.6]).reshape(4, 1, 1)
    >>> spikes = spike_trains(fn, snn, events, steps=4, inputs="sequence")
    >>> print(spikes["relu"][:, 0, 0])
    [False  True False  True]
    """
    steps, wait = checked_fit(snn, steps, wait)
    check_inputs(inputs)
    check_values(snn)
    sequence = inputs == "sequence"
    check_examples(x, axis=1 if sequence else 0)
    check_numbers(x)
    if sequence:
        check_sequence(x, steps)
    x, snn = automatic(x, snn)
    network = capture_step(fn, snn.params, x, sequence=sequence)
    check_neurons(snn, network.sites)
    observation = observe(network, snn, x, steps=steps, wait=wait, sequence=sequence)
    trains = {}
    for site in network.sites:
        if site.fires:
            trains[site.name] = _spike_levels(snn, site, observation.spikes[site.name])
    return trains


def _spike_levels(snn: SNN, site: Site, spikes: jax.Array) -> jax.Array:
    """The levels of spikes, [T, B, ...]; the spikes if the model states no levels.

    Args:
        snn: its neurons and code.
        site: where they fire.
        spikes: what is sent at each step, without the offset, [T, B, ...].
    """
    levels = levels_of(snn.model_of(site.name))
    if levels is None:
        return spikes
    # A spike of level k is k V_th times the size of its step.
    sizes = jnp.asarray(snn.code.sizes(len(spikes)), spikes.dtype)
    sizes = per_step(sizes, spikes.ndim)
    threshold = threshold_of(snn.neurons[site.name], site)
    indices = level_indices(spikes / sizes, threshold, levels)  # from 0 on
    spike_levels = indices.astype(jnp.int16) + levels[0]
    if levels == BINARY:
        return spike_levels.astype(bool)
    return spike_levels
