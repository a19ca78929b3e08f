"""Results of conversions: rows, which of them is chosen, tables and files.

A row is one recipe at one T and wait, over all seeds. Accuracies are compared as whole
numbers of right answers, so that rounding decides nothing.
"""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

import snnjax
from experiments.running import write


class Result(NamedTuple):
    """One row of the tables: a recipe at one T and wait, over all seeds.

    Attributes:
        recipe, wait, steps: what was converted.
        accuracies: per seed, after 1..T steps, on the test images.
        latency: steps until the answer is complete.
        firing_rate, synaptic_operations, measures: of the first seed's SNN.
        seconds: of the conversion, the median of the seeds; or of all epochs.
        choice_hits: per seed, right answers on the images that rows are chosen by.
        levels: of the spikes.
    """

    recipe: str
    wait: int
    steps: int
    accuracies: list[list[float]]
    latency: int
    firing_rate: float
    synaptic_operations: float
    seconds: float
    measures: snnjax.measures.Measures
    choice_hits: list[int] | None = None
    levels: tuple[int, int] = (0, 1)

    @property
    def name(self) -> str:
        """The recipe, with the levels unless they are binary."""
        low, high = self.levels
        return self.recipe if (low, high) == (0, 1) else f"{self.recipe} {low}:{high}"

    @property
    def final(self) -> float:
        """Mean accuracy after all T steps."""
        return statistics.mean(curve[-1] for curve in self.accuracies)

    @property
    def deviation(self) -> float:
        """Standard deviation of that accuracy over the seeds."""
        return deviation([curve[-1] for curve in self.accuracies])

    def hits(self, images: int) -> int:
        """Right answers after T steps, of so many test images and all seeds."""
        return sum(round(curve[-1] * images) for curve in self.accuracies)


def deviation(values: Sequence[float]) -> float:
    """Standard deviation; 0 of a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def choice(results: Sequence[Result]) -> Result:
    """The row whose first SNN is saved and shown.

    It has the most right answers on the images that rows are chosen by; of equal ones
    the lowest latency, and then the least energy. A row without such images is
    chosen only if no row has any.
    """

    def order(result: Result):
        spiking = snnjax.energy(result.measures).operations.spiking
        hits = -1 if result.choice_hits is None else sum(result.choice_hits)
        return hits, -result.latency, -float(spiking)

    return max(results, key=order)


def most_hits(results: Sequence[Result], images: int) -> dict[int, int]:
    """T -> the most right answers of a row with this T."""
    most: dict[int, int] = {}
    for result in results:
        most[result.steps] = max(most.get(result.steps, 0), result.hits(images))
    return most


def lines(results: Sequence[Result]) -> list[list[Result]]:
    """Rows that differ in T only, together."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.name, waits(result)), []).append(result)
    return list(groups.values())


def line_name(result: Result) -> str:
    """Recipe and wait, for a legend."""
    wait = waits(result)
    return result.name if wait == "0" else f"{result.name}, wait {wait}"


def waits(result: Result) -> str:
    """The wait as a person writes it: a number, or T."""
    # At T = 1 a wait of one step is also T; call it by the number.
    whole = result.wait == result.steps and result.wait > 1
    return "T" if whole else str(result.wait)


def percent(result: Result, digits: int = 1) -> str:
    """Mean accuracy in percent, with the deviation where there are several seeds."""
    several = len(result.accuracies) > 1
    spread = f" ± {100 * result.deviation:.{digits}f}" if several else ""
    return f"{100 * result.final:.{digits}f}{spread}"


# ---------------------------------------------------------------------- as text

NAME_WIDTH = 15  # columns for the names of rows, as long as those of recipes


def header(width: int = NAME_WIDTH) -> str:
    """The titles above `row`."""
    return (
        f"{'recipe':<{width}}{'wait':>5}{'T':>4}{'latency':>8}{'accuracy %':>15}"
        f"{'loss':>8}{'rate %':>8}{'SynOps M':>10}{'s':>7}"
    )


def row(result: Result, ann: float, width: int = NAME_WIDTH) -> str:
    """One line of the table, under `header`."""
    mean, spread = 100 * result.final, 100 * result.deviation
    # A name that is a little too long takes the room of the wait.
    wait = f" {result.wait}".rjust(width + 5 - len(result.name))
    seconds = (
        f"{result.seconds:.2f}" if result.seconds < 1000 else f"{result.seconds:.0f}"
    )
    return (
        f"{result.name}{wait}{result.steps:>4}{result.latency:>8}"
        f"{mean:>8.2f} ± {spread:4.2f}{100 * ann - mean:>8.2f}"
        f"{100 * result.firing_rate:>8.1f}{result.synaptic_operations / 1e6:>10.3f}"
        f"{seconds:>7}"
    )


