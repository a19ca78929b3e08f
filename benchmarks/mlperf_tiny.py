"""What do the reference networks of MLPerf Tiny keep when they are converted?

    python -m benchmarks.mlperf_tiny --folder DIR --recordings WORDS --data_dir DATA \
        --out benchmarks/results/mlperf_tiny.json

DIR has two networks of github.com/mlcommons/tiny, benchmark/training/*/trained_models:
kws_ref_model_float32.tflite, the DS-CNN for keywords, some of whose kernels its authors
rounded to 8 bits, and pretrainedResnet.tflite, the ResNet-8 for CIFAR-10, which
`experiments.data.load` reads from DATA (Banbury et al., 2021). WORDS is the test set of
Speech Commands v0.02 (Warden, 2018; CC BY 4.0): 4890 recordings in 12 folders, as
MLTK_keyworkSpotting/dataset of github.com/thegtagamer/PICO-tinyML-benchmark.

`best` converts them with 256 calibration inputs. ResNet-8 has training images for that,
and 1000 test images. Of keywords, that repository has only the test set: a seed draws
256, which calibrate without labels; the others, partly of the same speakers, are the
test. All of them check the ANN, whose accuracy is 92 % by MLCommons. A second run keeps
the rows.
"""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import snnjax
from benchmarks import networks, timing
from experiments import data
from experiments.data.sequences import WORDS, mfccs, samples
from experiments.running import CODES

CALIBRATION = 256  # inputs
TEST = 1000  # test images
BATCH = 250  # inputs of a call, and of costs
DTYPES = {0: np.float32, 9: np.int8}  # of tflite.TensorType
DS_CNN = "kws_ref_model_float32.tflite"
RESNET_8 = "pretrainedResnet.tflite"


class Task(NamedTuple):
    """A network and its inputs."""

    fn: Callable  # (params, inputs) -> logits
    params: Any
    calibration: np.ndarray  # [B, ...], as x
    x: np.ndarray
    labels: np.ndarray  # [B], of x
    target: float | None = None  # accuracy in percent that the rules ask for, if any


class Row(NamedTuple):
    """A conversion by `snnjax.best`; with bits of weights also in whole numbers."""

    code: str
    steps: int
    wait: int | None = None  # None: as `snnjax.convert` chooses
    bits: int | None = None


ROWS = (Row("radix", 2, bits=8), Row("radix", 4, bits=8), Row("rate", 8))


class Layer(NamedTuple):
    """Numbers of a layer, in the order of a .tflite file."""

    kernel: np.ndarray  # [O, H, W, I], [1, H, W, O] if it is depthwise, or [O, I]
    bias: np.ndarray  # [O]


def weights(file: Path) -> list[Layer]:
    """The layers of a .tflite file, in the order of execution."""
    import tflite

    model = tflite.Model.GetRootAs(file.read_bytes())
    graph = model.Subgraphs(0)

    def array(index: int) -> np.ndarray:
        tensor = graph.Tensors(index)
        stored = model.Buffers(tensor.Buffer()).DataAsNumpy().tobytes()
        values = np.frombuffer(stored, DTYPES[tensor.Type()])
        values = values.reshape(tensor.ShapeAsNumpy()).astype(np.float32)
        if tensor.Type() == tflite.TensorType.INT8:
            (scale,) = tensor.Quantization().ScaleAsNumpy()
            values *= scale
        return values

    layers = []
    for index in range(graph.OperatorsLength()):
        tensors = graph.Operators(index).InputsAsNumpy()
        # Only layers with a kernel and a bias read three tensors.
        if len(tensors) == 3:
            _, kernel, bias = tensors
            layers.append(Layer(array(kernel), array(bias)))
    return layers


def convolution(
    layer: tuple[Any, Any], x: Any, stride: int = 1, axes: str = "OHWI"
) -> jax.Array:
    """With a kernel of axes "OHWI", or "IHWO" for one that is depthwise."""
    kernel, bias = layer
    kernel = kernel.transpose([axes.index(axis) for axis in "HWIO"])
    return networks.convolution(x, kernel, stride) + bias


