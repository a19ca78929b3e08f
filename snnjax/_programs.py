"""Programs of a conversion: each runs a few times, so it should compile fast."""

import functools
from collections.abc import Callable
from typing import Any

import jax

# Up to JAX 0.10, XLA for CPUs may emit fusions without MLIR: 40 % less time to compile,
# the same bits, and no slower. Later versions have one emitter and no such option.
_OPTIONS = {"xla_cpu_use_fusion_emitters": False}


@functools.cache
def _options() -> dict[str, Any] | None:
    if jax.default_backend() != "cpu":
        return None
    try:
        jax.jit(lambda: 0, compiler_options=_OPTIONS).lower().compile()
    except jax.errors.JaxRuntimeError:
        return None
    return _OPTIONS


def jit(function: Callable, **options: Any) -> Callable:
    """``jax.jit`` for a function that no other program calls.

    >>> int(jit(lambda x: x + 1)(2))
    3
    """

    @functools.cache
    def compiled() -> Callable:  # at the first call, when JAX knows its devices
        return jax.jit(function, compiler_options=_options(), **options)

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        return compiled()(*arguments)

    return call
