"""Measures of a spiking network: accuracy over time, rates, errors, operations.

The conversion error of a site, per neuron and averaged over T steps, is the sum of

    a - f(z)                            inherited  (from the layers below)
    f(z) - clip(f(z), 0, V)             clipping   (V = high V_th)
    clip(f(z), 0, V) - ClipFloor(z)     flooring   (only T high + 1 values)
    ClipFloor(z) - s                    unevenness (spikes did not come evenly)

with f the activation that stands there, a its value in the ANN, z the mean current as
it arrives, s the mean output; at an encoder f(z) = z, and the clip is from low V_th +
offset to high V_th + offset. ClipFloor includes the site's bias and v(0), which make up
for the floor. Sources: Li et al., ICML 2021 (clipping, flooring); Bu et al., ICLR 2022
(unevenness).
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from snnjax._arrays import add_offset, lead, other_axes, wide, wide_dtype
from snnjax._checks import check_choice, check_examples, check_labels, check_numbers
from snnjax._examples import batch_of
from snnjax._text import Table, numbers, shown_as_table
from snnjax._types import Inputs
from snnjax.firing import (
    at_level,
    capture_step,
    events,
    observe_spikes,
    of_offsets,
    unit,
)
from snnjax.inputs import INPUTS, encode
from snnjax.measures.operations import Work, operator_macs, products, weights_of
from snnjax.network.capture import capture
from snnjax.network.equations import Network, Values, shape_of
from snnjax.network.evaluate import evaluate, identity
from snnjax.network.sites import Site
from snnjax.neurons.models import IntegrateAndFire, NeuronParams, counts_only
from snnjax.neurons.protocol import field, levels_of, synapses_of_a_spike
from snnjax.neurons.spike_trains import BINARY, code
from snnjax.neurons.unroll import closed_form
from snnjax.sharding import automatic
from snnjax.snn import SNN, check_neurons, check_params, check_values, checked_fit


class SiteMeasures(NamedTuple):
    """Activity and errors of one site, averaged over images.

    Attributes:
        firing_rate: fraction of steps with a spike, over all neurons, 0..1.
        silent: fraction of channels in which no neuron ever fires.
        saturated: fraction of channels in which every neuron fires at every step.
        activation: root mean square of the ANN's activation, to compare errors with.
        error: root mean square of a - s.
        inherited, clipping, flooring, unevenness: root mean square of its parts; the
            last three are NaN for all neurons but IF with reset by subtraction, since
            others have no ClipFloor.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn = lambda w, x: jax.nn.relu(x @ w)
    >>> w, x = jnp.eye(2), jnp.array([[0.5, 1.5]])
    >>> snn = snnjax.init(fn, w, x, model=snnjax.integrate_and_fire())
    >>> site = snnjax.measure(fn, w, snn, x, steps=4).sites["relu"]  # of 1.5 it gives 1
    >>> for name in ("inherited", "clipping", "flooring", "unevenness"):
    ...     print(f"{name} {getattr(site, name):.3f}")
    inherited 0.000
    clipping 0.354
    flooring 0.000
    unevenness 0.000
    """

    firing_rate: jax.Array
    silent: jax.Array
    saturated: jax.Array
    activation: jax.Array
    error: jax.Array
    inherited: jax.Array
    clipping: jax.Array
    flooring: jax.Array
    unevenness: jax.Array


class OperatorMeasures(NamedTuple):
    """Error of a function that is computed densely, averaged over images.

    Attributes:
        activation: root mean square of its value in the ANN, to compare errors with.
        error: root mean square of that value minus the mean of its increments.
    """

    activation: jax.Array
    error: jax.Array


@shown_as_table
class Measures(NamedTuple):
    """Activity and operations of a spiking network, averaged over images.

    Attributes:
        sites: site name -> `SiteMeasures`.
        operators: name -> `OperatorMeasures`, of every `Sites.operators`; what it adds
            to the error of its inputs shows beside theirs.
        firing_rate: mean over all neurons of all sites.
        synaptic_operations: operations per image that spikes cause in T steps: one for
            each non-zero input of a convolution or matrix product and each of the
            outputs that it reaches, and for each neuron of its own site that a spike
            reaches before the last step. It is an addition for spikes of level 1 or
            -1, a multiplication and an addition for others.
        synaptic_additions: the same by additions alone: a spike of level k is |k| of
            them. Where no level is beyond 1 and -1, they are equal; NaN where a neuron
            model states no levels, as the last two.
        input_macs: multiply-adds per image of what the analog input reaches directly;
            a constant current is computed once.
        operator_macs: multiply-adds per image and step of products of two values, as
            in attention, which an operator computes densely at every step. What else
            an operator computes, exponentials and roots, is not counted.
        macs: multiply-adds per image of the ANN.
        neurons: number of all sites' neurons.
        weights: number of weights of all convolutions and matrix products, and of
            recurrent connections.
        steps, wait: that it was measured with.
        bits: that a neuron sends in one inference, T log2(high - low + 1), on average.
        high: the highest level of a spike.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn = lambda params, x: jax.nn.relu(x @ params[0]) @ params[1]
    >>> params, x = [jnp.eye(2), jnp.ones((2, 10))], jnp.array([[0.5, 0.25]])
    >>> snn = snnjax.init(fn, params, x, model=snnjax.integrate_and_fire())
    >>> measures = snnjax.measure(fn, params, snn, x, steps=4)
    >>> float(measures.synaptic_operations)  # 3 spikes, each to 10 outputs
    30.0
    >>> float(measures.input_macs), float(measures.macs)  # 2 x 2, and 2 x 10 besides
    (4.0, 24.0)
    """

    sites: dict[str, SiteMeasures]
    operators: dict[str, OperatorMeasures]
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
    high: jax.Array

    def _table(self) -> Table:
        percent = ("firing_rate", "silent", "saturated")
        head = ("site", *(f"{name} %".replace("_", " ") for name in percent))
        rows: list[tuple[str, ...]] = [(*head, *SiteMeasures._fields[len(percent) :])]
        for name, site in {**self.sites, **self.operators}.items():
            cells = {
                field: numbers(value, factor=100 if field in percent else 1)
                for field, value in site._asdict().items()
            }
            shown = [cells.get(field, "") for field in SiteMeasures._fields]
            rows.append((name, *shown))
        totals = {
            "firing rate %": numbers(self.firing_rate, factor=100),
            "synaptic operations": numbers(self.synaptic_operations, 4),
            "MACs of the ANN": numbers(self.macs, 4),
            "neurons": numbers(self.neurons, 6),
            "T": numbers(self.steps),
            "wait": numbers(self.wait),
        }
        summary = ", ".join(f"{name} {value}" for name, value in totals.items())
        return Table(rows, below=summary)


def accuracy(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Accuracy after every number of steps, from one run.

    Args:
        outputs: readout at each step [T, B, classes].
        labels: int [B].

    Returns:
        [T]; entry t - 1 is the accuracy of the mean of the first t outputs. NaN is no
        answer, and wrong.

    Raises:
        ValueError: other shapes or types; outside of ``jit``, a label that is no class.

    >>> import jax.numpy as jnp
    >>> outputs = jnp.array([[[0.0, 1.0]], [[3.0, 0.0]]])
    >>> print(accuracy(outputs, jnp.array([0])))
    [0. 1.]
    """
    check_labels(outputs, labels)
    outputs, labels = automatic(jnp.asarray(outputs), jnp.asarray(labels))
    dtype = wide_dtype(outputs)  # bfloat16 would not add up
    answers = jnp.cumsum(outputs, axis=0, dtype=dtype)
    chosen = answers.argmax(-1)
    # A class that the type of the labels cannot hold is no label.
    right = chosen == lead(labels.astype(chosen.dtype), outputs.ndim - 1)
    return (right & ~jnp.isnan(answers).any(-1)).mean(-1)


