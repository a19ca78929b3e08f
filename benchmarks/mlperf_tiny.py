"""What do the reference networks of MLPerf Tiny keep when they are converted?

    python -m benchmarks.mlperf_tiny --folder DIR --data_dir DATA \
        --out benchmarks/results/mlperf_tiny.json

DATA has CIFAR-10, as `experiments.data.load` reads it. DIR has these files of
github.com/mlcommons/tiny (benchmark/training/*/trained_models) and of
github.com/eembc/energyrunner (datasets/kws01):

    kws_ref_model_float32.tflite    DS-CNN for keywords (Banbury et al., 2021)
    pretrainedResnet.tflite         ResNet-8 for images
    kws01/y_labels.csv, *.bin       the accuracy set of keywords: 1000 labels, and MFCCs
                                    [49, 10] of each as int8

Both are float networks with folded BatchNorm; some kernels of the DS-CNN were rounded
to 8 bits by its authors. They are converted by `best` with 256 calibration inputs. Of
keywords there are no others: the first 256 calibrate, without labels, and the other 744
are the test. ResNet-8 is calibrated with training images and tested with 1000 of the
10,000 test images. (Its accuracy set is 200 of these, in an order that TFDS need not
keep.) Costs are of 250 test inputs.
"""

import csv
import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import snnjax
from benchmarks import timing
from experiments import data
from experiments.running import CODES

CALIBRATION = 256
TEST = 1000  # inputs at most
AT_A_TIME = 250  # inputs
# Of the int8 inputs: MFCC = scale (integer - zero point), from kws_ref_model.tflite.
SCALE, ZERO_POINT = 0.5847029, 83
DTYPES = {0: np.float32, 9: np.int8}  # of tflite.TensorType

LABELS = "kws01/y_labels.csv"
DS_CNN, RESNET_8 = "kws_ref_model_float32.tflite", "pretrainedResnet.tflite"

Layer = tuple[np.ndarray, np.ndarray]  # kernel and bias


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


ROWS = Row("radix", 2), Row("radix", 4, bits=8), Row("rate", 8)

# ---------------------------------------------------------------------- the networks


def convolution(layer: Layer, x: Any, stride: int = 1, kernel: str = "OHWI"):
    """With a kernel of axes "OHWI", or "IHWO" for one that is depthwise."""
    weights, bias = layer
    form = {"dimension_numbers": ("NHWC", kernel, "NHWC"), "padding": "SAME"}
    form |= {"feature_group_count": x.shape[-1] if kernel == "IHWO" else 1}
    return jax.lax.conv_general_dilated(x, weights, (stride, stride), **form) + bias


def ds_cnn(params: list[Layer], x: Any):
    """Logits [B, 12] of MFCCs [B, 49, 10, 1]."""
    first, *separable, last = params
    x = jax.nn.relu(convolution(first, x, stride=2))
    for depthwise, pointwise in zip(separable[::2], separable[1::2], strict=True):
        x = jax.nn.relu(convolution(depthwise, x, kernel="IHWO"))
        x = jax.nn.relu(convolution(pointwise, x))
    window = 1, 24, 5, 1  # of 25 rows; the pool of TensorFlow drops the last one
    pooled = jax.lax.reduce_window(x, 0.0, jax.lax.add, window, window, "VALID")
    return pooled[:, 0, 0] / (24 * 5) @ last[0].T + last[1]


def resnet_8(params: list[Layer], x: Any):
    """Logits [B, 10] of images [B, 32, 32, 3] of 0..255."""
    first, a, b, *later, last = params
    x = jax.nn.relu(convolution(first, x))
    x = jax.nn.relu(x + convolution(b, jax.nn.relu(convolution(a, x))))
    for a, b, shortcut in (later[:3], later[3:]):
        branch = convolution(b, jax.nn.relu(convolution(a, x, stride=2)))
        x = jax.nn.relu(convolution(shortcut, x, stride=2) + branch)
    return x.mean((1, 2)) @ last[0].T + last[1]


# ------------------------------------------------------------------------- the files


def weights(file: Path) -> list[Layer]:
    """Kernel and bias of each layer of a .tflite file, in the order of execution."""
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

    operators = map(graph.Operators, range(graph.OperatorsLength()))
    inputs = [operator.InputsAsNumpy() for operator in operators]
    # Only layers with a kernel and a bias read three tensors.
    return [(array(each[1]), array(each[2])) for each in inputs if len(each) == 3]


