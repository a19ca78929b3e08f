"""Published conversions beside ours, as a table: ``python -m experiments.published``.

benchmarks/published.json has what papers report, and where each number was read. A FILE
is a result of ours, as for `experiments.results`. Rows are sorted by the points that
the SNN loses to its ANN at T = 4. Rows without T = 4 follow, by T = 2, 1, 8, 16, 32.
"""

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from experiments.models import parameters_of
from experiments.report import Result, markdown_table, networks, read_results
from experiments.report.results import cost_cells, line_name, lines, percent
from experiments.results import PUBLISHED, file_of
from experiments.running import run

PAPERS = PUBLISHED.parent / "published.json"
STEPS = (1, 2, 4, 8, 16, 32)
FAIR = (4, 2, 1, 8, 16, 32)  # a row is compared, and has its costs, at the first it has


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
    accuracies = {int(t): percent for t, percent in entry["accuracies"].items()}
    network = entry["network"] or ""
    if millions := entry.get("parameters_million"):
        network += f", {millions} M"
    return Row(
        entry["method"],
        network,
        accuracies,
        _fair_steps(entry["method"], accuracies) + entry.get("steps_before", 0),
        math.nan if entry["ann"] is None else entry["ann"],
        entry["ann_trained_for_it"],
        entry["epochs_after_conversion"],
        entry.get("values_per_step"),
    )


def _ours(files: Sequence[Path], dataset: str) -> Iterator[Row]:
    for network in networks.merged([read_results(file_of(name)) for name in files]):
        if not network.images.endswith(f" of {dataset}"):
            raise ValueError(f"{network.name} has {network.images}, not of {dataset}")
        millions = parameters_of(network.card) / 1e6
        for line in lines(network.results):
            by_steps = {result.steps: result for result in line}
            name = line_name(line[0])
            fair = by_steps[_fair_steps(name, by_steps)]
            low, high = fair.levels
            curve = network.epochs.get(f"{line_name(fair)}, T = {fair.steps}", [0])
            yield Row(
                f"`{name}`",
                f"`{network.name}`, {millions:.2g} M",
                {t: 100 * result.final for t, result in by_steps.items()},
                fair.latency,
                100 * network.ann,
                bool(network.card.get("levels") or network.card.get("clip")),
                len(curve) - 1,
                high - low + 1,
                fair.spikes,
            )


def _fair_steps(name: str, by_steps: dict[int, Any]) -> int:
    steps = [t for t in FAIR if t in by_steps]
    if not steps:
        raise ValueError(f"{name} has T = {list(by_steps)}, but none of {STEPS}")
    return steps[0]


def _cells(row: Row) -> dict[str, str]:
    def number(value: float, digits: int = 1) -> str:
        return "" if math.isnan(value) else f"{value:.{digits}f}"

    return {
        "method": row.method,
        "network": row.network,
        "ANN %": number(row.ann),
        "for it": "yes" if row.ann_trained_for_it else "no",
        "epochs": str(row.epochs_after_conversion),
        "values": str(row.values_per_step or ""),
        **{f"T = {t}": number(row.accuracies.get(t, math.nan)) for t in STEPS},
        **{f"lost, T = {t}": number(row.lost(t)) for t in (2, 4)},
        "latency": str(row.latency),
        "spikes": number(row.spikes, 2),
    }


def _by_points_lost(row: Row) -> list[float]:
    return [math.inf if math.isnan(row.lost(t)) else row.lost(t) for t in FAIR]


# Our name of a method -> what published.json calls it.
NAMES = {"bias shift": "threshold shift", "light": "light calibration"}
NAMES |= {"advanced": "advanced calibration", "differential": "DCGS"}
NAMES |= {"local balancing": "local threshold balancing"}
METHODS = ("network", "method", "values", "T", "latency", "accuracy %", "lost")
METHODS += ("spikes", "SynOps M", "s", "published loss")
ARCHITECTURES = {"resnet20": "ResNet-20"}  # of the same channels as a paper's


def table_of_methods(of_networks: Sequence[networks.NetworkResults]) -> str:
    """Conversions by `experiments.methods`, beside what papers lose at the same T.

    Below each network are published conversions of the same architecture.
    """
    entries = json.loads(PAPERS.read_text(encoding="utf-8"))
    rows = []
    for network in of_networks:
        papers = [e for e in entries if network.images.endswith(f" of {e['dataset']}")]
        cells = [_method_cells(row, network.ann, papers) for row in network.results]
        for entry in papers:
            if entry["network"] != ARCHITECTURES.get(network.name):
                continue
            paper, name = _paper(entry), f"{entry['method']}, its ANN {entry['ann']}"
            for t in sorted({r.steps for r in network.results} & {*paper.accuracies}):
                lost, percents = f"{paper.lost(t):.1f}", f"{paper.accuracies[t]:.1f}"
                numbers = str(paper.values_per_step or ""), str(t), str(t)
                cells.append((name, *numbers, percents, lost, "", "", "", ""))
        names = [f"`{network.name}`"] + [""] * len(cells)
        rows += [(name, *of_row) for name, of_row in zip(names, cells, strict=False)]
    return markdown_table(METHODS, rows)


def _method_cells(result: Result, ann: float, papers: Sequence[dict]) -> Sequence[str]:
    """The cells under `METHODS`, without that of the network."""
    low, high = result.levels
    numbers = (high - low + 1, result.steps, result.latency)
    name, steps = NAMES.get(result.recipe), str(result.steps)
    losses = (
        f"{entry['ann'] - entry['accuracies'][steps]:.1f} ({entry['network']})"
        for entry in papers
        if entry["method"] == name and steps in entry["accuracies"]
    )
    return (
        result.recipe,
        *map(str, numbers),
        percent(result),
        f"{100 * (ann - result.final):.1f}",
        *cost_cells(result)[6:8],
        f"{result.seconds:.0f}",
        ", ".join(losses),
    )


def table_of(argv: Sequence[str] | None) -> str:
    """The table that the command prints."""
    parser = argparse.ArgumentParser(prog="published", description=__doc__)
    add = parser.add_argument
    entries = json.loads(PAPERS.read_text(encoding="utf-8"))
    datasets = sorted({entry["dataset"] for entry in entries})
    add("files", nargs="*", type=Path, metavar="FILE", help="results of ours")
    where = "write it after the files"
    add("--dataset", default="cifar10", choices=datasets, help=where)
    add("--sources", action="store_true", help="print where each number was read")
    add("--methods", action="store_true", help="of files of experiments.methods")
    add("--steps", nargs="+", type=int, metavar="T", help="the T of --methods")
    options = parser.parse_args(argv)
    if options.methods:
        files, steps = (read_results(file_of(f)) for f in options.files), options.steps
        rows = [networks.with_steps(each, steps) if steps else each for each in files]
        return table_of_methods(networks.merged(rows))
    if options.sources:
        sources = dict.fromkeys((entry["method"], entry["source"]) for entry in entries)
        return markdown_table(("method", "source"), sorted(sources))
    entries = [entry for entry in entries if entry["dataset"] == options.dataset]
    rows = [*map(_paper, entries), *_ours(options.files, options.dataset)]
    first, *others = map(_cells, sorted(rows, key=_by_points_lost))
    return markdown_table(first, [row.values() for row in (first, *others)])


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: print the table."""
    run(lambda: print(table_of(argv), end=""), compiles=False)


if __name__ == "__main__":
    main()
