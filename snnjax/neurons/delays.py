"""Delays: a site passes its input on some steps later, by trained numbers of steps.

    y(t) = (1 - f) u(t - k) + f u(t - k - 1),    d = k + f,  0 <= f < 1

A whole d is a delay line of a chip. The slope in d is u(t - k - 1) - u(t - k). Source:
Hammouamri, Khalfaoui-Hassani and Masquelier, ICLR 2024, who narrow a Gaussian instead.
"""

import dataclasses
import functools
import operator
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from snnjax._arrays import lead, wide_dtype
from snnjax._ranges import COUNT, NOT_NEGATIVE, Range
from snnjax.neurons.fresh import Numbers, Uniform, make_plain_numbers, parameter


class DelayParams(NamedTuple):
    """Parameters of delays.

    Attributes:
        delay: d >= 0 in steps, scalar, per channel [C] or per neuron. One beyond the
            model's ``longest`` counts as that.
    """

    delay: Annotated[jax.Array, NOT_NEGATIVE]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Delay:
    """The model of a site, `snnjax.encode`, that delays the stream to a layer.

    Its state is the last inputs, [B, ..., longest + 1]. It holds back events and sends
    none of its own: its outputs are no levels.

    Args:
        delay: of fresh parameters: a number, an array or a distribution, as for
            `snnjax.lif`.
        longest: 1 or more, and no less than any delay.

    Raises:
        ValueError: a number outside its range.

    A delay of each synapse is one of K copies of the input, behind which the kernel has
    an axis of taps; docs/neurons.md has an example.

    >>> import jax.numpy as jnp
    >>> from snnjax.neurons import unroll
    >>> neuron = Delay(delay=[0.0, 2.0, 0.5], longest=3)
    >>> once = jnp.zeros((4, 1, 3)).at[0].set(1.0)
    >>> print(unroll(neuron, neuron.init((3,)), once)[:, 0])
    [[1.  0.  0.5]
     [0.  0.  0.5]
     [0.  1.  0. ]
     [0.  0.  0. ]]
    """

    delay: Annotated[Numbers, NOT_NEGATIVE]
    longest: int

    def __post_init__(self):
        COUNT.check("longest", self.longest)
        make_plain_numbers(self)
        delay: Any = self.delay
        most = delay.high if isinstance(delay, Uniform) else float(np.max(delay))
        Range(0, self.longest).check("the longest delay", most)

    def init(self, shape: tuple[int, ...] = (), key: Any = None) -> DelayParams:
        """The delays: a scalar, an array, or numbers drawn for each channel."""
        return DelayParams(parameter(self, "delay", shape, key))

    def start(self, params: DelayParams, shape: tuple[int, ...]) -> jax.Array:
        """No inputs yet."""
        return jnp.zeros((*shape, self.longest + 1), wide_dtype(params.delay))

    def integrate(
        self, params: DelayParams, state: jax.Array, current: jax.Array
    ) -> jax.Array:
        """The current is the latest of the last inputs."""
        del params
        latest = current.astype(state.dtype)[..., None]
        return jnp.concatenate([latest, state[..., :-1]], -1)

    def fire(
        self, params: DelayParams, state: jax.Array, spike: Any = None
    ) -> tuple[jax.Array, jax.Array]:
        """The inputs of d steps before."""
        del spike  # nothing is compared with a threshold
        shares = self._shares(params, state.ndim - 1)
        outputs = [state[..., k] * share for k, share in enumerate(shares)]
        return state, functools.reduce(operator.add, outputs)

    def through_time(
        self, params: DelayParams, state: jax.Array, currents: jax.Array, spike: Any
    ) -> tuple[jax.Array, jax.Array]:
        """All steps at once, without the last inputs of each of them."""
        del spike
        before = jnp.moveaxis(state[..., ::-1], -1, 0)
        stream = jnp.concatenate([before, currents.astype(state.dtype)])
        steps, first = len(currents), self.longest + 1
        shares = self._shares(params, currents.ndim)
        at = (stream[first - k : first - k + steps] for k in range(first))
        outputs = [u * share for u, share in zip(at, shares, strict=True)]
        after = jnp.moveaxis(stream[-first:][::-1], 0, -1)
        return after, functools.reduce(operator.add, outputs)

    def _shares(self, params: DelayParams, ndim: int) -> list[jax.Array]:
        """What of the input of k steps before comes out, for each k."""
        delay = lead(params.delay, ndim)
        # At the longest and beyond, the slope is that of the steps just before it, or a
        # trained delay would never come back.
        beyond = jax.lax.stop_gradient(jnp.minimum(delay, self.longest) - delay)
        delay = delay + beyond
        whole = jnp.minimum(jnp.floor(delay), self.longest - 1)
        part = delay - jax.lax.stop_gradient(whole)
        late = [jnp.where(whole == k, part, 0) for k in range(-1, self.longest)]
        pairs = enumerate(late)
        return [jnp.where(whole == k, 1 - part, share) for k, share in pairs]
