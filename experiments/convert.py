"""Converts a trained network by several recipes: ``python -m experiments.convert``.

Loads (or, for digits, trains) a source network, converts it for every number of steps
T, prints the sites and the results, and writes figures, `metrics.json` and a spiking
network of the best row (its first seed), which ``--restore`` evaluates again. A run
that was interrupted goes on when started again.
"""

import contextlib
import dataclasses
import functools
import json
import math
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

import snnjax
from experiments import output, plot, processes, report
from experiments.checkpoint import canonical, load_snn, save_snn
from experiments.configs import PRESETS_ANN, PRESETS_CONVERT, Convert, parse
from experiments.data import (
    Dataset,
    MissingDataError,
    Normalized,
    load,
    normalize,
    normalized_as,
)
from experiments.loop import cache_sized
from experiments.results import HEADER, Result, row, write_results
from experiments.source import Source, load_source, source_function
from experiments.train_ann import train
from snnjax import sharding
from snnjax import _files

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
BATCH = 500  # test images at a time
UNFINISHED = "unfinished_conversions"  # folder in --out, while a run is under way
SHOTS = 100  # test images to measure rates, errors and operations on


def run(config: Convert, *, data: Dataset | None = None) -> list[Result]:
    """Carry out all conversions of a configuration and write their results."""
    _check_recipes(config.recipes)
    start = time.perf_counter()
    out = output.writable(config.out, f"--out {config.out}")
    page = _report_file(config.report)
    data = load(config.dataset, config.data_dir) if data is None else data
    _check_images(config, data)
    mesh = processes.make_mesh(config.mesh)
    sharding.check_batch(
        "calibration_images", config.calibration_images, sharding.over_batch(mesh)
    )
    source = _source(config, data)
    needed = output.space(source.variables, 2 + len(config.seeds) * len(config.steps))
    output.writable(config.out, f"--out {config.out}", needed)
    data = normalized_as(data, source.card)
    fn = _in_dtype(source_function(source), config.dtype)
    images, labels = _test_set(config, data)
    ann = _ann_accuracy(fn, source, images, labels)
    sites = snnjax.sites(fn, source.variables, images[:1])
    beside = _beside(source.card.get("test_accuracy"), ann, len(labels))
    print(f"{sites}\n\nANN: {100 * ann:.2f} % of {len(labels)} test images{beside}\n")
    print(HEADER, flush=True)

    @jax.jit
    def simulate(snn, x):
        fitted = {"steps": snn.steps, "wait": snn.wait, "mesh": mesh}
        return snnjax.spiking(fn, **fitted, micro_batch=cache_sized())(snn, x)

    job = Job(config, data, fn, source.variables, sites, images, labels, simulate, mesh)
    results, snns = _conversions(job, ann)
    if not processes.first():
        return results
    result, snn = max(zip(results, snns, strict=True), key=lambda pair: pair[0].final)
    path = save_snn(
        out,
        snn,
        source.card | {"dtype": config.dtype},
        recipe=result.recipe,
        accuracy=result.accuracies[0][-1],  # of the first seed, as the SNN is
        calibration=_calibration_images(config, data, config.seeds[0]),
    )
    found = _facts(config, ann, len(labels), source.card)
    write_results(out, found, results)
    if page is not None:
        report.write(page, results, found, fn, source.variables, snn, images[:1])
    plot.accuracy(results, ann, out / "accuracy.png")
    plot.layers(results, out / "layers.png")
    plot.raster(fn, snn, sites, images[:1], out / "raster.png")
    _forget_unfinished(config)
    print(
        f"\n{config.out}: metrics.json, results.md, accuracy.png, layers.png, "
        f"raster.png,\nand the first SNN of the best row ({result.recipe}, T = "
        f"{result.steps}, wait {result.wait}) in {path.name};\n"
        f"--restore {config.out} evaluates it.\n"
        + (f"The report is {page}.\n" if page else "")
        + f"{time.perf_counter() - start:.0f} s in all, with compilation and figures"
    )
    return results


