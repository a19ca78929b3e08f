"""What tells one training from another: a digest of arrays, values and functions.

A folder holds the digests of what its training depended on, so that a call with another
optimizer, other labels or another teacher does not resume it. Arrays count by their
numbers. Functions, such as those of optax and a user's teacher, count by their code and
by the values that they read from the scopes around them.
"""

import contextlib
import functools
import hashlib
import inspect
import re
import types
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def digest(tree: Any) -> str:
    """16 hexadecimal digits of a pytree; equal values give equal digests.

    An array counts by its type, shape and numbers (without numbers if other processes
    hold a part of it). A function counts by its code, defaults, enclosed values, and
    the arrays, numbers and functions of its own module that it names. Any other value
    counts by its ``repr`` without addresses.

    >>> def scaled(factor):
    ...     return lambda x: factor * x
    >>> digest(scaled(2)) == digest(scaled(2)), digest(scaled(2)) == digest(scaled(3))
    (True, False)
    """
    hasher = hashlib.sha256()
    _add(hasher, tree, set())
    return hasher.hexdigest()[:16]


def named_digests(function: Any) -> dict[str, str]:
    """The digests of what a function reads from the scopes around it, by name.

    Nothing is known of another value than a function.

    >>> def scaled(factor):
    ...     return lambda x: factor * x
    >>> list(named_digests(scaled(2)))
    ['factor']
    """
    wrapped = inspect.unwrap(function) if callable(function) else function
    if not isinstance(wrapped, types.FunctionType):
        return {}
    values = {}
    for name in wrapped.__code__.co_names:
        value = wrapped.__globals__.get(name)
        if _is_digested(value, wrapped.__module__):
            values[name] = value
    cells = wrapped.__closure__ or ()
    for name, cell in zip(wrapped.__code__.co_freevars, cells, strict=True):
        with contextlib.suppress(ValueError):  # a name that is not bound yet
            values[name] = cell.cell_contents
    return {name: digest(value) for name, value in values.items()}


def _add(hasher: Any, tree: Any, visited: set[int]) -> None:
    """Add a pytree to a digest.

    Args:
        hasher: of hashlib.
        tree: the pytree.
        visited: ids of the functions that were added already; changed in place.
    """
    leaves, structure = _flattened(tree)
    _add_text(hasher, structure)
    for leaf in leaves:
        # The Python function inside an object such as a jitted function.
        wrapped = leaf
        if not isinstance(leaf, types.FunctionType):
            wrapped = inspect.unwrap(leaf)
        if isinstance(leaf, jax.Array | np.ndarray):
            _add_array(hasher, leaf)
        elif isinstance(leaf, functools.partial):
            parts = (leaf.func, leaf.args, leaf.keywords)
            _add(hasher, parts, visited)
        elif inspect.ismethod(leaf):
            parts = (leaf.__func__, leaf.__self__)
            _add(hasher, parts, visited)
        elif isinstance(wrapped, types.FunctionType):
            _add_function(hasher, wrapped, visited)
        else:
            _add_text(hasher, leaf)


def _flattened(tree: Any) -> tuple[list[Any], Any]:
    """Leaves and structure of a pytree; the ``repr`` of what JAX cannot flatten."""
    try:
        return jax.tree.flatten(tree)
    except (TypeError, ValueError):  # a dict whose keys have no order
        return [repr(tree)], None


def _add_text(hasher: Any, value: Any) -> None:
    """Add the ``repr`` of a value, without addresses, which differ between runs."""
    text = re.sub(r" at 0x[0-9a-f]+", "", repr(value))
    hasher.update(text.encode())


def _add_array(hasher: Any, array: jax.Array | np.ndarray) -> None:
    """Add the type, the shape and the numbers of an array."""
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    type_and_shape = f"{array.dtype} {array.shape}"
    hasher.update(type_and_shape.encode())
    # No process has the numbers of an array that is spread over several of them.
    if isinstance(array, np.ndarray):
        has_all_numbers = True
    else:
        has_all_numbers = array.is_fully_replicated or array.is_fully_addressable
    if has_all_numbers:
        hasher.update(np.asarray(array).tobytes())


def _add_function(hasher: Any, function: types.FunctionType, visited: set[int]) -> None:
    """Add the code of a function and what it reads from the scopes around it.

    The arguments are those of `_add`.
    """
    _add_text(hasher, (function.__module__, function.__qualname__))
    if id(function) in visited:  # it calls itself, or was added before
        return
    visited.add(id(function))
    _add(hasher, (function.__defaults__, function.__kwdefaults__), visited)
    for code in _nested_codes(function.__code__):
        hasher.update(code.co_code)
        _add_text(hasher, code.co_names)
        for constant in code.co_consts:
            if isinstance(constant, frozenset):
                # The order of a set differs between processes.
                _add_text(hasher, sorted(map(repr, constant)))
            elif not isinstance(constant, types.CodeType):  # `_nested_codes` has those
                _add_text(hasher, constant)
        for name in code.co_names:
            value = function.__globals__.get(name)
            if _is_digested(value, function.__module__):
                _add(hasher, value, visited)
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # a name that is not bound yet
            _add(hasher, cell.cell_contents, visited)


def _nested_codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """The code of a function and of the functions that are defined within it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _nested_codes(constant)


def _is_digested(value: Any, module: str) -> bool:
    """Whether the digest of a function contains the value of a global variable.

    It contains arrays, numbers, and functions of the module itself. It does not contain
    libraries, and objects that may change from call to call, such as caches.

    Args:
        value: of the variable, which the function reads.
        module: name of the module that defines the function.
    """
    if callable(value):
        return getattr(value, "__module__", None) == module
    leaves, _ = _flattened(value)
    # An empty container may be a cache that fills later, and None stands for a name
    # that is no global, such as that of an attribute.
    if not leaves:
        return False
    return all(
        isinstance(leaf, jax.Array | np.ndarray | int | float) for leaf in leaves
    )
