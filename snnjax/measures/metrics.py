"""Measures of a spiking network: accuracy over time, rates, errors, operations.

The conversion error of a neuron, averaged over T steps, is the sum of

    a - f(z)                            inherited  (from earlier layers)
    f(z) - clip(f(z), 0, V)             clipping   (V = high V_th)
    clip(f(z), 0, V) - ClipFloor(z)     flooring   (to one of T high + 1 values)
    ClipFloor(z) - s                    unevenness (of the spikes in time)

Here f is the ANN's activation function, a its value in the ANN, z the mean current of
the SNN, and s the mean output. At an encoder f(z) = z, and the clip is from low V_th +
offset to high V_th + offset. ClipFloor includes the bias and v(0) of the site, which
compensate the floor. Sources: Li et al., ICML 2021 (clipping, flooring); Bu et al.,
ICLR 2022 (unevenness).
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
from snnjax.capture.capture import capture
from snnjax.firing import (
    at_level,
    capture_step,
    events,
    observe_spikes,
    unit,
)
from snnjax.inputs import INPUTS, encode
from snnjax.measures.operations import (
    fan_out,
    macs_of,
    operator_macs,
    products,
    weights_of,
)
from snnjax.network.equations import Network, Values, read, shape_of
from snnjax.network.evaluate import evaluate, identity
from snnjax.network.sites import Site
from snnjax.neurons.models import counts_only
from snnjax.neurons.protocol import field, levels_of, synapses_of_a_spike
from snnjax.neurons.spike_trains import BINARY, level_indices
from snnjax.neurons.unroll import closed_form, needs_no_time
from snnjax.neurons.whole import off_grid
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
        inherited, clipping, flooring, unevenness: root mean square of the parts of the
            error. The last three are NaN unless the neurons are IF with reset by
            subtraction, because no other neurons have a ClipFloor.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn = lambda w, x: jax.nn.relu(x @ w)
    >>> w, x = jnp.eye(2), jnp.array([[0.5, 1.5]])
    >>> snn = snnjax.init(fn, w, x, model=snnjax.integrate_and_fire())
    >>> measures = snnjax.measure(fn, snn, x, params=w, steps=4)
    >>> site = measures.sites["relu"]  # the activation 1.5 is clipped at 1
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
    """Error of an operator, which is computed densely, averaged over images.

    Attributes:
        activation: root mean square of its value in the ANN, to compare errors with.
        error: root mean square of that value minus the SNN's after T steps.
    """

    activation: jax.Array
    error: jax.Array


@shown_as_table
class Measures(NamedTuple):
    """Activity and operations of a spiking network, averaged over images.

    Attributes:
        sites: site name -> `SiteMeasures`.
        operators: name -> `OperatorMeasures`, of each operator in `Sites.operators`.
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
            attention, each time that operators are computed. The other work of
            operators, such as exponentials and roots, is not counted.
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
        operator_steps: how often operators are computed: at each of T steps, or once
            if every layer waits for all of its input.
        spikes: spikes per neuron and inference, of either sign.
        zero_weights: number of weights of convolutions and matrix products that are 0;
            NaN in results of an older version.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn = lambda params, x: jax.nn.relu(x @ params[0]) @ params[1]
    >>> params, x = [jnp.eye(2), jnp.ones((2, 10))], jnp.array([[0.5, 0.25]])
    >>> snn = snnjax.init(fn, params, x, model=snnjax.integrate_and_fire())
    >>> measures = snnjax.measure(fn, snn, x, params=params, steps=4)
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
    values: jax.Array
    operator_steps: jax.Array
    spikes: jax.Array
    zero_weights: jax.Array | float = math.nan

    def _table(self) -> Table:
        percent = ("firing_rate", "silent", "saturated")
        head = ("site", *(f"{name} %".replace("_", " ") for name in percent))
        rows: list[tuple[str, ...]] = [(*head, *SiteMeasures._fields[len(percent) :])]
        for name, site in {**self.sites, **self.operators}.items():
            cells = {
                field: numbers(value, factor=100 if field in percent else 1)
                for field, value in site._asdict().items()
            }
            row = [cells.get(field, "") for field in SiteMeasures._fields]
            rows.append((name, *row))
        neurons, spikes = numbers(self.neurons, 6), numbers(self.spikes)
        steps, wait = numbers(self.steps), numbers(self.wait)
        operations = numbers(self.synaptic_operations, 4)
        summary = (
            f"{neurons} neurons send {spikes} spikes each, in T = {steps} steps with "
            f"wait {wait}.\nThey cause {operations} synaptic "
            f"operations; the ANN has {numbers(self.macs, 4)} multiply-adds."
        )
        return Table(rows, below=summary)