def measure(
    fn: Callable,
    params: chex.ArrayTree,
    snn: SNN,
    x: chex.ArrayTree,
    *,
    steps: int | None = None,
    wait: int | None = None,
) -> Measures:
    """Compare an SNN with its ANN, site by site.

    Args:
        fn: network, ``fn(params, x) -> outputs``.
        params: of the ANN; those of ``snn`` may have been calibrated since.
        snn: from `snnjax.convert`.
        x: images [B, ...], a constant current.
        steps, wait: T, and the steps that every layer waits; by default those that the
            SNN was fitted to.

    Returns:
        `Measures`. Jitted inside, one program for each network, steps, wait and shape
        of x; memory is that of by_layer: T times the ANN's.

    Raises:
        ValueError: as `snnjax.spiking`; params of another structure than the SNN's;
            no steps, for an SNN that was fitted to none.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn = lambda w, x: jax.nn.relu(x @ w)
    >>> neuron = snnjax.integrate_and_fire()
    >>> snn = snnjax.init(fn, jnp.eye(2), jnp.eye(2), model=neuron)
    >>> measures = measure(fn, jnp.eye(2), snn, 0.5 * jnp.eye(2), steps=4)
    >>> print(measures.firing_rate, measures.sites["relu"].error)
    0.25 0.0
    """
    steps, wait = checked_fit(snn, steps, wait)
    check_params(snn, params)
    check_values(snn)
    x, params, snn = automatic(x, params, snn)
    network = capture(fn, params, x, inline_all=True)
    check_numbers(x)
    work = Work(fn, network)
    observed, operators, counts = _observe(work, params, snn, x, steps, wait)
    compared = {
        site.name: _compared(observed[site.name], snn, site, steps)
        for site in network.sites
        if site.fires
    }
    firing = [site for site in network.sites if site.fires]
    neurons = sum(math.prod(site.shape) for site in firing)
    recurrent = sum(
        math.prod(site.shape) * synapses_of_a_spike(snn.model_of(site.name), site.shape)
        for site in firing
    )
    shapes = [shape_of(network.avals, v) for v in weights_of(network)]
    weights = recurrent + sum(map(math.prod, shapes))
    # In float32: all spikes of a large network may be more than int32 can count.
    fired = sum(site.fired.astype(jnp.float32).sum() for site in observed.values())
    possible = float(steps) * sum(site.activation.size for site in observed.values())
    return Measures(
        sites=compared,
        # In order of execution: jit sorts the keys of a dict.
        operators={site.name: operators[site.name] for site in network.sites.operators},
        firing_rate=jnp.asarray(fired) / possible,
        **counts | _of_levels(snn, firing, steps),
        neurons=jnp.asarray(neurons),
        weights=jnp.asarray(weights),
        steps=jnp.asarray(steps),
        wait=jnp.asarray(wait),
    )


