"""Programs of a conversion: each runs a few times, so it should compile fast."""

import functools
from collections.abc import Callable
from typing import Any

import jax

# Up to JAX 0.10, XLA for CPUs may emit fusions without MLIR: 40 % less time to compile,
# the same bits, and no slower. Later versions have one emitter and no such option.
_OPTIONS = {"xla_cpu_use_fusion_emitters": False}
_LAST_VERSION = (0, 10)


def _options() -> dict[str, Any] | None:
    has_option = jax.__version_info__[:2] <= _LAST_VERSION
    if has_option and jax.default_backend() == "cpu":
        return _OPTIONS
    return None


def jit(function: Callable, **options: Any) -> Callable:
    """``jax.jit`` with compiler options, for a function that is not called in a jit.

    >>> int(jit(lambda x: x + 1)(2))
    3
    """

    # Only at its first call: the options ask JAX for its devices, and an import must
    # not start them.
    @functools.cache
    def compiled() -> Callable:
        return jax.jit(function, compiler_options=_options(), **options)

    @functools.wraps(function)
    def call(*arguments: Any) -> Any:
        return compiled()(*arguments)

    return call
