"""Conversion: one forward sweep fits thresholds, biases, potentials and weights.

For every site in order, the ANN's activation and the spikes that the calibrated
layers below send meet at the site; its calibrators fit it; its spikes go on. The
network is cut into segments between sites, so a sweep over N images costs about
(T + 1) N forward passes, whatever the depth.
Source of the layer-wise scheme: Li et al., ICML 2021; of the single sweep: ours.
"""

import dataclasses
import functools
import itertools
import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding

from snnjax import resume, sharding
from snnjax.calibrate import Calibrator, Fit, View
from snnjax.capture import capture
from snnjax.fits import bias_correction, thin
from snnjax.network import (
    Network,
    Segment,
    Site,
    Stage,
    evaluate,
    identity,
    read,
    stages,
    streaming,
)
from snnjax.neurons import (
    NeuronParams,
    check_delay,
    check_size,
    closed_form,
    integrate_and_fire,
    mean_output,
    packed_spikes,
)
from snnjax.recipes import Recipe, light
from snnjax.simulate import SNN

_NEURON = integrate_and_fire()


def convert(
    fn: Callable,
    params: chex.ArrayTree,
    x: jax.Array,
    *,
    steps: int,
    recipe: Recipe | None = None,
    delay: int = 0,
    micro_batch: int | None = None,
    memory_budget: int = 2**30,
    mesh: Mesh | None = None,
    folder: str | os.PathLike | None = None,
    progress: Callable[[Sequence], Iterable] = iter,
) -> SNN:
    """Turn a trained network into a calibrated spiking one.

    Args:
        fn: network, ``fn(params, x) -> outputs``, affine between its sites
            (`snnjax.sites` shows them, or everything that stands in the way).
        params: its trained parameters, any pytree of arrays.
        x: calibration images, float [N, ...]; no labels are needed.
        steps: T >= 1, for which the SNN is fitted.
        recipe: what is fitted; `snnjax.light` by default.
        delay: 0..T, for which the SNN is fitted; see `snnjax.spiking`.
        micro_batch: images at a time on each device; by default so many that the
            currents of the largest site, over all T steps, take about 16 MiB.
        memory_budget: bytes on each device for what is on its way between sites. What
            does not fit waits in files without a name in the folder for temporary
            files; the currents of a site are kept between calibrators in what is left
            of the budget, and computed anew if they do not fit. Weight calibration and
            percentiles take memory for all images on top. The process may take two to
            three times as much, since the allocator does not return all at once.
        mesh: devices that share the images along its first axis, of one process or of
            many; by default those that x is sharded over. Parameters that do not lie
            on them are copied to all of them, and the SNN comes back on all of them;
            ``jax.device_get(snn)`` runs anywhere.
        folder: keeps the fit of every site there; a conversion that was interrupted
            goes on from them when started again with the same arguments, and gives the
            same bits. A new folder, on a disk that all processes share, or None.
        progress: wraps the sequence of sites while they are fitted, e.g. ``tqdm``.

    Returns:
        An `SNN` for `snnjax.spiking` with the same steps and delay. The same
        arguments give the same bits.

    Raises:
        snnjax.ConversionError: before any work, as `snnjax.sites`.
        ValueError: an argument outside its range; a recipe that is none; x empty, of
            the wrong shape, not floating point, not to be shared evenly by the devices,
            or too large for the memory budget of several processes; a folder of another
            conversion; activations that are not finite (with the site's name), or
            outputs.
        OSError: the folder cannot be written to, or that for temporary files.

    >>> import jax, jax.numpy as jnp
    >>> def fn(params, x):
    ...     return jax.nn.relu(x @ params["hidden"]) @ params["readout"]
    >>> params = {"hidden": jnp.ones((3, 8)), "readout": jnp.ones((8, 2))}
    >>> snn = convert(fn, params, jnp.ones((4, 3)), steps=8)
    >>> print(snn.neurons["hidden/relu"].threshold)
    3.0
    """
    check_delay(steps, delay)
    check_size("micro_batch", micro_batch)
    if not memory_budget >= 0:
        raise ValueError(f"memory_budget is {memory_budget}; allowed: >= 0 bytes")
    recipe = light() if recipe is None else recipe
    _check_recipe(recipe)
    spread = sharding.over_batch(mesh, x)
    params = sharding.on_mesh(params, spread)
    network = capture(fn, params, x if spread is None else _unplaced(x))
    sharding.check_batch("the calibration images", x.shape[0], spread)
    images, x = x, sharding.place(x, spread)
    _check_finite("the calibration images", [x])
    share = x.shape[0] // sharding.size(spread)
    size = min(micro_batch or _micro_batch(network, steps, delay), share)
    cut = _cutter(fn, params, x)
    waiting = share * _bytes_on_their_way(network, steps, delay)
    offload = waiting > memory_budget and not isinstance(x, Tracer)
    _check_offload(offload, waiting, memory_budget)
    budget = max(0, memory_budget - waiting)
    plan = _Plan(x, spread, size, cut, params, steps, delay, budget, offload)
    kept = resume.keep(
        folder,
        lambda: {
            "network": resume.outline(cut(1)[0]),
            "parameters": jax.tree.leaves(params),
            "images": images,
            "steps": steps,
            "delay": delay,
            "recipe": recipe,
        },
    )
    neurons = {s.name: _NEURON.params() for s in network.sites if s.fires}
    snn = SNN(params, neurons, None, steps, delay)
    for number, calibrators in enumerate(recipe.sweeps):
        calibrate = functools.partial(_chained, calibrators, plan.spread)
        once = functools.partial(resume.remembering, kept, number, calibrate)
        snn, chunks = _sweep(plan, snn, once, progress)
    outputs = _ann_outputs(plan, chunks)
    if recipe.correct_readout:
        error = _readout_error(plan, snn, chunks, outputs)
        snn = dataclasses.replace(snn, readout=error)
    return snn