def _of_levels(snn: SNN, firing: Sequence[Site], steps: int) -> dict[str, Any]:
    """Fields of `Measures` that depend on levels; NaN where a model states none."""
    neurons, bits, high = 0, 0.0, 0
    for site in firing:
        levels = levels_of(snn.model_of(site.name))
        if levels is None:
            # Of NumPy, since jax_debug_nans refuses a NaN of JAX.
            return dict.fromkeys(("synaptic_additions", "bits", "high"), _MISSING)
        neurons += math.prod(site.shape)
        bits += math.prod(site.shape) * math.log2(levels[1] - levels[0] + 1)
        high = max(high, levels[1])
    return {"bits": jnp.asarray(steps * bits / neurons), "high": jnp.asarray(high)}


_MISSING = np.float32(np.nan)


class _Observed(NamedTuple):
    """Activity of a site, [B, ...].

    Attributes:
        activation: of the ANN.
        current, output: means over T steps.
        expected: f(z), the activation that stands there in the ANN, of that current.
        fired: spikes per image and channel, [B, C], as many as int32 can hold.
    """

    activation: jax.Array
    current: jax.Array
    output: jax.Array
    expected: jax.Array
    fired: jax.Array


@functools.partial(jax.jit, static_argnames=("work", "steps", "wait"))
def _observe(
    work: Work,
    params: chex.ArrayTree,
    snn: SNN,
    x: chex.ArrayTree,
    steps: int,
    wait: int,
):
    """(name -> `_Observed`, name -> `OperatorMeasures`, counts as in `Measures`)."""
    network = capture(work.fn, params, x, inline_all=True)
    check_neurons(snn, network.sites)
    activations, operands = _activations(network, params, x)
    observed, inside = {}, {}

    def observe(site: Site, currents: jax.Array, spikes: jax.Array) -> None:
        inside[site.name] = _inside(snn, site, spikes)
        fired = (spikes != 0).sum((0, *other_axes(spikes.ndim, site.channel)[2:]))
        offset = field(snn.neurons[site.name], "offset")
        current, output = currents.mean(0), add_offset(spikes.mean(0), offset)
        expected = identity(site, current, *operands[site.name])
        activation = activations[site.name]
        observed[site.name] = _Observed(activation, current, output, expected, fired)

    values, streams = observe_spikes(
        network, snn, x, steps=steps, wait=wait, observe=observe
    )
    dense_sites = network.sites.operators
    operators = {
        eq.place.name: _of_operator(activations[eq.place.name], values[eq.outputs[0]])
        for eq in network.equations
        if eq.site in dense_sites
    }
    counts = _counts(work, network, snn, params, x, values, streams, inside)
    return observed, operators, counts


