"""`quantize`: layers whose weights, thresholds and potentials are whole numbers.

    W_ji = round(s_j w_ji),  Theta_j = s_j V_j,  B_j = round(s_j b_j + c_j)

``rounding.py`` chooses s_j and W for each population in the order of execution. Then
c_j makes the mean current of the calibration images equal to that of the float network,
and what a bias cannot hold goes into the initial potential. The readout divides by s_j.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from snnjax._checks import check_choice, check_examples, check_numbers
from snnjax._patterns import matching
from snnjax.integers import exact, rounding
from snnjax.integers.connections import with_own_maps
from snnjax.layers.function import channels_last, map_params
from snnjax.layers.sums import compact
from snnjax.layers.values import (
    Affine,
    Arithmetic,
    Convolution,
    Dense,
    Input,
    Layers,
    Node,
    Output,
    Population,
    Scale,
)
from snnjax.neurons.gradients import without_surrogate
from snnjax.neurons.models import NeuronParams
from snnjax.neurons.unroll import unroll

_MOST_SAMPLES = 1 << 16  # of a second moment
_HEADROOM = 0.7  # of a potential's bits, for the calibration images
_ATTEMPTS = 4  # to find scales whose potentials fit


def quantize(
    layers: Layers,
    images: Any,
    *,
    weight_bits: int | Mapping[str, int] = 8,
    state_bits: int = 16,
    input_bits: int = 8,
    scale: rounding.Scale = "channel",
    overflow: Literal["saturate", "wrap"] = "saturate",
) -> Layers:
    """Layers of whole numbers, which a digital chip computes bit for bit.

    A neuron's weights, threshold, bias and initial potential are multiplied by one
    number s_j and rounded; s_j is such that the threshold becomes a whole number. No
    scale is left between two populations. Rounding errors of weights are fed back with
    the second moment of what the weights read (GPTQ), and biases are fitted again.

    Args:
        layers: from `snnjax.layers.of`, of IF neurons.
        images: float [N, ...], channels last: calibration images, from which the
            range of x, second moments and ranges of potentials are taken.
        weight_bits: 1 .. 16, or pattern of receivers -> bits. With 2 bits a weight is
            -1, 0 or 1, with 1 bit -1 or 1. Shortcuts that scale spikes one by one
            have at least 8 bits.
        state_bits: 4 .. 30, of a membrane potential.
        input_bits: 2 .. 16, of an element of x; x of whole numbers in that range stays
            as it is.
        scale: "channel": each channel has its own s_j and threshold; "layer": all
            neurons of a population have one threshold; "power_of_two": and that is a
            power of two.
        overflow: whether a potential beyond its bits stays at the limit ("saturate") or
            "wrap"s around.

    Returns:
        `Layers` with whole numbers and an `Arithmetic`. `snnjax.integers.run` computes
        them exactly; `snnjax.layers.function` makes a function and an SNN of them. With
        a code, biases are multiples of its last weight w_T, and initial potentials of
        T w_T, since constants arrive once.

    Raises:
        snnjax.ConversionError: two linear maps follow each other without neurons.
        ValueError: an argument outside its range; neurons with a leak; a code whose
            weights are no whole multiples of the last one; a threshold that would be
            rounded to 0.

    Source: the scale of a neuron: arXiv 2305.09850; GPTQ: arXiv 2210.17323.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn = lambda p, x: jax.nn.relu(x @ p["hidden"]) @ p["readout"]
    >>> params = {"hidden": jnp.array([[0.5, -1.0]]), "readout": jnp.ones((2, 1))}
    >>> x = jnp.array([[1.0], [-0.5]])
    >>> snn = snnjax.convert(fn, params, x, steps=4, recipe=snnjax.max_activation())
    >>> integers = quantize(snnjax.layers.of(fn, snn, x), x, weight_bits=4)
    >>> print(integers.connections[0].maps[0].weight.ravel())
    [ 7. -7.]
    """
    is_mapping = isinstance(weight_bits, Mapping)
    bits = weight_bits if is_mapping else {"*": weight_bits}
    _check(layers, images, bits, state_bits, input_bits, scale, overflow)
    receivers = [node.name for node in (*layers.populations, *layers.outputs)]
    bits = matching(bits, receivers, "weight_bits")
    arithmetic = Arithmetic(max(bits.values()), input_bits, state_bits, overflow)
    layers = dataclasses.replace(with_own_maps(layers), arithmetic=arithmetic)
    exact.check_state(layers)
    nodes = _rounded(layers, jnp.asarray(images, jnp.float32), bits, scale)
    return dataclasses.replace(layers, nodes=tuple(nodes))


class _Pair(NamedTuple):
    """What a node sends in the float network, and in that of whole numbers.

    Levels are whole numbers in both, x is in units of its whole numbers.
    """

    floats: exact.Stream
    whole: exact.Stream


def _rounded(
    layers: Layers, x: jax.Array, bits: Mapping[str, int], scale: rounding.Scale
) -> Iterator[Node]:
    """The nodes with whole numbers, fitted in the order of execution."""
    pairs: dict[str, _Pair] = {}
    maps: dict[str, Affine] = {}
    unit = np.ones(())

    def arriving(node: Node) -> _Pair:
        sources = [pairs[name] for name in node.sources]
        return _Pair(
            exact.total([pair.floats for pair in sources]),
            exact.total([pair.whole for pair in sources]),
        )

    for node in layers.nodes:
        match node:
            case Input():
                node, pairs[node.name] = _entrance(node, x, layers)
                unit = node.unit
            case Convolution() | Dense() | Scale():
                pair = arriving(node)
                if pair.whole.constant is not None:
                    node = dataclasses.replace(node, weight=node.weight * unit)
                maps[node.name], pairs[node.name] = node, pair
                continue
            case Population() | Output():
                connections = [
                    _Connection(maps[s], *pairs.pop(s)) for s in node.sources
                ]
                receiver = _Receiver(layers, node, connections)
                node, own, pair = receiver.rounded(bits[node.name], scale)
                pairs |= {node.name: pair} if pair else {}
                yield from own
            case _:
                parts = (exact.mapped(node, {}, s) for s in arriving(node))
                pairs[node.name] = _Pair(*parts)
        yield node


def _entrance(node: Input, x: jax.Array, layers: Layers) -> tuple[Input, _Pair]:
    """The input with its unit: 1 for whole numbers, or that of the largest element."""
    assert layers.arithmetic is not None
    largest = layers.arithmetic.largest_input
    peak = float(jnp.abs(x).max())
    is_whole = peak <= largest and bool((x == jnp.round(x)).all())
    unit = 1.0 if is_whole or peak == 0 else peak / largest
    # With so few bits in the unit, multiples of it are exact in float32.
    mantissa, exponent = np.frexp(unit)
    places = 2.0 ** (23 - layers.arithmetic.input_bits)
    unit = np.ldexp(np.ceil(mantissa * places) / places, exponent)
    whole, _ = exact.whole_input(x, jnp.float32(unit), layers.arithmetic)
    node = dataclasses.replace(node, unit=np.asarray(unit))
    return node, _Pair(exact.Stream(x / unit, None), exact.Stream(whole, None))


class _Connection(NamedTuple):
    """A map with weights, and what it reads in both networks."""

    weights: Affine
    floats: exact.Stream
    whole: exact.Stream


class _Receiver:
    """A population or an output, with all that it reads.

    Attributes:
        rows: weights over the threshold, [O, n] for each connection.
        seconds: second moments of what these weights read, [G, n, n] for G groups of
            rows.
        currents: of the float network, in units, [T, N, ...].
    """

    def __init__(
        self,
        layers: Layers,
        node: Population | Output,
        connections: list[_Connection],
    ):
        assert layers.steps is not None
        self.layers, self.node, self.connections = layers, node, connections
        self.times = exact.timing(layers.code, layers.steps, layers.wait or 0)
        v_th = node.threshold if isinstance(node, Population) else np.ones(())
        self.thresholds = _per_row(v_th, node.shape)
        self.rows = [_rows(c.weights) / self.thresholds[:, None] for c in connections]
        self.seconds = [
            _second_moment(c.weights, _decoded(c.whole, self.times))
            for c in connections
        ]
        bias = channels_last(node.bias) / exact.bias_unit(layers)
        self.bias = np.asarray(bias, np.float32)
        self.currents = self._received(
            [
                exact.mapped(c.weights, map_params(c.weights), c.floats)
                for c in connections
            ]
        )

    def rounded(
        self, bits: int, scale: rounding.Scale
    ) -> tuple[Population | Output, list[Affine], _Pair | None]:
        """The node and its maps with whole numbers, and the spikes that it sends."""
        self._check_threshold(bits)
        assert self.layers.arithmetic is not None
        half = 2 ** (self.layers.arithmetic.state_bits - 1)
        is_population = isinstance(self.node, Population)
        parts = [
            rounding.Part(rows, _bits_of(c.weights, bits), _power(second, len(rows)))
            for c, rows, second in zip(
                self.connections, self.rows, self.seconds, strict=True
            )
        ]
        most = np.full(len(self.thresholds), half / 2)
        for _ in range(_ATTEMPTS):
            theta = rounding.scales(parts, most, scale, is_population)
            maps = [
                _with_rows(
                    c.weights, _to_whole(p.rows * theta[:, None], p.bits, second)
                )
                for c, p, second in zip(
                    self.connections, parts, self.seconds, strict=True
                )
            ]
            weighted = self._received(
                [
                    exact.mapped(m, map_params(m), c.whole)
                    for m, c in zip(maps, self.connections, strict=True)
                ]
            )
            node, currents = self._with_charge(theta, weighted)
            if isinstance(node, Output):
                return node, maps, None
            # Wide registers say how far potentials would go.
            fired = exact.fire(node, exact.widest(self.layers), currents)
            lowest, highest = (np.asarray(e, float) for e in fired.extremes)
            peaks = np.maximum(-lowest, highest + 1)
            peaks = peaks.reshape(-1, peaks.shape[-1]).max(axis=0)
            is_too_large = peaks > _HEADROOM * half
            if not is_too_large.any():
                break
            smaller = np.floor(theta * _HEADROOM * half / peaks)
            most = np.where(is_too_large, smaller, most)
            self._check_state(most)
        else:
            fired = exact.fire(node, self.layers, currents)
        return node, maps, _Pair(self._float_spikes(), exact.Stream(None, fired.spikes))

    def _received(self, streams: list[exact.Stream]) -> jax.Array:
        """What arrives of these, in units, without the bias: [T, N, ...]."""
        assert self.layers.steps is not None
        zero = np.zeros((), np.int32)
        return exact.received(exact.total(streams), zero, self.times, self.layers.steps)

    def _with_charge(
        self, theta: np.ndarray, weighted: jax.Array
    ) -> tuple[Population | Output, jax.Array]:
        """The node with fitted whole bias and potential, and its currents.

        Args:
            theta: thresholds.
            weighted: currents of whole numbers, without a bias.
        """
        node, layers = self.node, self.layers
        factor = theta / self.thresholds
        biases = self.times.biases.sum()
        axes = tuple(range(weighted.ndim - 2))
        missing = factor * np.asarray(self.currents.sum(0).mean(axes), np.float64)
        missing -= np.asarray(weighted.sum(0).mean(axes, dtype=jnp.float32))
        total = factor * self.bias * biases + missing
        bias = np.rint(total / biases)
        arriving = jnp.asarray(self.times.biases[: len(weighted)], jnp.int32)
        arriving = arriving.reshape(-1, *[1] * (weighted.ndim - 1))
        currents = weighted + arriving * jnp.asarray(bias, jnp.int32)
        own_bias = _channels_first(bias * exact.bias_unit(layers), node.shape)
        if isinstance(node, Output):
            unit = _channels_first(1 / factor, node.shape)
            return dataclasses.replace(node, bias=own_bias, unit=unit), currents
        start = factor * channels_last(node.initial_potential) / exact.unit(layers)
        start = np.rint(start + total - biases * bias) * exact.unit(layers)
        threshold = np.maximum(np.rint(factor * channels_last(node.threshold)), 1)
        whole = dataclasses.replace(
            node,
            threshold=_channels_first(threshold, node.shape),
            initial_potential=_channels_first(start, node.shape),
            bias=own_bias,
        )
        return whole, currents

    def _float_spikes(self) -> exact.Stream:
        """The levels of the float network."""
        node, layers = self.node, self.layers
        assert isinstance(node, Population) and layers.steps is not None
        threshold = jnp.asarray(channels_last(node.threshold), jnp.float32)
        start = jnp.asarray(channels_last(node.initial_potential), jnp.float32)
        shape = (-1, *[1] * (self.currents.ndim - 1))
        biases = jnp.asarray(self.times.biases[: layers.steps]).reshape(shape)
        currents = (self.currents + biases * self.bias) * exact.unit(layers)
        spikes = unroll(
            without_surrogate(node.model),
            NeuronParams(threshold, jnp.zeros(()), start),
            currents,
            wait=layers.wait or 0,
            code=layers.code,
        )
        sizes = jnp.asarray(layers.code.sizes(layers.steps)).reshape(shape)
        return exact.Stream(None, jnp.round(spikes / (sizes * threshold)))

    def _check_threshold(self, bits: int) -> None:
        """Raise if a threshold would be rounded to 0."""
        if not isinstance(self.node, Population):
            return
        for connection, rows in zip(self.connections, self.rows, strict=True):
            peak = float(np.abs(rows).max(initial=0))
            own_bits = _bits_of(connection.weights, bits)
            enough = next(
                b for b in range(1, 64) if rounding.largest_weight(b) >= peak / 2
            )
            if enough > own_bits:
                raise ValueError(
                    f"with weights of {own_bits} bits a threshold of "
                    f"{self.node.name!r} would be rounded to 0: a weight is "
                    f"{peak:.3g} times the threshold; allowed: weight_bits >= "
                    f"{enough} there"
                )

    def _check_state(self, most: np.ndarray) -> None:
        """Raise if only a threshold below 1 would keep the potentials in their bits."""
        assert self.layers.arithmetic is not None
        if (most < 1).any():
            raise ValueError(
                f"potentials of {self.node.name!r} do not fit into "
                f"{self.layers.arithmetic.state_bits} bits, whatever the scale; "
                "allowed: more state_bits, or fewer weight_bits"
            )


# ------------------------------------------------------------------ rows of weights


def _per_row(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """One number per channel or element of a vector, [O]; the mean of a channel."""
    values = np.broadcast_to(values, shape).reshape(shape[0], -1)
    return values.mean(axis=1)


def _channels_first(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Values [], [C] or [H, W, C] of a receiver of this shape, as `Layers` has them."""
    if len(shape) == 3 and values.ndim:
        values = np.moveaxis(
            np.reshape(values, (1,) * (3 - values.ndim) + values.shape), -1, 0
        )
    return compact(values)


