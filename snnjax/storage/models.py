"""Neuron models in a file: those of the library by name and fields, as JSON.

    {"model": "Recurrent", "neuron": {"model": "IntegrateAndFire", "leak": 0.5, ...}}

A model of the user's own is code, which no file holds: the file names it, and only its
program can run it.
"""

import collections
import dataclasses
from typing import Any

from snnjax.neurons.adaptive import Adaptive, AdaptiveParams
from snnjax.neurons.by_site import BySite, models_in
from snnjax.neurons.models import IntegrateAndFire, NeuronParams
from snnjax.neurons.protocol import Neuron
from snnjax.neurons.recurrent import Recurrent, RecurrentParams
from snnjax.neurons.synaptic import Synaptic, SynapticParams

# Models that a file can describe, and the class of their parameters.
_CLASSES = {
    IntegrateAndFire: NeuronParams,
    Adaptive: AdaptiveParams,
    Synaptic: SynapticParams,
    Recurrent: RecurrentParams,
}
_BY_NAME = {cls.__name__: cls for cls in _CLASSES}


@dataclasses.dataclass(frozen=True)
class Unavailable:
    """Stands for a model whose code a file does not hold; whatever it does is an error.

    Attributes:
        text: the model as Python printed it.
    """

    text: str

    def init(self, shape: tuple[int, ...] = (), key: Any = None) -> Any:
        """Raise."""
        self._refuse()

    def start(self, params: Any, shape: tuple[int, ...]) -> Any:
        """Raise."""
        self._refuse()

    def integrate(self, params: Any, state: Any, current: Any) -> Any:
        """Raise."""
        self._refuse()

    def fire(self, params: Any, state: Any) -> Any:
        """Raise."""
        self._refuse()

    def _refuse(self) -> None:
        raise ValueError(
            f"the file names the neuron model {self.text}, and does not hold its code: "
            "only the file's program can run it, by stored.run(x). With the model at "
            "hand, load the file with like=snn, an SNN that has it, or put it in by "
            "dataclasses.replace(snn, neuron=model)"
        )


def unknown_models(neuron: Any) -> list[str]:
    """The models, as text, that a file cannot describe."""
    return [repr(model) for model in models_in(neuron) if not _is_known(model)]


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
    if not _is_known(neuron):
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
    return _BY_NAME[name](**fields)


def restore_params(model: Neuron, fields: dict[str, Any]) -> Any:
    """The parameters of a model from a dict of their fields."""
    if type(model) not in _CLASSES:
        return _named_tuple(fields)
    inner = getattr(model, "neuron", None)
    if inner is not None:
        fields = fields | {"neuron": restore_params(inner, fields["neuron"])}
    return _CLASSES[type(model)](**fields)


def _named_tuple(fields: dict[str, Any]) -> Any:
    """Parameters of an unknown class, with its fields."""
    inner = {
        name: _named_tuple(value) if isinstance(value, dict) else value
        for name, value in fields.items()
    }
    return collections.namedtuple("Params", inner)(**inner)


def _is_known(model: Any) -> bool:
    inner = getattr(model, "neuron", None)
    return type(model) in _CLASSES and (inner is None or _is_known(inner))
