"""The gain of each part of `snnjax.best`: ``python -m experiments.ablation``.

Converts a published network by compositions of calibrators that differ in one part.
Compares the SNNs with the ANN on training images that calibration does not use, so no
recipe is chosen on test images.
"""

import functools
import itertools
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import snnjax
from experiments.conversions import in_order
from experiments.data import load, normalize, normalized_as
from experiments.models import load_source, source_function
from experiments.report import markdown_table
from experiments.running import CODES, command, options, parse, warn, writable, write
from experiments.running import run as run_command
from snnjax import Recipe, calibrators

THRESHOLD = calibrators.least_squares_threshold("channel", 0.5)
CHARGE = calibrators.half_charge()
POSTPONE = calibrators.postpone_charge()
SCALE = calibrators.scale_threshold()
POTENTIAL = calibrators.correct_potential(3)
LEAST_SQUARES = calibrators.least_squares_weights()
LAYER_THRESHOLD = calibrators.least_squares_threshold("layer", 0.5)
OFFSET = calibrators.least_squares_offset()
STREAMING_SCALE = calibrators.streaming_only(SCALE)
STREAMING_POSTPONE = calibrators.streaming_only(POSTPONE)


def best_parts(
    *,
    weights: Sequence[calibrators.Calibrator] = (LEAST_SQUARES,),
    offset: Sequence[calibrators.Calibrator] = (OFFSET,),
    threshold: calibrators.Calibrator = THRESHOLD,
    pace: Sequence[calibrators.Calibrator] = (
        POSTPONE,
        STREAMING_SCALE,
        STREAMING_POSTPONE,
    ),
    correction: calibrators.Calibrator = POTENTIAL,
) -> Recipe:
    """The refined part of `best()` with rate coding, of which a row changes one part.

    Thresholds are of least squares, and errors are not weighed by their effect.
    """
    return Recipe([*weights, *offset, threshold, CHARGE, *pace, correction])


ROWS: dict[str, Recipe] = {
    "light": snnjax.light(),
    "thresholds, half charge": Recipe([THRESHOLD, CHARGE]),
    "potential correction": Recipe([THRESHOLD, CHARGE, POTENTIAL]),
    "+ scaled threshold": Recipe([THRESHOLD, CHARGE, SCALE, POTENTIAL]),
    "+ postponed charge": Recipe([THRESHOLD, CHARGE, POSTPONE, POTENTIAL]),
    "+ both": Recipe([THRESHOLD, CHARGE, POSTPONE, SCALE, POSTPONE, POTENTIAL]),
    "+ weights by least squares": Recipe([LEAST_SQUARES, THRESHOLD, CHARGE, POTENTIAL]),
    "best": snnjax.best(),
    "best, whatever the effect": best_parts(),
    "best, weights as they are": best_parts(weights=()),
    "best, no offsets": best_parts(offset=()),
    "best, one threshold per layer": best_parts(threshold=LAYER_THRESHOLD),
    "best, one round of potentials": best_parts(
        correction=calibrators.correct_potential(1)
    ),
    "best, bias for potential": best_parts(correction=calibrators.correct_bias(3)),
    "best, whatever the pace": best_parts(
        pace=(
            calibrators.postpone_charge(pace=0),
            calibrators.streaming_only(calibrators.scale_threshold(pace=0)),
            calibrators.streaming_only(calibrators.postpone_charge(pace=0)),
        )
    ),
}


@dataclass(frozen=True)
class Ablation:
    """Comparison of compositions; the table goes to the folder `out`."""

    # Published network, a file of weights with its card.
    checkpoint: str = "experiments/sources/resnet20.safetensors"
    # Folder of the data sets; by default ~/tensorflow_datasets.
    data_dir: str | None = None
    # T of every column; layers wait for as long as the code needs.
    columns: tuple[int, ...] = (4, 8, 16)
    # Code, one of experiments.running.CODES: what a spike is worth at each step.
    code: str = "rate"
    # Lowest and highest level of a spike, e.g. -1 1; by default those of the code.
    levels: tuple[int, int] | None = None
    # Rows, by their names or the start of several; by default all.
    rows: tuple[str, ...] = ("",)
    # Training images to calibrate with, without their labels.
    calibration_images: int = 256
    # Other training images to compare on.
    images: int = 1000
    # Folder for ablation.md and ablation.json.
    out: str = "runs/ablation"

    def __post_init__(self):
        options.check(self)
        self.neuron()
        for row in self.rows:
            if not any(name.startswith(row) for name in ROWS):
                raise ValueError(f"no row {row!r}; allowed: {'; '.join(ROWS)}")

    def neuron(self) -> snnjax.neurons.IntegrateAndFire:
        """The model that all conversions take."""
        levels = self.levels or CODES[self.code].levels
        zone = CODES[self.code].dead_zone(levels)
        return snnjax.integrate_and_fire(levels=levels, dead_zone=zone)


class Cell(NamedTuple):
    """An SNN against the ANN."""

    loss: float  # accuracy of the ANN minus that of the SNN, in points
    divergence: float  # of the outputs, see `divergence`
    spikes: float  # per neuron and image
    seconds: float  # of the conversion


