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


SIZES = (Size(1, 50), Size(1, 200), Size(3, 200), Size(1, 1000), Size(3, 1000))
SIZES += (Size(2, 28, 128),)  # rows of MNIST
QUICK = (Size(1, 6, 2, 8),)
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
    rng, widths = np.random.default_rng(1), [size.neurons] * (size.layers + 1)
    pairs = zip(widths, [*widths[1:], CLASSES], strict=True)
    return [
        rng.normal(0, 2 / math.sqrt(n), (n, m)).astype(np.float32) for n, m in pairs
    ]


# ---------------------------------------------------------------------------------- JAX


def snnjax_side(size: Size, at_a_time: int | None = None, around: str = "") -> tuple:
    import jax

    import snnjax

    def fn(params, x):
        *hidden, readout = params
        for kernel in hidden:
            x = jax.nn.relu(x @ kernel)
        return x @ readout

    model = snnjax.lif(leak=LEAK)
    model = getattr(snnjax.neurons, around)(model) if around else model
    x, key = example(size)[0], jax.random.key(0)
    snn = snnjax.init(fn, kernels(size), x[0], model=model, key=key)
    spiking = snnjax.spiking(
        fn,
        steps=size.steps,
        inputs="sequence",
        execution="auto" if at_a_time is None else min(at_a_time, size.steps),
        answer=True,
    )
    return spiking, snn


def spyx(size: Size, neurons: str = "LIF") -> tuple:
    import spyx.nn
    from flax import nnx

    rngs, parts = nnx.Rngs(0), []
    *hidden, readout = kernels(size)
    for kernel in hidden:
        parts.append(nnx.Linear(*kernel.shape, use_bias=False, rngs=rngs))
        layer = getattr(spyx.nn, neurons)
        parts.append(layer((size.neurons,), beta=LEAK, rngs=rngs))
    parts.append(nnx.Linear(*readout.shape, use_bias=False, rngs=rngs))
    graph, params, rest = nnx.split(spyx.nn.Sequential(*parts), nnx.Param, ...)

    def run(params, x):
        return spyx.nn.run(nnx.merge(graph, params, rest), x)[0].mean(0)

    return run, params


def sparxml(size: Size) -> tuple:
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
    return network.apply, network.init(jax.random.key(0), example(size)[0])


def plain_scan(size: Size) -> tuple:
    import jax
    import jax.numpy as jnp

    @jax.custom_jvp
    def spike(x):
        return (x >= 0).astype(x.dtype)

    @spike.defjvp
    def _(primals, tangents):
        return spike(*primals), tangents[0] / (1 + 25 * abs(primals[0])) ** 2

    def run(params, xs):
        (*hidden, readout), leaks = params

        def step(potentials, x):
            after = []
            for kernel, leak, v in zip(hidden, leaks, potentials, strict=True):
                v = leak * v + x @ kernel
                x = spike(v - 1)
                after.append(v - x)
            return after, x @ readout

        start = [jnp.zeros((size.batch, size.neurons))] * size.layers
        return jax.lax.scan(step, start, xs)[1].mean(0)

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
    rule = optax.softmax_cross_entropy_with_integer_labels

    @jax.jit
    def slope(params, x):
        def loss(params):
            return rule(run(params, x), labels).mean()

        value, gradient = jax.value_and_grad(loss)(params)
        paths = jax.tree_util.tree_leaves_with_path(gradient)
        return value, [leaf for path, leaf in paths if not _fixed(path)]

    program = slope.lower(params, x).compile()
    value, gradient = program(params, x)
    leaves = [leaf for leaf in gradient if leaf.ndim == 2]
    assert np.isfinite(value) and all(np.abs(leaf).max() > 0 for leaf in leaves)
    memory = program.memory_analysis().temp_size_in_bytes / 2**20
    return functools.partial(program, params, jax.device_put(x)), {"mib": memory}


def _fixed(path: tuple[Any, ...]) -> bool:
    """Whether this is a parameter that the other libraries' neurons do not have."""
    return str(path[-1]).strip(".") in ("threshold", "bias", "initial_potential")


# ------------------------------------------------------------------------------ PyTorch


def torch_network(library: str, size: Size) -> Any:
    """A module [T, B, N] -> [T, B, classes]."""
    import torch
    from torch import nn

    dense = [nn.Linear(*kernel.shape, bias=False) for kernel in kernels(size)]
    for layer, kernel in zip(dense, kernels(size), strict=True):
        layer.weight.data = torch.from_numpy(kernel.T.copy())
    *hidden, readout = dense
    if library == "SpikingJelly":
        from spikingjelly.activation_based import functional, neuron

        tau = 1 / (1 - LEAK)
        each = [neuron.ParametricLIFNode(tau, decay_input=False) for _ in hidden]
        pairs = [part for pair in zip(hidden, each, strict=True) for part in pair]
        network = nn.Sequential(*pairs, readout)
        functional.set_step_mode(network, "m")

        def run(x: Any) -> Any:
            functional.reset_net(network)
            return network(x)

        return network, run
    if library == "snnTorch":
        import snntorch

        each = nn.ModuleList(snntorch.Leaky(LEAK, learn_beta=True) for _ in hidden)
        network = nn.ModuleList([*dense, each])

        def run(x: Any) -> Any:
            states, outputs = [neuron.reset_mem() for neuron in each], []
            for spikes in x:
                for i, (layer, neuron) in enumerate(zip(hidden, each, strict=True)):
                    spikes, states[i] = neuron(layer(spikes), states[i])
                outputs.append(readout(spikes))
            return torch.stack(outputs)

        return network, run
    from norse.torch import LIF, SequentialState

    pairs = [part for layer in hidden for part in (layer, LIF())]  # its leak is fixed
    network = SequentialState(*pairs, readout)
    return network, lambda x: network(x)[0]


