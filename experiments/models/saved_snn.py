"""A spiking network on disk: one file `snn.safetensors` of `snnjax.save`.

The extras of its card name the network and the data, so that the SNN can be evaluated
without the source network that it was converted from.
"""

from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn

import snnjax
from experiments.models.zoo import build_from
from snnjax import SNN

SNN_FILE = "snn.safetensors"


class RestoredSNN(NamedTuple):
    """A spiking network, its module and its card."""

    model: nn.Module
    snn: SNN
    card: dict[str, Any]


def load_snn(path: str | Path) -> RestoredSNN:
    """Read a spiking network from the folder `out` of a conversion, or the file in it.

    Its card has the entries of the extras, and from the file's card recipe, accuracy,
    calibration, steps, wait and extras.
    """
    file = Path(path).expanduser().resolve()
    if not file.exists():
        raise FileNotFoundError(
            f"no folder {path} of a spiking network; make one by "
            "python -m experiments.convert"
        )
    if file.is_dir():
        file = file / SNN_FILE
    if not file.is_file():
        raise ValueError(
            f"{path} is no spiking network: that is a file {SNN_FILE}, as "
            "experiments.convert writes it; give its --out folder"
        )
    snn, facts, _ = snnjax.load(file)
    card = dict(facts["extras"])
    for name in ("recipe", "accuracy", "calibration", "steps", "wait", "extras"):
        card[name] = facts[name]
    try:
        model = build_from(card)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"the card of {file} names no network of experiments ({error!r}); read "
            "files that you saved with snnjax.save by snnjax.load"
        ) from None
    return RestoredSNN(model, snn, card)
