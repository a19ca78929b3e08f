"""Operators in time: functions that are not affine, computed on running means.

    m(t) = (u(1) + .. + u(t)) / t              running mean of each input u in time
    y(t) = t f(m(t)) - (t - 1) f(m(t - 1))     increment, and y(1) = f(u(1))

An input in time is an array [T, B, ...] of T steps and B examples; other inputs are the
same at every step. The mean of the first t increments is f(m(t)): what follows sees f
of the mean input, so the rule holds for a chain of functions as for each of them. For
an affine f it gives f(u(t)).

f is homogeneous if f(c x) = c f(x) for every c > 0, as a max-pool is. Then t f(m(t)) is
f(t m(t)), a function of the running sums, and whole spikes stay whole. Source, for
transformers: Huang et al., "Towards high-performance spiking transformers from ANN to
SNN conversion", ACM Multimedia 2024.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from snnjax._arrays import per_step, running_sum, wide, wide_dtype

# Sums are kept in this unit, a power of two and so exact: a mask that adds the lowest
# number that there is would overflow at the second step.
_UNIT = 2.0**-16


class Running(NamedTuple):
    """What an operator keeps between two steps.

    Attributes:
        count: t, the number of steps so far, a float scalar.
        sums: t m(t) of every input in time, [B, ...], in float32 or wider. They are
            multiplied by 2**-16 to stay finite, unless the operator is homogeneous.
        totals: t f(m(t)), the sum of each output so far, [B, ...], in the same unit.
    """

    count: jax.Array
    sums: tuple[jax.Array, ...]
    totals: tuple[jax.Array, ...]


class Operator(NamedTuple):
    """A function of one step, and how to compute it over time.

    Attributes:
        function: arguments of a step, [B, ...] -> tuple of outputs, [B, ...].
        has_time: for each argument, whether it is in time, [T, B, ...].
        homogeneous: f(c x) = c f(x) for every c > 0.
    """

    function: Callable[..., tuple[Any, ...]]
    has_time: tuple[bool, ...]
    homogeneous: bool = False

    def __call__(self, *arguments: Any) -> tuple[Any, ...]:
        """Outputs of one step; increments [T, B, ...] if an argument is in time."""
        if not any(self.has_time):
            return self.function(*arguments)
        increments, _ = self.increments(arguments)
        return increments

    def apply_to_values(self, *arguments: Any) -> tuple[Any, ...]:
        """Outputs [T, B, ...]: the function of the values decoded at each step.

        A code other than rate coding calls this (`snnjax.codes`). The result is 0 where
        the function is not a number, as 0 / 0 before any spike, and where one in time
        is infinite, as 1 / 0 then. A constant may be an infinite mask, and a max-pool
        may be -inf where its window lies in the padding.
        """
        if not any(self.has_time):
            return tuple(map(_without_nan, self.function(*arguments)))
        time_axes = [0 if has_time else None for has_time in self.has_time]
        outputs = jax.vmap(self.function, in_axes=time_axes)(*arguments)
        clean = _without_nan if self.homogeneous else _finite
        return tuple(map(clean, outputs))

    def start(self, arguments: Sequence[Any]) -> Running:
        """The state before the first step: nothing is summed yet.

        Args:
            arguments: of one step, [B, ...], or their shapes.
        """
        sums = []
        for i in self._inputs_in_time:
            sums.append(jnp.zeros(arguments[i].shape, wide_dtype(arguments[i])))
        outputs = jax.eval_shape(self._outputs_of_step, sums, tuple(arguments))
        totals = tuple(jnp.zeros(y.shape, wide_dtype(y)) for y in outputs)
        return Running(
            count=jnp.zeros((), jnp.float32),
            sums=tuple(sums),
            totals=totals,
        )

    def increments(
        self, arguments: Sequence[Any], running: Running | None = None
    ) -> tuple[tuple[jax.Array, ...], Running]:
        """Increments of T steps that go on from the state ``running``.

        Args:
            arguments: those in time are [T, B, ...].
            running: None: the steps are the first ones.

        Returns:
            The increments [T, B, ...] of every output, and the state after them.
        """
        if running is None:
            first_step = list(arguments)
            for i in self._inputs_in_time:
                first_step[i] = arguments[i][0]
            running = self.start(first_step)
        streams = [arguments[i] for i in self._inputs_in_time]
        steps = jnp.arange(1, 1 + len(streams[0]), dtype=jnp.float32)
        counts = running.count + steps  # t of each step, [T]
        means, last_sums = [], []
        for stream, last_sum in zip(streams, running.sums, strict=True):
            # t m(t), [T, B, ...]
            sums = running_sum(self._unit * wide(stream)) + last_sum[None]
            last_sums.append(sums[-1])
            # A homogeneous f reads the sums instead, since t f(m(t)) is f(t m(t)).
            means.append(sums if self.homogeneous else _mean(sums, counts))

        def outputs_of_step(*means):
            return self._outputs_of_step(means, arguments)

        outputs = jax.vmap(outputs_of_step)(*means)
        increments, last_totals = [], []
        for output, last_total in zip(outputs, running.totals, strict=True):
            totals = self._totals(output, counts)
            # (t - 1) f(m(t - 1)). At the first of these steps it comes from the state.
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
        """What sums and totals are multiplied by; those of a max-pool stay exact."""
        return 1.0 if self.homogeneous else _UNIT

    @property
    def _inputs_in_time(self) -> list[int]:
        """The positions of the arguments that are in time."""
        return [i for i, has_time in enumerate(self.has_time) if has_time]

    def _totals(self, output: jax.Array, counts: jax.Array) -> jax.Array:
        """t f(m(t)), [T, B, ...].

        Args:
            output: f(m(t)), or of a homogeneous operator f(t m(t)), [T, B, ...].
            counts: t, [T].
        """
        output = wide(output)
        if self.homogeneous:
            return output
        # 0 where f is not finite, as 0 / 0 before any spike.
        return _finite(output * (_UNIT * _per_step(counts, output)))

    def _outputs_of_step(
        self, means: Sequence[Any], arguments: Sequence[Any]
    ) -> tuple[Any, ...]:
        """The outputs of one step, [B, ...].

        Args:
            means: m(t) of every input in time, or t m(t) of a homogeneous operator.
            arguments: all of them; those in time tell no more than their types.
        """
        step_arguments = list(arguments)
        for i, mean in zip(self._inputs_in_time, means, strict=True):
            # Sums stay wide: a max-pool only compares and chooses.
            if not self.homogeneous:
                mean = mean.astype(arguments[i].dtype)
            step_arguments[i] = mean
        return self.function(*step_arguments)


def _mean(sums: jax.Array, counts: jax.Array) -> jax.Array:
    """m(t), [T, B, ...], of sums t m(t) in units of `_UNIT`, with t from ``counts``."""
    # The mean of a mask's lowest number may be rounded to -inf.
    largest = float(jnp.finfo(sums.dtype).max)
    return jnp.clip(sums / (_UNIT * _per_step(counts, sums)), -largest, largest)


def _without_nan(output: jax.Array) -> jax.Array:
    """The array with 0 in the place of every NaN."""
    return jnp.where(jnp.isnan(output), jnp.zeros_like(output), output)


def _finite(output: jax.Array) -> jax.Array:
    """The array with 0 in the place of every number that is not finite."""
    return jnp.where(jnp.isfinite(output), output, jnp.zeros_like(output))


def _per_step(counts: jax.Array, array: jax.Array) -> jax.Array:
    """The counts, [T], in the type of an array [T, B, ...] and along its steps."""
    return per_step(counts, array.ndim).astype(array.dtype)
