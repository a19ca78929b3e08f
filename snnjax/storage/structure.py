"""A pytree as named arrays and one JSON entry for each leaf, and back.

    entry = {"path": [[class, key], ...], "array": "params/w", "dtype": .., "shape": ..}

Each step of a path is the class of a node and the key of its child. None and empty
containers also have an entry; its last key is None. The entry of a Python number holds
the number.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from snnjax._trees import name_of

Leaves = list[tuple[Any, Any]]  # path, a sequence of (class, key), and value

BUILTINS = {"dict", "list", "tuple", "NoneType"}  # classes that `rebuild` can make
DTYPES = (  # of the arrays that a file can hold
    "bool uint8 uint16 uint32 uint64 int8 int16 int32 int64 float8_e4m3fn float8_e5m2 "
    "float16 bfloat16 float32 float64 complex64"
).split()


def flatten(tree: Any, path: tuple = ()) -> Leaves:
    """Path and value of every leaf, in JAX's order.

    >>> flatten({"a": (1, None)})[0]
    ((('dict', 'a'), ('tuple', '0')), 1)
    """
    # Flatten one level: every node below this one counts as a leaf.
    children, _ = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda node: node is not tree
    )
    if children and not children[0][0]:
        return [(path, tree)]
    kind = type(tree).__qualname__
    if type(tree) not in (dict, list, tuple, type(None)):
        kind = f"{type(tree).__module__}.{kind}"
    if not children:
        return [((*path, (kind, None)), None)]
    leaves = []
    for (step,), child in children:
        key = getattr(step, "key", None)
        if type(key) not in (str, int):
            if kind == "dict":
                place = "/".join(_keys(path)) or "the top"
                raise ValueError(
                    f"a dict at {place} has the key {key!r}; allowed: str, int"
                )
            key = name_of((step,))
        leaves += flatten(child, (*path, (kind, key)))
    return leaves


def is_empty(path: Any) -> bool:
    """Whether this is the path of None or of an empty container."""
    return bool(path) and path[-1][1] is None


def rebuild(leaves: Leaves) -> Any:
    """The pytree of `flatten`; nodes of other classes than BUILTINS become dicts.

    >>> rebuild(flatten({"a": [1, (2, None)], "b": {}}))
    {'a': [1, (2, None)], 'b': {}}
    """
    path, value = leaves[0]
    if not path:
        return value
    kind, below = path[0][0], {}
    for ((_, key), *rest), value in leaves:
        if key is not None:
            below.setdefault(key, []).append((rest, value))
    children = {key: rebuild(child_leaves) for key, child_leaves in below.items()}
    if kind == "NoneType":
        return None
    if kind in ("list", "tuple"):
        return (list if kind == "list" else tuple)(children.values())
    return children


def fill(like: Any, leaves: Leaves) -> Any:
    """A pytree of the structure of ``like``, with the values of these leaves.

    The classes of nodes may differ, but not their keys. Leaves of ``like`` may be
    ``jax.ShapeDtypeStruct``.

    Raises:
        ValueError: paths or shapes differ. The message names the first difference.
    """
    values, like_leaves = (
        {_keys(path): value for path, value in pairs if not is_empty(path)}
        for pairs in (leaves, flatten(like))
    )
    missing, unknown = (
        ["/".join(keys) for keys in some if keys not in others][:3] or "no leaf"
        for some, others in ((values, like_leaves), (like_leaves, values))
    )
    if values.keys() != like_leaves.keys():
        raise ValueError(
            f"the structures differ: `like` lacks {missing} of {len(values)} leaves "
            f"and has {unknown} besides"
        )
    for keys, like_leaf in like_leaves.items():
        shapes = [getattr(leaf, "shape", None) for leaf in (values[keys], like_leaf)]
        if None not in shapes and shapes[0] != shapes[1]:
            raise ValueError(
                f"{'/'.join(keys)} has shape {shapes[0]}, but in `like` {shapes[1]}"
            )
    return jax.tree.unflatten(
        jax.tree.structure(like), [values[k] for k in like_leaves]
    )


def _keys(path: Any) -> tuple[str, ...]:
    return tuple(str(key) for _, key in path)


def store(part: str, tree: Any, arrays: dict[str, np.ndarray]) -> list[dict]:
    """Entries of a pytree's leaves; adds the arrays to ``arrays``.

    The names of the arrays are ``part`` and the keys of their paths.

    Raises:
        ValueError: a leaf is neither a number nor an array that a file can hold, or a
            key of a dict is neither str nor int.
    """
    entries = []
    for path, value in flatten(tree):
        entry: dict[str, Any] = {"path": path}
        entries.append(entry)
        if type(value) in (bool, int, float):
            entry["number"] = value
        elif not is_empty(path):
            name = "/".join((part, *_keys(path)))
            if isinstance(value, jax.Array) and jnp.issubdtype(
                value.dtype, jax.dtypes.prng_key
            ):
                entry["key"] = str(jax.random.key_impl(value))
                value = jax.random.key_data(value)
            entry["weak"] = getattr(value, "weak_type", False)
            array = _as_numpy(name, value)
            while name in arrays:  # {"a/b": ..} and {"a": {"b": ..}} have the same name
                name += "'"
            arrays[name] = array
            entry |= {"array": name, "dtype": array.dtype.name, "shape": array.shape}
    return entries


def _as_numpy(name: str, value: Any) -> np.ndarray:
    if not isinstance(value, jax.Array | np.ndarray | np.generic):
        raise ValueError(
            f"{name} is a {type(value).__name__}; allowed: arrays and Python numbers. "
            "Keep anything else in fn, e.g. by eqx.partition(model, eqx.is_array)"
        )
    array = np.asarray(value, order="C")
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if array.dtype.name not in DTYPES:
        raise ValueError(
            f"{name} has dtype {array.dtype}; allowed: {', '.join(DTYPES)}"
        )
    return array


def read_leaf(entry: dict[str, Any], data: Mapping[str, bytes]) -> Any:
    """The leaf of an entry, from the bytes of the arrays by name."""
    if "array" not in entry:
        return entry.get("number")
    array = np.frombuffer(data[entry["array"]], jnp.dtype(entry["dtype"]))
    array = array.reshape(entry["shape"])
    if "key" in entry:
        return jax.random.wrap_key_data(jnp.asarray(array), impl=entry["key"])
    if jax.dtypes.canonicalize_dtype(array.dtype) != array.dtype:
        return array  # 64 bits, while jax_enable_x64 is off
    if entry["weak"]:
        weak = jnp.full(array.shape, array.dtype.type(0).item())  # of a Python number
        if weak.dtype == array.dtype:
            return weak.at[...].set(array)
    return jnp.asarray(array)
