"""The conversion error of a neuron, in parts that tell its cause.

Averaged over T steps the error is the sum of

    a - f(z)                            inherited  (from earlier layers)
    f(z) - clip(f(z), 0, V)             clipping   (V = high V_th)
    clip(f(z), 0, V) - ClipFloor(z)     flooring   (to one of T high + 1 values)
    ClipFloor(z) - s                    unevenness (of the spikes in time)

Here f is the ANN's activation function, a its value in the ANN, z the mean current of
the SNN, and s the mean output. This is for rate coding; with other codes V = high V_th
(w_1 + .. + w_T). At an encoder f(z) = z, and the clip is from low V_th + offset to
high V_th + offset. ClipFloor includes the bias and v(0) of the site, which compensate
the floor. Sources: Li et al., ICML 2021 (clipping, flooring); Bu et al., ICLR 2022
(unevenness).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from snnjax._arrays import add_offset, lead, other_axes, wide
from snnjax._text import repr_of_numbers
from snnjax.network.sites import Site
from snnjax.neurons.models import counts_only
from snnjax.neurons.protocol import field
from snnjax.neurons.unroll import closed_form
from snnjax.neurons.wrappers import off_grid
from snnjax.snn import SNN


class SiteMeasures(NamedTuple):
    """Activity and errors of one site, averaged over images.

    Attributes:
        firing_rate: fraction of steps with a spike, over all neurons, 0..1.
        silent: fraction of channels in which no neuron ever fires.
        saturated: fraction of channels in which every neuron fires at every step.
        activation: root mean square of the ANN's activation, to compare errors with.
        error: root mean square of a - s.
        inherited, clipping, flooring, unevenness: root mean square of the parts of the
            error. The last three are NaN unless the neurons are IF with reset by
            subtraction and no lower bound: no others have a ClipFloor.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn = lambda w, x: jax.nn.relu(x @ w)
    >>> w, x = jnp.eye(2), jnp.array([[0.5, 1.5]])
    >>> snn = snnjax.init(fn, w, x, model=snnjax.integrate_and_fire())
    >>> measures = snnjax.measure(fn, snn, x, params=w, steps=4)
    >>> site = measures.sites["relu"]  # the activation 1.5 is clipped at 1
    >>> for name in ("inherited", "clipping", "flooring", "unevenness"):
    ...     print(f"{name} {getattr(site, name):.3f}")
    inherited 0.000
    clipping 0.354
    flooring 0.000
    unevenness 0.000
    """

    firing_rate: jax.Array
    silent: jax.Array
    saturated: jax.Array
    activation: jax.Array
    error: jax.Array
    inherited: jax.Array
    clipping: jax.Array
    flooring: jax.Array
    unevenness: jax.Array

    __repr__ = repr_of_numbers


def measured_site(
    site: Site,
    snn: SNN,
    *,
    activation: jax.Array,
    activation_of_mean: jax.Array,
    currents: jax.Array,
    spikes: jax.Array,
) -> SiteMeasures:
    """Measures of a site; None for parts of the error that its neurons do not have.

    Args:
        site: where the neurons fire.
        snn: their parameters, model and code.
        activation: a, of the ANN, [B, ...].
        activation_of_mean: f(z), the ANN's function of the mean current, [B, ...].
        currents: what arrives at each step, [T, B, ...].
        spikes: what is sent at each step, without the offset, [T, B, ...].
    """
    steps = len(spikes)
    offset = field(snn.neurons[site.name], "offset")
    # Spikes are counted over time and positions, but not over images, which are axis 1:
    # all images together may have more than int32 counts.
    reduced_axes = [axis for axis in other_axes(spikes.ndim, site.channel) if axis != 1]
    spike_counts = (spikes != 0).sum(tuple(reduced_axes))  # [B, C]
    # The count if every neuron of a channel fires at every step.
    possible_count = steps * activation[0].size // activation.shape[site.channel]

    activation = wide(activation)
    activation_of_mean = wide(activation_of_mean)
    mean_current = wide(currents.mean(0))
    mean_output = wide(add_offset(spikes.mean(0), offset))
    clipping, flooring, unevenness = _split_errors(
        site, snn, activation_of_mean, mean_current, mean_output, steps
    )
    return SiteMeasures(
        firing_rate=spike_counts.astype(jnp.float32).mean() / possible_count,
        silent=(spike_counts == 0).all(0).mean(),
        saturated=(spike_counts == possible_count).all(0).mean(),
        activation=_root_mean_square(activation),
        error=_root_mean_square(activation - mean_output),
        inherited=_root_mean_square(activation - activation_of_mean),
        clipping=clipping,
        flooring=flooring,
        unevenness=unevenness,
    )


def _split_errors(
    site: Site,
    snn: SNN,
    activation_of_mean: jax.Array,
    mean_current: jax.Array,
    mean_output: jax.Array,
    steps: int,
) -> tuple[Any, Any, Any]:
    """Clipping, flooring and unevenness, root mean squares [].

    All three are None where neurons have no ClipFloor.

    Args:
        site: where the neurons fire.
        snn: their parameters, model and code.
        activation_of_mean: f(z), [B, ...].
        mean_current: z, [B, ...].
        mean_output: s, with the offset, [B, ...].
        steps: T.
    """
    model, params = snn.model_of(site.name), snn.neurons[site.name]
    if not counts_only(model, params):
        return None, None, None
    clip_floor = closed_form(model, params, mean_current, steps, code=snn.code)
    threshold = lead(params.threshold, mean_current.ndim).astype(mean_current.dtype)
    low_level, high_level = model.levels
    reach = snn.code.reach(steps)
    low = low_level * reach * threshold
    high = high_level * reach * threshold
    if off_grid(model).rectifies:
        # Negative spikes take positive ones back, and the total stays >= 0.
        low = jnp.zeros_like(low)
    low = add_offset(low, params.offset)
    high = add_offset(high, params.offset)
    clipped = jnp.clip(activation_of_mean, low, high)
    return (
        _root_mean_square(activation_of_mean - clipped),
        _root_mean_square(clipped - clip_floor),
        _root_mean_square(clip_floor - mean_output),
    )


def _root_mean_square(array: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.square(array).mean())
