"""Codes side by side, as a table and as a figure: ``python -m experiments.codes``.

The table has published results of ResNet-20 under each code, and what a chip must do.
The figure shows the spikes of one neuron: the value that it has sent after every step,
and what each spike adds. The input is the same in all panels, and complete before the
first step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from experiments.report import markdown_table, read_results
from experiments.report.drawing import BAR, INK, SERIES, new_figure
from experiments.report.results import percent, waits
from experiments.results import PUBLISHED
from experiments.running import CODES, parse, writable
from experiments.running import run as run_command
from snnjax import codes
from snnjax.neurons import IntegrateAndFire, after_all_input, integrate_and_fire

VALUE = 0.87  # that the neurons send, in thresholds


class Choice(NamedTuple):
    """A row of the table."""

    results: str  # published results of ResNet-20, the end of their name
    steps: int  # T; the results have one row for it
    chip: str  # what a chip must do


CHOICES = (
    Choice("best", 4, "integrate, compare and subtract"),
    Choice("best", 16, "the same"),
    Choice("radix", 4, "also send signed spikes, and change thresholds step by step"),
    Choice(
        "radix_binary",
        4,
        "also change thresholds step by step, and hold a layer back until its input "
        "is complete; spikes are binary",
    ),
    Choice(
        "radix_graded",
        4,
        "also send spikes that carry a number, and change thresholds step by step",
    ),
)
HEAD = ("code", "levels", "wait", "T", "accuracy %", "latency", "spikes", "a chip must")


class Panel(NamedTuple):
    """A neuron whose spikes are shown."""

    title: str
    code: codes.Code
    neuron: IntegrateAndFire
    steps: int


_SIGNED = integrate_and_fire(levels=(-1, 1), dead_zone=2 / 3)
PANELS = (
    Panel("rate, binary, 8 steps", codes.rate(), integrate_and_fire(), 8),
    Panel("radix, binary, 4 steps", codes.radix(), integrate_and_fire(), 4),
    Panel("radix, signed, 4 steps", codes.radix(), _SIGNED, 4),
)


@dataclass(frozen=True)
class Draw:
    """The table of codes, and their figure in the folder `out`."""

    # Folder for codes.png.
    out: str = "runs/codes"


def run(config: Draw) -> Path:
    """Print the table, and draw codes.png; its path."""
    print(table_of())
    path = writable(config.out, "--out") / "codes.png"
    figure = new_figure(
        path, width=300 * len(PANELS), height=270, ncols=len(PANELS), sharey=True
    )
    with figure as (_, axes):
        for axis, panel, color in zip(axes, PANELS, SERIES, strict=False):
            _draw(axis, panel, color)
    print(path)
    return path


def table_of(argv: Sequence[str] = ()) -> str:
    """The table that the command prints; its last row is the ANN."""
    parse(Draw, {}, argv)  # refuses other options
    rows = []
    for file, steps, chip in CHOICES:
        network = read_results(PUBLISHED / f"convert_cifar10_resnet20_{file}.json")
        (result,) = [row for row in network.results if row.steps == steps]
        rows.append(
            (
                f"`{CODES[result.code]}`",
                str(result.levels),
                waits(result),
                str(steps),
                percent(result),
                str(result.latency),
                f"{result.spikes:.2f}",
                chip,
            )
        )
    ann = ("ANN", "", "", "", f"{100 * network.ann:.1f}", "", "", "")
    return markdown_table(HEAD, [*rows, ann])


def sent(panel: Panel) -> np.ndarray:
    """Value that the neuron sends at each step, [T]; the sum is nearest to `VALUE`."""
    code, steps = panel.code, panel.steps
    # Half of the smallest spike at the start rounds to the nearest value.
    half = jnp.float32(steps * code.finest(steps) / 2)
    params = panel.neuron.init()._replace(initial_potential=half)
    value = jnp.array([VALUE])
    spikes = after_all_input(panel.neuron, params, value, steps, code=code)
    return np.asarray(spikes[:, 0]) / steps


def _draw(axis: Any, panel: Panel, color: str) -> None:
    """Draw what each spike adds as a bar, and the sum so far as a line."""
    values = sent(panel)
    total = np.cumsum(values)
    steps = np.arange(1, panel.steps + 1)
    axis.bar(steps, values, bottom=total - values, width=0.7, color=BAR)
    axis.plot(steps, total, "o-", color=color)
    axis.axhline(VALUE, color=INK, linewidth=1, linestyle=":")
    count = int((values != 0).sum())
    axis.set(title=f"{panel.title}: {count} spikes", xlabel="step", ylim=(0, 1.08))
    if panel is PANELS[0]:
        axis.set_ylabel("value sent so far")
    axis.xaxis.get_major_locator().set_params(integer=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; user errors end with one message and exit code 1."""
    config = parse(Draw, {}, argv)
    run_command(lambda: run(config))


if __name__ == "__main__":
    main()
