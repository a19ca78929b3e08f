"""The price of each capability of the library: ``python -m experiments.prices``.

A capability costs public names, which users have to know, and options, which are the
parameters with a default. It is worth its price where somebody uses it: in
experiments/, benchmarks/ or examples/, in code that runs in the pages and tutorials of
docs/, or in the recipes of the library, through which users run its calibrators.
CONTRIBUTING.md has the table, and a test lists the names without a user.
"""

import argparse
import ast
import dataclasses
import doctest
import inspect
import json
import re
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import snnjax
from experiments.report import markdown_table

ROOT = Path(__file__).parents[1]
HEAD = ("capability", "public names", "options", "used by")
FOLDERS = ("experiments", "benchmarks", "examples")
RECIPES = "recipes"

# Capability -> modules that define its names. A name belongs to the first capability
# with a module above it.
CAPABILITIES = {
    "convert by recipes": ("snnjax.conversion", "snnjax.sweep"),
    "fit a site": ("snnjax.calibrators",),
    "train": ("snnjax.training",),
    "layers, as a chip sees them": ("snnjax.deploy.lowering",),
    "whole numbers": ("snnjax.deploy.integers",),
    "chips": ("snnjax.deploy.chips",),
    "NIR, both ways": ("snnjax.deploy.nir",),
    "files of other tools": ("snnjax.deploy.tools",),
    "spikes, errors, energy": ("snnjax.measures",),
    "files": ("snnjax.storage",),
    "run in time": ("snnjax.simulation",),
    "codes": ("snnjax.codes",),
    "activations and surrogates": ("snnjax.activations", "snnjax.surrogate"),
    "many devices": ("snnjax.sharding",),
    "PyTorch modules": ("snnjax.torch",),
    "the SNN as a value": ("snnjax.snn",),
    "neurons": ("snnjax.neurons",),
    # The last one also takes ConversionError, which calls itself a name of snnjax.
    "sites and equations": ("snnjax.capture", "snnjax.network", "snnjax"),
}


@dataclasses.dataclass(frozen=True)
class PublicName:
    """A public name: its address, e.g. ``snnjax.measures.energy``, and its value."""

    address: str
    value: Any

    @property
    def name(self) -> str:
        return self.address.rpartition(".")[2]

    @property
    def home(self) -> str:
        """The module that defines it; a constant has none but that of its address."""
        module = getattr(self.value, "__module__", None)
        if isinstance(module, str) and module.startswith("snnjax"):
            return module
        return self.address.rpartition(".")[0]


def public_names(
    module: types.ModuleType = snnjax, address: str = "snnjax"
) -> list[PublicName]:
    """All public names, each once: the shortest address comes first."""
    submodules = []
    names = []
    for name in module.__all__:
        value = getattr(module, name)
        if isinstance(value, types.ModuleType):
            submodules.append((value, f"{address}.{name}"))
        elif name != "__version__":
            names.append(PublicName(f"{address}.{name}", value))
    for submodule, submodule_address in submodules:
        known = {id(public.value) for public in names}
        for public in public_names(submodule, submodule_address):
            if id(public.value) not in known:
                names.append(public)
    return names


def capability_of(public: PublicName) -> str:
    """The capability that a name belongs to."""
    for capability, modules in CAPABILITIES.items():
        for module in modules:
            if f"{public.home}.".startswith(f"{module}."):
                return capability
    raise ValueError(
        f"{public.address} is of {public.home}, which no capability has; add the "
        "module to CAPABILITIES in experiments/prices.py"
    )


# ------------------------------------------------------------------------- the users


def programs() -> Iterator[tuple[str, ast.Module]]:
    """(folder, syntax tree) of all code that uses the library outside of its tests.

    The recipes of the library count as a folder, `RECIPES`.
    """
    for folder in FOLDERS:
        for file in sorted((ROOT / folder).rglob("*.py")):
            yield folder, ast.parse(file.read_text(encoding="utf-8"))
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        yield "docs", ast.parse(code_of_page(page.read_text(encoding="utf-8")))
    for notebook in sorted((ROOT / "docs" / "tutorials").glob("*.ipynb")):
        source = []
        for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "code":
                source.append("".join(cell["source"]))
        yield "docs", ast.parse("\n".join(source))
    # A published recipe is a chain of calibrators: who converts by it uses all of them.
    recipes = ROOT / "snnjax" / "conversion" / "recipes.py"
    yield RECIPES, ast.parse(recipes.read_text(encoding="utf-8"))


def code_of_page(text: str) -> str:
    """The doctests of a page, and its blocks of Python that no doctest can run."""
    source = [example.source for example in doctest.DocTestParser().get_examples(text)]
    for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        if ">>>" not in block:
            source.append(block)
    return "".join(source)


