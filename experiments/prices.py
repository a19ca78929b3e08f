"""The price of each part of the library: ``python -m experiments.prices``.

A row has the lines of Python, rounded up to fifty, the most that are allowed, the lines
of its tests, and the folders in which others name it. A test compares the table of
CONTRIBUTING.md with this one, and fails above a budget.
"""

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import snnjax
from experiments.report import markdown_table

ROOT = Path(__file__).parents[1]
HEAD = ("capability", "where", "lines", "at most", "tests", "used by")
USERS = ("snnjax", "experiments", "benchmarks", "examples", "docs")


class Part(NamedTuple):
    """A capability: its modules in snnjax/, tests/test_NAME.py, and its budget."""

    capability: str
    modules: str
    tests: str
    budget: int


PARTS = (
    Part("convert by recipes", "conversion", "convert best golden spending", 1950),
    Part("fit a site", "calibrators", "calibrate offsets", 2600),
    Part("train", "training", "train descent finetuning temperature", 1100),
    Part("layers, as a chip sees them", "lowering", "layers", 1950),
    Part("whole numbers", "integers", "integers", 2050),
    Part("reports for chips", "chips", "chips", 1250),
    Part("NIR, both ways", "nir", "nir", 750),
    Part("spikes, errors, energy", "measures", "metrics costs neurobench", 1000),
    Part("files", "storage", "storage", 850),
    Part("run in time", "simulation", "simulate levels accelerators", 1150),
    Part("codes", "codes", "codes", 350),
    Part("activations", "activations surrogate", "surrogate quantized", 450),
    Part("many devices", "sharding", "sharding processes", 250),
    Part("PyTorch modules", "torch", "torch_modules", 250),
    Part("the SNN as a value", "snn", "strict types", 400),
    Part("trace fn", "capture", "capture operators refusals architectures", 2350),
    Part("equations", "network", "soak", 950),
    Part("neurons", "neurons", "neurons neuron_models libraries", 2300),
    Part("checks, texts, small files", "", "layout sweep text conformance", 1700),
)
FOLDERS = {"snnjax": 23_200, "experiments": 7650, "benchmarks": 5250, "tests": 20_450}


def files_of(part: Part) -> list[Path]:
    """The files of its modules; those of no other part, if it has none."""
    modules_of_parts = " ".join(other.modules for other in PARTS).split()

    def is_own(file: Path) -> bool:
        names = file.relative_to(ROOT / "snnjax").with_suffix("").parts
        module = names[names[0] == "deploy" and len(names) > 1]
        if not part.modules:
            return module not in modules_of_parts
        return module in part.modules.split()

    return [file for file in (ROOT / "snnjax").rglob("*.py") if is_own(file)]


def lines(files: Iterable[Path]) -> int:
    """Lines of all kinds, rounded up to fifty."""
    return -(-sum(file.read_text().count("\n") for file in files) // 50) * 50


def sizes() -> dict[str, tuple[int, int]]:
    """Lines of each part and folder, and the most that are allowed."""
    of_parts = {p.capability: (lines(files_of(p)), p.budget) for p in PARTS}
    folders = ((folder, (ROOT / folder).rglob("*.py")) for folder in FOLDERS)
    return of_parts | {f"all of {f}/": (lines(x), FOLDERS[f]) for f, x in folders}


def users_of(part: Part) -> str:
    """Folders whose other files name a module, or what the top level shows of it."""
    modules = part.modules.split() or ["sweep"]
    levels = (snnjax, snnjax.deploy)
    public = {name: getattr(level, name) for level in levels for name in level.__all__}
    home = re.compile(rf"snnjax\.(deploy\.)?({'|'.join(modules)})\b")

    def is_of_part(value: object) -> bool:
        return bool(home.match(getattr(value, "__module__", None) or ""))

    names = "|".join([*modules, *(n for n, v in public.items() if is_of_part(v))])
    pattern = rf"\bsnnjax(\.deploy)?(\.| import .*\b)({names})\b"
    folders = []
    for folder in USERS:
        files = {*(ROOT / folder).rglob("*.py"), *(ROOT / folder).rglob("*.md")}
        others = {*files_of(part), *(ROOT / "docs" / "api").iterdir()}
        if any(re.search(pattern, file.read_text()) for file in files - others):
            folders.append(folder)
    return ", ".join(folders)


def table_of(argv: Sequence[str]) -> str:
    """The table that the command prints; it has no options."""
    argparse.ArgumentParser(prog="prices", description=__doc__).parse_args(argv)
    size = {name: tuple(map(str, pair)) for name, pair in sizes().items()}
    rows = []
    for part in PARTS:
        tests = lines(ROOT / "tests" / f"test_{name}.py" for name in part.tests.split())
        where = ", ".join(f"`{name}`" for name in part.modules.split())
        numbers = *size.pop(part.capability), str(tests)
        rows.append((part.capability, where, *numbers, users_of(part)))
    rows += ((name, "", *numbers, "", "") for name, numbers in size.items())
    return markdown_table(HEAD, rows)


if __name__ == "__main__":
    print(table_of(sys.argv[1:]), end="")
