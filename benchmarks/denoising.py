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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

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
TRAINING = 10_000  # images
CALIBRATION = 128
TEST = 500
TEST_BATCH = 50
EPOCHS = 4
BATCH = 64
LEARNING_RATE = 2e-3


class Row(NamedTuple):
    """A conversion."""

    code: str
    steps: int

    @property
    def name(self) -> str:
        return f"{self.code} T = {self.steps}"


ROWS = (
    Row("radix", steps=4),
    Row("radix", steps=6),
    Row("radix", steps=8),
    Row("rate", steps=8),
    Row("rate", steps=16),
    Row("rate", steps=32),
)


class UNet(nn.Module):
    """The noise of images [B, H, W, C]; H and W are multiples of 4."""

    features: int = 16

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        def convolutions(x, level):
            for _ in range(2):
                x = nn.relu(nn.Conv(self.features * 2**level, (3, 3))(x))
            return x

        first = convolutions(images, 0)
        second = convolutions(nn.max_pool(first, (2, 2), (2, 2)), 1)
        x = convolutions(nn.max_pool(second, (2, 2), (2, 2)), 2)
        for level, skip in ((1, second), (0, first)):
            larger = nn.ConvTranspose(skip.shape[-1], (2, 2), (2, 2))(x)
            x = convolutions(jnp.concatenate([skip, larger], -1), level)
        return nn.Conv(images.shape[-1], (1, 1))(x)


def noisy(clean: np.ndarray, seed: int) -> np.ndarray:
    """Images with Gaussian noise."""
    generator = np.random.default_rng(seed)
    return clean + NOISE * generator.standard_normal(clean.shape, np.float32)


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

    def loss(params, x, noise):
        return optax.losses.squared_error(model.apply(params, x), noise).mean()

    return networks.trained(
        loss,
        params=model.init(jax.random.key(0), clean[:1]),
        optimizer=optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, steps)),
        batches=functools.partial(batches, clean),
        epochs=EPOCHS,
        folder=folder,
        depends_on={"clean": clean, "options": (BATCH, LEARNING_RATE, NOISE)},
    )


class Test(NamedTuple):
    """What the spiking networks are measured on."""

    clean: np.ndarray
    noisy: np.ndarray
    ann_noise: np.ndarray  # what the ANN takes for noise


def table_row(
    row: Row, fn: Callable, params: Any, calibration: np.ndarray, test: Test
) -> dict[str, Any]:
    """Errors and costs of a spiking network."""
    snn = snnjax.convert(
        fn,
        params,
        calibration,
        code=CODES[row.code],
        steps=row.steps,
    )
    run = functools.partial(jax.jit(snnjax.spiking(fn, answer=True)), snn)
    noise = timing.in_parts(run, test.noisy, TEST_BATCH)
    distance = np.linalg.norm(noise - test.ann_noise)
    return {
        "psnr": psnr(test.clean, test.noisy - noise),
        "error": 100 * float(distance / np.linalg.norm(test.ann_noise)),
        **networks.costs(fn, params, snn, test.noisy[:TEST_BATCH]),
    }


COLUMNS = {
    "psnr": "PSNR dB",
    "error": "from the ANN %",
    "wait": "wait",
    "latency": "latency",
    "spikes": "spikes",
    "operations": "energy, % of ANN",
    "memory": "with memory",
}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """The command. It reports before each row, because a row takes minutes."""
    parser = timing.parser(__doc__)
    parser.add_argument("--data_dir", help="of CIFAR-10")
    parser.add_argument(
        "--training",
        type=Path,
        required=True,
        metavar="DIR",
    )
    timing.only_option(parser)
    options = parser.parse_args(arguments)
    timing.check_only(parser, options.only, [row.name for row in ROWS])
    model = UNet()
    name = "digits" if options.quick else "cifar10"
    try:
        dataset = data.load(name, options.data_dir)
        train_images = dataset.train_images[:TRAINING]
        test_images = dataset.test_images[:TEST]
        clean = np.float32(train_images) / train_images.max()
        clean_test = np.float32(test_images) / test_images.max()
        params = trained(model, clean, options.training)
    except (data.MissingDataError, ValueError) as reason:
        parser.error(str(reason))
    # Seeds of training are multiples of 16.
    noisy_test = noisy(clean_test, 2)
    calibration = noisy(clean[:CALIBRATION], 1)
    ann = functools.partial(jax.jit(model.apply), params)
    test = Test(
        clean=clean_test,
        noisy=noisy_test,
        ann_noise=timing.in_parts(ann, noisy_test, TEST_BATCH),
    )
    kernels = b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(params))
    facts = {"images": name, "weights": hashlib.sha256(kernels).hexdigest()[:16]}
    result = timing.new_result(__doc__, ("jax", "flax", "optax", "numpy"), **facts)
    sides = timing.continued(result, options.out, *facts)["sides"]
    sides["noisy image"] = {"psnr": psnr(test.clean, test.noisy)}
    ann_psnr = psnr(test.clean, test.noisy - test.ann_noise)
    sides["ANN"] = {"psnr": ann_psnr, "error": 0.0}
    for row in ROWS:
        timing.report(result, timing.table_of("network", COLUMNS, sides), options.out)
        if row.name not in sides and timing.is_selected(row.name, options.only):
            sides[row.name] = table_row(row, model.apply, params, calibration, test)
    text = timing.table_of("network", COLUMNS, sides)
    return timing.report(result, text, options.out)


if __name__ == "__main__":
    main()
