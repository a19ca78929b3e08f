"""Models and codes in a file: those of the library by class and fields, as JSON.

    {"class": "Recurrent", "model": {"class": "IntegrateAndFire", ...}}
    {"name": "radix", "arguments": [2.0]}

A file does not store the code of other models, only their text. To run such a model,
use the file's program or load the file with an SNN that has the model.
"""

import collections
import dataclasses
import json
import re
from typing import Any

import jax

from snnjax import codes
from snnjax.codes import Code
from snnjax.neurons.by_site import BySite, models_in
from snnjax.neurons.models import IntegrateAndFire
from snnjax.neurons.protocol import chain, inner
from snnjax.neurons.whole import WholeNumbers
from snnjax.neurons.wrappers import Adaptive, Recurrent, Synaptic

# The classes that a file can describe. Their names and fields must never change.
CLASSES: dict[str, Any] = {
    cls.__name__: cls
    for cls in (IntegrateAndFire, Adaptive, Synaptic, Recurrent, WholeNumbers)
}


@dataclasses.dataclass(frozen=True)
class Unavailable:
    """Placeholder for a model whose code the file does not hold; it cannot run.

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

    >>> from snnjax.neurons import Recurrent, lif
    >>> describe_model(Recurrent(lif(leak=0.25)))["model"]["leak"]
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


def restore_model(description: dict[str, Any], like: Any = None) -> Any:
    """The model, or those of all sites, that `describe_model` described.

    Args:
        description: from `describe_model`.
        like: the same model; needed where the file does not hold the code.

    Raises:
        KeyError: the description is of an unknown class.
        ValueError: ``like`` is another model.
    """
    model = _restored(description)
    if like is None or all(map(_is_described, models_in(model))):
        return model
    texts = [json.dumps(each) for each in (description, describe_model(like))]
    of_file, of_like = (re.sub(r" at 0x[0-9a-f]+", "", text) for text in texts)
    if of_file != of_like:
        raise ValueError(
            f"the file was written with the neuron model {of_file}, and like has "
            f"{of_like}. Pass an SNN with that model"
        )
    return like


def _restored(description: dict[str, Any]) -> Any:
    fields = dict(description)
    if "sites" in fields:
        models = ((name, _restored(each)) for name, each in fields["sites"])
        return BySite(tuple(models))
    name = fields.pop("class")
    if name is None:
        return Unavailable(fields["text"])
    inside = [_restored(fields.pop("model"))] if "model" in fields else []
    return CLASSES[name](*inside, **fields)


def describe_code(code: Code) -> dict[str, Any]:
    """A code as JSON; its name is None if it is none of `snnjax.codes`.

    >>> describe_code(codes.radix(base=4))
    {'name': 'radix', 'arguments': [4.0]}
    """
    name = _NAMES.get(type(code))
    if name is None:
        return {"name": None, "text": repr(code)}
    fields = [getattr(code, field.name) for field in dataclasses.fields(code)]
    return {"name": name, "arguments": fields}


def restore_code(description: dict[str, Any], like: Code | None = None) -> Code:
    """The code that `describe_code` described; rate coding where there is none.

    Args:
        like: the same code; needed where the file does not hold it.

    Raises:
        ValueError: a code of one's own, and ``like`` is another one.
    """
    if not description:
        return codes.rate()
    if description["name"] is not None:
        return _CODES[description["name"]](*description["arguments"])
    if repr(like) != description["text"]:
        raise ValueError(
            f"the file was written with the code {description['text']}, whose Python "
            "code it does not hold. Load it with like=snn, an SNN with that code"
        )
    assert like is not None
    return like


# The codes that a file can describe. Their names must never change.
_CODES: dict[str, Any] = {
    "rate": codes.rate,
    "radix": codes.radix,
    "harmonic": codes.harmonic,
    "weighted": codes.weighted,
}
_NAMES = {
    type(code): name
    for name, code in (
        ("rate", codes.rate()),
        ("radix", codes.radix()),
        ("harmonic", codes.harmonic()),
        ("weighted", codes.weighted((1,))),
    )
}


def restore_params(model: Any, fields: dict[str, Any], like: Any = None) -> Any:
    """The parameters of a site's neurons, a NamedTuple.

    Args:
        model: the neuron model.
        fields: the parameters as a dict, also those of a model inside.
        like: parameters of the same class; needed for a model without description.
    """
    if like is None and _is_described(model):
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