def _counts(
    work: Work,
    network: Network,
    snn: SNN,
    params: chex.ArrayTree,
    x: chex.ArrayTree,
    values: Values,
    streams: frozenset[int],
    inside: dict[str, tuple[jax.Array, jax.Array]],
) -> dict[str, Any]:
    """Operations per image, named as in `Measures`.

    Args:
        values, streams: of T steps, as from `observe_spikes`.
        inside: site name -> operations and additions within the site.
    """
    models = [snn.model_of(site.name) for site in network.sites if site.fires]
    graded = _are_graded([levels_of(model) for model in models])
    at_level_one = at_level(network, snn, x, 1) if graded else {}
    highest = max(max(map(abs, levels_of(model) or (1,))) for model in models)
    offsets = of_offsets(network, snn, x)
    operations, additions = (sum(part) for part in zip(*inside.values(), strict=True))
    input_macs = operator_macs(network, live=False)
    dense = operator_macs(network, live=True)
    macs = input_macs + dense
    for v, product in products(work.fn, params, x, network):
        macs += product.macs
        if v in streams:
            stream = events(values, offsets, v)
            active = (stream != 0).astype(jnp.float32)
            operations += (active.sum(0) * product.fan_out).sum() / batch_of(x)
            if graded:
                active *= _levels(stream, at_level_one[v], highest)
            additions += (active.sum(0) * product.fan_out).sum() / batch_of(x)
        else:
            input_macs += product.macs
    return {
        "synaptic_operations": operations,
        "synaptic_additions": additions,
        "input_macs": jnp.asarray(input_macs),
        "operator_macs": jnp.asarray(dense),
        "macs": jnp.asarray(macs),
    }


def _of_operator(activations: Any, increments: jax.Array) -> OperatorMeasures:
    """Of its first output, which is the only one of most operators.

    Args:
        activations: its outputs in the ANN, [B, ...].
        increments: [T, B, ...].
    """
    activation = wide(activations[0])
    error = activation - wide(increments).mean(0)
    root = lambda a: jnp.sqrt(jnp.square(a).mean())  # noqa: E731
    return OperatorMeasures(root(activation), root(error))


def _are_graded(levels: Sequence[tuple[int, int] | None]) -> bool:
    """Whether a spike may be of another level than 0, 1 and -1, and all are stated."""
    stated = [pair for pair in levels if pair is not None]
    beyond_one = any(low < -1 or high > 1 for low, high in stated)
    return beyond_one and len(stated) == len(levels)


