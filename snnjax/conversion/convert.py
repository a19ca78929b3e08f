"""Conversion: a trained network and some images become a calibrated `SNN`.

`convert` checks what it is given, plans the memory, and carries a recipe out in sweeps
(`sweep.py`) by calibrators (`calibrate.py`) whose mathematics is in `fits.py`.
"""

import dataclasses
import functools
import itertools
import math
import numbers
import os
from collections.abc import Callable, Iterable, Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh

from snnjax._checks import check_delay, check_size
from snnjax.conversion import resume
from snnjax.conversion.checks import check_calibrator, check_finite
from snnjax.conversion.chunks import Plan
from snnjax.conversion.digest import outline
from snnjax.conversion.recipes import Recipe, best
from snnjax.conversion.streams import NEURON
from snnjax.conversion.sweep import ann_outputs, chained, readout_error, sweep
from snnjax.network.capture import capture
from snnjax.network.equations import Network
from snnjax.network.stages import stages
from snnjax.simulation import sharding
from snnjax.simulation.snn import SNN


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
        x: calibration images, float [N, ...]; no labels are needed. A recipe warns of
            numbers that it fits to fewer than 16 samples.
        steps: T >= 1, for which the SNN is fitted.
        recipe: what is fitted; `snnjax.best` by default.
        delay: 0..T, for which the SNN is fitted; see `snnjax.spiking`.
        micro_batch: images at a time on each device; by default so many that the
            currents of the largest site, over all T steps, take about 16 MiB.
        memory_budget: bytes on each device for the activations and spikes that wait
            between two sites. What does not fit waits in files without a name in the
            folder for temporary files; the currents of a site are kept between
            calibrators in what is left of the budget, and computed anew if they do not
            fit. Weight calibration and percentiles take memory for all images on top.
            The process may take two to three times as much, since the allocator does
            not return all at once.
        mesh: devices that share the images along its first axis, of one process or of
            many; by default those that x is sharded over. Parameters that do not lie
            on them are copied to all of them, and the SNN comes back on all of them;
            ``jax.device_get(snn)`` runs anywhere.
        folder: keeps the fit of every site there; a conversion that was interrupted
            goes on from them when started again with the same arguments, and gives the
            same bits. A new folder, on a disk that all processes share, or None. What a
            calibrator of your own finds in its module is not compared.
        progress: wraps the sequence of sites while they are fitted, e.g. ``tqdm``.

    Returns:
        An `SNN` for `snnjax.spiking` with the same steps and delay. The same
        arguments give the same bits. Parameters that the recipe does not change are
        the caller's own arrays, which ``donate_argnums`` would delete for both.

    Raises:
        snnjax.ConversionError: before any work, as `snnjax.sites`.
        ValueError: an argument outside its range; a recipe that is none; x empty, of
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
    check_delay(steps, delay)
    check_size("micro_batch", micro_batch)
    if not isinstance(memory_budget, numbers.Real) or not memory_budget >= 0:
        raise ValueError(f"memory_budget is {memory_budget!r}; allowed: >= 0 bytes")
    steps, delay = int(steps), int(delay)  # of NumPy's integers too
    recipe = best() if recipe is None else recipe
    _check_recipe(recipe)
    plan = _plan(fn, params, x, steps, delay, micro_batch, memory_budget, mesh)
    fits = resume.open_folder(
        folder,
        lambda: {
            "network": outline(plan.captured(1)[0]),
            "parameters": jax.tree.leaves(plan.params),
            "images": x,
            "steps": steps,
            "delay": delay,
            "recipe": recipe,
        },
    )
    network, _ = plan.captured(plan.size)
    neurons = {s.name: NEURON.init() for s in network.sites if s.fires}
    snn = SNN(plan.params, neurons, None, steps, delay)
    for number, calibrators in enumerate(recipe.sweeps):
        calibrate = functools.partial(chained, calibrators, plan.spread)
        calibrator_for = functools.partial(resume.remembering, fits, number, calibrate)
        snn, chunks = sweep(plan, snn, calibrator_for, progress)
    # Each sweep begins anew; the chunks of the last one stand before the readout.
    outputs = ann_outputs(plan, chunks)
    if recipe.correct_readout:
        error = readout_error(plan, snn, chunks, outputs)
        snn = dataclasses.replace(snn, readout_correction=error)
    return snn


def _plan(fn, params, x, steps, delay, micro_batch, memory_budget, mesh) -> Plan:
    """Check network and images, put them on their devices, and share the memory out."""
    spread = sharding.over_batch(mesh, x)
    # NumPy's arrays and Python's numbers become what they are to JAX.
    params = jax.tree.map(_canonical, params)
    params = sharding.on_mesh(params, spread)
    network = capture(fn, params, x if spread is None else _unplaced(x))
    sharding.check_batch("the calibration images", x.shape[0], spread)
    placed = sharding.place(x, spread)
    check_finite("the calibration images", [placed])
    share = x.shape[0] // sharding.size(spread)
    size = min(micro_batch or _micro_batch(network, steps, delay), share)
    waiting = share * _stream_bytes(network, steps, delay)
    leaves = jax.tree.leaves((params, placed))
    traced = any(isinstance(leaf, Tracer) for leaf in leaves)
    return Plan(
        x=placed,
        spread=spread,
        size=size,
        captured=_captured(fn, params, placed),
        params=params,
        steps=steps,
        delay=delay,
        budget=max(0, memory_budget - waiting),
        offload=waiting > memory_budget and not traced,
    )


def _check_recipe(recipe) -> None:
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


def _captured(fn, params, x):
    """size -> the network for that many images at a time, and its stages.

    Every call is inlined: calibration wants the derivative that the function has, not
    one that was written for training, and equal work shall have equal equations.
    """

    @functools.cache
    def captured(size: int):
        shape = jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype)
        network = capture(fn, params, shape, inline_all=True)
        return network, stages(network)

    return captured


def _micro_batch(network: Network, steps: int, delay: int) -> int:
    """Images at a time, so that the largest site's currents take about 16 MiB."""
    largest = max(math.prod(s.shape) for s in network.sites if s.fires)
    times = 1 if delay == steps else steps
    return max(1, 2**24 // (4 * times * largest))


def _stream_bytes(network: Network, steps: int, delay: int) -> int:
    """Bytes per image of both streams where they are largest: two sites at a time."""
    spikes = 4 if delay == steps else math.ceil(steps / 8)
    sizes = [math.prod(site.shape) for site in network.sites]
    return (4 + spikes) * max(map(sum, itertools.pairwise([0, *sizes])))


def _canonical(leaf):
    return jnp.asarray(leaf) if isinstance(leaf, np.ndarray | numbers.Number) else leaf


def _unplaced(x) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x))
