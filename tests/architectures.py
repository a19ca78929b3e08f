"""Well-known architectures, as small as they can be with random weights.

Each is ``make() -> (fn, params, x)`` with what makes it that architecture: its norm,
its activation, its connections. In flax.linen, nnx, equinox or plain JAX. ResNets and
VGGs are among the source networks of test_models.py.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from networks import variables

BATCH = 4
IMAGES = np.float32(np.random.default_rng(0).normal(size=(BATCH, 8, 8, 3)))
SIGNALS = np.float32(np.random.default_rng(1).normal(size=(BATCH, 12, 4)))
TOKENS = np.int32(np.random.default_rng(2).integers(0, 20, (BATCH, 6)))

conv = partial(nn.Conv, use_bias=False)
norm = partial(nn.BatchNorm, use_running_average=True)
gelu = partial(nn.gelu, approximate=False)


def linen_network(x):
    """A decorator: the body of a linen module's compact method as an architecture.

    It is stored in `ARCHITECTURES` by its name. ``x`` is the input that it takes.
    """

    def decorate(body):
        class Net(nn.Module):
            @nn.compact
            def __call__(self, x):
                return body(x)

        def make():
            return Net().apply, variables(Net(), x), x

        ARCHITECTURES[body.__name__.replace("_", " ")] = make
        return make

    return decorate


ARCHITECTURES = {}  # name -> make


def pooled(x, size=2):
    """The means of windows of size x size pixels, [B, H, W, C]."""
    return nn.avg_pool(x, (size, size), (size, size))


# ------------------------------------------------------------------ convolutions


@linen_network(IMAGES)
def DenseNet(x):
    x = conv(8, (3, 3))(x)
    for _ in range(2):
        y = conv(4, (3, 3))(nn.relu(norm()(x)))
        x = jnp.concatenate([x, y], -1)
    x = pooled(conv(8, (1, 1))(nn.relu(norm()(x))))
    return nn.Dense(3)(nn.relu(norm()(x)).mean((1, 2)))


@linen_network(IMAGES)
def Inception(x):
    branches = [
        nn.relu(nn.Conv(4, (1, 1))(x)),
        nn.relu(nn.Conv(4, (3, 3))(nn.relu(nn.Conv(4, (1, 1))(x)))),
        nn.relu(nn.Conv(4, (5, 5))(nn.relu(nn.Conv(4, (1, 1))(x)))),
        nn.relu(nn.Conv(4, (1, 1))(nn.max_pool(x, (3, 3), padding="SAME"))),
    ]
    return nn.Dense(3)(jnp.concatenate(branches, -1).mean((1, 2)))


@linen_network(IMAGES)
def MobileNet_v2(x):
    x = nn.relu6(norm()(conv(8, (3, 3))(x)))
    y = nn.relu6(norm()(conv(16, (1, 1))(x)))
    y = nn.relu6(norm()(conv(16, (3, 3), feature_group_count=16)(y)))
    x = x + norm()(conv(8, (1, 1))(y))
    return nn.Dense(3)(x.mean((1, 2)))


def excited(x, activation, gate):
    """Squeeze-and-excite: a scale per channel from the mean over all pixels."""
    scale = nn.Dense(x.shape[-1])(activation(nn.Dense(4)(x.mean((1, 2)))))
    return x * gate(scale)[:, None, None]


@linen_network(IMAGES)
def MobileNet_v3(x):
    x = nn.hard_swish(norm()(conv(8, (3, 3))(x)))
    y = nn.hard_swish(norm()(conv(16, (1, 1))(x)))
    y = nn.hard_swish(norm()(conv(16, (5, 5), feature_group_count=16)(y)))
    x = x + norm()(conv(8, (1, 1))(excited(y, nn.relu, nn.hard_sigmoid)))
    return nn.Dense(3)(x.mean((1, 2)))


@linen_network(IMAGES)
def EfficientNet(x):
    x = nn.silu(norm()(conv(8, (3, 3))(x)))
    y = nn.silu(norm()(conv(16, (1, 1))(x)))
    y = nn.silu(norm()(conv(16, (3, 3), feature_group_count=16)(y)))
    x = x + norm()(conv(8, (1, 1))(excited(y, nn.silu, nn.sigmoid)))
    return nn.Dense(3)(nn.silu(norm()(conv(16, (1, 1))(x))).mean((1, 2)))


@linen_network(IMAGES)
def RegNetY(x):
    x = nn.relu(norm()(conv(8, (3, 3))(x)))
    y = nn.relu(norm()(conv(8, (1, 1))(x)))
    y = nn.relu(norm()(conv(8, (3, 3), feature_group_count=2)(y)))
    y = norm()(conv(8, (1, 1))(excited(y, nn.relu, nn.sigmoid)))
    return nn.Dense(3)(nn.relu(x + y).mean((1, 2)))


@linen_network(IMAGES)
def ConvNeXt(x):
    x = nn.LayerNorm()(nn.Conv(8, (2, 2), 2)(x))
    y = nn.LayerNorm()(nn.Conv(8, (7, 7), feature_group_count=8)(x))
    y = nn.Dense(8)(gelu(nn.Dense(16)(y)))
    return nn.Dense(3)(nn.LayerNorm()((x + 0.5 * y).mean((1, 2))))


@linen_network(IMAGES)
def U_Net(x):
    def layer(x, channels):
        return nn.silu(nn.GroupNorm(2)(nn.Conv(channels, (3, 3))(x)))

    fine = layer(x, 4)
    coarse = layer(pooled(fine), 8)
    upper = jax.image.resize(coarse, (*fine.shape[:3], 8), "nearest")
    return nn.Conv(2, (1, 1))(layer(jnp.concatenate([fine, upper], -1), 4))


@linen_network(SIGNALS)
def WaveNet(x):
    x, outputs = nn.Dense(8)(x), []
    for dilation in (1, 2):
        causal = partial(
            nn.Conv, 8, (2,), kernel_dilation=dilation, padding=((dilation, 0),)
        )
        gated = nn.tanh(causal()(x)) * nn.sigmoid(causal()(x))
        outputs.append(nn.Dense(8)(gated))
        x = x + outputs[-1]
    return nn.Dense(3)(nn.relu(sum(outputs)).mean(1))


@linen_network(SIGNALS)
def PointNet(x):
    for channels in (8, 16):
        x = nn.relu(norm()(nn.Dense(channels)(x)))
    return nn.Dense(3)(nn.relu(nn.Dense(8)(x.max(1))))


# ------------------------------------------------------- mixers and transformers


def patches(x, size=4, features=8):
    return nn.Conv(features, (size, size), size)(x).reshape(x.shape[0], -1, features)


def attended(x, heads=2, *, mask=None, bias=0.0):
    """Softmax attention between tokens, [B, N, C], with a bias per pair of them."""
    q, k, v = (nn.DenseGeneral((heads, x.shape[-1] // heads))(x) for _ in range(3))
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(q.shape[-1]) + bias
    if mask is not None:
        scores = jnp.where(mask, scores, -1e9)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", nn.softmax(scores), v)
    return nn.DenseGeneral(x.shape[-1], axis=(-2, -1))(mixed)


def mlp(x, hidden=16, activation=gelu):
    return nn.Dense(x.shape[-1])(activation(nn.Dense(hidden)(x)))


def pre_norm(x, **options):
    x = x + attended(nn.LayerNorm()(x), **options)
    return x + mlp(nn.LayerNorm()(x))


@linen_network(IMAGES)
def MLP_Mixer(x):
    x = patches(x)
    y = mlp(nn.LayerNorm()(x).mT)
    x = x + y.mT
    x = x + mlp(nn.LayerNorm()(x))
    return nn.Dense(3)(nn.LayerNorm()(x).mean(1))


@linen_network(IMAGES)
def gMLP(x):
    x = patches(x)
    y = gelu(nn.Dense(16)(nn.LayerNorm()(x)))
    values, gate = jnp.split(y, 2, -1)
    gate = nn.Dense(gate.shape[1])(nn.LayerNorm()(gate).mT).mT
    return nn.Dense(3)((x + nn.Dense(8)(values * gate)).mean(1))


class WithTokens(nn.Module):
    """Learned tokens before those of the image."""

    count: int

    @nn.compact
    def __call__(self, x):
        shape = (self.count, x.shape[-1])
        tokens = self.param("tokens", nn.initializers.normal(1.0), shape)
        return jnp.concatenate([jnp.tile(tokens, (x.shape[0], 1, 1)), x], 1)


@linen_network(IMAGES)
def ViT(x):
    x = WithTokens(1)(patches(x))
    x = x + np.random.default_rng(3).normal(size=x.shape[1:]).astype("f4")
    return nn.Dense(3)(nn.LayerNorm()(pre_norm(x))[:, 0])


@linen_network(IMAGES)
def Swin(x):
    x = nn.Conv(8, (2, 2), 2)(x)
    rolled = jnp.roll(nn.LayerNorm()(x), (-1, -1), (1, 2))
    windows = rolled.reshape(-1, 2, 2, 2, 2, 8).swapaxes(2, 3)
    windows = attended(windows.reshape(-1, 4, 4, 8).reshape(-1, 4, 8))
    windows = windows.reshape(-1, 2, 2, 2, 2, 8).swapaxes(2, 3)
    x = x + jnp.roll(windows.reshape(-1, 4, 4, 8), (1, 1), (1, 2))
    return nn.Dense(3)((x + mlp(nn.LayerNorm()(x))).mean((1, 2)))


@linen_network(SIGNALS)
def Conformer(x):
    x = nn.Dense(8)(x)
    x = x + 0.5 * mlp(nn.LayerNorm()(x), activation=nn.silu)
    x = x + attended(nn.LayerNorm()(x))
    y = nn.glu(nn.Dense(16)(nn.LayerNorm()(x)))
    y = nn.silu(norm()(nn.Conv(8, (3,), feature_group_count=8)(y)))
    x = x + nn.Dense(8)(y)
    return nn.Dense(3)(nn.LayerNorm()(x).mean(1))


@linen_network({"tokens": TOKENS, "mask": TOKENS > 2})
def BERT(x):
    mask = x["mask"]
    positions = nn.Embed(6, 8, name="positions")(jnp.arange(6))
    y = nn.LayerNorm()(nn.Embed(20, 8)(x["tokens"]) + positions)
    y = nn.LayerNorm()(y + attended(y, mask=mask[:, None, None]))
    y = nn.LayerNorm()(y + mlp(y))
    return nn.Dense(3)(nn.tanh(nn.Dense(8)(y[:, 0])))


@linen_network(TOKENS)
def GPT(tokens):
    x = pre_norm(nn.Embed(20, 8)(tokens), mask=np.tril(np.ones((6, 6), bool)))
    return nn.Dense(20)(nn.LayerNorm()(x))


@linen_network(TOKENS)
def T5(tokens):
    distance = np.clip(np.arange(6)[:, None] - np.arange(6), -3, 3) + 3
    bias = nn.Embed(7, 2)(distance).transpose(2, 0, 1)
    x = nn.Embed(20, 8, name="words")(tokens)
    x = x + attended(nn.RMSNorm()(x), bias=bias)
    x = x + mlp(nn.RMSNorm()(x), activation=nn.relu)
    return nn.Dense(3)(nn.RMSNorm()(x).mean(1))


# ------------------------------------------------------------- in other libraries


def architecture(make):
    """A decorator that stores ``make`` in `ARCHITECTURES` by its name."""
    ARCHITECTURES[make.__name__.strip("_").replace("_", " ")] = make
    return make


@architecture
def Llama():
    """In plain JAX: RMSNorm, rotary positions, grouped queries, SwiGLU."""
    shapes = {"q": (8, 8), "k": (8, 4), "v": (8, 4), "o": (8, 8)}
    shapes |= {"gate": (8, 16), "up": (8, 16), "down": (16, 8), "out": (8, 20)}
    draw = np.random.default_rng(4).normal
    params = {n: np.float32(draw(size=s) / np.sqrt(s[0])) for n, s in shapes.items()}
    params["embedding"] = np.float32(draw(size=(20, 8)))
    params["scale"] = np.linspace(0.5, 1.5, 8, dtype="f4")
    angles = np.arange(6)[:, None] * 1e4 ** -np.linspace(0, 1, 2, endpoint=False)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]

    def rms(x):
        return x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + 1e-6)

    def rotated(x):  # [batch, tokens, heads, 4]
        a, b = jnp.split(x, 2, -1)
        return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], -1)

    def fn(p, tokens):
        x = p["embedding"][tokens]
        y = rms(x) * p["scale"]
        q = rotated((y @ p["q"]).reshape(*y.shape[:2], 2, 4))
        k, v = ((y @ p[name]).reshape(*y.shape[:2], 1, 4) for name in "kv")
        mixed = jax.nn.dot_product_attention(q, rotated(k), v, is_causal=True)
        x = x + mixed.reshape(x.shape) @ p["o"]
        y = rms(x)
        x = x + (jax.nn.silu(y @ p["gate"]) * (y @ p["up"])) @ p["down"]
        return rms(x) @ p["out"]

    return fn, params, TOKENS


@architecture
def scanned_blocks():
    """In linen: the layers' parameters are stacked, and a scan goes over them."""

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return x + mlp(nn.LayerNorm()(x)), None

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            stacked = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
            x, _ = nn.scan(Block, length=2, **stacked)()(patches(x), None)
            return nn.Dense(3)(x.mean(1))

    net = Net()
    return net.apply, variables(net, IMAGES), IMAGES


