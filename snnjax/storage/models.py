"""Neuron models in a file: those of the library by name and fields, as JSON.

    {"model": "Recurrent", "neuron": {"model": "IntegrateAndFire", "leak": 0.5, ...}}

A model of the user's own is code, which no file holds: the file names it, and only its
program can run it.
"""

import collections
import dataclasses
import re
from typing import Any

from snnjax.neurons.adaptive import Adaptive, AdaptiveParams
from snnjax.neurons.by_site import BySite, models_in
from snnjax.neurons.models import IntegrateAndFire, NeuronParams
from snnjax.neurons.protocol import Neuron, chain, inner
from snnjax.neurons.recurrent import Recurrent, RecurrentParams
from snnjax.neurons.synaptic import Synaptic, SynapticParams

# Models that a file can describe; their names in it must stay as they are.
_MODELS: dict[str, Any] = {
    "IntegrateAndFire": IntegrateAndFire,
    "Adaptive": Adaptive,
    "Synaptic": Synaptic,
    "Recurrent": Recurrent,
}
_PARAMS: dict[Any, Any] = {
    IntegrateAndFire: NeuronParams,
    Adaptive: AdaptiveParams,
    Synaptic: SynapticParams,
    Recurrent: RecurrentParams,
}


@dataclasses.dataclass(frozen=True)
class Unavailable:
    """Stands for a model whose code a file does not hold; whatever it does is an error.

    Attributes:
        text: the model as Python printed it.
    """

    text: str

    def init(self, shape: tuple[int, ...] = (), key: Any = None) -> Any:
        """Raise."""
        self._raise()

    def start(self, params: Any, shape: tuple[int, ...]) -> Any:
        """Raise."""
        self._raise()

    def integrate(self, params: Any, state: Any, current: Any) -> Any:
        """Raise."""
        self._raise()

    def fire(self, params: Any, state: Any) -> Any:
        """Raise."""
        self._raise()

    def _raise(self) -> None:
        raise ValueError(
            f"the file names the neuron model {self.text}, and does not hold its code: "
            "only the file's program can run it, by stored.run(x). With the model at "
            "hand, load the file with like=snn, an SNN that has it, or put it in by "
            "dataclasses.replace(snn, model=model)"
        )


def models_without_description(neuron: Any) -> list[str]:
    """The models, as text, that a file cannot describe."""
    return [repr(model) for model in models_in(neuron) if not _is_described(model)]


def describe_model(neuron: Any) -> dict[str, Any]:
    """A model, or those of all sites, as JSON.

    >>> from snnjax.neurons import recurrent, lif
    >>> describe_model(recurrent(lif(leak=0.25)))["neuron"]["leak"]
    0.25
    """
    if isinstance(neuron, BySite):
        return {
            "sites": [[name, describe_model(model)] for name, model in neuron.models]
        }
    if not _is_described(neuron):
        return {"model": None, "text": repr(neuron)}
    fields = {f.name: getattr(neuron, f.name) for f in dataclasses.fields(neuron)}
    if "neuron" in fields:
        fields["neuron"] = describe_model(fields["neuron"])
    return {"model": type(neuron).__name__, **fields}


def restore_model(description: dict[str, Any]) -> Any:
    """The model, or those of all sites, that `describe_model` described.

    Raises:
        KeyError: a model of a newer version.
    """
    fields = dict(description)
    if "sites" in fields:
        return BySite(
            tuple((name, restore_model(model)) for name, model in fields["sites"])
        )
    name = fields.pop("model", IntegrateAndFire.__name__)  # the only one of format 1
    if name is None:
        return Unavailable(fields["text"])
    if "neuron" in fields:
        fields["neuron"] = restore_model(fields["neuron"])
    return _MODELS[name](**fields)


def restore_params(model: Neuron, fields: dict[str, Any], like: Any = None) -> Any:
    """The parameters of a model from a dict of their fields.

    Args:
        like: parameters of its class, of a model that a file cannot describe.
    """
    inside = fields.get("neuron")
    if isinstance(inside, dict):
        model_inside, like_inside = inner(model), inner(like)
        fields = fields | {"neuron": restore_params(model_inside, inside, like_inside)}
    if type(model) in _PARAMS:
        return _PARAMS[type(model)](**fields)
    if like is not None:
        return type(like)(**fields)
    return collections.namedtuple("Params", fields)(**fields)


def without_addresses(text: str) -> str:
    """A model as Python printed it, without places in memory."""
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def _is_described(model: Any) -> bool:
    return all(type(part) in _PARAMS for part in chain(model))
