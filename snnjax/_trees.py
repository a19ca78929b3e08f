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
    two leaves have the same name: where two would, both keep their whole paths, and a
    key that holds a slash itself may ask for a number behind the name.

    >>> paths_of({"net/~/linear": {"w": 1}, "other": {"w": 2}})
    ['net/linear/w', 'other/w']
    >>> paths_of({"net/linear": {"w": 1}, "net/~/linear": {"w": 2}})
    ['net/linear/w', 'net/~/linear/w']
    >>> paths_of({"a/b": 1, "a": {"b": 2}})
    ['a/b', 'a/b_1']
    """
    paths = [name_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]
    short_names = [path.removesuffix("/value").replace("/~/", "/") for path in paths]
    uses = collections.Counter(short_names)
    names = []
    for path, short_name in zip(paths, short_names, strict=True):
        names.append(path if uses[short_name] > 1 else short_name)
    return distinct(names)


def distinct(names: Sequence[str]) -> list[str]:
    """The names, with a number behind each that is a repetition.

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
    """The longest path above all of the paths; a single path is its own.

    >>> common_path(["block/conv/kernel", "block/norm/scale"])
    'block'
    """
    return "/".join(os.path.commonprefix([path.split("/") for path in paths]))


def is_floating(leaf: Any) -> bool:
    """Whether a leaf (array, number or shape) has real numbers."""
    dtype = leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)
    return jnp.issubdtype(dtype, jnp.floating)


def is_kernel(leaf: Any) -> bool:
    """Whether a parameter weighs something: floating, with two axes or more."""
    return getattr(leaf, "ndim", 0) >= 2 and is_floating(leaf)


def batch_of(x: Any, axis: int = 0) -> int:
    """How many examples x holds.

    >>> batch_of({"tokens": jnp.zeros((3, 7), int), "mask": jnp.ones((3, 7))})
    3
    """
    return jax.tree.leaves(x)[0].shape[axis]


def shapes_of(x: Any, size: int | None = None) -> Any:
    """Shapes and types of x, or of so many examples of it, for a trace.

    >>> shapes_of(jnp.zeros((3, 7)), 2).shape
    (2, 7)
    """

    def array_type(leaf: Any) -> jax.ShapeDtypeStruct:
        shape = tuple(leaf.shape)
        if size is not None:
            shape = (size, *shape[1:])
        return jax.ShapeDtypeStruct(shape, jnp.result_type(leaf))

    return jax.tree.map(array_type, x)