def restore(config: Convert, *, data: Dataset | None = None) -> float:
    """Evaluate the spiking network at ``config.restore``; its accuracy."""
    model, snn, card = load_snn(config.restore)
    name = card["dataset"]
    if name.endswith(".npz"):
        raise ValueError(
            f"{config.restore} was trained on events, {name}; --restore evaluates on "
            "images. Its accuracy is in the card, and snnjax.load reads the SNN"
        )
    data = load(name, config.data_dir) if data is None else data
    images, labels = _test_set(config, normalized_as(data, card))
    mesh = processes.make_mesh(config.mesh)
    fn = source_function(Source(model, {}, card))
    spiking = snnjax.spiking(
        _in_dtype(fn, card.get("dtype", "float32")),
        steps=card["steps"],
        wait=card["wait"],
        micro_batch=cache_sized(),
        mesh=mesh,
    )
    reached = _evaluate(jax.jit(spiking), snn, images, labels, mesh)
    ann = card.get("test_accuracy")  # what was trained directly has none
    beside = "" if ann is None else f" (ANN: {100 * ann:.2f} % of all)"
    print(
        f"{config.restore}: {card['model']} on {name}, recipe {card['recipe']}, "
        f"T = {card['steps']}, wait {card['wait']}\n"
        f"{100 * reached[-1]:.2f} % of {len(labels)} test images{beside}"
    )
    return reached[-1]


# ----------------------------------------------------------------- one conversion


class Job(NamedTuple):
    """What all rows have in common."""

    config: Convert
    data: Dataset
    fn: Callable  # one object, so that JAX traces it once per shape
    params: chex.ArrayTree
    sites: snnjax.network.Sites
    images: Normalized
    labels: np.ndarray
    simulate: Callable  # snn, images -> outputs; the SNN brings its T and wait along
    mesh: Mesh | None


def _conversions(job: Job, ann: float) -> tuple[list[Result], list[snnjax.SNN]]:
    """All rows, each printed as it is found, and the SNN of each one's first seed."""
    plan = _plan(job.config)
    results, snns = [], []
    total = len(plan) * len(job.config.seeds)
    progress = tqdm(
        total=total, desc="conversions", leave=False, disable=processes.hidden()
    )
    with progress, ThreadPoolExecutor(1) as pool:
        # Half of the time is XLA's: compile ahead on another core. Devices of a mesh
        # must all do the same in the same order, so there each row compiles its own.
        fits = dict.fromkeys((steps, wait) for _, steps, wait in plan)
        ahead = _compile if job.mesh is None else lambda *_: None
        ready = {fit: pool.submit(ahead, job, *fit) for fit in fits}
        for recipe, steps, wait in plan:
            wait = ready[steps, wait].result
            result, snn = _convert(job, recipe, steps, wait, wait, progress.update)
            tqdm.write(row(result, ann))
            results.append(result)
            snns.append(snn)
    return results, snns


def _compile(job: Job, steps: int, wait: int) -> None:
    """Run the programs once, on an SNN of the shape that all recipes give."""
    neuron = snnjax.integrate_and_fire().init()
    neurons = {site.name: neuron for site in job.sites if site.fires}
    snn = snnjax.SNN(job.params, neurons, None, steps, wait)
    snn = canonical(snn, job.data.num_classes, job.sites)
    tail = len(job.labels) % BATCH
    for size in {min(BATCH, len(job.labels)), tail} - {0}:
        _evaluate(job.simulate, snn, job.images[:size], job.labels[:size], None)
    _measure(job, snn)


def _convert(job: Job, recipe: str, steps: int, wait: int, wait, tick):
    """The row of one recipe at one T and wait, and the SNN of the first seed."""
    draws = []
    for seed in job.config.seeds:
        draws.append(_draw(job, recipe, steps, wait, seed, wait))
        tick()
    first = draws[0].snn
    found = _measure(job, first)
    result = Result(
        recipe,
        wait,
        steps,
        [draw.accuracies for draw in draws],
        snnjax.latency(job.sites, steps=steps, wait=wait),
        float(found.firing_rate),
        float(found.synaptic_operations),
        _median([draw.seconds for draw in draws]),
        found,
    )
    return result, first


