"""Figures of direct training: the curves of a run, the surrogates compared."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from experiments.report.drawing import SERIES, new_figure, shades


def training(log: Sequence[dict], sites: Sequence[str], path: Path) -> None:
    """Loss, accuracy and the temperature of every site against epochs."""
    epochs = [line["epoch"] for line in log]
    with new_figure(path, 3 * 300, 280, ncols=3) as (_, (left, middle, right)):
        left.plot(epochs, [line["loss"] for line in log], markersize=3)
        left.set(title="training loss", xlabel="epoch", ylim=(0, None))
        for name in ("train_accuracy", "test_accuracy"):
            percent = [100 * line[name] for line in log]
            middle.plot(epochs, percent, label=name.partition("_")[0], markersize=3)
        last = 100 * log[-1]["test_accuracy"]
        middle.set(title=f"accuracy (%): {last:.1f} on test images", xlabel="epoch")
        middle.legend()
        # [sites, epochs]
        traces = np.array([line["temperature"] for line in log]).T
        for color, site, trace in zip(shades(len(sites)), sites, traces, strict=True):
            right.plot(epochs, trace, color=color, marker="", label=site)
        right.set(title="temperature b of each site", xlabel="epoch")
        if len(sites) <= 10:
            right.legend(fontsize=8)
        for axis in (left, middle, right):
            axis.xaxis.get_major_locator().set_params(integer=True)


def surrogates(
    x: np.ndarray,
    shapes: Mapping[str, np.ndarray],
    temperatures: Mapping[str, np.ndarray],
    path: Path,
) -> None:
    """The surrogate derivatives, and Dspike's at several temperatures.

    The derivatives at x have the names of their curves.
    """
    with new_figure(path, 2 * 380, 290, ncols=2) as (_, (left, right)):
        for color, (name, height) in zip(SERIES, shapes.items(), strict=False):
            width = 2.8 if name == "dspike" else 1.4
            left.plot(x, height, color=color, marker="", label=name, linewidth=width)
        left.set(title="surrogate derivatives, default shapes", ylabel="d spike / d x")
        colors = shades(len(temperatures))
        for color, (name, height) in zip(colors, temperatures.items(), strict=True):
            right.plot(x, height, color=color, marker="", label=name)
        right.set(title="dspike at temperature b")
        for axis in (left, right):
            axis.set_xlabel("x = (v - V_th) / (2 V_th)")
            axis.legend(fontsize=10)
