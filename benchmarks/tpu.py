"""What do spiking networks compute and move on a TPU? Compiled, not run.

    pip install -e '.[experiments,tpu]'
    python -m benchmarks.tpu --out benchmarks/results/tpu.json

libtpu compiles the programs for a v5e (197 TFLOP/s bfloat16, 819 GB/s, 16 GB) on a
machine that has none; benchmarks/hlo.py counts what they compute and move, loops
included, in HBM and in the memory on the chip. The bound is the time that no run can
beat, max(operations / peak, bytes of HBM / bandwidth). Ratios are over T times the ANN:
of the bound, of the bytes of HBM, and of the bytes of both memories. All numbers are
those of one device.
"""

import dataclasses
import functools
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import snnjax
from benchmarks import hlo, timing
from experiments.models import build
from snnjax.calibrators import formulas
from snnjax.neurons.unroll import mean_and_pace, spike_train
from snnjax.simulation import ByLayer

PEAK = 197e12  # operations per second, of bfloat16
BANDWIDTH = 819e9  # bytes per second of HBM
CAPACITY = 16e9  # bytes of HBM
ENVIRONMENT = {  # or libtpu queries a metadata server, and locks itself
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
NETWORKS = {  # name -> shape of its images, classes
    "digits_resnet": ((8, 8, 1), 10),
    "resnet20": ((32, 32, 3), 10),
    "torchvision_resnet34": ((224, 224, 3), 1000),
    "vit": ((32, 32, 3), 10),
}


@dataclasses.dataclass(frozen=True)
class Side:
    """One program.

    Attributes:
        mode: "ANN", an execution of the SNN, or a piece of a calibration.
        training: the gradient of a loss with respect to all parameters.
        network: of `NETWORKS`.
        steps, wait: T, and the wait of every layer.
        levels: of the spikes.
        has_digits: a radix code in place of rate coding.
        leaky: LIF neurons in place of IF.
        batch: images.
        dtype: of weights and images.
        devices: that share the batch.
    """

    mode: str
    training: bool = False
    network: str = "resnet20"
    steps: int = 8
    wait: int = 0
    levels: tuple[int, int] = (0, 1)
    has_digits: bool = False
    leaky: bool = False
    batch: int = 256
    dtype: str = "float32"
    devices: int = 1

    @property
    def name(self) -> str:
        words = [self.mode, "gradient" if self.training else "", self.network]
        words += [f"T={self.steps}"] if self.mode != "ANN" else []
        words += [f"wait={self.wait}"] if self.wait else []
        words += [f"levels {self.levels}"] if self.levels != (0, 1) else []
        words += ["radix"] if self.has_digits else []
        words += ["LIF"] if self.leaky else []
        words += [f"B={self.batch}", self.dtype]
        words += [f"{self.devices} devices"] if self.devices > 1 else []
        return " ".join(filter(None, words))

    @property
    def ann(self) -> "Side":
        """The ANN, or its gradient, that it is compared with."""
        names = ("training", "network", "batch", "dtype", "devices")
        return Side("ANN", steps=1, **{name: getattr(self, name) for name in names})


SITE = ("spikes of a site", "pace of a site", "thresholds of a site")
EXECUTIONS: dict[str, Any] = {
    "auto": "auto",
    "by_step": "by_step",
    "by_layer": "by_layer",
    "by_layer, remat": ByLayer(remat=True),
    "closed_form": "closed_form",
}


def sides(quick: bool) -> list[Side]:
    """Every program, each after the ANN that it is compared with."""
    if quick:
        small = functools.partial(Side, network="digits_resnet", steps=2, batch=128)
        programs = [small("auto"), small("by_layer"), small("auto", training=True)]
        programs += [small(SITE[0])]
    else:
        train = functools.partial(Side, training=True, steps=4)
        large = functools.partial(
            Side, network="torchvision_resnet34", steps=32, batch=64
        )
        radix = functools.partial(Side, steps=4, levels=(-1, 1), has_digits=True)
        programs = [
            *(Side(mode) for mode in ("auto", "by_step", "by_layer")),
            Side("closed_form", wait=8),
            Side("by_layer", wait=1),
            Side("auto", levels=(-1, 1)),
            *(radix(mode, wait=1) for mode in ("auto", "by_layer")),
            radix("closed_form", wait=3),
            radix("auto", wait=1, training=True),
            Side("auto", dtype="bfloat16"),
            Side("by_layer", dtype="bfloat16"),
            Side("auto", batch=2048, devices=8),
            *(train(mode) for mode in ("auto", "by_step", "by_layer")),
            *(train(mode, leaky=True) for mode in ("auto", "by_layer")),
            train("by_layer, remat"),
            train("auto", dtype="bfloat16"),
            Side("auto", network="vit", levels=(-1, 1)),
            Side("by_layer", network="vit", levels=(-1, 1)),
            large("auto"),
            large("by_layer", steps=8),
            *(Side(mode) for mode in SITE),
        ]
    pairs = ([side] if side.mode in SITE else [side.ann, side] for side in programs)
    return list(dict.fromkeys(side for pair in pairs for side in pair))


# ------------------------------------------------------------------- programs


def devices(count: int) -> Mesh:
    """A mesh of the first devices of a described v5e; no hardware is needed.

    Raises:
        timing.NotInstalled: libtpu is missing.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if importlib.util.find_spec("libtpu") is None:
        raise timing.NotInstalled("No module named 'libtpu'")
    chips = topologies.get_topology_desc("v5e:2x4", "tpu").devices
    return Mesh(np.array(chips[:count]), ("data",))


def work(side: Side, mesh: Mesh) -> tuple[Callable, tuple]:
    """(function, shapes of its arguments on the mesh) of a program."""
    if side.mode in SITE:
        function, arguments = of_site(side)
    else:
        function, arguments = of_network(side)
    everywhere = NamedSharding(mesh, PartitionSpec())
    by_image = NamedSharding(mesh, PartitionSpec("data"))
    *others, x = arguments
    return function, (*on_devices(others, everywhere), on_devices(x, by_image))


def on_devices(tree: Any, sharding: NamedSharding) -> Any:
    """The shapes of arrays, on these devices."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
    )