# ------------------------------------------------------------------ the sweep


class Train(NamedTuple):
    """Spikes as they wait for the next stage, one bit each.

    Attributes:
        bits: uint8 [ceil(T / 8), B, ...], packed along time.
        threshold: what a spike carries, scalar or [C].
    """

    bits: jax.Array
    threshold: jax.Array


class Waiting(Sequence):
    """Micro-batches that may lie in files, as arrays."""

    def __init__(self, values: Sequence[Any]):
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, i):
        found = self.values[i]
        return found if isinstance(found, jax.Array) else jnp.asarray(found)


class _Plan(NamedTuple):
    """What stays the same during a conversion."""

    x: jax.Array
    spread: NamedSharding | None
    size: int  # images at a time on each device
    cut: Callable[[int], tuple[Network, list[Stage]]]
    params: chex.ArrayTree
    steps: int
    delay: int
    budget: int  # bytes for the currents of a site
    offload: bool

    @property
    def means(self) -> bool:
        """Whether each layer waits for all of its input, so that means are enough."""
        return self.delay == self.steps

    def waits(self, value):
        """A stream until its next stage: in memory, or in a file if all do not fit."""
        return jax.tree.map(_in_file, value) if self.offload else value

    def join(self, parts: Sequence[jax.Array]) -> jax.Array:
        """Of all micro-batches, one array of all images."""
        return sharding.join(parts, 0, self.spread)


class _Chunk(NamedTuple):
    """A micro-batch on its way: variable -> value, of what later stages read.

    The network is that of the images that one device has of it. Values of ``snn`` are
    means where ``_Plan.means``; otherwise a `Train`, or an array [T, B, ...] where a
    sum of several sites has to wait.
    """

    network: Network
    stages: list[Stage]
    ann: dict[int, jax.Array]
    snn: dict[int, Any]


