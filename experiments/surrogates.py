"""Compares surrogates: ``python -m experiments.surrogates --preset digits``.

Trains the same network with each surrogate, and with Dspike at a fixed and at a chosen
temperature, with the same budget and seeds. Writes the accuracies as a table, and the
figure ``surrogates.png``: the derivative of every spike function at its default shape.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp

from experiments.comparison import Comparison, compare
from experiments.presets import PRESETS_SNN
from experiments.report import training_figures
from experiments.running import parse, writable
from experiments.running import run as run_command
from experiments.train_snn import SURROGATES, train

# name -> options of TrainSNN; width or slope 1, 1, 4 are the surrogates' defaults.
ROWS = {
    "rectangle": dict(surrogate="rectangle", learn="fixed", temperature=1.0),
    "triangle": dict(surrogate="triangle", learn="fixed", temperature=1.0),
    "exponential": dict(surrogate="exponential", learn="fixed", temperature=4.0),
    "Dspike, b = 3": dict(learn="fixed"),
    "Dspike, chosen (algorithm 1)": dict(learn="choose"),
}


@dataclass(frozen=True)
class Compare(Comparison):
    """Comparison of surrogates; results go to the folder `out`."""

    # Preset of train_snn that all rows share.
    training: str = "digits"
    # Rows, of experiments.surrogates.ROWS.
    rows: tuple[str, ...] = tuple(ROWS)
    # Folder for the runs, surrogates.md, surrogates.json and surrogates.png.
    out: str = "runs/surrogates"

    def __post_init__(self):
        self.check(ROWS, PRESETS_SNN)


def run(config: Compare) -> dict[str, list[float]]:
    """Accuracy after the last epoch: row -> one number per seed; see `compare`."""
    out = writable(config.out, "--out")
    draw(out / "surrogates.png")
    preset = PRESETS_SNN[config.training]
    return compare(config, ROWS, preset, train, out / "surrogates", "surrogate")


def draw(path: Path) -> None:
    """Figure of all surrogates, and of Dspike at several temperatures."""
    x = jnp.linspace(-1, 1, 801)

    def derivative(spike, *shape):
        return jax.grad(lambda x: spike(x, *shape).sum())(x)

    shapes = {name: derivative(spike) for name, spike in SURROGATES.items()}
    temperatures = {
        f"b = {b:g}": derivative(SURROGATES["dspike"], b) for b in (0.1, 1, 3, 6, 10)
    }
    training_figures.surrogates(x, shapes, temperatures, path)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; user errors end with one message and exit code 1."""
    config = parse(Compare, {"digits": Compare()}, argv)
    run_command(lambda: run(config), "the same command goes on from the last epoch")


if __name__ == "__main__":
    main()
