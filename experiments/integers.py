"""The SNN of a conversion in whole numbers: accuracy, memory, and a chip's report.

Called by ``python -m experiments.convert --weight_bits 8 4 --chip speck``, and by
``train_snn`` for what was trained directly. All test images run through
`snnjax.deploy`, which computes what a chip computes and counts overflows.
"""

import functools
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import snnjax
from experiments.conversions import Experiment, count_hits, counter
from experiments.report import markdown_table, network_name
from experiments.running import CHIPS, Conversion, TrainSNN, devices, write


class Row(NamedTuple):
    """What a network of whole numbers does on the test images."""

    numbers: str  # floats, the bits of a weight, or the ANN's whole numbers
    # Of `snnjax.deploy.quantize`, "chip" for that of the chip; None: floats.
    scale: str | None
    accuracy: float  # 0..1
    memory: snnjax.deploy.Memory  # an ANN has activations in place of potentials
    used_bits: int | None = None  # of a potential, by the highest that 100 images gave
    overflows: int | None = None  # of potentials, on all test images
    seconds: float | None = None  # of the quantization


class Integers(NamedTuple):
    """All rows, and the report of a chip, if there is one, on the last of them."""

    rows: Sequence[Row]  # the ANN in whole numbers first, then floats
    report: snnjax.deploy.Report | None


def in_whole_numbers(
    task: Experiment, snn: snnjax.SNN, calibration: jax.Array, accuracy: float
) -> Integers:
    """Quantize and run an SNN, of this accuracy, with all bits of the options.

    Raises:
        snnjax.ConversionError: the SNN is no network of layers, or the chip does not
            run it.
    """
    layers = snnjax.deploy.layers(task.fn, snn, calibration)
    quantized = functools.partial(snnjax.deploy.quantize, layers, calibration)
    integers = tested(
        task.config,
        layers,
        quantized,
        run=snnjax.deploy.outputs,
        test=(task.test.images, task.test.labels),
        accuracy=accuracy,
    )
    return integers._replace(rows=[_int8_ann(task, calibration), *integers.rows])


def tested(
    config: Conversion | TrainSNN,
    layers: snnjax.deploy.Layers,
    quantized: Callable[..., snnjax.deploy.Layers],
    run: Callable[[snnjax.deploy.Layers, Any], snnjax.deploy.Trace],
    test: tuple[Any, np.ndarray],
    accuracy: float,
) -> Integers:
    """Floats, of this accuracy, and a row for each number of bits of the options.

    Args:
        config: its `weight_bits` and `chip` are read.
        layers: the network in floats.
        quantized: (weight_bits, chip) -> the layers in whole numbers.
        run: (layers, images) -> trace; the mean over the steps of its outputs is the
            answer.
        test: images and labels.
        accuracy: of the floats.
    """
    chip, scale, report = None, "channel", None
    if config.chip is not None:
        chip, scale = CHIPS[config.chip](), "chip"
    integers = layers
    rows = [Row("float32", None, accuracy, snnjax.deploy.memory(layers))]
    for bits in config.weight_bits or (None,):
        start = time.perf_counter()
        integers = quantized(weight_bits=bits, chip=chip)
        seconds = time.perf_counter() - start
        row = _integer_row(integers, run, test)
        rows.append(row._replace(scale=scale, seconds=seconds))
    if chip is not None:
        report = snnjax.deploy.report(integers, chip)
    return Integers(rows, report)


def _integer_row(
    integers: snnjax.deploy.Layers,
    run: Callable[[snnjax.deploy.Layers, Any], snnjax.deploy.Trace],
    test: tuple[Any, np.ndarray],
) -> Row:
    """The row of layers in whole numbers, without its scale and seconds."""
    images, labels = test
    run_images = functools.partial(run, integers)
    count = functools.partial(_count, run_images)
    hits, overflows = devices.total(count, images, labels, None).tolist()
    # (Lowest, highest) potential of each population. Negative ones may saturate.
    extremes = run_images(images[:100]).extremes.values()
    highest = max(int(high) for _, high in extremes)
    assert integers.arithmetic is not None
    return Row(
        numbers=f"{integers.arithmetic.weight_bits} bits",
        scale=None,
        accuracy=hits / len(labels),
        memory=snnjax.deploy.memory(integers),
        used_bits=1 + highest.bit_length(),
        overflows=overflows,
    )


def _int8_ann(task: Experiment, calibration: jax.Array) -> Row:
    """The ANN with weights and activations of 8 bits.

    It is an SNN of one step whose spikes have 255 sizes, since the closed form of a
    neuron at T = 1 is a quantized ReLU.
    """
    snn = snnjax.convert(
        task.fn,
        task.params,
        calibration,
        steps=1,
        model=snnjax.integrate_and_fire(levels=(0, 255)),
        recipe=snnjax.bias_shift("channel"),
    )
    layers = snnjax.deploy.layers(task.fn, snn, calibration)
    integers = snnjax.deploy.quantize(layers, calibration, weight_bits=8, state_bits=30)
    # As floats, since sums beyond 2^24 take int32, for which CPUs have no fast
    # convolution.
    fn, snn = snnjax.deploy.as_function(integers)
    images = np.asarray(snnjax.deploy.on_grid(integers, task.test.images))
    hits = count_hits(counter(fn), snn, task.test._replace(images=images), None)[-1]
    # An activation takes a byte, where a potential takes 30 bits.
    memory = snnjax.deploy.memory(integers)
    memory = memory._replace(potentials=memory.potentials * 8 / 30)
    return Row("ANN, 8 bits", "channel", hits / len(images), memory)


def _count(
    run: Callable[[Any], snnjax.deploy.Trace], x: jax.Array, labels: jax.Array
) -> np.ndarray:
    """Right answers, and overflows; the copies that fill a batch count as well."""
    trace = run(x)
    answers = trace.outputs.mean(0).argmax(-1)
    overflows = sum(trace.overflows.values(), jnp.zeros((), jnp.int32))
    return np.array([int((answers == labels).sum()), int(overflows)])


def _cells(row: Row) -> dict[str, str]:
    """Title of a column -> cell, which is empty where the row has no number."""
    used_bits = "" if row.used_bits is None else str(row.used_bits)
    overflows = "" if row.overflows is None else str(row.overflows)
    seconds = "" if row.seconds is None else f"{row.seconds:.1f}"
    return {
        "numbers": row.numbers,
        "scale": row.scale or "",
        "accuracy %": f"{100 * row.accuracy:.1f}",
        "weights KiB": f"{row.memory.weights / 1024:.1f}",
        "potentials KiB": f"{row.memory.potentials / 1024:.1f}",
        "bits used": used_bits,
        "overflows": overflows,
        "s": seconds,
    }


def text_of(integers: Integers) -> str:
    """The table in Markdown, and the report."""
    cells = [_cells(row) for row in integers.rows]
    text = markdown_table(cells[0], [row.values() for row in cells])
    if integers.report is not None:
        text += f"\n```text\n{integers.report}\n```\n"
    return text


def write_integers(out: Path, integers: Integers, facts: dict) -> None:
    """``integers.json`` and ``integers.md`` in a folder."""
    name = network_name(facts["source"])
    rows = [row._asdict() | {"memory": row.memory._asdict()} for row in integers.rows]
    data = {
        "command": facts["command"],
        "versions": facts["versions"],
        "source": facts["source"],
        "network": name,
        "rows": rows,
    }
    write(out / "integers.json", json.dumps(data, indent=1) + "\n")
    write(out / "integers.md", text_of(integers))
