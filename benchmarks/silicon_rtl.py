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


def function(p: Params, x: jax.Array) -> jax.Array:
    """A perceptron of flat images, or a CNN: as `SHAPES` has their weights."""
    with jax.named_scope("input"):
        x = jax.nn.relu(x)
    current = convolution(x, p["hidden"], 2) if x.ndim == 4 else x @ p["hidden"]
    x = neurons(p, "hidden", current)
    return x.reshape(len(x), -1) @ p["readout"] + p["readout_bias"]


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
    digits, rng = data.load("digits"), np.random.default_rng(0)
    x, labels = images_for(kind, digits.train_images), digits.train_labels
    params = {}
    for name, shape in SHAPES[kind].items():
        drawn = rng.normal(0, np.prod(shape[:-1]) ** -0.5, shape)
        params |= {name: np.float32(drawn), f"{name}_bias": np.zeros(shape[-1:], "f")}

    def loss(params):
        entropy = optax.losses.softmax_cross_entropy_with_integer_labels
        return entropy(function(params, x), labels).mean()

    def step(state, _):
        return state.apply_gradients(grads=jax.grad(loss)(state.params)), None

    start = TrainState.create(apply_fn=function, params=params, tx=optax.adam(0.01))
    return jax.jit(lambda s: jax.lax.scan(step, s, length=epochs)[0])(start).params


class Network(NamedTuple):
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
        model = snnjax.integrate_and_fire(levels=self.levels)
        options = {"steps": self.steps, "code": self.code, "wait": self.wait}
        options |= {"model": model, "recipe": snnjax.max_activation()}
        snn = snnjax.convert(function, params, x, **options)
        model = dataclasses.replace(snn.model, reset=self.reset)
        snn = dataclasses.replace(snn, model=model)
        layers = snnjax.deploy.layers(function, snn, x)
        bits = {"weight_bits": self.weight_bits, "input_bits": self.input_bits}
        return snnjax.deploy.quantize(layers, x, state_bits=16, overflow="wrap", **bits)


NETWORKS = {
    "perceptron: rate with reset to zero": Network(rate(), (0, 1), "zero", 16, 0, 8, 6),
    "perceptron: rate": Network(rate(), (0, 1), "subtract", 16, 0, 5, 5),
    "perceptron: radix": Network(radix(), (0, 1), "subtract", 4, 3, 2, 5),
    "perceptron: signed radix": Network(radix(), (-1, 1), "subtract", 4, 1, 2, 5),
    "CNN: rate with reset to zero": Network(rate(), (0, 1), "zero", 16, 0, 8, 6),
    "CNN: radix": Network(radix(), (0, 1), "subtract", 4, 3, 3, 5),
}


def check_tools(rtl: Path) -> None:
    """Raise unless the RTL is that of `COMMIT` and Icarus Verilog is there."""
    for name, expected in FILES.items():
        text = (rtl / name).read_bytes()
        if hashlib.sha1(b"blob %d\0" % len(text) + text).hexdigest() != expected:
            way_out = f"git checkout {COMMIT[:7]}"
            raise Misfit(f"{rtl / name} is of another version; {way_out}")
    for tool in ("iverilog", "vvp"):
        if shutil.which(tool) is None:
            raise Misfit(f"{tool} is missing; apt-get install iverilog")


def compiled(rtl: Path, program: Program, folder: Path) -> Path:
    """The RTL and the driver, for a core with as many neurons as are used.

    A larger one computes the same and takes longer. SIMULATION fills its memories,
    which nothing else does.
    """
    neurons, synapses = program.neurons, program.synapses
    bits = (max(count - 1, 31).bit_length() for count in (neurons, synapses))
    sizes = zip(("NEURONS", "BITS", "POOL_BITS"), (neurons, *bits), strict=True)
    core = folder / "core"
    options = ["-g2012", "-DSIMULATION", "-s", "driver", "-o", str(core)]
    options += [f"-Pdriver.{name}={size}" for name, size in sizes]
    files = [Path(__file__).with_suffix(".v"), *(rtl / name for name in FILES)]
    _run("iverilog", *options, *map(str, files))
    return core


