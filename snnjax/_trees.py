"""Pytrees: paths of their leaves, kinds of leaves, and x as a tree of examples.

x is one array as a rule, [B, ...], or [T, B, ...] over time; a network may take several
arrays, such as tokens and their mask.
"""

import collections
import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp


def name_of(path: Any) -> str:
    """The path of a leaf as text, its keys with slashes in between."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def paths_of(tree: Any) -> list[str]:
    """The names of all leaves in their order, as `Site.parameters` has them.

    A name is the path without what libraries add to it: the attribute ``value`` of an
    nnx variable, and the ``~`` by which haiku marks modules that ``__init__`` made. No
    two leaves have the same name. If two would, both keep their whole paths. If these
    are equal, since a key holds a slash, a number is added.

    >>> paths_of({"net/~/linear": {"w": 1}, "other": {"w": 2}})
    ['net/linear/w', 'other/w']
    >>> paths_of({"net/linear": {"w": 1}, "net/~/linear": {"w": 2}})
    ['net/linear/w', 'net/~/linear/w']
    >>> paths_of({"a/b": 1, "a": {"b": 2}})
    ['a/b', 'a/b_1']
    """
    paths = [name_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    short_names = [path.removesuffix("/value").replace("/~/", "/") for path in paths]
    counts = collections.Counter(short_names)
    names = []
    for path, short_name in zip(paths, short_names, strict=True):
        names.append(path if counts[short_name] > 1 else short_name)
    return distinct(names)


def distinct(names: Sequence[str]) -> list[str]:
    """The names, with a number added to each that repeats an earlier one.

    A new name is unlike all names, earlier and later ones.

    >>> distinct(["relu", "relu", "relu_1"])
    ['relu', 'relu_2', 'relu_1']
    """
    taken = set(names)
    result: list[str] = []
    used = set()
    for name in names:
        if name in used:
            number = 1
            while f"{name}_{number}" in taken:
                number += 1
            name = f"{name}_{number}"
        used.add(name)
        taken.add(name)
        result.append(name)
    return result


def common_path(paths: Sequence[str]) -> str:
    """The longest path that all paths begin with; of a single path, the path itself.

    >>> common_path(["block/conv/kernel", "block/norm/scale"])
    'block'
    """
    # Despite its name, this function also takes lists, of which it compares the items.
    common_keys = os.path.commonprefix([path.split("/") for path in paths])
    return "/".join(common_keys)


def is_floating(leaf: Any) -> bool:
    """Whether a leaf (array, number or shape) is of floating point."""
    dtype = leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)
    return jnp.issubdtype(dtype, jnp.floating)


def is_kernel(leaf: Any) -> bool:
    """Whether a parameter is a kernel: floating, with two axes or more."""
    return getattr(leaf, "ndim", 0) >= 2 and is_floating(leaf)


def batch_of(x: Any, axis: int = 0) -> int:
    """The number of examples in x, which lie along ``axis`` of all arrays.

    >>> batch_of({"tokens": jnp.zeros((3, 7), int), "mask": jnp.ones((3, 7))})
    3
    """
    return jax.tree.leaves(x)[0].shape[axis]


def shapes_of(x: Any, size: int | None = None) -> Any:
    """The shapes and types of x, to trace a function with.

    Args:
        x: a pytree of arrays, with the examples along axis 0.
        size: number of examples in the result; None: as many as in x.

    >>> shapes_of(jnp.zeros((3, 7)), 2).shape
    (2, 7)
    """

    def array_type(leaf: Any) -> jax.ShapeDtypeStruct:
        shape = tuple(leaf.shape)
        if size is not None:
            shape = (size, *shape[1:])
        return jax.ShapeDtypeStruct(shape, jnp.result_type(leaf))

    return jax.tree.map(array_type, x)
