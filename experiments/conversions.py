"""All conversions of `experiments.convert`: every recipe, T, wait and seed.

A row is a recipe with a T and a wait; a draw is its conversion with the calibration
images of one seed. Until the run ends, each draw and its counts are kept in a file, so
an interrupted run can resume.
"""

import functools
import itertools
import shutil
import statistics
import sys
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
    warn,
)
from snnjax.calibrators import broadcast

HELD_OUT = 500  # training images at most, to choose the row that is saved
MEASURED = 100  # test images to measure rates, errors and operations on
# Codes of recipes that are not converted under rate coding alone by default.
DEFAULT_CODES = {"best": ("rate", "radix"), QUANTIZED_ANN: ("radix",)}


class LabeledImages(NamedTuple):
    """Normalized images, their labels, and the outputs of the ANN."""

    images: np.ndarray
    labels: np.ndarray
    ann_outputs: np.ndarray | None = None  # [N, classes]; None: there is no ANN


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
    compare: Callable  # see `comparison`
    measure: Callable  # see `measurement`
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
    equal_answers: float  # share of test images with the class that the ANN gives
    output_error: float  # of the test images, as in `Result`
    seconds: float
    held_out_hits: int | None = None  # after T steps, on the held-out images


class Counts(NamedTuple):
    """Sums over images: how an SNN's answers compare with their labels and its ANN."""

    hits: Any  # right answers after 1..T steps, int [T]
    equal_answers: Any  # images for which SNN and ANN give the same class, at T
    squared_error: Any  # of the outputs, at T


def carry_out(task: Experiment) -> tuple[list[Result], list[snnjax.SNN]]:
    """The result of each row, printed at once, and the SNN of its first seed."""
    config = task.config
    rows, width = plan(config), width_of(config)
    total = len(rows) * len(config.seeds)
    results, snns = [], []
    number = 0  # of the draw
    progress = tqdm(
        total=total,
        desc="conversions",
        leave=False,
        disable=devices.hidden(),
    )
    with progress:
        for planned in rows:
            title = title_of(planned, config)
            name = name_of(title, planned.code, planned.levels)
            draws: list[Draw] = []
            for seed in config.seeds:
                number += 1
                devices.log(
                    f"conversion {number} of {total}: {name}, T = {planned.steps}, "
                    f"seed {seed}"
                )
                draws.append(_draw(task, planned, seed))
                # A row has one wait: the one that the first draw measures.
                planned = planned._replace(wait=draws[0].snn.wait)
                progress.update()
            result = result_of(task, title, draws)
            tqdm.write(row(result, width))
            sys.stdout.flush()  # where it is a file or a pipe
            results.append(result)
            snns.append(draws[0].snn)
    return results, snns


def plan(config: Convert) -> list[Row]:
    """All rows without repetitions, since the waits "T" and "4" may be equal."""
    rows = []
    for recipe in config.recipes:
        for code in config.codes or DEFAULT_CODES.get(recipe, ("rate",)):
            # A budget of spikes is an option of the recipe "best".
            budgets: Sequence[float | None] = (None,)
            if recipe == "best" and config.spikes:
                budgets = config.spikes
            for levels, wait, steps, spikes in itertools.product(
                config.pairs() or [CODES[code].levels],
                _waits(config, recipe, code),
                config.steps,
                budgets,
            ):
                rows.append(
                    Row(
                        recipe=recipe,
                        steps=steps,
                        wait=_wait_in_steps(wait, steps, code),
                        levels=levels,
                        code=code,
                        spikes=spikes,
                    )
                )
    return list(dict.fromkeys(rows))


def _waits(config: Convert, recipe: str, code: str) -> Sequence[str]:
    """The waits of the rows of a recipe under a code, as `_wait_in_steps` reads them.

    By default the least that the code needs. Where the codes are chosen, "best" under
    rate coding also waits for all of T, which gains little for many steps.
    """
    if recipe == QUANTIZED_ANN:
        return ("full",)
    if config.waits:
        return config.waits
    if config.codes and (recipe, code) == ("best", "rate"):
        return ("least", "T")
    return ("least",)