class Current(NamedTuple):
    """The current into a site as a pure function; hashable, for ``jit``.

    Attributes:
        segment: the work.
        streams: which of its inputs are streams.
        steps: T.
        slots: positions among the inputs that the weights take.
        axes: for each input the axis of the images, None if it has none.
        ndim: axes of the site; None for the mean over time.
    """

    segment: Segment
    streams: tuple[bool, ...]
    steps: int
    slots: tuple[int, ...]
    axes: tuple[int | None, ...]
    ndim: int | None

    def __call__(self, weights: Sequence[jax.Array], sources: Sequence[Any], rows):
        """The current of these images: its mean [B, ...], or all of it [T, B, ...]."""
        chosen = [
            source if axis is None else _take(source, rows, axis)
            for source, axis in zip(sources, self.axes, strict=True)
        ]
        for slot, weight in zip(self.slots, weights, strict=True):
            chosen[slot] = weight
        current = _run_all(self.segment, self.streams, self.steps, chosen)[0][0]
        if self.ndim is None:
            return current
        return _over_time(current, self.steps, self.ndim)


def _sweep(plan: _Plan, snn: SNN, calibrator: Callable[[int], Calibrator], progress):
    """Carry all images from site to site and fit each by the calibrator of its number.

    Also the chunks at the end.
    """
    chunks = _load(plan)
    network, cut = chunks[0].network, chunks[0].stages
    original, params = network.arguments(plan.params), network.arguments(snn.params)
    neurons = dict(snn.neurons)
    found = [stage.equation.place for stage in cut[:-1]]
    for i, site in enumerate(progress(found)):
        fit = _fit_site(plan, chunks, i, original, params, neurons, calibrator(i))
        neurons[site.name] = fit.neuron
        params.update(_by_variable(network, fit.weights))
    leaves = [params[v] for v in network.parameters]
    tree = jax.tree_util.tree_structure(snn.params)
    calibrated = jax.tree_util.tree_unflatten(tree, leaves)
    return dataclasses.replace(snn, params=calibrated, neurons=neurons), chunks


def _fit_site(plan: _Plan, chunks, i: int, original, params, neurons, calibrate):
    """Fit one site and carry both streams over it.

    A function of its own, so that the currents are freed before the next site.
    """
    network, site = chunks[0].network, chunks[0].stages[i].equation.place
    activations = [_step_ann(plan, chunk, i, original) for chunk in chunks]
    _check_finite(f"the activations of site {site.name!r}", activations)
    kernels = _kernels(network, site, params)
    currents = _currents(plan, chunks, i, params)
    feed = functools.partial(_feed, plan, chunks, i, params, kernels)
    thinned = _thinned(plan, currents, site)
    outputs = functools.partial(_outputs, plan, thinned, site)
    waiting = Waiting(activations)
    view = View(site, plan.steps, plan.delay, waiting, outputs, feed, plan.join)
    fit = calibrate(view, Fit(neurons[site.name], kernels))
    _check_shared(network, site, kernels, fit.weights)
    neuron = _widen(fit.neuron, site)
    stepped = zip(chunks, currents(fit.weights), strict=True)
    for chunk, ((current, *_), carried) in stepped:
        spikes = _fire(neuron, current, plan.steps, plan.delay, len(site.shape))
        spikes, *carried = map(plan.waits, [spikes, *carried])
        _keep(chunk.snn, chunk.stages, i, spikes, carried)
    return fit


def _chained(calibrators, spread, view: View, fit: Fit) -> Fit:
    """All calibrators, one after the other; fits lie on all devices."""
    for calibrate in calibrators:
        found = calibrate(view, fit)
        changed = {p: w for p, w in found.weights.items() if w is not fit.weights[p]}
        neuron = sharding.gathered(found.neuron, spread)
        weights = fit.weights  # the same object, for which currents are kept
        if changed:
            weights = weights | sharding.gathered(changed, spread)
        fit = Fit(neuron, weights)
    return fit


