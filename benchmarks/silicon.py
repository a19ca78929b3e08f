"""Do whole numbers of ours do what chips did that others recorded?

    pip install -e '.[experiments,nir]' h5py
    python -m benchmarks.silicon --loihi nxsdk_modules_ncl/dnn/tutorials/models \
        --mnist MNIST --speck NIR/paper/02_cnn \
        --recordings slayerPytorch/test/test_files/NMNISTsmall \
        --out benchmarks/results/silicon.json

No chip is needed; each check is left out without its two folders.

Loihi 1: github.com/intel-nrc-ecosystem/models (BSD-3) has a network for MNIST,
``a_minist_model.h5``, and the notebook of a run on the chip: T = 512, of the first 128
test images 126 were right, and a picture shows the two others, found among the images,
and what they were taken for.
``--mnist`` has t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz.

Speck: github.com/neuromorphs/NIR, paper/02_cnn has a network, ``cnn_sinabs.nir``, and
what its first layer sent on a speck2f for ten recordings of N-MNIST,
``speck_activity.npy``: the first recording of each digit in the test set. They are
files NUMBER.bs2 of github.com/bamsumit/slayerPytorch.
"""

import argparse
import dataclasses
import gzip
import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import snnjax
from benchmarks import timing
from snnjax.deploy import Layers

# ------------------------------------------------------------------------------ Loihi 1

LOIHI_FILE = "a_minist_model.h5"
MNIST_FILES = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"
IMAGES, STEPS, THRESHOLD = 128, 512, 512
MISTAKEN = {8: 6, 78: 4}  # image -> what the chip took it for, by the notebook
AT_A_TIME = 16  # images
READOUT_DECAY = 2**8  # compartmentVoltageDecay of an output layer, of 2^12


def classifier(p: list, x: jax.Array) -> jax.Array:
    """The network: neurons that encode x, three convolutions, and the readout."""
    with jax.named_scope("input"):
        x = jax.nn.relu(x)
    for i, stride in enumerate((2, 1, 2)):
        with jax.named_scope(f"conv{i + 1}"):
            numbers = ("NHWC", "HWIO", "NHWC")
            x = jax.lax.conv_general_dilated(
                x, p[i], (stride, stride), "VALID", dimension_numbers=numbers
            )
            x = jax.nn.relu(x)
    return x.reshape(len(x), -1) @ p[3].reshape(-1, p[3].shape[-1])


def loihi_numbers(model: Path) -> list[tuple[np.ndarray, np.ndarray]]:
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
            numbers.append(
                tuple(np.clip(p / largest * 255, -256, 255).astype(int) for p in both)
            )
    return numbers


def loihi_layers(
    numbers: list[tuple[np.ndarray, np.ndarray]], threshold: int
) -> Layers:
    """The network with these numbers; x are bytes."""
    params = [jnp.float32(kernel) for kernel, _ in numbers]
    x = jnp.zeros((1, 28, 28, 1))
    neuron = snnjax.integrate_and_fire(reset="zero")
    snn = snnjax.init(classifier, params, x, model=neuron)
    snn = dataclasses.replace(snn, steps=STEPS, wait=0)
    layers = snnjax.deploy.layers(classifier, snn, x)
    names = [node.name for node in layers.receivers][1:]
    kernels = [kernel.transpose(3, 2, 0, 1) for kernel, _ in numbers]
    kernels[3] = kernels[3].reshape(len(kernels[3]), -1)  # it reads a whole image
    return snnjax.deploy.with_numbers(
        layers,
        # x has 8 bits without a sign, a potential 24 in units of 2^-6.
        snnjax.deploy.Arithmetic(9, 9, 18, "saturate"),
        weights=dict(zip(names, kernels, strict=True)),
        thresholds=threshold,
        biases={name: bias for name, (_, bias) in zip(names, numbers, strict=True)},
    )


def mnist(folder: Path, count: int | None) -> tuple[np.ndarray, np.ndarray]:
    """The first test images [B, 28, 28, 1], 0 .. 255, and their labels."""
    images, labels = (
        timing.read(folder / name, lambda file: gzip.decompress(file.read_bytes()))
        for name in MNIST_FILES
    )
    x = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28, 1)
    return x[:count].astype(np.float32), np.frombuffer(labels, np.uint8, -1, 8)[:count]


def leaky(currents: np.ndarray, decay: int) -> np.ndarray:
    """The last potential of a readout that leaks and never fires, of [T, B, N].

    v <- v - d, d = |v| decay / 2^12 rounded up, in units of 2^-6 of a weight. At the
    largest threshold, 2^17 - 1, it saturates.
    """
    v = np.zeros(currents.shape[1:], np.int64)
    for current in np.rint(currents).astype(np.int64):
        v = np.sign(v) * (np.abs(v) * (2**12 - decay) >> 12) + 64 * current
        v = np.clip(v, -(2**23) + 1, 64 * (2**17 - 1))
    return v


