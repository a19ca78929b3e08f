"""Do whole numbers of ours do what chips did that others recorded?

    pip install -e '.[experiments,nir]' h5py
    python -m benchmarks.silicon --loihi nxsdk_modules_ncl/dnn/tutorials/models \
        --mnist MNIST --cifar cifar-10-batches-bin --speck NIR/paper/02_cnn \
        --recordings slayerPytorch/test/test_files/NMNISTsmall \
        --out benchmarks/results/silicon.json

No chip is needed; each check is left out without its folders.

Loihi 1: github.com/intel-nrc-ecosystem/models (BSD-3) has a network for MNIST,
``a_minist_model.h5``, and the notebook of a run on the chip: T = 512, of the first 128
test images 126 were right, and a picture shows the two others, found among the images,
and what they were taken for.
``--mnist`` has t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz.
Of its pseudo-MobileNet, ``b_cifar_pseudo_mobile_net_0.87.h5``, the notebook lists the
accuracy after each of the first 100 test images, so which 17 were wrong. ``--cifar``
has test_batch.bin of CIFAR-10's binary version, in whose order the images are.

Speck: github.com/neuromorphs/NIR, paper/02_cnn has a network, ``cnn_sinabs.nir``, and
what its first layer sent on a speck2f for ten recordings of N-MNIST,
``speck_activity.npy``: the first recording of each digit in the test set. They are
files NUMBER.bs2 of github.com/bamsumit/slayerPytorch.
"""

import dataclasses
import gzip
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import snnjax
from benchmarks import timing
from benchmarks.networks import convolution
from experiments.data.events import events_of_bin
from snnjax.deploy import Layers

# ------------------------------------------------------------------------------ Loihi 1

LOIHI_FILE = "a_minist_model.h5"
MNIST_FILES = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"
IMAGES, THRESHOLD = 128, 512
STEPS = 511  # of T = 512: a reset follows the first, by snip_reset.c
MISTAKEN = {8: 6, 78: 4}  # image -> what the chip took it for, by the notebook
AT_A_TIME = 16  # images
READOUT_DECAY = 2**8  # compartmentVoltageDecay of an output layer, of 2^12

MOBILE_FILE, CIFAR_FILE = "b_cifar_pseudo_mobile_net_0.87.h5", "test_batch.bin"
MOBILE_LAYERS = "conv1", *(f"conv_{k}_{i}" for i in range(1, 6) for k in ("dw", "pw"))
MOBILE_STRIDES = 2, 1, 1, 2, 1, 1, 1, 2, 1, 1, 1, 2
# By the notebook, as are the images that the chip had wrong.
MOBILE_THRESHOLDS = 255, 332, 93, 146, 81, 264, 93, 290, 50, 308, 57, 768, 620
MOBILE_IMAGES = 100
MOBILE_WRONG = 12, 24, 33, 35, 37, 42, 46, 49, 52, 57, 61, 68, 69, 76, 85, 86, 87

Numbers = list[tuple[np.ndarray, np.ndarray]]


def classifier(strides: tuple[int, ...], padding: str) -> Callable[..., jax.Array]:
    """A network: neurons that encode x, convolutions with neurons, and the readout.

    Kernels [K, K, I / groups, O]; a mean over a window is one, too.
    """

    def fn(p: list, x: jax.Array) -> jax.Array:
        with jax.named_scope("input"):
            x = jax.nn.relu(x)
        for i, stride in enumerate(strides):
            with jax.named_scope(f"conv{i + 1}"):
                x = jax.nn.relu(convolution(x, p[i], stride, padding))
        return x.reshape(len(x), -1) @ p[-1].reshape(-1, p[-1].shape[-1])

    return fn


def loihi_numbers(model: Path) -> Numbers:
    """Weights [K, K, I, O] and biases [O] of each layer, as the notebook rounds them.

    Source: intel-nrc-ecosystem/models 3dc53bf, dnn/src/utils.py, to_integer.
    """
    import h5py

    numbers = []
    with h5py.File(model) as file:
        for i in range(1, 5):
            group = file[f"model_weights/conv2d_{i}/conv2d_{i}"]
            both = group["kernel:0"][()], group["bias:0"][()]
            largest = max(np.abs(part).max() for part in both)
            scaled = (np.clip(part / largest * 255, -256, 255) for part in both)
            numbers.append(tuple(part.astype(int) for part in scaled))
    return numbers


