"""Figures of results: accuracy, errors and rates of the sites; the files of a run."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

import snnjax
from experiments.report.drawing import (
    COLORS,
    SERIES,
    Panel,
    below,
    beside,
    every,
    mark,
)
from experiments.report.networks import NetworkResults, merged
from experiments.report.rasters import rasters
from experiments.report.results import Result, choice, line_name, lines
from snnjax.measures import SiteMeasures

PARTS = ("inherited", "clipping", "flooring", "unevenness")


# --------------------------------------------------------------------- accuracy


def accuracy(
    results: Sequence[Result], ann: float, epochs: Sequence[float] | None = None
) -> tuple[Panel, Panel]:
    """Accuracy of one long run that is read early; of every T against its latency.

    The latter against epochs, if these are results of a fine-tuning.
    """
    longest = max(result.steps for result in results)
    early = {}
    for rows in lines(results):
        last = next((row for row in rows if row.steps == longest), rows[-1])
        curve = [float(a) for a in 100 * np.mean(last.accuracies, axis=0)]
        early[_read_early(last)] = range(1, last.steps + 1), curve
    if epochs:
        second = after_epochs({f"T = {longest}": epochs}, ann)
    else:
        second = against(results, ann, "latency")
        second = second._replace(title="each T converted for itself")
    return (
        Panel(
            f"one run at T = {longest}, read early",
            f"Accuracy after each step of one run at T = {longest}. {_ends(early)}",
            _height(early),
            lambda axis: _curves(axis, early, 100 * ann, "t, steps read"),
        ),
        second,
    )


def _read_early(result: Result) -> str:
    """Its line, and when the first step is there if layers wait."""
    first = result.latency - result.steps + 1
    name = line_name(result)
    return f"{name} (t = 1 at step {first})" if result.wait else name


COSTS: dict[str, tuple[str, Callable[[Result], float]]] = {
    "T": ("T", lambda result: result.steps),
    "latency": ("latency in steps", lambda result: result.latency),
    "spikes": (
        "spikes per neuron and image",
        lambda result: result.firing_rate * result.steps,
    ),
}


def against(results: Sequence[Result], ann: float, cost: str) -> Panel:
    """Accuracy of each conversion against one of `COSTS`."""
    label, cost_of = COSTS[cost]
    series = {}
    for rows in lines(results):
        pairs = sorted((cost_of(row), 100 * row.final) for row in rows if cost_of(row))
        if not pairs:  # silent, which has no place on a logarithmic axis
            continue
        series[line_name(rows[0])] = tuple(zip(*pairs, strict=True))
    return Panel(
        f"against {cost}",
        f"Accuracy of each conversion against {cost}. {_ends(series)}",
        _height(series),
        lambda axis: _curves(axis, series, 100 * ann, label, log=True),
    )


def after_epochs(curves: Mapping[str, Sequence[float]], ann: float) -> Panel:
    """Accuracy against epochs of fine-tuning, from the start at 0.

    Args:
        curves: name of a fine-tuning -> accuracy at the start and after each epoch,
            0..1. Of a single one, the title has both ends.
        ann: that of the source network, a rule.
    """
    series = {
        name: (range(len(curve)), [100 * accuracy for accuracy in curve])
        for name, curve in curves.items()
    }
    title = "accuracy after each epoch of training"
    if len(series) == 1:
        ((_, percent),) = series.values()
        title = f"{percent[0]:.1f} % at the start, {percent[-1]:.1f} % at the end"
    return Panel(
        title,
        f"Accuracy after each epoch of training. {_ends(series)}",
        260 + 18 * len(series),
        lambda axis: _curves(axis, series, 100 * ann, "epochs"),
    )


def write_epochs(curves: Mapping[str, Sequence[float]], ann: float, path: Path) -> None:
    """A PNG of `after_epochs`."""
    beside([after_epochs(curves, ann)], path, columns=1)


def _height(series: dict) -> float:
    """Of a panel with a legend of so many lines, three in a row."""
    return 300 + 18 * math.ceil(len(series) / 3)


def _ends(series: dict[str, tuple[Sequence[float], Sequence[float]]]) -> str:
    return "; ".join(
        f"{n}: {y[0]:.1f} to {y[-1]:.1f} %" for n, (_, y) in series.items()
    )


def _curves(axis, series, ann: float, x_label: str, log: bool = False) -> None:
    for i, (name, (x, y)) in enumerate(series.items()):
        axis.plot(x, y, label=name, markevery=max(1, len(x) // 16), **mark(i))
    axis.axhline(ann, color=COLORS["ink"], linewidth=1, linestyle="--")
    axis.annotate(  # on the left, where most curves are far below
        f"ANN {ann:.1f}",
        (0.02, ann),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
    )
    low, high = axis.get_ylim()
    low = min(low, high - 2)  # a tenth of a percent shall not look like a slope
    axis.set_ylim(low, max(high, ann + 0.08 * (high - low)))
    axis.set(xlabel=x_label, ylabel="accuracy in %")
    values = sorted({value for x, _ in series.values() for value in x})
    if not values:
        return
    if log:
        axis.set_xscale("log", base=2)
        axis.minorticks_off()
    if all(isinstance(value, int) for value in values):
        ticks = _thinned(values, log)
    else:  # powers of two in between
        first, last = (round(math.log2(value)) for value in (values[0], values[-1]))
        spacing = every(last - first + 1, 6)
        ticks = [2.0**power for power in range(first, last + 1, spacing)]
    axis.set_xticks(
        ticks, [f"{tick:.3g}" if tick < 1 else f"{tick:g}" for tick in ticks]
    )


def _thinned(steps: Sequence[int], log: bool) -> list[int]:
    """At most some ten ticks; on a logarithmic axis none too close to another."""
    if not log:
        distance = every(len(steps), 10)
        return [x for x in steps if x % distance == 0 or x == steps[0]]
    ticks: list[int] = []
    span = math.log2(steps[-1] / steps[0]) or 1
    for x in steps:
        if not ticks or math.log2(x / ticks[-1]) / span > 0.07:
            ticks.append(x)
    return ticks


# ------------------------------------------------------------------------ sites


def errors(result: Result, names: dict[str, str]) -> Panel:
    """Error of every site and its parts; ``names`` has the names to print."""
    measures = result.measures.sites
    rows = {names[name]: relative(site) for name, site in measures.items()}
    worst = max(rows, key=lambda name: np.nan_to_num(rows[name][0], nan=-1.0))
    label = (
        f"Error of every site and its parts; the largest, {rows[worst][0]:.1f} %, at "
        f"{worst}. The table below has all numbers."
    )

    def draw(axis) -> None:
        places = range(len(rows))
        whole = [np.nan_to_num(error) for error, *_ in rows.values()]
        axis.barh(places, whole, 0.55, color=COLORS["bar"], label="whole error")
        for k, part in enumerate(PARTS):
            shares = [row[1 + k] for row in rows.values()]
            axis.plot(
                shares, places, linestyle="", label=part, clip_on=False, **mark(k)
            )
        axis.set(xlabel="RMS in % of the RMS activation")
        axis.set_xlim(left=0)
        _rows(axis, list(rows))

    return Panel("conversion error", label, 90 + _pitch(rows) * len(rows), draw)


def rates(result: Result, names: dict[str, str]) -> Panel:
    """Firing rate, silent and saturated channels of every site."""
    rows = {
        names[name]: [100 * float(s) for s in (m.firing_rate, m.silent, m.saturated)]
        for name, m in result.measures.sites.items()
    }
    label = "Firing rate, silent and saturated channels of every site, in percent."

    def draw(axis) -> None:
        places = range(len(rows))
        shares = [rate for rate, _, _ in rows.values()]
        unit = max(shares) or 1.0  # the axis has room for the numbers beside the bars
        axis.barh(places, shares, 0.45, color=SERIES[0])
        columns = 1.85 * unit, 2.5 * unit
        for place, (rate, *others) in enumerate(rows.values()):
            style = {"va": "center_baseline", "color": COLORS["muted"]}
            axis.text(rate + 0.03 * unit, place, f"{rate:.1f} %", **style)
            for x, share in zip(columns, others, strict=True):
                axis.text(x, place, f"{share:.1f} %", ha="right", **style)
        above = {"va": "bottom", "color": COLORS["muted"]}
        for x, title in zip(columns, ("silent", "saturated"), strict=True):
            axis.text(x, -0.6, title, ha="right", **above)
        axis.text(0, -0.6, "firing rate", **above)
        axis.set_xlim(0, columns[1])
        axis.set_xticks([])
        axis.spines["bottom"].set_visible(False)
        _rows(axis, list(rows))

    return Panel("", label, 60 + _pitch(rows) * len(rows), draw)


def relative(site: SiteMeasures) -> list[float]:
    """Error and its parts in percent of the activation; NaN where that is zero."""
    activation = float(site.activation) or float("nan")
    return [100 * float(getattr(site, p)) / activation for p in ("error", *PARTS)]


def _rows(axis, names: Sequence[str]) -> None:
    """One row for each name, from the top down."""
    shown = [shortened(name) for name in names]
    axis.set_yticks(range(len(names)), shown, fontfamily="monospace", fontsize=12)
    axis.tick_params("y", length=0, pad=8, labelcolor=COLORS["ink"])
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.grid(visible=False, axis="y")


def _pitch(rows: dict) -> int:
    """Height of a row; less for a long list."""
    return 28 if len(rows) <= 20 else 22


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Site -> its name without the first and last part of the path that all share."""
    paths = {name: name.split("/") for name in names}
    short = min(map(len, paths.values()), default=0)
    first = short > 1 and len({path[0] for path in paths.values()}) == 1
    last = short > 1 + first and len({path[-1] for path in paths.values()}) == 1
    return {
        name: "/".join(path[first : len(path) - last]) for name, path in paths.items()
    }


