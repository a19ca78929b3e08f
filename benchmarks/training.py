"""How fast does a spiking network train, and in how much memory?

    python -m benchmarks.training --jax PYTHON313 --torch PYTHON311 \\
        --out benchmarks/results/training.json

Dense layers of LIF neurons, whose leak is trained and whose threshold is not, and a
readout whose mean over T steps gives a cross-entropy; inputs are random spikes, one of
ten. A timing is loss and gradient of a batch. ``--jax`` has Spyx and sparxml,
``--torch`` has SpikingJelly, snnTorch and Norse, each with its own surrogate and in the
fastest way that its documentation shows. A plain ``lax.scan`` over the network is what
one writes by hand. Every side has its own process; the memory is what XLA plans.
``--grid`` has the executions of snnjax on a grid of sizes, of which "auto" chooses one.
"""

import functools
import itertools
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks import timing


class Size(NamedTuple):
    """Layers of so many neurons, T steps of a batch."""

    layers: int
    steps: int
    batch: int = 32
    neurons: int = 256

    @property
    def name(self) -> str:
        return f"{self.layers} x {self.neurons}, T={self.steps}, B={self.batch}"


SIZES = (
    Size(layers=1, steps=50),
    Size(layers=1, steps=200),
    Size(layers=3, steps=200),
    Size(layers=1, steps=1000),
    Size(layers=3, steps=1000),
    Size(layers=2, steps=28, batch=128),  # rows of MNIST
)
QUICK = (
    Size(
        layers=1,
        steps=6,
        batch=2,
        neurons=8,
    ),
)
GRID = tuple(
    Size(*size) for size in itertools.product((1, 3), (50, 400), (8, 128), (64, 512))
)
CLASSES = 10
LEAK = 0.9
PACKAGES = {
    "jax": ("jax", "spyx", "sparxml"),
    "torch": ("torch", "spikingjelly", "snntorch", "norse"),
}


def example(size: Size) -> tuple[np.ndarray, np.ndarray]:
    """Spikes [T, B, N] and labels [B]."""
    rng = np.random.default_rng(0)
    spikes = rng.random((size.steps, size.batch, size.neurons)) < 0.1
    return spikes.astype(np.float32), np.arange(size.batch) % CLASSES


def kernels(size: Size) -> list[np.ndarray]:
    """Kernels [N, N] of the layers, and of the readout [N, classes]."""
    rng = np.random.default_rng(1)
    widths = [size.neurons] * (size.layers + 1) + [CLASSES]
    arrays = []
    for inputs, outputs in itertools.pairwise(widths):
        kernel = rng.normal(0, 2 / math.sqrt(inputs), (inputs, outputs))
        arrays.append(kernel.astype(np.float32))
    return arrays


# ---------------------------------------------------------------------------------- JAX


def snnjax_side(
    size: Size, at_a_time: int | None = None, around: str | None = None
) -> tuple:
    """(run, SNN) of snnjax.

    Args:
        size: of the network.
        at_a_time: steps; None: as "auto" chooses.
        around: name of a model around the LIF neurons.
    """
    import jax

    import snnjax

    def fn(params, x):
        *hidden, readout = params
        for kernel in hidden:
            x = jax.nn.relu(x @ kernel)
        return x @ readout

    model = snnjax.lif(leak=LEAK)
    if around is not None:
        model = getattr(snnjax.neurons, around)(model)
    spikes, _ = example(size)
    snn = snnjax.init(
        fn,
        kernels(size),
        spikes[0],
        model=model,
        key=jax.random.key(0),
    )
    execution: Any = "auto"
    if at_a_time is not None:
        execution = min(at_a_time, size.steps)
    run = snnjax.spiking(
        fn,
        steps=size.steps,
        inputs="sequence",
        execution=execution,
        answer=True,
    )
    return run, snn