def _median(seconds: Sequence[float]) -> float:
    """Without those of interrupted conversions, which are not known."""
    known = [s for s in seconds if not math.isnan(s)]
    return statistics.median(known) if known else math.nan


class Draw(NamedTuple):
    """What one draw of calibration images gives."""

    snn: snnjax.SNN
    accuracies: list[float]  # after 1..T steps
    seconds: float  # of the conversion; NaN if it was interrupted


def _draw(job: Job, recipe: str, steps: int, wait: int, seed: int, wait) -> Draw:
    """Convert and evaluate; what an interrupted run found is not done again."""
    config, folder = job.config, _unfinished(job.config, recipe, steps, wait, seed)
    resumed = any(folder.glob("*.npz"))
    start = time.perf_counter()
    snn = snnjax.convert(
        job.fn,
        job.params,
        _calibration_images(config, job.data, seed),
        steps=steps,
        wait=wait,
        recipe=RECIPES[recipe](config, seed),
        mesh=job.mesh,
        folder=folder,
        progress=functools.partial(
            tqdm, desc=f"{recipe}, T = {steps}", leave=False, disable=processes.hidden()
        ),
    )
    jax.block_until_ready(snn)
    seconds = math.nan if resumed else time.perf_counter() - start
    # What is not shared, such as a measurement, runs on a device of this process.
    snn = snn if job.mesh is None else jax.device_get(snn)
    snn = canonical(snn, job.data.num_classes, job.sites)
    file = folder / f"{len(job.labels)}_images.json"
    if file.exists():
        return Draw(snn, **json.loads(file.read_text()))
    wait()  # until the programs are compiled
    reached = _evaluate(job.simulate, snn, job.images, job.labels, job.mesh)
    if processes.first():
        kept = {"accuracies": reached, "seconds": seconds}
        _files.write(file, json.dumps(kept).encode())
    return Draw(snn, reached, seconds)


def _unfinished(config: Convert, *draw) -> Path:
    """Folder for the fits of a draw: recipe, T, wait, seed."""
    recipe, steps, wait, seed = draw
    name = f"{recipe}_T{steps}_wait{wait}_seed{seed}_{config.calibration_images}"
    return Path(config.out).expanduser() / UNFINISHED / name


def _forget_unfinished(config: Convert) -> None:
    """Delete the fits of this run; those of others, and what is not ours, stay."""
    for recipe, steps, wait in _plan(config):
        for seed in config.seeds:
            folder = _unfinished(config, recipe, steps, wait, seed)
            shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):  # it is not empty
        (Path(config.out).expanduser() / UNFINISHED).rmdir()


def _plan(config: Convert) -> list[tuple[str, int, int]]:
    """(recipe, T, wait) of every row, once each: a wait may be T by itself."""
    rows = []
    for recipe in config.recipes:
        waits = config.waits or (("0", "1", "T") if recipe == "best" else ("0",))
        for wait in waits:
            for steps in config.steps:
                rows.append((recipe, steps, steps if wait == "T" else int(wait)))
    return list(dict.fromkeys(rows))


def _measure(job: Job, snn: snnjax.SNN) -> snnjax.measures.Measures:
    shots = job.images[:SHOTS]
    fitted = {"steps": snn.steps, "wait": snn.wait}
    found = jax.device_get(
        snnjax.measure(job.fn, job.params, snn, shots, **fitted)
    )  # which sorts the sites by name
    in_order = {site.name: found.sites[site.name] for site in job.sites if site.fires}
    return found._replace(sites=in_order)


def _evaluate(simulate, snn, images, labels, mesh: Mesh | None) -> list[float]:
    """Accuracy after 1..T steps."""
    correct = 0
    for x, y in processes.batches(images, labels, BATCH, mesh):
        correct += snnjax.accuracy(simulate(snn, x), y) * len(y)
    return [float(c) / len(labels) for c in correct]


def _ann_accuracy(fn, source: Source, images, labels) -> float:
    logits = [
        jax.jit(fn)(source.variables, images[i : i + BATCH])
        for i in range(0, len(labels), BATCH)
    ]
    return float((jnp.concatenate(logits).argmax(-1) == labels).mean())


