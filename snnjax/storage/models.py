"""Models and codes in a file: those of the library by class and fields, as JSON.

    {"class": "Recurrent", "neuron": {"class": "IntegrateAndFire", ...}, ...}

A file holds no Python code. Of a class that is not in CLASSES it holds only the text.
To run such a model, load the file with it, or use the file's program.
"""

import collections
import dataclasses
import re
from typing import Any

import jax

from snnjax import codes
from snnjax.neurons.by_site import BySite
from snnjax.neurons.fresh import TimeConstants, Uniform
from snnjax.neurons.models import IntegrateAndFire, ResonateAndFire
from snnjax.neurons.wrappers import Adaptive, Recurrent, Synaptic, WholeNumbers

# The classes that a file can describe. A file that has other fields is refused.
_CLASSES = (
    IntegrateAndFire,
    ResonateAndFire,
    Adaptive,
    Synaptic,
    Recurrent,
    BySite,
    WholeNumbers,
    Uniform,
    TimeConstants,
    type(codes.rate()),
    type(codes.radix()),
    type(codes.harmonic()),
    type(codes.weighted([1])),
)
CLASSES = {cls.__name__.lstrip("_"): cls for cls in _CLASSES}


def describe(value: Any) -> Any:
    """A model or a code as JSON.

    >>> from snnjax.neurons import Recurrent, lif
    >>> describe(Recurrent(lif(leak=0.25)))["neuron"]["leak"]
    0.25
    >>> describe(codes.radix(base=4))
    {'class': 'Radix', 'base': 4.0}
    """
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if value is None or type(value) in (bool, int, float, str):
        return value
    name = type(value).__name__.lstrip("_")
    if CLASSES.get(name) is type(value):
        fields = {}
        for field in dataclasses.fields(value):
            fields[field.name] = describe(getattr(value, field.name))
        # A model around an unknown one cannot be built again: only the text is left of
        # both. The models of several sites are independent, so that each known one is
        # described although another is unknown.
        if isinstance(value, BySite) or not unknown(fields):
            return {"class": name, **fields}
    # An address differs from run to run.
    text = re.sub(r" at 0x[0-9a-f]+", "", repr(value))
    return {"text": text}


def unknown(description: Any) -> list[str]:
    """The texts of what a description only names."""
    if isinstance(description, dict):
        if "text" in description:
            return [description["text"]]
        description = list(description.values())
    texts = []
    if isinstance(description, list):
        for part in description:
            texts += unknown(part)
    return texts


def restore(description: Any, like: Any = None, *, check: bool = False) -> Any:
    """The model or code of a description, or ``like``, the same model or code.

    With ``check`` it has to be the same; otherwise only where text is left of a model.
    Without ``like``, text takes the place of what a description only names, and says so
    where it is used.
    """
    if like is not None and (check or unknown(description)):
        if describe(like) != description:
            raise ValueError(
                f"the file was written with {description}, and the model is "
                f"{describe(like)}. Pass the former"
            )
        return like
    if isinstance(description, list):
        return tuple(map(restore, description))
    if not isinstance(description, dict):
        return description
    if "text" in description:
        return (
            f"{description['text']}, whose code the file does not hold: load it by "
            "snnjax.load(path, model=...) with this model, or run its program by "
            "stored.run(x)"
        )
    fields = {}
    for name, field_description in description.items():
        fields[name] = restore(field_description)
    kind = CLASSES[fields.pop("class")]
    known_fields = {field.name for field in dataclasses.fields(kind)}
    unknown_fields = fields.keys() - known_fields
    if unknown_fields:
        names = ", ".join(sorted(unknown_fields))
        raise ValueError(
            f"the file has a {kind.__name__} with {names}, which that of this version, "
            "another neuron, has not. Load it with the version of snnjax in its card, "
            "or its arrays by safetensors.numpy"
        )
    return kind(**fields)


def restore_params(model: Any, fields: dict[str, Any], like: Any = None) -> Any:
    """The parameters of a site's neurons as NamedTuples of the classes of ``like``.

    Without ``like`` the model says which; a model of which only text is left does not.
    """
    if like is None and not isinstance(model, str):

        def init() -> Any:
            return model.init((1,), jax.random.key(0))

        like = jax.eval_shape(init)  # only the classes matter, and not the numbers
    return _as_class_of(like, fields)


def _as_class_of(like: Any, fields: Any) -> Any:
    """The fields as a NamedTuple of the class of ``like``, if there is one."""
    if not isinstance(fields, dict):
        return fields
    values = {}
    for name, value in fields.items():
        # The parameters of a model within another are a NamedTuple in a field.
        values[name] = _as_class_of(getattr(like, name, None), value)
    if like is None:
        anonymous_class = collections.namedtuple("Params", values)
        return anonymous_class(**values)
    return type(like)(**values)
