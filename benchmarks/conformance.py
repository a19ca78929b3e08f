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


def mlp(params: Params, x: jax.Array) -> jax.Array:
    """Three hidden layers."""
    for name in ("first", "second", "dense"):
        x = neurons(params, name, x @ params[name])
    return x @ params["readout"]


def cnn(params: Params, x: jax.Array) -> jax.Array:
    """Three convolutions and a dense layer."""
    for name, stride in (("first", 1), ("second", 2), ("third", 1)):
        x = neurons(params, name, convolution(x, params[name], stride))
    x = neurons(params, "dense", x.reshape(len(x), -1) @ params["dense"])
    return x @ params["readout"]


def resnet(params: Params, x: jax.Array) -> jax.Array:
    """Two ways meet in a population, and another one reads means of windows."""
    x = neurons(params, "first", convolution(x, params["first"]))
    y = neurons(params, "second", convolution(x, params["second"], 2))
    y = convolution(y, params["third"])
    x = neurons(params, "third", y + convolution(x, params["shortcut"], 2))
    window = (1, 2, 2, 1)
    total = jax.lax.reduce_window(
        x,
        init_value=0.0,
        computation=jax.lax.add,
        window_dimensions=window,
        window_strides=window,
        padding="VALID",
    )
    x = total / 4
    x = neurons(params, "pooled", x.reshape(len(x), -1) @ params["pooled"])
    return x @ params["readout"]


WIDTHS = {
    "first": (12, 20),
    "second": (20, 16),
    "dense": (16, 10),
    "readout": (10, 3),
}
KERNELS = {
    "first": (3, 3, 1, 6),
    "second": (3, 3, 6, 8),
    "third": (3, 3, 8, 8),
    "shortcut": (1, 1, 6, 8),
    "dense": (128, 10),
    "pooled": (32, 10),
    "readout": (10, 3),
}
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
        image_shape, shapes = FUNCTIONS[self.fn]
        generator = np.random.default_rng(seed)
        params = {}
        for name, shape in shapes.items():
            scale = np.prod(shape[:-1]) ** -0.5
            params[name] = jnp.float32(generator.normal(0, scale, shape))
            bias = generator.normal(0, 0.1, shape[-1]) * self.largest_x
            params[f"{name}_bias"] = jnp.float32(self.has_biases * bias)
        x = generator.integers(0, self.largest_x + 1, (IMAGES, *image_shape))
        x = np.float32(x * (generator.random(x.shape) < 0.7))
        model = snnjax.integrate_and_fire(levels=self.levels)
        snn = snnjax.convert(
            self.fn,
            params,
            x,
            steps=self.steps,
            model=model,
            recipe=snnjax.light(),
        )
        snn = dataclasses.replace(snn, model=dataclasses.replace(model, **self.changes))
        layers = snnjax.deploy.layers(self.fn, snn, x)
        # A scale with which all potentials fit: programs treat overflows differently.
        options = {"overflow": "wrap"} | self.quantize
        input_bits = self.largest_x.bit_length() + 1  # one of them is a sign
        integers = snnjax.deploy.quantize(
            layers,
            x,
            input_bits=input_bits,
            **options,
        )
        return integers, x


Program = Callable[[Layers, np.ndarray], dict[str, np.ndarray]]


class Comparison(NamedTuple):
    """A row of the table."""

    program: Program  # (layers, x) -> {population: levels}
    what: str  # words for the table
    package: str  # that has the program
    networks: tuple[Network, ...]  # each is drawn with every seed
    is_exact: bool = True  # whether the program should send the same spikes


def akida_networks() -> tuple[Network, ...]:
    """Weights of 4 bits, but of 8 in a layer that reads images."""
    dense_bits = {"weight_bits": 4, "state_bits": 30}
    image_bits = {"weight_bits": {"first/*": 8, "*": 4}, "state_bits": 30}
    networks = []
    for levels in ((0, 15), (0, 3), (0, 1)):
        networks.append(
            Network(
                mlp,
                steps=1,
                levels=levels,
                largest_x=15,
                quantize=dense_bits,
            )
        )
        networks.append(
            Network(
                cnn,
                steps=1,
                levels=levels,
                largest_x=255,
                quantize=image_bits,
            )
        )
    return tuple(networks)


