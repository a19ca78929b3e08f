"""Conversion: a trained network and some images become a calibrated `SNN`.

`convert` checks its arguments and carries a recipe out in sweeps (``engine/``), by
calibrators (``snnjax.calibrators``). Of several recipes it keeps the SNN whose outputs
are nearest to the ANN's (``engine/judging.py``).
"""

import dataclasses
import functools
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh, NamedSharding

from snnjax import sharding
from snnjax._checks import (
    called_as,
    check_chip,
    check_examples,
    check_finite,
    check_wait,
)
from snnjax._trees import batch_of, shapes_of
from snnjax._types import Per
from snnjax.codes import Code, check_code, rate
from snnjax.conversion import cautions
from snnjax.conversion.choices import ZONES, fitted, recipes_at
from snnjax.conversion.engine.effects import Passed, passed
from snnjax.conversion.engine.judging import HELD_OUT, judge_numbers
from snnjax.conversion.engine.state import State, micro_batches
from snnjax.conversion.recipes import AnyRecipe, Priced, best, recipes_by_site
from snnjax.network.capture.capture import capture
from snnjax.network.equations import Network
from snnjax.network.sites import Site
from snnjax.network.stages import Stage, stages
from snnjax.neurons.by_site import model_of, models_in
from snnjax.neurons.models import IntegrateAndFire, counts_only, is_plain
from snnjax.neurons.unroll import needs_no_time
from snnjax.snn import SNN, check_models, models_of_sites

# The currents of the largest site in one micro-batch, over all T steps.
_MICRO_BATCH_BYTES = 2**24
# The values between the stages of the ANN, for all images.
_ANN_BYTES = 2**30


