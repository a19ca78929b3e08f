"""The source networks of a folder as one table: ``python -m experiments.sources``.

Reads the card and the header of the weights of each; of the published ones by default,
or those of the FOLDER that it is given. Minutes are those of all epochs on the machine
that trained the network; cards of version 0.1 do not have them.
"""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

from safetensors import safe_open

from experiments.report import network_name, table
from experiments.running import run

TITLES = ("network", "parameters", "MB", "test %", "epochs", "minutes", "trained in")


def sources(folder: Path) -> str:
    """A row for each card of the folder.

    Raises:
        ValueError: there is none.
    """
    cards = sorted(folder.glob("*.json"))
    if not cards:
        raise ValueError(
            f"{folder} has no cards of source networks (NAME.json beside "
            "NAME.safetensors); give the folder of one that was trained"
        )
    return table(TITLES, [_row(card) for card in cards])


def _row(file: Path) -> tuple[str, ...]:
    card = json.loads(file.read_text())
    weights = file.with_suffix(".safetensors")
    seconds = card.get("seconds")
    return (
        f"`{network_name(card)}`",
        f"{parameters(weights) / 1e6:.2f} M",
        f"{weights.stat().st_size / 1e6:.1f}",
        f"{100 * card['test_accuracy']:.2f}",
        str(card["epochs"]),
        "" if seconds is None else f"{seconds / 60:.0f}",
        "PyTorch" if "torch" in card["versions"] else "JAX",
    )


def parameters(weights: Path) -> int:
    """How many numbers a file of weights holds, running averages included."""
    with safe_open(weights, "numpy") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    return sum(map(math.prod, shapes))


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: print the table."""
    parser = argparse.ArgumentParser(prog="sources", description=__doc__)
    folder = Path(__file__).parent
    parser.add_argument("folder", nargs="?", type=Path, default=folder)
    arguments = parser.parse_args(argv)
    run(lambda: print(sources(arguments.folder), end=""))


if __name__ == "__main__":
    main()
