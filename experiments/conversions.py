"""All conversions of `experiments.convert`: every recipe, T, wait and seed.

A row is a recipe with a T and a wait; a draw is its conversion with the calibration
images of one seed. Until the run ends, files hold what each draw has fitted and
counted, and an interrupted run goes on from them.
"""

import contextlib
import functools
import itertools
import json
import math
import shutil
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
from experiments.data import Dataset, Normalized, normalize
from experiments.report import Result, row
from experiments.running import Convert, cache_sized, devices, write
from snnjax.calibrators import widen

RECIPES: dict[str, Callable[[Convert, int], snnjax.Recipe]] = {
    "max_activation": lambda config, seed: snnjax.max_activation(),
    "percentile": lambda config, seed: snnjax.percentile(),
    "bias_shift": lambda config, seed: snnjax.bias_shift(),
    "light": lambda config, seed: snnjax.light(),
    "advanced": lambda config, seed: snnjax.advanced(
        iterations=config.iterations, learning_rate=config.rate, seed=seed
    ),
    "quantized": lambda config, seed: snnjax.quantized(),
    "best": lambda config, seed: snnjax.best(),
}
BATCH = 500  # images at a time
CHOICE_IMAGES = 500  # at most, to choose the row that is saved
MEASURED = 100  # test images to measure rates, errors and operations on
UNFINISHED = "unfinished_conversions"  # folder in --out, while a run is under way


class LabelledImages(NamedTuple):
    """Images, normalized or to be normalized by slicing, and their labels."""

    images: Any
    labels: np.ndarray

    def first(self, count: int) -> "LabelledImages":
        """The first ``count`` images and labels."""
        return LabelledImages(self.images[:count], self.labels[:count])


class Experiment(NamedTuple):
    """What all conversions have in common.

    Attributes:
        config, data: options and data set.
        fn: the network; one object, so that JAX traces it once per shape.
        params, sites: of the network.
        test: images for the reported accuracies.
        held_out: images for the choice of the row to save; None: the test images.
        simulate: (SNN, images) -> outputs, jitted; T and wait are the SNN's.
        mesh: of the devices that share a batch; None: a single device.
    """

    config: Convert
    data: Dataset
    fn: Callable
    params: chex.ArrayTree
    sites: snnjax.network.Sites
    test: LabelledImages
    held_out: LabelledImages | None
    simulate: Callable
    mesh: Mesh | None


class Row(NamedTuple):
    """A row of the tables: what is converted, by every seed."""

    recipe: str
    steps: int
    wait: int
    levels: tuple[int, int]

    @property
    def run(self) -> tuple[int, int, tuple[int, int]]:
        """What its programs depend on."""
        return self.steps, self.wait, self.levels


