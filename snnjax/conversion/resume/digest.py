"""Digests: what makes a conversion what it is, the same text in every process.

Arrays count with their bytes, functions with their code and what they close over; so
a folder of fits (``folder.py``) detects another network, other images or another
recipe.
"""

import dataclasses
import functools
import hashlib
import inspect
import re
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh

from snnjax.network.equations import Network, Static


def digest(value: Any) -> str:
    """16 digits; equal values have equal ones, others others."""
    return hashlib.sha256(repr(_describe(value)).encode()).hexdigest()[:16]


def outline(network: Network) -> list:
    """What distinguishes two networks: operations, constants, names of sites."""

    def known(v):
        return _describe(v.value) if isinstance(v, Static) else v

    operations = [
        (
            str(eq.primitive),
            [(name, known(value)) for name, value in eq.params],
            [known(v) for v in eq.inputs],
            [str(network.avals[v]) for v in eq.outputs],
        )
        for eq in network.equations
    ]
    return [str(network.sites), operations, _describe(network.constants)]


def _describe(value: Any, above: tuple[int, ...] = ()) -> Any:
    """The same for equal values, in another process too.

    A function is its code, its defaults and what it closes over or is bound to, so
    that another option of a recipe makes another conversion; what it finds in its
    module is not looked at. An object is its class and what it holds.
    """
    if id(value) in above:
        return "itself"
    inner = functools.partial(_describe, above=(*above, id(value)))
    if isinstance(value, np.ndarray) and value.dtype == object:  # its bytes are places
        return inner(value.tolist())
    if isinstance(value, Mesh | AbstractMesh):  # a hash in it depends on the process
        return repr(value)
    if isinstance(value, jax.Array | np.ndarray):
        return _described_array(value)
    if isinstance(value, dict):
        return [(str(key), inner(value[key])) for key in value]
    if isinstance(value, tuple | list):
        items = [inner(item) for item in value]
        return items if type(value) in (tuple, list) else [inner(_called(value)), items]
    if isinstance(value, set | frozenset):  # their order depends on the process
        return sorted(repr(inner(item)) for item in value)
    if isinstance(value, CodeType):
        constants = [inner(constant) for constant in value.co_consts]
        return value.co_code, value.co_names, constants
    if isinstance(value, FunctionType):
        cells = [_content(cell) for cell in value.__closure__ or ()]
        parts = (value.__code__, cells, value.__defaults__, value.__kwdefaults__)
        wrapped = getattr(value, "__wrapped__", None)
        return value.__qualname__, [inner(part) for part in (*parts, wrapped)]
    if isinstance(value, MethodType):
        return inner([value.__func__, value.__self__])
    if isinstance(value, functools.partial):
        return inner([value.func, value.args, value.keywords])
    state = None if isinstance(value, type) else _state(value)
    if state:
        return type(value).__qualname__, inner(state)
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


def _state(value: Any) -> dict[str, Any]:
    """What an object holds, if it is one whose ``repr`` does not tell: by name.

    A class says by a ``repr`` of its own what it is, but a dataclass may shorten its
    arrays; and something that can be called is also what its class does then.
    """
    has_own_repr = type(value).__repr__ is not object.__repr__
    if has_own_repr and not callable(value) and not dataclasses.is_dataclass(value):
        return {}
    state = dict(getattr(value, "__dict__", {}))
    for cls in type(value).__mro__:
        slots = getattr(cls, "__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, name):
                state[name] = getattr(value, name)
    return state | _called(value)


def _called(value: Any) -> dict[str, Any]:
    """What an object's class does when it is called, if it is Python's."""
    call = inspect.getattr_static(type(value), "__call__", None)
    return {"()": call} if isinstance(call, FunctionType) else {}


def _described_array(array: jax.Array | np.ndarray) -> tuple:
    if isinstance(array, jax.Array):
        if not array.is_fully_addressable:  # no process can read all of it
            return array.shape, str(array.dtype)
        if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
            array = jax.random.key_data(array)
    host = np.ascontiguousarray(array)
    digest = hashlib.sha256(host.tobytes()).hexdigest()
    return host.shape, str(host.dtype), digest


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return "empty"
