"""Figures of a conversion: accuracy over time, error per site, a raster of spikes."""

from collections.abc import Sequence
from pathlib import Path

import jax
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

import snnjax
from snnjax.network import Sites

PARTS = ("inherited", "clipping", "flooring", "unevenness")


def accuracy(results: Sequence, ann: float, path: Path) -> None:
    """Accuracy against the steps read (at the largest T), and against latency."""
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(11, 4.2), sharey=True, layout="constrained"
    )
    longest = max(result.steps for result in results)
    for color, rows in zip(_colors(results), lines(results), strict=True):
        name = line_name(rows[0])
        last = next((row for row in rows if row.steps == longest), rows[-1])
        curve = 100 * np.mean(last.accuracies, axis=0)
        left.plot(range(1, last.steps + 1), curve, color=color, label=name)
        final = [100 * np.mean([a[-1] for a in row.accuracies]) for row in rows]
        latency = [row.latency for row in rows]
        right.plot(latency, final, "o-", color=color, label=name, markersize=4)
    for axis, title, label in (
        (left, f"one run at T = {longest}, read early", "steps read"),
        (right, "each T converted for itself", "latency in steps (log)"),
    ):
        axis.axhline(100 * ann, color="black", linewidth=1, linestyle="--")
        axis.set(title=title, xlabel=label)
        axis.grid(alpha=0.3)
    left.text(1, 100 * ann + 1, "ANN", va="bottom")
    left.set_ylim(top=100 * ann + 8)  # room for the word; both share the axis
    left.set_ylabel("test accuracy (%)")
    right.set_xscale("log", base=2)
    right.xaxis.set_major_formatter(matplotlib.ticker.ScalarFormatter())
    right.legend(fontsize=8, loc="lower right")
    _save(figure, path)


def layers(results: Sequence, path: Path) -> None:
    """Conversion error per site: all recipes; and its parts for the last of them."""
    longest = max(result.steps for result in results)
    shown = [result for result in results if result.steps == longest]
    names = list(shown[0].measures.sites)
    figure, (top, bottom) = plt.subplots(
        2, 1, figsize=(9, 6.5), sharex=True, layout="constrained"
    )
    for color, result in zip(_colors(shown), shown, strict=True):
        sites = result.measures.sites
        error = [float(sites[n].error / sites[n].activation) for n in names]
        top.plot(error, "o-", color=color, label=line_name(result), markersize=4)
    top.set(title=f"conversion error per site, T = {longest}")
    top.set_ylabel("RMS error / RMS activation")
    top.set_ylim(bottom=0)
    top.legend(fontsize=8, ncols=2)
    streaming = [result for result in shown if result.wait == 0]
    last = (streaming or shown)[-1]
    width = 0.8 / len(PARTS)
    for i, part in enumerate(PARTS):
        sites = last.measures.sites
        share = [float(getattr(sites[n], part) / sites[n].activation) for n in names]
        places = np.arange(len(names)) + (i - 1.5) * width
        bottom.bar(places, share, width, label=part)
    title = (
        f"its parts, {last.recipe}, wait {waits(last)} (RMS each: they do not add up)"
    )
    bottom.set(title=title)
    bottom.set_ylabel("RMS / RMS activation")
    bottom.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=8)
    bottom.set_ylim(top=1.25 * bottom.get_ylim()[1])  # room for the legend
    bottom.legend(fontsize=8, ncols=4, loc="upper left")
    for axis in (top, bottom):
        axis.grid(alpha=0.3, axis="y")
    _save(figure, path)


