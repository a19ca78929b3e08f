"""One call of the user's function, for its jaxpr, and what its errors lack.

The function fails here first if it does not fit params and x. Its own error stays as it
is; notes say with what it was called, and the way out of common mistakes.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp

from snnjax._trees import paths_of


def trace(fn: Callable, params: chex.ArrayTree, x: Any) -> tuple[Any, Any]:
    """The jaxpr of a function, and the shapes of its result.

    Args:
        x: shapes and types of the examples.
    """

    # JAX would remember what fn itself closed over at first. It names the place of the
    # wrapped function in its messages, so that users find their own file.
    @functools.wraps(fn)
    def anew(params, x):
        return fn(params, x)

    try:
        return jax.make_jaxpr(anew, return_shape=True)(params, x)
    except Exception as error:  # the user's own function failed: say with what
        leaves = jax.tree.leaves(x)
        arrays = [f"shape {tuple(a.shape)} and dtype {a.dtype}" for a in leaves]
        called = (
            f"snnjax called fn(params, x) with x of {', '.join(arrays)}, and params of "
            f"{_shapes(params)}. Pass x with the batch axis first and the features "
            "that params have weights for, and the network as fn(params, x) -> outputs."
        )
        note = " ".join([called, *_remedies(error, params, x)])
        if type(error) in (TypeError, ValueError):
            explanation = type(error)(f"{error}\n{note}")
            for earlier_note in getattr(error, "__notes__", ()):
                explanation.add_note(earlier_note)
            raise explanation from error
        error.add_note(note)
        raise


def _remedies(error: Exception, params: chex.ArrayTree, x: Any) -> list[str]:
    """A sentence for each common mistake that the error and the shapes speak for."""
    shapes = [tuple(leaf.shape) for leaf in jax.tree.leaves(x)]
    whole = all(jnp.issubdtype(leaf.dtype, jnp.integer) for leaf in jax.tree.leaves(x))
    of_scope = type(error).__name__.startswith("Scope")  # flax.errors
    channels_first = len(shapes[0]) == 4 and shapes[0][1] < min(shapes[0][2:])
    remedies = {
        "params hold no array: give the trained parameters, before x.": not (
            jax.tree.leaves(params)
        ),
        "x is one whole number per example, as labels are: give the images.": (
            whole and shapes == [(shapes[0][0],)]
        ),
        "model.apply of flax takes all variables: give variables, not "
        "variables['params'].": (
            of_scope and isinstance(params, Mapping) and "params" not in params
        ),
        "The second axis of x is its shortest, as of images with the channels first; "
        "flax has them last: x.transpose(0, 2, 3, 1).": channels_first,
        "An if on a value of x cannot be traced: write jnp.where or jax.lax.select.": (
            isinstance(error, jax.errors.TracerBoolConversionError)
        ),
        "NumPy cannot compute in fn: use functions of jax.numpy, e.g. jnp.maximum.": (
            isinstance(error, jax.errors.TracerArrayConversionError)
        ),
        "fn may return arrays only: leave names and other objects out.": (
            "not a valid JAX type" in str(error)
        ),
    }
    return [remedy for remedy, applies in remedies.items() if applies]


def _shapes(params: chex.ArrayTree, most: int = 4) -> str:
    """Names and shapes of the first parameters."""
    leaves = jax.tree_util.tree_leaves(params)
    pairs = list(zip(paths_of(params), leaves, strict=True))
    shapes = [f"{path or 'shape'} {jnp.shape(leaf)}" for path, leaf in pairs[:most]]
    return ", ".join(shapes + ["..."] * (len(pairs) > most)) or "no arrays"