def ds_cnn(layers: list, x: Any) -> jax.Array:
    """Logits [B, 12] of MFCCs [B, 49, 10, 1]."""
    first, *separable, (readout, readout_bias) = layers
    x = jax.nn.relu(convolution(first, x, stride=2))
    for depthwise, pointwise in zip(separable[::2], separable[1::2], strict=True):
        x = jax.nn.relu(convolution(depthwise, x, axes="IHWO"))
        x = jax.nn.relu(convolution(pointwise, x))
    window = (1, 24, 5, 1)  # of 25 rows; the pool of TensorFlow drops the last one
    total = jax.lax.reduce_window(x, 0.0, jax.lax.add, window, window, "VALID")
    mean = total[:, 0, 0] / (24 * 5)
    return mean @ readout.T + readout_bias


def resnet_8(layers: list, x: Any) -> jax.Array:
    """Logits [B, 10] of images [B, 32, 32, 3] of 0..255."""
    first, conv1, conv2, *down, (readout, readout_bias) = layers
    x = jax.nn.relu(convolution(first, x))
    branch = convolution(conv2, jax.nn.relu(convolution(conv1, x)))
    x = jax.nn.relu(x + branch)
    # Two blocks that halve the image, each with a convolution in its shortcut.
    for conv1, conv2, shortcut in (down[:3], down[3:]):
        branch = convolution(conv2, jax.nn.relu(convolution(conv1, x, stride=2)))
        x = jax.nn.relu(convolution(shortcut, x, stride=2) + branch)
    return x.mean((1, 2)) @ readout.T + readout_bias


