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

import argparse
import dataclasses
import gzip
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import snnjax
from benchmarks import timing
from benchmarks.networks import convolution
from experiments.data.events import nmnist_events
from snnjax.deploy import Arithmetic, Input, Layers, Output, Population

# ------------------------------------------------------------------------------ Loihi 1

LOIHI_FILE = "a_minist_model.h5"
MNIST_FILES = ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")
IMAGES = 128
THRESHOLD = 512
STEPS = 511  # of T = 512: a reset follows the first step, by snip_reset.c
MISTAKEN = {8: 6, 78: 4}  # image -> what the chip took it for, by the notebook
BATCH = 16  # images
READOUT_DECAY = 2**8  # compartmentVoltageDecay of an output layer, of 2^12

MOBILE_FILE = "b_cifar_pseudo_mobile_net_0.87.h5"
CIFAR_FILE = "test_batch.bin"
MOBILE_LAYERS = (
    "conv1",
    "conv_dw_1",
    "conv_pw_1",
    "conv_dw_2",
    "conv_pw_2",
    "conv_dw_3",
    "conv_pw_3",
    "conv_dw_4",
    "conv_pw_4",
    "conv_dw_5",
    "conv_pw_5",
)
MOBILE_STRIDES = (2, 1, 1, 2, 1, 1, 1, 2, 1, 1, 1, 2)
# The notebook states these thresholds, and the images that the chip had wrong.
MOBILE_THRESHOLDS = (255, 332, 93, 146, 81, 264, 93, 290, 50, 308, 57, 768, 620)
MOBILE_IMAGES = 100
MOBILE_WRONG = (12, 24, 33, 35, 37, 42, 46, 49, 52, 57, 61, 68, 69, 76, 85, 86, 87)


class LayerNumbers(NamedTuple):
    """Whole numbers of a layer."""

    kernel: np.ndarray  # [K, K, I / groups, O]
    bias: np.ndarray  # [O]


def classifier(strides: tuple[int, ...], padding: str) -> Callable[..., jax.Array]:
    """A network: neurons that encode x, convolutions with neurons, and a dense readout.

    Its params are kernels [K, K, I / groups, O]; a mean over a window is one, too.
    """

    def fn(kernels: Sequence[jax.Array], x: jax.Array) -> jax.Array:
        with jax.named_scope("input"):
            x = jax.nn.relu(x)
        for i, stride in enumerate(strides):
            with jax.named_scope(f"conv{i + 1}"):
                x = jax.nn.relu(convolution(x, kernels[i], stride, padding))
        readout = kernels[-1].reshape(-1, kernels[-1].shape[-1])
        return x.reshape(len(x), -1) @ readout

    return fn


def loihi_numbers(model: Path) -> list[LayerNumbers]:
    """Whole numbers of each layer, as the notebook rounds them.

    Source: intel-nrc-ecosystem/models 3dc53bf, dnn/src/utils.py, to_integer.
    """
    import h5py

    numbers = []
    with h5py.File(model) as file:
        for i in range(1, 5):
            group = file[f"model_weights/conv2d_{i}/conv2d_{i}"]
            kernel = group["kernel:0"][()]
            bias = group["bias:0"][()]
            largest = max(np.abs(kernel).max(), np.abs(bias).max())
            whole_kernel = np.clip(kernel / largest * 255, -256, 255).astype(int)
            whole_bias = np.clip(bias / largest * 255, -256, 255).astype(int)
            numbers.append(LayerNumbers(whole_kernel, whole_bias))
    return numbers


