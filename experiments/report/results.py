"""Results of conversions: rows, tables and files.

A row is one recipe at one T and one wait, over all seeds. Accuracies are compared as
numbers of right answers, so that rounding decides nothing.
"""

import json
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import snnjax
from experiments.running import write


class Result(NamedTuple):
    """One recipe at one T and wait, over all seeds; measures are of the first one."""

    recipe: str
    wait: int
    steps: int
    accuracies: list[list[float]]  # per seed, after 1..T steps, on the test images
    latency: int  # steps until the answer is complete
    firing_rate: float
    synaptic_operations: float
    seconds: float  # median of the conversions, or sum of all epochs
    measures: snnjax.measures.Measures
    levels: tuple[int, int] = (0, 1)
    code: str = "rate"  # of experiments.running.CODES
    # (Right answers, answers) of all seeds, on images that no calibration used and no
    # table reports; None: not evaluated on such images.
    held_out: tuple[int, int] | None = None
    # Of each seed, on the test images after T steps; None: the file is older.
    equal_answers: list[float] | None = None  # share with the class that the ANN gives
    output_errors: list[float] | None = None  # |y_snn - y_ann|^2 / |y_ann - mean|^2

    @property
    def spike(self) -> str:
        """What a spike is: binary, signed, or graded with its levels."""
        return spike_of(self.levels)

    @property
    def name(self) -> str:
        """See `name_of`."""
        return name_of(self.recipe, self.code, self.levels)

    @property
    def spikes(self) -> float:
        """Spikes per neuron and inference, of either sign."""
        return self.steps * self.firing_rate

    @property
    def final(self) -> float:
        """Mean accuracy after all T steps."""
        return statistics.mean(curve[-1] for curve in self.accuracies)

    @property
    def deviation(self) -> float:
        """Standard deviation of that accuracy over the seeds."""
        return deviation([curve[-1] for curve in self.accuracies])


def spike_of(levels: tuple[int, int]) -> str:
    """What a spike of these levels is."""
    low, high = levels
    if (low, high) == (0, 1):
        return "binary"
    if (low, high) == (-1, 1):
        return "signed"
    return f"graded {low}:{high}"


def name_of(recipe: str, code: str, levels: tuple[int, int]) -> str:
    """The recipe, the code unless it is rate, and what a spike is."""
    spike = spike_of(levels)
    if code != "rate":
        spike = f"{code} {spike}"
    return f"{recipe}, {spike}"


def deviation(values: Sequence[float]) -> float:
    """Standard deviation; 0 for a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def most_accurate(results: Sequence[Result]) -> Result:
    """The row with the most right held-out answers; of equal ones, of fewest spikes.

    Without held-out answers it is the last row.
    """
    judged = [result for result in results if result.held_out is not None]
    if not judged:
        return results[-1]
    return max(judged, key=lambda row: (held_out_share(row), -row.spikes))


def held_out_share(result: Result) -> float:
    """The share of right answers on the held-out images, 0..1."""
    assert result.held_out is not None
    right, count = result.held_out
    return right / count


def choice(results: Sequence[Result]) -> Result:
    """The row to save: the earliest of those as good as the best one, but for chance.

    Of n held-out answers a share q is right. A row is as good as the best one if they
    differ by no more than a standard error of their difference:

        q_best - q <= sqrt(s_best^2 + s^2)
        s^2 = p (1 - p) / n,  p = (n q + 1) / (n + 2)

    That is the rule of one standard error (Breiman et al. 1984), with Laplace's p, so
    that a row without errors is not certain either. Among these rows the lowest latency
    wins, then the fewest spikes. Without held-out answers it is the last row.
    """
    judged = [result for result in results if result.held_out is not None]
    if not judged:
        return results[-1]

    def variance(result: Result) -> float:
        right, count = result.held_out
        p = (right + 1) / (count + 2)
        return p * (1 - p) / count

    best = most_accurate(judged)
    as_good = []
    for result in judged:
        standard_error = math.sqrt(variance(best) + variance(result))
        difference = held_out_share(best) - held_out_share(result)
        if difference <= standard_error:
            as_good.append(result)
    # Of equal ones, min takes the most accurate row.
    return min(
        as_good,
        key=lambda row: (row.latency, row.spikes, -held_out_share(row)),
    )


def lines(results: Iterable[Result]) -> list[list[Result]]:
    """Rows grouped by name and wait: the rows of a group differ in T."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((result.name, waits(result)), []).append(result)
    return list(groups.values())


