"""A spiking network on disk: one file `snn.safetensors` of `snnjax.save`.

The extras of its card name the network and the data, so that the SNN is restored and
evaluated without the source network that it was converted from.
"""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

import snnjax
from experiments.models import build
from snnjax import SNN, Sites

FILE = "snn.safetensors"


class Restored(NamedTuple):
    """A spiking network, its module and its card."""

    model: nn.Module
    snn: SNN
    card: dict[str, Any]


def save_snn(out: Path, snn: SNN, card: dict[str, Any], **known: Any) -> Path:
    """Write `snn.safetensors` into the folder `out`.

    Args:
        out: the folder.
        snn: from `snnjax.convert`.
        card: of the source network, and what else is to be kept.
        known: recipe, accuracy and calibration, as `snnjax.save` takes them.
    """
    return snnjax.save(out / FILE, snn, extras=card, **known)


def load_snn(path: str | Path) -> Restored:
    """Read a spiking network.

    Args:
        path: the folder `out` of a conversion, or the file in it.

    Returns:
        Its card is that of `snnjax.load`, with the extras beside the rest.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds no spiking network.
    """
    file = Path(path).expanduser().resolve()
    if not file.exists():
        raise FileNotFoundError(
            f"no folder {path} of a spiking network; make one by "
            "python -m experiments.convert"
        )
    if file.is_dir():
        file = file / FILE
    if not file.is_file():
        raise ValueError(
            f"{path} is no spiking network: that is a file {FILE}, as "
            "experiments.convert writes it; give its --out folder"
        )
    snn, found, _ = snnjax.load(file)
    card = {**found["extras"], **found}
    try:
        model = build(
            card["model"], card["num_classes"], norm=card["norm"], clip=card["clip"]
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"the card of {file} names no network of experiments ({error!r}); what "
            "you saved by snnjax.save yourself is read by snnjax.load"
        ) from None
    return Restored(model, snn, card)


def canonical(snn: SNN, classes: int, sites: Sites) -> SNN:
    """The same network with parameters of one shape, whatever the recipe.

    Programs that are compiled for one recipe then serve all: thresholds and biases per
    channel, potentials per neuron, a readout correction even if it is zero.
    """
    neurons = dict(snn.neurons)
    for site in sites:
        if site.fires:
            neuron = neurons[site.name]
            start = jnp.broadcast_to(neuron.initial_potential, site.shape)
            neurons[site.name] = neuron._replace(
                threshold=jnp.broadcast_to(neuron.threshold, site.shape[-1:]),
                bias=jnp.broadcast_to(neuron.bias, site.shape[-1:]),
                initial_potential=start,
            )
    correction = snn.readout_correction
    correction = jnp.zeros(classes) if correction is None else correction
    return dataclasses.replace(snn, neurons=neurons, readout_correction=correction)