def spyx(size: Size, neurons: str = "LIF") -> tuple:
    """(run, params) of Spyx, with neurons of this class."""
    import spyx.nn
    from flax import nnx

    rngs = nnx.Rngs(0)
    neuron = getattr(spyx.nn, neurons)
    layers = []
    *hidden, readout = kernels(size)
    for kernel in hidden:
        layers.append(nnx.Linear(*kernel.shape, use_bias=False, rngs=rngs))
        layers.append(neuron((size.neurons,), beta=LEAK, rngs=rngs))
    layers.append(nnx.Linear(*readout.shape, use_bias=False, rngs=rngs))
    network = spyx.nn.Sequential(*layers)
    graph, params, constants = nnx.split(network, nnx.Param, ...)

    def run(params, x):
        merged = nnx.merge(graph, params, constants)
        outputs, _ = spyx.nn.run(merged, x)
        return outputs.mean(0)

    return run, params


def sparxml(size: Size) -> tuple:
    """(run, params) of sparxml."""
    import flax.linen as nn
    import jax
    import sparx

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            *hidden, readout = kernels(size)
            for kernel in hidden:
                x = nn.Dense(kernel.shape[1], use_bias=False)(x)
                x = sparx.nn.LIF(tau=-1 / math.log(LEAK), learn_tau=True)(x)
            return nn.Dense(readout.shape[1], use_bias=False)(x).mean(0)

    network = Network()
    spikes, _ = example(size)
    return network.apply, network.init(jax.random.key(0), spikes)


def plain_scan(size: Size) -> tuple:
    """(run, params) of what one writes by hand."""
    import jax
    import jax.numpy as jnp

    @jax.custom_jvp
    def spike(x):
        return (x >= 0).astype(x.dtype)

    @spike.defjvp
    def _(primals, tangents):
        (x,) = primals
        (tangent,) = tangents
        return spike(x), tangent / (1 + 25 * abs(x)) ** 2

    def run(params, xs):
        (*hidden, readout), leaks = params

        def step(potentials, x):
            next_potentials = []
            for kernel, leak, v in zip(hidden, leaks, potentials, strict=True):
                v = leak * v + x @ kernel
                x = spike(v - 1)
                next_potentials.append(v - x)
            return next_potentials, x @ readout

        start = [jnp.zeros((size.batch, size.neurons))] * size.layers
        _, outputs = jax.lax.scan(step, start, xs)
        return outputs.mean(0)

    return run, (kernels(size), [jnp.float32(LEAK)] * size.layers)


# Each gives (run(params, x) -> answers, params).
JAX = {
    "snnjax, auto": snnjax_side,
    "snnjax, by_layer": functools.partial(snnjax_side, at_a_time=sys.maxsize),
    "snnjax, by_step": functools.partial(snnjax_side, at_a_time=1),
    "snnjax, segments": functools.partial(snnjax_side, at_a_time=25),
    "snnjax, recurrent": functools.partial(snnjax_side, around="Recurrent"),
    "snnjax, adaptive": functools.partial(snnjax_side, around="Adaptive"),
    "Spyx": spyx,
    "Spyx, recurrent": functools.partial(spyx, neurons="RLIF"),
    "sparxml": sparxml,
    "plain scan": plain_scan,
}


def jax_side(make: Callable, size: Size) -> tuple[Callable[[], Any], dict]:
    """A compiled loss and gradient, and its memory."""
    import jax
    import optax

    run, params = make(size)
    x, labels = example(size)
    entropy = optax.softmax_cross_entropy_with_integer_labels

    @jax.jit
    def value_and_gradient(params, x):
        def loss(params):
            return entropy(run(params, x), labels).mean()

        value, gradient = jax.value_and_grad(loss)(params)
        leaves = []
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
            if not _is_constant(path):
                leaves.append(leaf)
        return value, leaves

    program = value_and_gradient.lower(params, x).compile()
    value, gradient = program(params, x)
    assert np.isfinite(value)
    for leaf in gradient:
        assert leaf.ndim != 2 or np.abs(leaf).max() > 0, "a kernel has no gradient"
    memory = program.memory_analysis().temp_size_in_bytes / 2**20
    return functools.partial(program, params, jax.device_put(x)), {"mib": memory}


def _is_constant(path: tuple[Any, ...]) -> bool:
    """Whether this is a parameter that the other libraries' neurons do not have."""
    return str(path[-1]).strip(".") in ("threshold", "bias", "initial_potential")


# ------------------------------------------------------------------------------ PyTorch


