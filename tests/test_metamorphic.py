"""One function written in another way is converted to an SNN of the same error.

    convert(fn, params, x)  and  convert(g o fn o f, h(params), f^-1(x))

A relation changes what a network looks like and leaves what it computes: channels in
another order, a layer scaled and the next one scaled back, a channel that nobody needs.
An error that follows from the function alone is the same in both.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import compiled

import snnjax

thorough = pytest.mark.thorough
CODES = {
    "radix": (snnjax.codes.radix(), 4),
    "radix3": (snnjax.codes.radix(base=3), 4),
    "rate": (snnjax.codes.rate(), 16),
}
SCALE = np.float32(4)


class Case(NamedTuple):
    """A function, its parameters, and images that calibrate and that judge."""

    fn: Any
    params: Any
    images: np.ndarray
    fresh_images: np.ndarray


def cnn(params, x):
    """Two convolutions of 3x3, the mean over positions, and a dense layer."""
    for kernel, bias in params["convolutions"]:
        x = jax.nn.relu(convolved(x, kernel) + bias)
    return x.mean((1, 2)) @ params["dense"]


def convolved(x, kernel):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def original():
    draw = np.random.default_rng(0)

    def normal(*shape):
        return draw.normal(size=shape).astype(np.float32)

    convolutions = [
        (normal(3, 3, 3, 8) / 4, normal(8) / 4),
        (normal(3, 3, 8, 8) / 5, normal(8) / 4),
    ]
    params = {"convolutions": convolutions, "dense": normal(8, 5)}
    images = draw.random((192, 6, 6, 3), np.float32)
    return Case(cnn, params, images[:64], images[64:])


def with_channels(case, numbers, factor=1.0):
    """The first layer's channels of these numbers; ``factor`` is undone by the next."""
    (kernel, bias), (next_kernel, next_bias) = case.params["convolutions"]
    factor = np.broadcast_to(np.float32(factor), (len(numbers),))
    # A channel that stands k times reaches the next layer with 1/k of its weights.
    times = np.bincount(numbers)[numbers]
    next_kernel = next_kernel[:, :, numbers] / (factor * times)[:, None]
    convolutions = [
        (kernel[..., numbers] * factor, bias[numbers] * factor),
        (next_kernel, next_bias),
    ]
    return case._replace(params=case.params | {"convolutions": convolutions})


def permuted_channels(case):
    return with_channels(case, [3, 1, 4, 0, 5, 7, 2, 6])


def larger_layer(case):
    return with_channels(case, range(8), SCALE)


def smaller_layer(case):
    return with_channels(case, range(8), 1 / SCALE)


def smaller_channel(case):
    return with_channels(case, range(8), [1 / 64, 1, 1, 1, 1, 1, 1, 1])


def dead_channel(case):
    """A ninth channel that is always 0, and that large weights read."""
    (kernel, bias), (next_kernel, next_bias) = case.params["convolutions"]
    dead = (
        np.concatenate([kernel, kernel[..., :1]], 3),
        np.append(bias, np.float32(-100)),
    )
    large_weights = np.full_like(next_kernel[:, :, :1], 100)
    reader = (np.concatenate([next_kernel, large_weights], 2), next_bias)
    return case._replace(params=case.params | {"convolutions": [dead, reader]})


def permuted_images(case):
    return case._replace(images=case.images[::-1])


def channels_first(case):
    """Images and activations of NCHW."""

    def fn(params, x):
        for kernel, bias in params["convolutions"]:
            x = jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=("NCHW", "HWIO", "NCHW")
            )
            x = jax.nn.relu(x + bias[:, None, None])
        return x.mean((2, 3)) @ params["dense"]

    return case._replace(
        fn=fn,
        images=case.images.transpose(0, 3, 1, 2),
        fresh_images=case.fresh_images.transpose(0, 3, 1, 2),
    )


def two_networks(case):
    """The same network twice in one function, with parameters of its own."""

    def fn(params, x):
        return jnp.concatenate([case.fn(params[0], x), case.fn(params[1], x)], -1)

    params = (case.params, jax.tree.map(np.copy, case.params))
    return case._replace(fn=fn, params=params)


RELATIONS = [
    pytest.param(dead_channel, "radix3", marks=thorough),
    (smaller_channel, "radix3"),
    (larger_layer, "radix"),
    (permuted_channels, "radix"),
]
for relation in (smaller_layer, permuted_images, channels_first, two_networks):
    RELATIONS.append(pytest.param(relation, "radix", marks=thorough))
for relation in (dead_channel, smaller_channel, larger_layer, permuted_channels):
    RELATIONS.append(pytest.param(relation, "rate", marks=thorough))


def error_of(case, code, steps):
    """The squared error on fresh images over the size of the outputs, and the wait."""
    snn = snnjax.convert(case.fn, case.params, case.images, steps=steps, code=code)
    outputs = compiled(case.fn, answer=True)(snn, case.fresh_images)
    wanted = case.fn(case.params, case.fresh_images)
    return float(((outputs - wanted) ** 2).mean() / (wanted**2).mean()), snn.wait


@pytest.mark.parametrize(("relation", "code"), RELATIONS)
def test_the_way_a_function_is_written_changes_no_error(relation, code):
    code, steps = CODES[code]
    error, wait = error_of(original(), code, steps)
    error_of_relation, wait_of_relation = error_of(relation(original()), code, steps)
    assert wait_of_relation == wait
    np.testing.assert_allclose(error_of_relation, error, rtol=0.15)
