"""Sharding: each device of a mesh has a part of every batch, and all parameters.

No example of a batch affects another one, so each device runs its own examples in a
``shard_map``, without communication, in groups if memory is short. Where a fit or a
gradient sums over all examples, XLA adds the collectives. The calls are the same for
one process and for many.

A ``spread`` is the sharding of a batch, from `over_batch`; None: a single device.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from snnjax._examples import batch_of

__all__ = [
    "check_batch",
    "gathered",
    "in_groups",
    "on_each_device",
    "on_mesh",
    "over_batch",
    "place",
    "size",
]

_Tree = TypeVar("_Tree")


def over_batch(mesh: Mesh | None, x: Any = None) -> NamedSharding | None:
    """The sharding of a batch: over the first axis of the mesh, or that of x.

    Mesh axes become Auto: fits reshape and pad across all images, which Explicit axes
    do not allow.

    Args:
        mesh: None: x decides.
        x: a batch, of which the first array counts; without a NamedSharding it has a
            single device.

    Returns:
        The sharding of the batch axis, or None for a single device.

    Raises:
        ValueError: mesh is no Mesh, or ``jax.set_mesh`` has Explicit axes that share
            the examples.

    >>> import jax
    >>> over_batch(jax.make_mesh((1,), ("data",))).spec[0]
    'data'
    """
    if mesh is not None:
        _check_context()
        if not isinstance(mesh, Mesh):
            raise ValueError(
                f"mesh is {mesh!r}; allowed: a jax.sharding.Mesh, e.g. "
                "jax.make_mesh((jax.device_count(),), ('data',))"
            )
        return NamedSharding(_automatic(mesh), PartitionSpec(mesh.axis_names[0]))
    first = next(iter(jax.tree.leaves(x)), None)
    if isinstance(first, Tracer) and any(_explicit_spec(first)):
        _check_context()
    present = None if isinstance(first, Tracer) else getattr(first, "sharding", None)
    if not isinstance(present, NamedSharding) or not isinstance(present.mesh, Mesh):
        return None
    batch_axes = present.spec[0] if present.spec else None
    if batch_axes is not None:
        _check_context()
    return NamedSharding(_automatic(present.mesh), PartitionSpec(batch_axes))


def size(spread: NamedSharding | None) -> int:
    """Number of devices that share a batch; 1 for None.

    >>> import jax
    >>> spread = over_batch(jax.make_mesh((jax.device_count(),), ("data",)))
    >>> size(spread) == jax.device_count()
    True
    """
    names = None if spread is None else spread.spec[0]
    if spread is None or names is None:
        return 1
    names = names if isinstance(names, tuple) else (names,)
    return math.prod(spread.mesh.shape[name] for name in names)


def platform(x: Any, spread: NamedSharding | None = None) -> str:
    """Of the devices that compute, as JAX names it: "cpu", "gpu" or "tpu".

    They are those of the mesh, or those on which the first array of x lies; traced and
    NumPy arrays lie nowhere, and JAX's default device decides.

    >>> import jax.numpy as jnp
    >>> platform(jnp.ones((8, 3)))
    'cpu'
    """
    if spread is not None and isinstance(spread.mesh, Mesh):
        return spread.mesh.devices.flat[0].platform
    first = next(iter(jax.tree.leaves(x)), None)
    if isinstance(first, jax.Array) and not isinstance(first, Tracer):
        return next(iter(first.devices())).platform
    default = jax.config.jax_default_device  # type: ignore[attr-defined]
    if default is None:
        return jax.default_backend()
    return default if isinstance(default, str) else default.platform


def has_own_examples(x: Any, spread: NamedSharding | None) -> bool:
    """Whether each device sees its own examples only, and can make groups of them.

    That is so on a mesh, and where there is one device. Traced or sharded arrays
    without a mesh may be shared among devices by XLA: groups would gather them. Those
    on Explicit axes, even of one device, cannot be grouped at all.

    >>> import jax.numpy as jnp
    >>> has_own_examples(jnp.ones((8, 3)), None)
    True
    """
    leaves = jax.tree.leaves(x)
    if spread is not None:
        return True
    if any(any(_explicit_spec(leaf)) for leaf in leaves):
        return False
    if jax.device_count() == 1:
        return True
    if any(isinstance(leaf, Tracer) for leaf in leaves):
        return False
    return all(len(getattr(leaf, "devices", set)()) <= 1 for leaf in leaves)


def check_batch(what: str, batch: int, spread: NamedSharding | None) -> None:
    """Raise unless the devices can have equally many examples.

    Args:
        what: name of the batch, for the message.
        batch: number of examples.
    """
    devices = size(spread)
    if devices > 1 and not isinstance(batch, int):
        raise ValueError(
            f"{what}: {devices} devices cannot share {batch} examples, a symbol of "
            "jax.export; export for one batch size, or without mesh="
        )
    if batch % devices:
        raise ValueError(
            f"{what}: {batch} examples cannot be shared evenly by {devices} devices; "
            f"give {batch - batch % devices or devices}, or another multiple of "
            f"{devices}, or a smaller mesh"
        )


def place(x: Any, spread: NamedSharding | None) -> Any:
    """A batch on its devices; each process copies only the examples of its devices.

    Args:
        x: arrays [B, ...], where B is a multiple of `size`.
        spread: from `over_batch`; None: x stays where it is, as all traced arrays do.

    >>> import jax, numpy as np
    >>> spread = over_batch(jax.make_mesh((1,), ("data",)))
    >>> images = place(np.zeros((8, 3)), spread)
    >>> images.sharding.spec[0], over_batch(None, images) == spread
    ('data', True)
    """
    return jax.tree.map(lambda leaf: _place_array(leaf, spread), x)


def _place_array(x: Any, spread: NamedSharding | None) -> Any:
    if spread is None or isinstance(x, Tracer):
        return x
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return _resharding(spread)(x)
    if jax.process_count() > 1:
        host = np.asarray(x)
        return jax.make_array_from_callback(x.shape, spread, lambda part: host[part])
    return jax.device_put(x, spread)


def on_mesh(tree: _Tree, spread: NamedSharding | None) -> _Tree:
    """Arrays on the mesh.

    An array that is sharded over these devices stays so; each device gets a copy of
    every other one.

    >>> import jax, jax.numpy as jnp
    >>> spread = over_batch(jax.make_mesh((1,), ("data",)))
    >>> params = {"w": jnp.ones((3, 2)), "sharded": place(jnp.ones((8, 2)), spread)}
    >>> params = on_mesh(params, spread)
    >>> [tuple(params[name].sharding.spec) for name in ("w", "sharded")]
    [(), ('data',)]
    """
    if spread is None:
        return tree
    everywhere = NamedSharding(spread.mesh, PartitionSpec())

    def move(leaf):
        present = None if isinstance(leaf, Tracer) else getattr(leaf, "sharding", None)
        if not isinstance(present, NamedSharding):
            return place(leaf, everywhere)
        if present.mesh == spread.mesh:
            return leaf
        if not _same_devices(present.mesh, spread.mesh):
            return place(leaf, everywhere)
        return jax.device_put(leaf, NamedSharding(spread.mesh, present.spec))

    return jax.tree.map(move, tree)


def automatic(x: Any, *trees: Any) -> tuple[Any, ...]:
    """x and the trees on one mesh with Auto axes: that of x, or the first of a tree.

    Arrays of Explicit axes and others do not mix, and ``jax.make_mesh`` makes Explicit
    ones. Without a mesh, and while tracing, all stays as it is.

    >>> import jax, jax.numpy as jnp
    >>> spread = NamedSharding(jax.make_mesh((1,), ("data",)), PartitionSpec("data"))
    >>> x, w = automatic(jax.device_put(jnp.ones((8, 3)), spread), jnp.ones((3, 2)))
    >>> (x @ w).shape, w.sharding.mesh == x.sharding.mesh
    ((8, 2), True)
    """
    spreads = (over_batch(None, tree) for tree in (x, *trees))
    spread = next((spread for spread in spreads if spread is not None), None)
    return tuple(on_mesh(tree, spread) for tree in (x, *trees))


def gathered(tree: _Tree, spread: NamedSharding | None) -> _Tree:
    """Sharded arrays, each whole on every device of the mesh.

    >>> import jax, jax.numpy as jnp
    >>> spread = over_batch(jax.make_mesh((1,), ("data",)))
    >>> outputs = place(jnp.zeros((8, 3)), spread)
    >>> tuple(outputs.sharding.spec), tuple(gathered(outputs, spread).sharding.spec)
    (('data',), ())
    """
    if spread is None:
        return tree
    everywhere = NamedSharding(spread.mesh, PartitionSpec())

    def gather(leaf):
        if isinstance(leaf, Tracer):
            return leaf
        if isinstance(leaf, jax.Array) and leaf.sharding == everywhere:
            return leaf
        return place(leaf, everywhere)

    return jax.tree.map(gather, tree)


def placed_like(new: Any, old: Any, spread: NamedSharding | None) -> Any:
    """``new`` with the sharding of ``old``; traced arrays stay as they are."""
    traced = isinstance(new, Tracer) or isinstance(old, Tracer)
    if spread is None or new is old or traced:
        return new
    return place(new, old.sharding)


def rows(x: Any, start: int, count: int, spread: NamedSharding | None) -> Any:
    """Examples of x from ``start`` on, spread over all devices like a batch."""

    def part(leaf: Any) -> Any:
        if spread is None or isinstance(leaf, Tracer):
            return leaf[start : start + count]
        return _slicing(spread, count)(leaf, start)

    return jax.tree.map(part, x)


def join(parts: Sequence[jax.Array], axis: int, spread: NamedSharding | None):
    """Concatenation along the batch axis ``axis``, spread over the devices.

    If they cannot have equally many of the examples, each gets a copy of all.
    """
    if spread is None or isinstance(parts[0], Tracer):
        return jnp.concatenate(parts, axis)
    even = sum(part.shape[axis] for part in parts) % size(spread) == 0
    everywhere = NamedSharding(spread.mesh, PartitionSpec())
    joined = along(axis, spread) if even else everywhere
    return _concatenation(joined, axis)(list(parts))


def along(axis: int, spread: NamedSharding) -> NamedSharding:
    """The same sharding for arrays whose batch axis is ``axis`` in place of 0."""
    spec = PartitionSpec(*[None] * axis, *spread.spec)
    return NamedSharding(spread.mesh, spec)


def on_each_device(
    function: Callable, spread: NamedSharding | None, in_axes: Any, out_axes: Any
) -> Callable:
    """``function`` on each device's own examples.

    Args:
        function: of arrays; no example may affect another.
        spread: the devices; None: returns the function itself.
        in_axes: batch axis per argument, or per leaf of it; None: it has no batch.
        out_axes: batch axis per result, likewise.

    >>> import jax, jax.numpy as jnp
    >>> spread = over_batch(jax.make_mesh((1,), ("data",)))
    >>> layer = on_each_device(lambda w, x: x @ w, spread, (None, 0), 0)
    >>> outputs = layer(jnp.ones((3, 2)), place(jnp.ones((8, 3)), spread))
    >>> outputs.shape, outputs.sharding.spec[0]
    ((8, 2), 'data')
    """
    if spread is None:
        return function

    def spec(axis):
        return PartitionSpec() if axis is None else along(axis, spread).spec

    def specs(axes):
        return jax.tree.map(spec, axes, is_leaf=lambda axis: axis is None)

    return jax.shard_map(
        function,
        mesh=spread.mesh,
        in_specs=specs(in_axes),
        out_specs=specs(out_axes),
        check_vma=False,  # loops start from zeros, which do not vary over devices yet
    )


def in_groups(
    function: Callable, x: Any, size: int | None, axis: int, *, out_axis: int
) -> Any:
    """``function(x)`` of ``size`` examples at a time, one group after the other.

    Args:
        function: of such an x; no example may affect another.
        x: the examples, arrays that have them along ``axis``.
        size: examples in a group; None: all of them.
        axis, out_axis: the batch axis of x, and of all results.

    Returns:
        The results of all examples; the last group may be smaller.

    Raises:
        ValueError: x is traced, and devices share its examples along Explicit axes, or
            their number is a symbol of jax.export.

    >>> import jax.numpy as jnp
    >>> sizes = lambda x: jnp.full(len(x), len(x))  # of the group of each example
    >>> print(in_groups(sizes, jnp.zeros((5, 3)), 2, 0, out_axis=0))
    [2 2 2 2 1]
    """
    batch = batch_of(x, axis)
    if size is None:
        return function(x)
    if not isinstance(batch, int):
        raise ValueError(
            f"micro_batch={size} needs a number of examples; found {batch}, a symbol "
            "of jax.export. Leave micro_batch out, or export for one batch size"
        )
    if batch <= size:
        return function(x)
    groups, rest = divmod(batch, size)
    spec = _explicit_spec(jax.tree.leaves(x)[0])
    if any(spec[axis : axis + 1]):
        raise ValueError(
            f"micro_batch={size} groups the examples of each device, and x in a "
            f"transformation is shared along Explicit axes, {spec}; allowed: mesh=, "
            "the mesh of x, or Auto axes, or the call outside the transformation"
        )

    def examples(start: int, stop: int) -> Any:
        return jax.tree.map(
            lambda leaf: jax.lax.slice_in_dim(leaf, start, stop, axis=axis), x
        )

    def split(leaf: jax.Array) -> jax.Array:  # [groups, ..., size, ...]
        shape = (*leaf.shape[:axis], groups, size, *leaf.shape[axis + 1 :])
        return jnp.moveaxis(leaf.reshape(shape), axis, 0)

    def merge(results: jax.Array) -> jax.Array:  # [groups, ..., size, ...]
        adjacent = jnp.moveaxis(results, 0, out_axis)
        shape = results.shape[1:]
        return adjacent.reshape(*shape[:out_axis], -1, *shape[out_axis + 1 :])

    grouped = jax.tree.map(split, examples(0, groups * size))
    results = jax.tree.map(merge, jax.lax.map(function, grouped))
    if not rest:
        return results
    last = function(examples(groups * size, batch))
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b], out_axis), results, last)


@functools.cache
def _resharding(spread: NamedSharding) -> Callable:
    return jax.jit(lambda x: x, out_shardings=spread)


def _same_devices(a: Any, b: Any) -> bool:
    """Whether two meshes have the same devices and names of axes, of any types."""
    return (
        isinstance(a, Mesh)
        and isinstance(b, Mesh)
        and a.axis_names == b.axis_names
        and np.array_equal(a.devices, b.devices)
    )


@functools.cache
def _slicing(spread: NamedSharding, count: int) -> Callable:
    def take(x, start):
        return jax.lax.dynamic_slice_in_dim(x, start, count)

    return jax.jit(take, out_shardings=spread)


@functools.cache
def _concatenation(spread: NamedSharding, axis: int) -> Callable:
    return jax.jit(lambda parts: jnp.concatenate(parts, axis), out_shardings=spread)


def _explicit_spec(array: Any) -> tuple[Any, ...]:
    """For each axis of an array, the Explicit axes of a mesh that share it."""
    return tuple(getattr(getattr(jax.typeof(array), "sharding", None), "spec", ()))


def _check_context() -> None:
    """Raise under ``jax.set_mesh`` with Explicit axes, where shard_map refuses."""
    context = jax.sharding.get_abstract_mesh()
    if AxisType.Explicit in getattr(context, "axis_types", ()):
        raise ValueError(
            "devices share the images inside jax.set_mesh of a mesh with Explicit axes "
            f"({context}); allowed: Auto axes. Create that mesh by jax.make_mesh(..., "
            "axis_types=(jax.sharding.AxisType.Auto,) * number_of_axes), or call "
            "outside of it"
        )


def _automatic(mesh: Mesh) -> Mesh:
    """The mesh with all its axes Auto."""
    axes = (AxisType.Auto,) * len(mesh.axis_names)
    return Mesh(np.asarray(mesh.devices), mesh.axis_names, axis_types=axes)
