"""Results of several networks, read from files, as one table.

Rows of one network are put together, from however many files. Files that contradict
each other are refused. `experiments.results` is the command.
"""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import snnjax
from experiments.report.results import (
    AGREEMENT,
    COSTS,
    Result,
    accuracy_table,
    cost_cells,
    line_name,
    markdown_table,
    percent,
    without_unknown_columns,
)
from experiments.running import QUANTIZED_ANN


class NetworkResults(NamedTuple):
    """The results of one network."""

    name: str
    results: list[Result]
    ann: float  # its accuracy
    images: str  # of the evaluation, e.g. "1000 test images of cifar10"
    epochs: dict[str, list[float]]  # fine-tuning -> accuracies, see `after_epochs`
    card: dict  # of the ANN


def read_results(file: Path) -> NetworkResults:
    """Read the metrics.json that `write_results` wrote, given itself or its folder.

    A fine-tuning has one row, for the trained network. Its conversion is a row of
    another file, with more draws.

    Raises:
        ValueError: there is no such file, or it is not such a file.
    """
    if file.is_dir():
        file = file / "metrics.json"
    if not file.is_file():
        raise ValueError(
            f"no file {file}; give the metrics.json of a run, or the folder of the run"
        )
    try:
        return _network_results(json.loads(file.read_text()))
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        reason = f"{type(error).__name__}: {str(error)[:80]}"
        raise ValueError(
            f"{file} was not written by experiments.convert or .finetune ({reason})"
        ) from None


def network_name(card: dict) -> str:
    """The name of the model; with quantized ReLUs it is another name."""
    if card.get("levels"):
        return f"{card['model']}_quantized"
    return card["model"]


def _network_results(metrics: dict) -> NetworkResults:
    """From parsed JSON; any wrong type raises an error here, not in a table."""
    curve = [float(accuracy) for accuracy in metrics.get("accuracy_after_epochs", ())]
    rows = metrics["results"]
    if curve:
        # The first row of a fine-tuning is that of its conversion.
        rows = rows[1:]
    results = [read_row(fields) for fields in rows]
    if not results:
        raise ValueError("no results")
    for result in results:
        cost_cells(result)
        if any(len(accuracies) != result.steps for accuracies in result.accuracies):
            raise ValueError(f"not {result.steps} accuracies, one for each step")
    card = metrics["source"]
    name = network_name(card)
    if not name.isidentifier():  # it is also the name of a figure's file
        raise ValueError(f"model {name!r}")
    epochs = {}
    if curve:
        if curve[-1] != results[0].final:
            raise ValueError("the last epoch has another accuracy than the row")
        epochs[f"{line_name(results[0])}, T = {results[0].steps}"] = curve
    count, kind = int(metrics["test_images"]), metrics["evaluated_on"]
    return NetworkResults(
        name=name,
        results=results,
        ann=float(metrics["ann_accuracy"]),
        images=f"{count} {kind} of {card['dataset']}",
        epochs=epochs,
        card=card,
    )


def read_row(fields: dict) -> Result:
    """A row of metrics.json."""
    values = {name: fields[name] for name in Result._fields if name in fields}
    values["levels"] = tuple(fields["levels"])
    # JSON has no NaN.
    seconds = fields["seconds"]
    values["seconds"] = math.nan if seconds is None else float(seconds)
    counts = dict(fields["measures"])
    if "high" in counts:
        # Written before there were codes.
        counts["values"] = counts["steps"] * counts.pop("high") + 1
        counts["operator_steps"] = counts["steps"]
    # Older files have the products of one step, and more fields.
    counts["operator_macs"] *= counts.pop("operator_steps", 1)
    counts.pop("spikes", None)
    counts.pop("operators", None)
    values["measures"] = snnjax.measures.Measures(**counts)
    return Result(**values)


def merged(networks: Sequence[NetworkResults]) -> list[NetworkResults]:
    """The results of each network together, from however many files.

    Raises:
        ValueError: files of one network differ in the images, in the ANN, or in a row.
    """
    by_name: dict[str, NetworkResults] = {}
    for part in networks:
        empty = part._replace(results=[], epochs={})
        network = by_name.setdefault(part.name, empty)
        _check_equal(f"the set of images of {part.name}", network.images, part.images)
        _check_equal(
            f"the accuracy of the ANN {part.name}",
            # Some files have float32.
            f"{100 * network.ann:.3f} %",
            f"{100 * part.ann:.3f} %",
        )
        for result in part.results:
            _add_row(network, result)
        for fine_tuning, curve in part.epochs.items():
            first_curve = network.epochs.setdefault(fine_tuning, curve)
            _check_equal(f"{fine_tuning} of {part.name}", first_curve, curve)
    return list(by_name.values())


