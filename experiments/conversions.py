"""All conversions of `experiments.convert`: every recipe, T, wait and seed.

A draw is the conversion of one row with the calibration images of one seed. What a
draw has fitted and counted is stored until the run ends, so that an interrupted run
goes on from there.
"""

import contextlib
import functools
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
    "best": lambda config, seed: snnjax.best(),
}
BATCH = 500  # images at a time
CHOICE_IMAGES = 500  # at most, to choose the row that is saved
MEASURED = 100  # test images to measure rates, errors and operations on
UNFINISHED = "unfinished_conversions"  # folder in --out, while a run is under way


class LabelledImages(NamedTuple):
    """Images, normalized when they are sliced, and their labels."""

    images: Any
    labels: np.ndarray

    def first(self, count: int) -> "LabelledImages":
        """The first of them."""
        return LabelledImages(self.images[:count], self.labels[:count])


class Experiment(NamedTuple):
    """What all conversions have in common.

    Attributes:
        fn: the network; one object, so that JAX traces it once per shape.
        params, sites: of the network.
        test: the images that are reported.
        held_out: the images that the row to save is chosen by; None: the test images.
        simulate: (SNN, images) -> outputs, jitted; the SNN says its T and wait.
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


class Draw(NamedTuple):
    """What the calibration images of one seed give.

    Attributes:
        snn: the spiking network.
        hits: right answers on the test images after 1..T steps.
        choice_hits: right answers after T steps on the images that rows are chosen by.
        seconds: of the conversion; NaN if it was interrupted.
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
    """The conversions that a configuration asks for, ready to be carried out."""
    test = images_to_test(config, data)
    sites = snnjax.sites(fn, params, test.images[:1])

    @jax.jit
    def simulate(snn, x):
        run = {"steps": snn.steps, "wait": snn.wait, "mesh": mesh}
        return snnjax.spiking(fn, **run, micro_batch=cache_sized())(snn, x)

    held_out = _held_out(config, data)
    return Experiment(config, data, fn, params, sites, test, held_out, simulate, mesh)


def carry_out(task: Experiment, ann: float) -> tuple[list[Result], list[snnjax.SNN]]:
    """All rows, each printed when it is ready, and the SNN of each one's first seed."""
    rows = plan(task.config)
    results, snns = [], []
    total = len(rows) * len(task.config.seeds)
    progress = tqdm(
        total=total, desc="conversions", leave=False, disable=devices.hidden()
    )
    # Half of the time is XLA's: compile ahead on another core. Devices of a mesh must
    # all do the same in the same order, so there each row compiles its own programs.
    ahead = _compile if task.mesh is None else lambda *_: None
    pool = ThreadPoolExecutor(1)
    try:
        runs = dict.fromkeys((steps, wait) for _, steps, wait in rows)
        programs = {run: pool.submit(ahead, task, *run) for run in runs}
        for recipe, steps, wait in rows:
            compiled = programs[steps, wait].result
            draws = []
            for seed in task.config.seeds:
                draws.append(_draw(task, recipe, steps, wait, seed, compiled))
                progress.update()
            result = _result(task, recipe, draws)
            tqdm.write(row(result, ann))
            results.append(result)
            snns.append(draws[0].snn)
    finally:
        progress.close()
        pool.shutdown(wait=False, cancel_futures=True)
    return results, snns


def plan(config: Convert) -> list[tuple[str, int, int]]:
    """(recipe, T, wait) of every row, once each: a wait may be T by itself."""
    rows = []
    for recipe in config.recipes:
        waits = config.waits or (("0", "1", "T") if recipe == "best" else ("0",))
        for wait in waits:
            for steps in config.steps:
                rows.append((recipe, steps, steps if wait == "T" else int(wait)))
    return list(dict.fromkeys(rows))


def forget(config: Convert) -> None:
    """Delete what draws of this run stored; other files in that folder stay."""
    for recipe, steps, wait in plan(config):
        for seed in config.seeds:
            folder = _folder(config, recipe, steps, wait, seed)
            shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # it is not empty
        (Path(config.out).expanduser() / UNFINISHED).rmdir()


# ----------------------------------------------------------------------- images


def images_to_test(config: Convert, data: Dataset) -> LabelledImages:
    """The test images that a configuration asks for."""
    labels = data.test_labels[: config.test_images]
    return LabelledImages(Normalized(data, len(labels)), labels)


def calibration_images(config: Convert, data: Dataset, seed: int) -> jax.Array:
    """Training images of a seed."""
    return normalize(data, data.train_images[_drawn(config, data, seed)])


def _drawn(config: Convert, data: Dataset, seed: int) -> np.ndarray:
    order = np.random.default_rng(seed).permutation(len(data.train_images))
    return order[: config.calibration_images]