def line_name(result: Result) -> str:
    """Recipe and wait, for a legend."""
    wait = waits(result)
    return result.name if wait == "0" else f"{result.name}, wait {wait}"


def waits(result: Result) -> str:
    """The wait as a person writes it: a number, T, or T - 1."""
    # At T = 1, a wait of one step is also T; it is shown as a number.
    if result.wait > 1 and result.wait == result.steps:
        return "T"
    if result.wait > 1 and result.wait == result.steps - 1:
        return "T - 1"
    return str(result.wait)


def equal_percent(result: Result, digits: int = 1) -> str:
    """Mean share of equal answers in percent; "" if unknown."""
    if result.equal_answers is None:
        return ""
    return f"{100 * statistics.mean(result.equal_answers):.{digits}f}"


def output_error(result: Result) -> str:
    """Mean error of the outputs; "" if unknown, or if the ANN's are all equal."""
    errors = result.output_errors
    if errors is None or not all(map(_is_finite, errors)):
        return ""
    return f"{statistics.mean(errors):.2g}"


def _is_finite(number: float | None) -> bool:
    # JSON has None in place of NaN.
    return number is not None and math.isfinite(number)


def percent(result: Result, digits: int = 1) -> str:
    """Mean accuracy in percent, with its deviation if there are several seeds."""
    mean = f"{100 * result.final:.{digits}f}"
    if len(result.accuracies) == 1:
        return mean
    return f"{mean} ± {100 * result.deviation:.{digits}f}"


# ----------------------------------------------------------------------- tables

CONSOLE = "{:<{width}}{:>5}{:>4}{:>8}{:>13}{:>7}{:>8}{:>7}{:>5}"
NAME_WIDTH = 22  # of the longest name of a recipe; then a row has 79 columns
LEGEND = """\
radix: spikes are digits, otherwise all count the same; T: steps in which a
neuron fires, after the wait of its layer; latency: steps until the answer;
±: standard deviation over draws of calibration images; equal: % of answers
that are those of the ANN; error: of the outputs, squared, in parts of the
ANN's variance; spikes: per neuron and image; s: of the conversion
"""


def header(width: int = NAME_WIDTH) -> str:
    """The titles above `row`."""
    return CONSOLE.format(
        "recipe",
        "wait",
        "T",
        "latency",
        "accuracy %",
        "equal",
        "error",
        "spikes",
        "s",
        width=width,
    )


def row(result: Result, width: int = NAME_WIDTH) -> str:
    """One line of the table on the terminal, under `header`."""
    # A column of five characters holds 99.9 and 9999.
    digits = 1 if result.seconds < 99.95 else 0
    return CONSOLE.format(
        result.name,
        result.wait,
        result.steps,
        result.latency,
        percent(result, 2),
        equal_percent(result, 2),
        output_error(result),
        f"{result.spikes:.2f}",
        f"{result.seconds:.{digits}f}",
        width=width,
    )


def console_table(results: Sequence[Result]) -> str:
    """The table of these rows, as wide as the longest name."""
    width = max(NAME_WIDTH, *(len(result.name) for result in results))
    text_lines = [header(width)]
    text_lines += [row(result, width) for result in results]
    return "\n".join(text_lines)


# Titles of the columns, and rows of cells in Markdown.
Table = tuple[Sequence[str], Sequence[Sequence[str]]]


