"""Compares trainings: ``python -m experiments.comparison --preset surrogates``.

Trains one network of `experiments.train_snn` with several options and seeds, and writes
the accuracies as a table. ``surrogates`` compares spike functions and draws their
derivatives; ``neurons`` compares neuron models, of which a recurrent network has more
weights than the others. Start an interrupted comparison again to resume it.
"""

import dataclasses
import json
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp

from experiments.presets import PRESETS_SNN
from experiments.report import deviation, markdown_table, training_figures
from experiments.running import TrainSNN, options, parse, training_loop, writable, write
from experiments.running import run as run_command
from experiments.train_snn import NEURONS, SURROGATES, train

# Row -> options of TrainSNN. Width or slope 1, 1, 4 are the surrogates' defaults.
SURROGATE_ROWS = {
    "rectangle": dict(surrogate="rectangle", learn="fixed", temperature=1.0),
    "triangle": dict(surrogate="triangle", learn="fixed", temperature=1.0),
    "exponential": dict(surrogate="exponential", learn="fixed", temperature=4.0),
    "Dspike, b = 3": dict(learn="fixed"),
    "Dspike, chosen (algorithm 1)": dict(learn="choose"),
}
# The temperature is fixed, so only the models differ.
NEURON_ROWS = {name: dict(neuron=name, learn="fixed") for name in NEURONS}
ROWS = SURROGATE_ROWS | NEURON_ROWS


@dataclass(frozen=True)
class Comparison:
    """Trainings that differ in a few options; results go to the folder `out`."""

    # Preset of train_snn that all rows change.
    training: str = "digits"
    # Rows of the table, of experiments.comparison.ROWS.
    rows: tuple[str, ...] = tuple(SURROGATE_ROWS)
    # Seeds of every row.
    seeds: tuple[int, ...] = (0, 1, 2)
    # Passes over the training images; by default those of the preset.
    epochs: int | None = None
    # Training images used, the first of the data set; by default all.
    train_images: int | None = None
    # Data set, if not that of the preset; see train_snn.
    dataset: str | None = None
    # Folder of the data sets; by default ~/tensorflow_datasets.
    data_dir: str | None = None
    # Folder for the runs, comparison.md, comparison.json and surrogates.png.
    out: str = "runs/surrogates"

    def __post_init__(self):
        options.check(self)
        options.check_range(self, "training", options.one_of(*PRESETS_SNN))
        options.check_range(self, "rows", options.one_of(*ROWS))


_NEURONS = Comparison(rows=tuple(NEURON_ROWS), out="runs/neurons")
PRESETS = {
    "surrogates": Comparison(),
    "neurons": _NEURONS,
    "neurons_nmnist": dataclasses.replace(_NEURONS, training="nmnist"),
}


def run(config: Comparison) -> dict[str, list[float]]:
    """Accuracy after the last epoch: row -> one number per seed.

    The table is written after every training.
    """
    out = writable(config.out, "--out")
    if set(config.rows) & set(SURROGATE_ROWS):
        draw(out / "surrogates.png")
    accuracies: dict[str, list[float]] = {}
    for row, training in _trainings(config, out):
        print(f"\n{row}, seed {training.seed}", flush=True)
        train(training)
        last = training_loop.read_log(training.out)[-1]
        accuracies.setdefault(row, []).append(last["test_accuracy"])
        jax.clear_caches()  # each run compiles its own programs
        write(out / "comparison.md", table(accuracies))
        write(out / "comparison.json", json.dumps(accuracies, indent=1) + "\n")
    print(f"\n{table(accuracies)}")
    return accuracies


def _trainings(config: Comparison, out: Path) -> Iterator[tuple[str, TrainSNN]]:
    """(row, configuration) of every training, each with its own folder."""
    names = ("epochs", "train_images", "dataset", "data_dir")
    common = {name: getattr(config, name) for name in names}
    common = {name: value for name, value in common.items() if value is not None}
    for row in config.rows:
        for seed in config.seeds:
            folder = re.sub(r"\W+", "_", row).strip("_") + f"_{seed}"
            changes = {**ROWS[row], **common, "seed": seed, "out": str(out / folder)}
            yield row, dataclasses.replace(PRESETS_SNN[config.training], **changes)


def table(accuracies: Mapping[str, list[float]]) -> str:
    """Mean and standard deviation over the seeds, in percent."""
    rows = []
    for name, of_seeds in accuracies.items():
        percent = [100 * accuracy for accuracy in of_seeds]
        cell = f"{statistics.mean(percent):.2f} ± {deviation(percent):.2f}"
        rows.append((name, cell))
    return markdown_table(("training", "test accuracy %"), rows)


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


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; user errors end with one message and exit code 1."""
    config = parse(Comparison, PRESETS, argv)
    run_command(lambda: run(config))


if __name__ == "__main__":
    main()
