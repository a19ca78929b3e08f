"""Results of several networks, read from files, as one table.

Rows of one network are put together, from however many files. Files that contradict
each other are refused. `experiments.results` is the command.
"""

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import snnjax
from experiments.report.results import (
    COSTS,
    Result,
    accuracy_table,
    cost_cells,
    line_name,
    markdown_table,
)


class NetworkResults(NamedTuple):
    """The results of one network.

    Attributes:
        name: of the network.
        results: its rows.
        ann: accuracy of the ANN.
        images: the images of the evaluation, e.g. "1000 test images of cifar10".
        epochs: name of a fine-tuning -> accuracy at the start and after each epoch.
        card: of the ANN.
    """

    name: str
    results: list[Result]
    ann: float
    images: str
    epochs: dict[str, list[float]]
    card: dict


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
    return card["model"] + ("_quantized" if card.get("levels") else "")


def _network_results(metrics: dict) -> NetworkResults:
    """From parsed JSON; any wrong type raises an error here, not in a table."""
    curve = [float(a) for a in metrics.get("accuracy_after_epochs", ())]
    results = [read_row(plain) for plain in metrics["results"][bool(curve) :]]
    if not results:
        raise ValueError("no results")
    for result in results:
        cost_cells(result)
        if any(len(accuracies) != result.steps for accuracies in result.accuracies):
            raise ValueError(f"not {result.steps} accuracies, one for each step")
    card, ann = metrics["source"], float(metrics["ann_accuracy"])
    name = network_name(card)
    if not name.isidentifier():  # it is also the name of a figure's file
        raise ValueError(f"model {name!r}")
    epochs = {}
    if curve:
        if curve[-1] != results[0].final:
            raise ValueError("the last epoch has another accuracy than the row")
        epochs[f"{line_name(results[0])}, T = {results[0].steps}"] = curve
    count, kind = int(metrics["test_images"]), metrics["evaluated_on"]
    images = f"{count} {kind} of {card['dataset']}"
    return NetworkResults(name, results, ann, images, epochs, card)


def read_row(plain: dict) -> Result:
    """A row of metrics.json."""
    # JSON has no NaN.
    seconds = math.nan if plain["seconds"] is None else float(plain["seconds"])
    counts = dict(plain["measures"])
    if "high" in counts:  # written before there were codes
        steps, high = counts["steps"], counts.pop("high")
        counts |= {"values": steps * high + 1, "operator_steps": steps}
    # Older files have the products of one step, and more fields.
    counts["operator_macs"] *= counts.pop("operator_steps", 1)
    for name in ("spikes", "operators"):
        counts.pop(name, None)
    measures = snnjax.measures.Measures(**counts)
    levels = tuple(plain["levels"])
    fields = plain | {"seconds": seconds, "measures": measures, "levels": levels}
    # Older files also say by which images a row was chosen.
    return Result(**{name: fields[name] for name in Result._fields if name in fields})


def merged(networks: Sequence[NetworkResults]) -> list[NetworkResults]:
    """The results of each network together, from however many files.

    Raises:
        ValueError: files of one network differ in the images, in the ANN, or in a row.
    """
    by_name: dict[str, NetworkResults] = {}
    for one in networks:
        name = one.name
        network = by_name.setdefault(name, one._replace(results=[], epochs={}))
        _check_same(f"the set of images of {name}", network.images, one.images)
        # Some files have float32.
        _check_same(
            f"the accuracy of the ANN {name}",
            *(f"{100 * accuracy:.3f} %" for accuracy in (network.ann, one.ann)),
        )
        for result in one.results:
            _add(name, result, network.results)
        for fine_tuning, curve in one.epochs.items():
            before = network.epochs.setdefault(fine_tuning, curve)
            _check_same(f"{fine_tuning} of {name}", before, curve)
    return list(by_name.values())