def raster(fn, snn: snnjax.SNN, sites: Sites, image: jax.Array, path: Path) -> None:
    """Spikes of one image in real time: some of the neurons of every site."""
    trains = jax.jit(
        lambda snn, x: snnjax.measures.spike_trains(fn, snn, x, steps=snn.steps, wait=snn.wait)
    )(snn, image)
    shown = [site for site in sites if site.fires]
    size = (8.5, 0.8 + 0.8 * len(shown))
    figure, axes = plt.subplots(
        len(shown), 1, figsize=size, sharex=True, layout="constrained", squeeze=False
    )
    for axis, site in zip(axes[:, 0], shown, strict=True):
        spikes = np.asarray(trains[site.name])[:, 0].reshape(snn.steps, -1)
        some = spikes[:, :: max(1, spikes.shape[1] // 40)]
        step, neuron = np.nonzero(some)
        first = 1 + site.depth * snn.wait
        axis.plot(step + first, neuron, "|", color="black", markersize=2.5)
        axis.set(yticks=[], ylim=(-1, some.shape[1]))
        axis.axvspan(first - 0.5, first + snn.steps - 0.5, color="tab:blue", alpha=0.1)
        label = f"{site.name}\n{100 * spikes.mean():.0f} %"
        axis.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)
    axes[0, 0].set_title(
        f"spikes for one image, T = {snn.steps}, wait {snn.wait}: every n-th neuron "
        "of a site (up to 80)\nshaded: the steps in which it may fire; %: firing rate",
        fontsize=10,
    )
    axes[-1, 0].set_xlim(
        0.5, snnjax.latency(sites, steps=snn.steps, wait=snn.wait) + 0.5
    )
    axes[-1, 0].set_xlabel("step")
    _save(figure, path)


def training(log: Sequence[dict], sites: Sequence[str], path: Path) -> None:
    """Loss, accuracy and temperature of every site against epochs."""
    epochs = [line["epoch"] for line in log]
    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(12, 3.8), layout="constrained"
    )
    left.plot(epochs, [line["loss"] for line in log], "o-", markersize=3)
    left.set(title="training loss", xlabel="epoch", ylim=(0, None))
    for name in ("train_accuracy", "test_accuracy"):
        label = name.partition("_")[0]
        found = [100 * line[name] for line in log]
        middle.plot(epochs, found, "o-", label=label, markersize=3)
    middle.set(title=f"accuracy (%): {found[-1]:.1f} on test images", xlabel="epoch")
    middle.legend()
    traces = np.array([line["temperature"] for line in log]).T
    for color, site, trace in zip(_shades(len(sites)), sites, traces, strict=True):
        right.plot(epochs, trace, color=color, label=site)
    right.set(title="temperature b of each site", xlabel="epoch")
    if len(sites) <= 10:
        right.legend(fontsize=7)
    for axis in (left, middle, right):
        axis.grid(alpha=0.3)
        axis.xaxis.get_major_locator().set_params(integer=True)
    _save(figure, path)


def surrogates(x, shapes: dict, temperatures: dict, path: Path) -> None:
    """Derivatives of the spike functions, and of Dspike at several temperatures."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for name, height in shapes.items():
        left.plot(x, height, label=name, linewidth=2.5 if name == "dspike" else 1.2)
    left.set(title="surrogate derivatives, default shapes", ylabel="d spike / d x")
    for color, (name, height) in zip(
        _shades(len(temperatures)), temperatures.items(), strict=True
    ):
        right.plot(x, height, label=name, color=color)
    right.set(title="dspike at temperature b")
    for axis in (left, right):
        axis.set_xlabel("x = (v - V_th) / (2 V_th)")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    _save(figure, path)


def lines(results: Sequence) -> list[list]:
    """Results that differ in T only, together."""
    groups: dict[tuple, list] = {}
    for result in results:
        groups.setdefault((result.recipe, waits(result)), []).append(result)
    return list(groups.values())


def line_name(result) -> str:
    wait = waits(result)
    return result.recipe if wait == "0" else f"{result.recipe}, wait {wait}"


def waits(result) -> str:
    """The wait of a result as a person writes it: a number, or T."""
    # At T = 1 a wait of one step is also T; call it by the number.
    whole = result.wait == result.steps and result.wait > 1
    return "T" if whole else str(result.wait)


def _colors(results: Sequence):
    return plt.get_cmap("tab10")(np.arange(len(lines(results))) % 10)


def _shades(count: int):
    return plt.get_cmap("viridis")(np.linspace(0, 0.9, count))


def _save(figure, path: Path) -> None:
    figure.savefig(path, dpi=150)
    plt.close(figure)
