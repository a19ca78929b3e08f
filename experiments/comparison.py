"""Trains one network with several options and seeds, and makes a table of it."""

import dataclasses
import json
import re
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from experiments.report import deviation, markdown_table
from experiments.running import TrainSNN, check_several, read_log, write

Rows = Mapping[str, Mapping[str, Any]]  # name -> options of TrainSNN


@dataclass(frozen=True)
class Comparison:
    """Options of all comparisons. A subclass gives defaults for the first three."""

    # Configuration of train_snn that all rows change.
    training: str
    # Names of the rows.
    rows: tuple[str, ...]
    # Folder for the runs and the table.
    out: str
    # Seeds of every row.
    seeds: tuple[int, ...] = (0, 1, 2)
    # Passes over the training images; by default those of the configuration.
    epochs: int | None = None
    # Training images used, the first of the data set; by default all.
    train_images: int | None = None
    # Data set, if not that of the configuration; see train_snn.
    dataset: str | None = None
    # Folder of the data sets; by default ~/tensorflow_datasets.
    data_dir: str | None = None

    def check(self, rows: Rows, presets: Mapping[str, TrainSNN]) -> None:
        """Raise ValueError for an unknown configuration or row, or a bad number."""
        if self.training not in presets:
            preset_names = ", ".join(presets)
            raise ValueError(
                f"training must be one of {preset_names}, not {self.training}"
            )
        unknown = [name for name in self.rows if name not in rows]
        if unknown:
            raise ValueError(f"no row {unknown[0]!r}; allowed: {'; '.join(rows)}")
        check_several(self, "rows seeds")
        if min(self.seeds) < 0:
            raise ValueError(f"seeds must be >= 0, not {min(self.seeds)}")
        for name in ("epochs", "train_images"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be >= 1, not {value}")

    def trainings(
        self, rows: Rows, preset: TrainSNN, out: Path
    ) -> Iterator[tuple[str, TrainSNN]]:
        """(row, configuration) of every training, each with a folder of its own."""
        common = {
            name: getattr(self, name)
            for name in ("epochs", "train_images", "dataset", "data_dir")
            if getattr(self, name) is not None
        }
        for row in self.rows:
            for seed in self.seeds:
                folder = str(out / f"{_as_file_name(row)}_{seed}")
                changes = {**rows[row], **common, "seed": seed, "out": folder}
                yield row, dataclasses.replace(preset, **changes)


def compare(
    config: Comparison,
    rows: Rows,
    preset: TrainSNN,
    train: Callable[[TrainSNN], Any],
    file: Path,
    title: str,
) -> dict[str, list[float]]:
    """Accuracy after the last epoch: row -> one number per seed.

    The table is written after every training. An interrupted comparison goes on when
    it is started again.

    Args:
        config: what to compare.
        rows: name -> options.
        preset: configuration that all rows change.
        train: trains by a configuration and writes metrics.jsonl to its folder.
        file: of the table, without its suffix; .md and .json are written.
        title: of the column of rows.
    """
    accuracies: dict[str, list[float]] = {}
    for row, training in config.trainings(rows, preset, file.parent):
        print(f"\n{row}, seed {training.seed}", flush=True)
        train(training)
        last = read_log(training.out)[-1]
        accuracies.setdefault(row, []).append(last["test_accuracy"])
        jax.clear_caches()  # each run compiles its own programs
        write(file.with_suffix(".md"), table(accuracies, title))
        write(file.with_suffix(".json"), json.dumps(accuracies, indent=1) + "\n")
    print(f"\n{table(accuracies, title)}")
    return accuracies


def table(accuracies: Mapping[str, list[float]], title: str) -> str:
    """Mean and deviation over the seeds, in percent, below ``title`` of the rows."""
    rows = []
    for name, of_seeds in accuracies.items():
        percent = [100 * accuracy for accuracy in of_seeds]
        cell = f"{statistics.mean(percent):.2f} ± {deviation(percent):.2f}"
        rows.append((name, cell))
    return markdown_table((title, "test accuracy %"), rows)


def _as_file_name(row: str) -> str:
    """Letters, digits and underscores of a row's name."""
    return re.sub(r"\W+", "_", row).strip("_")
