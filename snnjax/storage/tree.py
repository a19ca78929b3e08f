"""A pytree as leaves by name and a description in JSON, and back.

    {"w": ones(2), "scale": 0.5}  ->  {"params['w']": ones(2)}
                                      {"dict": [["scale", 0.5], ["w", "params['w']"]]}

The name of an array is its path (`jax.tree_util.keystr`). A Python number stands in the
description itself.
"""

from collections.abc import Mapping
from typing import Any

import jax

from snnjax._trees import name_of


def named_leaves(tree: Any, name: str) -> dict[str, Any]:
    """Leaves by the names of their paths, which begin with ``name``; in JAX's order.

    >>> named_leaves({"a": [1, (2, None)]}, "params")
    {"params['a'][0]": 1, "params['a'][1][0]": 2}
    """
    leaves = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        leaf_name = name + jax.tree_util.keystr(path)
        leaves[leaf_name] = leaf
    return leaves


def describe(tree: Any, name: str) -> Any:
    """The description of a tree, with the names of `named_leaves`.

    >>> import numpy as np
    >>> describe({"a": (1, np.ones(2), None)}, "params")
    {'dict': [['a', {'tuple': [1, "params['a'][1]", None]}]]}
    """
    # Flatten one level: every node below this one counts as a leaf.
    children, _ = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda node: node is not tree
    )
    # A leaf is the only child of itself, at the empty path.
    if children and children[0][0] == ():
        if type(tree) in (bool, int, float):
            return tree
        return name
    if tree is None:
        return None
    descriptions = []
    for path, child in children:
        child_name = name + jax.tree_util.keystr(path)
        descriptions.append(describe(child, child_name))
    kind = type(tree)
    if kind is list:
        return descriptions
    if kind is tuple:
        return {"tuple": descriptions}
    pairs = []
    for (path, _), description in zip(children, descriptions, strict=True):
        # The key of a dict, or the name of an attribute.
        key = getattr(path[0], "key", name_of(path))
        if type(key) not in (str, int):
            raise ValueError(f"a dict at {name} has the key {key!r}; allowed: str, int")
        pairs.append([key, description])
    if kind is dict:
        return {"dict": pairs}
    class_name = f"{kind.__module__}.{kind.__qualname__}"
    return {"dict": pairs, "class": class_name}


def rebuild(description: Any, leaves: Mapping[str, Any]) -> Any:
    """The tree of a description; other classes than dict, list and tuple become dicts.

    >>> tree = {"a": [1, (2, None)], "b": {}}
    >>> rebuild(describe(tree, "params"), {}) == tree
    True
    """
    if isinstance(description, str):
        return leaves[description]
    if isinstance(description, list):
        return [rebuild(item, leaves) for item in description]
    if not isinstance(description, dict):
        return description  # None or a number
    if "tuple" in description:
        return tuple(rebuild(description["tuple"], leaves))
    items = {}
    for key, item_description in description["dict"]:
        items[key] = rebuild(item_description, leaves)
    return items


def fill(like: Any, tree: Any) -> Any:
    """The leaves of ``tree`` in the containers of ``like``; classes may differ."""
    values = _by_keys(tree)
    like_leaves = _by_keys(like)
    if values.keys() != like_leaves.keys():
        missing = [keys for keys in values if keys not in like_leaves]
        unknown = [keys for keys in like_leaves if keys not in values]
        raise ValueError(
            f"the structures differ: `like` lacks {_first_paths(missing)} of "
            f"{len(values)} leaves and has {_first_paths(unknown)} besides"
        )
    for keys, like_leaf in like_leaves.items():
        shape = getattr(values[keys], "shape", None)
        like_shape = getattr(like_leaf, "shape", None)
        # Python numbers have no shape, and fit an array of any.
        both_are_arrays = shape is not None and like_shape is not None
        if both_are_arrays and shape != like_shape:
            raise ValueError(
                f"{'/'.join(keys)} has shape {shape}, but in `like` {like_shape}"
            )
    # In the order of `like`, whose containers may hold the same keys in another one.
    leaves = [values[keys] for keys in like_leaves]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _first_paths(leaves: list[tuple[str, ...]]) -> list[str] | str:
    """The paths of at most three leaves, for a message."""
    if not leaves:
        return "no leaf"
    return ["/".join(keys) for keys in leaves[:3]]


def _by_keys(tree: Any) -> dict[tuple[str, ...], Any]:
    """Leaves by the keys of their paths, where an attribute is a key like any other."""
    leaves = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        keys = tuple(name_of((entry,)) for entry in path)
        leaves[keys] = leaf
    return leaves
