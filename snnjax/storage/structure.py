"""A pytree as JSON and named arrays, and back, without the code of its classes.

None, dict, list, tuple         come back as they are
NamedTuple                      comes back as a dict of its fields
any other node (nnx.State,      comes back as a dict of its children by
equinox modules, ...)           `rebuild(..., nodes=True)`, and as itself by `fill`,
                                which puts the leaves into a tree of the same structure
bool, int, float                come back as Python numbers
"""

from collections.abc import Callable, Iterator
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from snnjax._trees import name_of

Described = Any  # a pytree's structure as JSON

PROGRAM = "program"  # name of the program's array; no leaf may have it

# Types of arrays that a file can hold: safetensors' name -> NumPy's.
DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
}


def describe(tree: chex.ArrayTree, leaf: Callable[[str, Any], dict]) -> Described:
    """The structure of a pytree as JSON.

    Args:
        tree: pytree whose dicts have keys of str or int.
        leaf: (path, value) -> how JSON describes this leaf, a dict; called in JAX's
            order. It is not called for Python numbers.

    Raises:
        ValueError: a dict has other keys.

    >>> describe({"a": (1, None)}, leaf=lambda path, value: {})
    {'dict': [['a', {'tuple': [{'int': 1}, None]}]]}
    """
    return _describe(tree, leaf, "")


def rebuild(
    described: Described, leaf: Callable[[dict], Any], *, nodes: bool = False
) -> Any:
    """The pytree that `describe` described.

    Args:
        described: from `describe`.
        leaf: description of a leaf -> the leaf; it is not called for Python numbers.
        nodes: nodes of other classes become dicts of their children.

    Raises:
        ValueError: there is such a node, and ``nodes`` is False.

    >>> rebuild({"list": [None, {"int": 1}]}, leaf=lambda described: described)
    [None, 1]
    """
    match described:
        case None:
            return None
        case {"dict": pairs} | {"fields": pairs}:
            return {key: rebuild(item, leaf, nodes=nodes) for key, item in pairs}
        case {"list": items}:
            return [rebuild(item, leaf, nodes=nodes) for item in items]
        case {"tuple": items}:
            return tuple(rebuild(item, leaf, nodes=nodes) for item in items)
        case {"node": pairs}:
            if not nodes:
                raise ValueError(f"only its own code can make a {described['of']}")
            return {key: rebuild(item, leaf, nodes=nodes) for key, item in pairs}
        case {"bool": number} | {"int": number} | {"float": number}:
            return number
    return leaf(described)


def fill(
    like: chex.ArrayTree, described: Described, leaf: Callable[[dict], Any]
) -> Any:
    """A pytree of the structure of ``like``, with the leaves that were described.

    Args:
        like: any pytree of the described structure; leaves with a shape (arrays,
            ``jax.ShapeDtypeStruct``) must have the shape of the new ones.
        described, leaf: as for `rebuild`.

    Raises:
        ValueError: paths or shapes differ; the message names the first of them.
    """
    stored = [(path, rebuild(item, leaf)) for path, item in leaves(described)]
    places, structure = jax.tree_util.tree_flatten_with_path(like)
    like_paths = [name_of(path) for path, _ in places]
    paths = [path for path, _ in stored]
    if like_paths != paths:
        missing = sorted(set(paths) - set(like_paths))
        unknown = sorted(set(like_paths) - set(paths))
        if not missing and not unknown:
            raise ValueError(
                f"the leaves have another order: {paths[:3]}, but in `like` "
                f"{like_paths[:3]}"
            )
        raise ValueError(
            f"the structures differ: `like` lacks {missing[:3] or 'no leaf'} of "
            f"{len(paths)} leaves and has {unknown[:3] or 'no leaf'} besides"
        )
    for (path, value), (_, place) in zip(stored, places, strict=True):
        shapes = [getattr(x, "shape", None) for x in (value, place)]
        if None not in shapes and shapes[0] != shapes[1]:
            raise ValueError(
                f"{path} has shape {shapes[0]}, but in `like` it has {shapes[1]}"
            )
    return jax.tree_util.tree_unflatten(structure, [value for _, value in stored])


