"""Figures of direct training: curves of a run, the surrogates compared."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.report.drawing import SERIES, canvas, png


def training(log: Sequence[dict], sites: Sequence[str], path: Path) -> None:
    """A PNG of loss, accuracy and temperature of every site against epochs."""
    epochs = [line["epoch"] for line in log]
    style = {"marker": "o", "markersize": 3}
    with canvas(3 * 300, 280, columns=3) as (figure, (left, middle, right)):
        left.plot(epochs, [line["loss"] for line in log], color=SERIES[0], **style)
        left.set(title="training loss", xlabel="epoch", ylim=(0, None))
        for i, name in enumerate(("train_accuracy", "test_accuracy")):
            percent = [100 * line[name] for line in log]
            label = name.partition("_")[0]
            middle.plot(epochs, percent, label=label, color=SERIES[i], **style)
        last = 100 * log[-1]["test_accuracy"]
        middle.set(title=f"accuracy (%): {last:.1f} on test images", xlabel="epoch")
        middle.legend()
        traces = np.array([line["temperature"] for line in log]).T
        shades = _shades(len(sites))
        for color, site, trace in zip(shades, sites, traces, strict=True):
            right.plot(epochs, trace, color=color, label=site)
        right.set(title="temperature b of each site", xlabel="epoch")
        if len(sites) <= 10:
            right.legend(fontsize=8)
        for axis in (left, middle, right):
            axis.xaxis.get_major_locator().set_params(integer=True)
        png(figure, path)


def surrogates(x, shapes: dict, temperatures: dict, path: Path) -> None:
    """A PNG of the surrogate derivatives, and of Dspike's at several temperatures."""
    with canvas(2 * 380, 290, columns=2) as (figure, (left, right)):
        for color, (name, height) in zip(SERIES, shapes.items(), strict=False):
            width = 2.8 if name == "dspike" else 1.4
            left.plot(x, height, label=name, linewidth=width, color=color)
        left.set(title="surrogate derivatives, default shapes", ylabel="d spike / d x")
        shades = _shades(len(temperatures))
        for color, (name, height) in zip(shades, temperatures.items(), strict=True):
            right.plot(x, height, label=name, color=color)
        right.set(title="dspike at temperature b")
        for axis in (left, right):
            axis.set_xlabel("x = (v - V_th) / (2 V_th)")
            axis.legend(fontsize=10)
        png(figure, path)


def _shades(count: int) -> Sequence:
    """Colours of an order, from dark to light."""
    import matplotlib

    return matplotlib.colormaps["viridis"](np.linspace(0, 0.9, count))
