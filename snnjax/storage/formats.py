"""Older formats of the file, which `load` turns into the present one.

Format 1 (snnjax 0.1) has "delay" for the wait, "reset" for the neuron model, and a
readout correction, a constant added to the outputs, which an SNN has no longer.
"""

import warnings
from pathlib import Path
from typing import Any


def upgraded(
    card: dict[str, Any], structure: dict[str, Any], path: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Card and structure in the present format; a warning says what gets lost."""
    if card["format"] > 1:
        return card, structure
    card = {_RENAMED.get(key, key): value for key, value in card.items()}
    card["neuron"] = {"reset": card.pop("reset")}
    if card["program"] is not None:
        card["program"] = {
            _RENAMED.get(key, key): value for key, value in card["program"].items()
        }
    if structure["readout_correction"] is not None:
        warnings.warn(
            f"{path} was written by snnjax {card['versions']['snnjax']}; its readout "
            "correction, a constant added to the outputs, is left out of the SNN",
            stacklevel=4,
        )
    parts = {name: structure[name] for name in ("params", "neurons")}
    return card, parts


_RENAMED = {"delay": "wait"}
