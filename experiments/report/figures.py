"""Figures of results: accuracy, errors and firing rates of the sites."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.report.drawing import BAR, INK, SERIES, WIDTH, new_figure
from experiments.report.networks import NetworkResults, merged, spiking
from experiments.report.results import (
    PARTS,
    Result,
    choice,
    line_name,
    lines,
    relative_errors,
)

COLORS = len(SERIES)  # lines of a panel, each with a color of its own


# --------------------------------------------------------------------- accuracy


class Panel(NamedTuple):
    """Curves of accuracy."""

    title: str
    x_label: str
    # Name of a curve -> x, and y in percent.
    series: dict[str, tuple[Sequence[float], Sequence[float]]]
    ann: float  # its accuracy, 0..1
    # Whether x has a logarithmic axis, and y is stretched near the accuracy of the ANN,
    # where curves meet.
    is_log: bool = False

    def draw(self, axis: Any) -> None:
        """Draw the curves, and the accuracy of the ANN as a horizontal line."""
        from matplotlib.ticker import MaxNLocator

        for name, (x, y) in self.series.items():
            axis.plot(x, y, label=name, markevery=max(1, len(x) // 16))
        percent = 100 * self.ann
        axis.axhline(percent, color=INK, linewidth=1, linestyle="--", marker="")
        # The label is on the left, where most curves are far below.
        axis.annotate(
            f"ANN {percent:.1f}",
            (0.02, percent),
            xycoords=("axes fraction", "data"),
            xytext=(0, 3),
            textcoords="offset points",
            zorder=1.5,  # behind the curves, so that it hides no mark
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
        )
        low, high = axis.get_ylim()
        # A tenth of a percent must not look like a slope.
        low = min(low, high - 2)
        axis.set_ylim(low, max(high, percent + 0.08 * (high - low)))
        axis.set(title=self.title, xlabel=self.x_label, ylabel="accuracy in %")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        if self.is_log:
            _make_logarithmic(axis)
            _stretch(axis)


def _make_logarithmic(axis: Any) -> None:
    """Make x logarithmic, with powers of two as ticks."""
    from matplotlib.ticker import LogLocator

    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_locator(LogLocator(base=2, numticks=7))
    axis.xaxis.set_major_formatter(lambda x, place: f"{x:.3g}" if x < 1 else f"{x:.0f}")
    axis.minorticks_off()
    # An axis without points has a negative end.
    first, last = np.log2(np.maximum(axis.get_xlim(), 1e-3))
    if np.floor(last) <= np.ceil(first):
        # Show two powers of two or more.
        axis.set_xlim(2.0 ** np.floor(first), 2.0 ** np.ceil(last))


def _stretch(axis: Any) -> None:
    """Make y logarithmic in the distance to 2 points above the highest curve."""
    low = max(0, axis.get_ylim()[0])
    high = max(max(line.get_ydata(), default=low) for line in axis.lines)
    ceiling = high + 2

    def height(y):
        return -np.log2(np.maximum(ceiling - y, 1e-3))

    def inverse(height):
        return ceiling - 2.0**-height

    axis.set_yscale("function", functions=(height, inverse))
    axis.set_ylim(low, high + 0.5)
    # Ticks at round numbers, as many as leave space for their labels.
    unit = 5 if high - low > 30 else 1
    space = (height(high) - height(low)) / 8
    ticks = [high // unit * unit]
    for y in np.arange(ticks[0], low, -unit):
        if height(ticks[-1]) - height(y) >= space:
            ticks.append(y)
    axis.set_yticks(ticks)


COSTS: dict[str, tuple[str, Callable[[Result], float]]] = {
    "T": ("T", lambda result: result.steps),
    "latency": ("latency, steps until the answer", lambda result: result.latency),
    "spikes": ("spikes per neuron and image", lambda result: result.spikes),
}


def against(results: Sequence[Result], ann: float, cost: str) -> Panel:
    """Accuracy of each conversion against one of `COSTS`."""
    x_label, cost_of = COSTS[cost]
    series = {}
    for line in lines(results):
        points = []
        for row in line:
            # A silent SNN costs no spikes and has no place on a logarithmic axis.
            if cost_of(row):
                points.append((cost_of(row), 100 * row.final))
        points.sort()
        # A curve without points keeps the colors of the others.
        x = [paid for paid, _ in points]
        y = [percent for _, percent in points]
        series[line_name(line[0])] = x, y
    return Panel(f"against {cost}", x_label, series, ann, is_log=True)


def read_early(results: Sequence[Result], ann: float) -> Panel:
    """Accuracy after each step; each line is the conversion with the largest T."""
    series = {}
    for line in lines(results):
        row = max(line, key=lambda row: row.steps)
        name = line_name(row)
        if row.wait:
            first = row.latency - row.steps + 1
            name += f" (t = 1 at step {first})"
        curve = 100 * np.mean(row.accuracies, axis=0)
        series[name] = range(1, row.steps + 1), curve.tolist()
    longest = max(result.steps for result in results)
    title = f"one run at T = {longest}, read early"
    return Panel(title, "t, steps read", series, ann)


def after_epochs(curves: Mapping[str, Sequence[float]], ann: float) -> Panel:
    """Accuracy at the start of a fine-tuning, 0, and after each epoch."""
    series = {}
    for name, curve in curves.items():
        percents = [100 * accuracy for accuracy in curve]
        series[name] = range(len(curve)), percents
    return Panel("accuracy after each epoch of training", "epochs", series, ann)


def write_accuracy(path: Path, *groups: Sequence[Panel]) -> None:
    """Panels in rows of two, each group with a legend in an empty cell, or below.

    A page shows two panels at the size of its text, three would be too small.
    """
    panels = groups[0]
    ncols, nrows = min(2, len(panels)), math.ceil(len(panels) / 2)
    height = 310 * nrows
    has_empty_cell = len(panels) % ncols == 1
    legend_columns = 0
    if not has_empty_cell:
        # The legend is below, with as many columns as the longest name leaves; each
        # panel has its part of it.
        names = [name for group in groups for name in group[0].series]
        column_width = max(map(len, names), default=0) * 7 + 45
        panel_columns = max(1, WIDTH // column_width)
        legend_columns = ncols * panel_columns
        curves = max(len(group[0].series) for group in groups)
        height += 20 * math.ceil(math.ceil(curves / ncols) / panel_columns)
    figure = new_figure(
        path,
        width=ncols * WIDTH,
        height=height * len(groups),
        legend=legend_columns,
        legend_parts=ncols,
        groups=len(groups),
        nrows=nrows,
        ncols=ncols,
    )
    with figure as (_, axes):
        for cells, group in zip(np.split(axes, len(groups)), groups, strict=True):
            for axis, panel in zip(cells, group, strict=False):
                panel.draw(axis)
            if has_empty_cell:
                handles, labels = cells[0].get_legend_handles_labels()
                cells[-1].axis("off")
                cells[-1].legend(handles, labels, loc="center")


# Kind of spikes -> marker and line.
KINDS = {"rate, binary": "o:", "rate, signed or graded": "^--", "radix": "s-"}


def kind_of(row: Result) -> str:
    """One of `KINDS`."""
    if row.code != "rate":
        return "radix"
    if row.spike == "binary":
        return "rate, binary"
    return "rate, signed or graded"


def groups_of(results: Sequence[Result]) -> list[list[Result]]:
    """The rows of each figure: all of them, if there is a color for each line.

    Otherwise each kind of spikes has figures of its own, of `COLORS` lines at most.
    """
    if len(lines(results)) <= COLORS:
        return [list(results)]
    by_kind: dict[str, list[Result]] = {}
    for row in results:
        by_kind.setdefault(kind_of(row), []).append(row)
    groups = []
    for rows in by_kind.values():
        kind_lines = lines(rows)
        for start in range(0, len(kind_lines), COLORS):
            groups.append(sum(kind_lines[start : start + COLORS], []))
    return groups


def draw_networks(
    networks: Sequence[NetworkResults], folder: Path, costs: Sequence[str] = (*COSTS,)
) -> None:
    """Draw NAME.png for each network: accuracy against some `COSTS`, a panel each.

    Where there are fine-tunings, also NAME_epochs.png: accuracy against epochs.
    """
    for network in merged(networks):
        name, ann = network.name, network.ann
        panels = []
        for rows in groups_of(network.results):
            panels.append([against(rows, ann, cost) for cost in costs])
        write_accuracy(folder / f"{name}.png", *panels)
        if network.epochs:
            file = folder / f"{name}_epochs.png"
            write_accuracy(file, [after_epochs(network.epochs, ann)])


def frontier(
    results: Sequence[Result], ann: float, cost: str = "spikes"
) -> list[tuple[float, float]]:
    """(Cost, points lost) of the conversions of which none loses less for a lower cost.

    A tenth of a point, or a gain, counts as 0.1, the least that the figure shows.
    """
    cost_of = COSTS[cost][1]
    pairs = [(cost_of(row), max(0.1, 100 * (ann - row.final))) for row in results]
    best: list[tuple[float, float]] = []
    for paid, loss in sorted(pairs):
        if paid and (not best or loss < best[-1][1]):
            best.append((paid, loss))
    return best


def draw_points_lost(networks: Sequence[NetworkResults], folder: Path) -> None:
    """Draw points_lost_COST.png for spikes and latency: two networks in each panel."""
    networks = merged(networks)
    nrows, ncols = math.ceil(len(networks) / 4), min(2, math.ceil(len(networks) / 2))
    for cost in ("spikes", "latency"):
        figure = new_figure(
            folder / f"points_lost_{cost}.png",
            width=ncols * WIDTH,
            height=40 + 300 * nrows,
            legend=len(KINDS),
            legend_parts=2,
            nrows=nrows,
            ncols=ncols,
            sharex=True,
            sharey=True,
        )
        with figure as (_, axes):
            # The legend describes the first axis: markers and lines without a color.
            for kind, style in KINDS.items():
                axes[0].plot([], [], style, color=INK, label=kind)
            for i, network in enumerate(networks):
                _draw_frontier(axes[i // 2], network, cost, is_first=i % 2 == 0)
            for axis in axes:
                _style_points_lost(axis, COSTS[cost][0])


def _draw_frontier(
    axis: Any, network: NetworkResults, cost: str, is_first: bool
) -> None:
    """Draw the frontier of each kind of spikes of the first or second of a panel."""
    color = SERIES[0] if is_first else SERIES[1]
    axis.set_title(network.name, color=color, loc="left" if is_first else "right")
    for kind, style in KINDS.items():
        rows = [row for row in spiking(network) if kind_of(row) == kind]
        points = frontier(rows, network.ann, cost)
        if points:
            x, y = zip(*points, strict=True)
            axis.plot(x, y, style, color=color)


def _style_points_lost(axis: Any, x_label: str) -> None:
    """Logarithmic axes with ticks at 1, 2 and 5."""
    from matplotlib.ticker import LogLocator

    axis.set(xscale="log", yscale="log", xlabel=x_label, ylabel="points lost")
    for ticks in (axis.xaxis, axis.yaxis):
        ticks.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ticks.set_major_formatter(lambda x, place: f"{x:g}")
    axis.minorticks_off()
    # A phone shows the right panels below the left ones, so they have numbers, too.
    axis.tick_params(labelbottom=True, labelleft=True)


# ------------------------------------------------------------------------ sites


def write_sites(path: Path, result: Result) -> None:
    """Error of every site with its parts; beside it, the firing rates."""
    sites = result.measures.sites
    rows = np.arange(len(sites))
    # [sites, 1 + parts]
    errors = np.array([relative_errors(site) for site in sites.values()])
    rates = [100 * float(site.firing_rate) for site in sites.values()]
    figure_of_sites = new_figure(
        path, width=2 * WIDTH, height=160 + 34 * len(sites), ncols=2
    )
    with figure_of_sites as (_, (left, right)):
        left.barh(rows, np.nan_to_num(errors[:, 0]), 0.8, color=BAR, label="error")
        # One below the other, so that equal parts do not hide each other.
        shifts = np.linspace(-0.3, 0.3, len(PARTS))
        for part, error, shift in zip(PARTS, errors[:, 1:].T, shifts, strict=True):
            left.plot(error, rows + shift, linestyle="", label=part, clip_on=False)
        left.set_title(
            f"{line_name(result)}, T = {result.steps}\nconversion error", x=0
        )
        left.set(xlabel="RMS in % of the RMS activation")
        left.set_xlim(left=0)
        # Below the label of x, as wide as the left half.
        place = {"loc": "upper center", "bbox_to_anchor": (0.5, 0)}
        left.legend(**place, borderaxespad=3.8, ncols=3)
        bars = right.barh(rows, rates, 0.55, color=SERIES[0])
        right.bar_label(bars, fmt="%.1f", padding=4, fontsize=11)
        right.set(title="firing rate", xlabel="% of the steps")
        right.margins(x=0.12)
        right.locator_params("x", nbins=5)
        # A phone shows the right panel below the left one, so it has names, too.
        for axis in (left, right):
            axis.set_yticks(rows, list(sites), fontsize=11)
            axis.set_ylim(len(sites) - 0.4, -0.6)
            axis.grid(visible=False, axis="y")
            axis.tick_params("y", length=0, pad=9)


def write_figures(
    out: Path, results: Sequence[Result], ann: float, epochs: Sequence[float] = ()
) -> None:
    """Write accuracy.png of all rows, and layers.png of the saved one.

    Args:
        epochs: accuracy at the start of a fine-tuning, and after each epoch.
    """

    groups = []
    for rows in groups_of(results):
        panels = [read_early(rows, ann)]
        if epochs:
            panels.append(after_epochs({"training": epochs}, ann))
        else:
            panels += [against(rows, ann, "latency"), against(rows, ann, "spikes")]
        groups.append(panels)
    write_accuracy(out / "accuracy.png", *groups)
    write_sites(out / "layers.png", choice(results))
