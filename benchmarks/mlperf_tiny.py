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
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import snnjax
from benchmarks import networks, timing
from experiments import data
from experiments.data.sequences import WORDS, mfccs, samples
from experiments.running import CODES

CALIBRATION = 256
TEST, AT_A_TIME = 1000, 250  # test images; inputs of a call, and of costs
DTYPES = {0: np.float32, 9: np.int8}  # of tflite.TensorType
DS_CNN, RESNET_8 = "kws_ref_model_float32.tflite", "pretrainedResnet.tflite"


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


ROWS = Row("radix", 2, bits=8), Row("radix", 4, bits=8), Row("rate", 8)


def weights(file: Path) -> list[tuple[np.ndarray, np.ndarray]]:
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

    count = graph.OperatorsLength()
    inputs = [graph.Operators(index).InputsAsNumpy() for index in range(count)]
    # Only layers with a kernel and a bias read three tensors.
    return [(array(each[1]), array(each[2])) for each in inputs if len(each) == 3]


def convolution(layer: tuple, x: Any, stride: int = 1, kernel: str = "OHWI"):
    """With a kernel of axes "OHWI", or "IHWO" for one that is depthwise."""
    weights, bias = layer
    weights = weights.transpose([kernel.index(axis) for axis in "HWIO"])
    return networks.convolution(x, weights, stride) + bias


def ds_cnn(params: list, x: Any):
    """Logits [B, 12] of MFCCs [B, 49, 10, 1]."""
    first, *separable, last = params
    x = jax.nn.relu(convolution(first, x, stride=2))
    for depthwise, pointwise in zip(separable[::2], separable[1::2], strict=True):
        x = jax.nn.relu(convolution(depthwise, x, kernel="IHWO"))
        x = jax.nn.relu(convolution(pointwise, x))
    window = 1, 24, 5, 1  # of 25 rows; the pool of TensorFlow drops the last one
    pooled = jax.lax.reduce_window(x, 0.0, jax.lax.add, window, window, "VALID")
    return pooled[:, 0, 0] / (24 * 5) @ last[0].T + last[1]


def resnet_8(params: list, x: Any):
    """Logits [B, 10] of images [B, 32, 32, 3] of 0..255."""
    first, a, b, *later, last = params
    x = jax.nn.relu(convolution(first, x))
    x = jax.nn.relu(x + convolution(b, jax.nn.relu(convolution(a, x))))
    for a, b, shortcut in (later[:3], later[3:]):
        branch = convolution(b, jax.nn.relu(convolution(a, x, stride=2)))
        x = jax.nn.relu(convolution(shortcut, x, stride=2) + branch)
    return x.mean((1, 2)) @ last[0].T + last[1]


def keywords(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """MFCCs [B, 49, 10, 1] and labels of the recordings folder/WORD/*.wav."""
    if others := {path.name for path in folder.iterdir() if path.is_dir()} - {*WORDS}:
        found = f"folders {', '.join(sorted(others))}; allowed: {', '.join(WORDS)}"
        raise ValueError(f"{found}; other words belong in _unknown_")
    files = [file for word in WORDS for file in sorted((folder / word).glob("*.wav"))]
    if len(files) <= CALIBRATION:
        found = f"{len(files)} recordings WORD/*.wav; allowed: more than {CALIBRATION}"
        raise ValueError(f"{found}; --help says where 4890 are")
    x = np.array([mfccs(timing.read(file, samples)) for file in files], np.float32)
    return x[..., None], np.array([WORDS.index(file.parent.name) for file in files])


def tasks(files: Any, count: int | None) -> dict[str, tuple[Task, tuple[Row, ...]]]:
    """The networks and their rows, with the first `count` test inputs of each."""
    of_words, of_images = (
        timing.read(files.folder / file, weights) for file in (DS_CNN, RESNET_8)
    )
    cifar = data.load("cifar10", files.data_dir)
    x, labels = timing.read(files.recordings, keywords)
    order = np.random.default_rng(0).permutation(len(labels))
    some, rest = order[:CALIBRATION], order[CALIBRATION:][:count]
    every = order[:count]
    whole = Task(ds_cnn, of_words, x[some], x[every], labels[every], target=90)
    tested = whole._replace(x=x[rest], labels=labels[rest])
    images = cifar.train_images[:CALIBRATION], cifar.test_images[:TEST][:count]
    pictures = *(x.astype(np.float32) for x in images), cifar.test_labels[:TEST][:count]
    resnet = Task(resnet_8, of_images, *pictures, target=85)
    sides = {"DS-CNN, all": (whole, ()), "DS-CNN": (tested, ROWS)}
    return sides | {"ResNet-8": (resnet, ROWS)}


def accuracy(run: Callable, task: Task) -> float:
    """In percent, of a function of inputs that returns outputs [T, B, classes]."""
    outputs = timing.in_parts(run, task.x, AT_A_TIME, axis=1)
    return 100 * float(snnjax.accuracy(outputs, task.labels)[-1])


def converted(task: Task, rows: Iterable[Row]) -> Iterator[dict[str, Any]]:
    """The ANN, and the rows of its conversions."""
    fn, params, x = task.fn, task.params, task.calibration
    ann = accuracy(jax.jit(lambda x: fn(params, x)[None]), task)
    common = {"inputs": len(task.labels), "target": task.target}
    yield common | {"numbers": "ANN, float", "accuracy": ann}
    model = snnjax.integrate_and_fire(levels=(-1, 1))
    for name, steps, wait, bits in rows:
        options = {"code": CODES[name], "model": model, "steps": steps, "wait": wait}
        snn = snnjax.convert(fn, params, x, **options)
        costs = networks.costs(fn, params, snn, task.x[:AT_A_TIME])
        row = common | {"code": name, "T": steps}
        row |= {"wait": snn.wait, "latency": costs["latency"]}
        right = accuracy(functools.partial(jax.jit(snnjax.spiking(fn)), snn), task)
        costs["energy"] = costs.pop("operations")
        yield row | {"numbers": "float", "accuracy": right} | costs
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
    options.add_argument("--folder", type=Path, required=True, help="of the networks")
    options.add_argument("--recordings", type=Path, required=True, help="WORDS")
    options.add_argument("--data_dir", help="of CIFAR-10")
    choice = options.parse_args(arguments)
    timing.check_files(options, choice.folder, DS_CNN, RESNET_8)
    result = timing.new_result(__doc__, ("jax", "numpy"), quick=choice.quick)
    timing.continued(result, choice.out, "quick")
    try:
        sides = tasks(choice, AT_A_TIME if choice.quick else None)
    except (ModuleNotFoundError, data.MissingDataError) as reason:
        options.error(f"{reason}")
    for name, (task, rows) in sides.items():
        if not (side := result["sides"].setdefault(name, [])):
            side += converted(task, ())  # the ANN
        timing.report(result, text(result), choice.out)
        there = {(row.get("code"), row.get("T")) for row in side}
        for row in [row for row in rows if row[:2] not in there]:
            side += [*converted(task, [row])][1:]
            timing.report(result, text(result), choice.out)  # a row takes minutes
    return result


if __name__ == "__main__":
    main()
