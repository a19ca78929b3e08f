"""One table of several networks, or runs: ``python -m experiments.results FILE ...``.

A FILE is the ``metrics.json`` that `experiments.convert` or `experiments.finetune`
writes, its folder, or the name of published results, such as ``convert_cifar10_vit``.
The table has the accuracy of every row at every T. A fine-tuning has one row, for the
trained network.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from experiments.report import figures, networks
from experiments.running import name_among, run, writable

PUBLISHED = Path(__file__).parents[1] / "benchmarks" / "results"


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: print the table of these files, and draw them."""
    options = _options(argv)

    def show() -> None:
        results = _networks(options)
        table = options.table(results)
        if options.figures:
            # Checked before the table is printed.
            folder = writable(options.figures, "--figures")
        print(table, end="")
        if options.figures:
            figures.draw_networks(results, folder, options.against or [*figures.COSTS])
        if options.points_lost:
            folder = writable(options.points_lost, "--points_lost")
            figures.draw_points_lost(results, folder)

    run(show, compiles=False)


def table_of(argv: Sequence[str]) -> str:
    """The table that the command prints; it draws nothing."""
    options = _options(argv)
    return options.table(_networks(options))


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="results", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument(
        "--steps",
        nargs="+",
        type=int,
        metavar="T",
        help="only the rows of these T; write it after the files",
    )
    parser.add_argument(
        "--figures",
        metavar="FOLDER",
        help="draw accuracy against T, latency, spikes",
    )
    parser.add_argument(
        "--against",
        nargs="+",
        type=name_among(figures.COSTS),
        metavar="COST",
        help=f"draw only these panels: {', '.join(figures.COSTS)}",
    )
    parser.add_argument(
        "--points_lost",
        metavar="FOLDER",
        help="draw points lost, of all networks, against spikes and against latency",
    )
    parser.set_defaults(table=networks.table_of_networks)
    tables = parser.add_mutually_exclusive_group()
    for name, table, text in (
        ("costs", networks.costs_of_networks, "the costs of every row"),
        ("latency", networks.latencies_of_networks, "accuracy within so many steps"),
        ("epochs", networks.epochs_of_networks, "the accuracy after each epoch"),
        ("summary", networks.summary_of_networks, "the best row of each network"),
        ("brief", networks.brief_of_networks, "ANN, best SNN and its spikes at one T"),
    ):
        tables.add_argument(
            f"--{name}",
            action="store_const",
            dest="table",
            const=table,
            help=f"print {text}",
        )
    return parser.parse_args(argv)


def _networks(options: argparse.Namespace) -> list[networks.NetworkResults]:
    results = [networks.read_results(file_of(name)) for name in options.files]
    if options.steps:
        results = [networks.with_steps(network, options.steps) for network in results]
    return results


def file_of(name: Path) -> Path:
    """The file itself, or published results of this name."""
    published = PUBLISHED / f"{name}.json"
    if not name.exists() and published.is_file():
        return published
    return name


if __name__ == "__main__":
    main()
