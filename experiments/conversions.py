"""All conversions of `experiments.convert`: every recipe, T, wait and seed.

A row is a recipe with a T and a wait; a draw is its conversion with the calibration
images of one seed. Until the run ends, each draw and its counts are kept in a file, so
an interrupted run can resume.
"""

import contextlib
import functools
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
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
from experiments.report import Result, row
from experiments.running import CODES, Conversion, Convert, devices, digest
from snnjax.calibrators import broadcast

RECIPES: dict[str, Callable[[Convert, int], snnjax.Recipe]] = {
    "max_activation": lambda config, seed: snnjax.max_activation(),
    "percentile": lambda config, seed: snnjax.percentile(),
    "bias_shift": lambda config, seed: snnjax.bias_shift(),
    "light": lambda config, seed: snnjax.light(),
    "advanced": lambda config, seed: snnjax.advanced(
        iterations=config.iterations, seed=seed
    ),
    "quantized": lambda config, seed: snnjax.quantized(),
    "best": lambda config, seed: snnjax.best(),
}
CHOICE_IMAGES = 500  # at most, to choose the row that is saved
MEASURED = 100  # test images to measure rates, errors and operations on
UNFINISHED = "unfinished_conversions"  # folder in --out, while a run is under way


class LabeledImages(NamedTuple):
    """Normalized images and their labels."""

    images: np.ndarray
    labels: np.ndarray


class Experiment(NamedTuple):
    """Network, images and options that all conversions share.

    Attributes:
        config, data: options and data set.
        fn: the network; one object, so that JAX traces it once per shape.
        params, sites: of the network.
        test: images for the reported accuracies.
        held_out: images for the choice of the row to save; None: the test images.
        count: jitted, (SNN, images, labels) -> right answers after 1..T steps.
        mesh: of the devices that share a batch; None: a single device.
    """

    config: Convert
    data: Dataset
    fn: Callable
    params: chex.ArrayTree
    sites: snnjax.network.Sites
    test: LabeledImages
    held_out: LabeledImages | None
    count: Callable
    mesh: Mesh | None


class Row(NamedTuple):
    """A row of the tables: a conversion, which every seed repeats."""

    recipe: str
    steps: int
    wait: int
    levels: tuple[int, int]
    code: str


class Draw(NamedTuple):
    """A conversion with the calibration images of one seed.

    Attributes:
        snn: the spiking network.
        hits: right answers on the test images after 1..T steps.
        choice_hits: right answers after T steps on the images that rows are chosen by.
        seconds: duration of the conversion.
    """

    snn: snnjax.SNN
    hits: list[int]
    choice_hits: int
    seconds: float


def experiment(
    config: Convert,
    data: Dataset,
    fn: Callable,
    params: chex.ArrayTree,
    mesh: Mesh | None,
) -> Experiment:
    """The experiment of a configuration."""
    test = images_to_test(config, data)
    sites = snnjax.sites(fn, params, test.images[:1])
    held_out = _held_out(config, data)
    count = counter(fn)
    return Experiment(config, data, fn, params, sites, test, held_out, count, mesh)


def carry_out(task: Experiment, ann: float) -> tuple[list[Result], list[snnjax.SNN]]:
    """Convert and measure all rows.

    Args:
        task: from `experiment`.
        ann: accuracy of the source network, for the printed rows.

    Returns:
        The result of each row, which is printed at once, and the SNN of its first seed.
    """
    rows, seeds = plan(task.config), task.config.seeds
    results, snns = [], []
    draws_of_rows = itertools.product(rows, seeds)
    finished = sum(_file(task.config, *each).exists() for each in draws_of_rows)
    if finished and devices.first():
        print(
            f"{finished} of {len(rows) * len(seeds)} conversions of an interrupted run "
            "are read, not repeated, if their images and options are the same\n"
        )
    # XLA's compiler takes half of the time: it works ahead, on another core. Devices of
    # a mesh must all run the same programs in the same order, so there each row
    # compiles its own.
    ahead = _run_once if task.mesh is None else lambda *_: None
    pool = ThreadPoolExecutor(1)
    with tqdm(
        total=len(rows) * len(seeds),
        desc="conversions",
        leave=False,
        disable=devices.hidden(),
    ) as progress:
        try:
            kinds = dict.fromkeys(line[1:] for line in rows)
            programs = {kind: pool.submit(ahead, task, *kind) for kind in kinds}
            for line in rows:
                draws = []
                for seed in seeds:
                    draws.append(_draw(task, line, seed, programs[line[1:]].result))
                    progress.update()
                zone = task.config.last_zone
                unusual = f", last zone {zone:g}" if zone > 1 / 2 else ""
                result = result_of(task, line.recipe + unusual, draws)
                tqdm.write(row(result, ann))
                results.append(result)
                snns.append(draws[0].snn)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    return results, snns


def plan(config: Convert) -> list[Row]:
    """All rows without repetitions, since the waits "T" and "4" may be equal."""
    rows = []
    for recipe, name in itertools.product(config.recipes, config.codes):
        code = CODES[name]
        waits = config.waits or _waits(recipe, name)
        pairs = config.pairs() or [code.levels]
        for levels, wait, steps in itertools.product(pairs, waits, config.steps):
            numbers = {"T": steps, "least": code.least_wait(levels, steps)}
            number = numbers[wait] if wait in numbers else int(wait)
            rows.append(Row(recipe, steps, number, levels, name))
    return list(dict.fromkeys(rows))


def _waits(recipe: str, code: str) -> tuple[str, ...]:
    """The waits of a row, if the options name none: the least that the code needs."""
    return ("least", "T") if (recipe, code) == ("best", "rate") else ("least",)


