"""Draws one neuron's spikes under several codes: ``python -m experiments.codes``.

Each panel shows the value that has been sent after every step, and what each spike
adds. The input is the same for all of them, and complete before the first step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from experiments.report.drawing import BAR, INK, SERIES, drawn
from experiments.running import parse, writable
from experiments.running import run as run_command
from snnjax import codes
from snnjax.neurons import IntegrateAndFire, after_all_input, integrate_and_fire

VALUE = 0.87  # that the neurons send, in thresholds


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
    """The figure of codes; it goes to the folder `out`."""

    # Folder for codes.png.
    out: str = "runs/codes"


def run(config: Draw) -> Path:
    """Draw codes.png; its path."""
    path = writable(config.out, "--out") / "codes.png"
    with drawn(path, len(PANELS) * 300, 270, ncols=len(PANELS), sharey=True) as (
        _,
        axes,
    ):
        for axis, panel, color in zip(axes, PANELS, SERIES, strict=False):
            _draw(axis, panel, color)
    print(path)
    return path


def sent(panel: Panel) -> np.ndarray:
    """Value that the neuron sends at each step, [T]; the sum is nearest to `VALUE`."""
    code, steps = panel.code, panel.steps
    half = jnp.float32(steps * code.finest(steps) / 2)
    params = panel.neuron.init()._replace(initial_potential=half)
    value = jnp.array([VALUE])
    spikes = after_all_input(panel.neuron, params, value, steps, code=code)
    return np.asarray(spikes[:, 0]) / steps


def _draw(axis: Any, panel: Panel, color: str) -> None:
    values = sent(panel)
    after = np.cumsum(values)
    steps = np.arange(1, panel.steps + 1)
    axis.bar(steps, values, bottom=after - values, width=0.7, color=BAR)
    axis.plot(steps, after, "o-", color=color)
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
