"""Conversion: a trained network and some images become a calibrated `SNN`.

`convert` checks its arguments, plans the memory, and carries a recipe out in sweeps
(``engine/``), by calibrators (``snnjax.calibrators``) whose fits a folder may keep
(``resume/``).
"""

import functools
import itertools
import math
import numbers
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh

from snnjax import sharding
from snnjax._checks import check_examples, check_finite, check_size, check_wait
from snnjax._examples import batch_of, shapes_of
from snnjax.calibrators.view import check_calibrator
from snnjax.conversion.engine.micro_batches import Plan
from snnjax.conversion.engine.sweep import chained, sweep
from snnjax.conversion.recipes import Recipe, best
from snnjax.conversion.resume import folder as fit_folder
from snnjax.conversion.resume.digest import outline
from snnjax.network.batch import image_axes
from snnjax.network.capture import capture
from snnjax.network.equations import Network
from snnjax.network.stages import Stage, stages
from snnjax.neurons.by_site import model_of, models_in
from snnjax.neurons.models import (
    IntegrateAndFire,
    NeuronParams,
    counts_only,
    is_plain,
)
from snnjax.neurons.spike_trains import per_byte
from snnjax.snn import SNN, models_of_sites


def convert(
    fn: Callable,
    params: chex.ArrayTree,
    x: chex.ArrayTree,
    *,
    steps: int,
    recipe: Recipe | None = None,
    model: IntegrateAndFire | Mapping[str, IntegrateAndFire] | None = None,
    wait: int = 0,
    micro_batch: int | None = None,
    memory_budget: int = 2**30,
    mesh: Mesh | None = None,
    folder: str | os.PathLike | None = None,
    progress: Callable[[Sequence], Iterable] = iter,
) -> SNN:
    """Turn a trained network into a calibrated spiking one.

    Args:
        fn: network, ``fn(params, x) -> outputs``; `snnjax.sites` shows where its
            neurons will be, or everything that stands in the way.
        params: its trained parameters, any pytree of arrays.
        x: calibration images [N, ...], or a pytree of arrays, tokens and masks
            among them; no labels are needed. A recipe warns of
            numbers that it fits to fewer than 16 samples.
        steps: T >= 1, for which the SNN is fitted.
        recipe: what is fitted; `snnjax.best` by default.
        model: of all sites, an integrate-and-fire neuron with reset by
            subtraction, binary by default. ``snnjax.integrate_and_fire(levels=(-1,
            1))`` can take spikes back: few steps lose less accuracy, for more spikes.
            Or site name -> model, as for `snnjax.init`.
        wait: 0..T, for which the SNN is fitted; see `snnjax.spiking`.
        micro_batch: images at a time on each device; by default so many that the
            currents of the largest site, over all T steps, take about 16 MiB.
        memory_budget: bytes on each device for activations and spikes between two
            sites. What does not fit goes to files without a name in the folder for
            temporary files; the currents of a site are kept between calibrators in the
            rest of the budget, and computed anew if they do not fit. Weight calibration
            and percentiles take memory for all images on top. The process may take two
            to three times as much, since the allocator does not return all at once.
        mesh: devices that share the images along its first axis, of one process or of
            many; by default those that x is sharded over. Parameters that do not lie
            on them are copied to all of them, and the SNN comes back on all of them;
            ``jax.device_get(snn)`` runs anywhere.
        folder: where the fit of every site is kept; a conversion that was interrupted
            goes on from them when started again with the same arguments, and gives the
            same bits. A new folder, on a disk that all processes share, or None.
            Globals that a calibrator of your own reads are not compared.
        progress: wraps the sequence of sites while they are fitted, e.g. ``tqdm``.

    Returns:
        An `SNN` for `snnjax.spiking` with the same steps and wait. The same
        arguments give the same bits. Parameters that the recipe does not change are
        the caller's own arrays, which ``donate_argnums`` would delete for both.

    Raises:
        snnjax.ConversionError: before any work, as `snnjax.sites`.
        ValueError: an argument outside its range; no recipe; x empty, of
            the wrong shape, not floating point, not to be shared evenly by the devices;
            a folder of another conversion; activations that are not finite (with the
            site's name), or outputs.
        OSError: the folder cannot be written to, or that for temporary files.

    >>> import jax, jax.numpy as jnp
    >>> def fn(params, x):
    ...     return jax.nn.relu(x @ params["hidden"]) @ params["readout"]
    >>> params = {"hidden": jnp.ones((3, 8)), "readout": jnp.ones((8, 2))}
    >>> snn = convert(fn, params, jnp.ones((16, 3)), steps=8)
    >>> print(snn.neurons["hidden/relu"].threshold)
    [3. 3. 3. 3. 3. 3. 3. 3.]
    """
    check_wait(steps, wait)
    check_size("micro_batch", micro_batch)
    if not isinstance(memory_budget, numbers.Real) or not memory_budget >= 0:
        raise ValueError(f"memory_budget is {memory_budget!r}; allowed: >= 0 bytes")
    steps, wait = int(steps), int(wait)  # of NumPy's integers too
    recipe = best() if recipe is None else recipe
    _check_recipe(recipe)
    plan = _plan(fn, params, x, steps, wait, model, micro_batch, memory_budget, mesh)
    fits = fit_folder.open_folder(
        folder,
        lambda: {
            "network": outline(plan.captured(1)[0]),
            "parameters": jax.tree.leaves(plan.params),
            "images": x,
            "steps": steps,
            "wait": wait,
            "model": plan.model,
            "recipe": recipe,
            # On all devices together: the fits of eight of them serve one.
            "micro_batch": plan.size * sharding.size(plan.spread),
        },
    )
    network, _ = plan.captured(plan.size)
    neurons = {
        site.name: model_of(plan.model, site.name).init(site.shape)
        for site in network.sites
        if site.fires
    }
    snn = SNN(plan.params, neurons, steps, wait, plan.model)
    for number, calibrators in enumerate(recipe.sweeps):
        calibrate = functools.partial(chained, calibrators, plan.spread)
        calibrator_for = functools.partial(
            fit_folder.remembering, fits, number, calibrate
        )
        snn = sweep(plan, snn, calibrator_for, progress)
    _warn_of_fresh_thresholds(neurons, snn)
    return snn


