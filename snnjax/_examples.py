"""Examples: x as a pytree of arrays, [B, ...] each, or [T, B, ...] over time.

One array as a rule; a network may take several, such as tokens and their mask.
"""

from typing import Any

import jax
import jax.numpy as jnp


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

    def shape(leaf: Any) -> jax.ShapeDtypeStruct:
        dims = tuple(leaf.shape) if size is None else (size, *leaf.shape[1:])
        return jax.ShapeDtypeStruct(dims, jnp.result_type(leaf))

    return jax.tree.map(shape, x)


def is_all_floating(x: Any) -> bool:
    """Whether every array of x is of floating point, so that it has a mean."""
    leaves = jax.tree.leaves(x)
    return all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves)
