"""What benchmarks share: parts of small networks, training, costs beside the ANN's."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import snnjax

Params = dict[str, jax.Array]


def convolution(
    x: jax.Array, kernel: jax.Array, stride: int = 1, padding: Any = "SAME"
) -> jax.Array:
    """Of images [B, H, W, I] and a kernel [K, K, I / groups, O]."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1] // kernel.shape[2],
    )


def neurons(params: Params, name: str, current: jax.Array) -> jax.Array:
    """A site of this name, with a bias."""
    with jax.named_scope(name):
        return jax.nn.relu(current + params[f"{name}_bias"])


def trained(
    loss: Callable,
    params: Any,
    optimizer: optax.GradientTransformation,
    batches: Callable,
    **options: Any,
) -> Any:
    """The params that lower ``loss(params, *batch)``.

    Args:
        loss: (params, *batch) -> a number.
        params: at the start.
        optimizer: of optax.
        batches: epoch -> its batches.
        options: of `snnjax.training.train`.
    """

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, batch):
        params, optimizer_state = state
        value, gradient = jax.value_and_grad(loss)(params, *batch)
        updates, optimizer_state = optimizer.update(gradient, optimizer_state, params)
        params = optax.apply_updates(params, updates)
        report = {"loss": value, "finite": jnp.isfinite(value)}
        return (params, optimizer_state), report

    start = (params, optimizer.init(params))
    state, _ = snnjax.training.train(step, start, batches, **options)
    return state[0]


def costs(fn: Callable, params: Any, snn: snnjax.SNN, x: Any) -> dict[str, Any]:
    """Wait, latency and spikes of an SNN, and its energy in percent of the ANN's."""
    measures = snnjax.measure(fn, snn, x, params=params)
    sites = snnjax.sites(fn, params, x[:1])
    wait = snn.wait or 0
    result = {
        "wait": wait,
        "latency": snnjax.latency(sites, steps=snn.steps, wait=wait),
        "spikes": float(measures.spikes),
        "synops": float(measures.synaptic_operations) / 1e6,
    }
    energy = snnjax.energy(measures)
    for name in ("operations", "memory", "quantized"):
        joules = getattr(energy, name)
        result[name] = 100 * float(joules.spiking / joules.ann)
    return result