def simulated(program: Program, x: np.ndarray, core: Path, folder: Path) -> Recording:
    """An image in a core of its own, in which nothing is left of others."""
    with tempfile.TemporaryDirectory(dir=folder) as own:
        commands, events = Path(own, "commands"), Path(own, "events")
        commands.write_text(program.commands(x))
        _run("vvp", str(core), f"+commands={commands}", f"+events={events}")
        return catalyst.recorded(program, events.read_text())


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        words = (done.stderr or done.stdout).strip().partition("\n")[0]
        raise Misfit(f"{command[0]} failed: {words}")


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
    most = {n: m_1 * max(map(abs, map(int, e))) for n, e in trace.extremes.items()}
    room = {name: group.room for name, group in program.groups.items()}
    outputs, sums = trace.outputs, {}
    for node in layers.outputs:
        values = outputs[node.name] if isinstance(outputs, dict) else outputs
        units = np.asarray(values, float) / (layers.potential_unit * node.unit)
        totals = np.rint(units.cumsum(0)).astype(int)
        sums[node.name] = totals[-1]
        most[node.name], room[node.name] = np.abs(totals).max(), catalyst.REST - 1
    for name, found in most.items():
        if found > room[name]:
            reach = f"{found}, and the core has room for {room[name]}"
            allowed = "allowed: fewer weight_bits or steps"
            raise Misfit(f"potentials of {name!r} may reach {reach}; {allowed}")
    spikes = {name: np.asarray(levels) for name, levels in trace.spikes.items()}

    def of_image(b: int) -> Recording:
        levels = {name: of_all[:, b] for name, of_all in spikes.items()}
        return Recording(levels, {name: s[b] for name, s in sums.items()}, 0, 0)

    return [of_image(b) for b in range(len(x))]


def counts_of(ours: Recording, theirs: Recording) -> Counter[str]:
    """How many numbers are compared and differ."""
    counts = compared(ours.spikes, theirs.spikes)
    counts["mismatches"] += theirs.extra
    for name, sums in ours.sums.items():
        counts["sums"] += sums.size
        counts["equal"] += np.count_nonzero(sums == theirs.sums[name])
    return counts


def row_of(name: str, images: int, epochs: int, rtl: Path) -> dict[str, Any]:
    """A network on the core, image by image."""
    kind = name.partition(":")[0]
    layers = NETWORKS[name].layers(kind, epochs)
    x = images_for(kind, data.load("digits").test_images[:images])
    program = catalyst.program_of(layers)
    ours = expected(layers, program, x)
    with (
        tempfile.TemporaryDirectory() as folder,
        concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        core = compiled(rtl, program, Path(folder))
        start = os.times().children_user  # of a CPU: other work changes it little
        run = functools.partial(simulated, program, core=core, folder=Path(folder))
        theirs = [*pool.map(run, whole_x(layers, x))]
        seconds = (os.times().children_user - start) / len(x)
    counts = sum(map(counts_of, ours, theirs), Counter())
    row = {"T": layers.steps, "bits": layers.arithmetic.weight_bits}
    row |= {"neurons": program.neurons, "synapses": program.synapses}
    row |= {"most": max(r.most for r in theirs), "seconds": seconds}
    return row | {name: int(counts[name]) for name in COLUMNS if name not in row}


COLUMNS = {"T": "T", "bits": "bits", "neurons": "neurons", "synapses": "synapses"}
COLUMNS |= {"most": "most spikes in a step", "spikes": "spikes compared"}
COLUMNS |= {"not_0": "not 0", "mismatches": "mismatches", "sums": "sums compared"}
COLUMNS |= {"equal": "equal", "seconds": "CPU s per image"}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    options = timing.parser(__doc__)
    options.add_argument("--rtl", type=Path, required=True, help="rtl/ of catalyst-n1")
    options.add_argument("--images", type=timing.count, default=20)
    timing.only_option(options)
    given = options.parse_args(arguments)
    timing.check_files(options, given.rtl, *FILES)
    images, epochs = (1, 20) if given.quick else (given.images, 300)
    facts = {"sizes": {"images": images}, "rtl": COMMIT}
    result = timing.new_result(__doc__, ("jax", "numpy"), **facts)
    sides = timing.continued(result, given.out, *facts)["sides"]
    try:
        check_tools(given.rtl)
        for name in NETWORKS:
            if name not in sides and timing.is_selected(name, given.only):
                print(f"running {name}", file=sys.stderr, flush=True)
                sides[name] = row_of(name, images, epochs, given.rtl)
    except Misfit as error:
        options.error(str(error))
    for name, row in sides.items():
        wrong = row["mismatches"] + row["sums"] - row["equal"]
        goal = f"numbers that differ, {name}"
        result["targets"] += [timing.target(goal, wrong, at_most=0)]
    text = timing.table_of("network", COLUMNS, sides)
    return timing.report(result, text, given.out)


if __name__ == "__main__":
    main()
