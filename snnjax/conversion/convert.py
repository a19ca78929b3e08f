"""Conversion: a trained network and some images become a calibrated `SNN`.

`convert` checks its arguments and places the images (``images.py``). A search chooses
the last zone, the price and the wait (``search.py``); each fit that it tries carries a
recipe (``recipes.py``) out in sweeps (``engine/``), by calibrators
(``snnjax.calibrators``).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax
import numpy as np

from snnjax import sharding
from snnjax._arrays import on_device, on_host
from snnjax._checks import called_as, check_chip, check_on_host, check_wait
from snnjax._trees import shapes_of
from snnjax._types import Per
from snnjax.codes import Code, check_code, rate
from snnjax.conversion import cautions
from snnjax.conversion.engine.start import start
from snnjax.conversion.images import place_images
from snnjax.conversion.recipes import AnyRecipe, Priced, best, recipes_by_site
from snnjax.conversion.search import search
from snnjax.network.capture.capture import capture
from snnjax.network.equal_turns import with_equal_turns
from snnjax.neurons.by_site import model_of, models_in
from snnjax.neurons.models import IntegrateAndFire, counts_only, is_plain
from snnjax.snn import SNN, check_models, models_of_sites


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
        recipe: what is fitted; `snnjax.best` by default, or plain thresholds where
            images that no fit has used prefer them (``SNN.fit`` says so). A mapping
            from site names or patterns to recipes sets them by site: ``{"head/*":
            snnjax.light(), "*": snnjax.best()}``.
        model: of all sites, an integrate-and-fire neuron with reset by subtraction. By
            default it is binary for rate coding; for other codes it has their levels,
            a dead zone of 2/3, and the last zone that costs least (`best`). With
            ``snnjax.integrate_and_fire(levels=(-1, 1))`` a neuron can cancel earlier
            spikes: higher accuracy at few steps, for more spikes. Or site name ->
            model, as for `snnjax.init`.
        wait: steps that each layer integrates before it fires, 0..T. Default: 0 for
            rate coding. For other codes, the shortest wait from
            `snnjax.codes.Code.least_wait` on whose squared error of the outputs is at
            most twice that of a wait of T - 1 (or what the curves of `best` predict
            for it) and adds at most a twentieth of their size, or is below a
            thousandth.
        code: what a spike is worth at each step, see `snnjax.codes`. Rate coding by
            default, which plain integrate-and-fire neurons run; `snnjax.codes.radix`
            needs fewest steps; with two steps, base 3 is more accurate than base 2.
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
            activations are all zero; a short wait that loses the outputs; outputs whose
            squared error float32 does not hold; levels with which a code leaves gaps
            between the values of a neuron; a recipe that fits no thresholds, or that
            fits numbers to fewer than 64 samples each.

    >>> import jax, jax.numpy as jnp
    >>> def fn(params, x):
    ...     return jax.nn.relu(x @ params["hidden"]) @ params["readout"]
    >>> params = {"hidden": jnp.ones((3, 8)), "readout": jnp.ones((8, 2))}
    >>> images = jnp.linspace(0, 1, 48).reshape(16, 3)
    >>> snn = convert(fn, params, images, steps=8)
    >>> print(snn.neurons["hidden/relu"].threshold.shape)
    (8,)
    """
    check_wait(steps, wait or 0)
    # NumPy's integers are no static arguments.
    steps = int(steps)
    if wait is not None:
        wait = int(wait)
    if code is not None:
        check_code(code)
    code, model, per = _defaults(chip, steps, code, model)
    # A conversion chooses by comparing numbers.
    check_on_host("snnjax.convert", params=params, x=x)
    images = place_images(x)
    params = images.place_params(params)
    # Calibration needs the derivative that the function has, not one that was written
    # for training, and equal work must have equal equations: every call is inlined.
    network = capture(fn, params, shapes_of(images.arrays), inline_all=True)
    network = with_equal_turns(network)
    cautions.warn_of_equal_activations(network)
    sites = [site for site in network.sites if site.fires]
    default_model = IntegrateAndFire(
        levels=code.levels, dead_zone=code.dead_zone(code.levels)
    )
    models = models_of_sites(model, network.sites, default_model)
    _check_models(models, code)
    cautions.warn_of_digits(code, models, steps)
    is_default = recipe is None
    if recipe is None:
        recipe = best(per)
    recipes = recipes_by_site(recipe, [site.name for site in sites])
    shortest_wait, reference_wait = _waits(code, models, steps, wait)
    fresh_neurons = {}
    for site in sites:
        neurons = model_of(models, site.name).init(site.shape)
        fresh_neurons[site.name] = on_host(neurons)
    calibration = start(
        network=network,
        snn=SNN(params, fresh_neurons, steps, wait, models, code),
        images=images,
        sites=sites,
        wait=shortest_wait,
        weigh_errors=any(isinstance(value, Priced) for value in recipes.values()),
        keep_unseen=is_default,
    )
    # With signed digits, small values may be left out at the last step, at a price.
    may_change_zone = model is None and default_model.levels[0] < 0
    snn = search(
        calibration,
        recipes,
        reference_wait=reference_wait,
        zone_model=default_model if may_change_zone else None,
        is_default=is_default,
    )
    cautions.warn_of_fresh_thresholds(fresh_neurons, snn)
    cautions.warn_of_few_samples(snn, sites, images.count)
    # Calibrators compute parameters of neurons by NumPy; users get arrays of JAX. A
    # calibrator of the user's may keep its array and change it.
    as_jax_array = functools.partial(on_device, copy=True)
    neurons = {}
    for name, parameters in snn.neurons.items():
        neurons[name] = jax.tree.map(as_jax_array, parameters)
    converted = dataclasses.replace(snn, neurons=neurons)
    converted = sharding.on_mesh(converted, images.user_sharding)
    # JAX sorts the names of a dict when it moves its arrays.
    neurons = {name: converted.neurons[name] for name in neurons}
    return dataclasses.replace(converted, neurons=neurons).with_fit(snn.fit)