def neuron_of(
    levels: tuple[int, int], code: str, config: Conversion
) -> snnjax.neurons.IntegrateAndFire:
    """The neuron of these options; by default with the dead zone of the code."""
    zone, of_code = config.dead_zone, CODES[code].dead_zone(levels)
    return snnjax.integrate_and_fire(
        levels=levels,
        dead_zone=of_code if zone is None else zone,
        last_zone=config.last_zone,
    )


def forget(config: Convert) -> None:
    """Delete the files of this run's draws, and no other files."""
    folder = Path(config.out).expanduser() / UNFINISHED
    for line, seed in itertools.product(plan(config), config.seeds):
        _file(config, line, seed).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # another run has files in it, or there is none
        folder.rmdir()


# ----------------------------------------------------------------------- images


def images_to_test(config: Convert, data: Dataset) -> LabeledImages:
    """The first ``config.test_images`` test images, or all of them."""
    images = normalize(data, data.test_images[: config.test_images])
    return LabeledImages(np.asarray(images), data.test_labels[: config.test_images])


def calibration_images(config: Convert, data: Dataset, seed: int) -> jax.Array:
    """The training images that a seed draws, normalized."""
    return normalize(data, data.train_images[_image_numbers(config, data, seed)])


def _image_numbers(config: Convert, data: Dataset, seed: int) -> np.ndarray:
    """Numbers of the training images that a seed draws."""
    order = np.random.default_rng(seed).permutation(len(data.train_images))
    return order[: config.calibration_images]


def _held_out(config: Convert, data: Dataset) -> LabeledImages | None:
    """Training images that no seed calibrates with; None if these are too few.

    They are as many as the test images, and at most `CHOICE_IMAGES`.
    """
    is_unused = np.ones(len(data.train_images), bool)
    for seed in config.seeds:
        is_unused[_image_numbers(config, data, seed)] = False
    count = min(CHOICE_IMAGES, len(data.test_labels[: config.test_images]))
    if is_unused.sum() < count:
        return None
    order = np.random.default_rng(0).permutation(np.flatnonzero(is_unused))
    numbers = np.sort(order[:count])
    images = normalize(data, data.train_images[numbers])
    return LabeledImages(np.asarray(images), data.train_labels[numbers])


# ------------------------------------------------------------------ one conversion


def _draw(
    task: Experiment, line: Row, seed: int, wait_for_programs: Callable[[], Any]
) -> Draw:
    """Convert and count right answers, or read the file of an interrupted run.

    Args:
        wait_for_programs: returns when the programs that count are compiled.
    """
    config = task.config
    images = calibration_images(config, task.data, seed)
    arrays = task.params, images, task.test.labels
    run = {"digest": digest(arrays), "dtype": config.dtype}
    names = "iterations", "dead_zone", "last_zone"
    run |= {name: getattr(config, name) for name in names}
    file = _file(config, line, seed)
    if file.exists():
        snn, card, _ = snnjax.load(file)
        if card["extras"]["run"] == run:
            return Draw(snn, **card["extras"]["counts"])
    start = time.perf_counter()
    snn = snnjax.convert(
        task.fn,
        task.params,
        devices.rows(images, np.arange(len(images)), task.mesh),
        steps=line.steps,
        wait=line.wait,
        model=neuron_of(line.levels, line.code, config),
        code=CODES[line.code],
        recipe=RECIPES[line.recipe](config, seed),
    )
    jax.block_until_ready(snn)
    seconds = time.perf_counter() - start
    # Programs without the mesh, such as `_measure`, need arrays of this process.
    snn = widen_all(snn if task.mesh is None else jax.device_get(snn), task.sites)
    wait_for_programs()
    hits = count_hits(task.count, snn, task.test, task.mesh)
    choice_hits = hits[-1]
    if task.held_out is not None:
        choice_hits = count_hits(task.count, snn, task.held_out, task.mesh)[-1]
    counts = {"hits": hits, "choice_hits": choice_hits, "seconds": seconds}
    if devices.first():
        file.parent.mkdir(exist_ok=True)
        snnjax.save(file, snn, extras={"run": run, "counts": counts})
    return Draw(snn, **counts)


def _file(config: Convert, line: Row, seed: int) -> Path:
    """The file for a draw, and what was counted."""
    low, high = line.levels
    name = f"{line.recipe}_{line.code}_T{line.steps}_wait{line.wait}"
    name += f"_levels{low}_{high}_{seed}"
    return Path(config.out).expanduser() / UNFINISHED / f"{name}.safetensors"


def result_of(task: Experiment, recipe: str, draws: Sequence[Draw]) -> Result:
    """A row: accuracies of all draws, and measures of the SNN of the first one."""
    snn, images = draws[0].snn, len(task.test.labels)
    measures = _measure(task, snn)
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
        [draw.choice_hits for draw in draws],
        levels_of(task.sites, snn),
        code_name(snn.code),
        len((task.held_out or task.test).labels),
    )


def code_name(code: snnjax.codes.Code) -> str:
    """The name of a code in `CODES`, or how Python prints it."""
    return next((name for name, each in CODES.items() if each == code), repr(code))


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


def _run_once(
    task: Experiment, steps: int, wait: int, levels: tuple[int, int], code: str
) -> None:
    """Compile the programs of all recipes: run them on an SNN of the same shapes."""
    neuron = neuron_of(levels, code, task.config)
    neurons = {site.name: neuron.init() for site in task.sites if site.fires}
    snn = snnjax.SNN(task.params, neurons, steps, wait, neuron, CODES[code])
    snn = widen_all(snn, task.sites)
    for part in (task.test, task.held_out):
        if part is not None:
            count = devices.images_at_once()
            first = LabeledImages(part.images[:count], part.labels[:count])
            count_hits(task.count, snn, first, None)
    _measure(task, snn)


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
