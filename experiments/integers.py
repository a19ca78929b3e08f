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
    run = snnjax.deploy.outputs
    found = tested(task.config, layers, quantized, run, task.test, accuracy)
    return found._replace(rows=[_int8_ann(task, calibration), *found.rows])


def tested(
    config: Conversion | TrainSNN,
    layers: snnjax.deploy.Layers,
    quantized: Callable[..., snnjax.deploy.Layers],
    run: Callable[[snnjax.deploy.Layers, Any], snnjax.deploy.Trace],
    test: tuple[Any, np.ndarray],
    accuracy: float,
) -> Integers:
    """Floats, of this accuracy, and a row for all bits of the options.

    The mean over the steps of the outputs of ``run`` is the answer.
    """
    chip = None if config.chip is None else CHIPS[config.chip]()
    scale, integers = "channel" if chip is None else "chip", layers
    rows = [Row("float32", None, accuracy, snnjax.deploy.memory(layers))]
    for bits in config.weight_bits or (None,):
        start = time.perf_counter()
        integers = quantized(weight_bits=bits, chip=chip)
        seconds = time.perf_counter() - start
        of_bits, (images, labels) = functools.partial(run, integers), test
        counts = devices.total(functools.partial(_count, of_bits), images, labels, None)
        hits, overflows = counts.tolist()
        # Negative potentials may saturate.
        extremes = of_bits(images[:100]).extremes.values()
        used_bits = 1 + max(int(most) for _, most in extremes).bit_length()
        assert integers.arithmetic is not None
        numbers, right = f"{integers.arithmetic.weight_bits} bits", hits / len(labels)
        memory = snnjax.deploy.memory(integers)
        rows.append(Row(numbers, scale, right, memory, used_bits, overflows, seconds))
    report = None if chip is None else snnjax.deploy.report(integers, chip)
    return Integers(rows, report)


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
    memory = snnjax.deploy.memory(integers)
    memory = memory._replace(potentials=memory.potentials * 8 / 30)  # a byte for each
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
    def text(value: Any, form: str = "") -> str:
        return "" if value is None else format(value, form)

    return {
        "numbers": row.numbers,
        "scale": row.scale or "",
        "accuracy %": f"{100 * row.accuracy:.1f}",
        "weights KiB": f"{row.memory.weights / 1024:.1f}",
        "potentials KiB": f"{row.memory.potentials / 1024:.1f}",
        "bits used": text(row.used_bits),
        "overflows": text(row.overflows),
        "s": text(row.seconds, ".1f"),
    }


def text_of(integers: Integers) -> str:
    """The table in Markdown, and the report."""
    first, *others = map(_cells, integers.rows)
    text = markdown_table(first, [row.values() for row in (first, *others)])
    if integers.report is not None:
        text += f"\n```text\n{integers.report}\n```\n"
    return text


def write_integers(out: Path, integers: Integers, facts: dict) -> None:
    """``integers.json`` and ``integers.md`` in a folder."""
    name = network_name(facts["source"])
    rows = [row._asdict() | {"memory": row.memory._asdict()} for row in integers.rows]
    plain = {key: facts[key] for key in ("command", "versions", "source")}
    data = {**plain, "network": name, "rows": rows}
    write(out / "integers.json", json.dumps(data, indent=1) + "\n")
    write(out / "integers.md", text_of(integers))