def _wait_in_steps(wait: str, steps: int, code: str) -> int | None:
    """A wait in steps; None: the least that is enough, which the conversion measures.

    "full" is the wait behind which a neuron knows all of its input.
    """
    if wait == "least":
        # There may be nothing to choose.
        return None if CODES[code].longest_wait(steps) else 0
    if wait == "full":
        return CODES[code].full_wait(steps)
    if wait == "T":
        return steps
    if wait == "T-1":
        return steps - 1
    return int(wait)


def title_of(planned: Row, config: Convert) -> str:
    """The recipe, and its options that the other columns do not show."""
    title = planned.recipe
    if config.last_zone is not None:
        title += f", last zone {config.last_zone:g}"
    if planned.spikes:
        title += f", {planned.spikes:g} spikes"
    return title


def width_of(config: Convert) -> int:
    """Of the longest name of a row, as `Result.name` has it, on the terminal."""
    width = NAME_WIDTH
    for planned in plan(config):
        title = title_of(planned, config)
        width = max(width, len(name_of(title, planned.code, planned.levels)))
    return width


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
    return normalize(data, data.train_images[_drawn_numbers(config, data, seed)])


def held_out_images(config: Convert, data: Dataset) -> LabeledImages | None:
    """Training images that no seed draws, as many as test images, or `HELD_OUT`."""
    count = min(HELD_OUT, len(data.test_labels[: config.test_images]))
    drawn = [_drawn_numbers(config, data, seed) for seed in config.seeds]
    all_numbers = np.arange(len(data.train_images))
    unused = np.setdiff1d(all_numbers, np.concatenate(drawn))
    if len(unused) < count:
        return None
    numbers = np.sort(np.random.default_rng(0).permutation(unused)[:count])
    images = normalize(data, data.train_images[numbers])
    return LabeledImages(np.asarray(images), data.train_labels[numbers])


def _drawn_numbers(config: Convert, data: Dataset, seed: int) -> np.ndarray:
    """Numbers of the training images that a seed draws for calibration."""
    order = np.random.default_rng(seed).permutation(len(data.train_images))
    return order[: config.calibration_images]


# ------------------------------------------------------------------ one conversion


def _draw(task: Experiment, planned: Row, seed: int) -> Draw:
    """Convert and count right answers, or read the file of an interrupted run."""
    images = calibration_images(task.config, task.data, seed)
    file = _file_of_draw(task, planned, seed, images)
    if file.exists():
        snn, card, _ = snnjax.load(file)
        return Draw(snn, **card["extras"])
    start = time.perf_counter()
    snn = jax.block_until_ready(_convert(task, planned, seed, images))
    seconds = time.perf_counter() - start
    if task.mesh is not None:
        # Programs without the mesh, such as `_measure`, need arrays of this process.
        snn = jax.device_get(snn)
    snn = widen_all(snn, task.sites)
    counts: dict[str, Any] = {"seconds": seconds}
    counts |= measured_answers(task, snn)
    if task.held_out is not None:
        held_out_counts = total_counts(task, snn, task.held_out)
        counts["held_out_hits"] = int(held_out_counts.hits[-1])
    if devices.first():
        file.parent.mkdir(exist_ok=True)
        snnjax.save(file, snn, extras=counts)
    return Draw(snn, **counts)


def _file_of_draw(task: Experiment, planned: Row, seed: int, images: jax.Array) -> Path:
    """The file of a draw, whose name is a digest of all that its counts depend on."""
    config = task.config
    options = (planned, seed, config.dtype, config.iterations, config.last_zone)
    options += Draw._fields  # what is counted
    held_out_labels = None if task.held_out is None else task.held_out.labels
    arrays = (task.params, images, task.test.labels, held_out_labels)
    name = digest(arrays, repr(options))
    return unfinished(config) / f"{name}.safetensors"


