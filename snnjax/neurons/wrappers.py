"""Models around a model: a synapse before it, adaptation, recurrence, or a grid.

    Synaptic     i <- synaptic_leak i + I,    which the model integrates
    Adaptive     v integrates I - w,    w <- adaptation_leak w + a v + b s
    Recurrent    I <- I + s(t - 1) W,    W [N, N] among the N neurons of a site

Each of them is a value with the fields of fresh parameters; its params and its state
hold those of the model inside as ``neuron``. Sources: Neftci, Mostafa and Zenke, IEEE
Signal Processing Magazine 2019, where v integrates i of the step before; Baronig,
Ferrand, Sabathiel and Legenstein, arXiv 2408.07517; Bellec et al., NeurIPS 2018, where
the reset subtracts a raised threshold, and W connects no neuron to itself.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from snnjax._arrays import like, promoted, straight_through, wide_dtype
from snnjax._ranges import LEAK, NOT_NEGATIVE, SHARE
from snnjax.neurons import fresh
from snnjax.neurons.protocol import Wrapper, check_model, field, fire
from snnjax.surrogate import Surrogate, dspike


class WrapperState(NamedTuple):
    """State of a wrapper.

    Attributes:
        neuron: that of the model inside.
        variable: the wrapper's own, [B, ...]: i, w or s(t - 1).
    """

    neuron: Any
    variable: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class _WithVariable(Wrapper):
    """A wrapper whose state has a variable of its own, 0 at the start.

    Attributes:
        _params: class of the parameters; its first field is ``neuron``, and the others
            have the names of fields of this wrapper.
    """

    _params: ClassVar[Any]

    def __post_init__(self):
        check_model(self.neuron)
        fresh.make_plain_numbers(self)

    def init(self, shape: tuple[int, ...] = (), key: Any = None) -> Any:
        """The model's parameters, and those of the other fields."""
        params = {"neuron": self.neuron.init(shape, key)}
        for name in self._params._fields[1:]:
            params[name] = fresh.parameter(self, name, shape, key)
        return self._params(**params)

    def start(self, params: Any, shape: tuple[int, ...]) -> WrapperState:
        """That of the model, and zeros in float32 or wider."""
        inside = self.neuron.start(params.neuron, shape)
        zeros = jnp.zeros(shape, wide_dtype(*jax.tree.leaves(params)))
        return WrapperState(inside, zeros)

    def integrate(
        self,
        params: Any,
        state: WrapperState,
        current: jax.Array,
    ) -> WrapperState:
        """As the model does."""
        inside = self.neuron.integrate(params.neuron, state.neuron, current)
        return state._replace(neuron=inside)

    def fire(
        self,
        params: Any,
        state: WrapperState,
        spike: Surrogate | None = None,
    ) -> tuple[WrapperState, jax.Array]:
        """As the model does."""
        inside, spikes = fire(self.neuron, params.neuron, state.neuron, spike)
        return state._replace(neuron=inside), spikes


class SynapticParams(NamedTuple):
    """Parameters of neurons with a synaptic current.

    Attributes:
        neuron: those of the model that the current goes to.
        synaptic_leak: factor on i before a current comes in, in (0, 1], scalar or [C].
    """

    neuron: Any
    synaptic_leak: Annotated[jax.Array, LEAK]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Synaptic(_WithVariable):
    """A neuron whose input passes a synapse: i <- synaptic_leak i + I.

    The variable of its state is i.

    Args:
        neuron: the model that integrates i, e.g. `snnjax.lif`.
        synaptic_leak: 0 < synaptic_leak <= 1; exp(-dt / tau) of a synapse with the time
            constant tau: a number, an array or a distribution, as for `snnjax.lif`. A
            constant current I settles at i = I / (1 - synaptic_leak), as a bias does.

    >>> import jax.numpy as jnp
    >>> from snnjax.neurons import lif, unroll
    >>> neuron = Synaptic(lif(leak=1.0), synaptic_leak=0.5)
    >>> once = jnp.array([[1.0], [0.0], [0.0], [0.0]])
    >>> print(unroll(neuron, neuron.init(), once)[:, 0])        # v: 1, 0.5, 0.75, 0.875
    [1. 0. 0. 0.]
    """

    synaptic_leak: Annotated[fresh.Numbers, LEAK] = 0.5
    _params = SynapticParams

    def integrate(
        self,
        params: SynapticParams,
        state: WrapperState,
        current: jax.Array,
    ) -> WrapperState:
        """i <- synaptic_leak i + I; the model integrates i."""
        i = state.variable
        leak = like(params.synaptic_leak, i)
        i = leak * i + current.astype(i.dtype)
        return super().integrate(params, state._replace(variable=i), i)