def loihi(models: Path, folder: Path, count: int) -> dict[str, dict]:
    """Decisions on the first images, under each rule that the chip may have."""
    numbers, rows = timing.read(models / LOIHI_FILE, loihi_numbers), {}
    x, labels = mnist(folder, count)
    chip = np.array([MISTAKEN.get(i, label) for i, label in enumerate(labels)])
    for rule, delay in itertools.product(("v >= V", "v > V"), (0, 1)):
        layers = loihi_layers(numbers, THRESHOLD + (rule == "v > V"))
        parts = [
            snnjax.deploy.outputs(layers, x[i : i + AT_A_TIME], delay=delay).outputs
            for i in range(0, count, AT_A_TIME)
        ]
        outputs = np.concatenate(parts, 1)
        for readout, v in (
            ("sum", outputs.sum(0)),
            ("leaky", leaky(outputs, READOUT_DECAY)),
        ):
            decisions = 9 - v[:, ::-1].argmax(-1)  # the last one of equals, as there
            others = np.flatnonzero(decisions != chip)
            rows[f"Loihi 1: fires at {rule}, delay {delay}, readout {readout}"] = {
                "what": "decisions",
                "compared": count,
                "equal": count - len(others),
                "share": 100 * float((decisions == chip).mean()),
                "total": int((decisions == labels).sum()),
                "of_chip": int((chip == labels).sum()),
                "differ": ", ".join(f"{i} as {decisions[i]}" for i in others),
            }
    return rows


# -------------------------------------------------------------------------------- Speck

SPECK_FILES = "cnn_sinabs.nir", "speck_activity.npy"
# Number of the first recording of each digit in the test set.
RECORDINGS = (60004, 60003, 60002, 60019, 60005, 60009, 60012, 60001, 60062, 60008)
SIZE = 34
WINDOWS = {"event by event": None, "steps of 0.1 ms": 100, "steps of 1 ms": 1000}


def events(file: Path) -> tuple[np.ndarray, ...]:
    """x, y, polarity and microseconds of each event, 40 bits in a file."""
    x, y, *times = np.fromfile(file, np.uint8).reshape(-1, 5).astype(int).T
    return x, y, times[0] >> 7, (times[0] & 127) << 16 | times[1] << 8 | times[2]


def sequence(file: Path, window: int | None) -> np.ndarray:
    """How many events [T, 1, 34, 34, 2] arrive in a window; None: one in each step."""
    x, y, polarity, time = timing.read(file, events)
    step = np.arange(len(x)) if window is None else time // window
    frames = np.zeros((step.max() + 1, 1, SIZE, SIZE, 2), np.float32)
    np.add.at(frames, (step, 0, y, x, polarity), 1)
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
    files = [recordings / f"{number}.bs2" for number in RECORDINGS[:count]]
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
            rows[f"Speck: {steps}{words}"] = {
                "what": "spike counts",
                "compared": ours.size,
                "equal": int((ours == chip).sum()),
                "share": 100 * float((ours == chip).mean()),
                "total": int(ours.sum()),
                "of_chip": int(chip.sum()),
                "differ": f"by at most {np.abs(ours - chip).max():.0f}",
            }
    return rows


# ---------------------------------------------------------------------------- the table

COLUMNS = {
    "what": "what",
    "compared": "compared",
    "equal": "equal",
    "share": "equal %",
    "total": "right, or spikes",
    "of_chip": "of the chip",
    "differ": "others",
}


def _folders(
    options: argparse.ArgumentParser, *pairs: tuple[Path | None, tuple]
) -> bool:
    """Whether a check has its two folders, with all of their files."""
    given = [folder for folder, _ in pairs if folder is not None]
    if len(given) == 1:
        options.error("a check needs both of its folders; --help says which")
    for folder, names in pairs:
        if folder is not None:
            timing.check_files(options, folder, *names)
    return len(given) == 2


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    options = timing.parser(__doc__)
    for name in ("loihi", "mnist", "speck", "recordings"):
        options.add_argument(f"--{name}", type=Path, metavar="FOLDER")
    choice = options.parse_args(arguments)
    files = tuple(f"{n}.bs2" for n in RECORDINGS[: 1 if choice.quick else None])
    has_loihi = _folders(
        options, (choice.loihi, (LOIHI_FILE,)), (choice.mnist, MNIST_FILES)
    )
    has_speck = _folders(
        options, (choice.speck, SPECK_FILES), (choice.recordings, files)
    )
    if not has_loihi and not has_speck:
        options.error("no check has its folders; --help says what they hold")
    packages = ("jax", "numpy", "h5py", "nir")
    result = timing.new_result(__doc__, packages)
    sides: dict[str, dict] = {}
    if has_loihi:
        rows = loihi(choice.loihi, choice.mnist, 16 if choice.quick else IMAGES)
        plain = rows["Loihi 1: fires at v >= V, delay 0, readout sum"]["share"]
        goal = timing.target("decisions of Loihi 1, %", plain, at_least=100)
        result["targets"].append(goal)
        sides |= rows
    if has_speck:
        rows = speck(choice.speck, choice.recordings, len(files))
        for steps in ("event by event", "steps of 0.1 ms"):
            share = rows[f"Speck: {steps}"]["share"]
            goal = timing.target(f"counts of Speck, {steps}, %", share, at_least=97)
            result["targets"].append(goal)
        sides |= rows
    result["sides"] = sides
    timing.report(result, timing.table_of("chip and rule", COLUMNS, sides), choice.out)
    return result


if __name__ == "__main__":
    main()
