"""The parts of the library, what each may import, and what users may rely on."""

import ast
import importlib
import re
import subprocess
import sys
import tarfile
import types
from pathlib import Path

import pytest

import snnjax

FOLDER = Path(snnjax.__file__).parent
# From the bottom: each part imports only those before it.
LAYERS = (
    "_version _progress _programs _types _text _patterns _trees "
    "_ranges _arrays _checks codes surrogate activations sharding "
    "neurons network conformance snn calibrators"
).split()
# Above them, parts that meet only in the layers; a file holds a simulation, compiled.
SIBLINGS = {
    "conversion": set(),
    "simulation": set(),
    "measures": {"simulation"},
    "training": {"simulation"},
    "deploy": set(),
    "storage": {"simulation"},
    "sweep": {"conversion", "measures", "simulation"},
    "torch": set(),
}
# Inside of deploy: what a chip and its profile need, before what rounds for it.
DEPLOY = {
    "lowering": {"lowering"},
    "tools": {"tools", "lowering"},
    "chips": {"chips", "lowering", "tools"},
    "integers": {"integers", "chips", "lowering"},
    "nir": {"nir", "lowering"},
}
PUBLIC = (
    "snnjax snnjax.calibrators snnjax.deploy snnjax.measures snnjax.network "
    "snnjax.neurons snnjax.simulation snnjax.storage snnjax.training"
).split()