def _load(plan: _Plan) -> list[_Chunk]:
    chunks = []
    images, devices = plan.x.shape[0], sharding.size(plan.spread)
    for start in range(0, images, plan.size * devices):
        count = min(plan.size * devices, images - start)
        x = sharding.rows(plan.x, start, count, plan.spread)
        network, cut = plan.cut(count // devices)
        chunks.append(_Chunk(network, cut, {network.x: x}, {network.x: x}))
    return chunks


def _step_ann(plan: _Plan, chunk: _Chunk, i: int, params) -> jax.Array:
    """Carry the ANN stream of a micro-batch over a site; its activation."""
    stage = chunk.stages[i]
    sources = _sources(chunk, chunk.ann, params, stage)
    streams = (False,) * len(sources)
    inputs, carried = _run(plan.spread, stage, chunk.ann, streams, 1, sources)
    activation = identity(stage.equation.place, *inputs)
    activation, *carried = map(plan.waits, [activation, *carried])
    _keep(chunk.ann, chunk.stages, i, activation, carried)
    return activation


def _step_snn(plan: _Plan, chunk: _Chunk, i: int, params):
    """What a stage leads to (a site's current first), and what it carries on."""
    stage = chunk.stages[i]
    sources = _sources(chunk, chunk.snn, params, stage)
    streams = _streams(plan, chunk.network, stage)
    return _run(plan.spread, stage, chunk.snn, streams, plan.steps, sources)


def _sources(chunk: _Chunk, store: dict[int, Any], params, stage: Stage) -> list:
    """What a stage reads: values on their way, constants, parameters."""
    constants = chunk.network.constants  # may depend on the size of the chunk
    return [
        store[v] if v in store else constants[v] if v in constants else params[v]
        for v in stage.sources
    ]


def _currents(plan: _Plan, chunks: list[_Chunk], i: int, params):
    """weights -> the current (and what is carried on) of every micro-batch."""

    def compute(weights):
        changed = params | _by_variable(chunks[0].network, weights)
        return (_step_snn(plan, chunk, i, changed) for chunk in chunks)

    return _kept(plan, chunks[0].stages[i].equation.place.shape, compute)


def _thinned(plan: _Plan, currents, site: Site):
    """(weights, stride) -> the current of every micro-batch, of fewer positions."""

    def all_of_them(weights):
        return (current for (current, *_), _ in currents(weights))

    @functools.cache
    def at(stride: int):
        if stride == 1:
            return all_of_them
        fewer = functools.partial(
            _thin, stride=stride, ndim=len(site.shape), channel=site.channel
        )
        left = jax.eval_shape(fewer, jax.ShapeDtypeStruct(site.shape, jnp.float32))
        return _kept(plan, left.shape, lambda w: map(fewer, all_of_them(w)))

    return lambda weights, stride: at(stride)(weights)


def _kept(plan: _Plan, shape: Sequence[int], compute):
    """``compute(weights)``, kept while the weights stay the same if T of it fit.

    Args:
        shape: of what one image takes at one step.
    """
    times = 1 if plan.means else plan.steps
    share = plan.x.shape[0] // sharding.size(plan.spread)
    if 4 * share * times * math.prod(shape) > plan.budget:
        return compute
    kept = []

    def latest(weights):
        if not kept or kept[0] is not weights:
            kept[:] = [weights, list(compute(weights))]
        return kept[1]

    return latest


def _feed(plan: _Plan, chunks: list[_Chunk], i: int, params, kernels, batch, time):
    """`Current` for ``batch`` images at a time, and its sources for all images."""
    network, cut = plan.cut(batch)
    stage = cut[i]
    streams = _streams(plan, network, stage)
    sources, axes = [], []
    for v, stream in zip(stage.sources, streams, strict=True):
        on_their_way = v in chunks[0].snn
        axes.append((1 if stream and time else 0) if on_their_way else None)
        if not on_their_way:
            sources.append(
                network.constants[v] if v in network.constants else params[v]
            )
            continue
        values = [chunk.snn[v] for chunk in chunks]
        if stream and not time:
            values = [_mean(value, plan.steps) for value in values]
        sources.append(_concatenate(plan, values, axes[-1]))
    paths = [network.parameters.get(v) for v in stage.sources]
    slots = tuple(paths.index(path) for path in kernels)
    if time:
        ndim = len(stage.equation.place.shape)
        current = Current(stage.segment, streams, plan.steps, slots, tuple(axes), ndim)
    else:
        # Of means, T does not matter: one program for every T.
        none = (False,) * len(streams)
        current = Current(stage.segment, none, 1, slots, tuple(axes), None)
    return current, sources


def _outputs(
    plan: _Plan, thinned, site: Site, fit: Fit, stride: int = 1
) -> Iterator[jax.Array]:
    """Mean outputs of a site, one micro-batch after the other."""
    neuron, ndim = _widen(fit.neuron, site), len(site.shape)
    potential = thin(neuron.initial_potential, stride, ndim, site.channel)
    neuron = neuron._replace(initial_potential=potential)
    for current in thinned(fit.weights, stride):
        yield _mean_output(neuron, current, plan.steps, plan.delay, ndim)


def _ann_outputs(plan: _Plan, chunks: list[_Chunk]) -> list[list[jax.Array]]:
    """The ANN's outputs for every micro-batch, once all sites are passed."""
    original = chunks[0].network.arguments(plan.params)
    outputs = []
    for chunk in chunks:
        stage = chunk.stages[-1]
        sources = _sources(chunk, chunk.ann, original, stage)
        streams = (False,) * len(sources)
        made, _ = _run(plan.spread, stage, chunk.ann, streams, 1, sources)
        outputs.append(made)
    _check_finite("the outputs of the network", [o for made in outputs for o in made])
    return outputs


def _readout_error(plan: _Plan, snn: SNN, chunks: list[_Chunk], outputs):
    """Mean over images and positions of ANN output - mean SNN output, per channel."""
    network = chunks[0].network
    params = network.arguments(snn.params)
    errors = []
    for chunk, ann in zip(chunks, outputs, strict=True):
        spiking, _ = _step_snn(plan, chunk, -1, params)
        means = [
            s if s.ndim == a.ndim else s.mean(0)
            for a, s in zip(ann, spiking, strict=True)
        ]
        errors.append([a - m for a, m in zip(ann, means, strict=True)])
    joined = [plan.join(parts) for parts in zip(*errors, strict=True)]
    corrections = [
        bias_correction(error, jnp.zeros(1), channel if error.ndim > 1 else -1)
        for error, channel in zip(joined, network.channels, strict=True)
    ]
    corrections = sharding.gathered(corrections, plan.spread)
    return jax.tree_util.tree_unflatten(network.tree, corrections)


# ----------------------------------------------------------- compiled pieces


def _run(spread, stage: Stage, store, streams: tuple[bool, ...], steps: int, sources):
    """`_run_all`, each device for its own images; in ``store`` is what has images."""
    moving = tuple(v in store for v in stage.sources)
    return _compiled(spread, moving)(stage.segment, streams, steps, sources)


@functools.cache
def _compiled(spread: NamedSharding | None, moving: tuple[bool, ...]) -> Callable:
    @functools.partial(jax.jit, static_argnames=("segment", "streams", "steps"))
    def run(segment: Segment, streams: tuple[bool, ...], steps: int, sources):
        def here(sources):
            return _run_all(segment, streams, steps, sources)

        if spread is None:
            return here(sources)
        into = [
            _image_axes(source, 1 if stream else 0) if moves else None
            for source, stream, moves in zip(sources, streams, moving, strict=True)
        ]
        over_time = _over_time_too(segment, streams)
        axes = [
            [1 if v in over_time else 0 for v in kind]
            for kind in (segment.outputs, segment.carried)
        ]
        return sharding.on_each_device(here, spread, (into,), tuple(axes))(sources)

    return run


def _image_axes(source, axis: int):
    return Train._make((axis, None)) if isinstance(source, Train) else axis


def _over_time_too(segment: Segment, streams: tuple[bool, ...]) -> frozenset:
    """Variables of a segment that have a time axis."""
    over_time = [v for v, s in zip(segment.inputs, streams, strict=True) if s]
    return streaming(segment.equations, over_time)


def _run_all(segment: Segment, streams: tuple[bool, ...], steps: int, sources):
    """Outputs of a segment, and what it carries on.

    Sources that are streams have a time axis, or are a `Train`.
    """
    decoded = [
        _decode(value, steps) if isinstance(value, Train) else value
        for value in sources
    ]
    values = dict(zip(segment.inputs, decoded, strict=True))
    marked = _over_time_too(segment, streams)
    evaluate(segment.equations, values, identity, streams=marked)
    outputs = [jnp.asarray(read(values, v)) for v in segment.outputs]
    return outputs, [values[v] for v in segment.carried]


@functools.partial(jax.jit, static_argnames=("steps", "delay", "ndim"))
def _fire(neuron: NeuronParams, current, steps: int, delay: int, ndim: int):
    """What a site sends on: its mean with delay T, its spikes as bits otherwise."""
    if delay == steps:
        return closed_form(neuron, current, steps)
    current = _over_time(current, steps, ndim)
    bits = packed_spikes(_NEURON, neuron, current, delay=delay)
    return Train(bits, jnp.asarray(neuron.threshold, current.dtype))


@functools.partial(jax.jit, static_argnames=("steps", "delay", "ndim"))
def _mean_output(neuron: NeuronParams, current, steps: int, delay: int, ndim: int):
    if delay == steps:
        return closed_form(neuron, current, steps)
    current = _over_time(current, steps, ndim)
    return mean_output(_NEURON, neuron, current, delay=delay)


_thin = jax.jit(thin, static_argnames=("stride", "ndim", "channel"))


@functools.partial(jax.jit, static_argnames="steps")
def _mean(value, steps: int) -> jax.Array:
    return (_decode(value, steps) if isinstance(value, Train) else value).mean(0)


def _decode(train: Train, steps: int) -> jax.Array:
    bits = jnp.unpackbits(train.bits, axis=0, count=steps)
    return bits.astype(train.threshold.dtype) * train.threshold


def _over_time(current: jax.Array, steps: int, ndim: int) -> jax.Array:
    """[T, B, ...] from a current that may be constant, [B, ...] of a site of ndim."""
    if current.ndim == ndim + 1:
        current = jnp.broadcast_to(current, (steps, *current.shape))
    return current


# -------------------------------------------------------------------- helpers


def _check_recipe(recipe) -> None:
    if not isinstance(recipe, Recipe):
        raise ValueError(
            f"recipe is {recipe!r}; allowed: a Recipe, e.g. snnjax.light() or "
            "snnjax.best() (called), or None"
        )
    for sweep in recipe.sweeps:
        if not isinstance(sweep, tuple | list) or not all(map(callable, sweep)):
            raise ValueError(
                f"a sweep of the recipe is {sweep!r}; allowed: a tuple of calibrators, "
                "e.g. Recipe(((max_threshold(), shift_bias()),))"
            )
    if not recipe.sweeps or not all(recipe.sweeps):
        raise ValueError(
            f"the recipe has the sweeps {recipe.sweeps}; allowed: one or more, each "
            "with one calibrator or more, or it would fit nothing"
        )


def _cutter(fn, params, x):
    """size -> the network for that many images at a time, cut into stages."""

    @functools.cache
    def cut(size: int):
        shape = jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype)
        network = capture(fn, params, shape)
        return network, stages(network)

    return cut