def _convert(
    task: Experiment, planned: Row, seed: int, images: jax.Array
) -> snnjax.SNN:
    """The conversion of a row with these calibration images."""
    config, code = task.config, CODES[planned.code]
    model = neuron_of(planned.levels, planned.code, config)
    has_default_neuron = config.last_zone is None and planned.levels == code.levels
    if has_default_neuron and planned.recipe != QUANTIZED_ANN:
        model = None  # the conversion chooses its last zone
    if planned.spikes is None:
        recipe = RECIPES[planned.recipe](config, seed)
    else:
        recipe = snnjax.best(spikes=planned.spikes)
    return snnjax.convert(
        task.fn,
        task.params,
        devices.rows(images, np.arange(len(images)), task.mesh),
        steps=planned.steps,
        wait=planned.wait,
        model=model,
        code=code,
        recipe=recipe,
    )


def unfinished(config: Convert) -> Path:
    """The folder of the draws, while a run is under way."""
    return Path(config.out).expanduser() / "unfinished_conversions"


def forget(config: Convert) -> None:
    """Delete the draws of a run that has ended."""
    shutil.rmtree(unfinished(config), ignore_errors=True)


def result_of(task: Experiment, recipe: str, draws: Sequence[Draw]) -> Result:
    """A row: accuracies of all draws, and measures of the SNN of the first one."""
    snn, image_count = draws[0].snn, len(task.test.labels)
    accuracies = []
    for draw in draws:
        accuracies.append([hits / image_count for hits in draw.hits])
    held_out = None
    if task.held_out is not None:
        right = sum(draw.held_out_hits or 0 for draw in draws)
        held_out = right, len(draws) * len(task.held_out.labels)
    code_name = repr(snn.code)
    for name, code in CODES.items():
        if code == snn.code:
            code_name = name
            break
    measures = _measure(task, snn)
    caution = measures.caution(snn)
    if caution is not None:
        warn(f"{recipe}, {code_name}, T = {snn.steps}: {caution}")
    return Result(
        recipe=recipe,
        wait=snn.wait,
        steps=snn.steps,
        accuracies=accuracies,
        latency=snnjax.latency(task.sites, steps=snn.steps, wait=snn.wait),
        firing_rate=float(measures.firing_rate),
        synaptic_operations=float(measures.synaptic_operations),
        seconds=statistics.median(draw.seconds for draw in draws),
        measures=measures,
        levels=levels_of(task.sites, snn),
        code=code_name,
        held_out=held_out,
        equal_answers=[draw.equal_answers for draw in draws],
        output_errors=[draw.output_error for draw in draws],
    )


def evaluated(task: Experiment, name: str, snn: snnjax.SNN, seconds: float) -> Result:
    """The row of a single SNN, whose right answers are counted first."""
    draw = Draw(snn, seconds=seconds, **measured_answers(task, snn))
    return result_of(task, name, [draw])


def levels_of(sites: snnjax.network.Sites, snn: snnjax.SNN) -> tuple[int, int]:
    """The levels of the first site that is not an encoder, or of an encoder."""
    populations = [site for site in sites if site.fires]
    activations = [site for site in populations if not site.is_encoder]
    first = (activations or populations)[0]
    return snn.model_of(first.name).levels


def counter(fn: Callable) -> Callable:
    """Jitted: (SNN, images, labels) -> right answers after 1..T steps, int [T].

    It needs no ANN, unlike `comparison`. The answer after t steps is that of the mean
    of the first t outputs.
    """

    @jax.jit
    def count(snn, x, labels):
        outputs = snnjax.spiking(fn, steps=snn.steps, wait=snn.wait)(snn, x)
        return _right_answers(outputs, labels)

    return count


def _right_answers(outputs: jax.Array, labels: jax.Array) -> jax.Array:
    """The number of right answers after 1..T steps, int [T]."""
    share = snnjax.accuracy(outputs, labels)
    return jnp.rint(share * len(labels)).astype(int)