def sinabs_networks() -> tuple[Network, ...]:
    """Both resets, and graded spikes."""
    channel = {"scale": "channel"}
    networks = []
    for fn in (mlp, cnn, resnet):
        networks.append(
            Network(
                fn,
                steps=6,
                levels=(0, 1),
                largest_x=15,
                quantize=channel,
            )
        )
        networks.append(
            Network(
                fn,
                steps=6,
                levels=(0, 3),
                largest_x=15,
                quantize={"scale": "layer"},
            )
        )
        networks.append(
            Network(
                fn,
                steps=6,
                levels=(0, 1),
                largest_x=15,
                quantize=channel,
                changes={"reset": "zero"},
            )
        )
    return tuple(networks)


def speck_networks() -> tuple[Network, ...]:
    """With 7 bits of weights, so that biases have 8."""
    quantize = {"scale": "layer", "weight_bits": 7}
    changes = {"levels": (0, 255)}  # more than a neuron sends in a step
    networks = []
    for fn in (mlp, cnn):
        network = Network(
            fn,
            steps=6,
            levels=(0, 1),
            largest_x=3,
            quantize=quantize,
            changes=changes,
            has_biases=False,
        )
        networks.append(network)
    return tuple(networks)


def loihi_networks() -> tuple[Network, ...]:
    """With the scale and the reset of the chip."""
    quantize = {"scale": "power_of_two"}
    networks = []
    for fn in (mlp, cnn, resnet):
        networks.append(
            Network(
                fn,
                steps=6,
                levels=(0, 1),
                largest_x=15,
                quantize=quantize,
                changes={"reset": "zero"},
            )
        )
    return tuple(networks)


def comparisons() -> tuple[Comparison, ...]:
    """All of them."""
    return (
        Comparison(
            chip_programs.akida,
            what="simulator of Akida 1.0",
            package="akida",
            networks=akida_networks(),
        ),
        Comparison(
            chip_programs.sinabs,
            what="neurons of sinabs",
            package="sinabs",
            networks=sinabs_networks(),
        ),
        Comparison(
            chip_programs.dynapcnn,
            what="sinabs, quantized for DYNAP-CNN",
            package="sinabs",
            networks=speck_networks(),
        ),
        Comparison(
            chip_programs.loihi,
            what="rule of Loihi (Lava b6822fbc)",
            package="numpy",
            networks=loihi_networks(),
        ),
        Comparison(
            chip_programs.speck,
            what="rule of Speck (sinabs 904eb893), inhibition first",
            package="numpy",
            networks=speck_networks(),
        ),
        Comparison(
            chip_programs.speck_by_address,
            what="rule of Speck, events by address",
            package="numpy",
            networks=speck_networks(),
            is_exact=False,
        ),
    )


def level_counts(program: Program, layers: Layers, x: np.ndarray) -> Counter[str]:
    """How many levels are compared, are not 0, and are others than ours.

    Raises:
        Misfit: a potential or x leaves its bits, which programs treat unlike.
    """
    trace = chip_programs.run_in_bits(layers, x)
    return chip_programs.compared(trace.spikes, program(layers, x))


def table_row(comparison: Comparison, seeds: int) -> dict[str, Any]:
    """All networks and seeds of a comparison; no counts if its package is missing."""
    package = comparison.package
    version = timing.versions([package])[package]
    row: dict[str, Any] = {"version": f"{package} {version}"}
    if version == "not installed":
        return row
    counts: Counter[str] = Counter()
    for network in comparison.networks:
        for seed in range(seeds):
            layers, x = network.drawn(seed)
            counts += level_counts(comparison.program, layers, x)
            counts["networks"] += 1
    for name in ("networks", "spikes", "not_0", "mismatches"):
        row[name] = int(counts[name])
    return row


COLUMNS = {
    "version": "version",
    "networks": "networks",
    "spikes": "spikes compared",
    "not_0": "not 0",
    "mismatches": "mismatches",
}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """The command: a result with a row for each program, which is printed too."""
    options = timing.parser(__doc__).parse_args(arguments)
    seeds = 1 if options.quick else 5
    packages = ("jax", "numpy", "akida", "sinabs", "torch")
    result = timing.new_result(__doc__, packages, sizes={"seeds": seeds})
    for comparison in comparisons():
        print(f"comparing {comparison.what}", file=sys.stderr, flush=True)
        row = table_row(comparison, seeds)
        result["sides"][comparison.what] = row
        if comparison.is_exact and "mismatches" in row:
            goal = f"mismatches, {comparison.what}"
            target = timing.target(goal, row["mismatches"], at_most=0)
            result["targets"].append(target)
    text = timing.table_of("program", COLUMNS, result["sides"])
    return timing.report(result, text, options.out)


if __name__ == "__main__":
    main()