def without_unknown_columns(
    head: Sequence[str], rows: Sequence[Sequence[str]]
) -> tuple[list[str], list[list[str]]]:
    """The table without those columns of `AGREEMENT` that no row has a number in."""
    kept = []
    for column, title in enumerate(head):
        if title not in AGREEMENT or any(row[column] for row in rows):
            kept.append(column)
    titles = [head[column] for column in kept]
    return titles, [[row[column] for column in kept] for row in rows]


def markdown_table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown."""
    titles = list(head)
    text_lines = [_markdown_row(titles), "|---" * len(titles) + "|"]
    text_lines += [_markdown_row(cells) for cells in rows]
    return "\n".join([*text_lines, ""])


def _markdown_row(cells: Iterable[str]) -> str:
    text = "|"
    for cell in cells:
        text += f" {cell} |" if cell else " |"
    return text


def accuracy_table(
    results: Sequence[Result], ann: float, steps: Iterable[int] = ()
) -> Table:
    """Accuracy of every recipe and wait at every T; the last row is the ANN's.

    Args:
        steps: the T of the columns; by default those of the rows.
    """
    columns = sorted(steps or {result.steps for result in results})
    rows = []
    for line in lines(results):
        accuracies = {result.steps: percent(result) for result in line}
        cells = [f"`{line[0].name}`", waits(line[0])]
        cells += [accuracies.get(t, "") for t in columns]
        rows.append(cells)
    rows.append(["ANN", ""] + [f"{100 * ann:.1f}"] * len(columns))
    titles = ["recipe", "wait"] + [f"T = {t}" for t in columns]
    return titles, rows


# Columns that older results leave empty.
AGREEMENT = ("equal %", "error")
COSTS = (
    "recipe",
    "wait",
    "T",
    "latency",
    "accuracy %",
    *AGREEMENT,
    "bits",
    "spikes",
    "SynOps M",
    "energy, % of ANN",
    "with memory",
    "of quantized ANN",
)


def cost_cells(result: Result) -> tuple[str, ...]:
    """The cells under `COSTS`."""
    measures = result.measures
    additions = float(measures.synaptic_additions)
    operations = f"{result.synaptic_operations / 1e6:.2f}"
    if not np.isclose(additions, result.synaptic_operations, rtol=1e-5):
        # A graded spike takes several additions.
        operations += f" ({additions / 1e6:.2f})"
    operations_alone, with_memory, quantized, _ = snnjax.energy(measures)
    return (
        f"`{result.name}`",
        waits(result),
        str(result.steps),
        str(result.latency),
        percent(result),
        equal_percent(result),
        output_error(result),
        f"{float(measures.bits):.3g}",
        f"{result.spikes:.2f}",
        operations,
        _energy_percent(operations_alone),
        _energy_percent(with_memory),
        _energy_percent(quantized),
    )


def _energy_percent(estimate: tuple[float, float]) -> str:
    """The energy of the SNN in percent of that of the ANN."""
    spiking, ann = estimate
    return f"{100 * float(spiking / ann):.0f}"


# ------------------------------------------------------------------------ files

ABOUT_AGREEMENT = """\
`equal %`: answers of the SNN that are those of the ANN, right or wrong. `error`: of the
outputs, |y_snn - y_ann|^2 / |y_ann - mean|^2, each sum over the images that the
accuracy is measured on.
"""
ABOUT_COSTS = """\
A number behind ± is the standard deviation over draws of calibration images.
Costs per image, measured on {images} {kind} with the SNN of the first draw.
`latency`: steps until the answer is complete. `bits`: what a neuron sends in one
inference. `spikes`: per neuron and inference, of either sign. `SynOps M`: synaptic
operations in millions; in brackets the additions that they need, if spikes are graded.
`energy`: of the operations alone (0.9 pJ per addition, 4.6 pJ per multiply-add; 32-bit
floats, 45 nm: Horowitz, ISSCC 2014). `with memory` adds all memory accesses. `of
quantized ANN` compares integer operations with an ANN whose neurons tell as many values
apart (`snnjax.energy`). `s`: median seconds of a conversion, or seconds of all epochs
with an evaluation after each.
"""


PARTS = ("inherited", "clipping", "flooring", "unevenness")


def relative_errors(site: snnjax.measures.SiteMeasures) -> list[float]:
    """Error and its `PARTS` in percent of the activation; NaN where that is zero."""
    activation = float(site.activation) or math.nan
    errors = (
        site.error,
        site.inherited,
        site.clipping,
        site.flooring,
        site.unevenness,
    )
    return [100 * float(error) / activation for error in errors]


def site_table(result: Result, sites: snnjax.network.Sites) -> Table:
    """A row of measures per site.

    Errors are RMS in percent of the RMS activation, "–" where that is zero.
    """
    head = ["site", "kind", "shape", "depth"]
    head += ["rate %", "silent %", "saturated %", "error %"]
    head += [f"{part} %" for part in PARTS]
    rows = []
    for site in sites:
        shape = "×".join(map(str, site.shape))
        cells = [f"`{site.name}`", site.kind, shape, str(site.depth)]
        measures = result.measures.sites.get(site.name)
        if measures is None:
            # A site that does not fire.
            cells += [""] * (len(head) - len(cells))
        else:
            shares = (measures.firing_rate, measures.silent, measures.saturated)
            percents = [100 * float(share) for share in shares]
            percents += relative_errors(measures)
            cells += ["–" if math.isnan(x) else f"{x:.1f}" for x in percents]
        rows.append(cells)
    return head, rows


def write_results(
    out: Path,
    facts: dict,
    results: Sequence[Result],
    sites: snnjax.network.Sites,
) -> None:
    """Write metrics.json, and results.md with the same numbers and the figures.

    Args:
        facts: what all rows share, as in ``experiments.convert.facts_of``.
    """
    write_metrics(out / "metrics.json", facts, results)
    saved = choice(results)
    titles, rows = site_table(saved, sites)
    parts = [
        tables_of(facts, results),
        f"Sites of `{line_name(saved)}`, T = {saved.steps}, which is saved:\n",
        markdown_table(titles, rows),
        "![accuracy](accuracy.png)\n",
        "![layers](layers.png)\n",
    ]
    write(out / "results.md", "\n".join(parts))


def write_metrics(file: Path, facts: dict, results: Sequence[Result]) -> None:
    """Write metrics.json alone."""
    metrics = {**facts, "results": [_plain(result._asdict()) for result in results]}
    write(file, json.dumps(metrics, indent=1) + "\n")


def tables_of(facts: dict, results: Sequence[Result]) -> str:
    """Accuracies, those of a fine-tuning after its epochs, and costs."""
    titles, rows = accuracy_table(results, facts["ann_accuracy"])
    parts = [markdown_table(titles, rows)]
    curve = facts.get("accuracy_after_epochs")
    if curve:
        numbers = [str(epoch) for epoch in range(len(curve))]
        accuracies = [f"{100 * accuracy:.1f}" for accuracy in curve]
        parts.append(markdown_table(["epoch", *numbers], [["accuracy %", *accuracies]]))
    parts.append(
        ABOUT_COSTS.format(images=facts["measured_images"], kind=facts["evaluated_on"])
    )
    cost_rows = [[*cost_cells(result), f"{result.seconds:.1f}"] for result in results]
    titles, rows = without_unknown_columns([*COSTS, "s"], cost_rows)
    if set(AGREEMENT) & set(titles):
        parts.append(ABOUT_AGREEMENT)
    parts.append(markdown_table(titles, rows))
    return "\n".join(parts)


def _plain(value: Any) -> Any:
    """The same value with dictionaries for NamedTuples and numbers for arrays."""
    if hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        value = value.item()
    return None if value != value else value  # JSON has no NaN