def torch_network(library: str, size: Size) -> tuple[Any, Callable]:
    """A module, and a function of spikes [T, B, N] -> outputs [T, B, classes]."""
    import torch
    from torch import nn

    dense = []
    for kernel in kernels(size):
        layer = nn.Linear(*kernel.shape, bias=False)
        layer.weight.data = torch.from_numpy(kernel.T.copy())
        dense.append(layer)
    makers = {
        "SpikingJelly": spikingjelly_network,
        "snnTorch": snntorch_network,
        "Norse": norse_network,
    }
    return makers[library](dense[:-1], dense[-1])


def spikingjelly_network(hidden: list, readout: Any) -> tuple[Any, Callable]:
    """All steps of a layer at once."""
    from spikingjelly.activation_based import functional, neuron
    from torch import nn

    layers = []
    for layer in hidden:
        layers.append(layer)
        layers.append(neuron.ParametricLIFNode(1 / (1 - LEAK), decay_input=False))
    network = nn.Sequential(*layers, readout)
    functional.set_step_mode(network, "m")

    def run(x: Any) -> Any:
        functional.reset_net(network)
        return network(x)

    return network, run


def snntorch_network(hidden: list, readout: Any) -> tuple[Any, Callable]:
    """A step at a time."""
    import snntorch
    import torch
    from torch import nn

    neurons = nn.ModuleList(snntorch.Leaky(LEAK, learn_beta=True) for _ in hidden)
    network = nn.ModuleList([*hidden, readout, neurons])

    def run(x: Any) -> Any:
        states = [neuron.reset_mem() for neuron in neurons]
        outputs = []
        for spikes in x:
            for i, (layer, neuron) in enumerate(zip(hidden, neurons, strict=True)):
                spikes, states[i] = neuron(layer(spikes), states[i])
            outputs.append(readout(spikes))
        return torch.stack(outputs)

    return network, run


def norse_network(hidden: list, readout: Any) -> tuple[Any, Callable]:
    """Its leak is fixed."""
    from norse.torch import LIF, SequentialState

    layers = []
    for layer in hidden:
        layers += [layer, LIF()]
    network = SequentialState(*layers, readout)
    return network, lambda x: network(x)[0]


TORCH = ("SpikingJelly", "snnTorch", "Norse")
SNNJAX = ("snnjax, auto", "snnjax, by_layer", "snnjax, by_step", "snnjax, segments")


def torch_side(library: str, size: Size) -> tuple[Callable[[], Any], dict]:
    """Loss and gradient."""
    import torch

    spikes, labels = example(size)
    x = torch.from_numpy(spikes)
    targets = torch.from_numpy(labels)
    network, run = torch_network(library, size)

    def value_and_gradient() -> Any:
        network.zero_grad()
        loss = torch.nn.functional.cross_entropy(run(x).mean(0), targets)
        loss.backward()
        return loss

    assert torch.isfinite(value_and_gradient())
    assert all(p.grad is not None for p in network.parameters() if p.ndim == 2)
    return value_and_gradient, {}


# ------------------------------------------------------------------------------- report


def best(result: dict[str, Any], side: str, size: str) -> float | None:
    """Milliseconds; None where the side was not run or is not installed."""
    return result["sides"].get(f"{side}: {size}", {}).get("ms", {}).get("best")


def text(result: dict[str, Any]) -> str:
    """A row for each side, a column for each size: time over Spyx's (MiB)."""

    def cell(side: str, size: str) -> str | None:
        time = best(result, side, size)
        spyx_time = best(result, "Spyx", size)
        if time is None or spyx_time is None:
            return None
        mib = result["sides"][f"{side}: {size}"]["facts"].get("mib")
        memory = "" if mib is None else f" ({mib:.0f})"
        return f"{time / spyx_time:.2f}{memory}"

    sizes = result["sizes"]
    names = dict.fromkeys(name.partition(": ")[0] for name in result["sides"])
    rows = []
    for name in names:
        rows.append([name, *(cell(name, size) for size in sizes)])
    rows.append(["Spyx, ms", *(best(result, "Spyx", size) for size in sizes)])
    return timing.table(["time over Spyx's (MiB)", *sizes], rows)


