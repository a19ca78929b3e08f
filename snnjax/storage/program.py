"""A spiking function as a program that runs without the network's code.

    export:  fn, SNN -> bytes            by `jax.export`: StableHLO for CPU, CUDA, TPU
    runner:  bytes, leaves -> run(x)

The program takes a list of the SNN's arrays in JAX's order, and x; it returns a list of
outputs. Its facts describe how these are nested (``structure.py``).
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.export
import jax.numpy as jnp

from snnjax import sharding
from snnjax._types import Inputs
from snnjax.simulation.simulate import spiking
from snnjax.snn import SNN
from snnjax.storage.structure import describe, rebuild

PLATFORMS = ("cpu", "cuda", "tpu")


def export(
    fn: Callable, snn: SNN, x: Any, *, steps: int, wait: int, inputs: Inputs
) -> tuple[dict[str, Any], bytes]:
    """The spiking function of ``fn`` as bytes, and facts about it.

    It is traced for any batch; where the network cannot be, for the batch of x.

    Args: as for `snnjax.save`.

    Returns:
        (facts, program). JSON can hold the facts; their "batch" is None if the program
        takes any, "why_this_batch" the error of the trace otherwise.

    Raises:
        ValueError: x is missing, or inputs are drawn at random.
        ImportError: flatbuffers is missing.
    """
    _check(x, inputs)
    run = spiking(fn, steps=steps, wait=wait, inputs=inputs)
    flat, tree = jax.tree_util.tree_flatten(snn)
    places = [i for i, leaf in enumerate(flat) if hasattr(leaf, "dtype")]
    described: dict[str, Any] = {}  # written by the trace

    def flattened(arrays, x):
        leaves = list(flat)  # Python numbers are constants of the program
        for i, array in zip(places, arrays, strict=True):
            leaves[i] = array
        outputs = run(jax.tree_util.tree_unflatten(tree, leaves), x)
        described["outputs"] = describe(outputs, lambda path, leaf: {"output": path})
        return jax.tree_util.tree_leaves(outputs)

    arrays = [_struct(flat[i]) for i in places]
    axis = 1 if inputs == "sequence" else 0
    dtype = jax.dtypes.canonicalize_dtype(x.dtype)  # of x as a JAX array
    exporter = jax.export.export(jax.jit(flattened), platforms=PLATFORMS)
    batch, why = None, None
    try:
        (any_batch,) = jax.export.symbolic_shape("batch")
        shape = (*x.shape[:axis], any_batch, *x.shape[axis + 1 :])
        exported = exporter(arrays, jax.ShapeDtypeStruct(shape, dtype))
    except Exception as error:  # any: the network's own code computes with the size
        batch, why = x.shape[axis], str(error).partition("\n")[0]
        exported = exporter(arrays, jax.ShapeDtypeStruct(x.shape, dtype))
    try:
        code = bytes(exported.serialize())
    except ImportError:
        raise ImportError(
            'programs need flatbuffers: pip install "snnjax[share]"'
        ) from None
    facts = {
        "steps": steps,
        "wait": wait,
        "inputs": inputs,
        "shape": [None if i == axis else n for i, n in enumerate(x.shape)],
        "dtype": jnp.dtype(dtype).name,
        "batch": batch,
        "why_this_batch": why,
        "outputs": described["outputs"],
        "platforms": list(PLATFORMS),
    }
    return facts, code


def runner(code: bytes, facts: dict[str, Any], arrays: list, writer: str) -> Callable:
    """``run(x) -> outputs`` of a program.

    Args:
        code, facts: from `export`.
        arrays: of the SNN, in JAX's order.
        writer: version of jax that wrote the program.

    Returns:
        A function that may be jitted; see `snnjax.Stored`.
    """
    axis = facts["shape"].index(None)

    @functools.cache
    def program():
        return jax.jit(jax.export.deserialize(bytearray(code)).call)

    def call(x):
        try:
            return program()(arrays, x)
        except ImportError:
            raise ImportError(
                'programs need flatbuffers: pip install "snnjax[share]"'
            ) from None
        except Exception as error:
            if _number(writer) <= _number(jax.__version__):
                raise
            raise ValueError(
                f"the program was written by jax {writer}, and jax {jax.__version__} "
                f"cannot run it ({error}). Use that version, or the network's own "
                "code: snnjax.spiking(fn, ...)(stored.snn, x)"
            ) from error

    def run(x):
        x = jnp.asarray(x)
        _check_input(x, facts, axis)
        flat = _in_parts(call, x, facts["batch"], axis) if facts["batch"] else call(x)
        outputs = iter(flat)
        return rebuild(facts["outputs"], lambda _: next(outputs), nodes=True)

    return run


def _in_parts(call: Callable, x: jax.Array, size: int, axis: int) -> list[jax.Array]:
    """Outputs of a program for ``size`` examples at a time; zeros fill the last ones.

    ``axis`` is the batch axis of x; that of the outputs [T, B, ...] is 1.
    """
    batch = x.shape[axis]
    padding = [(0, -batch % size if i == axis else 0) for i in range(x.ndim)]
    outputs = sharding.in_groups(call, jnp.pad(x, padding), size, axis, out_axis=1)
    return [output[:, :batch] for output in outputs]


def _check(x, inputs: Inputs) -> None:
    """Raise unless x can be the example of a program's input."""
    if not hasattr(x, "shape") or not hasattr(x, "dtype"):
        raise ValueError(
            f"a program needs an example of its input, one array; found x={x!r}. Pass "
            "x, an array [batch, ...] or jax.ShapeDtypeStruct; leave fn out where the "
            "network takes several: the file then holds the SNN without a program"
        )
    if len(x.shape) < 1 + (inputs == "sequence"):
        allowed = "[T, batch, ...]" if inputs == "sequence" else "[batch, ...]"
        raise ValueError(f"x has shape {tuple(x.shape)}; allowed: {allowed}")
    if inputs == "poisson":
        raise ValueError(
            "a program draws nothing; found inputs='poisson'; allowed: 'constant', or "
            "'sequence' with spikes drawn beforehand"
        )


_X64 = ", which JAX has under jax.config.update('jax_enable_x64', True) only"


def _check_input(x: jax.Array, facts: dict[str, Any], axis: int) -> None:
    shape = [None if i == axis else n for i, n in enumerate(x.shape)]
    if shape != facts["shape"] or x.dtype.name != facts["dtype"] or not x.shape[axis]:
        allowed = ["batch" if n is None else n for n in facts["shape"]]
        raise ValueError(
            f"x has shape {x.shape} and dtype {x.dtype.name}; the program takes "
            f"[{', '.join(map(str, allowed))}] of {facts['dtype']}"
            f"{_X64 if facts['dtype'] == 'float64' else ''}"
        )


def _struct(leaf) -> jax.ShapeDtypeStruct:
    weak = getattr(leaf, "weak_type", False)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, weak_type=weak)


def _number(version: str) -> list[int]:
    """The numbers of a version, to be compared."""
    return [int(part) for part in version.split(".")[:3] if part.isdigit()]