def _defaults(
    chip: Any, steps: int, code: Code | None, model: Any
) -> tuple[Code, Any, Per]:
    """Code and model, and what has a threshold of its own: those of a chip, if any."""
    if chip is not None:
        check_chip(chip)
        return chip.defaults(steps, code, model)
    return code or rate(), model, "channel"


def _check_models(models: Any, code: Code) -> None:
    """Raise unless conversion fits every model, and the code serves it."""
    usual_threshold = IntegrateAndFire().threshold
    for model in models_in(models):
        unbounded = model
        if is_plain(model):
            # A lower bound is fitted as no bound, and then v(0) by simulating it.
            unbounded = dataclasses.replace(model, lowest=None)
        is_if_neuron = is_plain(model) and counts_only(unbounded, model.init())
        if not is_if_neuron or model.temperature is not None:
            raise ValueError(
                f"model is {model!r}; allowed: an IF neuron with reset by subtraction "
                "and no temperature, e.g. snnjax.integrate_and_fire(levels=(-1, 1)), "
                "since conversion fits how often it fires"
            )
        # It may also be an array or a distribution.
        is_usual = np.ndim(model.threshold) == 0 and model.threshold == usual_threshold
        if not is_usual:
            raise ValueError(
                f"model has the threshold {model.threshold!r}, and a conversion fits "
                "thresholds; allowed: a model without one, e.g. "
                "snnjax.integrate_and_fire(levels=(-1, 1)). A recipe whose calibrator "
                "returns fit.with_neurons(threshold=...) sets a threshold"
            )
    check_models(code, models_in(models))


def _waits(code: Code, models: Any, steps: int, wait: int | None) -> tuple[int, int]:
    """The shortest wait that is tried, and the one that it is compared with."""
    if wait is not None:
        return wait, wait
    waits = [code.least_wait(model.levels, steps) for model in models_in(models)]
    shortest = max(waits, default=0)
    return shortest, max(shortest, code.longest_wait(steps))
