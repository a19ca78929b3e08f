"""Published conversions beside ours, as a table: ``python -m experiments.published``.

benchmarks/published.json has what papers report, and where each number was read. A FILE
is a result of ours, as for `experiments.results`. Rows are sorted by the points that
the SNN loses to its ANN at T = 4. Rows without T = 4 follow, by T = 2, 1, 8, 16, 32.
"""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.models import parameters_of
from experiments.report import Result, markdown_table, networks, read_results
from experiments.report.results import COSTS, cost_cells, line_name, lines, percent
from experiments.results import PUBLISHED, file_of
from experiments.running import name_among, run

PAPERS = PUBLISHED.parent / "published.json"
STEPS = (1, 2, 4, 8, 16, 32)
# A row is compared, and has its costs, at the first of these T that it has.
COMPARED_STEPS = (4, 2, 1, 8, 16, 32)


class Row(NamedTuple):
    """A conversion of one network; NaN where the source does not say a number."""

    method: str
    network: str
    accuracies: dict[int, float]  # T -> percent
    latency: int  # steps until the answer, at the T that the row is compared at
    ann: float  # its accuracy in percent
    ann_trained_for_it: bool  # whether the ANN was trained for this conversion
    epochs_after_conversion: int  # of training of the SNN
    values_per_step: int | None  # that a neuron can send in a step, 2 if binary
    spikes: float = math.nan  # per neuron and inference, at the T of the latency

    def lost(self, steps: int) -> float:
        """Points that the SNN loses to the ANN; NaN if one of them is not reported."""
        return self.ann - self.accuracies.get(steps, math.nan)


def _paper(entry: dict[str, Any]) -> Row:
    """The row of an entry of published.json."""
    accuracies = {int(t): percent for t, percent in entry["accuracies"].items()}
    network = entry["network"] or ""
    if entry.get("parameters_million"):
        network += f", {entry['parameters_million']} M"
    steps = _compared_steps(entry["method"], accuracies)
    return Row(
        method=entry["method"],
        network=network,
        accuracies=accuracies,
        latency=steps + entry.get("steps_before", 0),
        ann=math.nan if entry["ann"] is None else entry["ann"],
        ann_trained_for_it=entry["ann_trained_for_it"],
        epochs_after_conversion=entry["epochs_after_conversion"],
        values_per_step=entry.get("values_per_step"),
    )


def _ours(files: Sequence[Path], dataset: str) -> list[Row]:
    """The rows of results of ours, each with all its T."""
    rows = []
    results = [read_results(file_of(name)) for name in files]
    for network in networks.merged(results):
        if not network.images.endswith(f" of {dataset}"):
            raise ValueError(f"{network.name} has {network.images}, not of {dataset}")
        for line in lines(network.results):
            rows.append(_our_row(network, line))
    return rows


def _our_row(network: networks.NetworkResults, line: Sequence[Result]) -> Row:
    """The row of a recipe and wait, from its results at each T."""
    by_steps = {result.steps: result for result in line}
    name = line_name(line[0])
    compared = by_steps[_compared_steps(name, by_steps)]
    low, high = compared.levels
    # The curve of a fine-tuning begins before its first epoch; a conversion has none.
    curve = network.epochs.get(f"{line_name(compared)}, T = {compared.steps}", [0])
    millions = parameters_of(network.card) / 1e6
    return Row(
        method=f"`{name}`",
        network=f"`{network.name}`, {millions:.2g} M",
        accuracies={t: 100 * result.final for t, result in by_steps.items()},
        latency=compared.latency,
        ann=100 * network.ann,
        ann_trained_for_it=bool(network.card.get("levels") or network.card.get("clip")),
        epochs_after_conversion=len(curve) - 1,
        values_per_step=high - low + 1,
        spikes=compared.spikes,
    )


def _compared_steps(name: str, by_steps: Mapping[int, Any]) -> int:
    """The T at which a row is compared."""
    for steps in COMPARED_STEPS:
        if steps in by_steps:
            return steps
    raise ValueError(f"{name} has T = {list(by_steps)}, but none of {STEPS}")


def _cells(row: Row) -> dict[str, str]:
    """Title of a column -> cell."""
    cells = {
        "method": row.method,
        "network": row.network,
        "ANN %": _number(row.ann),
        "for it": "yes" if row.ann_trained_for_it else "no",
        "epochs": str(row.epochs_after_conversion),
        "values": str(row.values_per_step or ""),
    }
    for t in STEPS:
        cells[f"T = {t}"] = _number(row.accuracies.get(t, math.nan))
    for t in (2, 4):
        cells[f"lost, T = {t}"] = _number(row.lost(t))
    cells["latency"] = str(row.latency)
    cells["spikes"] = _number(row.spikes, digits=2)
    return cells


def _number(value: float, digits: int = 1) -> str:
    """A number with so many digits; "" for NaN."""
    return "" if math.isnan(value) else f"{value:.{digits}f}"