def _held_out(config: Convert, data: Dataset) -> LabelledImages | None:
    """Training images that no seed calibrates with; None if too few are left.

    At most as many as there are test images.
    """
    rest = np.ones(len(data.train_images), bool)
    for seed in config.seeds:
        rest[_drawn(config, data, seed)] = False
    count = min(CHOICE_IMAGES, len(data.test_labels[: config.test_images]))
    if rest.sum() < count:
        return None
    numbers = np.random.default_rng(0).permutation(np.flatnonzero(rest))[:count]
    images = normalize(data, data.train_images[np.sort(numbers)])
    return LabelledImages(images, data.train_labels[np.sort(numbers)])


# ------------------------------------------------------------------ one conversion


def _draw(task: Experiment, recipe: str, steps: int, wait: int, seed: int, compiled):
    """Convert and count right answers, or read what an interrupted run has counted."""
    config = task.config
    folder = _folder(config, recipe, steps, wait, seed)
    resumed = any(folder.glob("*.npz"))
    start = time.perf_counter()
    snn = snnjax.convert(
        task.fn,
        task.params,
        calibration_images(config, task.data, seed),
        steps=steps,
        wait=wait,
        recipe=RECIPES[recipe](config, seed),
        mesh=task.mesh,
        folder=folder,
        progress=functools.partial(
            tqdm, desc=f"{recipe}, T = {steps}", leave=False, disable=devices.hidden()
        ),
    )
    jax.block_until_ready(snn)
    seconds = math.nan if resumed else time.perf_counter() - start
    # What is not shared, such as a measurement, runs on a device of this process.
    snn = snn if task.mesh is None else jax.device_get(snn)
    snn = _widened(snn, task.sites)
    file = folder / f"hits_{len(task.test.labels)}.json"
    if file.exists():
        return Draw(snn, **json.loads(file.read_text()))
    compiled()  # waits for the programs
    hits = count_hits(task.simulate, snn, task.test, task.mesh)
    choice_hits = hits[-1]
    if task.held_out is not None:
        choice_hits = count_hits(task.simulate, snn, task.held_out, task.mesh)[-1]
    if devices.first():
        counts = {"hits": hits, "choice_hits": choice_hits, "seconds": seconds}
        write(file, json.dumps(counts))
    return Draw(snn, hits, choice_hits, seconds)


def _folder(config: Convert, recipe: str, steps: int, wait: int, seed: int) -> Path:
    """Where a draw stores what it has fitted and counted."""
    name = f"{recipe}_T{steps}_wait{wait}_seed{seed}_{config.calibration_images}"
    return Path(config.out).expanduser() / UNFINISHED / name


def _result(task: Experiment, recipe: str, draws: Sequence[Draw]) -> Result:
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
    )


def count_hits(
    simulate: Callable, snn: snnjax.SNN, test: LabelledImages, mesh: Mesh | None
) -> list[int]:
    """Right answers after 1..T steps, as whole numbers."""
    hits = np.zeros(snn.steps, int)
    for x, y in devices.batches(test.images, test.labels, BATCH, mesh):
        share = snnjax.accuracy(simulate(snn, x), y)  # float32, of len(y)
        hits += np.rint(np.asarray(share, np.float64) * len(y)).astype(int)
    return hits.tolist()


def _measure(task: Experiment, snn: snnjax.SNN) -> snnjax.measures.Measures:
    images = task.test.images[:MEASURED]
    measures = jax.device_get(snnjax.measure(task.fn, task.params, snn, images))
    # JAX sorts the sites by name.
    in_order = {s.name: measures.sites[s.name] for s in task.sites if s.fires}
    return measures._replace(sites=in_order)


def _compile(task: Experiment, steps: int, wait: int) -> None:
    """Run the programs once, on an SNN of the shape that all recipes give."""
    neuron = snnjax.integrate_and_fire().init()
    neurons = {site.name: neuron for site in task.sites if site.fires}
    snn = _widened(snnjax.SNN(task.params, neurons, steps, wait), task.sites)
    for part in (task.test, task.held_out):
        if part is not None:
            tail = len(part.labels) % BATCH
            for size in {min(BATCH, len(part.labels)), tail} - {0}:
                count_hits(task.simulate, snn, part.first(size), None)
    _measure(task, snn)


def _widened(snn: snnjax.SNN, sites: snnjax.network.Sites) -> snnjax.SNN:
    """The same SNN with parameters of one shape, so that all recipes share programs."""
    firing = [site for site in sites if site.fires]
    neurons = {site.name: widen(snn.neurons[site.name], site) for site in firing}
    return replace(snn, neurons={**snn.neurons, **neurons})


def ann_accuracy(fn: Callable, params: chex.ArrayTree, test: LabelledImages) -> float:
    """Of the source network."""
    compiled = jax.jit(fn)
    answers = [
        compiled(params, test.images[i : i + BATCH]).argmax(-1)
        for i in range(0, len(test.labels), BATCH)
    ]
    return int((jnp.concatenate(answers) == test.labels).sum()) / len(test.labels)
