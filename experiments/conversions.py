"""All conversions of `experiments.convert`: every recipe, T, wait and seed.

A row is a recipe with a T and a wait; a draw is its conversion with the calibration
images of one seed. Until the run ends, each draw and its counts are kept in a file, so
an interrupted run can resume.
"""

import functools
import itertools
import shutil
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

import snnjax
from experiments.data import Dataset, normalize
from experiments.models import Source
from experiments.report import NAME_WIDTH, Result, name_of, row
from experiments.running import (
    CODES,
    QUANTIZED_ANN,
    RECIPES,
    Conversion,
    Convert,
    devices,
    digest,
)
from snnjax.calibrators import broadcast

HELD_OUT = 500  # training images at most, to choose the row that is saved
MEASURED = 100  # test images to measure rates, errors and operations on


class LabeledImages(NamedTuple):
    """Normalized images and their labels."""

    images: np.ndarray
    labels: np.ndarray


class Experiment(NamedTuple):
    """Network, images and options that all conversions share."""

    config: Convert
    data: Dataset
    fn: Callable  # one object, so that JAX traces it once per shape
    params: chex.ArrayTree
    sites: snnjax.network.Sites
    test: LabeledImages  # for the reported accuracies
    # Training images that no seed calibrates with, to choose the row that is saved;
    # None: too few are left.
    held_out: LabeledImages | None
    count: Callable  # jitted, (SNN, images, labels) -> right answers after 1..T steps
    mesh: Mesh | None  # of the devices that share a batch
    source: Source
    ann: float  # its accuracy on the test images


class Row(NamedTuple):
    """A row of the tables: a conversion, which every seed repeats."""

    recipe: str
    steps: int
    wait: int | None  # None: the least that is enough, which the conversion measures
    levels: tuple[int, int]
    code: str
    spikes: float | None = None  # at most so many per neuron, of "best"


class Draw(NamedTuple):
    """A conversion with the calibration images of one seed."""

    snn: snnjax.SNN
    hits: list[int]  # right answers on the test images after 1..T steps
    seconds: float
    held_out_hits: int | None = None  # after T steps, on the held-out images


def carry_out(task: Experiment) -> tuple[list[Result], list[snnjax.SNN]]:
    """The result of each row, printed at once, and the SNN of its first seed."""
    rows, seeds = plan(task.config), task.config.seeds
    results, snns = [], []
    bar = {"desc": "conversions", "leave": False, "disable": devices.hidden()}
    with tqdm(total=len(rows) * len(seeds), **bar) as progress:
        for line in rows:
            draws: list[Draw] = []
            for seed in seeds:
                # A row has one wait: the one that the first draw measures.
                wait = draws[0].snn.wait if draws else line.wait
                draws.append(_draw(task, line._replace(wait=wait), seed))
                progress.update()
            result = result_of(task, title_of(line, task.config), draws)
            tqdm.write(row(result, task.ann, width_of(task.config)))
            results.append(result)
            snns.append(draws[0].snn)
    return results, snns


def plan(config: Convert) -> list[Row]:
    """All rows without repetitions, since the waits "T" and "4" may be equal."""
    rows = []
    codes = {"best": ("rate", "radix"), QUANTIZED_ANN: ("radix",)}
    named = ((r, config.codes or codes.get(r, ("rate",))) for r in config.recipes)
    for recipe, name in ((recipe, name) for recipe, names in named for name in names):
        code = CODES[name]
        # By default the least that the code needs; "best" also waits for all of T.
        is_best = (recipe, name) == ("best", "rate")
        waits = config.waits or (("least", "T") if is_best else ("least",))
        if recipe == QUANTIZED_ANN:
            waits = ("full",)
        pairs = config.pairs() or [code.levels]
        budgets = (recipe == "best" and config.spikes) or (None,)
        for levels, wait, steps, spikes in itertools.product(
            pairs, waits, config.steps, budgets
        ):
            numbers = {
                "T": steps,
                "T-1": steps - 1,
                "full": code.full_wait(steps),
                # The conversion measures it, unless there is nothing to choose.
                "least": None if code.longest_wait(steps) else 0,
            }
            number = numbers[wait] if wait in numbers else int(wait)
            rows.append(Row(recipe, steps, number, levels, name, spikes))
    return list(dict.fromkeys(rows))


