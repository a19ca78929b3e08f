"""What is left of a network on each chip, and for how many spikes?

    python -m benchmarks.on_chips --data_dir DATA --folder NIR/paper/02_cnn \
        --recordings nmnist.npz --out benchmarks/results/on_chips.json

The ResNet-20 of experiments/sources on the first 1000 test images of CIFAR-10, and the
CNN of the NIR paper on thirds of recordings of N-MNIST, 1000 of them or all
(`benchmarks.nmnist` says which files), if its folder is given. ``convert(..., chip=)``
makes neurons that a chip has, and `quantize` rounds to its bits of weights and
potentials; biases of more bits than a chip has are left. A network that is too large
for a chip is computed all the same, and the last column says what the chip lacks. The
first two rows of a network need neurons that change from step to step. A run continues
with the rows that the file lacks.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import snnjax
from benchmarks import networks, nmnist, timing
from benchmarks.mlperf_tiny import Task
from experiments.data import MissingDataError, load, normalize, normalized_as
from experiments.models import load_source, source_function
from snnjax import deploy

SOURCE = "experiments/sources/resnet20.safetensors"
AT_A_TIME = 25  # images, since all steps of all layers are kept
MEASURED = 100  # images whose spikes are counted
DIGITS = deploy.Chip("thresholds by step", programmable="neurons")
RADIX = snnjax.codes.radix()
# (chip, T, options of `snnjax.convert`)
ROWS = [
    (DIGITS, 4, {"code": RADIX}),
    (DIGITS, 4, {"code": RADIX, "model": snnjax.integrate_and_fire()}),
    (deploy.speck(), 8, {}),
    (deploy.speck(), 16, {}),
    (deploy.spinnaker2(), 16, {}),
    (deploy.loihi2(), 16, {}),
    (deploy.akida1(), 1, {}),
]
# What `quantize` takes of a profile. Without sizes, it runs a network of any size.
NUMBERS = "weight_bits state_bits overflow scale thresholds".split()


def resnet20(data_dir: str | None, count: int) -> Task:
    """ResNet-20 for CIFAR-10."""
    source = load_source(SOURCE)
    data = normalized_as(load("cifar10", data_dir), source.card)
    return Task(
        source_function(source),
        source.variables,
        normalize(data, data.train_images[:256]),
        np.asarray(normalize(data, data.test_images[:count])),
        data.test_labels[:count],
    )


def cnn(folder: Path, recordings: str, count: int) -> Task:
    """The CNN for N-MNIST, which reads the events of a third of a recording."""
    network = nmnist.network_of(folder, recordings, -(-count // 3))
    labels = np.repeat(network.labels, 3)[:count]
    params, x = network.snn.params, network.thirds[:count]
    return Task(network.fn, params, jnp.asarray(network.calibration), x, labels)


def row_of(task: Task, chip: deploy.Chip, steps: int, options: dict) -> dict:
    """A conversion for a chip, in floats and in its whole numbers."""
    fn, params, images = task.fn, task.params, task.calibration
    snn = snnjax.convert(fn, params, images, steps=steps, chip=chip, **options)
    numbers = {name: getattr(chip, name) for name in NUMBERS}
    numbers = dataclasses.replace(DIGITS, name=chip.name, **numbers)
    layers = deploy.layers(fn, snn, images)
    integers = deploy.quantize(layers, images, chip=numbers)
    simulate = functools.partial(jax.jit(snnjax.spiking(fn)), snn)

    def accuracy(outputs: Callable) -> float:
        answers = timing.in_parts(lambda x: np.mean(outputs(x), 0), task.x, AT_A_TIME)
        return timing.percent(answers, task.labels)

    rows = deploy.report(integers, chip).rows
    lacks = {f.field for r in rows for f in r.findings if f.verdict == "no"}
    return networks.costs(fn, params, snn, task.x[:MEASURED]) | {
        "code": repr(snn.code),
        "levels": str(snn.model.levels),
        "floats": accuracy(simulate),
        "whole": accuracy(lambda x: deploy.outputs(integers, x).outputs),
        "lacks": ", ".join(sorted(lacks)),
    }


COLUMNS = {name: name for name in ("code", "levels", "wait", "latency")}
COLUMNS |= {"floats": "floats %", "whole": "in its bits %"}
COLUMNS |= {"spikes": "spikes per neuron", "lacks": "what the chip lacks"}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    options = timing.parser(__doc__)
    options.add_argument("--data_dir", help="of CIFAR-10")
    options.add_argument("--folder", type=Path, help="of the CNN")
    options.add_argument("--recordings", help="a prepared .npz file")
    choice = options.parse_args(arguments)
    if (choice.folder is None) != (choice.recordings is None):
        options.error("the CNN needs --folder and --recordings; --help says what")
    if choice.folder is not None:
        timing.check_files(options, choice.folder, nmnist.FILE)
    count = 10 if choice.quick else 1000
    try:
        tasks = {"ResNet-20": resnet20(choice.data_dir, count)}
        if choice.folder is not None:
            tasks["CNN"] = cnn(choice.folder, choice.recordings, count)
    except (MissingDataError, OSError) as reason:
        options.error(str(reason))
    images = {network: len(task.x) for network, task in tasks.items()}
    result = timing.new_result(__doc__, ("jax", "numpy", "nir"), images=images)
    sides = timing.continued(result, choice.out, "images")["sides"]
    for network, task in tasks.items():
        right = timing.percent(task.fn(task.params, task.x), task.labels)
        sides[f"{network}, the ANN"] = {"floats": right}
        for chip, steps, given in ROWS[-1:] if choice.quick else ROWS:
            levels = ", (0, 1)" if "model" in given else ""
            side = f"{network}, {chip.name}{levels}, T = {steps}"
            if side not in sides:
                sides[side] = row_of(task, chip, steps, given)
            text = timing.table_of("network and chip", COLUMNS, sides)
            timing.report(result, text, choice.out)
    return result


if __name__ == "__main__":
    main()