def run(config: Ablation) -> dict[str, dict[int, Cell]]:
    """Convert and compare all rows and columns; returns row -> T -> `Cell`."""
    out = writable(config.out, "--out")
    source = load_source(config.checkpoint)
    fn, params = source_function(source), source.variables
    data = normalized_as(load(source.card["dataset"], config.data_dir), source.card)
    count = len(data.train_images)
    if config.calibration_images + config.images > count:
        raise ValueError(
            f"calibration_images {config.calibration_images} and images "
            f"{config.images} together exceed the {count} training images; choose fewer"
        )
    order = np.random.default_rng(0).permutation(count)
    x = normalize(data, data.train_images[order[: config.calibration_images]])
    held_out = order[-config.images :]
    images = normalize(data, data.train_images[held_out])
    compare = make_compare(fn, params, images, jnp.asarray(data.train_labels[held_out]))
    sites = snnjax.sites(fn, params, images[:1])
    measure = jax.jit(lambda snn, x, params: snnjax.measure(fn, snn, x, params=params))
    cells: dict[str, dict[int, Cell]] = {}
    for steps, name in itertools.product(config.columns, rows_named(config.rows)):
        start = time.perf_counter()
        snn = snnjax.convert(
            fn,
            params,
            x,
            steps=steps,
            recipe=ROWS[name],
            model=config.neuron(),
            code=CODES[config.code],
        )
        jax.block_until_ready(snn)
        seconds = time.perf_counter() - start
        loss, kl = compare(snn)
        measures = in_order(measure(snn, images[:100], params), sites)
        caution = measures.caution(snn)
        if caution is not None:
            warn(f"{name}, T = {steps}: {caution}")
        cell = Cell(loss, kl, float(measures.spikes), seconds)
        cells.setdefault(name, {})[steps] = cell
        print(
            f"{name:<32}T {steps:<4}loss {cell.loss:6.2f}  KL {cell.divergence:.4f}  "
            f"spikes {cell.spikes:.2f}  {cell.seconds:4.0f} s",
            flush=True,
        )
        _write(out, config, cells)
    print(f"\n{table(cells)}")
    return cells


def _write(out: Path, config: Ablation, cells: dict[str, dict[int, Cell]]) -> None:
    """The files ablation.md and ablation.json."""
    write(out / "ablation.md", table(cells))
    rows = {}
    for name, row in cells.items():
        rows[name] = {steps: cell._asdict() for steps, cell in row.items()}
    facts = {
        "command": command("experiments.ablation", config),
        "versions": {"snnjax": version("snnjax"), "jax": version("jax")},
        "rows": rows,
    }
    write(out / "ablation.json", json.dumps(facts, indent=1) + "\n")


def rows_named(words: Sequence[str]) -> list[str]:
    """The rows with one of these names, or with a name that begins with another word.

    >>> rows_named(["best, one"])
    ['best, one threshold per layer', 'best, one round of potentials']
    """
    starts = tuple(set(words) - set(ROWS))
    return [name for name in ROWS if name in words or name.startswith(starts)]


def make_compare(
    fn: Callable, params: Any, images: jax.Array, labels: jax.Array
) -> Callable[[snnjax.SNN], tuple[float, float]]:
    """Function `snn -> (loss, divergence)` on these images, see `Cell`."""
    ann = _by_parts(jax.jit(functools.partial(fn, params)), images)
    ann_accuracy = (ann.argmax(-1) == labels).mean()

    @jax.jit
    def answers(snn, x):
        simulate = snnjax.spiking(fn, steps=snn.steps, wait=snn.wait, micro_batch=25)
        return simulate(snn, x).mean(0)

    def compare(snn: snnjax.SNN) -> tuple[float, float]:
        outputs = _by_parts(functools.partial(answers, snn), images)
        accuracy = (outputs.argmax(-1) == labels).mean()
        loss = 100 * float(ann_accuracy - accuracy)
        return loss, float(divergence(ann, outputs))

    return compare


def _by_parts(run: Callable[[jax.Array], jax.Array], images: jax.Array) -> jax.Array:
    """The outputs of all images, 500 at a time."""
    starts = range(0, len(images), 500)
    return jnp.concatenate([run(images[start : start + 500]) for start in starts])


def divergence(ann: jax.Array, outputs: jax.Array) -> jax.Array:
    """KL divergence of softmax(outputs) from softmax(ann), in nats, averaged."""
    log_p = jax.nn.log_softmax(ann)
    log_q = jax.nn.log_softmax(outputs)
    return optax.losses.kl_divergence_with_log_targets(log_q, log_p).mean()


def table(cells: dict[str, dict[int, Cell]]) -> str:
    """A row per composition, a column per T: "loss (divergence; spikes)"."""
    columns: list[int] = []
    for row in cells.values():
        columns += [steps for steps in row if steps not in columns]
    rows = []
    for name, row in cells.items():
        texts = [name]
        for steps in columns:
            # A cell is empty until it is measured.
            text = ""
            if steps in row:
                cell = row[steps]
                text = f"{cell.loss:.1f} ({cell.divergence:.3f}; {cell.spikes:.2f})"
            texts.append(text)
        rows.append(texts)
    titles = ["composition"] + [f"T = {steps}" for steps in columns]
    return markdown_table(titles, rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; user errors end with one message and exit code 1."""
    config = parse(Ablation, {"cifar10_resnet20": Ablation()}, argv)
    run_command(lambda: run(config))


if __name__ == "__main__":
    main()
