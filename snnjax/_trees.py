"""What several parts do with pytrees: names of leaves, what they are, and a sum."""

from typing import Any

import jax
import jax.numpy as jnp


def name_of(path: Any) -> str:
    """The path of a leaf as text, its keys with slashes in between."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def is_floating(leaf: Any) -> bool:
    """Whether a leaf (array, number or shape) has real numbers."""
    dtype = leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)
    return jnp.issubdtype(dtype, jnp.floating)


@jax.jit
def add_scaled(a: Any, b: Any, factor: Any) -> Any:
    """a + factor b, leaf by leaf."""
    return jax.tree.map(lambda x, y: x + factor * y, a, b)


def is_kernel(leaf: Any) -> bool:
    """Whether a parameter weighs something: floating, with two axes or more."""
    return leaf.ndim >= 2 and is_floating(leaf)
