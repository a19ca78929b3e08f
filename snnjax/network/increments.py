"""What is not affine, in time: a function of the running means of its inputs.

    m(t) = (u(1) + .. + u(t)) / t              running mean of each input that changes
    y(t) = t f(m(t)) - (t - 1) f(m(t - 1))     increment, and y(1) = f(u(1))

The mean of the first t increments is f(m(t)): what follows sees f of the mean input, so
the rule holds for a chain of functions as for each of them. For an affine f it gives
f(u(t)). Where f(c x) = c f(x), as for a max-pool, running sums take the place of t m,
and spikes stay spikes. Source, for transformers: Huang et al., "Towards
high-performance spiking transformers from ANN to SNN conversion", ACM Multimedia 2024.
"""

import itertools
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
        sums: t m(t) of every input that changes, [B, ...], in float32 or wider; in a
            unit that keeps them finite, unless the operator is homogeneous.
        totals: the sum of each output so far, t f(m(t)), in the same unit.
    """

    count: jax.Array
    sums: tuple[jax.Array, ...]
    totals: tuple[jax.Array, ...]


class Operator(NamedTuple):
    """A function of one step, and how to compute it over time.

    Attributes:
        function: arguments of a step, [B, ...] -> tuple of outputs, [B, ...].
        live: for each argument, whether it changes from step to step.
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
        if not any(self.live):
            return tuple(map(_without_nan, self.function(*arguments)))
        axes = [0 if live else None for live in self.live]
        results = jax.vmap(self.function, in_axes=axes)(*arguments)
        clean = _without_nan if self.homogeneous else _finite
        return tuple(map(clean, results))

    def start(self, arguments: Sequence[Any]) -> Running:
        """The state before the first step.

        Args:
            arguments: of a step, or their shapes.
        """
        streams = self._streams(arguments)
        sums = tuple(jnp.zeros(x.shape, wide_dtype(x)) for x in streams)
        outputs = jax.eval_shape(self._function_of_means, sums, tuple(arguments))
        totals = tuple(jnp.zeros(y.shape, wide_dtype(y)) for y in outputs)
        return Running(count=jnp.zeros((), jnp.float32), sums=sums, totals=totals)

    def increments(
        self, arguments: Sequence[Any], running: Running | None = None
    ) -> tuple[tuple[jax.Array, ...], Running]:
        """Increments of steps that go on from ``running``, by default from the first.

        Args:
            arguments: those that change are [T, B, ...].

        Returns:
            The increments [T, B, ...] of every output, and the state after them.
        """
        streams = self._streams(arguments)
        if running is None:
            running = self.start(self._first_step(arguments))
        steps = jnp.arange(1, 1 + len(streams[0]), dtype=jnp.float32)
        counts = running.count + steps  # t of each step, [T]
        means, last_sums = [], []
        for stream, last_sum in zip(streams, running.sums, strict=True):
            # t m(t), [T, B, ...]
            sums = running_sum(self._unit * wide(stream)) + last_sum[None]
            last_sums.append(sums[-1])
            # t f(m) = f(t m) for a max-pool, which is computed on the sums.
            means.append(sums if self.homogeneous else _mean(sums, counts))

        def outputs_of_step(*means):
            return self._function_of_means(means, arguments)

        outputs = jax.vmap(outputs_of_step)(*means)
        increments, last_totals = [], []
        for output, last_total in zip(outputs, running.totals, strict=True):
            totals = self._totals(output, counts)
            # t f(m(t)) minus the same of the step before, which may be the last one of
            # the steps that led to ``running``.
            earlier_totals = jnp.concatenate([last_total[None], totals[:-1]])
            increment = (totals - earlier_totals) / self._unit
            # A max-pool's sums are wider than the spikes that it takes and gives.
            dtype = streams[0].dtype if self.homogeneous else output.dtype
            increments.append(increment.astype(dtype))
            last_totals.append(totals[-1])
        last = Running(
            count=counts[-1],
            sums=tuple(last_sums),
            totals=tuple(last_totals),
        )
        return tuple(increments), last

    @property
    def _unit(self) -> float:
        """The unit of sums and totals; spikes of a max-pool are summed as they are."""
        return 1.0 if self.homogeneous else _UNIT

    def _streams(self, arguments: Sequence[Any]) -> list[Any]:
        """The arguments that change from step to step."""
        return list(itertools.compress(arguments, self.live))

    def _first_step(self, arguments: Sequence[Any]) -> list[Any]:
        """The arguments [B, ...] of the first of T steps."""
        first_arguments = []
        for argument, live in zip(arguments, self.live, strict=True):
            first_arguments.append(argument[0] if live else argument)
        return first_arguments

    def _totals(self, output: jax.Array, counts: jax.Array) -> jax.Array:
        """t f(m(t)), [T, B, ...], of one output of the function."""
        output = wide(output)
        if self.homogeneous:
            return output  # f of the sums
        # 0 where f is not finite, as 0 / 0 before any spike.
        return _finite(output * (_UNIT * _lead(counts, output)))

    def _function_of_means(
        self, means: Sequence[Any], arguments: Sequence[Any]
    ) -> tuple[Any, ...]:
        """The outputs of one step, for running means in place of what changes."""
        remaining_means = iter(means)
        step_arguments = []
        for argument, live in zip(arguments, self.live, strict=True):
            if live:
                mean = next(remaining_means)
                # Sums stay wide: a max-pool only compares and chooses.
                step_argument = (
                    mean if self.homogeneous else mean.astype(argument.dtype)
                )
            else:
                step_argument = argument
            step_arguments.append(step_argument)
        return self.function(*step_arguments)


def _mean(sums: jax.Array, counts: jax.Array) -> jax.Array:
    """m(t), [T, ...], of the sums up to each step."""
    # The mean of a mask's lowest number may be rounded to -inf.
    largest = float(jnp.finfo(sums.dtype).max)
    return jnp.clip(sums / (_UNIT * _lead(counts, sums)), -largest, largest)


def _without_nan(result: jax.Array) -> jax.Array:
    """The array with 0 in the place of every NaN; whole numbers have none."""
    if not jnp.issubdtype(result.dtype, jnp.floating):
        return result
    return jnp.where(jnp.isnan(result), jnp.zeros_like(result), result)


def _finite(result: jax.Array) -> jax.Array:
    """The array with 0 in the place of every number that is not finite."""
    return jnp.where(jnp.isfinite(result), result, jnp.zeros_like(result))


def _lead(counts: jax.Array, like: jax.Array) -> jax.Array:
    """The counts, [T], in a shape that broadcasts along an array [T, B, ...]."""
    shape = (-1,) + (1,) * (like.ndim - 1)
    return counts.reshape(shape).astype(like.dtype)
