"""Neuron models in a file: a model of the library by its class and fields, as JSON.

    {"class": "Recurrent", "model": {"class": "IntegrateAndFire", ...}}

The code of any other model is in no file. The file names such a model, and only the
file's program, or an SNN that has the model, can run it.
"""

import collections
import dataclasses
import re
from typing import Any

import jax

from snnjax.neurons.adaptive import Adaptive
from snnjax.neurons.by_site import BySite, by_name, model_of, models_in
from snnjax.neurons.models import IntegrateAndFire
from snnjax.neurons.protocol import chain, inner
from snnjax.neurons.recurrent import Recurrent
from snnjax.neurons.synaptic import Synaptic

# The classes that a file can describe. Their names and fields must never change.
CLASSES: dict[str, Any] = {
    cls.__name__: cls for cls in (IntegrateAndFire, Adaptive, Synaptic, Recurrent)
}


@dataclasses.dataclass(frozen=True)
class Unavailable:
    """Stands for a model whose code the file does not hold. To run it is an error.

    Attributes:
        text: the model as Python printed it.
    """

    text: str

    def __getattr__(self, name: str) -> Any:
        if name not in ("init", "start", "integrate", "fire"):
            raise AttributeError(name)
        raise ValueError(
            f"the file names the neuron model {self.text} and does not hold its code: "
            "only the program of the file can run it, by stored.run(x). With the model "
            "at hand, load the file with like=snn, an SNN that has it"
        )


def undescribed_models(model: Any) -> list[str]:
    """The models, as text, that a file cannot describe."""
    return [repr(each) for each in models_in(model) if not _is_described(each)]


def _is_described(model: Any) -> bool:
    return all(type(part) in CLASSES.values() for part in chain(model))


def describe_model(model: Any) -> dict[str, Any]:
    """A model, or those of all sites, as JSON.

    >>> from snnjax.neurons import recurrent, lif
    >>> describe_model(recurrent(lif(leak=0.25)))["model"]["leak"]
    0.25
    """
    if isinstance(model, BySite):
        return {"sites": [[name, describe_model(each)] for name, each in model.models]}
    if not _is_described(model):
        return {"class": None, "text": repr(model)}
    description: dict[str, Any] = {"class": type(model).__name__}
    for field in dataclasses.fields(model):
        value = getattr(model, field.name)
        if value is inner(model) and value is not None:
            description["model"] = describe_model(value)
        else:
            description[field.name] = value
    return description


def restore_model(description: dict[str, Any]) -> Any:
    """The model, or those of all sites, that `describe_model` described.

    Raises:
        KeyError: the description is of an unknown class.
    """
    fields = dict(description)
    if "sites" in fields:
        models = ((name, restore_model(each)) for name, each in fields["sites"])
        return BySite(tuple(models))
    name = fields.pop("class")
    if name is None:
        return Unavailable(fields["text"])
    inside = [restore_model(fields.pop("model"))] if "model" in fields else []
    return CLASSES[name](*inside, **fields)


def with_models_of(like: Any, model: Any, site_names: list[str]) -> Any:
    """The model with those of the SNN ``like`` where the file holds no code.

    Raises:
        ValueError: the SNN has another model there.
    """
    if isinstance(model, BySite):
        site_names = [name for name, _ in model.models]
    pairs = []
    for name in site_names:
        own = model_of(model, name)
        if isinstance(own, Unavailable):
            text, own = own.text, like.model(name)
            if _without_addresses(repr(own)) != _without_addresses(text):
                raise ValueError(
                    f"the file was written with the neuron model {text} at site "
                    f"{name!r}, and like has {own!r}. Pass an SNN with that model"
                )
        pairs.append((name, own))
    return by_name(pairs) if pairs else model


def _without_addresses(text: str) -> str:
    """A model as Python printed it, without addresses in memory."""
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def restore_params(model: Any, fields: dict[str, Any], like: Any = None) -> Any:
    """The parameters of a site's neurons, a NamedTuple.

    Args:
        model: the neuron model.
        fields: the parameters as a dict, also those of a model inside.
        like: parameters of the same class; needed for a model without description.
    """
    if like is None and not isinstance(model, Unavailable) and _is_described(model):
        key = jax.eval_shape(lambda: jax.random.key(0))
        like = jax.eval_shape(lambda key: model.init((1,), key), key)
    return _as_class_of(like, fields)


def _as_class_of(like: Any, fields: Any) -> Any:
    """The fields as a NamedTuple of the class of ``like``, if there is one."""
    if not isinstance(fields, dict):
        return fields
    values = {
        name: _as_class_of(getattr(like, name, None), value)
        for name, value in fields.items()
    }
    make = type(like) if like is not None else collections.namedtuple("Params", values)
    return make(**values)