def title_of(line: Row, config: Convert) -> str:
    """The recipe, and its options that the other columns do not show."""
    zone = config.last_zone
    unusual = "" if zone is None else f", last zone {zone:g}"
    return line.recipe + unusual + (f", {line.spikes:g} spikes" if line.spikes else "")


def width_of(config: Convert) -> int:
    """Of the longest name of a row, as `Result.name` has it, on the terminal."""
    lines = ((title_of(line, config), line.code, line.levels) for line in plan(config))
    return max(NAME_WIDTH, *(len(name_of(*line)) for line in lines))


def neuron_of(
    levels: tuple[int, int], code: str, config: Conversion
) -> snnjax.neurons.IntegrateAndFire:
    """The neuron of these options, with the dead zone of the code."""
    return snnjax.integrate_and_fire(
        levels=levels,
        dead_zone=CODES[code].dead_zone(levels),
        last_zone=1 / 2 if config.last_zone is None else config.last_zone,
    )


# ----------------------------------------------------------------------- images


def images_to_test(config: Convert, data: Dataset) -> LabeledImages:
    """The first ``config.test_images`` test images, or all of them."""
    images = normalize(data, data.test_images[: config.test_images])
    return LabeledImages(np.asarray(images), data.test_labels[: config.test_images])


def calibration_images(config: Convert, data: Dataset, seed: int) -> jax.Array:
    """The training images that a seed draws, normalized."""
    numbers = _order(data, seed)[: config.calibration_images]
    return normalize(data, data.train_images[numbers])


def held_out_images(config: Convert, data: Dataset) -> LabeledImages | None:
    """Training images that no seed draws, as many as test images, or `HELD_OUT`."""
    count = min(HELD_OUT, len(data.test_labels[: config.test_images]))
    orders = [_order(data, seed)[: config.calibration_images] for seed in config.seeds]
    unused = np.setdiff1d(_order(data, 0), np.concatenate(orders))
    if len(unused) < count:
        return None
    numbers = np.sort(np.random.default_rng(0).permutation(unused)[:count])
    images = normalize(data, data.train_images[numbers])
    return LabeledImages(np.asarray(images), data.train_labels[numbers])


