"""The version, apart from `snnjax` itself, so that files can state it."""

__version__ = "0.2.0"