def goals(result: dict[str, Any]) -> list[dict]:
    """Spyx's time; at T >= 200 0.8 of the fastest other's; 60 MiB at 3 x 1000."""
    targets = []
    for size in result["sizes"]:
        auto = best(result, "snnjax, auto", size)
        peers = [best(result, side, size) for side in ("Spyx", "sparxml", "plain scan")]
        if auto is None or None in peers:
            continue
        name = f"time over Spyx's, {size}"
        targets.append(timing.target(name, auto / peers[0], at_most=1))
        if "00," in size:
            name = f"time over the fastest other's, {size}"
            targets.append(timing.target(name, auto / min(peers), at_most=0.8))
    largest = Size(layers=3, steps=1000).name
    for side in ("auto", "recurrent", "adaptive"):
        row = result["sides"].get(f"snnjax, {side}: {largest}")
        if row:
            name = f"MiB of snnjax, {side}, 3 layers, T=1000"
            targets.append(timing.target(name, row["facts"]["mib"], at_most=60))
    return targets


def grid_text(result: dict[str, Any]) -> str:
    """A row for each size: milliseconds of all executions."""
    rows = []
    for size in result["sizes"]:
        rows.append([size, *(best(result, side, size) for side in SNNJAX)])
    return timing.table(["ms", *SNNJAX], rows)


def grid_goals(result: dict[str, Any]) -> list[dict]:
    """What "auto" takes, over the fastest execution."""
    targets = []
    for size in result["sizes"]:
        times = [best(result, side, size) for side in SNNJAX]
        if None not in times:
            name = f"auto over the fastest execution, {size}"
            ratio = times[0] / min(times[1:])
            targets.append(timing.target(name, ratio, at_most=1.1))
    return targets


def prepare(name: str) -> tuple[Callable[[], Any], dict]:
    """(run, facts) of "SIDE: SIZE"."""
    side, _, size_name = name.partition(": ")
    sizes = {size.name: size for size in SIZES + QUICK + GRID}
    size = sizes[size_name]
    if side in TORCH:
        return torch_side(side, size)
    return jax_side(JAX[side], size)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """The command. It reports after each size, of which all sides alternate."""
    parser = timing.parser(__doc__)
    parser.add_argument("--jax", metavar="PYTHON", default=sys.executable)
    parser.add_argument("--torch", metavar="PYTHON", default=sys.executable)
    parser.add_argument("--grid", action="store_true")
    timing.only_option(parser)
    options = parser.parse_args(arguments)
    if options.side:
        packages = PACKAGES["torch" if options.side.startswith(TORCH) else "jax"]
        timing.serve(functools.partial(prepare, options.side), packages)
        return {}
    sides = SNNJAX if options.grid else (*JAX, *TORCH)
    sizes = GRID if options.grid else SIZES
    if options.quick:
        sizes = QUICK
    names = [size.name for size in sizes]
    sides_of_sizes = [f"{side}: {name}" for name in names for side in sides]
    timing.check_only(parser, options.only, sides_of_sizes)
    result = timing.new_result(__doc__, ("snnjax", "jax", "numpy"), sizes=names)
    result = timing.continued(result, options.out, "sizes")
    for size in sizes:
        commands = {}
        for side in sides:
            name = f"{side}: {size.name}"
            python = options.torch if side in TORCH else options.jax
            if timing.is_selected(name, options.only):
                command = [python, "-m", "benchmarks.training", "--side", name]
                commands[name] = command
        # Short programs need more timings; of two in a row, the first finds the caches
        # full of what others used.
        number = 1 if options.quick else max(5, 4000 // size.steps)
        repeats = 1 if options.quick else 2
        for name, row in timing.rounds(commands, number, repeats).items():
            if "missing" not in row:
                seconds = row.pop("seconds")
                row["ms"] = timing.measures(seconds, lambda seconds: 1e3 * seconds)
                kind = "torch" if name.startswith(TORCH) else "jax"
                result["versions"][kind] = row.pop("versions")
            result["sides"][name] = row
        if options.grid:
            result["targets"] = grid_goals(result)
            table = grid_text(result)
        else:
            result["targets"] = goals(result)
            table = text(result)
        timing.report(result, table, options.out)
    return result


if __name__ == "__main__":
    main()