def addresses_in(tree: ast.Module) -> set[str]:
    """Addresses below snnjax that a program imports or reads.

    >>> program = "from snnjax import codes as c; import snnjax; c.rate(); snnjax.best"
    >>> sorted(addresses_in(ast.parse(program)))
    ['snnjax.best', 'snnjax.codes', 'snnjax.codes.rate']
    """
    addresses = set()
    modules = {"snnjax": "snnjax"}  # local name -> address
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith("snnjax."):
            for alias in node.names:
                address = f"{node.module}.{alias.name}"
                addresses.add(address)
                modules[alias.asname or alias.name] = address
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.asname and f"{alias.name}.".startswith("snnjax."):
                    modules[alias.asname] = alias.name
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            first, _, path = ast.unparse(node).partition(".")
            if first in modules and re.fullmatch(r"\w+(\.\w+)*", path):
                addresses.add(f"{modules[first]}.{path}")
    return addresses


def value_at(address: str) -> Any:
    """What an address leads to; None where it leads nowhere, as inside of a value."""
    value = snnjax
    for name in address.split(".")[1:]:
        value = getattr(value, name, None)
    return value


def users() -> dict[str, set[str]]:
    """Address of each public name -> the folders that use it.

    The same value may be public under two addresses, and a use of one is a use of
    both. A class is also used where the signature of a used name has it: a user of
    `snnjax.load` holds a `Stored`.
    """
    names = public_names()
    folders_of_value: dict[int, set[str]] = {id(p.value): set() for p in names}
    for folder, tree in programs():
        for address in addresses_in(tree):
            key = id(value_at(address))
            if key in folders_of_value:
                folders_of_value[key].add(folder)

    # Signatures lead on from class to class, until nothing changes.
    classes = {p.name: id(p.value) for p in names if isinstance(p.value, type)}
    changed = True
    while changed:
        changed = False
        for public in names:
            folders = folders_of_value[id(public.value)]
            for word in words_of_signature(public.value) & classes.keys():
                mentioned = folders_of_value[classes[word]]
                if not folders <= mentioned:
                    mentioned |= folders
                    changed = True
    return {public.address: folders_of_value[id(public.value)] for public in names}


def words_of_signature(value: Any) -> set[str]:
    """Words in the annotations of a function, or of a class and what it defines."""
    annotated = [value]
    if isinstance(value, type):
        for member in vars(value).values():
            if isinstance(member, property):
                member = member.fget
            if inspect.isfunction(member):
                annotated.append(member)
    words: set[str] = set()
    for member in annotated:
        if isinstance(member, type) or inspect.isfunction(member):
            for annotation in inspect.get_annotations(member).values():
                words.update(re.findall(r"\w+", str(annotation)))
    return words


def unused() -> list[str]:
    """Addresses of the public names without a user."""
    return [address for address, folders in users().items() if not folders]


# ------------------------------------------------------------------------- the table


def option_count(value: Any) -> int:
    """Number of parameters with a default.

    >>> option_count(snnjax.latency)
    1
    """
    if not callable(value):
        return 0
    try:
        parameters = inspect.signature(value).parameters.values()
    except ValueError:  # a built-in class has no signature
        return 0
    return sum(parameter.default is not parameter.empty for parameter in parameters)


def table_row(
    capability: str, names: Sequence[PublicName], folders: Mapping[str, set[str]]
) -> tuple[str, str, str, str]:
    """The cells of a capability."""
    listed = ", ".join(f"`{public.name}`" for public in names)
    options = sum(option_count(public.value) for public in names)
    used_in = set().union(*(folders[public.address] for public in names))
    in_order = [folder for folder in (*FOLDERS, "docs", RECIPES) if folder in used_in]
    return capability, listed, str(options), ", ".join(in_order)


def table_of(argv: Sequence[str]) -> str:
    """The table that the command prints; it has no options."""
    argparse.ArgumentParser(prog="prices", description=__doc__).parse_args(argv)
    by_capability: dict[str, list[PublicName]] = {name: [] for name in CAPABILITIES}
    for public in public_names():
        by_capability[capability_of(public)].append(public)
    folders = users()
    rows = []
    for capability, names in by_capability.items():
        rows.append(table_row(capability, names, folders))
    total = len(public_names())
    options = sum(option_count(public.value) for public in public_names())
    rows.append((f"all {total} names", "", str(options), ""))
    return markdown_table(HEAD, rows)


if __name__ == "__main__":
    print(table_of(sys.argv[1:]), end="")