class AdaptiveParams(NamedTuple):
    """Parameters of neurons with an adaptation current.

    Attributes:
        neuron: those of the model.
        subthreshold: a, what a potential of 1 adds to w, in [0, 1], scalar or [C].
        spike_triggered: b, what a spike of size 1 adds to w, >= 0, scalar or [C].
        adaptation_leak: beta, factor on w at every step, in (0, 1], scalar or [C].
    """

    neuron: Any
    subthreshold: Annotated[jax.Array, SHARE]
    spike_triggered: Annotated[jax.Array, NOT_NEGATIVE]
    adaptation_leak: Annotated[jax.Array, LEAK]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Adaptive(_WithVariable):
    """A neuron whose potential and spikes feed a current w against its input.

    With `snnjax.lif` it is SE-adLIF. The model integrates I - w. After it has fired, w
    <- beta w + a v + b s, with the *new* potential v: symplectic Euler. Around a LIF of
    leak alpha, v and w are stable for all a <= 1, and where they oscillate they shrink
    by sqrt(alpha beta) a step; with the old v (explicit Euler) they would diverge from
    a = 1 - alpha beta on. The paper's factors, 1 - alpha on I - w and 1 - beta on what
    w gets, are part of the weights, a and b here.

    Args:
        neuron: the model, whose state has a ``potential``, e.g. `snnjax.lif`.
        subthreshold: a, 0 <= a <= 1. As the others it is a number, an array or a
            distribution, as for `snnjax.lif`; by default ``init`` draws all of them.
        spike_triggered: b >= 0; s is V_th for a spike.
        adaptation_leak: beta, 0 < beta <= 1.

    >>> import jax.numpy as jnp
    >>> from snnjax.neurons import lif, unroll
    >>> options = dict(subthreshold=0.0, spike_triggered=1.0, adaptation_leak=0.5)
    >>> neuron = Adaptive(lif(leak=1.0), **options)
    >>> print(unroll(neuron, neuron.init(), jnp.full((6, 1), 1.0))[:, 0])
    [1. 0. 0. 1. 0. 0.]
    """

    subthreshold: Annotated[fresh.Numbers, SHARE] = fresh.Uniform(0, 0.5)
    spike_triggered: Annotated[fresh.Numbers, NOT_NEGATIVE] = fresh.Uniform(0, 0.5)
    adaptation_leak: Annotated[fresh.Numbers, LEAK] = fresh.TimeConstants(10, 50)
    _params = AdaptiveParams

    def integrate(
        self,
        params: AdaptiveParams,
        state: WrapperState,
        current: jax.Array,
    ) -> WrapperState:
        """The model integrates I - w."""
        w = state.variable
        return super().integrate(params, state, current.astype(w.dtype) - w)

    def fire(
        self,
        params: AdaptiveParams,
        state: WrapperState,
        spike: Surrogate = dspike,
    ) -> tuple[WrapperState, jax.Array]:
        """As the model does, and then w <- beta w + a v + b s."""
        state, spikes = super().fire(params, state, spike)
        w = state.variable
        v = field(state.neuron, "potential")
        if v is None:
            raise ValueError(
                f"an adaptation needs a potential, and the state of {self.neuron!r} "
                "has no field of that name; allowed: a model with one, e.g. snnjax.lif"
            )
        a = like(params.subthreshold, w)
        b = like(params.spike_triggered, w)
        leak = like(params.adaptation_leak, w)
        w = leak * w + a * v.astype(w.dtype) + b * spikes.astype(w.dtype)
        return state._replace(variable=w), spikes