@architecture
def nnx_transformer():
    """In nnx, with its own attention and a dropout that is switched off."""

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.entry = nnx.Linear(4, 8, rngs=rngs)
            self.norm = nnx.LayerNorm(8, rngs=rngs)
            self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
            self.dropout = nnx.Dropout(0.1, deterministic=True, rngs=rngs)
            self.out = nnx.Linear(8, 3, rngs=rngs)

        def __call__(self, x):
            x = self.entry(x)
            x = x + self.dropout(self.attention(self.norm(x)))
            return self.out(jnp.tanh(x).mean(1))

    net = nnx.jit(lambda: Net(nnx.Rngs(0)))()
    graph, params, state = nnx.split(net, nnx.Param, ...)
    return lambda p, x: nnx.merge(graph, p, state)(x), params, SIGNALS


@architecture
def equinox_transformer():
    """In equinox: one example at a time, under vmap."""
    import equinox as eqx

    class Net(eqx.Module):
        entry: eqx.nn.Linear
        norm: eqx.nn.LayerNorm
        attention: eqx.nn.MultiheadAttention
        out: eqx.nn.Linear

        def __init__(self, key):
            keys = jax.random.split(key, 3)
            self.entry = eqx.nn.Linear(4, 8, key=keys[0])
            self.norm = eqx.nn.LayerNorm(8)
            self.attention = eqx.nn.MultiheadAttention(2, 8, key=keys[1])
            self.out = eqx.nn.Linear(8, 3, key=keys[2])

        def __call__(self, x):
            x = jax.vmap(self.entry)(x)
            y = jax.vmap(self.norm)(x)
            return jax.vmap(self.out)(x + self.attention(y, y, y)).mean(0)

    net = eqx.filter_jit(Net)(jax.random.key(0))
    arrays, static = eqx.partition(net, eqx.is_array)
    return lambda p, x: jax.vmap(eqx.combine(p, static))(x), arrays, SIGNALS
