"""Tracing: one call of the user's function gives its jaxpr, or an error with remedies.

The function fails here first if it does not fit params and x. Sentences are added to
its own error, which say with what it was called, and the way out of common mistakes.
They become a part of the message of a TypeError or ValueError, and a note of any other.
A KeyError, as for params of another network, becomes a ValueError.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp

from snnjax._checks import MAP_EXAMPLES
from snnjax._trees import paths_of

_SHOWN = 4  # arrays of x, and of params, that a message describes


def trace(fn: Callable, params: chex.ArrayTree, x: Any) -> tuple[Any, Any]:
    """The closed jaxpr of a function, and the structure of its result.

    Args:
        x: shapes and types of the examples, `jax.ShapeDtypeStruct`.
    """

    # JAX remembers the traces of a function object, and so the arrays that fn closed
    # over at its first call. A new function each time sees the arrays of today. It
    # wraps fn, so that JAX's messages name the user's own file.
    @functools.wraps(fn)
    def new_function(params, x):
        # JAX would make the result anew from the shapes of its leaves, which a class of
        # the user's may not be made of, such as a distribution.
        leaves, structure = jax.tree.flatten(fn(params, x))
        structures.append(structure)
        return leaves

    structures = []
    try:
        return jax.make_jaxpr(new_function)(params, x), structures[-1]
    except Exception as error:  # the user's own function failed
        sentences = [_call_in_words(params, x), *_remedies(error, fn, params, x)]
        note = " ".join(sentences)
        # A message can only be extended in a new exception. That is made of these two
        # classes alone: subclasses may need other arguments than a text.
        if type(error) in (TypeError, ValueError):
            explanation = type(error)(f"{error}\n{note}")
            for earlier_note in getattr(error, "__notes__", ()):
                explanation.add_note(earlier_note)
            raise explanation from error
        if type(error) is KeyError:
            # Its message is the key alone.
            raise ValueError(
                f"fn asks for the key {error}, which its arguments do not have. {note} "
                "Params, or an SNN, of another network have other keys."
            ) from error
        error.add_note(note)
        raise


def _call_in_words(params: chex.ArrayTree, x: Any) -> str:
    """What fn was called with, and what it should be called with."""
    leaves = jax.tree.leaves(x)
    arrays = []
    for leaf in leaves[:_SHOWN]:
        arrays.append(f"shape {tuple(leaf.shape)} and dtype {leaf.dtype}")
    if len(leaves) > _SHOWN:
        arrays.append(f"... ({len(leaves)} arrays)")
    return (
        f"snnjax called fn(params, x) with x of {', '.join(arrays)}, and params of "
        f"{_shapes(params)}. Pass x with the batch axis first and the features "
        "that params have weights for, and the network as fn(params, x) -> outputs."
    )


def _remedies(
    error: Exception, fn: Callable, params: chex.ArrayTree, x: Any
) -> list[str]:
    """A sentence for each common mistake that the error and the shapes point to."""
    if _takes_one_example(fn, params, x):
        return [f"fn takes one example of this x: {MAP_EXAMPLES}."]
    remedies = []
    if not jax.tree.leaves(params):
        remedies.append("params hold no array: give the trained parameters, before x.")
    leaves = jax.tree.leaves(x)
    shape = tuple(leaves[0].shape)
    all_whole = all(jnp.issubdtype(leaf.dtype, jnp.integer) for leaf in leaves)
    if all_whole and len(leaves) == 1 and len(shape) == 1:
        remedies.append(
            "x is one whole number per example, as labels are: give the images."
        )
    if isinstance(x, list | tuple) and len({leaf.shape for leaf in leaves}) == 1:
        remedies.append(
            f"x is a {type(x).__name__} of arrays of the same shape: if each is an "
            "example, give np.stack(x)."
        )
    is_scope_error = type(error).__name__.startswith("Scope")  # of flax.errors
    if is_scope_error and isinstance(params, Mapping) and "params" not in params:
        remedies.append(
            "model.apply of flax takes all variables: give variables, not "
            "variables['params']."
        )
    if len(shape) == 4 and shape[1] < min(shape[2:]):
        remedies.append(
            "The second axis of x is its shortest, as of images with the channels "
            "first; flax has them last: x.transpose(0, 2, 3, 1)."
        )
    if isinstance(error, jax.errors.TracerBoolConversionError):
        remedies.append(
            "An if on a value of x cannot be traced: write jnp.where or jax.lax.select."
        )
    elif isinstance(error, jax.errors.ConcretizationTypeError):
        remedies.append(
            "A value of x has no number while fn is traced: leave float(), int() and "
            ".item() out, which arrays of jax.numpy do not need."
        )
    if isinstance(error, jax.errors.TracerArrayConversionError):
        remedies.append(
            "NumPy cannot compute in fn: use functions of jax.numpy, e.g. jnp.maximum."
        )
    if "not a valid JAX type" in str(error):
        remedies.append("fn may return arrays only: leave names and other objects out.")
    return remedies


def _takes_one_example(fn: Callable, params: chex.ArrayTree, x: Any) -> bool:
    """Whether fn, which failed for x, can be mapped over the first axis of x."""
    try:
        jax.eval_shape(jax.vmap(fn, in_axes=(None, 0)), params, x)
    except Exception:  # the user's own function failed once more
        return False
    return True


def _shapes(params: chex.ArrayTree) -> str:
    """Paths and shapes of the first parameters as text."""
    leaves = jax.tree_util.tree_leaves(params)
    shapes = []
    for path, leaf in zip(paths_of(params), leaves, strict=True):
        shapes.append(f"{path or 'shape'} {jnp.shape(leaf)}")
    if not shapes:
        return "no arrays"
    if len(shapes) > _SHOWN:
        shapes = [*shapes[:_SHOWN], "..."]
    return ", ".join(shapes)
