"""One table of several networks, or runs: ``python -m experiments.results FILE ...``.

A FILE is the ``metrics.json`` that `experiments.convert` or `experiments.finetune`
writes, its folder, or the name of published results, such as ``convert_cifar10_vit``.
Of a fine-tuning the trained network has a row. In place of the accuracies at every T,
``--costs`` prints what each row costs, and ``--epochs`` the accuracy after each epoch
of the fine-tunings; ``FILE ... --steps 2 4`` takes the rows of these T alone. With
``--figures FOLDER`` each network also has a figure there, accuracy against T, latency
and spikes, and one of accuracy against epochs if there are fine-tunings.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from experiments.report import (
    NetworkResults,
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
    options = _options(argv)

    def show() -> None:
        networks = _networks(options)
        table = _table(options, networks)
        if options.figures is None:
            print(table, end="")
            return
        folder = writable(options.figures, "--figures")
        print(table, end="")
        draw_networks(networks, folder)

    run(show, compiles=False)


def table_of(argv: Sequence[str]) -> str:
    """The table that the command prints; it draws nothing.

    Raises:
        ValueError: files that were not written by these commands, or contradict
            another.
    """
    options = _options(argv)
    return _table(options, _networks(options))


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="results", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    steps = "rows of these T alone; give it behind the files"
    parser.add_argument("--steps", nargs="+", type=int, metavar="T", help=steps)
    parser.add_argument("--figures", metavar="FOLDER", help="draw each network there")
    tables = parser.add_mutually_exclusive_group()
    tables.add_argument("--costs", action="store_true", help="costs of every row")
    tables.add_argument(
        "--epochs", action="store_true", help="accuracy after epochs of fine-tunings"
    )
    return parser.parse_args(argv)


def _networks(options: argparse.Namespace) -> list[NetworkResults]:
    networks = [read_results(_file(name)) for name in options.files]
    return networks if options.steps is None else with_steps(networks, options.steps)


def _table(options: argparse.Namespace, networks: list[NetworkResults]) -> str:
    if options.costs:
        return costs_of_networks(networks)
    if options.epochs:
        return epochs_of_networks(networks)
    return table_of_networks(networks)


def _file(name: Path) -> Path:
    """The file itself, or published results of this name."""
    published = PUBLISHED / f"{name}.json"
    return published if not name.exists() and published.is_file() else name


if __name__ == "__main__":
    main()
