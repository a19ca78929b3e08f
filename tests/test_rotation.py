"""Rotations: (x H) (H W) = x W, of encoders whose kernels can take the rotation.

The oracle of H is the Kronecker power of [[1, 1], [1, -1]] in NumPy; that of a rotated
network is the network itself.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import compiled, oracle_spikes, outputs_of, variables
from rows import thorough

import snnjax
from snnjax import calibrators
from snnjax.network.capture.capture import capture
from snnjax.network.capture.rotation import (
    SiteRotation,
    rotated,
    rotated_params,
    site_rotations,
    with_rotations,
)

RNG = np.random.default_rng(0)
X = np.float32(RNG.normal(size=(48, 8)))
SEQUENCES = np.float32(RNG.normal(size=(6, 5, 8)))
IMAGES = np.float32(RNG.normal(size=(4, 6, 6, 8)))
RADIX = snnjax.codes.radix()


def normal(*shape):
    return np.float32(RNG.normal(size=shape) / np.sqrt(shape[0]))


PARAMS = {
    "up": normal(8, 12),
    "gate": normal(8, 12),
    "down": normal(12, 4),
    "transposed": normal(4, 12),
    "odd": normal(8, 6),
    "after odd": normal(6, 4),
    "scale": normal(12),
    "convolution": normal(3, 3, 8, 4),
    "depthwise": normal(3, 3, 1, 8),
    "to 8 channels": normal(3, 3, 4, 8),
    "square": normal(8, 8),
    "whole numbers": np.int8(np.sign(normal(12, 4))),
}


def convolution(images, kernel, groups=1, order="NHWC"):
    return jax.lax.conv_general_dilated(
        images,
        kernel,
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=(order, "HWIO", order),
        feature_group_count=groups,
    )


def gated(p, x):
    return jax.nn.silu(x @ p["gate"]) * (x @ p["up"])


# ----------------------------------------------------------------------------- H itself


def hadamard(block):
    h = np.ones((1, 1))
    while len(h) < block:
        h = np.kron(h, [[1, 1], [1, -1]]) / np.sqrt(2)
    return h


@pytest.mark.parametrize("block", [4, 8, 16, 64, 512])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_h_is_hadamards_matrix_in_blocks(block, axis):
    h = hadamard(block)
    shape = [2, 3, 2]
    shape[axis] = 3 * block
    x = np.float32(RNG.normal(size=shape))
    blocks = np.moveaxis(x, axis, -1).reshape(-1, 3, block)
    expected = (blocks @ h).reshape(np.moveaxis(x, axis, -1).shape)
    rotate = jax.jit(lambda x: rotated(x, axis, block))
    result = rotate(x)
    np.testing.assert_allclose(result, np.moveaxis(expected, -1, axis), atol=1e-5)
    np.testing.assert_allclose(rotate(result), x, atol=1e-5)


# ---------------------------------------------------- networks that stay what they were


class Transformer(nn.Module):
    @nn.compact
    def __call__(self, x):
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(2)(y, y)
        return nn.Dense(4)(nn.gelu(nn.Dense(16)(nn.LayerNorm()(x))))


def shared_encoder(p, x):
    y = jnp.tanh(x @ p["square"])
    return (y @ p["gate"]) + y.reshape(-1, 8) @ p["up"]


class RotatedCase(NamedTuple):
    """A network whose encoders can be rotated.

    Attributes:
        kernels: path of each kernel that rotates -> its axis.
    """

    fn: Callable
    params: Any
    x: np.ndarray
    kernels: dict[str, int]


ROTATED = {
    "a gate": RotatedCase(
        fn=lambda p, x: gated(p, x) @ p["down"],
        params=PARAMS,
        x=X,
        kernels={"down": 0},
    ),
    "a transposed kernel": RotatedCase(
        fn=lambda p, x: gated(p, x) @ p["transposed"].T,
        params=PARAMS,
        x=X,
        kernels={"transposed": 1},
    ),
    "several kernels": RotatedCase(
        fn=shared_encoder,
        params=PARAMS,
        x=X,
        kernels={"gate": 0, "up": 0},
    ),
    "a convolution": RotatedCase(
        fn=lambda p, x: convolution(jnp.tanh(x @ p["square"]), p["convolution"]),
        params=PARAMS,
        x=IMAGES,
        kernels={"convolution": 2},
    ),
    "a convolution with channels first": RotatedCase(
        fn=lambda p, x: convolution(
            jnp.tanh(convolution(x, p["convolution"], order="NCHW")),
            p["to 8 channels"],
            order="NCHW",
        ),
        params=PARAMS,
        x=IMAGES.transpose(0, 3, 1, 2),
        kernels={"to 8 channels": 2},
    ),
    "an encoder of the user's": RotatedCase(
        fn=lambda p, x: snnjax.encode(jax.nn.relu(x @ p["up"])) @ p["down"],
        params=PARAMS,
        x=X,
        kernels={"down": 0},
    ),
    "a transformer": RotatedCase(
        fn=Transformer().apply,
        params=variables(Transformer(), SEQUENCES),
        x=SEQUENCES,
        kernels={
            "params/MultiHeadDotProductAttention_0/out/kernel": 1,
            "params/Dense_0/kernel": 0,
            "params/Dense_1/kernel": 0,
        },
    ),
}


def rotations_of(fn, params, x):
    """Name of each site that can be rotated -> its rotation."""
    network = capture(fn, params, jax.eval_shape(lambda: x))
    return {
        name: rotation
        for name, rotation in site_rotations(network).items()
        if isinstance(rotation, SiteRotation)
    }


@pytest.mark.parametrize("name", ROTATED)
def test_a_rotated_network_computes_what_it_did(name):
    fn, params, x, kernels = ROTATED[name]
    all_rotations = rotations_of(fn, params, x)
    rotated_kernels = {}
    for rotation in all_rotations.values():
        rotated_kernels |= rotation.kernels
    assert rotated_kernels == kernels
    new_fn = with_rotations(fn, all_rotations)
    new_params = rotated_params(params, all_rotations)
    before = jax.jit(fn)(params, x)
    np.testing.assert_allclose(jax.jit(new_fn)(new_params, x), before, atol=1e-5)
    # The kernels did change, so that the encoders' rotation is what makes up for it.
    assert abs(before - jax.jit(fn)(new_params, x)).max() > 0.01
    firing = [site for site in snnjax.sites(fn, params, x) if site.fires]
    new_firing = [site for site in snnjax.sites(new_fn, new_params, x) if site.fires]
    assert [site.name for site in firing] == [site.name for site in new_firing]
    assert [site.shape for site in firing] == [site.shape for site in new_firing]


class RefusedCase(NamedTuple):
    """A network of `PARAMS`, and a part of the reason at its last site that fires."""

    fn: Callable
    x: np.ndarray
    reason: str


NOT_ROTATED = {
    "a ReLU": RefusedCase(
        lambda p, x: jax.nn.relu(x @ p["up"]) @ p["down"], X, "a ReLU"
    ),
    "an odd number of channels": RefusedCase(
        lambda p, x: jnp.tanh(x @ p["odd"]) @ p["after odd"],
        X,
        "6 channels",
    ),
    "a kernel that is scaled": RefusedCase(
        lambda p, x: gated(p, x) @ (p["scale"][:, None] * p["down"]),
        X,
        "dot_general, and not to a kernel alone",
    ),
    "a tied kernel": RefusedCase(
        lambda p, x: jnp.tanh(x @ p["square"]) @ p["square"],
        X,
        "kernel square has another input",
    ),
    "a kernel on both sides": RefusedCase(
        lambda p, x: (y := gated(p, x)[:, :8]) @ p["square"] + y @ p["square"].T,
        X,
        "kernel square is summed along two of its axes",
    ),
    "a kernel of whole numbers": RefusedCase(
        lambda p, x: gated(p, x) @ p["whole numbers"].astype(jnp.float32),
        X,
        "kernel whole numbers holds whole numbers",
    ),
    "a depthwise convolution": RefusedCase(
        lambda p, x: convolution(jnp.tanh(x @ p["square"]), p["depthwise"], groups=8),
        IMAGES,
        "conv_general_dilated, and not to a kernel alone",
    ),
    "an output": RefusedCase(
        lambda p, x: snnjax.encode(gated(p, x)),
        X,
        "an output of the network",
    ),
    "a product of activations": RefusedCase(
        lambda p, x: (x @ p["square"]) @ snnjax.encode(jnp.tanh(x)).mT,
        SEQUENCES,
        "product, and not to a kernel alone",
    ),
}


@pytest.mark.parametrize("name", NOT_ROTATED)
def test_an_encoder_that_cannot_be_rotated_says_why(name):
    fn, x, reason = NOT_ROTATED[name]
    network = capture(fn, PARAMS, jax.eval_shape(lambda: x))
    *_, last = site_rotations(network).values()
    assert reason in last
    rotation = snnjax.rotation(fn, PARAMS, x, steps=4, code=RADIX)
    assert rotation(fn, PARAMS) == (fn, PARAMS)
    assert reason in str(rotation)


# ------------------------------------------------------------------- the price decides


CUBES_X = np.float32(RNG.normal(size=(256, 8)))
CUBES_PARAMS = {"up": normal(8, 64), "down": normal(64, 4)}


def cubes(p, x):
    """Cubes of normal numbers: few are large."""
    return (x @ p["up"]) ** 3 @ p["down"]


@functools.cache
def rotation_of_cubes(**options):
    return snnjax.rotation(cubes, CUBES_PARAMS, CUBES_X, steps=6, code=RADIX, **options)


@functools.cache
def error_and_spikes(price, is_rotated):
    """Squared error of the outputs over their squares, and spikes per neuron."""
    fn, params = cubes, CUBES_PARAMS
    before = fn(params, CUBES_X)
    if is_rotated:
        fn, params = rotation_of_cubes(price=price)(fn, params)
    snn = snnjax.convert(
        fn,
        params,
        CUBES_X,
        steps=6,
        code=RADIX,
        recipe=snnjax.Recipe(
            [calibrators.priced_threshold(price), calibrators.half_charge()]
        ),
        wait=5,
    )
    error = ((compiled(fn)(snn, CUBES_X).mean(0) - before) ** 2).sum()
    spikes = snnjax.measure(fn, snn, CUBES_X, params=params).spikes
    return float(error / (before**2).sum()), float(spikes)


def test_a_rotation_lowers_the_error_of_heavy_tails_for_more_spikes():
    error, spikes = error_and_spikes(0.0, is_rotated=False)
    rotated_error, rotated_spikes = error_and_spikes(0.0, is_rotated=True)
    assert rotated_error < 0.8 * error
    assert rotated_spikes > spikes


def test_a_high_price_refuses_the_rotation():
    for price, count in ((0.0, 1), (1.0, 0)):
        rotation = rotation_of_cubes(price=price)
        assert len(rotation.sites) == count
        assert f"{count} of 1 sites are rotated" in str(rotation)


@pytest.mark.parametrize(
    "name", ["a gate", "a convolution", *thorough("a transformer")]
)
def test_the_cost_of_a_rotated_site_is_that_of_the_rotated_network(name):
    fn, params, x, _ = ROTATED[name]
    all_rotations = rotations_of(fn, params, x)
    options = {"steps": 4, "code": RADIX, "price": 1e-3}
    rotation = snnjax.rotation(fn, params, x, **options)
    rotation_of_rotated = snnjax.rotation(
        with_rotations(fn, all_rotations),
        rotated_params(params, all_rotations),
        x,
        **options,
    )
    assert rotation.rotated_costs.keys() == all_rotations.keys()
    for site_name, cost in rotation.rotated_costs.items():
        # The rotation does change the cost, so that the network's own would not do.
        assert abs(cost / rotation.costs[site_name] - 1) > 0.01
        # Rotated weights are rounded, which moves single spikes.
        assert cost == pytest.approx(rotation_of_rotated.costs[site_name], rel=0.003)


def test_a_rotated_network_is_saved_and_its_spikes_stay(tmp_path):
    fn, params = rotation_of_cubes()(cubes, CUBES_PARAMS)
    snn = snnjax.convert(fn, params, CUBES_X, steps=6, code=RADIX)
    snnjax.save(tmp_path / "snn.safetensors", snn)
    restored = snnjax.load(tmp_path / "snn.safetensors").snn
    np.testing.assert_array_equal(
        compiled(fn)(restored, CUBES_X), compiled(fn)(snn, CUBES_X)
    )


def cubed(p, x):
    hidden = jax.nn.relu(x @ p["up"])
    return (hidden @ p["middle"]) ** 3 @ p["down"]


@pytest.mark.parametrize(
    "base, steps, wait", [(2, 4, 0), *thorough((2, 4, 1), (3, 2, 1))]
)
def test_a_rotated_network_sends_the_spikes_of_the_oracle(base, steps, wait):
    params = {"up": normal(8, 12), "middle": normal(12, 16), "down": normal(16, 4)}
    rotations = rotations_of(cubed, params, X)
    fn = with_rotations(cubed, rotations)
    code = snnjax.codes.radix(base)
    snn = snnjax.convert(
        fn,
        rotated_params(params, rotations),
        X,
        steps=steps,
        wait=wait,
        code=code,
        recipe=snnjax.light(),
    )

    def trains(snn, x):
        return snnjax.measures.spike_trains(fn, snn, x)

    outputs, spikes = outputs_of([snnjax.spiking(fn), trains], snn, X)
    relu_name, encoder_name = snn.neurons
    constant = np.zeros((steps, *X.shape))
    constant[0] = steps * X
    hidden, levels = oracle_spikes(snn, relu_name, constant @ params["up"])
    np.testing.assert_array_equal(spikes[relu_name], levels)
    # What is not affine reads decoded values, and what arrives is their increments.
    decoded = np.cumsum(hidden @ params["middle"], 0) / steps
    rotated_values = decoded**3 @ hadamard(16)
    increments = steps * np.diff(rotated_values, axis=0, prepend=0)
    sent, levels = oracle_spikes(snn, encoder_name, increments)
    assert levels.any()
    np.testing.assert_array_equal(spikes[encoder_name], levels)
    # The oracle's H W is made from W, and not read from the SNN.
    kernel = hadamard(16) @ params["down"]
    np.testing.assert_allclose(outputs, sent @ kernel, 1e-4, 1e-4)


def test_a_closed_form_of_a_rotated_network_is_its_time_loop():
    fn, params = rotation_of_cubes()(cubes, CUBES_PARAMS)
    snn = snnjax.convert(fn, params, CUBES_X, steps=6, code=RADIX, wait=5)
    in_time = compiled(fn)(snn, CUBES_X).mean(0)
    closed = jax.jit(snnjax.spiking(fn, answer=True))(snn, CUBES_X)
    np.testing.assert_allclose(closed, in_time, rtol=1e-5, atol=1e-5)


def attention(p, x):
    """Encoders that it calls itself stand before a product of activations."""
    y = jnp.tanh(x @ p["square"])
    scores = snnjax.encode(y @ p["up"]) @ snnjax.encode(y @ p["gate"]).mT
    return scores @ gated(p, x) @ p["down"]


def scanned(p, x):
    """The names of sites in a scan are no paths of kernels."""

    def layer(x, kernel):
        return x + jnp.tanh(x) @ kernel, None

    x, _ = jax.lax.scan(layer, x, jnp.stack([p["square"]] * 2))
    return gated(p, x) @ p["down"]


@pytest.mark.parametrize("fn", [attention, scanned])
def test_encoders_without_a_rotation_stay_where_they_are(fn):
    x = SEQUENCES
    rotations = rotations_of(fn, PARAMS, x)
    name = "down/encoder"
    new_fn = with_rotations(fn, {name: rotations[name]})
    firing = [site for site in snnjax.sites(fn, PARAMS, x) if site.fires]
    new_firing = [site for site in snnjax.sites(new_fn, PARAMS, x) if site.fires]
    assert len(firing) > 2
    assert [site.name for site in firing] == [site.name for site in new_firing]
    assert [site.shape for site in firing] == [site.shape for site in new_firing]


WRONG_PARAMS = {  # params that the rotation of `cubes` is given, part of the message
    "of another network": ({"up": CUBES_PARAMS["up"]}, "no array at 'down'"),
    "in a further folder": ({"params": CUBES_PARAMS}, "no array at 'down'"),
    "of 60 channels": (
        {"up": normal(8, 60), "down": normal(60, 4)},
        "shape \\(60, 4\\) .* at 'down'; allowed: .* a multiple of 64 .* axis 0",
    ),
    "of one axis": ({"down": normal(3)}, "shape \\(3,\\) .*; allowed: .*of 64"),
    "of whole numbers": (
        {"down": np.int8(np.ones((64, 4)))},
        "dtype int8 at 'down'; allowed: floating point",
    ),
}


@pytest.mark.parametrize("name", WRONG_PARAMS)
def test_params_of_another_network_are_refused(name):
    params, message = WRONG_PARAMS[name]
    with pytest.raises(ValueError, match=f"{message}.*snnjax.rotation"):
        rotation_of_cubes()(cubes, params)


def test_other_channels_are_refused():
    fn, params = rotation_of_cubes()(
        lambda p, x: cubes({**p, "up": p["up"][:, :60], "down": p["down"][:60]}, x),
        CUBES_PARAMS,
    )
    with pytest.raises(ValueError, match="60 channels .*'down/encoder'; allowed: .*64"):
        fn(params, CUBES_X)


def test_what_is_no_function_is_refused():
    with pytest.raises(ValueError, match="fn is a ndarray; allowed: a function"):
        rotation_of_cubes()(CUBES_X, CUBES_PARAMS)


def test_nan_in_params_is_refused():
    params = {**CUBES_PARAMS, "down": np.float32(np.full((64, 4), np.nan))}
    with pytest.raises(ValueError, match="params.*down.* holds 256 NaN .* none"):
        snnjax.rotation(cubes, params, CUBES_X, steps=6, code=RADIX)


def test_float64_of_numpy_is_rotated_without_a_warning(recwarn):
    params = {name: np.float64(leaf) for name, leaf in CUBES_PARAMS.items()}
    _, rotated_doubles = rotation_of_cubes()(cubes, params)
    _, rotated_singles = rotation_of_cubes()(cubes, CUBES_PARAMS)
    np.testing.assert_array_equal(rotated_doubles["down"], rotated_singles["down"])
    assert not recwarn.list


def test_two_rotations_are_none():
    rotation = rotation_of_cubes()
    fn, params = rotation(*rotation(cubes, CUBES_PARAMS))
    np.testing.assert_allclose(params["down"], CUBES_PARAMS["down"], atol=1e-6)
    before = cubes(CUBES_PARAMS, CUBES_X)
    np.testing.assert_allclose(fn(params, CUBES_X), before, rtol=1e-4, atol=1e-4)


def test_a_function_without_the_rotated_sites_is_refused():
    fn, params = rotation_of_cubes()(
        lambda p, x: jax.nn.relu(x @ p["up"]), CUBES_PARAMS
    )
    with pytest.raises(ValueError, match="no encoder 'down/encoder'.*snnjax.sites"):
        fn(params, CUBES_X)