def mobile_numbers(model: Path) -> Numbers:
    """The same of the pseudo-MobileNet, with BatchNorm inside.

    Source: intel-nrc-ecosystem/models 867aa56, snntoolbox/nx_backend.py, of the first
    commit with the notebook. Later ones round to nearest.
    """
    import h5py

    def scaled(kernel: np.ndarray) -> tuple[float, np.ndarray]:
        scale = 255 / np.percentile(np.abs(kernel), 99.999)
        return scale, np.clip(kernel * scale, -256, 255).astype(int)

    numbers = []
    with h5py.File(model) as file:
        weights = file["model_weights"]
        for name in MOBILE_LAYERS:
            (kernel,) = (part[()] for part in weights[f"{name}/{name}"].values())
            norm = weights[f"{name}_bn/{name}_bn"]
            beta, gamma, mean, variance = (norm[part][()] for part in sorted(norm))
            factor = gamma / np.sqrt(variance + np.float32(1e-3))
            if "dw" in name:
                kernel = kernel.transpose(0, 1, 3, 2)
            scale, whole = scaled(kernel * factor)
            # ReLU6: spikes of the layer before at each step stand for 6, those of x, 1.
            bias = (beta - mean * factor) / (6 if numbers else 1)
            numbers.append((whole, (bias * scale).astype(int)))
        channels = whole.shape[-1]
        numbers.append((np.full((2, 2, 1, channels), 255), np.zeros(channels, int)))
        _, readout = scaled(weights["dense_1/dense_1/kernel:0"][()])
    readout = readout.reshape(2, 2, channels, -1)
    return [*numbers, (readout, np.zeros(readout.shape[-1], int))]


def loihi_layers(
    fn: Callable[..., jax.Array],
    numbers: Numbers,
    x: np.ndarray,
    model: Any,
    thresholds: Sequence[int],
    initial_potential: int = 0,
) -> Layers:
    """The network with these numbers and thresholds of its populations; x are bytes."""
    params = [jnp.float32(kernel) for kernel, _ in numbers]
    x = jnp.zeros((1, *x.shape[1:]))
    snn = snnjax.init(fn, params, x, model=model)
    snn = dataclasses.replace(snn, steps=STEPS, wait=0)
    layers = snnjax.deploy.layers(fn, snn, x)
    names = [node.name for node in layers.receivers]
    biases = (bias for _, bias in numbers)
    return snnjax.deploy.with_numbers(
        layers,
        # x has 8 bits without a sign, a potential 24 in units of 2^-6.
        snnjax.deploy.Arithmetic(9, 9, 18, "saturate"),
        # Of thresholds of 1, so the whole numbers, in the layers' own order.
        weights={c.receiver: c.maps[-1].weight for c in layers.connections if c.maps},
        thresholds=dict(zip(names, thresholds, strict=False)),
        biases=dict(zip(names[1:], biases, strict=True)),
        initial_potentials=initial_potential,
    )


def mnist(folder: Path, count: int | None) -> tuple[np.ndarray, np.ndarray]:
    """The first test images [B, 28, 28, 1], 0 .. 255, and their labels."""
    images, labels = (
        timing.read(folder / name, lambda file: gzip.decompress(file.read_bytes()))
        for name in MNIST_FILES
    )
    x = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28, 1)
    return x[:count].astype(np.float32), np.frombuffer(labels, np.uint8, -1, 8)[:count]


def kept(v: jax.Array, decay: int) -> jax.Array:
    """What a decay leaves of int32: sign(v) floor(|v| (2^12 - decay) / 2^12)."""
    return snnjax.deploy.Leak("factor", bits=12).left(v, 2**12 - decay)


def leaky(currents: np.ndarray, decay: int) -> np.ndarray:
    """Potentials of a readout that leaks and never fires, of currents [T, B, N].

    In units of 2^-6 of a weight. At the largest threshold, 2^17 - 1, it saturates.
    """

    def step(v, current):
        v = jnp.clip(kept(v, decay) + 64 * current, -(2**23) + 1, 64 * (2**17 - 1))
        return v, v

    currents = jnp.rint(currents).astype(jnp.int32)
    return np.asarray(jax.lax.scan(step, 0 * currents[0], currents)[1])


def decisions(layers: Layers, x: np.ndarray, delay: int) -> dict[str, np.ndarray]:
    """What the network takes each image for, by the name of a readout."""

    def run(x: np.ndarray) -> jax.Array:
        return snnjax.deploy.outputs(layers, x, delay=delay).outputs

    currents = timing.in_parts(run, x, AT_A_TIME, axis=1)
    potentials = leaky(currents, READOUT_DECAY)
    largest = potentials == potentials.max(-1, keepdims=True)
    readouts = {
        "sum": currents.sum(0),
        "leaky": potentials[-1],
        "steps won": largest.sum(0),  # by each class
    }
    # The last one of equals, as there.
    return {name: 9 - v[:, ::-1].argmax(-1) for name, v in readouts.items()}