def accuracy(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Accuracy after every number of steps, from one run.

    Args:
        outputs: readout at each step [T, B, classes].
        labels: int [B].

    Returns:
        [T]; entry t - 1 is the accuracy of the mean of the first t outputs. An output
        that is NaN counts as a wrong answer.

    Raises:
        ValueError: wrong shapes or types; outside of ``jit``, a label that is not a
            class.

    >>> import jax.numpy as jnp
    >>> outputs = jnp.array([[[0.0, 1.0]], [[3.0, 0.0]]])
    >>> print(accuracy(outputs, jnp.array([0])))
    [0. 1.]
    """
    check_labels(outputs, labels)
    outputs, labels = automatic(jnp.asarray(outputs), jnp.asarray(labels))
    dtype = wide_dtype(outputs)  # sums in bfloat16 are inexact
    answers = jnp.cumsum(outputs, axis=0, dtype=dtype)
    classes = answers.argmax(-1)
    # Compare in the dtype of the answers: class 256 would become 0 in eight bits.
    right = classes == lead(labels.astype(classes.dtype), outputs.ndim - 1)
    return (right & ~jnp.isnan(answers).any(-1)).mean(-1)


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

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn = lambda w, x: jax.nn.relu(x @ w)
    >>> neuron = snnjax.integrate_and_fire()
    >>> snn = snnjax.init(fn, jnp.eye(2), jnp.eye(2), model=neuron)
    >>> measures = measure(fn, snn, 0.5 * jnp.eye(2), params=snn.params, steps=4)
    >>> print(measures.firing_rate, measures.sites["relu"].error)
    0.25 0.0
    """
    steps, wait = checked_fit(snn, steps, wait)
    check_params(snn, params)
    check_values(snn)
    x, params, snn = automatic(x, params, snn)
    network = capture(fn, params, x, inline_all=True)
    check_numbers(x)
    check_neurons(snn, network.sites)

    observe = functools.partial(_observe, network, steps=steps, wait=wait)
    site_measures, operators, counts = jax.jit(observe)(params, snn, x)
    # The order of execution, because jit sorts the keys of a dict.
    sites = [site for site in network.sites if site.fires]
    site_measures = {site.name: site_measures[site.name] for site in sites}
    sizes = [math.prod(site.shape) for site in sites]
    rates = jnp.stack([site.firing_rate for site in site_measures.values()])
    rate = rates @ jnp.array(sizes, jnp.float32) / sum(sizes)
    recurrent_weights = sum(
        size * synapses_of_a_spike(snn.model_of(site.name), site.shape)
        for size, site in zip(sizes, sites, strict=True)
    )
    shapes = [shape_of(network.avals, v) for v in weights_of(network)]
    operator_steps = 1 if needs_no_time(snn.code, steps, wait) else steps
    return Measures(
        sites={name: _without_none(site) for name, site in site_measures.items()},
        operators={site.name: operators[site.name] for site in network.sites.operators},
        firing_rate=rate,
        **counts | _of_levels(snn, sites, steps),
        neurons=jnp.asarray(sum(sizes)),
        weights=jnp.asarray(recurrent_weights + sum(map(math.prod, shapes))),
        steps=jnp.asarray(steps),
        wait=jnp.asarray(wait),
        operator_steps=jnp.asarray(operator_steps),
        spikes=steps * rate,
    )


def _of_levels(snn: SNN, sites: Sequence[Site], steps: int) -> dict[str, Any]:
    """Fields of `Measures` that need levels; NaN if a model states no levels."""
    levels = _levels_of_all(snn, sites)
    if levels is None:
        return dict.fromkeys(("synaptic_additions", "bits", "values"), _MISSING)
    sizes = [math.prod(site.shape) for site in sites]
    pairs = zip(sizes, levels, strict=True)
    bits = steps * sum(n * math.log2(high - low + 1) for n, (low, high) in pairs)
    highest = max(high for _, high in levels)
    values = 1 + highest * snn.code.reach(steps) / snn.code.finest(steps)
    return {"bits": jnp.asarray(bits / sum(sizes)), "values": jnp.asarray(values)}


def _levels_of_all(snn: SNN, sites: Sequence[Site]) -> list[tuple[int, int]] | None:
    """(low, high) of each of these sites; None if a model states no levels."""
    pairs = [levels_of(snn.model_of(site.name)) for site in sites]
    stated = [pair for pair in pairs if pair is not None]
    return stated if len(stated) == len(pairs) else None


_MISSING = np.float32(np.nan)  # by NumPy: jax_debug_nans refuses NaN in JAX


def _without_none(site: SiteMeasures) -> SiteMeasures:
    """The same with NaN, which jit could not return under ``jax_debug_nans``."""
    return site._make(_MISSING if value is None else value for value in site)


def _observe(
    network: Network,
    params: chex.ArrayTree,
    snn: SNN,
    x: chex.ArrayTree,
    steps: int,
    wait: int,
) -> tuple[dict[str, SiteMeasures], dict[str, OperatorMeasures], dict[str, Any]]:
    """Measures of the sites and operators by name, and counts as in `Measures`."""
    activations, operands = _activations(network, params, x)
    site_measures, inside = {}, {}

    def observe(site: Site, currents: jax.Array, spikes: jax.Array) -> None:
        name = site.name
        inside[name] = _inside(snn, site, spikes)
        of_mean = identity(site, currents.mean(0), *operands[name])
        arrays = activations[name], of_mean, currents, spikes
        site_measures[name] = _compared(site, snn, *arrays)

    run = {"steps": steps, "wait": wait, "observe": observe}
    values, streams = observe_spikes(network, snn, x, **run)
    operators = {}
    for eq in network.equations:
        if eq.site in network.sites.operators:  # of several outputs the first counts
            activation = wide(activations[eq.place.name][0])
            error = activation - wide(snn.code.result(values[eq.outputs[0]]))
            pair = _root_mean_square(activation), _root_mean_square(error)
            operators[eq.place.name] = OperatorMeasures(*pair)
    counts = _counts(network, snn, x, values, streams, list(inside.values()))
    return site_measures, operators, counts


def _counts(
    network: Network,
    snn: SNN,
    x: chex.ArrayTree,
    values: Values,
    streams: frozenset[int],
    inside: Sequence[tuple[jax.Array, jax.Array]],
) -> dict[str, Any]:
    """Operations per image, named as in `Measures`.

    Args:
        values, streams: of T steps, as from `observe_spikes`.
        inside: operations and additions within each site.
    """
    levels = _levels_of_all(snn, [site for site in network.sites if site.fires])
    highest = max((abs(level) for pair in levels or () for level in pair), default=1)
    is_graded = highest > 1
    at_level_one = at_level(network, snn, x, 1) if is_graded else {}
    constants = at_level(network, snn, x, 0)
    without_input = at_level(network, snn, jax.tree.map(jnp.zeros_like, x), 0)
    operations, additions = (sum(part) for part in zip(*inside, strict=True))
    live_macs = operator_macs(network, live=True)
    input_macs = operator_macs(network, live=False)
    macs = input_macs + live_macs
    for equation, v in products(network):
        macs += macs_of(equation, network)
        if v in streams:
            stream = events(snn.code, values, constants, v)
            synapses = fan_out(equation, network, v)[None]  # of each example
            active = (stream != 0).astype(jnp.float32)
            operations += (active.sum(0) * synapses).sum() / batch_of(x)
            if is_graded:
                sizes = snn.code.sizes(len(stream))
                of_level_one = wide(at_level_one[v]) - wide(constants[v])
                active *= _magnitudes(stream, of_level_one, sizes, highest)
            additions += (active.sum(0) * synapses).sum() / batch_of(x)
            from_input = (constants[v] != without_input[v]).astype(jnp.float32)
            input_macs += (from_input * synapses).sum() / batch_of(x)
        else:
            input_macs += macs_of(equation, network)
    zeros = [(read(values, v) == 0).sum() for v in weights_of(network)]
    return {
        "synaptic_operations": operations,
        "synaptic_additions": additions,
        "input_macs": jnp.asarray(input_macs, jnp.float32),
        "operator_macs": jnp.asarray(live_macs, jnp.float32),
        "macs": jnp.asarray(macs, jnp.float32),
        "zero_weights": jnp.asarray(sum(zeros)),
    }


def _root_mean_square(array: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.square(array).mean())


def _inside(snn: SNN, site: Site, spikes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Operations and additions per image of connections within a site."""
    model = snn.model_of(site.name)
    synapses = synapses_of_a_spike(model, site.shape)
    if not synapses:
        return jnp.zeros(()), jnp.zeros(())
    active = (spikes[:-1] != 0).astype(jnp.float32)
    level = active
    if levels_of(model) is not None:
        threshold = lead(unit(snn.neurons[site.name], site), spikes.ndim)
        level = jnp.abs(wide(spikes[:-1]) / wide(threshold))
    per_image = synapses / spikes.shape[1]
    return per_image * active.sum(), per_image * level.sum()


def _magnitudes(
    stream: jax.Array, level_one: jax.Array, sizes: Any, highest: int
) -> jax.Array:
    """How many spikes of level 1 each value is worth, [T, B, ...].

    Args:
        stream: what arrives at each step, [T, B, ...].
        level_one: the value if all neurons emit level 1, [B, ...]. Spikes of both signs
            may cancel in it; even then a value is worth ``highest`` at most.
        sizes: of a spike at each step, [T].
        highest: largest magnitude of a level.
    """
    sizes = jnp.asarray(sizes, wide_dtype(level_one)).reshape(-1, *[1] * level_one.ndim)
    worth = sizes * jnp.abs(wide(level_one))[None]
    count = jnp.round(jnp.abs(wide(stream)) / jnp.where(worth > 0, worth, jnp.inf))
    return jnp.clip(count, 1, highest)


def _compared(
    site: Site,
    snn: SNN,
    activation: jax.Array,
    of_mean: jax.Array,
    currents: jax.Array,
    spikes: jax.Array,
) -> SiteMeasures:
    """Measures of a site; None for parts of the error that its neurons do not have.

    Args:
        activation: a, of the ANN, [B, ...].
        of_mean: f(z), the ANN's function of the mean current, [B, ...].
        currents, spikes: [T, B, ...].
    """
    model, params = snn.model_of(site.name), snn.neurons[site.name]
    steps, offset = len(spikes), field(params, "offset")
    spike_counts = (spikes != 0).sum((0, *other_axes(spikes.ndim, site.channel)[2:]))
    possible = steps * activation[0].size // activation.shape[site.channel]
    output = add_offset(spikes.mean(0), offset)
    activation, of_mean, output, current = map(
        wide, (activation, of_mean, output, currents.mean(0))
    )
    parts: dict[str, Any] = dict.fromkeys(("clipping", "flooring", "unevenness"))
    if counts_only(model, params):
        clip_floor = closed_form(model, params, current, steps, code=snn.code)
        threshold = lead(params.threshold, current.ndim).astype(current.dtype)
        reach = snn.code.reach(steps)
        low, high = (number * reach * threshold for number in model.levels)
        low = jnp.zeros_like(low) if off_grid(model).rectifies else low
        low, high = (add_offset(end, offset) for end in (low, high))
        clipped_values = jnp.clip(of_mean, low, high)
        parts = {
            "clipping": _root_mean_square(of_mean - clipped_values),
            "flooring": _root_mean_square(clipped_values - clip_floor),
            "unevenness": _root_mean_square(clip_floor - output),
        }
    return SiteMeasures(
        firing_rate=spike_counts.astype(jnp.float32).mean() / possible,
        silent=(spike_counts == 0).all(0).mean(),
        saturated=(spike_counts == possible).all(0).mean(),
        activation=_root_mean_square(activation),
        error=_root_mean_square(activation - output),
        inherited=_root_mean_square(activation - of_mean),
        **parts,
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

    They are bool for levels (0, 1), int16 for other levels. If a neuron model states no
    levels, the result is its outputs.

    Args:
        fn, snn, x, steps, wait: as for `measure`.
        inputs, key: as for `snnjax.spiking`; x of a sequence is [T, B, ...].

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
        sizes = jnp.asarray(snn.code.sizes(len(spikes)), spikes.dtype)
        per_unit = spikes / sizes.reshape(-1, *[1] * (spikes.ndim - 1))
        indices = level_indices(per_unit, unit(snn.neurons[site.name], site), levels)
        whole = indices.astype(jnp.int16) + levels[0]
        trains[site.name] = whole.astype(bool) if levels == BINARY else whole

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
