"""Compares trainings: ``python -m experiments.comparison --preset surrogates``.

Trains networks of `experiments.train_snn` with several options and seeds, and writes a
table. ``surrogates`` compares spike functions and draws their derivatives; ``neurons``
compares neuron models, of which a recurrent network has more weights than the others;
``tasks`` does so on sequences. Start an interrupted comparison again to resume it.
"""

import argparse
import dataclasses
import functools
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
# Where surrogates could differ: deep in layers and long in time.
DEEP_ROWS = {
    "rectangle": SURROGATE_ROWS["rectangle"],
    "triangle": SURROGATE_ROWS["triangle"],
    "exponential": SURROGATE_ROWS["exponential"],
    "Dspike, b = 0.5": dict(learn="fixed", temperature=0.5),
    "Dspike, b = 1": dict(learn="fixed", temperature=1.0),
    "Dspike, b = 3": dict(learn="fixed", temperature=3.0),
    "Dspike, b = 6": dict(learn="fixed", temperature=6.0),
    "Dspike, chosen, from b = 3": dict(learn="choose", temperature=3.0),
    "Dspike, chosen, from b = 6": dict(learn="choose", temperature=6.0),
}
ROWS = SURROGATE_ROWS | NEURON_ROWS | DEEP_ROWS

PUBLISHED = Path(__file__).parents[1] / "benchmarks" / "published_sequences.json"
Line = dict[str, Any]  # task, row, seed, and the last line of the log


@dataclass(frozen=True)
class Comparison:
    """Trainings that differ in a few options; results go to the folder `out`."""

    # Presets of train_snn, each of which all rows change.
    training: tuple[str, ...] = ("digits",)
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
    # Folder for the runs, comparison.md, comparison.json and, of surrogates, a figure.
    out: str = "runs/surrogates"

    def __post_init__(self):
        options.check(self)
        options.check_range(self, "training", options.one_of(*PRESETS_SNN))
        options.check_range(self, "rows", options.one_of(*ROWS))


_NEURONS = Comparison(rows=tuple(NEURON_ROWS), out="runs/neurons")
PRESETS = {
    "surrogates": Comparison(),
    "neurons": _NEURONS,
    "neurons_nmnist": dataclasses.replace(_NEURONS, training=("nmnist",)),
    "tasks": dataclasses.replace(
        _NEURONS, training=("rows", "keywords", "cifar_rows"), out="runs/tasks"
    ),
    "surrogates_deep": Comparison(
        training=("permuted_deep",),
        rows=tuple(DEEP_ROWS),
        seeds=(0,),
        out="runs/surrogates_deep",
    ),
}


def run(config: Comparison) -> list[Line]:
    """The last line of the log of each training, with its task, row and seed.

    The table is written after every training.
    """
    out = writable(config.out, "--out")
    if set(config.rows) & set(SURROGATE_ROWS):
        draw(out / "surrogates.png")
    lines: list[Line] = []
    for task, row, training in _trainings(config, out):
        print(f"\n{task}, {row}, seed {training.seed}", flush=True)
        train(training)
        log = training_loop.read_log(training.out)
        seconds = statistics.median(line.get("seconds", 0.0) for line in log)
        line = {"task": task, "row": row, "seed": training.seed, **log[-1]}
        line["seconds"] = round(seconds, 1)
        lines.append(line)
        jax.clear_caches()  # each run compiles its own programs
        write(out / "comparison.md", table(lines))
        write(out / "comparison.json", json.dumps(lines, indent=1) + "\n")
    print(f"\n{table(lines)}")
    return lines


def _trainings(config: Comparison, out: Path) -> Iterator[tuple[str, str, TrainSNN]]:
    """(task, row, configuration) of every training, each with its own folder."""
    common = {}
    for name in ("epochs", "train_images", "dataset", "data_dir"):
        if getattr(config, name) is not None:
            common[name] = getattr(config, name)
    for task in config.training:
        parent = out if len(config.training) == 1 else out / task
        for row in config.rows:
            for seed in config.seeds:
                folder = re.sub(r"\W+", "_", row).strip("_") + f"_{seed}"
                changes = {**ROWS[row], **common, "seed": seed}
                changes["out"] = str(parent / folder)
                yield task, row, dataclasses.replace(PRESETS_SNN[task], **changes)


def table(lines: Sequence[Line]) -> str:
    """Mean and deviation over the seeds: accuracies in percent, spikes and seconds."""
    groups: dict[tuple[str, str, int], list[Line]] = {}
    for line in lines:
        groups.setdefault((line["task"], line["row"], line["epoch"]), []).append(line)
    rows = []
    for (task, row, epochs), seed_lines in groups.items():
        rows.append(
            (
                task,
                row,
                str(len(seed_lines)),
                str(epochs),
                _percent(seed_lines, "choice_accuracy"),
                _percent(seed_lines, "test_accuracy"),
                _mean(seed_lines, "spikes", ".3f"),
                _mean(seed_lines, "seconds", ".1f"),
            )
        )
    head = (
        "task",
        "training",
        "seeds",
        "epochs",
        "choice accuracy %",
        "test accuracy %",
        "spikes",
        "s per epoch",
    )
    return markdown_table(head, rows)


def _percent(lines: Sequence[Line], name: str) -> str:
    """Mean of an accuracy, and its deviation if several seeds have it."""
    values = [100 * line[name] for line in lines if name in line]
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{statistics.mean(values):.2f} ± {deviation(values):.2f}"


def _mean(lines: Sequence[Line], name: str, form: str) -> str:
    """Mean of a number in a format; "" where no seed has it."""
    values = [line[name] for line in lines if name in line]
    return format(statistics.mean(values), form) if values else ""


def table_of(argv: Sequence[str]) -> str:
    """The table of comparison.json files, or of what papers report, for pages."""
    parser = argparse.ArgumentParser(prog="comparison")
    parser.add_argument("--table", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--published", action="store_true")
    options = parser.parse_args(argv)
    if options.published:
        head = ("task", "network", "accuracy %", "protocol", "read in")
        rows = []
        for entry in json.loads(PUBLISHED.read_text()):
            rows.append([str(entry[name]) for name in head])
        return markdown_table(head, rows)
    lines = []
    for file in options.table or ():
        lines += json.loads((PUBLISHED.parent / "results" / file).read_text())
    return table(lines)


def draw(path: Path) -> None:
    """Figure of all surrogates, and of Dspike at several temperatures."""
    x = jnp.linspace(-1, 1, 801)

    def derivative(spike: Callable) -> jax.Array:
        return jax.grad(lambda x: spike(x).sum())(x)

    shapes = {name: derivative(spike) for name, spike in SURROGATES.items()}
    temperatures = {}
    for b in (0.1, 1, 3, 6, 10):
        dspike = functools.partial(SURROGATES["dspike"], temperature=b)
        temperatures[f"b = {b:g}"] = derivative(dspike)
    training_figures.surrogates(x, shapes, temperatures, path)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; user errors end with one message and exit code 1."""
    words = sys.argv[1:] if argv is None else argv
    if "--table" in words or "--published" in words:
        print(table_of(words), end="")
        return
    config = parse(Comparison, PRESETS, argv)
    run_command(lambda: run(config))


if __name__ == "__main__":
    main()