def keywords(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """MFCCs [B, 49, 10, 1] and labels of the recordings folder/WORD/*.wav.

    Raises:
        ValueError: a folder of another word, or too few recordings.
    """
    folders = {path.name for path in folder.iterdir() if path.is_dir()}
    unknown = folders.difference(WORDS)
    if unknown:
        raise ValueError(
            f"folders {', '.join(sorted(unknown))}; allowed: {', '.join(WORDS)}; other "
            "words belong in _unknown_"
        )
    files = []
    labels = []
    for label, word in enumerate(WORDS):
        recordings = sorted((folder / word).glob("*.wav"))
        files += recordings
        labels += [label] * len(recordings)
    if len(files) <= CALIBRATION:
        raise ValueError(
            f"{len(files)} recordings WORD/*.wav; allowed: more than {CALIBRATION}; "
            "--help says where 4890 are"
        )
    x = np.array([mfccs(timing.read(file, samples)) for file in files], np.float32)
    return x[..., None], np.array(labels)


def keyword_tasks(layers: list[Layer], folder: Path, count: int | None) -> list[Task]:
    """All recordings, for the ANN; and those that do not calibrate.

    Args:
        layers: of the DS-CNN.
        folder: of the recordings.
        count: of test inputs of each; None: all.
    """
    x, labels = timing.read(folder, keywords)
    order = np.random.default_rng(0).permutation(len(labels))
    calibration = order[:CALIBRATION]
    tasks = []
    for test in (order[:count], order[CALIBRATION:][:count]):
        task = Task(
            ds_cnn,
            layers,
            x[calibration],
            x[test],
            labels[test],
            target=90,
        )
        tasks.append(task)
    return tasks


def image_task(layers: list[Layer], data_dir: str | None, count: int | None) -> Task:
    """CIFAR-10 for ResNet-8."""
    cifar = data.load("cifar10", data_dir)
    return Task(
        fn=resnet_8,
        params=layers,
        calibration=cifar.train_images[:CALIBRATION].astype(np.float32),
        x=cifar.test_images[:TEST][:count].astype(np.float32),
        labels=cifar.test_labels[:TEST][:count],
        target=85,
    )


def accuracy(run: Callable, task: Task) -> float:
    """In percent, of a function of inputs that returns outputs [T, B, classes]."""
    outputs = timing.in_parts(run, task.x, BATCH, axis=1)
    return 100 * float(snnjax.accuracy(outputs, task.labels)[-1])


def ann_row(task: Task) -> dict[str, Any]:
    """The ANN, in a row of the table."""
    ann = jax.jit(lambda x: task.fn(task.params, x)[None])
    return {
        "inputs": len(task.labels),
        "target": task.target,
        "numbers": "ANN, float",
        "accuracy": accuracy(ann, task),
    }


def converted_rows(task: Task, row: Row) -> Iterator[dict[str, Any]]:
    """A conversion in floats, and in whole numbers where it has bits."""
    snn = snnjax.convert(
        task.fn,
        task.params,
        task.calibration,
        steps=row.steps,
        wait=row.wait,
        code=CODES[row.code],
        model=snnjax.integrate_and_fire(levels=(-1, 1)),
    )
    costs = networks.costs(task.fn, task.params, snn, task.x[:BATCH])
    costs["energy"] = costs.pop("operations")
    shared = {
        "inputs": len(task.labels),
        "target": task.target,
        "code": row.code,
        "T": row.steps,
        "wait": snn.wait,
        "latency": costs["latency"],
    }
    spiking = functools.partial(jax.jit(snnjax.spiking(task.fn)), snn)
    float_accuracy = accuracy(spiking, task)
    yield shared | {"numbers": "float", "accuracy": float_accuracy} | costs
    if row.bits:
        layers = snnjax.deploy.layers(task.fn, snn, task.calibration)
        integers = snnjax.deploy.quantize(
            layers, task.calibration, weight_bits=row.bits
        )
        whole_accuracy = accuracy(
            lambda x: snnjax.deploy.outputs(integers, x).outputs, task
        )
        yield shared | {"numbers": f"{row.bits} bits", "accuracy": whole_accuracy}


COLUMNS = {
    "numbers": "numbers",
    "code": "code",
    "T": "T",
    "latency": "latency",
    "inputs": "inputs",
    "accuracy": "accuracy %",
    "target": "target %",
    "spikes": "spikes",
    "synops": "SynOps M",
    "energy": "energy, % of ANN",
    "memory": "with memory",
}


def text(result: dict[str, Any]) -> str:
    """The table of a result."""
    rows = []
    for name, side in result["sides"].items():
        for row in side:
            rows.append([name, *timing.cells(row, COLUMNS)])
    return timing.table(["network", *COLUMNS.values()], rows)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """The command. It reports after each row, because a row takes minutes."""
    parser = timing.parser(__doc__)
    parser.add_argument(
        "--folder",
        type=Path,
        required=True,
        help="of the networks",
    )
    parser.add_argument(
        "--recordings",
        type=Path,
        required=True,
        help="WORDS",
    )
    parser.add_argument("--data_dir", help="of CIFAR-10")
    options = parser.parse_args(arguments)
    timing.check_files(parser, options.folder, DS_CNN, RESNET_8)
    result = timing.new_result(__doc__, ("jax", "numpy"), quick=options.quick)
    timing.continued(result, options.out, "quick")
    count = BATCH if options.quick else None
    try:
        layers = timing.read(options.folder / DS_CNN, weights)
        all_words, tested_words = keyword_tasks(layers, options.recordings, count)
        layers = timing.read(options.folder / RESNET_8, weights)
        images = image_task(layers, options.data_dir, count)
    except (ModuleNotFoundError, data.MissingDataError) as reason:
        parser.error(str(reason))
    rows_by_name = {
        "DS-CNN, all": (),
        "DS-CNN": ROWS,
        "ResNet-8": ROWS,
    }
    tasks = (all_words, tested_words, images)
    for (name, rows), task in zip(rows_by_name.items(), tasks, strict=True):
        side = result["sides"].setdefault(name, [])
        if not side:
            side.append(ann_row(task))
        timing.report(result, text(result), options.out)
        done = {(line.get("code"), line.get("T")) for line in side}
        for row in rows:
            if (row.code, row.steps) not in done:
                side += converted_rows(task, row)
                timing.report(result, text(result), options.out)
    return result


if __name__ == "__main__":
    main()
