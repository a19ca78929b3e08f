"""Does it pay to send only what changed, if the input changes slowly?

    pip install -e '.[experiments]'
    python -m benchmarks.streams --network resnet20 --data_dir DATA \
        --out benchmarks/results/streams_resnet20.json

A *delta code* has the weights w_t = 1, and a frame takes one step. A neuron that has
sent M follows its activation a: it is silent while |a - M| < z V, else it sends the
level k = round((a - M) / V). The outputs answer each frame in its own step. This is the
rule of sigma-delta networks, as on Loihi 2 (Brehove et al., arXiv 2505.06417). Here z =
4, and k has no bound. Operations are least, at a given squared error of the outputs,

    min  sum_c F_c N_c / (z V_c)    at  sum_c G_c (z V_c)^2

if (z V_c)^3 = s F_c N_c / G_c, with the fan-out F_c of a channel c, the change N_c of
its activations per frame, and their squared effect G_c on the outputs. The scale s is
the largest whose error is at most `TOLERANCE` on panned training images.

Images of CIFAR-10 move for 32 frames; DATA is as `experiments.data.load` reads it. The
table has the last 24: accuracy in percent; the error of the outputs, root mean square
in percent of the ANN's outputs for the same frame; events per neuron and frame; and
operations in percent of the ANN's. What reads the image or multiplies two values, as
attention does, is computed densely at each frame.

*Held* is the ANN at the same number of operations: it computes a frame only if that
differs enough from the last one that it has computed, and holds its answer.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import experiments.sources
import snnjax
from benchmarks import timing
from experiments.data import Dataset, load, normalize, normalized_as
from experiments.models import Source, load_source, source_function
from experiments.report import read_results
from experiments.results import PUBLISHED
from snnjax.network import identity, with_activation

FRAMES, FIRST = 32, 8  # of a scene, and the first one that counts
ZONE = 4  # z
TOLERANCE = 20  # error of the outputs on training images, in percent
AT_A_TIME = 50  # images
SOURCES = Path(experiments.sources.__file__).parent
REACH = 4  # pixels that a pan goes to either side
SIZE = 10  # of the object that moves, in pixels


# -------------------------------------------------------------------------- the scenes


def there_and_back(way: np.ndarray, reach: float) -> np.ndarray:
    """Position after a way along [0, reach], turned at both ends."""
    return reach - np.abs(way % (2 * reach) - reach)


def resampled(images: np.ndarray, shift: float = 0, zoom: float = 1) -> np.ndarray:
    """Images [B, H, W, C] by linear interpolation, moved to the left and enlarged."""

    def weights(size: int, shift: float) -> np.ndarray:
        middle = (size - 1) / 2
        at = (np.arange(size) - middle) / zoom + middle + shift
        distance = np.clip(at, 0, size - 1)[:, None] - np.arange(size)
        return np.maximum(0, 1 - np.abs(distance)).astype(np.float32)

    _, height, width, _ = images.shape
    rows, columns = weights(height, 0), weights(width, shift)
    return np.einsum("yh,bhwc,xw->byxc", rows, images, columns, optimize=True)


def pan(images: np.ndarray, speed: float) -> np.ndarray:
    """Frames [T, B, H, W, C] that move by `speed` pixels each."""
    way = there_and_back(REACH + speed * np.arange(FRAMES), 2 * REACH) - REACH
    return np.stack([resampled(images, shift) for shift in way])


def zoom(images: np.ndarray, rate: float) -> np.ndarray:
    return np.stack([resampled(images, zoom=1 + rate * t) for t in range(FRAMES)])


def noise(images: np.ndarray, deviation: float) -> np.ndarray:
    normal = np.random.default_rng(0).normal(0, deviation, (FRAMES, *images.shape))
    return np.clip(images + normal, 0, 255).astype(np.float32)


def moving_object(images: np.ndarray, speed: int) -> np.ndarray:
    """Still images; the middle of the image before each moves over it."""
    frames = np.repeat(images[None], FRAMES, 0)
    top = (images.shape[1] - SIZE) // 2
    patch = np.roll(images, 1, 0)[:, top : top + SIZE, top : top + SIZE]
    way = there_and_back(speed * np.arange(FRAMES), images.shape[2] - SIZE)
    for frame, left in zip(frames, way, strict=True):
        frame[:, top : top + SIZE, left : left + SIZE] = patch
    return frames


SCENES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "pan, 0.1 pixels per frame": functools.partial(pan, speed=0.1),
    "pan, 0.25 pixels": functools.partial(pan, speed=0.25),
    "pan, 1 pixel": functools.partial(pan, speed=1),
    "zoom, 0.7 % per frame": functools.partial(zoom, rate=0.007),
    "noise, deviation 4 of 255": functools.partial(noise, deviation=4),
    "object, 1 pixel per frame": functools.partial(moving_object, speed=1),
}
SLOW_PANS = [*SCENES][:2]


# ------------------------------------------------------------------------- the network


class Network(NamedTuple):
    """A network, and the fan-out of each neuron by the name of its site."""

    fn: Callable
    params: Any
    fan_outs: dict[str, jax.Array]


def network_of(source: Source) -> Network:
    """A network in which each layer but the first reads one site, in the same order."""
    fn, params = source_function(source), source.variables
    x = jnp.zeros((1, *source.card["input_shape"]))
    layers = []

    def record(call: Callable, arguments: Any, options: Any, context: Any) -> Any:
        if isinstance(context.module, nn.Conv | nn.Dense):
            layers.append((context.module.clone(parent=None), arguments[0].shape[1:]))
        return call(*arguments, **options)

    with nn.intercept_methods(record):
        jax.eval_shape(fn, params, x)
    sites = [site for site in snnjax.sites(fn, params, x) if site.fires]
    pairs = zip(sites, layers[1:], strict=True)
    fan_outs = {
        # A mean between site and layer is absorbed by the weights.
        site.name: jnp.broadcast_to(fan_out(*layer), site.shape)
        for site, layer in pairs
    }
    return Network(fn, params, fan_outs)


def fan_out(layer: nn.Module, shape: tuple[int, ...]) -> jax.Array:
    """d(sum of the outputs) / d(input), with all weights 1."""
    x = jnp.zeros((1, *shape))
    weights = jax.eval_shape(layer.init, jax.random.key(0), x)
    ones = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), weights)
    return jax.grad(lambda x: layer.apply(ones, x).sum())(x)[0]


def silent(fan_outs: dict[str, jax.Array], batch: int) -> dict[str, jax.Array]:
    """Zeros for each neuron and image."""
    return jax.tree.map(lambda each: jnp.zeros((batch, *each.shape)), fan_outs)


@functools.partial(jax.jit, static_argnums=0)
def follow(fn: Callable, params: Any, fan_outs: Any, thresholds: Any, frames: Any):
    """Outputs [T, B, classes]; operations and events per frame and image [T].

    Args:
        fn, params, fan_outs: of a `Network`.
        thresholds: V of each site; None: the ANN, which skips values that are 0.
        frames: [T, B, ...].
    """

    def step(sent: dict[str, jax.Array], x: jax.Array):
        after, operations, events = {}, [], []

        def rule(site, current, *operands):
            value = identity(site, current, *operands)
            if not site.fires:
                return value
            before = 0
            if thresholds is not None:
                before, threshold = sent[site.name], thresholds[site.name]
                levels = (value - before) / threshold
                levels = jnp.where(jnp.abs(levels) < ZONE, 0, jnp.round(levels))
                value = before + levels * threshold
            operations.append(((value != before) * fan_outs[site.name]).sum())
            events.append((value != before).sum())
            after[site.name] = value
            return value

        outputs = with_activation(fn, rule)(params, x)
        return after, (outputs, sum(operations) / len(x), sum(events) / len(x))

    return jax.lax.scan(step, silent(fan_outs, frames.shape[1]), frames)[1]


def run(network: Network, thresholds: Any, frames: np.ndarray) -> list[np.ndarray]:
    """`follow` for some images at a time; counts are means from `FIRST` on."""
    starts = range(0, frames.shape[1], AT_A_TIME)
    groups = [frames[:, start : start + AT_A_TIME] for start in starts]
    parts = [follow(*network, thresholds, group) for group in groups]
    outputs, *counts = zip(*parts, strict=True)
    means = [np.mean(each, 0)[FIRST:].mean() for each in counts]
    return [np.concatenate(outputs, 1), *means]


# ---------------------------------------------------------------------- the thresholds


def zones(network: Network, frames: np.ndarray) -> dict[str, jax.Array]:
    """z V of each channel for the scale 1, of two frames that follow each other."""
    channels = {}

    def activations(shifts: dict[str, jax.Array], x: jax.Array):
        values = {}

        def rule(site, current, *operands):
            value = identity(site, current, *operands)
            if site.fires:
                channels[site.name] = site.channel
                values[site.name] = value = value + shifts[site.name]
            return value

        outputs = with_activation(network.fn, rule)(network.params, x)
        return outputs - outputs.mean(-1, keepdims=True), values

    @jax.jit
    def changes_and_effects(frames: jax.Array):
        none = silent(network.fan_outs, frames.shape[1])
        _, before = activations(none, frames[0])
        outputs, pull, after = jax.vjp(
            lambda shifts: activations(shifts, frames[1]), none, has_aux=True
        )
        (slopes,) = pull(jax.random.normal(jax.random.key(0), outputs.shape))
        return jax.tree.map(
            lambda a, b, g: (jnp.abs(b - a), g**2), before, after, slopes
        )

    def zone(name: str, pair: tuple[jax.Array, jax.Array]) -> jax.Array:
        axes = [*range(pair[0].ndim)]
        axes.pop(channels[name])
        sums = (each.sum(axes, keepdims=True)[0] for each in pair)
        # No channel is without change or effect, however few its samples are.
        change, effect = (jnp.maximum(each, each.mean() / 1000) for each in sums)
        return jnp.cbrt(network.fan_outs[name].mean() * change / effect)

    pairs = changes_and_effects(frames)
    return {name: zone(name, pair) for name, pair in pairs.items()}


def error(outputs: np.ndarray, exact: np.ndarray) -> float:
    """In percent, from `FIRST` on; the mean over the classes does not count."""
    exact, outputs = (
        each[FIRST:] - each[FIRST:].mean(-1, keepdims=True) for each in (exact, outputs)
    )
    square = np.square(outputs - exact).mean() / np.square(exact).mean()
    return 100 * float(np.sqrt(square))


def calibrated(network: Network, frames: np.ndarray) -> dict[str, jax.Array]:
    """The largest thresholds with an error of at most `TOLERANCE` on these frames."""
    exact, *_ = run(network, None, frames)
    of_scale_1 = zones(network, frames[:2])

    def scaled(exponent: float) -> dict[str, jax.Array]:
        return {name: 2**exponent / ZONE * zone for name, zone in of_scale_1.items()}

    low, high = -8.0, 8.0
    for _ in range(8):
        middle = (low + high) / 2
        outputs, *_ = run(network, scaled(middle), frames)
        is_exact = error(outputs, exact) <= TOLERANCE
        low, high = (middle, high) if is_exact else (low, middle)
    return scaled(low)


# --------------------------------------------------------------------- the comparison


def held(frames: np.ndarray, outputs: np.ndarray, share: float) -> np.ndarray:
    """The outputs [T, B, classes] if only this share of the frames is computed."""
    flat = frames.reshape(*frames.shape[:2], -1)

    def computed(least: float) -> np.ndarray:
        """For each frame and image, the frame that it has the answer of, [T, B]."""
        last, at = flat[0].copy(), [np.zeros(flat.shape[1], int)]
        for t, frame in enumerate(flat[1:], 1):
            is_new = np.square(frame - last).mean(-1) > least
            last[is_new] = frame[is_new]
            at.append(np.where(is_new, t, at[-1]))
        return np.stack(at)

    low, high = 0.0, float(np.ptp(flat)) ** 2
    for _ in range(20):
        middle = (low + high) / 2
        is_new = computed(middle) == np.arange(len(flat))[:, None]
        low, high = (middle, high) if is_new[FIRST:].mean() > share else (low, middle)
    return np.take_along_axis(outputs, computed(high)[..., None], 0)


def compared(network: Network, data: Dataset, macs: float, dense: float) -> dict:
    """Scene -> its row.

    Args:
        data: its test images are moved.
        macs: of the ANN for a frame.
        dense: the part of them that is computed densely at each frame.
    """
    neurons = sum(each.size for each in network.fan_outs.values())

    def moved(scene: str, images: np.ndarray) -> np.ndarray:
        frames = SCENES[scene](images.astype(np.float32))
        flat = normalize(data, frames.reshape(-1, *frames.shape[2:]))
        return np.asarray(flat).reshape(frames.shape)

    def accuracy(outputs: np.ndarray) -> float:
        return 100 * float((outputs.argmax(-1) == data.test_labels)[FIRST:].mean())

    training = moved(SLOW_PANS[-1], data.train_images[:AT_A_TIME])
    thresholds = calibrated(network, training)
    rows, shares = {}, []
    for scene in SCENES:
        frames = moved(scene, data.test_images)
        exact, not_zero, _ = run(network, None, frames)
        outputs, operations, events = run(network, thresholds, frames)
        share = float(operations + dense) / macs
        gated = held(frames, exact, share)
        rows[scene] = {
            "ann": accuracy(exact),
            "delta": accuracy(outputs),
            "delta error": error(outputs, exact),
            "events": float(events) / neurons,
            "operations": 100 * share,
            "held": accuracy(gated),
            "held error": error(gated, exact),
        }
        shares.append(100 * float(not_zero + dense) / macs)
    return rows | {"ANN, zeros skipped": {"operations": float(np.mean(shares))}}


# --------------------------------------------------------------------------- the table

COLUMNS = {
    "ann": "ANN %",
    "delta": "delta %",
    "delta error": "its error %",
    "events": "events",
    "operations": "operations %",
    "held": "held %",
    "held error": "its error %",
}


def targets(rows: dict[str, dict]) -> list[dict]:
    goals = []
    for scene in SLOW_PANS:
        row = rows[scene]
        lost = row["ann"] - row["delta"]
        goals += [
            timing.target(f"points lost, {scene}", lost, at_most=1),
            timing.target(f"operations %, {scene}", row["operations"], at_most=15),
        ]
    return goals


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    options = timing.parser(__doc__)
    options.add_argument("--network", required=True, choices=("resnet20", "vit"))
    options.add_argument("--data_dir", help="of CIFAR-10")
    options.add_argument("--images", type=timing.count, default=200)
    choice = options.parse_args(arguments)
    count = AT_A_TIME if choice.quick else choice.images
    sizes = {"images": count, "tolerance %": TOLERANCE}
    result = timing.new_result(__doc__, ("jax", "flax", "numpy"), sizes=sizes)
    source = load_source(SOURCES / f"{choice.network}.safetensors")
    data = normalized_as(load("cifar10", choice.data_dir), source.card)
    data = data._replace(
        test_images=data.test_images[:count], test_labels=data.test_labels[:count]
    )
    published = read_results(PUBLISHED / f"convert_cifar10_{choice.network}_radix.json")
    radix = published.results[-1].measures  # T = 4
    macs, of_one_step = float(radix.macs), radix.operator_macs / radix.steps
    dense = float(radix.input_macs + of_one_step)
    rows = compared(network_of(source), data, macs, dense)
    spikes = radix.synaptic_operations + radix.input_macs
    share = 100 * float(spikes + radix.operator_macs) / macs
    rows["radix code, T = 4"] = {"operations": share}
    result |= {"sides": rows, "targets": targets(rows)}
    timing.report(result, timing.table_of("frames", COLUMNS, rows), choice.out)
    return result


if __name__ == "__main__":
    main()
