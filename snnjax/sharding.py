"""Sharding: the library follows the sharding of x, over one device or many.

No example of a batch affects another one, so each device runs its own examples in a
``shard_map``, without communication. Where a fit or a gradient sums over all examples,
XLA adds the collectives.

A ``batch_sharding`` is a sharding whose first axis is the batch: it says which axes of
a mesh share the examples. None stands for no mesh.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from snnjax._trees import batch_of

__all__ = ["on_mesh"]

_Tree = TypeVar("_Tree")


def batch_sharding(x: Any, axis: int = 0) -> NamedSharding | None:
    """How devices share the examples of x.

    Inside ``jit`` the type of an array holds its mesh. With Auto axes it does not hold
    the spec; the first axis of the mesh is then taken to share the examples.

    Args:
        x: arrays with the batch on ``axis``; the first of them decides.
        axis: batch axis of x.

    Returns:
        The sharding of an array whose batch is on axis 0; None if x is on no mesh, or
        each device sees its own examples already, inside ``shard_map``.

    >>> import jax, jax.numpy as jnp
    >>> mesh = jax.make_mesh((1,), ("data",))
    >>> on_devices = jax.NamedSharding(mesh, jax.P("data"))
    >>> batch_sharding(jax.device_put(jnp.ones((8, 3)), on_devices)).spec[0]
    'data'
    """
    array = _first_array(x)
    is_traced = isinstance(array, Tracer)
    # Inside of jit only the type of an array knows its sharding.
    holder = jax.typeof(array) if is_traced else array
    sharding = getattr(holder, "sharding", None)
    if not isinstance(sharding, NamedSharding) or not sharding.mesh.axis_names:
        return None
    mesh = sharding.mesh
    if AxisType.Manual in mesh.axis_types:  # inside of shard_map
        return None
    if is_traced and mesh.axis_types[0] is AxisType.Auto:
        names = mesh.axis_names[0]
        example_count = batch_of(x, axis)
        # Only a known number that the devices can share equally is taken as shared.
        if not isinstance(example_count, int) or example_count % mesh.shape[names]:
            return None
    else:
        # A mesh axis or several that share the examples; None: every device has them.
        spec = tuple(sharding.spec)
        names = spec[axis] if axis < len(spec) else None
    return NamedSharding(mesh, PartitionSpec(names))


def _first_array(x: Any) -> Any:
    """The first array of a pytree; None if it holds none."""
    leaves = jax.tree.leaves(x)
    return leaves[0] if leaves else None


def size(sharding: NamedSharding | None) -> int:
    """Number of parts into which a batch is split by this batch sharding; 1 for None.

    >>> import jax
    >>> mesh = jax.make_mesh((jax.device_count(),), ("data",))
    >>> size(jax.NamedSharding(mesh, jax.P("data"))) == jax.device_count()
    True
    """
    if sharding is None or sharding.spec[0] is None:
        return 1
    names = sharding.spec[0]
    if not isinstance(names, tuple):
        names = (names,)
    return math.prod(sharding.mesh.shape[name] for name in names)


def platform(x: Any) -> str:
    """Where something is computed from x: "cpu", "gpu" or "tpu".

    The devices of x decide, inside ``jit`` those of its mesh; without one, and for
    NumPy arrays, JAX's default device decides.
    """
    array = _first_array(x)
    if isinstance(array, Tracer):
        device = getattr(jax.typeof(array).sharding.mesh, "abstract_device", None)
        if device is not None:
            # Kinds of devices are "cpu", "TPU v5 lite", "NVIDIA H100", ...
            beginning = device.device_kind.lower()[:3]
            return beginning if beginning in ("cpu", "tpu") else "gpu"
    elif isinstance(array, jax.Array):
        first_device, *_ = array.devices()
        return first_device.platform
    default = jax.config.jax_default_device  # type: ignore[attr-defined]
    if default is None:
        return jax.default_backend()
    return default if isinstance(default, str) else default.platform


def put(tree: _Tree, sharding: jax.sharding.Sharding | None) -> _Tree:
    """The arrays of a pytree with this sharding; None leaves them where they are."""
    if sharding is None:
        return tree
    return jax.device_put(tree, sharding)


def on_mesh(tree: _Tree, sharding: NamedSharding | None) -> _Tree:
    """The arrays of a pytree on the mesh of a sharding; None: as they are.

    An array that is sharded over these devices keeps its spec; each device gets a copy
    of every other one. Traced arrays stay as they are.

    >>> import jax, jax.numpy as jnp
    >>> batch = jax.NamedSharding(jax.make_mesh((1,), ("data",)), jax.P("data"))
    >>> params = {"w": jnp.ones((3, 2)), "rows": jax.device_put(jnp.ones(8), batch)}
    >>> params = on_mesh(params, batch)
    >>> [tuple(params[name].sharding.spec) for name in ("w", "rows")]
    [(), ('data',)]
    """
    if sharding is None:
        return tree
    mesh = sharding.mesh

    def moved(leaf: Any) -> Any:
        if isinstance(leaf, Tracer):  # as of params in a gradient with concrete images
            return leaf
        spec = PartitionSpec()  # a copy on each device
        # A spec names axes of its mesh, so it is kept only where this mesh has them.
        leaf_sharding = getattr(leaf, "sharding", None)
        if (
            isinstance(leaf_sharding, NamedSharding)
            and leaf_sharding.device_set == sharding.device_set
            and leaf_sharding.mesh.axis_names == mesh.axis_names
        ):
            spec = leaf_sharding.spec
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    return jax.tree.map(moved, tree)


def automatic(x: Any, *trees: Any) -> tuple[Any, ...]:
    """x and the trees on one mesh, with Auto axes.

    The mesh is that of x, or otherwise of the first tree that has one. Without a mesh,
    and while tracing, all arrays stay as they are. ``jax.make_mesh`` makes Explicit
    axes, along which arrays cannot be reshaped and padded, as fits do.

    Raises:
        ValueError: inside ``jax.set_mesh`` of a mesh with Explicit axes, which would
            not mix with Auto axes.
    """
    sharding = None
    for tree in (x, *trees):
        sharding = batch_sharding(tree)
        if sharding is not None:
            break
    # While tracing, the mesh is an AbstractMesh, which is no Mesh.
    if sharding is None or not isinstance(sharding.mesh, Mesh):
        return (x, *trees)
    context = jax.sharding.get_abstract_mesh()
    if AxisType.Explicit in context.axis_types:
        raise ValueError(
            "outside of jit, snnjax computes on several devices with Auto axes; found "
            f"jax.set_mesh of a mesh with Explicit axes ({context}). Leave it "
            "before the call, or create its mesh by jax.make_mesh(..., "
            "axis_types=(jax.sharding.AxisType.Auto,) * number_of_axes); "
            "snnjax.spiking also runs inside jit"
        )
    names = sharding.mesh.axis_names
    auto_mesh = Mesh(
        np.asarray(sharding.mesh.devices),
        names,
        axis_types=(AxisType.Auto,) * len(names),
    )
    auto_sharding = NamedSharding(auto_mesh, sharding.spec)
    return tuple(on_mesh(tree, auto_sharding) for tree in (x, *trees))


def along(axis: int | None, sharding: NamedSharding) -> NamedSharding:
    """The sharding of arrays whose batch is on another axis than 0.

    Args:
        axis: of the batch; None: the arrays have no batch, and each device has a copy.
        sharding: of a batch on axis 0.
    """
    if axis is None:
        spec = PartitionSpec()
    else:
        axes_in_front = [None] * axis
        spec = PartitionSpec(*axes_in_front, *sharding.spec)
    return NamedSharding(sharding.mesh, spec)


def replicated(sharding: NamedSharding | None) -> NamedSharding | None:
    """The sharding of arrays of which each device of the mesh has a copy."""
    return None if sharding is None else along(None, sharding)


def gathered(tree: Any, sharding: NamedSharding | None) -> Any:
    """Arrays in NumPy, though their parts may be on devices of other processes."""
    everywhere = replicated(sharding)
    if everywhere is not None:
        tree = jax.device_put(tree, everywhere)
    return jax.tree.map(np.asarray, tree)


def shared(x: jax.Array, axis: int, sharding: NamedSharding | None) -> jax.Array:
    """A traced array whose examples are shared among the devices.

    If the devices cannot have equally many examples, each gets a copy of all.

    Args:
        x: the array.
        axis: of its examples.
        sharding: how devices share a batch on axis 0; None: x is returned as it is.
    """
    if sharding is None:
        return x
    is_even = x.shape[axis] % size(sharding) == 0
    shared_axis = axis if is_even else None
    return jax.lax.with_sharding_constraint(x, along(shared_axis, sharding))


def on_each_device(
    function: Callable, sharding: NamedSharding | None, in_axes: Any, out_axes: Any
) -> Callable:
    """A function that each device computes of its part of the examples.

    Args:
        function: of arrays; no example may affect another.
        sharding: from `batch_sharding`; None: returns the function itself.
        in_axes: the batch axis of each argument, or of each leaf of an argument; None:
            it has no batch.
        out_axes: likewise of each result.

    >>> import jax, jax.numpy as jnp
    >>> batch = jax.NamedSharding(jax.make_mesh((1,), ("data",)), jax.P("data"))
    >>> layer = on_each_device(lambda w, x: x @ w, batch, (None, 0), 0)
    >>> outputs = layer(jnp.ones((3, 2)), jax.device_put(jnp.ones((8, 3)), batch))
    >>> outputs.shape, outputs.sharding.spec[0]
    ((8, 2), 'data')
    """
    if sharding is None:
        return function

    def specs(axes: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.spec, _shardings(axes, sharding))

    return jax.shard_map(
        function,
        mesh=sharding.mesh,
        in_specs=specs(in_axes),
        out_specs=specs(out_axes),
        # The check refuses loops that start from zeros, which are the same on all
        # devices, and go on with numbers that differ.
        check_vma=False,
    )


def on_all_devices(
    function: Callable, sharding: NamedSharding | None, out_axes: Any
) -> Callable:
    """A function of all examples together, such as a norm over the batch.

    XLA shares its work among the devices. Along Explicit axes of a mesh JAX asks for
    the sharding of each reshaped array, so these axes are Auto while the function runs.

    Args:
        function: of arrays.
        sharding: how devices share the examples; None: returns the function itself.
        out_axes: the batch axis of each result; None: it has no batch.
    """
    if sharding is None or AxisType.Explicit not in sharding.mesh.axis_types:
        return function
    return jax.sharding.auto_axes(function, out_sharding=_shardings(out_axes, sharding))


def _shardings(axes: Any, sharding: NamedSharding) -> Any:
    """The sharding for each batch axis in a pytree ``axes``; None: no batch."""

    def is_none(axis: Any) -> bool:
        return axis is None

    # JAX takes None for a tree without leaves, unless it is told otherwise.
    return jax.tree.map(lambda axis: along(axis, sharding), axes, is_leaf=is_none)