def _order(data: Dataset, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(len(data.train_images))


# ------------------------------------------------------------------ one conversion


def _draw(task: Experiment, line: Row, seed: int) -> Draw:
    """Convert and count right answers, or read the file of an interrupted run."""
    config = task.config
    images = calibration_images(config, task.data, seed)
    # Equal arrays and options give equal results.
    options = line, seed, config.dtype, config.iterations, config.last_zone
    judges = None if task.held_out is None else task.held_out.labels
    name = digest((task.params, images, task.test.labels, judges), repr(options))
    file = unfinished(config) / f"{name}.safetensors"
    if file.exists():
        snn, card, _ = snnjax.load(file)
        return Draw(snn, **card["extras"])
    model, recipe = neuron_of(line.levels, line.code, config), line.recipe
    usual = config.last_zone is None and line.levels == CODES[line.code].levels
    if usual and recipe != QUANTIZED_ANN:
        model = None  # whose last zone the conversion chooses
    start = time.perf_counter()
    snn = snnjax.convert(
        task.fn,
        task.params,
        devices.rows(images, np.arange(len(images)), task.mesh),
        steps=line.steps,
        wait=line.wait,
        model=model,
        code=CODES[line.code],
        recipe=(
            RECIPES[recipe](config, seed)
            if line.spikes is None
            else snnjax.best(spikes=line.spikes)
        ),
    )
    jax.block_until_ready(snn)
    seconds = time.perf_counter() - start
    # Programs without the mesh, such as `_measure`, need arrays of this process.
    snn = widen_all(snn if task.mesh is None else jax.device_get(snn), task.sites)
    counts: dict[str, Any] = {"seconds": seconds}
    counts["hits"] = count_hits(task.count, snn, task.test, task.mesh)
    if task.held_out is not None:
        hits = count_hits(task.count, snn, task.held_out, task.mesh)
        counts["held_out_hits"] = hits[-1]
    if devices.first():
        file.parent.mkdir(exist_ok=True)
        snnjax.save(file, snn, extras=counts)
    return Draw(snn, **counts)


def unfinished(config: Convert) -> Path:
    """The folder of the draws, while a run is under way."""
    return Path(config.out).expanduser() / "unfinished_conversions"


def forget(config: Convert) -> None:
    """Delete the draws of a run that has ended."""
    shutil.rmtree(unfinished(config), ignore_errors=True)


def result_of(task: Experiment, recipe: str, draws: Sequence[Draw]) -> Result:
    """A row: accuracies of all draws, and measures of the SNN of the first one."""
    snn, images = draws[0].snn, len(task.test.labels)
    measures, held_out = _measure(task, snn), None
    if task.held_out is not None:
        right = sum(draw.held_out_hits or 0 for draw in draws)
        held_out = right, len(draws) * len(task.held_out.labels)
    return Result(
        recipe,
        snn.wait,
        snn.steps,
        [[count / images for count in draw.hits] for draw in draws],
        snnjax.latency(task.sites, steps=snn.steps, wait=snn.wait),
        float(measures.firing_rate),
        float(measures.synaptic_operations),
        statistics.median(draw.seconds for draw in draws),
        measures,
        levels_of(task.sites, snn),
        next((n for n, code in CODES.items() if code == snn.code), repr(snn.code)),
        held_out,
    )


def evaluated(task: Experiment, name: str, snn: snnjax.SNN, seconds: float) -> Result:
    """The row of a single SNN, whose right answers are counted first."""
    hits = count_hits(task.count, snn, task.test, task.mesh)
    return result_of(task, name, [Draw(snn, hits, seconds)])


def levels_of(sites: snnjax.network.Sites, snn: snnjax.SNN) -> tuple[int, int]:
    """The levels of the first site that is not an encoder, or of an encoder."""
    neurons = [site for site in sites if site.fires]
    site = next((site for site in neurons if not site.is_encoder), neurons[0])
    return snn.model_of(site.name).levels


def counter(fn: Callable) -> Callable:
    """Jitted: (SNN, images, labels) -> right answers after 1..T steps, int [T].

    The answer after t steps is that of the mean of the first t outputs.
    """

    @jax.jit
    def count(snn, x, labels):
        outputs = snnjax.spiking(fn, steps=snn.steps, wait=snn.wait)(snn, x)
        share = snnjax.accuracy(outputs, labels)
        return jnp.rint(share * len(labels)).astype(int)

    return count


def count_hits(
    count: Callable, snn: snnjax.SNN, test: LabeledImages, mesh: Mesh | None
) -> list[int]:
    """Right answers after 1..T steps, as whole numbers."""
    count_of_snn = functools.partial(count, snn)
    return devices.total(count_of_snn, test.images, test.labels, mesh).tolist()


def _measure(task: Experiment, snn: snnjax.SNN) -> snnjax.measures.Measures:
    """Measures of the first test images, the sites in the order of the network."""
    images = task.test.images[:MEASURED]
    measures = jax.device_get(snnjax.measure(task.fn, snn, images, params=task.params))
    # JAX sorts the sites by name.
    in_order = {s.name: measures.sites[s.name] for s in task.sites if s.fires}
    return measures._replace(sites=in_order)


def widen_all(snn: snnjax.SNN, sites: snnjax.network.Sites) -> snnjax.SNN:
    """The SNN with parameters of full shape, so that all recipes share programs."""
    neurons = {}
    for site in sites:
        if site.fires:
            params = snn.neurons[site.name]
            if site.is_encoder and params.offset is None:  # of recipes that fit none
                params = params._replace(offset=jnp.zeros(()))
            neurons[site.name] = broadcast(params, site)
    return replace(snn, neurons={**snn.neurons, **neurons})
