"""Parts of the small networks that benchmarks write as functions of JAX."""

import jax

Params = dict[str, jax.Array]


def convolution(
    x: jax.Array, kernel: jax.Array, stride: int = 1, padding: str = "SAME"
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


def neurons(p: Params, name: str, current: jax.Array) -> jax.Array:
    """A site of this name, with a bias."""
    with jax.named_scope(name):
        return jax.nn.relu(current + p[f"{name}_bias"])