def _by_points_lost(row: Row) -> list[float]:
    """A key that sorts rows; NaN is last."""
    losses = [row.lost(t) for t in COMPARED_STEPS]
    return [math.inf if math.isnan(loss) else loss for loss in losses]


# Our name of a method -> what published.json calls it.
NAMES = {
    "bias shift": "threshold shift",
    "light": "light calibration",
    "advanced": "advanced calibration",
    "differential": "DCGS",
    "local balancing": "local threshold balancing",
}
METHODS = (
    "network",
    "method",
    "values",
    "T",
    "latency",
    "accuracy %",
    "lost",
    "spikes",
    "SynOps M",
    "s",
    "published loss",
)
ARCHITECTURES = {"resnet20": "ResNet-20"}  # of the same channels as a paper's


def table_of_methods(results: Sequence[networks.NetworkResults]) -> str:
    """Conversions by `experiments.methods`, beside what papers lose at the same T.

    Below each network are published conversions of the same architecture.
    """
    entries = json.loads(PAPERS.read_text(encoding="utf-8"))
    rows = []
    for network in results:
        papers = []
        for entry in entries:
            if network.images.endswith(f" of {entry['dataset']}"):
                papers.append(entry)
        cells = [_method_cells(row, network.ann, papers) for row in network.results]
        steps = {row.steps for row in network.results}
        for entry in papers:
            if entry["network"] == ARCHITECTURES.get(network.name):
                cells += _paper_cells(entry, steps)
        # The name of the network is beside its first row.
        title = f"`{network.name}`"
        for row_cells in cells:
            rows.append((title, *row_cells))
            title = ""
    return markdown_table(METHODS, rows)


def _paper_cells(entry: dict[str, Any], steps: set[int]) -> list[Sequence[str]]:
    """The cells under `METHODS` of a published conversion, a row for each T."""
    paper = _paper(entry)
    rows = []
    for t in sorted(steps & paper.accuracies.keys()):
        rows.append(
            (
                f"{entry['method']}, its ANN {entry['ann']}",
                str(paper.values_per_step or ""),
                str(t),
                str(t),
                f"{paper.accuracies[t]:.1f}",
                f"{paper.lost(t):.1f}",
                *("", "", "", ""),
            )
        )
    return rows


def _method_cells(result: Result, ann: float, papers: Sequence[dict]) -> Sequence[str]:
    """The cells under `METHODS`, without that of the network."""
    published_losses = []
    for entry in papers:
        accuracy = entry["accuracies"].get(str(result.steps))
        if entry["method"] == NAMES.get(result.recipe) and accuracy is not None:
            loss = entry["ann"] - accuracy
            published_losses.append(f"{loss:.1f} ({entry['network']})")
    low, high = result.levels
    costs = dict(zip(COSTS, cost_cells(result), strict=True))
    return (
        result.recipe,
        str(high - low + 1),
        str(result.steps),
        str(result.latency),
        percent(result),
        f"{100 * (ann - result.final):.1f}",
        costs["spikes"],
        costs["SynOps M"],
        f"{result.seconds:.0f}",
        ", ".join(published_losses),
    )


def table_of(argv: Sequence[str] | None) -> str:
    """The table that the command prints."""
    entries = json.loads(PAPERS.read_text(encoding="utf-8"))
    datasets = sorted({entry["dataset"] for entry in entries})
    parser = argparse.ArgumentParser(prog="published", description=__doc__)
    parser.add_argument(
        "files", nargs="*", type=Path, metavar="FILE", help="results of ours"
    )
    parser.add_argument(
        "--dataset",
        default="cifar10",
        type=name_among(datasets),
        metavar="NAME",
        help=f"{', '.join(datasets)}; write it after the files",
    )
    parser.add_argument(
        "--sources", action="store_true", help="print where each number was read"
    )
    parser.add_argument(
        "--methods", action="store_true", help="of files of experiments.methods"
    )
    parser.add_argument(
        "--steps", nargs="+", type=int, metavar="T", help="the T of --methods"
    )
    options = parser.parse_args(argv)
    if options.methods:
        results = [read_results(file_of(file)) for file in options.files]
        if options.steps:
            results = [
                networks.with_steps(network, options.steps) for network in results
            ]
        return table_of_methods(networks.merged(results))
    if options.sources:
        sources = {(entry["method"], entry["source"]) for entry in entries}
        return markdown_table(("method", "source"), sorted(sources))
    rows = [_paper(entry) for entry in entries if entry["dataset"] == options.dataset]
    rows += _ours(options.files, options.dataset)
    cells = [_cells(row) for row in sorted(rows, key=_by_points_lost)]
    return markdown_table(cells[0], [row.values() for row in cells])


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: print the table."""
    run(lambda: print(table_of(argv), end=""), compiles=False)


if __name__ == "__main__":
    main()