def _keep(store: dict, cut: list[Stage], i: int, output, carried) -> None:
    """Add what stage i gives; drop what no later stage reads."""
    stage = cut[i]
    store[stage.equation.outputs[0]] = output
    store.update(zip(stage.carried, carried, strict=True))
    later = {v for s in cut[i + 1 :] for v in s.sources}
    for v in set(store) - later:
        del store[v]


def _streams(plan: _Plan, network: Network, stage: Stage) -> tuple[bool, ...]:
    over_time = frozenset() if plan.means else streaming(network.equations)
    return tuple(v in over_time for v in stage.sources)


def _widen(neuron: NeuronParams, site: Site) -> NeuronParams:
    """The same in one shape whatever the recipe, so that all use one program."""
    channel = (site.shape[site.channel], *[1] * (-site.channel - 1))
    return neuron._replace(
        threshold=jnp.broadcast_to(neuron.threshold, channel),
        bias=jnp.broadcast_to(neuron.bias, channel),
        initial_potential=jnp.broadcast_to(neuron.initial_potential, site.shape),
    )


def _kernels(network: Network, site, params) -> dict[str, jax.Array]:
    """The weights that feed a site, without its biases and norms."""
    return {
        network.parameters[v]: params[v]
        for v in network.feeds[site.name]
        if params[v].ndim >= 2 and jnp.issubdtype(params[v].dtype, jnp.floating)
    }