def _warn_of_fresh_thresholds(fresh: dict[str, NeuronParams], snn: SNN) -> None:
    """Warn where no calibrator has changed the threshold of a fresh neuron."""
    same = [n for n, p in fresh.items() if snn.neurons[n].threshold is p.threshold]
    if same:
        warnings.warn(
            f"no calibrator of the recipe fits the thresholds of {', '.join(same)}: "
            "they stay 1. Begin a recipe with one that does, e.g. "
            "snnjax.calibrators.least_squares_threshold()",
            stacklevel=3,
        )


def _plan(
    fn: Callable,
    params: chex.ArrayTree,
    x: chex.ArrayTree,
    steps: int,
    wait: int,
    model: Any,
    micro_batch: int | None,
    memory_budget: float,
    mesh: Mesh | None,
) -> Plan:
    """Check network and images, place them on their devices, and divide the memory."""
    spread = sharding.over_batch(mesh, x)
    # NumPy's arrays and Python's numbers become what they are to JAX.
    params = jax.tree.map(_canonical, params)
    params = sharding.on_mesh(params, spread)
    check_examples(x)
    x = jax.tree.map(_as_jax_has_it, x)
    network = capture(fn, params, shapes_of(x))
    model = models_of_sites(model, network.sites, IntegrateAndFire())
    for each in models_in(model):
        _check_model(each)
    images = batch_of(x)
    sharding.check_batch("the calibration images", images, spread)
    if spread is not None:
        _check_carried(network)
    placed = sharding.place(x, spread)
    check_finite("the calibration images", jax.tree.leaves(placed))
    share = images // sharding.size(spread)
    size = min(micro_batch or _micro_batch(network, steps, wait), share)
    least = min(per_byte(each.levels) for each in models_in(model))
    stream_bytes = share * _stream_bytes(network, steps, wait, least)
    leaves = jax.tree.leaves((params, placed))
    traced = any(isinstance(leaf, Tracer) for leaf in leaves)
    return Plan(
        x=placed,
        spread=spread,
        size=size,
        captured=_captured(fn, params, placed),
        params=params,
        steps=steps,
        wait=wait,
        model=model,
        budget=int(max(0, min(memory_budget - stream_bytes, 2**62))),
        spills=stream_bytes > memory_budget and not traced,
    )