def keywords(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """MFCCs [1000, 49, 10, 1] and labels of the accuracy set."""
    with open(file, newline="") as lines:
        rows = [(name.strip(), int(label)) for name, _, label in csv.reader(lines)]
    names, labels = zip(*rows, strict=True)
    whole = np.stack([np.fromfile(file.with_name(name), np.int8) for name in names])
    mfccs = SCALE * (whole.astype(np.float32) - ZERO_POINT)
    return mfccs.reshape(-1, 49, 10, 1), np.array(labels)


def tasks(folder: Path, data_dir: str | None, count: int = TEST) -> dict[str, Task]:
    """The networks, with the first `count` test inputs of each."""
    mfccs, of_mfccs = keywords(folder / LABELS)
    test = slice(CALIBRATION, CALIBRATION + count)
    words = mfccs[:CALIBRATION], mfccs[test], of_mfccs[test]
    cifar = data.load("cifar10", data_dir)
    images = cifar.train_images[:CALIBRATION], cifar.test_images[:count]
    pictures = *(x.astype(np.float32) for x in images), cifar.test_labels[:count]
    return {
        "DS-CNN": Task(ds_cnn, weights(folder / DS_CNN), *words, target=90),
        "ResNet-8": Task(resnet_8, weights(folder / RESNET_8), *pictures, target=85),
    }


# ------------------------------------------------------------------------- the table


def accuracy(run: Callable, task: Task) -> float:
    """In percent, of a function of inputs that returns outputs [T, B, classes]."""
    outputs = timing.in_parts(run, task.x, AT_A_TIME, axis=1)
    return 100 * float(snnjax.accuracy(outputs, task.labels)[-1])


def costs(task: Task, snn: snnjax.SNN) -> dict[str, float]:
    """Spikes of a neuron, operations in millions, energy in percent of the ANN's."""
    x = task.x[:AT_A_TIME]
    measures = snnjax.measure(task.fn, snn, x, params=task.params)
    estimates = snnjax.energy(measures)
    return {
        "spikes": float(measures.spikes),
        "synops": float(measures.synaptic_operations) / 1e6,
        "macs": float(measures.macs) / 1e6,
        "energy": 100 * float(estimates.operations.spiking / estimates.operations.ann),
        "memory": 100 * float(estimates.memory.spiking / estimates.memory.ann),
    }


def converted(task: Task, rows: Iterable[Row]) -> Iterator[dict[str, Any]]:
    """The ANN, and the rows of its conversions."""
    fn, params, x = task.fn, task.params, task.calibration
    sites = snnjax.sites(fn, params, x)
    ann = accuracy(jax.jit(lambda x: fn(params, x)[None]), task)
    common = {"inputs": len(task.labels), "target": task.target}
    yield common | {"numbers": "ANN, float", "accuracy": ann}
    model = snnjax.integrate_and_fire(levels=(-1, 1))
    for name, steps, wait, bits in rows:
        options = {"code": CODES[name], "model": model, "steps": steps, "wait": wait}
        snn = snnjax.convert(fn, params, x, **options)
        latency = snnjax.latency(sites, steps=steps, wait=snn.wait)
        row = common | {"code": name, "T": steps, "wait": snn.wait, "latency": latency}
        right = accuracy(functools.partial(jax.jit(snnjax.spiking(fn)), snn), task)
        yield row | {"numbers": "float", "accuracy": right} | costs(task, snn)
        if bits:
            layers = snnjax.deploy.layers(fn, snn, x)
            integers = snnjax.deploy.quantize(layers, x, weight_bits=bits)
            run = functools.partial(snnjax.deploy.outputs, integers)
            right = accuracy(lambda x, run=run: run(x).outputs, task)
            yield row | {"numbers": f"{bits} bits", "accuracy": right}


COLUMNS = {"numbers": "numbers", "code": "code", "T": "T", "latency": "latency"}
COLUMNS |= {"inputs": "inputs", "accuracy": "accuracy %", "target": "target %"}
COLUMNS |= {"spikes": "spikes", "synops": "SynOps M", "energy": "energy, % of ANN"}
COLUMNS |= {"memory": "with memory"}


def text(result: dict[str, Any]) -> str:
    sides = result["sides"].items()
    rows = [[name, *timing.cells(row, COLUMNS)] for name, side in sides for row in side]
    return timing.table(["network", *COLUMNS.values()], rows)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    options = timing.parser(__doc__)
    options.add_argument("--folder", type=Path, required=True, help="of their files")
    options.add_argument("--data_dir", help="of CIFAR-10")
    choice = options.parse_args(arguments)
    timing.check_files(options, choice.folder, DS_CNN, RESNET_8, LABELS)
    count = AT_A_TIME if choice.quick else TEST
    both = tasks(choice.folder, choice.data_dir, count)
    result = timing.new_result(__doc__, ("jax", "numpy"))
    result["sides"] = {name: [*converted(task, ROWS)] for name, task in both.items()}
    timing.report(result, text(result), choice.out)
    return result


if __name__ == "__main__":
    main()
