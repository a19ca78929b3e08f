"""What is not affine, in time: a function of the running means of its inputs.

    m(t) = (u(1) + .. + u(t)) / t              running mean of each input that changes
    y(t) = t f(m(t)) - (t - 1) f(m(t - 1))     increment, and y(1) = f(u(1))

The mean of the first t increments is f(m(t)): what follows sees f of the mean input, so
the rule holds for a chain of functions as for each of them. For an affine f it gives
f(u(t)). Where f(c x) = c f(x), as for a max-pool, running sums take the place of t m,
and spikes stay spikes. Source, for transformers: Huang et al., "Towards
high-performance spiking transformers from ANN to SNN conversion", ACM Multimedia 2024.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from snnjax._arrays import running_sum, wide, wide_dtype

# Sums are kept in this unit, a power of two and so exact: a mask that adds the lowest
# number that there is would overflow at the second step.
_UNIT = 2.0**-16


class Running(NamedTuple):
    """What an operator keeps between two steps.

    Attributes:
        count: steps so far, a float.
        sums: of every input that changes, [B, ...], in float32 or wider; in a unit
            that keeps them finite, unless the operator is homogeneous.
        totals: the sum of each output so far, t f(m(t)), likewise.
    """

    count: jax.Array
    sums: tuple[jax.Array, ...]
    totals: tuple[jax.Array, ...]


class Operator(NamedTuple):
    """A function of one step, and how to compute it over time.

    Attributes:
        function: arguments of a step -> tuple of outputs.
        live: which arguments change from step to step.
        homogeneous: f(c x) = c f(x) for every c > 0.
    """

    function: Callable[..., tuple[Any, ...]]
    live: tuple[bool, ...]
    homogeneous: bool = False

    def __call__(self, *arguments: Any) -> tuple[Any, ...]:
        """Outputs of one step; increments [T, B, ...] where an argument changes."""
        if not any(self.live):
            return self.function(*arguments)
        return self.increments(arguments)[0]

    def of_values(self, *arguments: Any) -> tuple[Any, ...]:
        """The function of decoded values [T, B, ...], step by step (`snnjax.codes`).

        0 where the function is not a number, as 0 / 0 before any spike, and where one
        that changes is infinite, as 1 / 0 then. A constant may be an infinite mask.
        """
        function, changes = self.function, any(self.live)
        if changes:
            function = jax.vmap(function, [0 if live else None for live in self.live])
        results = function(*arguments)
        clean = _finite if changes and not self.homogeneous else _without_nan
        return tuple(map(clean, results))

    def start(self, arguments: Sequence[Any]) -> Running:
        """Before the first step.

        Args:
            arguments: of a step, or their shapes.
        """
        streams = [a for a, live in zip(arguments, self.live, strict=True) if live]
        sums = tuple(jnp.zeros(a.shape, wide_dtype(a)) for a in streams)
        outputs = jax.eval_shape(self._of_means, sums, tuple(arguments))
        totals = tuple(jnp.zeros(out.shape, wide_dtype(out)) for out in outputs)
        return Running(jnp.zeros((), jnp.float32), sums, totals)

    def increments(
        self, arguments: Sequence[Any], running: Running | None = None
    ) -> tuple[tuple[jax.Array, ...], Running]:
        """Increments of steps that go on from ``running``, by default from the first.

        Args:
            arguments: those that change are [T, B, ...].

        Returns:
            The increments [T, B, ...] of every output, and the state after them.
        """
        streams = [a for a, live in zip(arguments, self.live, strict=True) if live]
        if running is None:
            pairs = zip(arguments, self.live, strict=True)
            running = self.start([a[0] if live else a for a, live in pairs])
        counts = running.count + jnp.arange(1, 1 + len(streams[0]), dtype=jnp.float32)
        # A max-pool is computed on the sums themselves.
        unit = 1.0 if self.homogeneous else _UNIT
        sums = tuple(
            running_sum(unit * wide(stream)) + before[None]
            for stream, before in zip(streams, running.sums, strict=True)
        )
        means = sums if self.homogeneous else [_mean(total, counts) for total in sums]
        results = jax.vmap(lambda *means: self._of_means(means, arguments))(*means)
        increments, totals = [], []
        for result, before in zip(results, running.totals, strict=True):
            # t f(m(t)) minus the same of the step before, or of the last segment's end.
            total = wide(result)
            if not self.homogeneous:  # 0 where f is not finite, as 0 / 0 at first
                total = _finite(total * (_UNIT * _lead(counts, total)))
            earlier = jnp.concatenate([before[None], total[:-1]])
            # The sums of a max-pool are wider than the spikes that it takes and gives.
            dtype = streams[0].dtype if self.homogeneous else result.dtype
            increments.append(((total - earlier) / unit).astype(dtype))
            totals.append(total[-1])
        after = Running(counts[-1], tuple(s[-1] for s in sums), tuple(totals))
        return tuple(increments), after

    def _of_means(self, means: Sequence[Any], arguments: Sequence[Any]) -> tuple:
        """The outputs of one step, for running means in place of what changes."""
        next_means = iter(means)
        step_arguments = []
        for argument, live in zip(arguments, self.live, strict=True):
            mean = next(next_means) if live else argument
            # Running sums stay wide: their function compares and chooses only.
            keep = self.homogeneous or not live
            step_arguments.append(mean if keep else mean.astype(argument.dtype))
        return self.function(*step_arguments)


def _mean(sums: jax.Array, counts: jax.Array) -> jax.Array:
    """m(t), [T, ...], of the sums up to each step."""
    # The mean of a mask's lowest number may be rounded to -inf.
    most = float(jnp.finfo(sums.dtype).max)
    return jnp.clip(sums / (_UNIT * _lead(counts, sums)), -most, most)


def _without_nan(result: jax.Array) -> jax.Array:
    if not jnp.issubdtype(result.dtype, jnp.floating):
        return result
    return jnp.where(jnp.isnan(result), jnp.zeros_like(result), result)


def _finite(result: jax.Array) -> jax.Array:
    return jnp.where(jnp.isfinite(result), result, jnp.zeros_like(result))


def _lead(counts: jax.Array, like: jax.Array) -> jax.Array:
    return counts.reshape(-1, *[1] * (like.ndim - 1)).astype(like.dtype)