def _check_carried(network: Network) -> None:
    """Raise if devices would have to share a value along an axis behind the first."""
    elsewhere = image_axes(network.equations, network.avals, network.x)
    for stage in stages(network):
        for v in elsewhere.keys() & set(stage.carried):
            raise ValueError(
                f"a value of shape {network.avals[v].shape}, with the batch on axis "
                f"{elsewhere[v]}, goes from one layer to later ones; allowed with a "
                "mesh: the batch on the first axis. Transpose it in fn where it is "
                "made, or convert without a mesh"
            )


def _check_recipe(recipe: Any) -> None:
    if not isinstance(recipe, Recipe):
        raise ValueError(
            f"recipe is {recipe!r}; allowed: a Recipe, e.g. snnjax.light() or "
            "snnjax.best() (called), or None"
        )
    if not isinstance(recipe.sweeps, tuple | list):
        raise ValueError(
            f"the recipe has the sweeps {recipe.sweeps!r}; allowed: a tuple of chains, "
            "e.g. Recipe(((max_threshold(), shift_bias()),))"
        )
    for chain in recipe.sweeps:
        if not isinstance(chain, tuple | list) or not all(map(callable, chain)):
            raise ValueError(
                f"a sweep of the recipe is {chain!r}; allowed: a tuple of calibrators, "
                "e.g. Recipe(((max_threshold(), shift_bias()),))"
            )
        for calibrator in chain:
            check_calibrator(calibrator)
    if not recipe.sweeps or not all(recipe.sweeps):
        raise ValueError(
            f"the recipe has the sweeps {recipe.sweeps}; allowed: one or more, each "
            "with one calibrator or more, or it would fit nothing"
        )


def _check_model(model: Any) -> None:
    is_if = is_plain(model) and counts_only(model, model.init())
    if not is_if or model.temperature is not None:
        raise ValueError(
            f"model is {model!r}; allowed: an IF neuron with reset by subtraction "
            "and no temperature, e.g. snnjax.integrate_and_fire(levels=(-1, 1)), since "
            "conversion fits how often it fires"
        )


def _captured(
    fn: Callable, params: chex.ArrayTree, x: chex.ArrayTree
) -> Callable[[int], tuple[Network, list[Stage]]]:
    """size -> the network for that many images at a time, and its stages.

    Every call is inlined: calibration needs the derivative that the function has, not
    one that was written for training, and equal work must have equal equations.
    """

    @functools.cache
    def captured(size: int) -> tuple[Network, list[Stage]]:
        network = capture(fn, params, shapes_of(x, size), inline_all=True)
        return network, stages(network)

    return captured


def _micro_batch(network: Network, steps: int, wait: int) -> int:
    """Images at a time, so that the largest site's currents take about 16 MiB."""
    largest = max(math.prod(s.shape) for s in network.sites if s.fires)
    times = 1 if wait == steps else steps
    return max(1, 2**24 // (4 * times * largest))


def _stream_bytes(network: Network, steps: int, wait: int, steps_per_byte: int) -> int:
    """Bytes per image of both streams where they are largest: two sites at a time."""
    spikes = 4 if wait == steps else math.ceil(steps / steps_per_byte)
    sizes = [math.prod(site.shape) for site in network.sites]
    return (4 + spikes) * max(map(sum, itertools.pairwise([0, *sizes])))


def _canonical(leaf: Any) -> Any:
    return jnp.asarray(leaf) if isinstance(leaf, np.ndarray | numbers.Number) else leaf


def _as_jax_has_it(leaf: Any) -> Any:
    """Doubles of NumPy are float32 to JAX, by default."""
    if isinstance(leaf, np.ndarray):
        return leaf.astype(jnp.result_type(leaf), copy=False)
    return leaf