def shortened(name: str, limit: int = 20) -> str:
    """At most ``limit`` characters: the beginning and the end."""
    if len(name) <= limit:
        return name
    return f"{name[: limit // 2 - 1]}…{name[-(limit - limit // 2) :]}"


def write_figures(
    out: Path,
    results: Sequence[Result],
    ann: float,
    sites: snnjax.network.Sites,
    snn: snnjax.SNN,
    trains: dict[str, np.ndarray],
    epochs: Sequence[float] | None = None,
) -> None:
    """The files accuracy.png, layers.png and raster.png of a conversion.

    Args:
        epochs: accuracy at the start and after each epoch, of a fine-tuning.
    """
    best = choice(results)
    names = short_names(list(best.measures.sites))
    beside(accuracy(results, ann, epochs), out / "accuracy.png")
    heading = f"{line_name(best)}, T = {best.steps}"
    beside([errors(best, names), rates(best, names)], out / "layers.png", heading)
    below(rasters(trains, sites, snn), out / "raster.png", heading)


def draw_networks(networks: Sequence[NetworkResults], folder: Path) -> None:
    """A file NAME.png for each network: accuracy against T, latency and spikes.

    And NAME_epochs.png, accuracy against epochs, where there are fine-tunings.
    """
    for name, results, ann, _, epochs in merged(networks):
        panels = [against(results, ann, cost) for cost in COSTS]
        beside(panels, folder / f"{name}.png")
        if epochs:
            write_epochs(epochs, ann, folder / f"{name}_epochs.png")