def mobile_numbers(model: Path) -> list[LayerNumbers]:
    """Whole numbers of each layer of the pseudo-MobileNet, with BatchNorm inside.

    Source: intel-nrc-ecosystem/models 867aa56, snntoolbox/nx_backend.py, of the first
    commit with the notebook. Later ones round to nearest.
    """
    import h5py

    numbers = []
    with h5py.File(model) as file:
        weights = file["model_weights"]
        for name in MOBILE_LAYERS:
            (dataset,) = weights[f"{name}/{name}"].values()
            kernel = dataset[()]
            norm = weights[f"{name}_bn/{name}_bn"]
            deviation = np.sqrt(norm["moving_variance:0"][()] + np.float32(1e-3))
            factor = norm["gamma:0"][()] / deviation
            if "dw" in name:
                # Keras has [K, K, I, 1] for depthwise kernels; JAX wants [K, K, 1, O].
                kernel = kernel.transpose(0, 1, 3, 2)
            scale, whole_kernel = _scaled(kernel * factor)
            # ReLU6: spikes of the layer before at each step stand for 6, those of x, 1.
            unit = 6 if numbers else 1
            shift = norm["beta:0"][()] - norm["moving_mean:0"][()] * factor
            whole_bias = (shift / unit * scale).astype(int)
            numbers.append(LayerNumbers(whole_kernel, whole_bias))
        channels = whole_kernel.shape[-1]
        # The mean over 2 x 2 pixels is a depthwise convolution.
        mean = LayerNumbers(
            kernel=np.full((2, 2, 1, channels), 255),
            bias=np.zeros(channels, int),
        )
        _, readout = _scaled(weights["dense_1/dense_1/kernel:0"][()])
    readout = readout.reshape(2, 2, channels, -1)
    return [*numbers, mean, LayerNumbers(readout, np.zeros(readout.shape[-1], int))]


def _scaled(kernel: np.ndarray) -> tuple[float, np.ndarray]:
    """The scale that fills 9 bits but for outliers, and the whole kernel."""
    scale = 255 / np.percentile(np.abs(kernel), 99.999)
    return scale, np.clip(kernel * scale, -256, 255).astype(int)


def loihi_layers(
    fn: Callable[..., jax.Array],
    numbers: Sequence[LayerNumbers],
    x: np.ndarray,
    model: Any,
    thresholds: Sequence[int],
    initial_potential: int = 0,
) -> Layers:
    """The layers of fn with the chip's whole numbers.

    v_j <- v_j + sum_i W_ji k_i + B_j, and neuron j fires where v_j reaches its
    threshold.

    Args:
        fn: from `classifier`.
        numbers: kernels and biases of its layers.
        x: images [B, H, W, C], whose values are bytes.
        model: neurons.
        thresholds: one for each population, from that of the input on.
        initial_potential: v_j(0).
    """
    kernels = [jnp.float32(layer.kernel) for layer in numbers]
    snn = snnjax.init(fn, kernels, jnp.zeros((1, *x.shape[1:])), model=model)
    snn = dataclasses.replace(snn, steps=STEPS, wait=0)
    layers = snnjax.deploy.layers(fn, snn, x[:1])
    # With thresholds of 1 the weights of the layers are the whole numbers of the
    # kernels, and only the numbers of the neurons are missing. The first population
    # encodes x and has no bias.
    remaining_thresholds = list(thresholds)
    biases = [np.zeros(()), *(layer.bias.reshape(-1, 1, 1) for layer in numbers)]
    nodes = []
    for node in layers.nodes:
        if isinstance(node, Input):
            node = dataclasses.replace(node, unit=np.ones(()))
        elif isinstance(node, Population):
            node = dataclasses.replace(
                node,
                threshold=np.float64(remaining_thresholds.pop(0)),
                bias=np.float64(biases.pop(0)),
                initial_potential=np.float64(initial_potential),
            )
        elif isinstance(node, Output):
            bias = np.float64(biases.pop(0)).ravel()
            node = dataclasses.replace(node, unit=np.ones(()), bias=bias)
        nodes.append(node)
    # x has 8 bits without a sign, a potential 24 in units of 2^-6.
    arithmetic = Arithmetic(
        weight_bits=9,
        input_bits=9,
        state_bits=18,
        overflow="saturate",
    )
    return dataclasses.replace(layers, nodes=tuple(nodes), arithmetic=arithmetic)


def mnist(folder: Path, count: int | None) -> tuple[np.ndarray, np.ndarray]:
    """The first test images [B, 28, 28, 1], 0 .. 255, and their labels."""
    images, labels = (
        timing.read(folder / name, lambda file: gzip.decompress(file.read_bytes()))
        for name in MNIST_FILES
    )
    x = np.frombuffer(images, np.uint8, offset=16).reshape(-1, 28, 28, 1)
    y = np.frombuffer(labels, np.uint8, offset=8)
    return x[:count].astype(np.float32), y[:count]


