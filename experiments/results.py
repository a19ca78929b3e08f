"""One table of several networks, or runs: ``python -m experiments.results FILE ...``.

The files are the ``metrics.json`` that `experiments.convert` writes.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from experiments.report import read_results, table_of_networks
from experiments.running import run


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: print the table of these files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="METRICS.json")
    files = parser.parse_args(argv).files
    table = run(lambda: table_of_networks([read_results(file) for file in files]))
    print(table, end="")


if __name__ == "__main__":
    main()
