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
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

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
BATCH = 25  # images, since all steps of all layers are kept
MEASURED = 100  # images whose spikes are counted
DIGITS = deploy.Chip("thresholds by step", programmable="neurons")


class Row(NamedTuple):
    """A conversion for a chip."""

    chip: deploy.Chip
    steps: int
    code: snnjax.codes.Code | None = None  # None: that of the chip
    model: Any = None

    @property
    def name(self) -> str:
        levels = ", (0, 1)" if self.model is not None else ""
        return f"{self.chip.name}{levels}, T = {self.steps}"


ROWS = (
    Row(DIGITS, 4, snnjax.codes.radix()),
    Row(DIGITS, 4, snnjax.codes.radix(), snnjax.integrate_and_fire()),
    Row(deploy.speck(), 8),
    Row(deploy.speck(), 16),
    Row(deploy.spinnaker2(), 16),
    Row(deploy.loihi2(), 16),
    Row(deploy.akida1(), 1),
)


def resnet20(data_dir: str | None, count: int) -> Task:
    """ResNet-20 for CIFAR-10."""
    source = load_source(SOURCE)
    data = normalized_as(load("cifar10", data_dir), source.card)
    return Task(
        fn=source_function(source),
        params=source.variables,
        calibration=normalize(data, data.train_images[:256]),
        x=np.asarray(normalize(data, data.test_images[:count])),
        labels=data.test_labels[:count],
    )


def cnn(folder: Path, recordings: str, count: int) -> Task:
    """The CNN for N-MNIST, which reads the events of a third of a recording."""
    network = nmnist.read_network(folder, recordings, math.ceil(count / 3))
    return Task(
        fn=network.fn,
        params=network.snn.params,
        calibration=jnp.asarray(network.calibration),
        x=network.thirds[:count],
        labels=np.repeat(network.labels, 3)[:count],
    )


def table_row(task: Task, row: Row) -> dict[str, Any]:
    """A conversion for a chip, in floats and in its whole numbers."""
    options = {}
    if row.code is not None:
        options["code"] = row.code
    if row.model is not None:
        options["model"] = row.model
    snn = snnjax.convert(
        task.fn,
        task.params,
        task.calibration,
        steps=row.steps,
        chip=row.chip,
        **options,
    )
    # Only what `quantize` takes of a profile: without sizes of its memories, a network
    # of any size runs.
    numbers = dataclasses.replace(
        DIGITS,
        name=row.chip.name,
        weight_bits=row.chip.weight_bits,
        state_bits=row.chip.state_bits,
        overflow=row.chip.overflow,
        scale=row.chip.scale,
        thresholds=row.chip.thresholds,
    )
    layers = deploy.layers(task.fn, snn, task.calibration)
    integers = deploy.quantize(layers, task.calibration, chip=numbers)
    simulate = functools.partial(jax.jit(snnjax.spiking(task.fn)), snn)

    def accuracy(run: Callable) -> float:
        """Of a function of images whose mean over T is the answer."""
        answers = timing.in_parts(lambda x: np.mean(run(x), 0), task.x, BATCH)
        return timing.percent(answers, task.labels)

    lacks = set()
    for part in deploy.report(integers, row.chip).rows:
        lacks |= {f.field for f in part.findings if f.verdict == "no"}
    return {
        **networks.costs(task.fn, task.params, snn, task.x[:MEASURED]),
        "code": repr(snn.code),
        "levels": str(snn.model.levels),
        "floats": accuracy(simulate),
        "whole": accuracy(lambda x: deploy.outputs(integers, x).outputs),
        "lacks": ", ".join(sorted(lacks)),
    }


COLUMNS = {
    "code": "code",
    "levels": "levels",
    "wait": "wait",
    "latency": "latency",
    "floats": "floats %",
    "whole": "in its bits %",
    "spikes": "spikes per neuron",
    "lacks": "what the chip lacks",
}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """The command. It reports after each row, because a row takes minutes."""
    parser = timing.parser(__doc__)
    parser.add_argument("--data_dir", help="of CIFAR-10")
    parser.add_argument("--folder", type=Path, help="of the CNN")
    parser.add_argument("--recordings", help="a prepared .npz file")
    options = parser.parse_args(arguments)
    if (options.folder is None) != (options.recordings is None):
        parser.error("the CNN needs --folder and --recordings; --help says what")
    if options.folder is not None:
        timing.check_files(parser, options.folder, nmnist.FILE)
    count = 10 if options.quick else 1000
    try:
        tasks = {"ResNet-20": resnet20(options.data_dir, count)}
        if options.folder is not None:
            tasks["CNN"] = cnn(options.folder, options.recordings, count)
    except (MissingDataError, OSError) as reason:
        parser.error(str(reason))
    images = {network: len(task.x) for network, task in tasks.items()}
    result = timing.new_result(__doc__, ("jax", "numpy", "nir"), images=images)
    sides = timing.continued(result, options.out, "images")["sides"]
    rows = ROWS[-1:] if options.quick else ROWS
    for network, task in tasks.items():
        ann_accuracy = timing.percent(task.fn(task.params, task.x), task.labels)
        sides[f"{network}, the ANN"] = {"floats": ann_accuracy}
        for row in rows:
            name = f"{network}, {row.name}"
            if name not in sides:
                sides[name] = table_row(task, row)
            text = timing.table_of("network and chip", COLUMNS, sides)
            timing.report(result, text, options.out)
    return result


if __name__ == "__main__":
    main()
