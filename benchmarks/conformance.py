"""Do other programs compute the spikes of our whole numbers? Compared one by one.

    python -m benchmarks.conformance --out benchmarks/results/conformance.json

Random networks are converted, and `snnjax.deploy.quantize` makes whole numbers of
them. Then `snnjax.deploy.run` and a program that is not ours, see chip_programs.py,
compute the same images. Every level of every neuron at every step is compared.
"""

import dataclasses
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import snnjax
from benchmarks import chip_programs, timing
from benchmarks.networks import Params, convolution, neurons
from snnjax.deploy import Layers


def mlp(p: Params, x: jax.Array) -> jax.Array:
    for name in ("first", "second", "dense"):
        x = neurons(p, name, x @ p[name])
    return x @ p["readout"]


def cnn(p: Params, x: jax.Array) -> jax.Array:
    for name, stride in (("first", 1), ("second", 2), ("third", 1)):
        x = neurons(p, name, convolution(x, p[name], stride))
    x = neurons(p, "dense", x.reshape(len(x), -1) @ p["dense"])
    return x @ p["readout"]


def resnet(p: Params, x: jax.Array) -> jax.Array:
    """Two ways meet in a population, and another one reads means of windows."""
    x = neurons(p, "first", convolution(x, p["first"]))
    y = neurons(p, "second", convolution(x, p["second"], 2))
    y = convolution(y, p["third"])
    x = neurons(p, "third", y + convolution(x, p["shortcut"], 2))
    window = (1, 2, 2, 1)
    x = jax.lax.reduce_window(x, 0.0, jax.lax.add, window, window, "VALID") / 4
    x = neurons(p, "pooled", x.reshape(len(x), -1) @ p["pooled"])
    return x @ p["readout"]


WIDTHS = {"first": (12, 20), "second": (20, 16), "dense": (16, 10), "readout": (10, 3)}
KERNELS = {"first": (3, 3, 1, 6), "second": (3, 3, 6, 8), "third": (3, 3, 8, 8)}
KERNELS |= {"shortcut": (1, 1, 6, 8), "dense": (128, 10), "pooled": (32, 10)}
KERNELS |= {"readout": (10, 3)}
IMAGES = 16
FUNCTIONS = {  # function -> shape of an image, shapes of weights
    mlp: ((12,), WIDTHS),
    cnn: ((8, 8, 1), KERNELS),
    resnet: ((9, 9, 1), KERNELS),
}


class Network(NamedTuple):
    """How a random network becomes whole numbers."""

    fn: Callable  # of `FUNCTIONS`
    steps: int
    levels: tuple[int, int]  # of the neurons, for which thresholds are fitted
    largest_x: int  # x are whole numbers from 0 to this one
    quantize: Mapping[str, Any]  # options of `snnjax.deploy.quantize`
    # Of the neurons after the fit, fields of `snnjax.neurons.IntegrateAndFire`.
    changes: Mapping[str, Any] = {}  # noqa: RUF012
    has_biases: bool = True

    def drawn(self, seed: int) -> tuple[Layers, np.ndarray]:
        """Layers of whole numbers, and images for them."""
        image, shapes = FUNCTIONS[self.fn]
        generator = np.random.default_rng(seed)
        params = {}
        for name, shape in shapes.items():
            scale = np.prod(shape[:-1]) ** -0.5
            params[name] = jnp.float32(generator.normal(0, scale, shape))
            bias = generator.normal(0, 0.1, shape[-1]) * self.largest_x
            params[f"{name}_bias"] = jnp.float32(self.has_biases * bias)
        x = generator.integers(0, self.largest_x + 1, (IMAGES, *image))
        x = np.float32(x * (generator.random(x.shape) < 0.7))
        model = snnjax.integrate_and_fire(levels=self.levels)
        options = {"recipe": snnjax.light(), "steps": self.steps, "model": model}
        snn = snnjax.convert(self.fn, params, x, **options)
        snn = dataclasses.replace(snn, model=dataclasses.replace(model, **self.changes))
        layers = snnjax.deploy.layers(self.fn, snn, x)
        bits = self.largest_x.bit_length() + 1  # one of them is a sign
        # A scale with which all potentials fit: programs treat overflows differently.
        options = {"overflow": "wrap"} | self.quantize
        return snnjax.deploy.quantize(layers, x, input_bits=bits, **options), x


