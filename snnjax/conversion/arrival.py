"""Arrival: a site that all images have come to, as its calibrators will see it.

The ANN's activations wait there; the currents of the spiking network are computed anew
for the weights that a calibrator tries, or kept while the budget allows it.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from snnjax._trees import is_kernel
from snnjax.conversion import checks, fits, streams
from snnjax.conversion.chunks import Chunk, Plan, are_streams, run_snn
from snnjax.conversion.streams import Current
from snnjax.conversion.view import Fit, View
from snnjax.conversion.waiting import fetched
from snnjax.network.equations import Network, Site
from snnjax.neurons import NeuronParams
from snnjax.simulation import sharding


class Arrival(NamedTuple):
    """A site that all images have come to.

    Attributes:
        plan, chunks: of the sweep.
        i: the site's number, and that of the stage that leads to it.
        params: variable -> parameter of the SNN, as calibrated up to here.
    """

    plan: Plan
    chunks: list[Chunk]
    i: int
    params: dict[int, jax.Array]

    @property
    def network(self) -> Network:
        return self.chunks[0].network

    @property
    def site(self) -> Site:
        return self.chunks[0].stages[self.i].place

    @property
    def kernels(self) -> dict[str, jax.Array]:
        """The weights that feed the site, without its biases and norms."""
        return {
            self.network.parameters[v]: self.params[v]
            for v in self.network.feeds[self.site.name]
            if is_kernel(self.params[v])
        }


def view(here: Arrival, activations, currents) -> View:
    """What calibrators see: the ANN's activations, and what `currents` leads to."""
    plan, site = here.plan, here.site
    return View(
        site,
        plan.steps,
        plan.delay,
        plan.x.shape[0],
        activations,
        functools.partial(_outputs, plan, _thinned(plan, currents, site), site),
        functools.partial(_feed, here),
        checks.shared(here.network, site),
        plan.join,
    )


def currents(here: Arrival):
    """weights -> the current (and what is carried on) of every micro-batch."""

    def compute(weights):
        changed = here.params | by_variable(here.network, weights)
        return (run_snn(here.plan, chunk, here.i, changed) for chunk in here.chunks)

    return _kept(here.plan, compute, here.site.shape)


def _thinned(plan: Plan, currents, site: Site):
    """(weights, stride) -> the current of every micro-batch, of fewer positions."""

    def all_of_them(weights):
        return (current for (current, *_), _ in currents(weights))

    @functools.cache
    def at(stride: int):
        if stride == 1:
            return all_of_them
        fewer = functools.partial(
            fits.thin, stride=stride, ndim=len(site.shape), channel=site.channel
        )
        left = jax.eval_shape(fewer, jax.ShapeDtypeStruct(site.shape, jnp.float32))
        beside = [site.shape] if _fit_budget(plan, site.shape) else []
        return _kept(plan, lambda w: map(fewer, all_of_them(w)), left.shape, *beside)

    return lambda weights, stride: at(stride)(weights)


def _kept(plan: Plan, compute, *shapes: Sequence[int]):
    """``compute(weights)``, kept while the weights are the same, if the budget allows.

    Args:
        shapes: of all that is kept then, for one image and one step.
    """
    if not _fit_budget(plan, *shapes):
        return compute
    kept = []

    def latest(weights):
        of = tuple(weights.values())
        if not kept or any(a is not b for a, b in zip(of, kept[0], strict=True)):
            kept.clear()  # before the new ones need the memory
            kept[:] = [of, list(compute(weights))]
        return kept[1]

    return latest


def _fit_budget(plan: Plan, *shapes: Sequence[int]) -> bool:
    times = 1 if plan.means else plan.steps
    share = plan.x.shape[0] // sharding.size(plan.spread)
    return 4 * share * times * sum(map(math.prod, shapes)) <= plan.budget


def _feed(here: Arrival, batch: int, time: bool, every: int = 1):
    """`View.feed`: the `Current` of ``batch`` images at a time, and its sources."""
    plan, (network, stages) = here.plan, here.plan.captured(batch)
    stage = stages[here.i]
    marked = are_streams(plan, network, stage)
    sources, axes = [], []
    for v, stream in zip(stage.sources, marked, strict=True):
        on_their_way = v in here.chunks[0].snn
        axes.append((1 if stream and time else 0) if on_their_way else None)
        if not on_their_way:
            fixed = network.constants if v in network.constants else here.params
            sources.append(fixed[v])
            continue
        values = (fetched(chunk.snn[v]) for chunk in here.chunks)
        if stream and not time:
            values = (streams.mean(value, plan.steps) for value in values)
        chosen = streams.sampled(values, axes[-1], every)
        sources.append(streams.concatenate(plan.spread, chosen, axes[-1]))
    paths = [network.parameters.get(v) for v in stage.sources]
    slots = tuple(paths.index(path) for path in here.kernels)
    if time:
        steps, ndim = plan.steps, len(stage.place.shape)
    else:  # of means, T does not matter: one program for every T
        marked, steps, ndim = (False,) * len(marked), 1, None
    return Current(stage.segment, marked, steps, slots, tuple(axes), ndim), sources


def _outputs(
    plan: Plan, thinned, site: Site, fit: Fit, stride: int = 1, paced: bool = False
) -> Iterator:
    """Mean outputs of a site, perhaps with pace, one micro-batch after the other."""
    output = streams.paced if paced else streams.output
    neuron, ndim = widen(fit.neuron, site), len(site.shape)
    potential = fits.thin(neuron.initial_potential, stride, ndim, site.channel)
    neuron = neuron._replace(initial_potential=potential)
    for current in thinned(fit.weights, stride):
        yield output(neuron, current, plan.steps, plan.delay, ndim)


def widen(neuron: NeuronParams, site: Site) -> NeuronParams:
    """The same in one shape whatever the recipe, so that all use one program."""
    return neuron._replace(
        **{
            name: jnp.broadcast_to(getattr(neuron, name), shape)
            for name, shape in checks.shapes(site).items()
        }
    )


def by_variable(network: Network, weights: dict[str, jax.Array]):
    """The same, by the network's variables in the place of the paths."""
    variables = {path: v for v, path in network.parameters.items()}
    return {variables[path]: weight for path, weight in weights.items()}
