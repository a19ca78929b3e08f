"""The parts of the library, and that each imports only those above it."""

import ast
import importlib
import re
import types
from pathlib import Path

import pytest

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


# --------------------------------------------------- experiments, benchmarks, examples

ROOT = FOLDER.parent
# Folders of experiments; each imports only those before it, the commands all.
ROOMS = ("data", "running", "models", "report")
USERS = ("experiments", "benchmarks", "examples")


def imports(module: Path) -> set[str]:
    """Dotted names that a module imports, e.g. ``snnjax.measures.energy``."""
    names = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names


def test_folders_of_experiments_import_one_way():
    folder = ROOT / "experiments"
    folders = {p.name for p in folder.iterdir() if (p / "__init__.py").exists()}
    assert folders == {*ROOMS, "sources"}
    for i, room in enumerate(ROOMS):
        allowed = set(ROOMS[: i + 1])
        for module in (folder / room).glob("*.py"):
            ours = {n for n in imports(module) if n.startswith("experiments.")}
            names = [name.split(".") for name in ours]
            # "from experiments.report import page" names a folder; "from experiments
            # import convert" would name a command.
            assert {name[1] for name in names} <= allowed, module
            # Inside of its folder a module imports modules, elsewhere folders.
            for name in names:
                assert len(name) == 3 or name[1] == room, (module, name)


def test_every_folder_of_experiments_hands_on_what_it_lists():
    for room in ROOMS:
        package = importlib.import_module(f"experiments.{room}")
        assert package.__all__ == sorted(package.__all__), room
        assert all(hasattr(package, name) for name in package.__all__)


def test_only_public_names_of_the_library_are_used_outside_of_it():
    for module in (m for user in USERS for m in (ROOT / user).rglob("*.py")):
        for name in imports(module):
            if name.split(".")[0] == "snnjax":
                assert is_public(name), (module, name)
        for name in attributes(module):
            assert is_public(name), (module, name)


def attributes(module: Path) -> set[str]:
    """Chains that begin with the name snnjax, e.g. ``snnjax.measures.energy``."""
    nodes = ast.walk(ast.parse(module.read_text()))
    chains = {ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)}
    return {c for c in chains if re.fullmatch(r"snnjax(\.\w+)+", c)}


def is_public(name: str) -> bool:
    """Whether each part is a public name of the one before it."""
    where = snnjax
    for part in name.split(".")[1:]:
        if isinstance(where, types.ModuleType):
            names = getattr(where, "__all__", None)
            listed = part in names if names is not None else part[0] != "_"
            if not listed and part != "__version__":
                return False
        where = getattr(where, part, None)
    return True


@pytest.mark.parametrize(
    "name, public",
    [
        ("snnjax.measures.energy", True),
        ("snnjax.sharding.over_batch", True),
        ("snnjax.network.Sites.index", True),
        ("snnjax._files", False),
        ("snnjax.network.capture.capture", False),
        ("snnjax.measures.metrics", False),
    ],
)
def test_what_is_public(name, public):
    assert is_public(name) == public