def leaves(described: Described, path: str = "") -> Iterator[tuple[str, dict]]:
    """Path and description of every leaf, Python numbers too, in JAX's order.

    >>> list(leaves({"dict": [["a", {"list": [{"int": 1}]}]]}))
    [('a/0', {'int': 1})]
    """
    match described:
        case None:
            return
        case {"dict": pairs} | {"fields": pairs} | {"node": pairs}:
            for key, item in pairs:
                yield from leaves(item, _join(path, key))
        case {"list": items} | {"tuple": items}:
            for i, item in enumerate(items):
                yield from leaves(item, _join(path, i))
        case _:
            yield path, described


def store_leaf(arrays: dict[str, np.ndarray], part: str, path: str, value) -> dict:
    """Add a leaf to ``arrays``; return its description.

    Args:
        arrays: name -> array; gets the new one.
        part: "params" or "neurons", the start of its name.
        path: of the leaf in that part, the rest of its name.
        value: the leaf.

    Returns:
        The array's name, and the facts about the leaf that an array cannot hold.

    Raises:
        ValueError: the leaf is no array, or of a type that a file cannot hold.
    """
    name = f"{part}/{path}" if path else part
    facts: dict[str, Any] = {}
    if isinstance(value, jax.Array) and jnp.issubdtype(
        value.dtype, jax.dtypes.prng_key
    ):
        facts["key"] = str(jax.random.key_impl(value))
        value = jax.random.key_data(value)
    if not isinstance(value, jax.Array | np.ndarray | np.generic):
        raise ValueError(
            f"{name} is a {type(value).__name__}; allowed: arrays and Python numbers. "
            "What is no number belongs to the function, not to params, e.g. by "
            "eqx.partition(model, eqx.is_array)"
        )
    if getattr(value, "weak_type", False):
        facts["weak"] = True
    array = np.asarray(value, order="C")
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if array.dtype.name not in DTYPES.values():
        raise ValueError(
            f"{name} has dtype {array.dtype}; allowed: {', '.join(DTYPES.values())}"
        )
    while name in arrays or name == PROGRAM:
        name += "'"  # {"a/b": ..} and {"a": {"b": ..}} have the same path
    arrays[name] = array
    return {"array": name, **facts}


def read_leaf(arrays: dict[str, np.ndarray], described: dict) -> Any:
    """The leaf as it was saved; None for a Python number."""
    if "array" not in described:
        return None
    array = arrays[described["array"]]
    if "key" in described:
        return jax.random.wrap_key_data(jnp.asarray(array), impl=described["key"])
    if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
        return array  # 64 bits, while jax_enable_x64 is off
    if "weak" in described:
        zero = array.dtype.type(0).item()
        weak = jnp.full(array.shape, zero)  # weakly typed, being of a Python number
        if weak.dtype == array.dtype:
            return weak.at[...].set(array)
    return jnp.asarray(array)


def _describe(tree, leaf, path: str) -> Described:
    """`describe` of the subtree at a path."""
    if tree is None:
        return None
    if type(tree) in (bool, int, float):
        return {type(tree).__name__: tree}
    children = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda node: node is not tree
    )[0]
    if children and not children[0][0]:  # its only child is itself: a leaf
        return leaf(path, tree)
    keys = _keys(tree, [child_path for child_path, _ in children], path)
    items = [
        _describe(child, leaf, _join(path, key))
        for key, (_, child) in zip(keys, children, strict=True)
    ]
    pairs = [[key, item] for key, item in zip(keys, items, strict=True)]
    if type(tree) is dict:
        return {"dict": pairs}
    if type(tree) in (list, tuple):
        return {type(tree).__name__: items}
    name = f"{type(tree).__module__}.{type(tree).__qualname__}"
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return {"fields": pairs, "of": name}
    return {"node": pairs, "of": name}


def _keys(tree, child_paths, path: str) -> list:
    """Keys of the children of the node at ``path``; of a dict as they are."""
    if type(tree) is not dict:
        return [name_of(child_path) for child_path in child_paths]
    keys = [child_path[0].key for child_path in child_paths]
    for key in keys:
        if type(key) not in (str, int):
            raise ValueError(
                f"a dict at {path or 'the top'} has the key {key!r}; allowed: str, int"
            )
    return keys


def _join(path: str, key) -> str:
    return f"{path}/{key}" if path else str(key)