def _in_dtype(fn, dtype: str):
    return fn if dtype == "float32" else snnjax.in_dtype(fn, dtype)


def _report_file(name: str | None) -> Path | None:
    """Where the report goes; before the work too."""
    if name is None:
        return None
    path = Path(name).expanduser()
    if path.is_dir():
        raise ValueError(
            f"--report {name} is a folder; give a file, e.g. --report "
            f"{Path(name) / 'report.html'}"
        )
    output.writable(path.parent, f"--report {name}")
    return path


def _check_images(config: Convert, data: Dataset) -> None:
    found = len(data.train_images)
    if config.calibration_images > found:
        raise ValueError(
            f"calibration_images {config.calibration_images} exceeds the {found} "
            f"training images of {data.name}; choose fewer"
        )


def _calibration_images(config: Convert, data: Dataset, seed: int) -> jax.Array:
    found = len(data.train_images)
    draw = np.random.default_rng(seed).permutation(found)[: config.calibration_images]
    return normalize(data, data.train_images[draw])


def _test_set(config: Convert, data: Dataset) -> tuple[Normalized, np.ndarray]:
    labels = data.test_labels[: config.test_images]
    return Normalized(data, len(labels)), labels


def _source(config: Convert, data: Dataset) -> Source:
    shape = list(data.train_images.shape[1:])
    described = None
    if config.model is not None:
        described = {
            "model": config.model,
            "dataset": data.name,
            "num_classes": data.num_classes,
            "input_shape": shape,
            "mean": list(data.mean),
            "std": list(data.std),
        }
    try:
        source = load_source(config.checkpoint, described)
    except (FileNotFoundError, ValueError):
        default = config.checkpoint == Convert.checkpoint and config.model is None
        if config.dataset != "digits" or not default:
            raise
        preset = PRESETS_ANN["digits_resnet"]
        print(f"training a source network first: {config.checkpoint}", flush=True)
        preset = dataclasses.replace(preset, out=config.checkpoint, mesh=config.mesh)
        source = train(preset, data=data)
    card = source.card
    found = list(card["input_shape"]), card["num_classes"]
    if found != (shape, data.num_classes):
        raise ValueError(
            f"the source network {config.checkpoint} takes images of {found[0]} in "
            f"{found[1]} classes ({card.get('dataset', 'it does not say of what')}), "
            f"but {data.name} has {shape} in {data.num_classes}; give the --checkpoint "
            "of a network trained on it"
        )
    # The SNN belongs to the data that it is calibrated and evaluated on.
    return source._replace(card={**card, "dataset": data.name})


def _beside(said: float | None, ann: float, images: int) -> str:
    """What the card of the network promises, next to what was found."""
    if said is None:
        return ""
    text = f" (its card: {100 * said:.2f} % of all)"
    # More than three standard deviations of so many images.
    if said - ann > 0.01 + 3 * (said * (1 - said) / images) ** 0.5:
        text += (
            "\nThat is less than the card says: check that its model, clip, mean and "
            "std are those of the training, and the data set too"
        )
    return text


def _check_recipes(names: Sequence[str]) -> None:
    unknown = [name for name in names if name not in RECIPES]
    if unknown:
        raise ValueError(
            f"no recipe {', '.join(map(repr, unknown))}; allowed: {', '.join(RECIPES)}"
        )


def _facts(config: Convert, ann: float, test_images: int, card) -> dict:
    """What all results have in common."""
    packages = ("jax", "flax", "optax", "orbax-checkpoint")
    return {
        "config": dataclasses.asdict(config),
        "versions": {
            "snnjax": snnjax.__version__,
            **{package: version(package) for package in packages},
        },
        "device": str(jax.devices()[0]),
        "source": card,
        "ann_accuracy": ann,
        "test_images": test_images,
        "measured_images": min(SHOTS, test_images),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; user errors end with one message and exit code 1."""
    config = parse(Convert, PRESETS_CONVERT, argv)
    try:
        with processes.together():
            run(config) if config.restore is None else restore(config)
    except (MissingDataError, ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