def _inside(snn: SNN, site: Site, spikes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Operations and additions per image of connections within a site."""
    model = snn.model_of(site.name)
    fan_out = synapses_of_a_spike(model, site.shape)
    if not fan_out:
        return jnp.zeros(()), jnp.zeros(())
    active = (spikes[:-1] != 0).astype(jnp.float32)
    level = active
    if levels_of(model) is not None:
        threshold = lead(unit(snn.neurons[site.name], site), spikes.ndim)
        level = jnp.abs(wide(spikes[:-1]) / wide(threshold))
    per_image = fan_out / spikes.shape[1]
    return per_image * active.sum(), per_image * level.sum()


def _levels(stream: jax.Array, unit: jax.Array, highest: int) -> jax.Array:
    """How many spikes of level 1 each value is worth, [T, B, ...].

    Args:
        unit: the value where all neurons emit level 1, [B, ...]; where spikes of both
            signs cancel in it, a value is still worth ``highest`` at most.
        highest: level of any spike, without its sign.
    """
    unit = jnp.abs(wide(unit))[None]
    worth = jnp.round(jnp.abs(wide(stream)) / jnp.where(unit > 0, unit, jnp.inf))
    return jnp.clip(worth, 1, highest)


def _compared(observed: _Observed, snn: SNN, site: Site, steps: int) -> SiteMeasures:
    params = snn.neurons[site.name]
    neuron, channel = snn.model_of(site.name), site.channel
    splits = counts_only(neuron, params)
    compared = _compare(observed, params, neuron, steps, channel, splits=splits)
    if splits:
        return compared
    return compared._replace(clipping=_MISSING, flooring=_MISSING, unevenness=_MISSING)


@functools.partial(jax.jit, static_argnames=("neuron", "channel", "splits"))
def _compare(
    observed: _Observed,
    params: NeuronParams,
    neuron: IntegrateAndFire,
    steps: int,
    channel: int,
    *,
    splits: bool,
) -> SiteMeasures:
    """The measures of a site; ``splits``: its neurons have a ClipFloor."""
    activation, current, output, expected = map(wide, observed[:4])
    fired = observed.fired
    clip_floor = clipped = expected
    if splits:
        clip_floor = closed_form(neuron, params, current, steps)
        threshold = lead(params.threshold, current.ndim).astype(current.dtype)
        low, high = (number * threshold for number in neuron.levels)
        low = jnp.zeros_like(low) if neuron.rectifies else low
        low, high = (add_offset(end, params.offset) for end in (low, high))
        clipped = jnp.clip(expected, low, high)
    parts = (
        activation,
        activation - output,
        activation - expected,
        expected - clipped,
        clipped - clip_floor,
        clip_floor - output,
    )
    possible = steps * activation[0].size // activation.shape[channel]
    return SiteMeasures(
        fired.astype(jnp.float32).mean() / possible,
        (fired == 0).all(0).mean(),
        (fired == possible).all(0).mean(),
        *[jnp.sqrt((part**2).mean()) for part in parts],
    )


def spike_trains(
    fn: Callable,
    snn: SNN,
    x: chex.ArrayTree,
    *,
    steps: int | None = None,
    wait: int | None = None,
    inputs: Inputs = "constant",
    key: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """Spikes of every site, name -> [T, B, ...], for images x [B, ...].

    They are bool where the levels are (0, 1), otherwise the levels, int16, and where
    a neuron model states no levels, its spikes as they are.

    Args:
        fn, snn, x, steps, wait: as for `measure`.
        inputs, key: as for `snnjax.spiking`; x of a sequence is [T, B, ...].

    Raises: as `snnjax.spiking`.

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
    check_choice("inputs", inputs, INPUTS)
    check_values(snn)
    check_examples(x, axis=1 if inputs == "sequence" else 0)
    check_numbers(x)
    x, snn = automatic(encode(x, inputs, steps, key), snn)
    sequence = inputs != "constant"
    network = capture_step(fn, snn.params, x, sequence=sequence)
    check_neurons(snn, network.sites)
    trains = {}

    def observe(site: Site, currents: jax.Array, spikes: jax.Array) -> None:
        levels = levels_of(snn.model_of(site.name))
        if levels is None:
            trains[site.name] = spikes
            return
        codes = code(spikes, unit(snn.neurons[site.name], site), levels)
        trains[site.name] = (
            codes > 0 if levels == BINARY else codes.astype(jnp.int16) + levels[0]
        )

    run = {"steps": steps, "wait": wait, "sequence": sequence}
    observe_spikes(network, snn, x, observe=observe, **run)
    return trains


def _activations(
    network: Network, params: chex.ArrayTree, x: chex.ArrayTree
) -> tuple[dict[str, Any], dict[str, tuple[Any, ...]]]:
    """Site name -> the ANN's activation, and the operands beside its input."""
    values, activations, operands_of_sites = network.arguments(params, x), {}, {}

    def rule(site: Site, current: jax.Array, *operands: Any) -> Any:
        activations[site.name] = identity(site, current, *operands)
        operands_of_sites[site.name] = operands
        return activations[site.name]

    evaluate(network.equations, values, rule)
    return activations, operands_of_sites
