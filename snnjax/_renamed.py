"""Names that have moved: the older spelling raises an error that names the new one."""

from collections.abc import Callable, Mapping
from typing import Any


def renamed(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """A module's ``__getattr__``, for older names and what stands in their place.

    >>> renamed("snnjax.neurons", {"adaptive": "Adaptive"})("adaptive")
    Traceback (most recent call last):
      ...
    AttributeError: snnjax.neurons.adaptive is gone; use Adaptive
    """

    def missing(name: str) -> Any:
        if name in names:
            raise AttributeError(f"{module}.{name} is gone; use {names[name]}")
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    return missing