def row_of(what: str, equal: np.ndarray, ours: Any, of_chip: Any, differ: str) -> dict:
    """A row of the table; ``ours`` and ``of_chip`` are right answers or spikes."""
    return {
        "what": what,
        "compared": equal.size,
        "equal": int(equal.sum()),
        "share": 100 * float(equal.mean()),
        "total": int(ours.sum()),
        "of_chip": int(of_chip.sum()),
        "differ": differ,
    }


def loihi(models: Path, folder: Path, count: int) -> dict[str, dict]:
    """Decisions on the first images, under each rule that the chip may have."""
    numbers, rows = timing.read(models / LOIHI_FILE, loihi_numbers), {}
    x, labels = mnist(folder, count)
    chip = np.array([MISTAKEN.get(i, label) for i, label in enumerate(labels)])
    fn, model = classifier((2, 1, 2), "VALID"), snnjax.integrate_and_fire(reset="zero")
    for rule, delay in itertools.product(("v >= V", "v > V"), (0, 1)):
        thresholds = [THRESHOLD + (rule == "v > V")] * 4
        layers = loihi_layers(fn, numbers, x, model, thresholds)
        found = decisions(layers, x, delay)
        is_chip = (rule, delay) == ("v > V", 1)
        for readout in ("sum", "leaky", "steps won")[: 2 + is_chip]:
            ours = found[readout]
            others = (f"{i} as {ours[i]}" for i in np.flatnonzero(ours != chip))
            numbers_of_row = ours == chip, ours == labels, chip == labels
            name = f"Loihi 1: fires at {rule}, delay {delay}, readout {readout}"
            rows[name] = row_of("decisions", *numbers_of_row, ", ".join(others))
    return rows


