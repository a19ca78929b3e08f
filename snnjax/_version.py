"""Versions: of snnjax, apart from `snnjax` itself so that files can state it."""

from importlib import metadata

__version__ = "0.2.0"


def version_of(package: str) -> str | None:
    """The version of an installed package; None: it is missing."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
