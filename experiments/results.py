"""What a conversion experiment finds: rows, their tables and files.

A row is one recipe at one T and wait over all seeds; `convert.py` makes them, and
``plot.py``, ``figures.py`` and ``report.py`` show them. The accuracies of several
networks, or runs, in one table: ``python -m experiments.results METRICS.json ...``.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

import snnjax
from experiments import plot


class Result(NamedTuple):
    """One row of the table: a recipe at one T and wait, over all seeds."""

    recipe: str
    wait: int
    steps: int
    accuracies: list[list[float]]  # per seed, after 1..T steps
    latency: int
    firing_rate: float
    synaptic_operations: float
    seconds: float
    measures: snnjax.measures.Measures

    @property
    def final(self) -> float:
        """Mean accuracy after all T steps."""
        return statistics.mean(reached[-1] for reached in self.accuracies)

    @property
    def deviation(self) -> float:
        """Of that accuracy over the seeds."""
        return deviation([reached[-1] for reached in self.accuracies])


def deviation(values: Sequence[float]) -> float:
    """Standard deviation; 0 of a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


HEADER = (
    f"{'recipe':<15}{'wait':>5}{'T':>4}{'latency':>8}{'accuracy %':>15}"
    f"{'loss':>8}{'rate %':>8}{'SynOps M':>10}{'s':>7}"
)


def row(result: Result, ann: float) -> str:
    """One line of the table, under `HEADER`."""
    mean, spread = 100 * result.final, 100 * result.deviation
    return (
        f"{result.recipe:<15}{result.wait:>5}{result.steps:>4}{result.latency:>8}"
        f"{mean:>8.2f} ± {spread:4.2f}{100 * ann - mean:>8.2f}"
        f"{100 * result.firing_rate:>8.1f}{result.synaptic_operations / 1e6:>10.3f}"
        f"{result.seconds:>7.2f}"
    )


def markdown(results: Sequence[Result], ann: float) -> str:
    """Accuracy of every recipe and wait at every T, as a table."""
    steps = sorted({result.steps for result in results})
    lines = [_line(("recipe", "wait", *(f"T = {t}" for t in steps)))]
    lines.append("|---" * (2 + len(steps)) + "|")
    lines += map(_line, _accuracies(results, ann, steps))
    return "\n".join(lines) + "\n"


class Network(NamedTuple):
    """What was found for one network."""

    name: str
    results: list[Result]
    ann: float  # accuracy


def _read(file: Path) -> Network:
    try:
        found = json.loads(file.read_text())
        results = [Result(**row) for row in found["results"]]
        if not results or not all(result.accuracies for result in results):
            raise ValueError("no results")
        return Network(found["source"]["model"], results, found["ann_accuracy"])
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(
            f"{file} was not written by experiments.convert: {error!r}"
        ) from None


def together(networks: Sequence[Network]) -> str:
    """`markdown` of several networks in one table; rows of the same one together."""
    networks = _merged(networks)
    steps = sorted({result.steps for n in networks for result in n.results})
    lines = [_line(("network", "recipe", "wait", *(f"T = {t}" for t in steps)))]
    lines.append("|---" * (3 + len(steps)) + "|")
    for name, results, ann in networks:
        rows = _accuracies(results, ann, steps)
        lines += [
            _line((f"`{name}`" if i == 0 else "", *row)) for i, row in enumerate(rows)
        ]
    return "\n".join(lines) + "\n"


def _merged(networks: Sequence[Network]) -> list[Network]:
    merged: dict[str, Network] = {}
    for name, results, ann in networks:
        known = merged.setdefault(name, Network(name, [], ann))
        if known.ann != ann:
            both = f"{100 * known.ann:.2f} % and {100 * ann:.2f} %"
            raise ValueError(
                f"{name} has {both} as an ANN; allowed: results of the same network on "
                "the same images"
            )
        known.results.extend(results)
    return list(merged.values())


def _accuracies(results: Sequence[Result], ann: float, steps: Sequence[int]) -> list:
    """Recipe, wait and accuracy at every T; the ANN's at last."""
    cells: dict[tuple[str, str], dict[int, str]] = {}
    for result in results:
        entry = f"{100 * result.final:.1f} ± {100 * result.deviation:.1f}"
        key = (f"`{result.recipe}`", plot.waits(result))
        row = cells.setdefault(key, {})
        if row.setdefault(result.steps, entry) != entry:
            raise ValueError(
                f"recipe {result.recipe}, T = {result.steps}, wait {result.wait} is "
                f"there twice, {row[result.steps]} % and {entry} %; allowed: one of "
                "each. Draws of one row come from one run, by --seeds"
            )
    rows = [(*key, *(row.get(t, "") for t in steps)) for key, row in cells.items()]
    return [*rows, ("ANN", "", *[f"{100 * ann:.1f}"] * len(steps))]


def _line(cells: Sequence[str]) -> str:
    return "|" + "".join(f" {cell} |" if cell else " |" for cell in cells)


def costs(results: Sequence[Result]) -> str:
    """What every row costs, as a table; energy as a share of the ANN's."""
    lines = [
        "| recipe | wait | T | latency | rate % | SynOps M | energy, % of ANN | s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        spiking, ann = snnjax.energy(result.measures).operations
        lines.append(
            f"| `{result.recipe}` | {plot.waits(result)} | {result.steps} "
            f"| {result.latency} | {100 * result.firing_rate:.1f} "
            f"| {result.synaptic_operations / 1e6:.2f} "
            f"| {100 * float(spiking / ann):.0f} | {result.seconds:.1f} |"
        )
    return "\n".join(lines) + "\n"


COSTS = """\
What they cost per image: steps until the answer; firing rate; synaptic operations in
millions; energy of 0.9 pJ per addition and 4.6 pJ per multiply-add (32-bit floats,
45 nm: Horowitz, ISSCC 2014), without memory; seconds of the conversion (median)."""


def write_results(out: Path, found: dict, results: Sequence[Result]) -> None:
    """The files metrics.json and results.md (two tables), in the folder `out`."""
    found = {**found, "results": [_plain(result._asdict()) for result in results]}
    (out / "metrics.json").write_text(json.dumps(found, indent=1) + "\n")
    accuracy = markdown(results, found["ann_accuracy"])
    (out / "results.md").write_text(f"{accuracy}\n{COSTS}\n\n{costs(results)}")


def _plain(value):
    """The same with NamedTuples as dictionaries and arrays as numbers."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    value = value.item() if isinstance(value, np.ndarray | np.generic) else value
    return None if value != value else value  # JSON has no NaN


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: print the table of these files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="METRICS.json")
    networks = []
    try:
        for file in parser.parse_args(argv).files:
            networks.append(_read(file))
        table = together(networks)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(table, end="")


if __name__ == "__main__":
    main()