def _add_row(network: NetworkResults, result: Result) -> None:
    """Add a row to a network, unless an equal one is there."""
    key = (result.name, result.wait, result.steps)
    for row in network.results:
        if (row.name, row.wait, row.steps) != key:
            continue
        if _comparable(row) != _comparable(result):
            title = f"{line_name(result)}, T = {result.steps} of {network.name}"
            raise ValueError(_contradiction(title, ""))
        return
    network.results.append(result)


def _comparable(result: Result) -> Result:
    """The row without its seconds, and without numbers that older files lack."""
    return result._replace(seconds=0.0, equal_answers=None, output_errors=None)


def _check_equal(subject: str, first: object, second: object) -> None:
    """Raise if two files say different things of the same subject."""
    if first != second:
        raise ValueError(_contradiction(subject, f": {first} and {second}"))


def _contradiction(subject: str, values: str) -> str:
    return (
        f"{subject} differs between the files{values}; results of other options need a "
        "table of their own, and draws of one row come from one run (--seeds)"
    )


def with_steps(network: NetworkResults, steps: Sequence[int]) -> NetworkResults:
    """The network with only the rows of these T; raises if there is none."""
    rows = [result for result in network.results if result.steps in steps]
    if not rows:
        available = sorted({result.steps for result in network.results})
        raise ValueError(
            f"results of {network.name} have rows of T = "
            f"{', '.join(map(str, available))} only; ask for one of these"
        )
    return network._replace(results=rows)


# ----------------------------------------------------------------------- tables


def table_of_networks(networks: Sequence[NetworkResults]) -> str:
    """Accuracy of every row of several networks at every T."""
    networks = merged(networks)
    steps = {result.steps for network in networks for result in network.results}
    titles: Sequence[str] = ()
    rows = []
    for network in networks:
        titles, table = accuracy_table(network.results, network.ann, sorted(steps))
        rows.append(table)
    return _stacked(titles, networks, rows)


def costs_of_networks(networks: Sequence[NetworkResults]) -> str:
    """Accuracy and costs of every row of several networks."""

    def cells(network: NetworkResults, result: Result) -> Sequence[str]:
        costs = cost_cells(result)
        return (
            *costs[:_BITS],
            quantized_percent(network, result),
            *costs[_BITS:],
        )

    networks = merged(networks)
    rows = []
    for network in networks:
        rows.append([cells(network, result) for result in spiking(network)])
    return _stacked((*COSTS[:_BITS], QUANTIZED, *COSTS[_BITS:]), networks, rows)


QUANTIZED = "quantized ANN %"
# In front of this column of `COSTS` is the one of the quantized ANN.
_BITS = COSTS.index("bits")


def spiking(network: NetworkResults) -> list[Result]:
    """Its rows without those of `QUANTIZED_ANN` that stand beside others."""
    spiking_rows = [row for row in network.results if not _is_quantized_ann(row)]
    kinds = {_kind(row) for row in spiking_rows}

    def is_compared(row: Result) -> bool:
        return _is_quantized_ann(row) and _kind(row) in kinds

    return [row for row in network.results if not is_compared(row)]


def _is_quantized_ann(result: Result) -> bool:
    return result.recipe.split(",")[0] == QUANTIZED_ANN


def _kind(result: Result) -> tuple[object, ...]:
    """What a quantized ANN and an SNN have in common if they are compared."""
    return result.code, result.levels, result.steps


def quantized_percent(network: NetworkResults, result: Result) -> str:
    """The accuracy of an ANN whose activations have as many values; "" if unknown."""
    for row in network.results:
        if _is_quantized_ann(row) and _kind(row) == _kind(result):
            return percent(row)
    return ""


SUMMARY = (
    "recipe",
    "T",
    "latency",
    "accuracy %",
    *AGREEMENT,
    QUANTIZED,
    "ANN %",
    "spikes",
    *COSTS[-3:],
)


