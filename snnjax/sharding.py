"""Sharding: the devices of a mesh share every batch; parameters lie on all of them.

Between the sites no example reaches another, so each device runs its own examples in a
``shard_map``, without communication, in groups if need be; where a fit or a gradient
sums over all of them, XLA adds the collectives. The calls are the same for one process
and for many.
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

Tree = TypeVar("Tree")


def over_batch(mesh: Mesh | None, x: Any = None) -> NamedSharding | None:
    """How a batch is spread: on the first axis of the mesh, or as x is already.

    Mesh axes are made Auto: fits reshape and pad across all images, which Explicit
    axes do not allow.

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
    own = None if isinstance(x, Tracer) else getattr(x, "sharding", None)
    if not isinstance(own, NamedSharding):
        return None
    batch = own.spec[0] if own.spec else None
    if not isinstance(own.mesh, Mesh):
        return None
    if batch is not None:
        _check_context()
    return NamedSharding(_automatic(own.mesh), PartitionSpec(batch))


def size(spread: NamedSharding | None) -> int:
    """Number of devices that share a batch."""
    names = None if spread is None else spread.spec[0]
    if spread is None or names is None:
        return 1
    names = names if isinstance(names, tuple) else (names,)
    return math.prod(spread.mesh.shape[name] for name in names)


def check_batch(what: str, batch: int, spread: NamedSharding | None) -> None:
    """Raise unless every device gets as many examples as the others."""
    devices = size(spread)
    if batch % devices:
        raise ValueError(
            f"{what}: {batch} examples cannot be shared evenly by {devices} devices; "
            f"give {batch - batch % devices or devices}, or another multiple of "
            f"{devices}, or a smaller mesh"
        )


def place(x: Any, spread: NamedSharding | None) -> Any:
    """A batch on its devices; each process copies only the examples of its own."""
    if spread is None or isinstance(x, Tracer):
        return x
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
        return _moved(spread)(x)
    if jax.process_count() > 1:
        host = np.asarray(x)
        return jax.make_array_from_callback(x.shape, spread, lambda i: host[i])
    return jax.device_put(x, spread)


def on_mesh(tree: Tree, spread: NamedSharding | None) -> Tree:
    """Arrays on the mesh: as they are sharded over it, or copied to all devices."""
    if spread is None:
        return tree
    everywhere = NamedSharding(spread.mesh, PartitionSpec())

    def move(leaf):
        own = None if isinstance(leaf, Tracer) else getattr(leaf, "sharding", None)
        if not isinstance(own, NamedSharding) or not _same(own.mesh, spread.mesh):
            return place(leaf, everywhere)
        if own.mesh == spread.mesh:
            return leaf
        return jax.device_put(leaf, NamedSharding(spread.mesh, own.spec))

    return jax.tree.map(move, tree)


def gathered(tree: Tree, spread: NamedSharding | None) -> Tree:
    """Arrays of the mesh, whole on each of its devices."""
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
    """An array of the mesh, sharded over it as another one is; itself if it is that."""
    traced = isinstance(new, Tracer) or isinstance(old, Tracer)
    if spread is None or new is old or traced:
        return new
    return place(new, old.sharding)


def rows(x: Any, start: int, count: int, spread: NamedSharding | None) -> Any:
    """``x[start : start + count]``, spread anew: every device has its part of it."""
    if spread is None or isinstance(x, Tracer):
        return x[start : start + count]
    return _rows(spread, count)(x, start)


def join(parts: Sequence[jax.Array], axis: int, spread: NamedSharding | None):
    """Concatenation along the batch axis, spread over the devices as its parts are.

    Or copied to all of them, if they cannot share so many examples evenly.
    """
    if spread is None or isinstance(parts[0], Tracer):
        return jnp.concatenate(parts, axis)
    even = sum(part.shape[axis] for part in parts) % size(spread) == 0
    everywhere = NamedSharding(spread.mesh, PartitionSpec())
    return _join(along(axis, spread) if even else everywhere, axis)(list(parts))


def along(axis: int, spread: NamedSharding) -> NamedSharding:
    """The same for arrays whose batch is this axis."""
    spec = PartitionSpec(*[None] * axis, *spread.spec)
    return NamedSharding(spread.mesh, spec)


def on_each_device(
    function: Callable, spread: NamedSharding | None, in_axes: Any, out_axes: Any
) -> Callable:
    """``function`` on each device's own examples.

    Args:
        function: of arrays; no example may reach another.
        spread: devices; with None the function comes back as it is.
        in_axes: per argument, or leaf of it, the batch axis; None: it has no batch.
        out_axes: the same of the results.
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
    function: Callable, x: jax.Array, size: int | None, axis: int, *, out_axis: int
) -> Any:
    """``function(x)`` of ``size`` examples at a time, one group after the other.

    Args:
        function: of an array; no example may reach another.
        x: the examples, along ``axis``.
        size: examples in a group; None: all of them.
        axis, out_axis: the batch axis of x, and of all results.
    """
    batch = x.shape[axis]
    if size is None or batch <= size:
        return function(x)
    groups, rest = divmod(batch, size)

    def rows(start: int, stop: int) -> jax.Array:
        return jax.lax.slice_in_dim(x, start, stop, axis=axis)

    def merge(results: jax.Array) -> jax.Array:  # [groups, ..., size, ...]
        moved = jnp.moveaxis(results, 0, out_axis)
        shape = results.shape[1:]
        return moved.reshape(*shape[:out_axis], -1, *shape[out_axis + 1 :])

    shape = (*x.shape[:axis], groups, size, *x.shape[axis + 1 :])
    grouped = jnp.moveaxis(rows(0, groups * size).reshape(shape), axis, 0)
    whole = jax.tree.map(merge, jax.lax.map(function, grouped))
    if not rest:
        return whole
    last = function(rows(groups * size, batch))
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b], out_axis), whole, last)


@functools.cache
def _moved(spread: NamedSharding) -> Callable:
    return jax.jit(lambda x: x, out_shardings=spread)


def _same(a: Any, b: Any) -> bool:
    """Whether two meshes differ in the types of their axes at most."""
    return (
        isinstance(a, Mesh)
        and isinstance(b, Mesh)
        and a.axis_names == b.axis_names
        and np.array_equal(a.devices, b.devices)
    )


@functools.cache
def _rows(spread: NamedSharding, count: int) -> Callable:
    def take(x, start):
        return jax.lax.dynamic_slice_in_dim(x, start, count)

    return jax.jit(take, out_shardings=spread)


@functools.cache
def _join(spread: NamedSharding, axis: int) -> Callable:
    return jax.jit(lambda parts: jnp.concatenate(parts, axis), out_shardings=spread)


def _check_context() -> None:
    """Raise under ``jax.set_mesh`` with Explicit axes, where shard_map refuses."""
    context = jax.sharding.get_abstract_mesh()
    if AxisType.Explicit in getattr(context, "axis_types", ()):
        raise ValueError(
            "devices share the images inside jax.set_mesh of a mesh with Explicit axes "
            f"({context}); make that one by jax.make_mesh(..., axis_types="
            "(jax.sharding.AxisType.Auto,) * number_of_axes), or call outside of it"
        )


def _automatic(mesh: Mesh) -> Mesh:
    axes = (AxisType.Auto,) * len(mesh.axis_names)
    return Mesh(np.asarray(mesh.devices), mesh.axis_names, axis_types=axes)
