"""The source networks of a folder as one table: ``python -m experiments.sources``.

The default is the published networks; a FOLDER may be the ``--out`` of a training.
Parameters include running averages. Minutes are those of all epochs on the machine that
trained the network; cards of version 0.1 do not have them.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from experiments.models import load_source, parameters_of
from experiments.report import markdown_table, network_name
from experiments.running import run

TITLES = ("network", "parameters", "MB", "test %", "epochs", "minutes", "trained in")


def table_of(argv: Sequence[str] | None) -> str:
    """The table that the command prints: each file of weights with a card beside it."""
    parser = argparse.ArgumentParser(prog="sources", description=__doc__)
    default = Path(__file__).parent
    parser.add_argument("folder", nargs="?", type=Path, default=default)
    folder = parser.parse_args(argv).folder.expanduser()
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}; give one that holds source networks")
    files = sorted(folder.glob("*.safetensors"))
    files = [file for file in files if file.with_suffix(".json").is_file()]
    if not files:
        raise ValueError(
            f"{folder} has no source networks (NAME.safetensors and its card NAME.json "
            "beside it); give the --out of a training"
        )
    return markdown_table(TITLES, map(_row, files))


def _row(file: Path) -> tuple[str, ...]:
    """The cells of a network, which are empty where its card does not say."""
    card = load_source(file).card
    accuracy = minutes = library = ""
    if card.get("test_accuracy") is not None:
        accuracy = f"{100 * card['test_accuracy']:.2f}"
    if card.get("seconds") is not None:
        minutes = f"{card['seconds'] / 60:.0f}"
    versions = card.get("versions") or {}
    if "torch" in versions:
        library = "PyTorch"
    elif "jax" in versions:
        library = "JAX"
    return (
        f"`{network_name(card)}`",
        f"{parameters_of(card) / 1e6:.2f} M",
        f"{file.stat().st_size / 1e6:.1f}",
        accuracy,
        str(card.get("epochs", "")),
        minutes,
        library,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: print the table."""
    run(lambda: print(table_of(argv), end=""), compiles=False)


if __name__ == "__main__":
    main()