def summary_of_networks(networks: Sequence[NetworkResults]) -> str:
    """The most accurate row of each network, with its ANN and some of its costs."""

    def cells(network: NetworkResults) -> list[str]:
        best = _best_row(network)
        costs = dict(zip(COSTS, cost_cells(best), strict=True))
        costs[QUANTIZED] = quantized_percent(network, best)
        costs["ANN %"] = f"{100 * network.ann:.1f}"
        return [costs[title] for title in SUMMARY]

    networks = merged(networks)
    return _stacked(SUMMARY, networks, [[cells(network)] for network in networks])


def brief_of_networks(networks: Sequence[NetworkResults]) -> str:
    """The accuracies in percent of each ANN and its best SNN, and the SNN's spikes.

    Raises:
        ValueError: the rows are of more than one T.
    """
    networks = merged(networks)
    rows = [_best_row(network) for network in networks]
    steps = {row.steps for row in rows}
    if len(steps) > 1:
        raise ValueError(
            f"--brief compares networks at one T; found T in {sorted(steps)}. Add "
            "--steps with one of them"
        )
    cells = []
    for network, row in zip(networks, rows, strict=True):
        ann = f"{100 * network.ann:.1f}"
        cells.append([[ann, percent(row), f"{row.spikes:.2f}"]])
    (step,) = steps
    return _stacked(("ANN %", f"SNN %, T = {step}", "spikes"), networks, cells)


def _best_row(network: NetworkResults) -> Result:
    """The spiking row with the highest accuracy on the test images."""
    return max(spiking(network), key=lambda result: result.final)


LIMITS = (1, 2, 4, 8, 16, 32, 64)  # steps until the answer


def latencies_of_networks(networks: Sequence[NetworkResults]) -> str:
    """The best accuracy that each kind of spikes reaches within `LIMITS`."""

    def rows(network: NetworkResults) -> list[Sequence[str]]:
        by_kind: dict[str, list[Result]] = {}
        for result in spiking(network):
            kind = f"{result.code}, {result.spike.split()[0]}"
            by_kind.setdefault(kind, []).append(result)
        table = [
            (kind, *_best_within_limits(results)) for kind, results in by_kind.items()
        ]
        return [*table, ("ANN", *[f"{100 * network.ann:.1f}"] * len(LIMITS))]

    networks = merged(networks)
    titles = ["spikes"] + [f"within {limit}" for limit in LIMITS]
    return _stacked(titles, networks, map(rows, networks))


def _best_within_limits(results: Sequence[Result]) -> list[str]:
    """The highest accuracy that answers within each of `LIMITS`; "" without a row."""
    cells = []
    for limit in LIMITS:
        in_time = [result for result in results if result.latency <= limit]
        if in_time:
            cells.append(percent(max(in_time, key=lambda result: result.final)))
        else:
            cells.append("")
    return cells


def epochs_of_networks(networks: Sequence[NetworkResults]) -> str:
    """Accuracy of all fine-tunings, at the start and after each epoch; the ANN's."""
    networks = [network for network in merged(networks) if network.epochs]
    if not networks:
        raise ValueError(
            "none of these files is of a fine-tuning; give the metrics.json of "
            "experiments.finetune, or leave out --epochs"
        )
    rows: list[list[Sequence[str]]] = []
    longest = 0
    for network in networks:
        longest = max(longest, *map(len, network.epochs.values()))
    for network in networks:
        table = []
        for name, curve in network.epochs.items():
            percents = [f"{100 * accuracy:.1f}" for accuracy in curve]
            blanks = [""] * (longest - len(curve))
            table.append((f"`{name}`", *percents, *blanks, f"{100 * network.ann:.1f}"))
        rows.append(table)
    epochs = [str(epoch) for epoch in range(1, longest)]
    return _stacked(["fine-tuning", "epoch 0", *epochs, "ANN"], networks, rows)


def _stacked(
    head: Sequence[str],
    networks: Sequence[NetworkResults],
    rows_of_networks: Iterable[Iterable[Sequence[str]]],
) -> str:
    """One table; the name of a network is beside its first row.

    Columns that no row has a number in are left out, see `without_unknown_columns`.
    """
    lines = []
    for network, rows in zip(networks, rows_of_networks, strict=True):
        title = f"`{network.name}`"
        for cells in rows:
            lines.append((title, *cells))
            title = ""
    return markdown_table(*without_unknown_columns(("network", *head), lines))