def comparison(fn: Callable) -> Callable:
    """Jitted: (SNN, (images, outputs of the ANN), labels) -> `Counts`."""

    @jax.jit
    def compare(snn, images_and_ann_outputs, labels):
        x, ann_outputs = images_and_ann_outputs
        outputs = snnjax.spiking(fn, steps=snn.steps, wait=snn.wait)(snn, x)
        final_outputs = outputs.astype(jnp.float32).mean(0)
        is_equal = final_outputs.argmax(-1) == ann_outputs.argmax(-1)
        squared_errors = jnp.square(final_outputs - ann_outputs).sum(-1)
        # Copies that fill the last batch have the label -1.
        is_counted = labels >= 0
        return Counts(
            hits=_right_answers(outputs, labels),
            equal_answers=(is_equal & is_counted).sum(),
            squared_error=jnp.where(is_counted, squared_errors, 0).sum(),
        )

    return compare


def measurement(fn: Callable) -> Callable:
    """Jitted: (SNN, images, params of the ANN) -> `snnjax.measures.Measures`.

    All recipes with the same T, wait and code share its program.
    """

    @devices.jit_for_few_runs
    def measure(snn, x, params):
        return snnjax.measure(fn, snn, x, params=params)

    return measure


def total_counts(task: Experiment, snn: snnjax.SNN, images: LabeledImages) -> Counts:
    """The counts of all images, in NumPy."""
    compare = functools.partial(task.compare, snn)
    inputs = images.images, images.ann_outputs
    return devices.total(compare, inputs, images.labels, task.mesh)


def measured_answers(task: Experiment, snn: snnjax.SNN) -> dict[str, Any]:
    """What a `Draw` says of the test images, by the names of its fields."""
    counts = total_counts(task, snn, task.test)
    ann_outputs = task.test.ann_outputs
    # Of the outputs of the ANN over the images, summed over the classes.
    variance = np.square(ann_outputs - ann_outputs.mean(0), dtype=float).sum()
    # It is 0 if the ANN gives all images the same outputs. The error is then no number.
    with np.errstate(divide="ignore", invalid="ignore"):
        output_error = counts.squared_error / variance
    return {
        "hits": counts.hits.tolist(),
        "equal_answers": float(counts.equal_answers / len(ann_outputs)),
        "output_error": float(output_error),
    }


def count_hits(
    count: Callable, snn: snnjax.SNN, test: LabeledImages, mesh: Mesh | None
) -> list[int]:
    """Right answers after 1..T steps, as whole numbers."""
    count_of_snn = functools.partial(count, snn)
    return devices.total(count_of_snn, test.images, test.labels, mesh).tolist()


def _measure(task: Experiment, snn: snnjax.SNN) -> snnjax.measures.Measures:
    """Measures of the first test images."""
    images = task.test.images[:MEASURED]
    measures = jax.device_get(task.measure(snn, images, task.params))
    return in_order(measures, task.sites)


def in_order(
    measures: snnjax.measures.Measures, sites: snnjax.network.Sites
) -> snnjax.measures.Measures:
    """The measures with their sites as in the network; JAX sorts them by name."""
    ordered = {}
    for site in sites:
        if site.fires:
            ordered[site.name] = measures.sites[site.name]
    return measures._replace(sites=ordered)


def widen_all(snn: snnjax.SNN, sites: snnjax.network.Sites) -> snnjax.SNN:
    """The SNN with parameters of full shape, so that all recipes share programs."""
    neurons = dict(snn.neurons)
    for site in sites:
        if not site.fires:
            continue
        params = neurons[site.name]
        if site.is_encoder and params.offset is None:
            # The recipe has fitted no offset.
            params = params._replace(offset=jnp.zeros(()))
        neurons[site.name] = broadcast(params, site)
    return replace(snn, neurons=neurons)
