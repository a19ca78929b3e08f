"""What each part of `snnjax.best` is worth: ``python -m experiments.ablation``.

Converts a published network by compositions that differ in one part, also by those
that did not pay, and compares with the ANN on training images that calibration has
not seen. Recipes are chosen here, so that test images stay for the final table.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import snnjax
from experiments import output
from experiments.configs import parse
from experiments.data import MissingDataError, load, normalize, normalized_as
from experiments.source import load_source, source_function
from snnjax import Recipe
from snnjax.conversion.view import Calibrator

THRESHOLD = snnjax.least_squares_threshold("channel", "round", prior=16)
CHARGE = snnjax.half_charge()
POSTPONE = snnjax.postpone_charge()
SCALE = snnjax.scale_threshold()
POTENTIAL = snnjax.correct_potential(3)
LEAST_SQUARES = snnjax.least_squares_weights()
DESCENT = snnjax.calibrate_weights("spikes", iterations=100, learning_rate=1e-5)


def corrected(*calibrators: Calibrator) -> Recipe:
    return Recipe((calibrators,), correct_readout=True)


BEST = snnjax.best()
(PARTS,) = BEST.sweeps
ROWS: dict[str, Recipe] = {
    "light": snnjax.light(),
    "advanced, weights as they are": Recipe(
        (
            (
                snnjax.least_squares_threshold(),
                snnjax.shift_bias(),
                snnjax.correct_potential(),
            ),
        )
    ),
    "advanced": snnjax.advanced(iterations=1000),
    "potential correction": corrected(THRESHOLD, CHARGE, POTENTIAL),
    "+ scaled threshold": corrected(THRESHOLD, CHARGE, SCALE, POTENTIAL),
    "+ postponed charge": corrected(THRESHOLD, CHARGE, POSTPONE, POTENTIAL),
    "+ both": corrected(THRESHOLD, CHARGE, POSTPONE, SCALE, POSTPONE, POTENTIAL),
    "+ weights by least squares": corrected(
        LEAST_SQUARES, THRESHOLD, CHARGE, POTENTIAL
    ),
    "best": BEST,
    "best, weights as they are": corrected(*PARTS[1:]),
    "best, a tenth of the damping": corrected(
        snnjax.least_squares_weights(damping=0.1), *PARTS[1:]
    ),
    "best, ten times the damping": corrected(
        snnjax.least_squares_weights(damping=10.0), *PARTS[1:]
    ),
    "best, one threshold per layer": corrected(
        LEAST_SQUARES, snnjax.least_squares_threshold("layer", "round"), *PARTS[2:]
    ),
    "best, one round of potentials": corrected(
        *PARTS[:-1], snnjax.correct_potential(1)
    ),
    "best, bias for potential": corrected(*PARTS[:-1], snnjax.correct_bias(3)),
    "best, whatever the pace": corrected(
        LEAST_SQUARES,
        THRESHOLD,
        CHARGE,
        snnjax.postpone_charge(pace=0),
        snnjax.streaming_only(snnjax.scale_threshold(pace=0)),
        snnjax.streaming_only(snnjax.postpone_charge(pace=0)),
        POTENTIAL,
    ),
    "best, readout as it is": Recipe(BEST.sweeps),
    "best, then weights by descent": corrected(*PARTS[:-1], DESCENT, PARTS[-1]),
}
DISTILLED = "best, then logits distilled"


@dataclass(frozen=True)
class Ablation:
    """Comparison of compositions; the table goes to the folder `out`."""

    # Published network, a file of weights with its card.
    checkpoint: str = "experiments/sources/resnet20.safetensors"
    # Folder of the data sets; by default ~/tensorflow_datasets.
    data_dir: str | None = None
    # T and delay of every column: T alone is delay 0.
    columns: tuple[str, ...] = ("4", "8", "16", "8:1", "8:T")
    # Rows, by their names or the start of several; by default all.
    rows: tuple[str, ...] = ("",)
    # Unlabelled training images to calibrate with.
    calibration_images: int = 256
    # Other training images to compare on.
    images: int = 1000
    # Adam steps of 32 images of the distillation.
    iterations: int = 160
    # Their learning rate at first.
    rate: float = 1e-4
    # Folder for ablation.md and ablation.json.
    out: str = "runs/ablation"

    def __post_init__(self):
        for name in ("calibration_images", "images", "iterations", "rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be > 0, not {getattr(self, name)}")
        names = [*ROWS, DISTILLED]
        for row in self.rows:
            if not any(name.startswith(row) for name in names):
                raise ValueError(f"no row {row!r}; allowed: {'; '.join(names)}")
        for column in self.columns:
            steps, _, delay = column.partition(":")
            longest = int(steps) if steps.isdecimal() else 0
            waits = delay in ("", "T") or (delay.isdecimal() and int(delay) <= longest)
            if not (longest >= 1 and waits):
                raise ValueError(
                    f"a column must be T, T:delay or T:T, e.g. 8 8:1 8:T, with T >= 1 "
                    f"and a delay of at most T; not {column}"
                )


class Cell(NamedTuple):
    """An SNN against the ANN: loss in points, KL divergence in nats, seconds."""

    loss: float
    divergence: float
    seconds: float


def run(config: Ablation) -> dict[str, dict[str, Cell]]:
    """row -> column -> `Cell`."""
    out = output.writable(config.out, f"--out {config.out}")
    source = load_source(config.checkpoint)
    fn, params = source_function(source), source.variables
    data = normalized_as(load(source.card["dataset"], config.data_dir), source.card)
    order = np.random.default_rng(0).permutation(len(data.train_images))
    if config.calibration_images + config.images > len(order):
        raise ValueError(
            f"calibration_images {config.calibration_images} and images "
            f"{config.images} exceed the {len(order)} training images; choose fewer"
        )
    fitted = normalize(data, data.train_images[order[: config.calibration_images]])
    unseen = order[-config.images :]
    images, labels = normalize(data, data.train_images[unseen]), data.train_labels
    compare = comparison(fn, params, images, jnp.asarray(labels[unseen]))
    found: dict[str, dict[str, Cell]] = {}
    names = chosen(config.rows)
    for column in config.columns:
        steps, _, delay = column.partition(":")
        steps = int(steps)
        delay = steps if delay == "T" else int(delay or 0)
        for name in names:
            start = time.perf_counter()
            snn = snnjax.convert(
                fn,
                params,
                fitted,
                steps=steps,
                delay=delay,
                recipe=ROWS.get(name, BEST),
            )
            if name == DISTILLED:
                snn = distill(fn, params, snn, fitted, config.iterations, config.rate)
            jax.block_until_ready(snn)
            seconds = time.perf_counter() - start
            cell = Cell(*compare(snn), seconds)
            found.setdefault(name, {})[column] = cell
            print(
                f"{name:<32}T:delay {column:<7}loss {cell.loss:6.2f}  "
                f"KL {cell.divergence:.4f}  {cell.seconds:4.0f} s",
                flush=True,
            )
            (out / "ablation.md").write_text(table(found))
            written = {
                n: {c: x._asdict() for c, x in r.items()} for n, r in found.items()
            }
            (out / "ablation.json").write_text(json.dumps(written, indent=1) + "\n")
    print(f"\n{table(found)}")
    return found


def chosen(rows: Sequence[str]) -> list[str]:
    """The names that are among ``rows``, or start with one that is no whole name."""
    names = [*ROWS, DISTILLED]
    starts = tuple(set(rows) - set(names))
    return [name for name in names if name in rows or name.startswith(starts)]


def comparison(fn: Callable, params, images: jax.Array, labels: jax.Array):
    """snn -> (accuracy that it loses against the ANN in points, KL divergence)."""
    batches = [slice(i, i + 500) for i in range(0, len(images), 500)]
    ann = jnp.concatenate([jax.jit(fn)(params, images[part]) for part in batches])

    @jax.jit
    def answers(snn, x):
        fitted = {"steps": snn.steps, "delay": snn.delay}
        return snnjax.spiking(fn, **fitted, micro_batch=25)(snn, x).mean(0)

    def compare(snn: snnjax.SNN) -> tuple[float, float]:
        outputs = jnp.concatenate([answers(snn, images[part]) for part in batches])
        right, kept = ((o.argmax(-1) == labels).mean() for o in (ann, outputs))
        return 100 * float(right - kept), float(divergence(ann, outputs))

    return compare


def divergence(ann: jax.Array, outputs: jax.Array) -> jax.Array:
    """Mean KL divergence of the answer's softmax from the ANN's, in nats."""
    log_p, log_q = jax.nn.log_softmax(ann), jax.nn.log_softmax(outputs)
    return (jnp.exp(log_p) * (log_p - log_q)).sum(-1).mean()


def distill(fn, params, snn, images, iterations: int, rate: float) -> snnjax.SNN:
    """Draws an SNN's outputs to the ANN's, by surrogate gradients.

    Trains weights, thresholds and initial potentials on unlabelled images.
    """
    simulate = snnjax.spiking(fn, steps=snn.steps, delay=snn.delay)
    schedule = optax.cosine_decay_schedule(1.0, iterations)
    # Weights are small; thresholds and potentials are as large as activations.
    kinds = {"weights": rate, "threshold": 10 * rate, "initial_potential": 10 * rate}
    optimizer = optax.multi_transform(
        {kind: optax.adam(lambda i, r=r: r * schedule(i)) for kind, r in kinds.items()}
        | {"frozen": optax.set_to_zero()},
        snnjax.param_labels(snn, list(kinds)),
    )

    @jax.jit
    def step(snn, state, x):
        def loss(snn):
            return divergence(fn(params, x), simulate(snn, x).mean(0))

        updates, state = optimizer.update(jax.grad(loss)(snn), state, snn)
        return optax.apply_updates(snn, updates), state

    state, draw = optimizer.init(snn), np.random.default_rng(0)
    for _ in range(iterations):
        batch = draw.choice(len(images), min(32, len(images)), replace=False)
        snn, state = step(snn, state, images[batch])
    return snn


def table(found: dict[str, dict[str, Cell]]) -> str:
    """Loss in points and, in brackets, KL divergence; a row per composition."""
    columns = list(dict.fromkeys(c for row in found.values() for c in row))
    heads = [f"T = {c.replace(':', ', delay ')}" for c in columns]
    lines = [f"| composition | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}"]
    for name, row in found.items():
        cells = [
            f"{row[c].loss:.1f} ({row[c].divergence:.3f})" if c in row else ""
            for c in columns
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; user errors end with one message and exit code 1."""
    config = parse(Ablation, {"cifar10_resnet20": Ablation()}, argv)
    try:
        run(config)
    except (MissingDataError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