def console_table(results: Sequence[Result], ann: float) -> str:
    """The table of these rows, as wide as the longest name."""
    width = max(NAME_WIDTH, *(len(result.name) for result in results))
    return "\n".join([header(width), *(row(result, ann, width) for result in results)])


def markdown(results: Sequence[Result], ann: float) -> str:
    """Accuracy of every recipe and wait at every T, as a table."""
    steps = sorted({result.steps for result in results})
    head = ("recipe", "wait", *(f"T = {t}" for t in steps))
    return markdown_table(head, accuracy_rows(results, ann, steps))


ENERGY_TITLES = ("energy, % of ANN", "with memory", "of quantized ANN")
COST_TITLES = ("bits", "rate %", "SynOps M", *ENERGY_TITLES)


def costs(results: Sequence[Result]) -> str:
    """Costs of every row, as a table."""
    head = ("recipe", "wait", "T", "latency", *COST_TITLES, "s")
    rows = [
        (
            *(f"`{result.name}`", waits(result), str(result.steps)),
            *(str(result.latency), *cost_cells(result), f"{result.seconds:.1f}"),
        )
        for result in results
    ]
    return markdown_table(head, rows)


def cost_cells(result: Result) -> tuple[str, ...]:
    """The cells under `COST_TITLES`."""
    estimates = snnjax.energy(result.measures)
    return (
        f"{float(result.measures.bits):.3g}",
        f"{100 * result.firing_rate:.1f}",
        operations(result, 1e6, 2),
        *(f"{100 * float(spiking / ann):.0f}" for spiking, ann in estimates),
    )


def operations(result: Result, unit: float, digits: int) -> str:
    """Synaptic operations; where they are not, as additions too, in brackets."""
    additions = float(result.measures.synaptic_additions)
    text = f"{result.synaptic_operations / unit:.{digits}f}"
    if np.isclose(additions, result.synaptic_operations, rtol=1e-5):
        return text
    return f"{text} ({additions / unit:.{digits}f})"


def accuracy_rows(
    results: Sequence[Result], ann: float, steps: Sequence[int]
) -> list[tuple[str, ...]]:
    """Recipe, wait and accuracy at every T; the last row is the ANN's."""
    cells: dict[tuple[str, str], dict[int, Result]] = {}
    for result in results:
        key = (f"`{result.name}`", waits(result))
        cells.setdefault(key, {})[result.steps] = result
    rows = [
        (*key, *(percent(row[t]) if t in row else "" for t in steps))
        for key, row in cells.items()
    ]
    return [*rows, ("ANN", "", *[f"{100 * ann:.1f}"] * len(steps))]


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    texts = [_line(head), "|---" * len(head) + "|", *map(_line, rows)]
    return "\n".join(texts) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "|" + "".join(f" {cell} |" if cell else " |" for cell in cells)


# ------------------------------------------------------------------------ files

ABOUT_COSTS = """\
What they cost per image, measured with the first draw on {images} {kind}:
steps until the answer; bits that a neuron sends; firing rate; synaptic operations in
millions, and in brackets as additions where spikes are graded. Energy in percent of
the ANN's: operations alone (0.9 pJ per addition, 4.6 pJ per multiply-add; 32-bit
floats, 45 nm: Horowitz, ISSCC 2014); the same with memory accesses; integer
operations, beside an ANN quantized to as many levels (`snnjax.energy`). Seconds of the
conversion (median), or of the epochs with an evaluation after each."""


def write_results(out: Path, facts: dict, results: Sequence[Result]) -> None:
    """The files metrics.json and results.md (two or three tables), in `out`."""
    metrics = {**facts, "results": [_plain(result._asdict()) for result in results]}
    write(out / "metrics.json", json.dumps(metrics, indent=1) + "\n")
    accuracy = markdown(results, facts["ann_accuracy"])
    if accuracies := facts.get("accuracy_after_epochs"):
        accuracy += "\n" + _of_epochs(accuracies)
    kind = facts.get("evaluated_on", "test images")  # version 0.1 has no other
    about = ABOUT_COSTS.format(images=facts["measured_images"], kind=kind)
    write(out / "results.md", f"{accuracy}\n{about}\n\n{costs(results)}")


def _of_epochs(accuracies: Sequence[float]) -> str:
    """The accuracy at the start, epoch 0, and after each epoch of training."""
    cells = [f"{100 * accuracy:.1f}" for accuracy in accuracies]
    head = ("epoch", *map(str, range(len(cells))))
    return markdown_table(head, [("accuracy %", *cells)])


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