def decayed(v: jax.Array, decay: int) -> jax.Array:
    """What a decay leaves of int32: sign(v) floor(|v| (2^12 - decay) / 2^12)."""
    return snnjax.deploy.Leak("factor", bits=12).left(v, 2**12 - decay)


def leaky_potentials(currents: np.ndarray, decay: int) -> np.ndarray:
    """Potentials of a readout that leaks and never fires, of currents [T, B, N].

    In units of 2^-6 of a weight. At the largest threshold, 2^17 - 1, it saturates.
    """

    def step(v, current):
        charged = decayed(v, decay) + 64 * current
        v = jnp.clip(charged, -(2**23) + 1, 64 * (2**17 - 1))
        return v, v

    currents = jnp.rint(currents).astype(jnp.int32)
    _, potentials = jax.lax.scan(step, jnp.zeros_like(currents[0]), currents)
    return np.asarray(potentials)


def decisions(layers: Layers, x: np.ndarray, delay: int) -> dict[str, np.ndarray]:
    """What the network takes each image for, by the name of a readout."""

    def run(x: np.ndarray) -> jax.Array:
        return snnjax.deploy.outputs(layers, x, delay=delay).outputs

    currents = timing.in_parts(run, x, BATCH, axis=1)  # [T, B, classes]
    potentials = leaky_potentials(currents, READOUT_DECAY)
    leads = potentials == potentials.max(-1, keepdims=True)
    scores = {
        "sum": currents.sum(0),
        "leaky": potentials[-1],
        "steps won": leads.sum(0),  # by each class
    }
    # Of equal scores the chip's program takes the last class.
    return {name: 9 - v[:, ::-1].argmax(-1) for name, v in scores.items()}


def comparison(
    what: str, equal: np.ndarray, total: Any, chip_total: Any, differ: str
) -> dict:
    """A row of the table.

    Args:
        what: is compared.
        equal: where our simulation and the chip agree.
        total: our number of right answers or spikes.
        chip_total: the chip's.
        differ: which differ.
    """
    return {
        "what": what,
        "compared": equal.size,
        "equal": int(equal.sum()),
        "share": 100 * float(equal.mean()),
        "total": int(total),
        "of_chip": int(chip_total),
        "differ": differ,
    }


def loihi(models: Path, folder: Path, count: int) -> dict[str, dict]:
    """Decisions on the first images, under each rule that the chip may have."""
    numbers = timing.read(models / LOIHI_FILE, loihi_numbers)
    x, labels = mnist(folder, count)
    chip_answers = np.array(labels)
    for image, answer in MISTAKEN.items():
        if image < len(chip_answers):
            chip_answers[image] = answer
    fn = classifier((2, 1, 2), "VALID")
    model = snnjax.integrate_and_fire(reset="zero")
    rows = {}
    # A neuron that fires above V, and not at it, fires at V + 1.
    for rule, threshold in (("v >= V", THRESHOLD), ("v > V", THRESHOLD + 1)):
        layers = loihi_layers(fn, numbers, x, model, [threshold] * 4)
        for delay in (0, 1):
            answers = decisions(layers, x, delay)
            if (rule, delay) != ("v > V", 1):
                # Only the chip's own rule is worth a third readout.
                del answers["steps won"]
            for readout, answer in answers.items():
                unlike = np.flatnonzero(answer != chip_answers)
                name = f"Loihi 1: fires at {rule}, delay {delay}, readout {readout}"
                rows[name] = comparison(
                    what="decisions",
                    equal=answer == chip_answers,
                    total=(answer == labels).sum(),
                    chip_total=(chip_answers == labels).sum(),
                    differ=", ".join(f"{i} as {answer[i]}" for i in unlike),
                )
    return rows


