"""Pytrees: paths of their leaves, kinds of leaves, and a scaled sum of two trees."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp


def name_of(path: Any) -> str:
    """The path of a leaf as text, its keys with slashes in between."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def common_path(paths: Sequence[str]) -> str:
    """The longest path above all of the paths; a single path is its own.

    >>> common_path(["block/conv/kernel", "block/norm/scale"])
    'block'
    """
    if len(paths) == 1:
        return paths[0]
    split = [path.split("/") for path in paths]
    shared = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return "/".join(shared)


def is_floating(leaf: Any) -> bool:
    """Whether a leaf (array, number or shape) has real numbers."""
    dtype = leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)
    return jnp.issubdtype(dtype, jnp.floating)


def is_kernel(leaf: Any) -> bool:
    """Whether a parameter weighs something: floating, with two axes or more."""
    return getattr(leaf, "ndim", 0) >= 2 and is_floating(leaf)


@jax.jit
def add_scaled(a: Any, b: Any, factor: Any) -> Any:
    """a + factor b, leaf by leaf."""
    return jax.tree.map(lambda x, y: x + factor * y, a, b)