def cifar(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """The first test images [B, 32, 32, 3], 0 .. 255, and their labels."""
    records = np.fromfile(file, np.uint8).reshape(-1, 3073)[:MOBILE_IMAGES]
    images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return images.astype(np.float32), records[:, 0]


def mobile(models: Path, folder: Path, count: int) -> dict[str, dict]:
    """Which images are right, under the chip's rule and with one thing changed."""
    numbers = timing.read(models / MOBILE_FILE, mobile_numbers)
    x, labels = (part[:count] for part in timing.read(folder / CIFAR_FILE, cifar))
    chip, rows = ~np.isin(np.arange(len(x)), MOBILE_WRONG), {}
    fn, model = classifier(MOBILE_STRIDES, "SAME"), snnjax.integrate_and_fire()
    readouts_of = {"v > V": ("steps won", "leaky", "sum"), "v >= V": ("steps won",)}
    for rule, readouts in readouts_of.items():
        # From -1, it fires above V and not at it, and V is still what is subtracted.
        first = -(rule == "v > V")
        layers = loihi_layers(fn, numbers, x, model, MOBILE_THRESHOLDS, first)
        found = decisions(layers, x, delay=1)
        for readout in readouts:
            right = found[readout] == labels
            differ = ", ".join(map(str, np.flatnonzero(right != chip)))
            name = f"Loihi 1, MobileNet: {rule}, delay 1, readout {readout}"
            rows[name] = row_of("right or wrong", right == chip, right, chip, differ)
    return rows


# -------------------------------------------------------------------------------- Speck

SPECK_FILES = "cnn_sinabs.nir", "speck_activity.npy"
NUMBERS = 60004, 60003, 60002, 60019, 60005, 60009, 60012, 60001, 60062, 60008
# The first recording of each digit in the test set.
RECORDINGS = tuple(f"{number}.bs2" for number in NUMBERS)
SIZE = 34
WINDOWS = {"event by event": None, "steps of 0.1 ms": 100, "steps of 1 ms": 1000}


def sequence(file: Path, window: int | None) -> np.ndarray:
    """How many events [T, 1, 34, 34, 2] arrive in a window; None: one in each step."""
    events = timing.read(file, lambda file: events_of_bin(file.read_bytes()))
    step = np.arange(len(events)) if window is None else events["t"] // window
    frames = np.zeros((step.max() + 1, 1, SIZE, SIZE, 2), np.float32)
    np.add.at(frames, (step, 0, events["y"], events["x"], events["p"]), 1)
    # Steps without events change nothing: sequences of one length share a program.
    return np.pad(frames, ((0, -len(frames) % 1024), *[(0, 0)] * 4))


def speck_layers(folder: Path, images: np.ndarray, lowest: float | None) -> Layers:
    """The network of the file with sinabs's neurons for Speck, in 8 and 16 bits."""
    import nir

    graph = timing.read(folder / SPECK_FILES[0], nir.read)
    fn, snn = snnjax.deploy.as_function(snnjax.deploy.from_nir(graph))
    # No more than a neuron could send in a step, which no limit should cut.
    neuron = snnjax.integrate_and_fire(levels=(0, 127), lowest=lowest)
    snn = dataclasses.replace(snn, model=neuron, steps=1, wait=0)
    layers = snnjax.deploy.layers(fn, snn, images)
    return snnjax.deploy.quantize(layers, images, scale="range")


def speck(folder: Path, recordings: Path, count: int) -> dict[str, dict]:
    """Spike counts of the first layer, with and without its lower bound."""
    chip = timing.read(folder / SPECK_FILES[1], np.load).sum(0)[:count]  # [B, C, H, W]
    rows = {}
    files = [recordings / name for name in RECORDINGS[:count]]
    images = np.concatenate([sequence(file, 1000)[:300, 0] for file in files])
    for lowest, words in ((-1.0, ""), (None, ", no lower bound")):
        layers = speck_layers(folder, images, lowest)
        name = layers.populations[0].name
        for steps, window in WINDOWS.items():
            counts = []
            for file in files:
                x = sequence(file, window)
                trace = snnjax.deploy.run(layers, x, inputs="sequence")
                counts.append(np.asarray(trace.spikes[name].sum(0)[0]))
            ours = np.moveaxis(np.stack(counts), -1, 1)
            differ = f"by at most {np.abs(ours - chip).max():.0f}"
            row = row_of("spike counts", ours == chip, ours, chip, differ)
            rows[f"Speck: {steps}{words}"] = row
    return rows


FOLDERS = "loihi", "mnist", "cifar", "speck", "recordings"
CHECKS = {  # check -> its two folders, with their files
    "MNIST": {"loihi": (LOIHI_FILE,), "mnist": MNIST_FILES},
    "MobileNet": {"loihi": (MOBILE_FILE,), "cifar": (CIFAR_FILE,)},
    "Speck": {"speck": SPECK_FILES, "recordings": RECORDINGS},
}
COLUMNS = {"what": "what", "compared": "compared", "equal": "equal", "share": "equal %"}
COLUMNS |= {"total": "right, or spikes", "of_chip": "of the chip", "differ": "others"}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    options = timing.parser(__doc__)
    for name in FOLDERS:
        options.add_argument(f"--{name}", type=Path, metavar="FOLDER")
    choice = options.parse_args(arguments)
    given = {name for name in FOLDERS if getattr(choice, name) is not None}
    checks = [check for check, needs in CHECKS.items() if needs.keys() <= given]
    alone = given.difference(*(CHECKS[check] for check in checks))
    if alone or not checks:
        found = f"--{min(alone)} is given alone" if alone else "no folder is given"
        pairs = (" and ".join(f"--{name}" for name in n) for n in CHECKS.values())
        options.error(f"{found}; a check needs {', or '.join(pairs)}")
    for name, files in (pair for check in checks for pair in CHECKS[check].items()):
        files = files[: 1 if choice.quick and name == "recordings" else None]
        timing.check_files(options, getattr(choice, name), *files)
    result = timing.new_result(__doc__, ("jax", "numpy", "h5py", "nir"))
    sides, targets = result["sides"], result["targets"]
    if "MNIST" in checks:
        sides |= loihi(choice.loihi, choice.mnist, 16 if choice.quick else IMAGES)
        share = sides["Loihi 1: fires at v > V, delay 1, readout leaky"]["share"]
        targets += [timing.target("decisions of Loihi 1, %", share, at_least=100)]
    if "MobileNet" in checks:
        count = 2 if choice.quick else MOBILE_IMAGES
        sides |= mobile(choice.loihi, choice.cifar, count)
        row = sides["Loihi 1, MobileNet: v > V, delay 1, readout steps won"]
        name = "MobileNet, images unlike the chip's"
        targets += [timing.target(name, row["compared"] - row["equal"], at_most=1)]
    if "Speck" in checks:
        count = 1 if choice.quick else len(RECORDINGS)
        sides |= speck(choice.speck, choice.recordings, count)
        for steps in ("event by event", "steps of 0.1 ms"):
            name, row = f"counts of Speck, {steps}, %", sides[f"Speck: {steps}"]
            targets += [timing.target(name, row["share"], at_least=97)]
    text = timing.table_of("chip and rule", COLUMNS, sides)
    return timing.report(result, text, choice.out)


if __name__ == "__main__":
    main()
