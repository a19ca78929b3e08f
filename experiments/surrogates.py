"""Compares surrogates: ``python -m experiments.surrogates --preset digits``.

Trains the same network with each surrogate and each way to train Dspike's temperature,
with the same budget and seeds, and writes the accuracies as a table. Also draws
``surrogates.png``: the derivative of every spike function at its default shape.
"""

import dataclasses
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp

from experiments.presets import PRESETS_SNN
from experiments.report import deviation, training_figures
from experiments.running import (
    TrainSNN,
    check_several,
    parse,
    writable,
    write,
)
from experiments.running import (
    run as run_command,
)
from experiments.train_snn import SURROGATES, train

# name -> options of TrainSNN; width or slope 1, 1, 4 are the surrogates' defaults.
ROWS = {
    "rectangle": dict(surrogate="rectangle", learn="fixed", temperature=1.0),
    "triangle": dict(surrogate="triangle", learn="fixed", temperature=1.0),
    "exponential": dict(surrogate="exponential", learn="fixed", temperature=4.0),
    "Dspike, b = 3": dict(learn="fixed"),
    "Dspike, chosen (algorithm 1)": dict(learn="choose"),
    "Dspike, alignment": dict(learn="alignment", temperature_rate=5.0),
    "Dspike, relaxed": dict(learn="relaxed", temperature_rate=5.0),
}


@dataclass(frozen=True)
class Compare:
    """Comparison of surrogates; results go to the folder `out`."""

    # Configuration of train_snn that all share.
    training: str = "digits"
    # Rows, of experiments.surrogates.ROWS.
    rows: tuple[str, ...] = tuple(ROWS)
    # Seeds of every row.
    seeds: tuple[int, ...] = (0, 1, 2)
    # Passes over the training images; by default those of the configuration.
    epochs: int | None = None
    # Training images used, the first of the data set; by default all.
    train_images: int | None = None
    # Folder of the data sets; by default ~/tensorflow_datasets.
    data_dir: str | None = None
    # Folder for the runs, surrogates.md, surrogates.json and surrogates.png.
    out: str = "runs/surrogates"

    def __post_init__(self):
        if self.training not in PRESETS_SNN:
            allowed = ", ".join(PRESETS_SNN)
            raise ValueError(f"training must be one of {allowed}, not {self.training}")
        unknown = [name for name in self.rows if name not in ROWS]
        if unknown:
            raise ValueError(f"no row {unknown[0]!r}; allowed: {'; '.join(ROWS)}")
        check_several(self, "rows seeds")
        if min(self.seeds) < 0:
            raise ValueError(f"seeds must be >= 0, not {min(self.seeds)}")
        for name in ("epochs", "train_images"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be >= 1, not {value}")


def run(config: Compare) -> dict[str, list[float]]:
    """Accuracy after the last epoch: row -> one number per seed.

    The table is written after every training; a comparison that was interrupted goes on
    when started again.
    """
    out = writable(config.out, "--out")
    draw(out / "surrogates.png")
    accuracies: dict[str, list[float]] = {}
    for name in config.rows:
        for seed in config.seeds:
            folder = out / f"{list(ROWS).index(name)}_{seed}"
            training = _training(config, ROWS[name], seed, folder)
            print(f"\n{name}, seed {seed}", flush=True)
            train(training)
            last = (folder / "metrics.jsonl").read_text().splitlines()[-1]
            accuracies.setdefault(name, []).append(json.loads(last)["test_accuracy"])
            jax.clear_caches()  # each run compiles its own programs
            write(out / "surrogates.md", table(accuracies))
            write(out / "surrogates.json", json.dumps(accuracies, indent=1) + "\n")
    print(f"\n{table(accuracies)}")
    return accuracies


def table(accuracies: dict[str, list[float]]) -> str:
    """Mean and deviation over the seeds, in percent."""
    lines = ["| surrogate | test accuracy % |", "|---|---|"]
    for name, of_seeds in accuracies.items():
        percent = [100 * a for a in of_seeds]
        mean, spread = statistics.mean(percent), deviation(percent)
        lines.append(f"| {name} | {mean:.2f} ± {spread:.2f} |")
    return "\n".join(lines) + "\n"


def draw(path: Path) -> None:
    """Figure of all surrogates, and of Dspike at several temperatures."""
    x = jnp.linspace(-1, 1, 801)

    def derivative(spike, *shape):
        return jax.grad(lambda x: spike(x, *shape).sum())(x)

    shapes = {name: derivative(spike) for name, spike in SURROGATES.items()}
    temperatures = {
        f"b = {b:g}": derivative(SURROGATES["dspike"], b) for b in (0.1, 1, 3, 6, 10)
    }
    training_figures.surrogates(x, shapes, temperatures, path)


def _training(config: Compare, options: dict, seed: int, folder: Path) -> TrainSNN:
    preset = PRESETS_SNN[config.training]
    changes = {**options, "seed": seed, "out": str(folder)}
    for name in ("epochs", "train_images", "data_dir"):
        if getattr(config, name) is not None:
            changes[name] = getattr(config, name)
    return dataclasses.replace(preset, **changes)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; user errors end with one message and exit code 1."""
    config = parse(Compare, {"digits": Compare()}, argv)
    run_command(lambda: run(config), "the same command goes on from the last epoch")


if __name__ == "__main__":
    main()
