"""``python -m snnjax``: what a report of a bug needs; ``renew``: a file's program anew.

The report lists versions, devices, and which optional packages are installed, with the
extra that installs the missing ones.
"""

import argparse
import importlib
import platform
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version

import jax

import snnjax

OPTIONAL = {  # package: (extra, what it is for)
    "safetensors": ("share", "save and load"),
    "nir": ("nir", "snnjax.deploy.to_nir and from_nir"),
    "flax": ("experiments", "the commands' networks"),
    "tensorflow-datasets": ("experiments", "data sets"),
    "torch": ("torch", "snnjax.torch, and training of the source networks"),
}


def report() -> str:
    """Lines of text; finding the devices starts JAX's backend."""
    lines = [
        f"snnjax {snnjax.__version__}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}"
    ]
    for package in ("jax", "jaxlib", "numpy", "optax", "chex"):
        lines.append(f"  {package:20} {_version(package) or 'missing'}")
    for package, (extra, purpose) in OPTIONAL.items():
        missing = f'missing: {purpose}; pip install "snnjax[{extra}]"'
        lines.append(f"  {package:20} {_version(package) or missing}")
    lines.append(_devices())
    lines.append("documentation: help(snnjax), README.md, docs/ (a site: mkdocs serve)")
    return "\n".join(lines)


def _devices() -> str:
    try:
        kinds = [device.device_kind for device in jax.devices()]
    except (RuntimeError, AssertionError) as error:  # what a report is needed for
        return f"JAX finds no devices: {str(error) or type(error).__name__}"
    counts = (f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds))
    return f"backend {jax.default_backend()}: {', '.join(counts)}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _function(name: str) -> Callable:
    """The function that MODULE:FUNCTION names."""
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"no function {name} ({error}); allowed: MODULE:FUNCTION, e.g. my_code:fn "
            "for the function fn(params, x) of my_code.py"
        ) from None


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; a user's error ends with one message and exit code 2."""
    parser = argparse.ArgumentParser(
        prog="python -m snnjax", description="Without a command: versions and devices."
    )
    commands = parser.add_subparsers(dest="command")
    renew = commands.add_parser(
        "renew", help="write the program of a file anew, for this version of JAX"
    )
    renew.add_argument("file", help="a file of snnjax.save; it is replaced")
    renew.add_argument("function", help="MODULE:FUNCTION, the network fn(params, x)")
    options = parser.parse_args(argv)
    if options.command is None:
        print(report())
        return
    try:
        path = snnjax.storage.renew(options.file, _function(options.function))
    except (ValueError, OSError, ImportError) as error:
        parser.error(str(error))
    print(f"{path}: the program is now of jax {jax.__version__}")


if __name__ == "__main__":
    main()
