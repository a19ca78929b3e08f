"""A spiking network on disk: orbax folder `snn` and card `snn.json`.

The card names the network, the data, steps, delay and recipe, so that the SNN is
restored and evaluated without the source network that it was converted from.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from experiments.models import build
from experiments.source import read_arrays
from snnjax import SNN, Sites
from snnjax.neurons import NeuronParams


class Restored(NamedTuple):
    """A spiking network, its module and its card."""

    model: nn.Module
    snn: SNN
    card: dict[str, Any]


def save_snn(out: Path, snn: SNN, card: dict[str, Any]) -> Path:
    """Write the folder `snn` and its card `snn.json` into the folder `out`.

    Args:
        out: absolute path.
        snn: from `snnjax.convert`.
        card: of the source network, and what else is to be kept.
    """
    arrays = {
        "params": snn.params,
        "neurons": {name: _present(n) for name, n in _flat(snn.neurons).items()},
        "readout": {} if snn.readout is None else {"correction": snn.readout},
    }
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(out / "snn", arrays, force=True)
    fitted = {"steps": snn.steps, "delay": snn.delay, "reset": snn.reset}
    (out / "snn.json").write_text(json.dumps({**card, **fitted}, indent=2) + "\n")
    return out / "snn"


def load_snn(path: str | Path) -> Restored:
    """Read a spiking network.

    Args:
        path: the folder `out` of a conversion, or the folder `snn` in it.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds no spiking network.
    """
    folder = Path(path).expanduser().resolve()
    if not folder.is_dir():
        raise FileNotFoundError(
            f"no folder {path} of a spiking network; make one by "
            "python -m experiments.convert"
        )
    if (folder / "snn").is_dir():
        folder = folder / "snn"
    card_file = folder.with_name(f"{folder.name}.json")
    if not (folder / "_METADATA").is_file() or not card_file.is_file():
        raise ValueError(
            f"{path} is no spiking network: that is a folder `snn` beside a card "
            "`snn.json`, as experiments.convert writes them; give its --out folder"
        )
    try:
        card = json.loads(card_file.read_text())
        model = build(
            card["model"], card["num_classes"], norm=card["norm"], clip=card["clip"]
        )
        fitted = {name: card[name] for name in ("steps", "delay", "reset")}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"card {card_file} describes no SNN: {error!r}") from None
    with ocp.StandardCheckpointer() as checkpointer:
        found = checkpointer.metadata(folder).item_metadata.tree
        arrays = read_arrays(checkpointer, folder, found)
    neurons = {
        name.replace("|", "/"): NeuronParams(**fields)
        for name, fields in arrays["neurons"].items()
    }
    readout = arrays["readout"].get("correction")
    snn = SNN(arrays["params"], neurons, readout, **fitted)
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
    readout = jnp.zeros(classes) if snn.readout is None else snn.readout
    return dataclasses.replace(snn, neurons=neurons, readout=readout)


def _flat(neurons: dict[str, NeuronParams]) -> dict[str, NeuronParams]:
    # Orbax takes "/" in a key for a folder.
    return {name.replace("/", "|"): neuron for name, neuron in neurons.items()}


def _present(neuron: NeuronParams) -> dict[str, jax.Array]:
    return {k: v for k, v in neuron._asdict().items() if v is not None}
