"""``python -m snnjax``: what a report of a bug needs.

It lists versions, devices, and which optional packages are installed, with the
extra that installs the missing ones.
"""

import argparse
import platform
from collections.abc import Sequence

import jax

import snnjax
from snnjax._version import version_of

OPTIONAL = {  # package: (extra, what it is for)
    "safetensors": ("share", "save and load"),
    "nir": ("nir", "snnjax.deploy.to_nir and from_nir"),
    "flax": ("experiments", "the commands' networks"),
    "tensorflow-datasets": ("experiments", "data sets"),
    "torch": ("torch", "snnjax.torch, and training of the source networks"),
}


def report() -> str:
    """Lines of text about versions, packages and devices.

    To find the devices, JAX starts its backend.
    """
    lines = [
        f"snnjax {snnjax.__version__}, Python {platform.python_version()}, "
        f"{platform.system()} {platform.machine()}"
    ]
    for package in ("jax", "jaxlib", "numpy", "optax", "chex"):
        lines.append(f"  {package:20} {version_of(package) or 'missing'}")
    for package, (extra, purpose) in OPTIONAL.items():
        missing = f'missing: {purpose}; pip install "snnjax[{extra}]"'
        lines.append(f"  {package:20} {version_of(package) or missing}")
    lines.append(_devices())
    lines.append("documentation: help(snnjax), README.md, docs/ (a site: mkdocs serve)")
    return "\n".join(lines)


def _devices() -> str:
    """JAX's backend and devices in a line, e.g. "backend gpu: 2 x NVIDIA H100"."""
    try:
        kinds = [device.device_kind for device in jax.devices()]
    except (RuntimeError, AssertionError) as error:  # the report shows it
        return f"JAX finds no devices: {str(error) or type(error).__name__}"
    counts = [f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds)]
    return f"backend {jax.default_backend()}: {', '.join(counts)}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the report; there are no options, and any other word is an error."""
    parser = argparse.ArgumentParser(
        prog="python -m snnjax",
        description="Prints versions and devices, as a report of a bug needs them.",
    )
    parser.parse_args(arguments)
    print(report())


if __name__ == "__main__":
    main()
