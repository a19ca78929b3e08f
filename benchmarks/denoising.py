"""What does a U-Net that removes noise from images lose when it is converted?

    python -m benchmarks.denoising --data_dir DATA --training runs/denoising \
        --out benchmarks/results/denoising.json

A dense regression: the answer is an image, and each of its numbers counts. The network
(Ronneberger et al., 2015) sees images of CIFAR-10 in 0..1 with Gaussian noise of 25/255
and estimates the noise; it is trained from scratch on 10,000 of them, and its weights
stay in ``--training``. Then it is converted by `snnjax.best` with 128 training images,
with noise and without clean ones.

    PSNR = -10 log10(mean((clean - answer)^2)) dB,

of 500 test images. "From the ANN" is the error that the conversion adds, |SNN - ANN| /
|ANN| of the noise, in percent.
"""

import functools
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import snnjax
from benchmarks import networks, timing
from experiments import data
from experiments.running import CODES

NOISE = 25 / 255
TRAINING, CALIBRATION, TEST, AT_A_TIME = 10_000, 128, 500, 50  # images
EPOCHS, BATCH, LEARNING_RATE = 4, 64, 2e-3


PAIRS = [("radix", 4), ("radix", 6), ("radix", 8)]
PAIRS += [("rate", 8), ("rate", 16), ("rate", 32)]
ROWS = {f"{code} T = {steps}": (code, steps) for code, steps in PAIRS}


class UNet(nn.Module):
    """The noise of images [B, H, W, C]; H and W are multiples of 4."""

    features: int = 16

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        def two(x, level):
            for _ in range(2):
                x = nn.relu(nn.Conv(self.features * 2**level, (3, 3))(x))
            return x

        x, skips = images, []
        for level in range(2):
            skips.append(two(x, level))
            x = nn.max_pool(skips[-1], (2, 2), (2, 2))
        x = two(x, 2)
        for level, skip in reversed([*enumerate(skips)]):
            up = nn.ConvTranspose(skip.shape[-1], (2, 2), (2, 2))(x)
            x = two(jnp.concatenate([skip, up], -1), level)
        return nn.Conv(images.shape[-1], (1, 1))(x)


def noisy(clean: np.ndarray, seed: int) -> np.ndarray:
    draw = np.random.default_rng(seed)
    return clean + NOISE * draw.standard_normal(clean.shape, np.float32)


def psnr(clean: np.ndarray, answer: np.ndarray) -> float:
    """Of images in 0..1, in dB.

    >>> import numpy as np
    >>> round(psnr(np.zeros(100), np.full(100, 0.1)), 3)
    20.0
    """
    return float(-10 * np.log10(np.square(clean - answer).mean()))


def batches(clean: np.ndarray, epoch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Images with noise of their own in each epoch, and the noise."""
    order = np.random.default_rng(epoch).permutation(len(clean))
    for start in range(0, len(order) - BATCH + 1, BATCH):
        images = clean[np.sort(order[start : start + BATCH])]
        x = noisy(images, epoch * len(clean) + start)
        yield x, x - images


def trained(model: nn.Module, clean: np.ndarray, folder: Path) -> Any:
    """The weights after `EPOCHS`; resumes from its folder."""
    steps = EPOCHS * (len(clean) // BATCH)
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, steps))

    def loss(params, x, noise):
        return optax.losses.squared_error(model.apply(params, x), noise).mean()

    params = model.init(jax.random.key(0), clean[:1])
    draw = functools.partial(batches, clean)
    depends_on = {"clean": clean, "options": (BATCH, LEARNING_RATE, NOISE)}
    options = {"epochs": EPOCHS, "folder": folder, "depends_on": depends_on}
    return networks.trained(loss, params, optimizer, draw, **options)


def converted(
    code: str, steps: int, fn, params, x, test, ann: np.ndarray
) -> dict[str, Any]:
    """Errors and costs of a spiking network; ``test`` are clean and noisy images."""
    clean, given = test
    snn = snnjax.convert(fn, params, x, code=CODES[code], steps=steps)
    run = functools.partial(jax.jit(snnjax.spiking(fn, answer=True)), snn)
    noise = timing.in_parts(run, given, AT_A_TIME)
    error = 100 * float(np.linalg.norm(noise - ann) / np.linalg.norm(ann))
    errors = {"psnr": psnr(clean, given - noise), "error": error}
    return errors | networks.costs(fn, params, snn, given[:AT_A_TIME])


COLUMNS = {"psnr": "PSNR dB", "error": "from the ANN %", "wait": "wait"}
COLUMNS |= {"latency": "latency", "spikes": "spikes"}
COLUMNS |= {"operations": "energy, % of ANN", "memory": "with memory"}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    options = timing.parser(__doc__)
    options.add_argument("--data_dir", help="of CIFAR-10")
    options.add_argument("--training", type=Path, required=True, metavar="DIR")
    timing.only_option(options)
    choice = options.parse_args(arguments)
    try:
        name = "digits" if choice.quick else "cifar10"
        dataset = data.load(name, choice.data_dir)
        whole = (dataset.train_images[:TRAINING], dataset.test_images[:TEST])
        clean, test = (np.float32(images) / images.max() for images in whole)
        model = UNet()
        params = trained(model, clean, choice.training)
    except (data.MissingDataError, ValueError) as reason:
        options.error(str(reason))
    # Seeds of training are multiples of 16.
    given, x = noisy(test, 2), noisy(clean[:CALIBRATION], 1)
    ann = functools.partial(jax.jit(model.apply), params)
    ann = timing.in_parts(ann, given, AT_A_TIME)
    kernels = b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(params))
    facts = {"images": name, "weights": hashlib.sha256(kernels).hexdigest()[:16]}
    packages = "jax", "flax", "optax", "numpy"
    result = timing.new_result(__doc__, packages, **facts)
    sides = timing.continued(result, choice.out, *facts)["sides"]
    sides["noisy image"] = {"psnr": psnr(test, given)}
    sides["ANN"] = {"psnr": psnr(test, given - ann), "error": 0.0}
    for side, row in ROWS.items():
        timing.report(result, timing.table_of("network", COLUMNS, sides), choice.out)
        if side not in sides and timing.is_selected(side, choice.only):
            pair = test, given
            sides[side] = converted(*row, model.apply, params, x, pair, ann)
    text = timing.table_of("network", COLUMNS, sides)
    return timing.report(result, text, choice.out)


if __name__ == "__main__":
    main()