def _by_variable(network: Network, weights: dict[str, jax.Array]):
    variables = {path: v for v, path in network.parameters.items()}
    return {variables[path]: weight for path, weight in weights.items()}


def _check_shared(network: Network, site, before, after) -> None:
    """Weights of several sites must not change: that would undo an earlier fit."""
    for path in before:
        users = [
            name
            for name, feeding in network.feeds.items()
            if path in {network.parameters[v] for v in feeding}
        ]
        if after[path] is not before[path] and len(users) > 1:
            raise ValueError(
                f"the weights {path!r} feed several sites ({', '.join(users)}), so "
                f"calibrating them at {site.name!r} would undo the others. Use a "
                "recipe without weight calibration, or give each site its own weights"
            )


def _check_finite(what: str, arrays: Sequence[Any]) -> None:
    """One wait for all of the arrays, so that their work is not held up one by one."""
    if any(isinstance(array, Tracer) for array in arrays):
        return
    bad = int(sum((~jnp.isfinite(array)).sum() for array in arrays))
    if bad:
        size = sum(array.size for array in arrays)
        raise ValueError(
            f"{what} hold {bad} values that are NaN or infinite, of {size}; allowed: "
            "finite numbers. Check the normalisation of the images, and the parameters"
        )


def _bytes_on_their_way(network: Network, steps: int, delay: int) -> int:
    """Bytes per image of both streams where most is on its way: two sites at a time."""
    spikes = 4 if delay == steps else math.ceil(steps / 8)
    sizes = [math.prod(site.shape) for site in network.sites]
    return (4 + spikes) * max(map(sum, itertools.pairwise([0, *sizes])))


