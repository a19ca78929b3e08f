"""Does an open RTL compute the spikes of our whole numbers? Compared one by one.

    python -m benchmarks.silicon_rtl --rtl CATALYST/rtl \
        --out benchmarks/results/silicon_rtl.json

Networks for the digits are trained, converted, quantized and placed on a core of
Catalyst N1 by ``catalyst.py``. ``silicon_rtl.v`` is the host under Icarus Verilog. All
spikes, those of the encoder too, and the sums at the outputs are compared with
`snnjax.deploy.run`. A run continues with the rows that the file lacks.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from flax.training.train_state import TrainState

import snnjax
from benchmarks import catalyst, timing
from benchmarks.catalyst import Program, Recording
from benchmarks.chip_programs import Misfit, compared, run_in_bits
from benchmarks.networks import Params, convolution, neurons
from experiments import data
from snnjax.codes import Code, radix, rate
from snnjax.deploy import Layers

COMMIT = "fbfd2e538159133c634d4051970246254d054c37"
FILES = {  # of its rtl/ -> what `git hash-object` says of them
    "scalable_core_v2.v": "fd81ee2a0e28888b668cdd7f60fc6da596b9637f",
    "spike_fifo.v": "6071025330e472c292a13ea0e89358b900d81dd7",
    "sram.v": "666cb80b6e9fb1e6d5265e23bd1077d1711b77dd",
}


def network(params: Params, x: jax.Array) -> jax.Array:
    """A perceptron of flat images, or a CNN: as `SHAPES` has their weights."""
    with jax.named_scope("input"):
        x = jax.nn.relu(x)
    if x.ndim == 4:
        current = convolution(x, params["hidden"], 2)
    else:
        current = x @ params["hidden"]
    x = neurons(params, "hidden", current)
    return x.reshape(len(x), -1) @ params["readout"] + params["readout_bias"]


SHAPES = {
    "perceptron": {"hidden": (64, 32), "readout": (32, 10)},
    "CNN": {"hidden": (3, 3, 1, 4), "readout": (64, 10)},
}


def images_for(kind: str, images: np.ndarray) -> np.ndarray:
    """From 0 to 1; flat for the perceptron."""
    x = np.float32(images / 255)
    return x if kind == "CNN" else x.reshape(len(x), -1)


@functools.cache
def trained(kind: str, epochs: int) -> Params:
    """Its weights after training on all training images at once."""
    digits = data.load("digits")
    rng = np.random.default_rng(0)
    x = images_for(kind, digits.train_images)
    params = {}
    for name, shape in SHAPES[kind].items():
        scale = np.prod(shape[:-1]) ** -0.5
        params[name] = np.float32(rng.normal(0, scale, shape))
        params[f"{name}_bias"] = np.zeros(shape[-1:], np.float32)

    def loss(params):
        entropy = optax.losses.softmax_cross_entropy_with_integer_labels
        return entropy(network(params, x), digits.train_labels).mean()

    def step(state, _):
        return state.apply_gradients(grads=jax.grad(loss)(state.params)), None

    @jax.jit
    def train(state):
        state, _ = jax.lax.scan(step, state, length=epochs)
        return state.params

    return train(
        TrainState.create(apply_fn=network, params=params, tx=optax.adam(0.01))
    )


class Conversion(NamedTuple):
    """How a network becomes whole numbers."""

    code: Code
    levels: tuple[int, int]
    reset: str
    steps: int
    wait: int
    weight_bits: int
    input_bits: int

    def layers(self, kind: str, epochs: int) -> Layers:
        """Of whole numbers, with thresholds of the largest activation.

        Other recipes give the encoder a bias or thresholds by which its numbers share
        no divisor, and then a payload does not hold what is left of its potential.
        """
        params = trained(kind, epochs)
        x = images_for(kind, data.load("digits").train_images[:256])
        snn = snnjax.convert(
            network,
            params,
            x,
            steps=self.steps,
            wait=self.wait,
            code=self.code,
            model=snnjax.integrate_and_fire(levels=self.levels),
            recipe=snnjax.max_activation(),
        )
        model = dataclasses.replace(snn.model, reset=self.reset)
        snn = dataclasses.replace(snn, model=model)
        return snnjax.deploy.quantize(
            snnjax.deploy.layers(network, snn, x),
            x,
            weight_bits=self.weight_bits,
            input_bits=self.input_bits,
            state_bits=16,
            overflow="wrap",
        )


RATE_TO_ZERO = Conversion(
    rate(),
    levels=(0, 1),
    reset="zero",
    steps=16,
    wait=0,
    weight_bits=8,
    input_bits=6,
)
RATE = RATE_TO_ZERO._replace(reset="subtract", weight_bits=5, input_bits=5)
RADIX = Conversion(
    radix(),
    levels=(0, 1),
    reset="subtract",
    steps=4,
    wait=3,
    weight_bits=2,
    input_bits=5,
)
NETWORKS = {
    "perceptron: rate with reset to zero": RATE_TO_ZERO,
    "perceptron: rate": RATE,
    "perceptron: radix": RADIX,
    "perceptron: signed radix": RADIX._replace(levels=(-1, 1), wait=1),
    "CNN: rate with reset to zero": RATE_TO_ZERO,
    "CNN: radix": RADIX._replace(weight_bits=3),
}


def check_tools(rtl: Path) -> None:
    """Raise unless the RTL is that of `COMMIT` and Icarus Verilog is there."""
    for name, expected_hash in FILES.items():
        content = (rtl / name).read_bytes()
        blob = b"blob %d\0" % len(content) + content
        if hashlib.sha1(blob).hexdigest() != expected_hash:
            raise Misfit(
                f"{rtl / name} is of another version; git checkout {COMMIT[:7]}"
            )
    for tool in ("iverilog", "vvp"):
        if shutil.which(tool) is None:
            raise Misfit(f"{tool} is missing; apt-get install iverilog")


def compiled(rtl: Path, program: Program, folder: Path) -> Path:
    """The RTL and the driver, for a core with as many neurons as are used.

    A larger one computes the same and takes longer. SIMULATION fills its memories,
    which nothing else does.
    """
    core = folder / "core"
    neuron_bits = max(program.neurons - 1, 31).bit_length()
    synapse_bits = max(program.synapses - 1, 31).bit_length()
    _run(
        "iverilog",
        "-g2012",
        "-DSIMULATION",
        "-s",
        "driver",
        "-o",
        str(core),
        f"-Pdriver.NEURONS={program.neurons}",
        f"-Pdriver.BITS={neuron_bits}",
        f"-Pdriver.POOL_BITS={synapse_bits}",
        str(Path(__file__).with_suffix(".v")),
        *(str(rtl / name) for name in FILES),
    )
    return core


def simulated(program: Program, x: np.ndarray, core: Path, folder: Path) -> Recording:
    """An image in a core of its own, in which nothing is left of others."""
    with tempfile.TemporaryDirectory(dir=folder) as image_folder:
        commands = Path(image_folder, "commands")
        events = Path(image_folder, "events")
        commands.write_text(program.commands(x))
        _run("vvp", str(core), f"+commands={commands}", f"+events={events}")
        return catalyst.recorded(program, events.read_text())


def _run(*command: str) -> None:
    """Run a program; Misfit with its first line if it fails."""
    process = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode:
        messages = (process.stderr or process.stdout).strip()
        raise Misfit(f"{command[0]} failed: {messages.partition(chr(10))[0]}")


def whole_x(layers: Layers, x: np.ndarray) -> np.ndarray:
    """As the core reads it, channels first, [B, elements]."""
    whole = np.asarray(snnjax.deploy.on_grid(layers, x)) / float(layers.input.unit)
    return np.moveaxis(np.rint(whole).astype(int), -1, 1).reshape(len(x), -1)


def expected(layers: Layers, program: Program, x: np.ndarray) -> list[Recording]:
    """What snnjax computes for each image.

    Raises:
        Misfit: potentials that the core, or so many bits, may not hold.
    """
    trace = run_in_bits(layers, x)
    m_1 = snnjax.deploy.timing(layers).multiples[0]  # extremes are v / m_n
    for name, extremes in trace.extremes.items():
        largest = m_1 * max(abs(int(extreme)) for extreme in extremes)
        _check_potentials(name, largest, program.groups[name].room)
    sums = {}
    for node in layers.outputs:
        values = trace.outputs
        if isinstance(values, dict):
            values = values[node.name]
        units = np.asarray(values, float) / (layers.potential_unit * node.unit)
        totals = np.rint(units.cumsum(0)).astype(int)  # [T, B, N]
        _check_potentials(node.name, np.abs(totals).max(), catalyst.REST - 1)
        sums[node.name] = totals[-1]
    recordings = []
    for image in range(len(x)):
        recording = Recording(
            spikes={n: np.asarray(s)[:, image] for n, s in trace.spikes.items()},
            sums={name: total[image] for name, total in sums.items()},
            extra=0,
            largest_step=0,
        )
        recordings.append(recording)
    return recordings


def _check_potentials(name: str, largest: int, room: int) -> None:
    """Raise if a potential may not fit into the neurons of a population."""
    if largest > room:
        raise Misfit(
            f"potentials of {name!r} may reach {largest}, and the core has room for "
            f"{room}; allowed: fewer weight_bits or steps"
        )


def number_counts(expected: Recording, recording: Recording) -> Counter[str]:
    """How many numbers are compared and differ."""
    counts = compared(expected.spikes, recording.spikes)
    counts["mismatches"] += recording.extra
    for name, sums in expected.sums.items():
        counts["sums"] += sums.size
        counts["equal"] += np.count_nonzero(sums == recording.sums[name])
    return counts


def table_row(name: str, images: int, epochs: int, rtl: Path) -> dict[str, Any]:
    """A network on the core, image by image."""
    kind = name.partition(":")[0]
    layers = NETWORKS[name].layers(kind, epochs)
    x = images_for(kind, data.load("digits").test_images[:images])
    program = catalyst.program_of(layers)
    expected_recordings = expected(layers, program, x)
    with (
        tempfile.TemporaryDirectory() as folder,
        concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        core = compiled(rtl, program, Path(folder))
        start = os.times().children_user  # of a CPU: other work changes it little
        run = functools.partial(
            simulated,
            program,
            core=core,
            folder=Path(folder),
        )
        recordings = list(pool.map(run, whole_x(layers, x)))
        seconds = (os.times().children_user - start) / len(x)
    counts: Counter[str] = Counter()
    for pair in zip(expected_recordings, recordings, strict=True):
        counts += number_counts(*pair)
    row = {
        "T": layers.steps,
        "bits": layers.arithmetic.weight_bits,
        "neurons": program.neurons,
        "synapses": program.synapses,
        "most": max(recording.largest_step for recording in recordings),
        "seconds": seconds,
    }
    for column in ("spikes", "not_0", "mismatches", "sums", "equal"):
        row[column] = int(counts[column])
    return row


COLUMNS = {
    "T": "T",
    "bits": "bits",
    "neurons": "neurons",
    "synapses": "synapses",
    "most": "most spikes in a step",
    "spikes": "spikes compared",
    "not_0": "not 0",
    "mismatches": "mismatches",
    "sums": "sums compared",
    "equal": "equal",
    "seconds": "CPU s per image",
}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """The command: a result with a row for each network, which is printed too."""
    parser = timing.parser(__doc__)
    parser.add_argument(
        "--rtl",
        type=Path,
        required=True,
        help="rtl/ of catalyst-n1",
    )
    parser.add_argument("--images", type=timing.count, default=20)
    timing.only_option(parser)
    options = parser.parse_args(arguments)
    timing.check_only(parser, options.only, NETWORKS)
    timing.check_files(parser, options.rtl, *FILES)
    images = 1 if options.quick else options.images
    epochs = 20 if options.quick else 300
    facts = {"sizes": {"images": images}, "rtl": COMMIT}
    result = timing.new_result(__doc__, ("jax", "numpy"), **facts)
    sides = timing.continued(result, options.out, *facts)["sides"]
    try:
        check_tools(options.rtl)
        for name in NETWORKS:
            if name not in sides and timing.is_selected(name, options.only):
                print(f"running {name}", file=sys.stderr, flush=True)
                sides[name] = table_row(name, images, epochs, options.rtl)
    except Misfit as error:
        parser.error(str(error))
    for name, row in sides.items():
        wrong = row["mismatches"] + row["sums"] - row["equal"]
        goal = timing.target(f"numbers that differ, {name}", wrong, at_most=0)
        result["targets"].append(goal)
    text = timing.table_of("network", COLUMNS, sides)
    return timing.report(result, text, options.out)


if __name__ == "__main__":
    main()