@called_as("snnjax.convert(fn, params, x, steps=..., ...)")
def convert(
    fn: Callable,
    params: chex.ArrayTree,
    x: chex.ArrayTree,
    *,
    steps: int,
    recipe: AnyRecipe | None = None,
    model: IntegrateAndFire | Mapping[str, IntegrateAndFire] | None = None,
    wait: int | None = None,
    code: Code | None = None,
    chip: Any = None,
) -> SNN:
    """Turn a trained network into a calibrated spiking one.

    On a terminal, a bar on stderr shows which site is fitted.

    Args:
        fn: network, ``fn(params, x) -> outputs``. `snnjax.sites` shows where its
            neurons will be, or all obstacles.
        params: its trained parameters, any pytree of arrays.
        x: calibration images [N, ...], or a pytree of arrays, tokens and masks
            among them; no labels are needed. If x is sharded over a mesh,
            ``jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))``, its
            devices share the work, in one process or in many.
        steps: T >= 1, for which the SNN is fitted.
        recipe: what is fitted; `snnjax.best` by default. A mapping from site names or
            patterns to recipes sets them by site: ``{"head/*": snnjax.light(), "*":
            snnjax.best()}``.
        model: of all sites, an integrate-and-fire neuron with reset by subtraction. By
            default it is binary for rate coding; for other codes it has their levels,
            a dead zone of 2/3, and the last zone that costs least (`best`). With
            ``snnjax.integrate_and_fire(levels=(-1, 1))`` a neuron can cancel earlier
            spikes: higher accuracy at few steps, for more spikes. Or site name ->
            model, as for `snnjax.init`.
        wait: steps that each layer integrates before it fires, 0..T. By default 0 with
            rate coding, and otherwise the least that is enough: from
            `snnjax.codes.Code.least_wait` on the first at which the squared error of
            the outputs for x is at most twice that of a wait of T - 1, or what the
            curves of `best` predict for it.
        code: what a spike is worth at each step, see `snnjax.codes`. Rate coding by
            default, which plain integrate-and-fire neurons run; `snnjax.codes.radix`
            needs fewest steps.
        chip: a profile, e.g. ``snnjax.deploy.speck()``, for whose neurons the SNN is
            made: code, model and one threshold per layer follow from it where they are
            not given. `snnjax.deploy.report` says what the chip makes of the result.

    Returns:
        An `SNN` for `snnjax.spiking` with the same steps and wait, on the mesh of x.
        The same arguments give the same bits. JAX arrays among the params that the
        recipe does not change may be the caller's own, which ``donate_argnums`` would
        delete for both.

    Raises:
        snnjax.ConversionError: before any work, as `snnjax.sites`.
        ValueError: an argument outside its range or of another kind; x empty, of
            the wrong shape or type; activations or outputs that are not finite; a chip
            for whose neurons conversion has no fit.

    Warns:
        UserWarning: calibration images that are all zero or equal; a site whose
            activations are all zero; a short wait that loses the outputs; levels with
            which a code leaves gaps between the values of a neuron; a recipe that fits
            no thresholds, or that fits numbers to fewer than 64 samples each.

    >>> import jax, jax.numpy as jnp
    >>> def fn(params, x):
    ...     return jax.nn.relu(x @ params["hidden"]) @ params["readout"]
    >>> params = {"hidden": jnp.ones((3, 8)), "readout": jnp.ones((8, 2))}
    >>> images = jnp.linspace(0, 1, 48).reshape(16, 3)
    >>> snn = convert(fn, params, images, steps=8)
    >>> print(snn.neurons["hidden/relu"].threshold.shape)
    (8,)
    """
    check_wait(steps, 0 if wait is None else wait)
    check_examples(x)
    if code is not None:
        check_code(code)
    code, model, per = _defaults(chip, steps, code, model)
    recipe = best(per) if recipe is None else recipe
    images, params, batch_sharding = _on_devices(x, params)
    _check_concrete(images, params)  # inside of jit all arrays are traced
    # Calibration needs the derivative that the function has, not one that was written
    # for training, and equal work must have equal equations: every call is inlined.
    network = capture(fn, params, shapes_of(images), inline_all=True)
    usual = IntegrateAndFire(levels=code.levels, dead_zone=code.dead_zone(code.levels))
    models = models_of_sites(model, network.sites, usual)
    _check_models(models, code)
    # NumPy's integers are no static arguments.
    steps, wait = int(steps), None if wait is None else int(wait)
    waits = (code.least_wait(each.levels, steps) for each in models_in(models))
    least = max(waits, default=0)
    cautions.of_digits(code, models, steps)
    check_finite("the calibration images", jax.tree.leaves(images))
    cautions.of_equal_images(images)
    firing_sites = [site for site in network.sites if site.fires]
    names = [site.name for site in firing_sites]
    by_site = recipes_by_site(recipe, names)
    competes = any(len(r.alternatives) > 1 for r in recipes_at(by_site, code).values())
    first_wait = least if wait is None else wait
    sums_suffice = needs_no_time(code, steps, first_wait, models_in(models))
    size = _micro_batch_size(firing_sites, 1 if sums_suffice else steps)
    share = batch_of(images) // sharding.size(batch_sharding)  # of each device
    if competes:  # so many micro-batches that one in eight can judge
        size = min(size, -(-share // HELD_OUT))
    batches = micro_batches(images, batch_of(images), min(size, share), batch_sharding)
    judges = judge_numbers(len(batches)) if competes else []
    to_fit = [batch for k, batch in enumerate(batches) if k not in judges]
    parts = [network.inputs(x) for x, _ in (*to_fit, *(batches[k] for k in judges))]
    neurons = {s.name: model_of(models, s.name).init(s.shape) for s in firing_sites}
    parts_of_network = stages(network)
    count = batch_of(images)
    keeps = batch_sharding is None and _fits(network, parts_of_network, count)
    weighs = any(isinstance(r, Priced) for r in by_site.values())
    ordered = [*to_fit, *(batches[k] for k in judges)]

    @functools.cache
    def ann_of(weighs: bool) -> Passed:
        return passed(
            network,
            parts_of_network,
            params,
            code,
            ordered if keeps else to_fit,
            len(to_fit),
            keeps=keeps,
            weighs=weighs,
        )

    begin = State(
        network=network,
        stages=parts_of_network,
        snn=SNN(params, neurons, steps, wait, models, code),
        steps=steps,
        wait=first_wait,
        batch_sharding=batch_sharding,
        sizes=tuple(len(next(iter(part.values()))) for part in parts),
        fitted=len(to_fit),
        effects=lambda: ann_of(True).effects,
        ann=(lambda: ann_of(weighs).results) if keeps else None,
        curves={},
        original=network.arguments(params),
        params={},
        activations={v: [part[v] for part in parts] for v in network.x},
        spikes={},
        sent=[],
    )
    waits = (begin.wait, code.longest_wait(steps) if wait is None else begin.wait)
    zones = ZONES if model is None and usual.has_zones else None
    snn = fitted(begin, by_site, waits, usual, zones)
    cautions.of_fresh_thresholds(neurons, snn)
    cautions.of_few_samples(snn, firing_sites, batch_of(images))
    return sharding.on_mesh(snn, sharding.batch_sharding(x)).with_fit(snn.fit)


def _check_concrete(*trees: Any) -> None:
    """Raise unless all numbers are known: a conversion chooses by comparing them."""
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(trees)):
        raise ValueError(
            "params or x are traced; allowed: arrays with numbers. Call snnjax.convert "
            "outside of jit, vmap and grad: it compiles what takes long by itself"
        )


def _defaults(
    chip: Any, steps: int, code: Code | None, model: Any
) -> tuple[Code, Any, Per]:
    """Code, model, and what has a threshold of its own, of the chip or the defaults."""
    if chip is None:
        return rate() if code is None else code, model, "channel"
    check_chip(chip)
    return chip.defaults(steps, code, model)


def _on_devices(
    x: chex.ArrayTree, params: chex.ArrayTree
) -> tuple[chex.ArrayTree, chex.ArrayTree, NamedSharding | None]:
    """Both as JAX arrays on the mesh of x, and the sharding of the batch."""

    # NumPy's arrays and Python's numbers become what they are to JAX.
    def canonical(leaf: Any) -> Any:
        is_number = isinstance(leaf, np.ndarray | numbers.Number)
        return jnp.asarray(leaf) if is_number else leaf

    x, params = jax.tree.map(jnp.asarray, x), jax.tree.map(canonical, params)
    batch_sharding = sharding.batch_sharding(x)
    if batch_sharding is None or not isinstance(batch_sharding.mesh, Mesh):
        return x, params, None  # XLA shares the work of traced arrays.
    x, params = sharding.automatic(x, params)
    return x, params, sharding.batch_sharding(x)


def _check_models(models: Any, code: Code) -> None:
    """Raise unless conversion fits every model, and the code serves it."""
    for model in models_in(models):
        # A lower bound is fitted as no bound, and then v(0) by simulating it.
        free = dataclasses.replace(model, lowest=None) if is_plain(model) else model
        is_if = is_plain(model) and counts_only(free, model.init())
        if not is_if or model.temperature is not None:
            raise ValueError(
                f"model is {model!r}; allowed: an IF neuron with reset by subtraction "
                "and no temperature, e.g. snnjax.integrate_and_fire(levels=(-1, 1)), "
                "since conversion fits how often it fires"
            )
    check_models(code, models_in(models))


def _fits(network: Network, parts: Sequence[Stage], count: int) -> bool:
    """Whether memory holds what all stages give for so many images."""
    variables = {v for part in parts[:-1] for v in (part.output, *part.carried)}
    numbers = sum(math.prod(network.avals[v].shape) for v in variables)
    return 4 * count * numbers <= _ANN_BYTES


def _micro_batch_size(firing_sites: Sequence[Site], steps_at_once: int) -> int:
    """Images at a time on each device; see `_MICRO_BATCH_BYTES`."""
    largest = max(math.prod(site.shape) for site in firing_sites)
    return max(1, _MICRO_BATCH_BYTES // (4 * steps_at_once * largest))