def _add(name: str, result: Result, results: list[Result]) -> None:
    """Append a row, unless the same row is there already."""
    for other in results:
        if (other.name, other.wait, other.steps) == (
            result.name,
            result.wait,
            result.steps,
        ):
            what = f"{line_name(result)}, T = {result.steps} of {name}"
            _check_same(what, *(r._replace(seconds=0.0) for r in (other, result)))
            return
    results.append(result)


def _check_same(what: str, one: object, other: object) -> None:
    if one != other:
        both = "" if isinstance(one, Result) else f": {one} and {other}"
        raise ValueError(
            f"{what} differs between the files{both}; results of other options need a "
            "table of their own, and draws of one row come from one run (--seeds)"
        )


def with_steps(
    networks: Sequence[NetworkResults], steps: Sequence[int]
) -> list[NetworkResults]:
    """The networks with only the rows of these T.

    Raises:
        ValueError: a network has no such row.
    """
    networks_with_rows = []
    for network in networks:
        rows = [result for result in network.results if result.steps in steps]
        if not rows:
            available = sorted({result.steps for result in network.results})
            raise ValueError(
                f"results of {network.name} have rows of T = "
                f"{', '.join(map(str, available))} only; ask for one of these"
            )
        networks_with_rows.append(network._replace(results=rows))
    return networks_with_rows


# ----------------------------------------------------------------------- tables


def table_of_networks(networks: Sequence[NetworkResults]) -> str:
    """Accuracy of every row of several networks at every T."""
    networks = merged(networks)
    steps = sorted({result.steps for n in networks for result in n.results})
    tables = [accuracy_table(n.results, n.ann, steps) for n in networks]
    return _stacked(tables[0][0], networks, [rows for _, rows in tables])


def costs_of_networks(networks: Sequence[NetworkResults]) -> str:
    """Accuracy and costs of every row of several networks."""
    networks = merged(networks)
    return _stacked(COSTS, networks, [map(cost_cells, n.results) for n in networks])


SUMMARY = ("recipe", "T", "latency", "accuracy %", "ANN %", "spikes")
SUMMARY += ("energy, % of ANN",)


def summary_of_networks(networks: Sequence[NetworkResults]) -> str:
    """The most accurate row of each network, with its ANN and some of its costs."""

    def cells(network: NetworkResults) -> list[str]:
        best = max(network.results, key=lambda result: result.final)
        costs = dict(zip(COSTS, cost_cells(best), strict=True))
        costs["ANN %"] = f"{100 * network.ann:.1f}"
        return [costs[title] for title in SUMMARY]

    networks = merged(networks)
    return _stacked(SUMMARY, networks, [[cells(network)] for network in networks])


def epochs_of_networks(networks: Sequence[NetworkResults]) -> str:
    """Accuracy of all fine-tunings, at the start and after each epoch; the ANN's.

    Raises:
        ValueError: there is no fine-tuning.
    """
    networks = [network for network in merged(networks) if network.epochs]
    if not networks:
        raise ValueError(
            "none of these files is of a fine-tuning; give the metrics.json of "
            "experiments.finetune, or leave out --epochs"
        )
    longest = max(len(curve) for n in networks for curve in n.epochs.values())
    head = ("fine-tuning", "epoch 0", *map(str, range(1, longest)), "ANN")

    def rows(network: NetworkResults) -> Iterator[Sequence[str]]:
        for name, curve in network.epochs.items():
            *percents, ann = (
                f"{100 * accuracy:.1f}" for accuracy in (*curve, network.ann)
            )
            yield f"`{name}`", *percents, *[""] * (longest - len(curve)), ann

    return _stacked(head, networks, map(rows, networks))


def _stacked(
    head: Sequence[str],
    networks: Sequence[NetworkResults],
    rows_of_networks: Iterable[Iterable[Sequence[str]]],
) -> str:
    """One table; the name of a network is beside its first row."""
    lines = [
        ("" if i else f"`{network.name}`", *cells)
        for network, rows in zip(networks, rows_of_networks, strict=True)
        for i, cells in enumerate(rows)
    ]
    return markdown_table(("network", *head), lines)