def _in_file(array: jax.Array) -> np.ndarray:
    """The same in a file without a name, which goes when the array does."""
    host = np.ascontiguousarray(array).reshape(array.shape)
    if not host.size:
        return host
    try:
        with tempfile.TemporaryFile() as file:
            file.write(host.view(np.uint8).data)
            file.flush()  # a full disk is told here; through a map it would be fatal
            return np.memmap(file, host.dtype, "r", shape=host.shape)
    except OSError as error:
        raise OSError(
            f"streams that exceed memory_budget wait in {tempfile.gettempdir()}: "
            f"{error.strerror}. Set TMPDIR to a disk with more room, or allow more "
            "memory"
        ) from error


def _check_offload(offload: bool, waiting: int, memory_budget: int) -> None:
    if offload and jax.process_count() > 1:
        raise ValueError(
            f"the streams on each device take {waiting / 1e6:.3g} MB and memory_budget "
            f"is {memory_budget / 1e6:.3g} MB; with several processes they stay in "
            "memory: allow more, or give fewer images or more devices"
        )


def _unplaced(x) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x))


def _micro_batch(network: Network, steps: int, delay: int) -> int:
    """Images at a time, so that the largest site's currents take about 16 MiB."""
    largest = max(math.prod(s.shape) for s in network.sites if s.fires)
    times = 1 if delay == steps else steps
    return max(1, 2**24 // (4 * times * largest))


def _concatenate(plan: _Plan, values, axis: int):
    spread = plan.spread and sharding.along(axis, plan.spread)
    if isinstance(values[0], Train):
        bits = sharding.join([value.bits for value in values], axis, spread)
        return Train(bits, values[0].threshold)
    return sharding.join(values, axis, spread)


def _take(values, rows, axis: int):
    if isinstance(values, Train):
        return Train(jnp.take(values.bits, rows, axis), values.threshold)
    return jnp.take(values, rows, axis)
