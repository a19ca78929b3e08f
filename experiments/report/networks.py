"""Results of several networks, read from files, as one table.

Rows of one network are together, from however many files; what contradicts itself is
refused. `experiments.results` is the command.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import snnjax
from experiments.report.results import (
    COST_TITLES,
    Result,
    accuracy_rows,
    cost_cells,
    line_name,
    markdown_table,
    percent,
    row,
    waits,
)


class NetworkResults(NamedTuple):
    """What was measured of one network.

    Attributes:
        name: of the network.
        results: its rows.
        ann: accuracy of the ANN.
        images: what it was evaluated on: data set, kind and number of its images.
        epochs: name of a fine-tuning -> accuracy at the start and after each epoch.
    """

    name: str
    results: list[Result]
    ann: float
    images: tuple[str, str, int]
    epochs: dict[str, list[float]]


def read_results(file: Path) -> NetworkResults:
    """What `write_results` wrote as metrics.json.

    Of a fine-tuning, the trained network: its conversion is a row of another file,
    where it has more draws.
    """
    if file.is_dir():
        file = file / "metrics.json"
    if not file.is_file():
        raise ValueError(
            f"no file {file}; give the metrics.json of a run, or the folder that it is "
            "in"
        )
    try:
        return _network_results(json.loads(file.read_text()))
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        reason = f"{type(error).__name__}: {str(error)[:80]}"
        raise ValueError(
            f"{file} was not written by experiments.convert or .finetune ({reason})"
        ) from None


def network_name(card: dict) -> str:
    """The model; with quantized ReLUs it is another network."""
    return card["model"] + ("_quantized" if card.get("levels") else "")


def _network_results(metrics: dict) -> NetworkResults:
    """Of the types that all tables and figures need, or any error."""
    accuracies = [float(a) for a in metrics.get("accuracy_after_epochs", ())]
    first = 1 if accuracies else 0
    results = [read_row(plain) for plain in metrics["results"][first:]]
    if not results:
        raise ValueError("no results")
    ann = float(metrics["ann_accuracy"])
    for result in results:
        row(result, ann)
        cost_cells(result)
        if any(len(curve) != result.steps for curve in result.accuracies):
            raise ValueError(f"not {result.steps} accuracies, one for each step")
    name = network_name(metrics["source"])
    if not name.isidentifier():  # it is the name of a file, too
        raise ValueError(f"model {name!r}")
    epochs = {}
    if accuracies:
        if accuracies[-1] != results[0].accuracies[0][-1]:
            raise ValueError("the last epoch has another accuracy than the row")
        epochs[f"{line_name(results[0])}, T = {results[0].steps}"] = accuracies
    kind = metrics.get("evaluated_on", "test images")
    images = (metrics["source"]["dataset"], kind, int(metrics["test_images"]))
    return NetworkResults(name, results, ann, images, epochs)


def read_row(plain: dict) -> Result:
    """A row of metrics.json; version 0.1 left out what binary spikes do not need."""
    measures = plain["measures"]
    binary = {
        "operators": {},
        "operator_macs": 0.0,
        "synaptic_additions": measures["synaptic_operations"],
        "bits": plain["steps"],
        "high": 1,
    }
    # JSON has no NaN.
    seconds = math.nan if plain["seconds"] is None else plain["seconds"]
    measures = snnjax.measures.Measures(**(binary | measures))
    levels = tuple(plain.get("levels", (0, 1)))
    return Result(**plain)._replace(seconds=seconds, measures=measures, levels=levels)


def table_of_networks(networks: Sequence[NetworkResults]) -> str:
    """`markdown` of several networks in one table; rows of the same one together."""
    networks = merged(networks)
    steps = sorted({result.steps for n in networks for result in n.results})
    head = ("network", "recipe", "wait", *(f"T = {t}" for t in steps))
    rows = []
    for name, results, ann, *_ in networks:
        for i, cells in enumerate(accuracy_rows(results, ann, steps)):
            rows.append((f"`{name}`" if i == 0 else "", *cells))
    return markdown_table(head, rows)


def with_steps(
    networks: Sequence[NetworkResults], steps: Sequence[int]
) -> list[NetworkResults]:
    """The rows of these T alone, of each file.

    Raises:
        ValueError: a file has no such row.
    """
    chosen = []
    for network in networks:
        rows = [result for result in network.results if result.steps in steps]
        if not rows:
            available = sorted({result.steps for result in network.results})
            raise ValueError(
                f"results of {network.name} have rows of T = "
                f"{', '.join(map(str, available))} alone; leave them out, or ask for "
                "one of these"
            )
        chosen.append(network._replace(results=rows))
    return chosen


def costs_of_networks(networks: Sequence[NetworkResults]) -> str:
    """Accuracy and costs of every row of several networks, as one table."""
    head = ("network", "recipe", "wait", "T", "latency", "accuracy %", *COST_TITLES)
    rows = []
    for name, results, *_ in merged(networks):
        for i, result in enumerate(results):
            network = f"`{name}`" if i == 0 else ""
            when = (waits(result), str(result.steps), str(result.latency))
            cells = (f"`{result.name}`", *when, percent(result), *cost_cells(result))
            rows.append((network, *cells))
    return markdown_table(head, rows)


def epochs_of_networks(networks: Sequence[NetworkResults]) -> str:
    """Accuracy at the start, and after each epoch, of all fine-tunings; the ANN's.

    Raises:
        ValueError: there is no fine-tuning.
    """
    networks = [network for network in merged(networks) if network.epochs]
    if not networks:
        raise ValueError(
            "none of these files is of a fine-tuning; give metrics.json of "
            "experiments.finetune, or leave out --epochs"
        )
    curves = [curve for network in networks for curve in network.epochs.values()]
    columns = range(max(map(len, curves)))
    head = ("network", "fine-tuning", "epoch 0", *map(str, columns[1:]), "ANN")
    rows = []
    for name, _, ann, _, epochs in networks:
        for i, (fine_tuning, curve) in enumerate(epochs.items()):
            cells = [f"{100 * accuracy:.1f}" for accuracy in (*curve, ann)]
            cells[-1:-1] = [""] * (len(columns) - len(curve))  # of shorter ones
            rows.append((f"`{name}`" if i == 0 else "", f"`{fine_tuning}`", *cells))
    return markdown_table(head, rows)


def merged(networks: Sequence[NetworkResults]) -> list[NetworkResults]:
    """The results of each network together, from however many files."""
    by_name: dict[str, NetworkResults] = {}
    for name, results, ann, images, epochs in networks:
        network = by_name.setdefault(name, NetworkResults(name, [], ann, images, {}))
        if network.images != images:
            raise ValueError(
                f"{name} was evaluated on {_described(network.images)} and on "
                f"{_described(images)}; allowed: results on the same images. Others "
                "have tables of their own"
            )
        if not math.isclose(network.ann, ann, abs_tol=1e-6):  # float32 in some files
            both = f"{100 * network.ann:.2f} % and {100 * ann:.2f} %"
            raise ValueError(
                f"{name} has {both} as an ANN; allowed: results of the same network on "
                "the same images"
            )
        for result in results:
            _add(result, network.results)
        for fine_tuning, accuracies in epochs.items():
            if network.epochs.setdefault(fine_tuning, accuracies) != accuracies:
                raise ValueError(
                    f"{fine_tuning} of {name} is there twice; allowed: one of each. "
                    "Runs of other options have tables of their own"
                )
    return list(by_name.values())


def _described(images: tuple[str, str, int]) -> str:
    dataset, kind, number = images
    return f"{number} {kind} of {dataset}"


def _add(result: Result, results: list[Result]) -> None:
    """Append a row, unless it is there already."""

    def place(result: Result):
        return result.name, result.wait, result.steps

    twin = next((other for other in results if place(other) == place(result)), None)
    if twin is None:
        results.append(result)
    elif twin._replace(seconds=0.0) != result._replace(seconds=0.0):
        raise ValueError(
            f"recipe {result.name}, T = {result.steps}, wait {result.wait} is there "
            f"twice, {percent(twin)} % and {percent(result)} %; allowed: one of each. "
            "Draws of one row come from one run, by --seeds; runs of other options "
            "have tables of their own"
        )