def of_network(side: Side) -> tuple[Callable, tuple]:
    """The ANN or the SNN, or the gradient of its loss."""
    fn, params = network(side)
    shape, _ = NETWORKS[side.network]
    x = jax.ShapeDtypeStruct((side.batch, *shape), side.dtype)
    model, predict = params, fn
    if side.mode != "ANN":
        make = snnjax.lif if side.leaky else snnjax.integrate_and_fire
        neuron = make(levels=side.levels)
        code = snnjax.codes.radix() if side.has_digits else snnjax.codes.rate()
        init = functools.partial(snnjax.init, fn, x=x, model=neuron, code=code)
        model = jax.eval_shape(init, params)
        options = {"steps": side.steps, "wait": side.wait}
        simulate = snnjax.spiking(fn, **options, execution=EXECUTIONS[side.mode])

        def predict(snn, x):
            return simulate(snn, x).mean(0)

    if not side.training:
        return predict, (model, x)

    def loss(model, x):
        labels = jnp.zeros(side.batch, jnp.int32)
        logits = predict(model, x).astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    return jax.grad(loss), (model, x)


def network(side: Side) -> tuple[Callable, Any]:
    """``fn(params, x)`` and the shapes of its parameters."""
    shape, classes = NETWORKS[side.network]
    module = build(side.network, classes)
    params = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, *shape)))
    params = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, side.dtype), params
    )
    return lambda params, x: module.apply(params, x, train=False), params


def of_site(side: Side) -> tuple[Callable, tuple]:
    """What a sweep of the calibration does at the first site of a network."""
    neuron = snnjax.integrate_and_fire()
    height, width, _ = NETWORKS[side.network][0]
    activation = jax.ShapeDtypeStruct((side.batch, height, width, 16), side.dtype)
    currents = jax.ShapeDtypeStruct((side.steps, *activation.shape), side.dtype)
    if side.mode == "spikes of a site":
        return lambda c: spike_train(neuron, neuron.init(), c), (currents,)
    if side.mode == "pace of a site":
        return lambda c: mean_and_pace(neuron, neuron.init(), c), (currents,)

    def thresholds(activation):
        return formulas.least_squares(activation, side.steps, per="channel")

    return thresholds, (activation,)


# --------------------------------------------------------------------- counts


def counts_of(side: Side) -> dict[str, float]:
    """What a program computes, moves and needs on one of its devices."""
    function, arguments = work(side, devices(side.devices))
    traced_program = jax.jit(function).lower(*arguments)
    start = time.perf_counter()
    program = traced_program.compile()
    seconds = time.perf_counter() - start
    counts, memory = hlo.count(program.as_text()), program.memory_analysis()
    bytes_of_all = memory.temp_size_in_bytes + memory.argument_size_in_bytes
    return {
        "gflop": counts.operations / 1e9,
        "hbm_gb": counts.memory / 1e9,
        "on_chip_gb": counts.on_chip / 1e9,
        "temporary_gib": memory.temp_size_in_bytes / 2**30,
        "needed_gb": (bytes_of_all + memory.output_size_in_bytes) / 1e9,
        "compile_s": seconds,
        "bound_ms": 1e3 * max(counts.operations / PEAK, counts.memory / BANDWIDTH),
    }