def _rows(node: Affine) -> np.ndarray:
    """The weights of each channel or element that the map computes, [O, n]."""
    match node:
        case Convolution() | Dense():
            return node.weight.reshape(len(node.weight), -1)
        case _:
            channels = node.shape[0]
            weight = (
                np.broadcast_to(node.weight, (channels, *[1] * len(node.shape[1:])))
                if node.weight.ndim < 3 and node.weight.size == 1
                else node.weight
            )
            return weight.reshape(channels, -1)


def _with_rows(node: Affine, rows: np.ndarray) -> Affine:
    if isinstance(node, Convolution | Dense):
        return dataclasses.replace(node, weight=rows.reshape(node.weight.shape))
    shape = node.shape if rows.shape[1] > 1 else (len(rows), *[1] * len(node.shape[1:]))
    return dataclasses.replace(node, weight=rows.reshape(shape))


def _decoded(stream: exact.Stream, times: exact.Timing) -> jax.Array:
    """What all steps of a stream add up to, in units: float [N, ...]."""
    steps = 0 if stream.spikes is None else len(stream.spikes)
    parts = []
    if stream.constant is not None:
        parts.append(times.inputs.sum() * stream.constant)
    if stream.spikes is not None:
        weights = jnp.asarray(times.arriving[:steps], jnp.float32)
        parts.append(jnp.tensordot(weights, stream.spikes.astype(jnp.float32), 1))
    return sum(parts[1:], parts[0]).astype(jnp.float32)


