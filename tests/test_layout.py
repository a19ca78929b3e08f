"""The parts of the library, and that each imports only those above it."""

import ast
from pathlib import Path

import snnjax

FOLDER = Path(snnjax.__file__).parent
PARTS = (
    "surrogate neurons network simulation storage conversion measures training nir"
).split()


def imported(module: Path) -> set[str]:
    """Parts of snnjax that a module imports, inside of functions too."""
    found = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("snnjax.")}
    return found & set(PARTS)


def test_imports_point_one_way():
    parts = {
        p.stem
        for p in FOLDER.iterdir()
        if p.name[0] not in "_." and p.name != "py.typed"
    }
    assert parts == set(PARTS)
    for i, part in enumerate(PARTS):
        files = [FOLDER / f"{part}.py", *(FOLDER / part).glob("*.py")]
        for module in filter(Path.exists, files):
            assert imported(module) <= set(PARTS[: i + 1]), module


def test_one_file_reads_jaxprs():
    reading = [m.name for m in FOLDER.rglob("*.py") if "jax.extend" in m.read_text()]
    assert reading == ["jaxprs.py"]
