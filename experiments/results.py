"""One table of several networks, or runs: ``python -m experiments.results FILE ...``.

A FILE is the ``metrics.json`` that `experiments.convert` or `experiments.finetune`
writes, its folder, or the name of published results, such as ``convert_cifar10_vit``.
Of a fine-tuning the trained network has a row. In place of the accuracies at every T,
``--costs`` prints what each row costs, and ``--epochs`` the accuracy after each epoch
of the fine-tunings. ``--steps 2 4`` takes the rows of these T alone. With ``--figures
FOLDER`` each network also has a figure there, accuracy against T, latency and spikes,
and one of accuracy against epochs if there are fine-tunings.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from experiments.report import (
    costs_of_networks,
    draw_networks,
    epochs_of_networks,
    read_results,
    table_of_networks,
    with_steps,
)
from experiments.running import run, writable

PUBLISHED = Path(__file__).parents[1] / "benchmarks" / "results"


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: print the table of these files, and draw them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument(
        "--steps", nargs="+", type=int, metavar="T", help="rows of these T alone"
    )
    parser.add_argument("--figures", metavar="FOLDER", help="draw each network there")
    tables = parser.add_mutually_exclusive_group()
    tables.add_argument("--costs", action="store_true", help="costs of every row")
    tables.add_argument(
        "--epochs", action="store_true", help="accuracy after epochs of fine-tunings"
    )
    arguments = parser.parse_args(argv)

    def show() -> None:
        networks = [read_results(_file(name)) for name in arguments.files]
        if arguments.steps is not None:
            networks = with_steps(networks, arguments.steps)
        if arguments.costs:
            table = costs_of_networks(networks)
        elif arguments.epochs:
            table = epochs_of_networks(networks)
        else:
            table = table_of_networks(networks)
        if arguments.figures is None:
            print(table, end="")
            return
        folder = writable(arguments.figures, "--figures")
        print(table, end="")
        draw_networks(networks, folder)

    run(show)


def _file(name: Path) -> Path:
    """The file itself, or published results of this name."""
    published = PUBLISHED / f"{name}.json"
    return published if not name.exists() and published.is_file() else name


if __name__ == "__main__":
    main()