class RecurrentParams(NamedTuple):
    """Parameters of recurrent neurons.

    Attributes:
        neuron: those of the model.
        kernel: W [N, N], from row to column, N the number of neurons of the site.
    """

    neuron: Any
    kernel: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recurrent(_WithVariable):
    """Neurons with a dense recurrent kernel among those of their site.

    The kernel has N x N weights for the N neurons of a site. It is meant for dense
    layers: in a convolution N counts all positions. The ``key`` of `snnjax.init` draws
    it, and an optimizer trains it as "kernel". The variable of its state is s(t - 1).

    Args:
        neuron: the model, e.g. `snnjax.lif`.

    >>> import jax, jax.numpy as jnp
    >>> from snnjax.neurons import lif, unroll
    >>> neuron = Recurrent(lif(leak=1.0))
    >>> params = neuron.init((2,), jax.random.key(0))
    >>> params = params._replace(kernel=jnp.array([[0.0, 1.0], [0.0, 0.0]]))
    >>> first_neuron_only = jnp.array([[[1.0, 0.0]], [[0.0, 0.0]], [[0.0, 0.0]]])
    >>> print(unroll(neuron, params, first_neuron_only)[:, 0])
    [[1. 0.]
     [0. 1.]
     [0. 0.]]
    """

    def init(self, shape: tuple[int, ...] = (), key: Any = None) -> RecurrentParams:
        """The model's parameters, and weights drawn from N(0, 1/N)."""
        fresh.check_key("a recurrent kernel", key)
        kernel_key, model_key = jax.random.split(key)
        count = math.prod(shape)
        # The variance of a sum of N spikes does not grow with N.
        kernel = jax.random.normal(kernel_key, (count, count)) / math.sqrt(count)
        return RecurrentParams(self.neuron.init(shape, model_key), kernel)

    def fan_out(self, shape: tuple[int, ...]) -> int:
        """Connections that each spike reaches: N."""
        return math.prod(shape)

    def integrate(
        self,
        params: RecurrentParams,
        state: WrapperState,
        current: jax.Array,
    ) -> WrapperState:
        """The model integrates I + s W."""
        last_spikes = state.variable
        dtype = promoted(current, last_spikes)
        # The kernel connects all neurons of the site, so they become one axis: [B, N].
        batch = last_spikes.shape[0]  # a symbol where any batch is exported
        rows = last_spikes.reshape(batch, -1)
        recurrent = rows.astype(dtype) @ params.kernel.astype(dtype)
        total = current.astype(dtype) + recurrent.reshape(last_spikes.shape)
        return super().integrate(params, state, total)

    def fire(
        self,
        params: RecurrentParams,
        state: WrapperState,
        spike: Surrogate = dspike,
    ) -> tuple[WrapperState, jax.Array]:
        """As the model does; the spikes come back in the next step."""
        state, spikes = super().fire(params, state, spike)
        last_spikes = spikes.astype(state.variable.dtype)
        return state._replace(variable=last_spikes), spikes


@dataclasses.dataclass(frozen=True)
class WholeNumbers(Wrapper):
    """IF neurons whose potential stays on a grid; gradients pass the rounding.

        v  <- unit round((v + I) / unit)

    In a network of whole numbers every current is a multiple of the unit. Sums of
    floats miss it by rounding errors, which this model takes back at every step.

    Attributes:
        unit: distance of two neighboring potentials: T w_T of the code, 1 with rate
            coding.

    >>> import jax.numpy as jnp
    >>> from snnjax.neurons import integrate_and_fire, unroll
    >>> neuron = WholeNumbers(integrate_and_fire(threshold=3.0))
    >>> tenths = jnp.full((4, 1), 1.1)
    >>> print(unroll(neuron, neuron.init(), tenths)[:, 0])  # of currents of 1
    [0. 0. 3. 0.]
    """

    unit: float = 1.0

    @property
    def margin(self) -> float:
        """What is added to v before it is compared, so that rounding flips no tie.

        The sizes of a code's spikes are not always exact in floats.
        """
        return self.unit / 4

    def integrate(self, params: Any, state: Any, current: jax.Array) -> Any:
        """As the model does, and then v becomes the nearest multiple of the unit."""
        state = self.neuron.integrate(params, state, current)
        return state._replace(potential=self.nearest(state.potential))

    def nearest(self, v: jax.Array) -> jax.Array:
        """The nearest multiple of the unit; its derivative is 1."""
        rounded = self.unit * jnp.round(v / self.unit)
        return straight_through(rounded, v)


def off_grid(model: Any) -> Any:
    """The model itself, or the one whose potential `WholeNumbers` keeps on a grid."""
    return model.neuron if isinstance(model, WholeNumbers) else model