def imports(module: Path) -> list[tuple[str, str]]:
    """(module, name) of everything that is imported from snnjax, in functions too."""
    pairs = []
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            pairs += [(node.module, alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            pairs += [(alias.name, "") for alias in node.names]
    return [pair for pair in pairs if pair[0].split(".")[0] == "snnjax"]


def parts(module: Path) -> set[str]:
    """Parts of snnjax that a module imports."""
    paths = (f"{source}.{name}".split(".") for source, name in imports(module))
    return {path[1] for path in paths} & {*LAYERS, *SIBLINGS}


def files(part: str) -> list[Path]:
    file = FOLDER / f"{part}.py"
    return [file] if file.exists() else sorted((FOLDER / part).rglob("*.py"))


def test_every_file_belongs_to_a_part():
    names = {p.stem for p in FOLDER.iterdir() if p.suffix in (".py", "")}
    assert names - {"__init__", "__main__", "__pycache__", "py"} == {*LAYERS, *SIBLINGS}


@pytest.mark.parametrize("part", [*LAYERS, *SIBLINGS])
def test_imports_point_one_way(part):
    if part in SIBLINGS:
        allowed = {*LAYERS, part, *SIBLINGS[part]}
    else:
        allowed = set(LAYERS[: LAYERS.index(part) + 1])
    assert files(part)
    for module in files(part):
        assert parts(module) <= allowed, module


def test_a_network_runs_without_knowing_how_it_was_captured():
    for module in (FOLDER / "network").glob("*.py"):
        sources = {source for source, _ in imports(module)}
        captures = any(
            source.startswith("snnjax.network.capture") for source in sources
        )
        assert not captures or module.name == "__init__.py", module


@pytest.mark.thorough
def test_deploy_is_a_door_that_opens_when_it_is_used():
    """No other part imports it, and its own parts import one way."""
    folder = FOLDER / "deploy"
    assert {p.name for p in folder.iterdir() if (p / "__init__.py").exists()} == {
        *DEPLOY
    }
    for part, allowed in DEPLOY.items():
        for module in (folder / part).glob("*.py"):
            paths = [source.split(".") for source, _ in imports(module)]
            assert {p[2] for p in paths if p[1] == "deploy"} <= allowed, module
    script = (
        "import sys, snnjax;"
        "early = [m for m in sys.modules if m.startswith('snnjax.deploy')];"
        "assert not early, early;"
        "assert callable(snnjax.deploy.quantize) and 'deploy' in dir(snnjax)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=FOLDER.parent)


def test_the_library_imports_a_name_from_the_module_that_defines_it():
    for module in FOLDER.rglob("*.py"):
        if module.name == "__init__.py":
            continue
        for source, name in imports(module):
            folder = FOLDER.parent / Path(*source.split("."))
            submodule = (folder / f"{name}.py").exists() or (folder / name).is_dir()
            assert not folder.is_dir() or submodule, f"{module}: {source}.{name}"


def test_one_file_reads_jaxprs_of_networks_and_one_writes_them_as_onnx():
    readers = {m.name for m in FOLDER.rglob("*.py") if "jax.extend" in m.read_text()}
    assert readers == {"jaxprs.py", "onnx.py"}


def test_no_file_asks_for_the_name_of_an_activation():
    for module in FOLDER.rglob("*.py"):
        asks = re.search(r"(?<!dtype)\.kind (==|!=|in|not)", module.read_text())
        assert not asks, module


@pytest.mark.parametrize("name", PUBLIC)
def test_a_package_hands_on_what_it_imports_and_nothing_else(name):
    package = importlib.import_module(name)
    file = FOLDER.parent / Path(*name.split(".")) / "__init__.py"
    names = {name for _, name in imports(file)}
    assert set(package.__all__) == names - {"no_attribute"}  # for unknown names
    for public in package.__all__:
        if public not in ("__version__", "Calibrator"):  # a string, a type alias
            assert getattr(package, public).__doc__, public


def test_the_top_level_is_small():
    values = [getattr(snnjax, name) for name in snnjax.__all__]
    assert sum(not isinstance(v, types.ModuleType) for v in values) <= 32


def test_every_public_module_lists_its_names_and_the_top_level_shows_no_others():
    assert dir(snnjax) == sorted(snnjax.__all__)
    modules = {getattr(snnjax, name) for name in snnjax.__all__}
    modules = {m for m in modules if isinstance(m, types.ModuleType)}
    for module in (*modules, snnjax.calibrators.formulas):
        assert all(hasattr(module, name) for name in module.__all__), module


@pytest.mark.parametrize(
    ("module", "name", "closest"),
    [
        ("snnjax", "convret", "'convert'"),
        ("snnjax", "radix", "'codes.radix'"),
        ("snnjax", "quantize", ".*'deploy.quantize'"),
        ("snnjax.codes", "raddix", "'radix'"),
        ("snnjax.training", "fine_tune", "'finetune'"),
        ("snnjax.deploy", "quantise", "'quantize'"),
    ],
)
def test_an_unknown_name_is_answered_by_the_closest_ones(module, name, closest):
    place = re.escape(f"module {module!r} has no attribute {name!r}; closest: ")
    with pytest.raises(AttributeError, match=place + closest):
        getattr(importlib.import_module(module), name)


# --------------------------------------------------- experiments, benchmarks, examples

ROOT = FOLDER.parent
# Folders of experiments; each imports only those before it, the commands all.
ROOMS = ("data", "running", "models", "report")
USERS = ("experiments", "benchmarks", "examples")


def dotted_imports(module: Path) -> set[str]:
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
            ours = {n for n in dotted_imports(module) if n.startswith("experiments.")}
            names = [name.split(".") for name in ours]
            # "from experiments.report import page" names a folder; "from experiments
            # import convert" would name a command.
            assert {name[1] for name in names} <= allowed, module
            # Inside of its folder a module imports modules, elsewhere folders.
            for name in names:
                assert len(name) == 3 or name[1] == room, (module, name)


def test_only_public_names_of_the_library_are_used_outside_of_it():
    for module in (m for user in USERS for m in (ROOT / user).rglob("*.py")):
        for name in dotted_imports(module):
            if name.split(".")[0] == "snnjax":
                assert is_public(name), (module, name)
        for name in attributes(module):
            assert is_public(name), (module, name)
    for name in ("sharding.on_mesh", "network.Sites.index"):
        assert is_public(f"snnjax.{name}")
    for name in ("_checks", "network.capture.capture", "measures.metrics"):
        assert not is_public(f"snnjax.{name}")


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


@pytest.mark.slow
def test_the_sdist_holds_what_its_tests_need(tmp_path):
    build_meta = pytest.importorskip("setuptools.build_meta")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        archive = build_meta.build_sdist(str(tmp_path))
    with tarfile.open(tmp_path / archive) as tar:
        names = {Path(*Path(name).parts[1:]) for name in tar.getnames()}
    needed = [*ROOT.glob("tests/*.py"), *ROOT.glob("tests/golden/*.*")]
    needed += [m for user in USERS for m in (ROOT / user).rglob("*.py")]
    assert {path.relative_to(ROOT) for path in needed} <= names
