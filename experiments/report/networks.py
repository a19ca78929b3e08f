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
    percent,
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
        percents = (f"{100 * accuracy:.3f} %" for accuracy in (network.ann, one.ann))
        _check_same(f"the accuracy of the ANN {name}", *percents)
        for result in one.results:
            row = f"{line_name(result)}, T = {result.steps} of {name}"
            others = [r for r in network.results if _key(r) == _key(result)]
            for other in others:
                _check_same(row, *(r._replace(seconds=0.0) for r in (other, result)))
            if not others:
                network.results.append(result)
        for fine_tuning, curve in one.epochs.items():
            before = network.epochs.setdefault(fine_tuning, curve)
            _check_same(f"{fine_tuning} of {name}", before, curve)
    return list(by_name.values())


def _key(result: Result) -> tuple[str, int, int]:
    return result.name, result.wait, result.steps


def _check_same(what: str, one: object, other: object) -> None:
    if one != other:
        both = "" if isinstance(one, Result) else f": {one} and {other}"
        raise ValueError(
            f"{what} differs between the files{both}; results of other options need a "
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
    steps = sorted({result.steps for n in networks for result in n.results})
    tables = [accuracy_table(n.results, n.ann, steps) for n in networks]
    return _stacked(tables[0][0], networks, [rows for _, rows in tables])


def costs_of_networks(networks: Sequence[NetworkResults]) -> str:
    """Accuracy and costs of every row of several networks."""
    networks = merged(networks)
    head = (*COSTS[:5], QUANTIZED, *COSTS[5:])

    def cells(network: NetworkResults, result: Result) -> Sequence[str]:
        costs = cost_cells(result)
        return (*costs[:5], quantized_percent(network, result), *costs[5:])

    rows = [[cells(n, result) for result in spiking(n)] for n in networks]
    return _stacked(head, networks, rows)


QUANTIZED = "quantized ANN %"


def spiking(network: NetworkResults) -> list[Result]:
    """Its rows without those of `QUANTIZED_ANN` that stand beside others."""
    others = {_kind(r) for r in network.results if not _is_quantized_ann(r)}

    def is_beside(result: Result) -> bool:
        return _is_quantized_ann(result) and _kind(result) in others

    return [result for result in network.results if not is_beside(result)]


def _is_quantized_ann(result: Result) -> bool:
    return result.recipe.split(",")[0] == QUANTIZED_ANN


def _kind(result: Result) -> tuple[object, ...]:
    return result.code, result.levels, result.steps


def quantized_percent(network: NetworkResults, result: Result) -> str:
    """The accuracy of an ANN whose activations have as many values; "" if unknown."""
    same = (r for r in network.results if _kind(r) == _kind(result))
    return next((percent(r) for r in same if _is_quantized_ann(r)), "")


SUMMARY = ("recipe", "T", "latency", "accuracy %", QUANTIZED, "ANN %", "spikes")
SUMMARY += COSTS[-3:]


def summary_of_networks(networks: Sequence[NetworkResults]) -> str:
    """The most accurate row of each network, with its ANN and some of its costs."""

    def cells(network: NetworkResults) -> list[str]:
        best = max(spiking(network), key=lambda result: result.final)
        costs = dict(zip(COSTS, cost_cells(best), strict=True))
        costs[QUANTIZED] = quantized_percent(network, best)
        costs["ANN %"] = f"{100 * network.ann:.1f}"
        return [costs[title] for title in SUMMARY]

    networks = merged(networks)
    return _stacked(SUMMARY, networks, [[cells(network)] for network in networks])


LIMITS = (1, 2, 4, 8, 16, 32, 64)  # steps until the answer


def latencies_of_networks(networks: Sequence[NetworkResults]) -> str:
    """The best accuracy that each kind of spikes reaches within `LIMITS`."""

    def rows(network: NetworkResults) -> Iterator[Sequence[str]]:
        of_network = spiking(network)
        kinds = [f"{r.code}, {r.spike.split()[0]}" for r in of_network]
        for kind in dict.fromkeys(kinds):
            results = [r for r, k in zip(of_network, kinds, strict=True) if k == kind]
            in_time = ([r for r in results if r.latency <= most] for most in LIMITS)
            best = (max(rows, key=lambda r: r.final, default=None) for rows in in_time)
            yield kind, *("" if row is None else percent(row) for row in best)
        yield "ANN", *[f"{100 * network.ann:.1f}"] * len(LIMITS)

    networks = merged(networks)
    head = ("spikes", *(f"within {most}" for most in LIMITS))
    return _stacked(head, networks, map(rows, networks))


def epochs_of_networks(networks: Sequence[NetworkResults]) -> str:
    """Accuracy of all fine-tunings, at the start and after each epoch; the ANN's."""
    networks = [network for network in merged(networks) if network.epochs]
    if not networks:
        raise ValueError(
            "none of these files is of a fine-tuning; give the metrics.json of "
            "experiments.finetune, or leave out --epochs"
        )
    longest = max(len(curve) for n in networks for curve in n.epochs.values())
    head = ("fine-tuning", "epoch 0", *map(str, range(1, longest)), "ANN")

    def cells(name: str, curve: Sequence[float], ann: float) -> Sequence[str]:
        percents = [f"{100 * accuracy:.1f}" for accuracy in curve]
        blanks = [""] * (longest - len(curve))
        return f"`{name}`", *percents, *blanks, f"{100 * ann:.1f}"

    rows = [[cells(*curve, n.ann) for curve in n.epochs.items()] for n in networks]
    return _stacked(head, networks, rows)


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