class Draw(NamedTuple):
    """A conversion with the calibration images of one seed.

    Attributes:
        snn: the spiking network.
        hits: right answers on the test images after 1..T steps.
        choice_hits: right answers after T steps on the images for the choice of a row.
        seconds: duration of the conversion; NaN if it was interrupted.
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
    """What the conversions of a configuration have in common."""
    test = images_to_test(config, data)
    sites = snnjax.sites(fn, params, test.images[:1])

    @jax.jit
    def simulate(snn, x):
        options = {"steps": snn.steps, "wait": snn.wait, "mesh": mesh}
        return snnjax.spiking(fn, **options, micro_batch=cache_sized())(snn, x)

    held_out = _held_out(config, data)
    return Experiment(config, data, fn, params, sites, test, held_out, simulate, mesh)


def carry_out(task: Experiment, ann: float) -> tuple[list[Result], list[snnjax.SNN]]:
    """Convert and measure all rows.

    Args:
        task: from `experiment`.
        ann: accuracy of the source network, for the printed rows.

    Returns:
        The result of each row, which is printed at once, and the SNN of its first seed.
    """
    rows = plan(task.config)
    results, snns = [], []
    total = len(rows) * len(task.config.seeds)
    progress = tqdm(
        total=total, desc="conversions", leave=False, disable=devices.hidden()
    )
    # XLA's compiler takes half of the time: it works ahead, on another core. Devices of
    # a mesh must all run the same programs in the same order, so there each row
    # compiles its own.
    compile_ahead = _compile if task.mesh is None else lambda *_: None
    pool = ThreadPoolExecutor(1)
    try:
        runs = dict.fromkeys(line.run for line in rows)
        programs = {run: pool.submit(compile_ahead, task, *run) for run in runs}
        for line in rows:
            wait_for_programs = programs[line.run].result
            draws = []
            for seed in task.config.seeds:
                draws.append(_draw(task, line, seed, wait_for_programs))
                progress.update()
            result = result_of(task, line.recipe, draws)
            tqdm.write(row(result, ann))
            results.append(result)
            snns.append(draws[0].snn)
    finally:
        progress.close()
        pool.shutdown(wait=False, cancel_futures=True)
    return results, snns


def plan(config: Convert) -> list[Row]:
    """Every row, once each: the waits "T" and "4" may be equal."""
    rows = []
    for recipe, levels in itertools.product(config.recipes, config.pairs()):
        waits = config.waits or (("0", "1", "T") if recipe == "best" else ("0",))
        for wait, steps in itertools.product(waits, config.steps):
            number = steps if wait == "T" else int(wait)
            rows.append(Row(recipe, steps, number, levels))
    return list(dict.fromkeys(rows))


def forget(config: Convert) -> None:
    """Delete the folders that the draws of this run have written, and no other ones."""
    for line in plan(config):
        for seed in config.seeds:
            folder = _folder(config, line, seed)
            shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # another run has folders in it
        (Path(config.out).expanduser() / UNFINISHED).rmdir()


# ----------------------------------------------------------------------- images


def images_to_test(config: Convert, data: Dataset) -> LabelledImages:
    """The first ``config.test_images`` test images, or all of them."""
    labels = data.test_labels[: config.test_images]
    return LabelledImages(Normalized(data, len(labels)), labels)


def calibration_images(config: Convert, data: Dataset, seed: int) -> jax.Array:
    """The training images that a seed draws, normalized."""
    return normalize(data, data.train_images[_image_numbers(config, data, seed)])


def _image_numbers(config: Convert, data: Dataset, seed: int) -> np.ndarray:
    """Numbers of the training images that a seed draws."""
    order = np.random.default_rng(seed).permutation(len(data.train_images))
    return order[: config.calibration_images]


def _held_out(config: Convert, data: Dataset) -> LabelledImages | None:
    """Training images that no seed calibrates with; None if these are too few.

    They are as many as the test images, and at most `CHOICE_IMAGES`.
    """
    unused = np.ones(len(data.train_images), bool)
    for seed in config.seeds:
        unused[_image_numbers(config, data, seed)] = False
    count = min(CHOICE_IMAGES, len(data.test_labels[: config.test_images]))
    if unused.sum() < count:
        return None
    order = np.random.default_rng(0).permutation(np.flatnonzero(unused))
    numbers = np.sort(order[:count])
    images = normalize(data, data.train_images[numbers])
    return LabelledImages(images, data.train_labels[numbers])


# ------------------------------------------------------------------ one conversion


def _draw(
    task: Experiment, line: Row, seed: int, wait_for_programs: Callable[[], Any]
) -> Draw:
    """Convert and count right answers, or read the counts of an interrupted run.

    Args:
        wait_for_programs: returns when the programs that count are compiled.
    """
    config = task.config
    folder = _folder(config, line, seed)
    resumed = any(folder.glob("*.npz"))
    start = time.perf_counter()
    snn = snnjax.convert(
        task.fn,
        task.params,
        calibration_images(config, task.data, seed),
        steps=line.steps,
        wait=line.wait,
        model=snnjax.integrate_and_fire(levels=line.levels),
        recipe=RECIPES[line.recipe](config, seed),
        mesh=task.mesh,
        folder=folder,
        progress=functools.partial(
            tqdm,
            desc=f"{line.recipe}, T = {line.steps}",
            leave=False,
            disable=devices.hidden(),
        ),
    )
    jax.block_until_ready(snn)
    seconds = math.nan if resumed else time.perf_counter() - start
    # What runs without the mesh, such as `_measure`, needs arrays of this process.
    snn = snn if task.mesh is None else jax.device_get(snn)
    snn = widened(snn, task.sites)
    file = folder / f"hits_{len(task.test.labels)}.json"
    if file.exists():
        return Draw(snn, **json.loads(file.read_text()))
    wait_for_programs()
    hits = count_hits(task.simulate, snn, task.test, task.mesh)
    choice_hits = hits[-1]
    if task.held_out is not None:
        choice_hits = count_hits(task.simulate, snn, task.held_out, task.mesh)[-1]
    if devices.first():
        counts = {"hits": hits, "choice_hits": choice_hits, "seconds": seconds}
        write(file, json.dumps(counts))
    return Draw(snn, hits, choice_hits, seconds)


def _folder(config: Convert, line: Row, seed: int) -> Path:
    """The folder for what a draw has fitted and counted."""
    low, high = line.levels
    spikes = "" if line.levels == (0, 1) else f"_levels{low}_{high}"
    name = f"{line.recipe}_T{line.steps}_wait{line.wait}{spikes}_seed{seed}"
    name = f"{name}_{config.calibration_images}"
    return Path(config.out).expanduser() / UNFINISHED / name


def result_of(task: Experiment, recipe: str, draws: Sequence[Draw]) -> Result:
    """A row: accuracies of all draws, and measures of the SNN of the first one."""
    snn, images = draws[0].snn, len(task.test.labels)
    measures = _measure(task, snn)
    seconds = [draw.seconds for draw in draws if not math.isnan(draw.seconds)]
    return Result(
        recipe,
        snn.wait,
        snn.steps,
        [[count / images for count in draw.hits] for draw in draws],
        snnjax.latency(task.sites, steps=snn.steps, wait=snn.wait),
        float(measures.firing_rate),
        float(measures.synaptic_operations),
        statistics.median(seconds) if seconds else math.nan,
        measures,
        [draw.choice_hits for draw in draws],
        levels_of(task.sites, snn),
    )


def levels_of(sites: snnjax.network.Sites, snn: snnjax.SNN) -> tuple[int, int]:
    """Those that were asked for: of a site that is no encoder, if there is one."""
    firing = [site for site in sites if site.fires]
    site = next((site for site in firing if not site.signed), firing[0])
    return snn.model_of(site.name).levels


# Jitted, so that labels are not checked: where several devices share a batch, it is
# filled up with images of the label -1, which no answer equals.
_accuracy = jax.jit(snnjax.accuracy)


def count_hits(
    simulate: Callable, snn: snnjax.SNN, test: LabelledImages, mesh: Mesh | None
) -> list[int]:
    """Right answers after 1..T steps, as whole numbers."""
    hits = np.zeros(snn.steps, int)
    for x, y in devices.batches(test.images, test.labels, BATCH, mesh):
        accuracy = _accuracy(simulate(snn, x), y)  # hits / len(y), in float32
        hits += np.rint(np.asarray(accuracy, np.float64) * len(y)).astype(int)
    return hits.tolist()


def _measure(task: Experiment, snn: snnjax.SNN) -> snnjax.measures.Measures:
    """Measures of the first test images, the sites in the order of the network."""
    images = task.test.images[:MEASURED]
    measures = jax.device_get(snnjax.measure(task.fn, task.params, snn, images))
    # JAX sorts the sites by name.
    in_order = {s.name: measures.sites[s.name] for s in task.sites if s.fires}
    return measures._replace(sites=in_order)


def _compile(task: Experiment, steps: int, wait: int, levels: tuple[int, int]) -> None:
    """Run the programs once, on an SNN whose shapes are those of all recipes."""
    neuron = snnjax.integrate_and_fire(levels=levels)
    neurons = {site.name: neuron.init() for site in task.sites if site.fires}
    snn = snnjax.SNN(task.params, neurons, steps, wait, neuron)
    snn = widened(snn, task.sites)
    for part in (task.test, task.held_out):
        if part is not None:
            tail = len(part.labels) % BATCH
            for size in {min(BATCH, len(part.labels)), tail} - {0}:
                count_hits(task.simulate, snn, part.first(size), None)
    _measure(task, snn)


def widened(snn: snnjax.SNN, sites: snnjax.network.Sites) -> snnjax.SNN:
    """The SNN with parameters of full shape, so that all recipes share programs."""
    neurons = {}
    for site in sites:
        if site.fires:
            params = snn.neurons[site.name]
            if site.signed and params.offset is None:  # of recipes that fit none
                params = params._replace(offset=jnp.zeros(()))
            neurons[site.name] = widen(params, site)
    return replace(snn, neurons={**snn.neurons, **neurons})


def ann_accuracy(fn: Callable, params: chex.ArrayTree, test: LabelledImages) -> float:
    """Accuracy of the source network on the test images, 0..1."""
    compiled = jax.jit(fn)
    answers = [
        compiled(params, test.images[i : i + BATCH]).argmax(-1)
        for i in range(0, len(test.labels), BATCH)
    ]
    return int((jnp.concatenate(answers) == test.labels).sum()) / len(test.labels)