TORCH = ("SpikingJelly", "snnTorch", "Norse")
OWN = [f"snnjax, {way}" for way in ("auto", "by_layer", "by_step", "segments")]


def torch_side(library: str, size: Size) -> tuple[Callable[[], Any], dict]:
    import torch

    x, labels = map(torch.from_numpy, example(size))
    network, run = torch_network(library, size)

    def slope() -> Any:
        network.zero_grad()
        loss = torch.nn.functional.cross_entropy(run(x).mean(0), labels)
        loss.backward()
        return loss

    assert torch.isfinite(slope())
    assert all(p.grad is not None for p in network.parameters() if p.ndim == 2)
    return slope, {}


# ------------------------------------------------------------------------------- report


def best(result: dict[str, Any], side: str, size: str) -> float | None:
    """Milliseconds; None where the side was not run or is not installed."""
    return result["sides"].get(f"{side}: {size}", {}).get("ms", {}).get("best")


def text(result: dict[str, Any]) -> str:
    """A row for each side, a column for each size: time over Spyx's (MiB)."""

    def cell(side: str, size: str) -> str | None:
        own, other = best(result, side, size), best(result, "Spyx", size)
        if own is None or other is None:
            return None
        mib = result["sides"][f"{side}: {size}"]["facts"].get("mib")
        return f"{own / other:.2f}" + ("" if mib is None else f" ({mib:.0f})")

    sizes = result["sizes"]
    names = dict.fromkeys(name.partition(": ")[0] for name in result["sides"])
    rows = [[name, *(cell(name, size) for size in sizes)] for name in names]
    rows.append(["Spyx, ms", *(best(result, "Spyx", size) for size in sizes)])
    return timing.table(["time over Spyx's (MiB)", *sizes], rows)


def goals(result: dict[str, Any]) -> list[dict]:
    """Spyx's time; at T >= 200 0.8 of the fastest other's; 60 MiB at 3 x 1000."""
    found = []
    for size in result["sizes"]:
        sides = "snnjax, auto", "Spyx", "sparxml", "plain scan"
        times = [best(result, side, size) for side in sides]
        if None in times:
            continue
        own, spyx_, *_ = times
        found.append(timing.target(f"time over Spyx's, {size}", own / spyx_, at_most=1))
        if "00," in size:
            name, least = f"time over the fastest other's, {size}", min(times[1:])
            found.append(timing.target(name, own / least, at_most=0.8))
    for side in ("auto", "recurrent", "adaptive"):
        if own := result["sides"].get(f"snnjax, {side}: {Size(3, 1000).name}"):
            name = f"MiB of snnjax, {side}, 3 layers, T=1000"
            found.append(timing.target(name, own["facts"]["mib"], at_most=60))
    return found


def grid_text(result: dict[str, Any]) -> str:
    """A row for each size: milliseconds of all executions."""
    rows = [
        [size, *(best(result, side, size) for side in OWN)] for size in result["sizes"]
    ]
    return timing.table(["ms", *OWN], rows)


def grid_goals(result: dict[str, Any]) -> list[dict]:
    """What "auto" takes, over the fastest execution."""
    found = []
    for size in result["sizes"]:
        times = [best(result, side, size) for side in OWN]
        if None not in times:
            own, *others = times
            name = f"auto over the fastest execution, {size}"
            found.append(timing.target(name, own / min(others), at_most=1.1))
    return found


def prepare(name: str) -> tuple[Callable[[], Any], dict]:
    """(run, facts) of "SIDE: SIZE"."""
    side, _, size = name.partition(": ")
    of_name = {each.name: each for each in SIZES + QUICK + GRID}[size]
    if side in TORCH:
        return torch_side(side, of_name)
    return jax_side(JAX[side], of_name)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
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
    sides, chosen = (OWN, GRID) if options.grid else ((*JAX, *TORCH), SIZES)
    sizes = {size.name: size for size in (QUICK if options.quick else chosen)}
    result = timing.new_result(__doc__, ("snnjax", "jax", "numpy"), sizes=[*sizes])
    result = timing.continued(result, options.out, "sizes")
    for size, (_, steps, *_) in sizes.items():  # all sides of a size alternate
        commands = {}
        for name in (f"{side}: {size}" for side in sides):
            python = options.torch if name.startswith(TORCH) else options.jax
            if timing.is_selected(name, options.only):
                command = [python, "-m", "benchmarks.training", "--side", name]
                commands[name] = command
        # Short programs need more timings; of two in a row, the first finds the caches
        # full of what others used.
        rounds = (1, 1) if options.quick else (max(5, 4000 // steps), 2)
        for name, side in timing.rounds(commands, *rounds).items():
            if "missing" not in side:
                unit = functools.partial(float.__mul__, 1e3)
                side["ms"] = timing.measures(side.pop("seconds"), unit)
                kind = "torch" if name.startswith(TORCH) else "jax"
                result["versions"][kind] = side.pop("versions")
            result["sides"][name] = side
        result["targets"] = (grid_goals if options.grid else goals)(result)
        table = (grid_text if options.grid else text)(result)
        timing.report(result, table, options.out)  # after each size
    return result


if __name__ == "__main__":
    main()