Program = Callable[[Layers, np.ndarray], dict[str, np.ndarray]]


class Comparison(NamedTuple):
    """A row of the table."""

    program: Program  # (layers, x) -> {population: levels}
    what: str  # words for the table
    package: str  # that has the program
    networks: tuple[Network, ...]  # each is drawn with every seed
    is_exact: bool = True  # whether the program should send the same spikes


def comparisons() -> tuple[Comparison, ...]:
    """All of them."""
    four_bits = {"weight_bits": 4, "state_bits": 30}
    first_has_eight = four_bits | {"weight_bits": {"first/*": 8, "*": 4}}
    akida: tuple[Network, ...] = ()
    for levels in ((0, 15), (0, 3), (0, 1)):
        akida += (Network(mlp, 1, levels, 15, four_bits),)
        akida += (Network(cnn, 1, levels, 255, first_has_eight),)
    kinds = ((0, 1), "channel", {}), ((0, 3), "layer", {})
    kinds += (((0, 1), "channel", {"reset": "zero"}),)
    sinabs = tuple(
        Network(fn, 6, levels, 15, {"scale": scale}, changes)
        for fn in (mlp, cnn, resnet)
        for levels, scale, changes in kinds
    )
    many = {"levels": (0, 255)}  # more than a neuron sends in a step
    layer = {"scale": "layer", "weight_bits": 7}  # so that biases have 8 bits
    speck = tuple(
        Network(fn, 6, (0, 1), 3, layer, many, has_biases=False) for fn in (mlp, cnn)
    )
    loihi = tuple(
        Network(fn, 6, (0, 1), 15, {"scale": "power_of_two"}, {"reset": "zero"})
        for fn in (mlp, cnn, resnet)
    )
    loihi_rule = "rule of Loihi (Lava b6822fbc)"
    first = "rule of Speck (sinabs 904eb893), inhibition first"
    by_address = "rule of Speck, events by address"
    discrete = "sinabs, quantized for DYNAP-CNN"
    programs = chip_programs
    return (
        Comparison(programs.akida, "simulator of Akida 1.0", "akida", akida),
        Comparison(programs.sinabs, "neurons of sinabs", "sinabs", sinabs),
        Comparison(programs.dynapcnn, discrete, "sinabs", speck),
        Comparison(programs.loihi, loihi_rule, "numpy", loihi),
        Comparison(programs.speck, first, "numpy", speck),
        Comparison(programs.speck_by_address, by_address, "numpy", speck, False),
    )


def counts_of(program: Program, layers: Layers, x: np.ndarray) -> Counter[str]:
    """How many levels are compared, are not 0, and are others than ours.

    Raises:
        Misfit: a potential or x leaves its bits, which programs treat unlike.
    """
    trace = chip_programs.run_in_bits(layers, x)
    return chip_programs.compared(trace.spikes, program(layers, x))


def row_of(comparison: Comparison, seeds: int) -> dict[str, Any]:
    """All networks and seeds of a comparison; no counts if its package is missing."""
    package = comparison.package
    version = timing.versions([package])[package]
    row = {"version": f"{package} {version}"}
    if version == "not installed":
        return row
    counts: Counter[str] = Counter()
    for network in comparison.networks:
        for seed in range(seeds):
            counts += counts_of(comparison.program, *network.drawn(seed))
            counts["networks"] += 1
    return row | {name: int(counts[name]) for name in COLUMNS if name not in row}


COLUMNS = {"version": "version", "networks": "networks", "spikes": "spikes compared"}
COLUMNS |= {"not_0": "not 0", "mismatches": "mismatches"}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    options = timing.parser(__doc__).parse_args(arguments)
    seeds = 1 if options.quick else 5
    packages = ("jax", "numpy", "akida", "sinabs", "torch")
    result = timing.new_result(__doc__, packages, sizes={"seeds": seeds})
    for comparison in comparisons():
        print(f"comparing {comparison.what}", file=sys.stderr, flush=True)
        result["sides"][comparison.what] = row = row_of(comparison, seeds)
        if comparison.is_exact and "mismatches" in row:
            goal = f"mismatches, {comparison.what}"
            result["targets"] += [timing.target(goal, row["mismatches"], at_most=0)]
    text = timing.table_of("program", COLUMNS, result["sides"])
    return timing.report(result, text, options.out)


if __name__ == "__main__":
    main()
