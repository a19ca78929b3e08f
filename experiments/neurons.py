"""Compares neuron models: ``python -m experiments.neurons --preset digits``.

Trains the same network with each model of ``experiments.train_snn.NEURONS``, for the
same epochs and from the same seeds, and writes the accuracies as a table. A recurrent
network has more weights than the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from experiments.comparison import Comparison, compare
from experiments.presets import PRESETS_SNN
from experiments.running import parse, writable
from experiments.running import run as run_command
from experiments.train_snn import NEURONS, train

# name -> options of TrainSNN. The temperature stays, so that the models alone differ.
ROWS = {name: dict(neuron=name, learn="fixed") for name in NEURONS}


@dataclass(frozen=True)
class Compare(Comparison):
    """Comparison of neuron models; results go to the folder `out`."""

    # Configuration of train_snn that all share.
    training: str = "digits"
    # Rows, of experiments.train_snn.NEURONS.
    rows: tuple[str, ...] = tuple(ROWS)
    # Folder for the runs, neurons.md and neurons.json.
    out: str = "runs/neurons"

    def __post_init__(self):
        self.check(ROWS, PRESETS_SNN)


def run(config: Compare) -> dict[str, list[float]]:
    """Accuracy after the last epoch: row -> one number per seed; see `compare`."""
    out = writable(config.out, "--out")
    preset = PRESETS_SNN[config.training]
    return compare(config, ROWS, preset, train, out / "neurons", "neuron")


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; user errors end with one message and exit code 1."""
    presets = {"digits": Compare(), "nmnist": Compare(training="nmnist")}
    config = parse(Compare, presets, argv)
    run_command(lambda: run(config), "the same command goes on from the last epoch")


if __name__ == "__main__":
    main()