def _second_moment(node: Affine, x: jax.Array) -> np.ndarray:
    """E[x x^T] of what each group of rows reads, [G, n, n].

    Args:
        node: a map.
        x: what it reads, [N, ...], channels last.
    """
    match node:
        case Convolution():
            samples = jax.lax.conv_general_dilated_patches(
                x,
                node.weight.shape[2:],
                node.stride,
                node.padding
                if isinstance(node.padding, str)
                else [(n, n) for n in node.padding],
                rhs_dilation=node.dilation,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
            samples = samples.reshape(-1, node.groups, samples.shape[-1] // node.groups)
        case Dense():
            samples = x[:, None]
        case _ if node.weight.ndim == 3 and node.weight.shape[1:] != (1, 1):
            # Every row has a weight per pixel, whose products are not needed.
            powers = np.asarray(jnp.moveaxis(jnp.mean(x**2, 0), -1, 0))
            return np.stack([np.diag(row.ravel()) for row in powers])
        case _:
            samples = x.reshape(-1, x.shape[-1], 1)
    samples = samples[:: max(1, len(samples) // _MOST_SAMPLES)]
    second = jnp.einsum("ngi,ngj->gij", samples, samples) / len(samples)
    return np.asarray(second, np.float64)


def _bits_of(node: Affine, bits: int) -> int:
    """At least 8 where each neuron has one weight, as in a shortcut of spikes.

    Such a weight is the size of the sender's spikes, often several times as large as
    the weights of a convolution beside it, and there is one per channel.
    """
    is_matrix = isinstance(node, Convolution | Dense)
    return bits if is_matrix else max(bits, 8)


def _power(second: np.ndarray, count: int) -> np.ndarray:
    """E[x_i^2] of each row, [O, n]."""
    return np.repeat(
        np.diagonal(second, axis1=1, axis2=2), count // len(second), axis=0
    )


def _to_whole(rows: np.ndarray, bits: int, second: np.ndarray) -> np.ndarray:
    """Rows rounded with error feedback, group by group."""
    if rows.shape[1] == 1:
        return rounding.to_grid(rows, bits)
    groups = np.split(rows, len(second))
    pairs = zip(groups, second, strict=True)
    return np.concatenate([rounding.with_feedback(r, bits, s) for r, s in pairs])


# --------------------------------------------------------------------------- checks


def _check(
    layers: Any,
    images: Any,
    bits: Mapping[str, Any],
    state_bits: Any,
    input_bits: Any,
    scale: Any,
    overflow: Any,
) -> None:
    if not isinstance(layers, Layers) or layers.arithmetic is not None:
        raise ValueError(
            f"layers is {layers!r}; allowed: float layers from "
            "snnjax.layers.of(fn, snn, x)"
        )
    if layers.steps is None:
        raise ValueError(
            "the layers have no T; allowed: layers of an SNN with steps, e.g. of "
            "snnjax.convert(..., steps=4)"
        )
    check_examples(images)
    check_numbers(images)
    exact.check_shape(layers, images)
    check_choice("scale", scale, ("channel", "layer", "power_of_two"))
    check_choice("overflow", overflow, ("saturate", "wrap"))
    ranges = {f"weight_bits of {name}": (n, 1, 16) for name, n in bits.items()}
    ranges |= {"state_bits": (state_bits, 4, 30), "input_bits": (input_bits, 2, 16)}
    for name, (number, least, largest) in ranges.items():
        is_whole = isinstance(number, int | np.integer) and not isinstance(number, bool)
        if not is_whole or not least <= number <= largest:
            raise ValueError(f"{name} is {number!r}; allowed: {least} .. {largest}")
    for node in layers.nodes:
        arrays = [a for a in jax.tree.leaves(node)]
        if not all(np.isfinite(a).all() for a in arrays):
            raise ValueError(
                f"node {node.name!r} has numbers that are NaN or infinite; allowed: "
                "finite weights, thresholds, potentials and biases"
            )
        if isinstance(node, Population) and node.leak is not None:
            if (node.leak != 1).any():
                raise ValueError(
                    f"the neurons of {node.name!r} leak, and each chip rounds a leak "
                    "in its own way; allowed: IF neurons, snnjax.integrate_and_fire()"
                )