def cifar(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """The first test images [B, 32, 32, 3], 0 .. 255, and their labels."""
    # A record is the label and 32 x 32 values of red, green and blue.
    records = np.fromfile(file, np.uint8).reshape(-1, 3073)[:MOBILE_IMAGES]
    images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return images.astype(np.float32), records[:, 0]


def mobile(models: Path, folder: Path, count: int) -> dict[str, dict]:
    """Which images are right, under the chip's rule and with one thing changed."""
    numbers = timing.read(models / MOBILE_FILE, mobile_numbers)
    images, labels = timing.read(folder / CIFAR_FILE, cifar)
    x, labels = images[:count], labels[:count]
    chip_right = ~np.isin(np.arange(len(x)), MOBILE_WRONG)
    fn = classifier(MOBILE_STRIDES, "SAME")
    model = snnjax.integrate_and_fire()
    readouts_by_rule = {
        "v > V": ("steps won", "leaky", "sum"),
        "v >= V": ("steps won",),
    }
    rows = {}
    for rule, readouts in readouts_by_rule.items():
        # From -1, it fires above V and not at it, and V is still what is subtracted.
        start = -1 if rule == "v > V" else 0
        layers = loihi_layers(fn, numbers, x, model, MOBILE_THRESHOLDS, start)
        answers = decisions(layers, x, delay=1)
        for readout in readouts:
            right = answers[readout] == labels
            unlike = np.flatnonzero(right != chip_right)
            name = f"Loihi 1, MobileNet: {rule}, delay 1, readout {readout}"
            rows[name] = comparison(
                what="right or wrong",
                equal=right == chip_right,
                total=right.sum(),
                chip_total=chip_right.sum(),
                differ=", ".join(map(str, unlike)),
            )
    return rows


# -------------------------------------------------------------------------------- Speck

SPECK_FILES = ("cnn_sinabs.nir", "speck_activity.npy")
# The first recording of each digit in the test set.
RECORDINGS = (
    "60004.bs2",
    "60003.bs2",
    "60002.bs2",
    "60019.bs2",
    "60005.bs2",
    "60009.bs2",
    "60012.bs2",
    "60001.bs2",
    "60062.bs2",
    "60008.bs2",
)
SIZE = 34  # pixels
# Name of a row -> microseconds that make a step, or None
WINDOWS = {
    "event by event": None,
    "steps of 0.1 ms": 100,
    "steps of 1 ms": 1000,
}


def sequence(file: Path, window: int | None) -> np.ndarray:
    """How many events [T, 1, 34, 34, 2] arrive in a window; None: one in each step."""
    events = timing.read(file, lambda file: nmnist_events(file.read_bytes()))
    if window is None:
        step = np.arange(len(events))
    else:
        step = events["t"] // window
    frames = np.zeros((step.max() + 1, 1, SIZE, SIZE, 2), np.float32)
    np.add.at(frames, (step, 0, events["y"], events["x"], events["p"]), 1)
    # Steps without events change nothing: sequences of one length share a program.
    padding = -len(frames) % 1024
    return np.pad(frames, ((0, padding), (0, 0), (0, 0), (0, 0), (0, 0)))


def speck_layers(folder: Path, images: np.ndarray, lowest: float | None) -> Layers:
    """The network of the file with sinabs's neurons for Speck, in 8 and 16 bits."""
    import nir

    graph = timing.read(folder / SPECK_FILES[0], nir.read)
    fn, snn = snnjax.deploy.as_function(snnjax.deploy.from_nir(graph))
    # No more than a neuron could send in a step, which no limit should cut.
    neuron = snnjax.integrate_and_fire(levels=(0, 127), lowest=lowest)
    snn = dataclasses.replace(
        snn,
        model=neuron,
        steps=1,
        wait=0,
    )
    layers = snnjax.deploy.layers(fn, snn, images)
    return snnjax.deploy.quantize(layers, images, scale="range")


def spike_counts(layers: Layers, files: Sequence[Path], window: Any) -> np.ndarray:
    """Spikes of the first layer [B, C, H, W], of each recording."""
    name = layers.populations[0].name
    counts = []
    for file in files:
        trace = snnjax.deploy.run(layers, sequence(file, window), inputs="sequence")
        counts.append(np.asarray(trace.spikes[name].sum(0)[0]))
    return np.moveaxis(np.stack(counts), -1, 1)


def speck(folder: Path, recordings: Path, count: int) -> dict[str, dict]:
    """Spike counts of the first layer, with and without its lower bound."""
    activity = timing.read(folder / SPECK_FILES[1], np.load)
    chip_counts = activity.sum(0)[:count]  # [B, C, H, W]
    files = [recordings / name for name in RECORDINGS[:count]]
    images = np.concatenate([sequence(file, 1000)[:300, 0] for file in files])
    rows = {}
    for lowest, words in ((-1.0, ""), (None, ", no lower bound")):
        layers = speck_layers(folder, images, lowest)
        for steps, window in WINDOWS.items():
            counts = spike_counts(layers, files, window)
            largest = np.abs(counts - chip_counts).max()
            rows[f"Speck: {steps}{words}"] = comparison(
                what="spike counts",
                equal=counts == chip_counts,
                total=counts.sum(),
                chip_total=chip_counts.sum(),
                differ=f"by at most {largest:.0f}",
            )
    return rows


FOLDERS = ("loihi", "mnist", "cifar", "speck", "recordings")
CHECKS = {  # check -> its two folders, with their files
    "MNIST": {"loihi": (LOIHI_FILE,), "mnist": MNIST_FILES},
    "MobileNet": {"loihi": (MOBILE_FILE,), "cifar": (CIFAR_FILE,)},
    "Speck": {"speck": SPECK_FILES, "recordings": RECORDINGS},
}
COLUMNS = {
    "what": "what",
    "compared": "compared",
    "equal": "equal",
    "share": "equal %",
    "total": "right, or spikes",
    "of_chip": "of the chip",
    "differ": "others",
}


def checks_of(
    parser: argparse.ArgumentParser, options: argparse.Namespace
) -> list[str]:
    """Names of the checks whose folders are given; the command ends if one lacks."""
    folders = {name for name in FOLDERS if getattr(options, name) is not None}
    checks = [check for check, needs in CHECKS.items() if needs.keys() <= folders]
    unpaired = folders.difference(*(CHECKS[check] for check in checks))
    pairs = ", or ".join(
        " and ".join(f"--{name}" for name in needs) for needs in CHECKS.values()
    )
    if unpaired:
        parser.error(f"--{min(unpaired)} is given alone; a check needs {pairs}")
    if not checks:
        parser.error(f"no folder is given; a check needs {pairs}")
    for check in checks:
        for name, files in CHECKS[check].items():
            if options.quick and name == "recordings":
                files = files[:1]
            timing.check_files(parser, getattr(options, name), *files)
    return checks


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """The command. Its result has a row for each rule that a chip may have."""
    parser = timing.parser(__doc__)
    for name in FOLDERS:
        parser.add_argument(f"--{name}", type=Path, metavar="FOLDER")
    options = parser.parse_args(arguments)
    checks = checks_of(parser, options)
    result = timing.new_result(__doc__, ("jax", "numpy", "h5py", "nir"))
    rows = result["sides"]
    targets = result["targets"]
    if "MNIST" in checks:
        rows |= loihi(options.loihi, options.mnist, 16 if options.quick else IMAGES)
        share = rows["Loihi 1: fires at v > V, delay 1, readout leaky"]["share"]
        targets.append(timing.target("decisions of Loihi 1, %", share, at_least=100))
    if "MobileNet" in checks:
        count = 2 if options.quick else MOBILE_IMAGES
        rows |= mobile(options.loihi, options.cifar, count)
        row = rows["Loihi 1, MobileNet: v > V, delay 1, readout steps won"]
        unlike = row["compared"] - row["equal"]
        name = "MobileNet, images unlike the chip's"
        targets.append(timing.target(name, unlike, at_most=1))
    if "Speck" in checks:
        count = 1 if options.quick else len(RECORDINGS)
        rows |= speck(options.speck, options.recordings, count)
        for steps in ("event by event", "steps of 0.1 ms"):
            share = rows[f"Speck: {steps}"]["share"]
            name = f"counts of Speck, {steps}, %"
            targets.append(timing.target(name, share, at_least=97))
    text = timing.table_of("chip and rule", COLUMNS, rows)
    return timing.report(result, text, options.out)


if __name__ == "__main__":
    main()