def with_ratios(side: Side, counts: dict, ann: dict) -> dict[str, float]:
    """The counts, over T times those of the ANN."""

    def over_t_ann(*names: str) -> float:
        ours, its = (sum(c[name] for name in names) for c in (counts, ann))
        return ours / (side.steps * its)

    return counts | {
        "bound_over_t_ann": over_t_ann("bound_ms"),
        "hbm_over_t_ann": over_t_ann("hbm_gb"),
        "bytes_over_t_ann": over_t_ann("hbm_gb", "on_chip_gb"),
        "compile_over_ann": counts["compile_s"] / ann["compile_s"],
    }


def compare(options) -> dict:
    every = sides(options.quick)
    programs = [side for side in every if timing.is_selected(side.name, options.only)]
    if not programs:
        names = "\n".join(side.name for side in every)
        raise SystemExit(
            f"--only {options.only}: in no name; allowed: words of\n{names}"
        )
    devices(1)  # before anything takes time
    sizes = {side.name: dataclasses.asdict(side) for side in programs}
    packages = ("jax", "jaxlib", "libtpu", "flax")
    result = timing.new_result(__doc__, packages, sizes=sizes)
    result["machine"] |= {"device": "v5e, compiled, not run"}
    results: dict[str, dict] = result["sides"]
    for side in programs:
        print(f"compiling {side.name}", file=sys.stderr, flush=True)
        results[side.name] = counts_of(side)
        if side.mode in EXECUTIONS and side.ann.name in results:
            ann = results[side.ann.name]
            results[side.name] = with_ratios(side, results[side.name], ann)
    return result | {"targets": list(targets(results))}


def targets(results: dict) -> Iterator[dict]:
    """Of the programs that are there."""
    auto = functools.partial(Side, "auto")
    ratios = ("bound_over_t_ann", "hbm_over_t_ann", "bytes_over_t_ann")
    large = auto(network="torchvision_resnet34", steps=32, batch=64)
    limits = {
        auto(): {"temporary_gib": 0.4, "compile_over_ann": 1.5},
        auto(dtype="bfloat16"): {},
        auto(training=True, steps=4): {},
        auto(training=True, steps=4, leaky=True): {},
    }
    limits = {side: dict.fromkeys(ratios, 2.0) | more for side, more in limits.items()}
    limits |= {Side("by_layer"): {"compile_over_ann": 1.5}}
    limits |= {large: {"needed_gb": CAPACITY / 1e9}}
    for side, of_side in limits.items():
        for name, limit in of_side.items():
            value = results.get(side.name, {}).get(name)
            if value is not None:
                yield timing.target(f"{side.name}: {name}", value, at_most=limit)


COLUMNS = {
    "gflop": "GFLOP",
    "hbm_gb": "HBM GB",
    "on_chip_gb": "on chip GB",
    "temporary_gib": "temporary GiB",
    "compile_s": "compile s",
    "bound_ms": "bound ms",
    "bound_over_t_ann": "bound / T ANN",
    "hbm_over_t_ann": "HBM / T ANN",
    "bytes_over_t_ann": "bytes / T ANN",
}


def draw(result: dict, path: Path) -> None:
    """The bound of every program over T times that of its ANN."""
    ratios = {
        name: counts["bound_over_t_ann"]
        for name, counts in result["sides"].items()
        if "bound_over_t_ann" in counts
    }
    figure, axes = plt.subplots(figsize=(8, 0.3 * len(ratios) + 1))
    bars = axes.barh(list(ratios), list(ratios.values()))
    axes.bar_label(bars, fmt="%.2g", padding=3)
    axes.axvline(1, color="gray", linewidth=0.8, linestyle=":")
    axes.set(
        xscale="log",
        xlim=(None, 2 * max(ratios.values())),
        xlabel="bound / (T x that of the ANN)",
    )
    axes.invert_yaxis()
    axes.margins(x=0.1)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> dict:
    parser = timing.parser(__doc__)
    timing.only_option(parser)
    options = parser.parse_args(arguments)
    try:
        result = compare(options)
    except timing.NotInstalled as missing:
        raise SystemExit(
            f"{missing}\nInstall it by: pip install -e '.[experiments,tpu]'"
        ) from None
    title = "compiled for a v5e, not run"
    text = timing.table_of(title, COLUMNS, result["sides"])
    timing.report(result, text, options.out)
    if options.out and not options.quick:
        draw(result, Path(options.out).with_suffix(".png"))
    return result


if __name__ == "__main__":
    main()
