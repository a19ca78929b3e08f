"""The papers' methods of training-free conversion: ``python -m experiments.methods``.

Each function returns a `Method`, a paper's conversion in the words of this library:

    snn = methods.burst().convert(fn, params, images, steps=8)

In the equations V is the threshold, a the ANN's activation, s the mean output, w the
weight of a spike at step t, and k its level. `docs/methods.md` says what differs from
the papers.

The command converts networks by all methods, with the same weights and images. It adds
the rows that its files do not have yet, so a run that was interrupted goes on.
"""

import dataclasses
import functools
import itertools
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import snnjax
from experiments import conversions, convert, published
from experiments.conversions import Experiment
from experiments.presets import CHECKPOINTS
from experiments.report import Result, figures, header, read_results
from experiments.report import results as report
from experiments.running import Convert, options, options_of_results, parse
from experiments.running import run as run_command
from snnjax import Recipe, calibrators
from snnjax.calibrators import formulas

RATE, RADIX = snnjax.codes.rate(), snnjax.codes.radix()
HALF = calibrators.half_charge()
SIGNED = snnjax.integrate_and_fire(levels=(-1, 1))


@dataclasses.dataclass(frozen=True)
class Method:
    """A conversion: the arguments of `snnjax.convert`, and what a paper has beside.

    Attributes:
        recipe, model, code: as `snnjax.convert` takes them.
        wait: of T; None: as `snnjax.convert` finds it.
        reset: "zero" resets the converted neurons to 0, though their thresholds are
            fitted to a reset by subtraction.
        encodes: whether the method says how values of both signs are sent.
    """

    recipe: Any
    model: snnjax.neurons.IntegrateAndFire | None = snnjax.integrate_and_fire()
    code: snnjax.codes.Code = RATE
    wait: Callable[[int], int | None] = lambda steps: 0
    reset: str = "subtract"
    encodes: bool = False

    def convert(self, fn: Callable, params: Any, x: Any, *, steps: int) -> snnjax.SNN:
        """The conversion of `snnjax.convert`.

        Raises:
            ValueError: also for values of both signs that the method does not send.
        """
        sites = snnjax.sites(fn, params, x[:1])
        encoders = [site.name for site in sites if site.is_encoder]
        if encoders and not self.encodes:
            raise ValueError(
                "the method is for networks of ReLUs, and this one has encoders, e.g. "
                f"{encoders[0]!r}; take differential() or best()"
            )
        snn = snnjax.convert(
            fn,
            params,
            x,
            steps=steps,
            wait=self.wait(steps),
            recipe=self.recipe,
            model=self.model,
            code=self.code,
        )
        if self.reset == "subtract":
            return snn
        zeroed = dataclasses.replace(snn.model, reset=self.reset)
        return dataclasses.replace(snn, model=zeroed)


# --------------------------------------------------------- thresholds of the papers


def spike(
    statistic: Callable, level: int = 1, per: Any = "layer"
) -> calibrators.Calibrator:
    """V = statistic / level, whatever a neuron can send in T steps."""

    def scaled(view: calibrators.View, fit: calibrators.Fit, per: Any) -> Any:
        # `calibrators.threshold` divides by what a neuron can send.
        return statistic(view, fit, per) * view.high / level

    return calibrators.threshold(scaled, per)


def largest_current(view: calibrators.View, fit: calibrators.Fit, per: Any) -> Any:
    """max z(t) over images, neurons and steps, of what arrives in the SNN."""
    currents = view.currents_by_batch(fit.weights)
    largest = max(float(current.max()) for current in currents)
    return jnp.float32(largest if largest > 0 else 1)


@functools.partial(jax.jit, static_argnums=1)
def local_balance(activation: jax.Array, rounds: int) -> jax.Array:
    """V <- V + 2 mean max(a - V, 0), from 0, of [n, C]: [C]."""

    def grow(_, v):
        return v + 2 * jnp.maximum(activation - v, 0).mean(0)

    v = jax.lax.fori_loop(0, rounds, grow, jnp.zeros_like(activation[0]))
    # A channel that is never active has the largest threshold of the others.
    v = jnp.where(v > 0, v, v.max())
    return jnp.where(v > 0, v, 1)


def nearest_grid(view: calibrators.View, fit: calibrators.Fit, per: Any) -> Any:
    """argmin of the error of 2 T high values from 0 to the threshold."""
    return formulas.least_squares(
        view.sample.magnitudes(None),
        2 * view.steps * view.model.levels[1],
        per,
        shift=0.5,
        maxima=view.sample.maxima(None),
    )


@dataclasses.dataclass(frozen=True)
class Linear(snnjax.codes.Code):
    """w = (T + 1 - t) / T: the earlier a spike, the more it is worth."""

    def weights(self, steps: int) -> tuple[float, ...]:
        return tuple((steps - t) / steps for t in range(steps))

    def __repr__(self) -> str:
        return "linear()"


# ---------------------------------------------------------------------- methods


def maximum() -> Method:
    """V = max a; v <- 0 after a spike. Diehl et al., IJCNN 2015."""
    return Method(snnjax.max_activation(), reset="zero")


def percentile(p: float = 99.9) -> Method:
    """V = percentile of a. Rueckauer et al., Frontiers in Neuroscience 2017."""
    return Method(snnjax.percentile(p))


def spike_norm() -> Method:
    """V = max z(t), what arrives in the SNN, layer by layer; v <- 0 after a spike.

    Sengupta et al., Frontiers in Neuroscience 2019.
    """
    return Method(Recipe([calibrators.threshold(largest_current)]), reset="zero")


def soft_reset() -> Method:
    """V = max a; v <- v - V after a spike. Han et al., CVPR 2020."""
    return Method(snnjax.max_activation())


def bias_shift() -> Method:
    """V = max a; b <- b + V / 2T. Deng and Gu, ICLR 2021."""
    return Method(snnjax.bias_shift())


def light() -> Method:
    """V = argmin (clipfloor(a) - a)^2; b <- b + V / 2T + mean (a - s).

    Li et al., ICML 2021.
    """
    return Method(snnjax.light())


def advanced(iterations: int = 5000) -> Method:
    """V and shift as `light`; weights by Adam on (a - s)^2; v(0) <- T mean (a - s).

    Li et al., ICML 2021.
    """
    return Method(snnjax.advanced(iterations=iterations))


def burst(high: int = 5) -> Method:
    """V = percentile 99.9 of a; k = clip(floor(v / V), 0, 5).

    Li and Zeng, IJCAI 2022.
    """
    recipe = Recipe([spike(calibrators.percentile(99.9))])
    return Method(recipe, snnjax.integrate_and_fire(levels=(0, high)))


def signed() -> Method:
    """V = max a; k = 1 where v >= V, and -1 where v <= -V and spikes were sent.

    Wang et al., IJCAI 2022.
    """
    recipe = Recipe([calibrators.max_threshold("channel"), HALF])
    # Zones as wide as a spike: both signs need a whole threshold.
    whole = dataclasses.replace(SIGNED, dead_zone=1 - 2**-20, last_zone=1)
    return Method(recipe, whole)


def local_balancing(rounds: int = 1000) -> Method:
    """V <- V + 2 mean max(a - V, 0), from 0; v(0) = V / 2. Bu et al., CVPR 2025."""

    def balance(view: calibrators.View, fit: calibrators.Fit, per: Any) -> Any:
        return local_balance(view.sample.magnitudes(None), rounds)

    return Method(Recipe([calibrators.threshold(balance, "channel"), HALF]))


def differential(high: int = 8) -> Method:
    """w = 1 / t; k = nearest of -8 .. 8, 0 below 3/4; 8 V = argmin (cliround(a) - a)^2.

    Huang et al., ICML 2025.
    """
    recipe = Recipe([spike(nearest_grid, high, "channel"), HALF])
    model = snnjax.integrate_and_fire(
        levels=(-high, high), dead_zone=0.75, last_zone=0.75
    )
    return Method(recipe, model, snnjax.codes.harmonic(), encodes=True)


def canonic() -> Method:
    """w = 2^(1 - t); k = nearest of -1, 0, 1; wait 1; V = max a / (2 - 2^(1 - T)).

    Gu et al., 2024, arXiv 2408.17245.
    """
    recipe = Recipe([calibrators.max_threshold(), HALF])
    return Method(recipe, SIGNED, RADIX, lambda steps: min(1, steps - 1))


def few_spikes() -> Method:
    """w = 2^(1 - t); k = floor, 0 or 1; wait T - 1; V = max a / (2 - 2^(1 - T)).

    Stöckl and Maass, Nature Machine Intelligence 2021.
    """
    return Method(snnjax.max_activation(), code=RADIX, wait=lambda steps: steps - 1)


def first_spike() -> Method:
    """w = (T + 1 - t) / T; k = nearest, 0 or 1, once; wait T - 1; V = max a.

    Stanojevic et al., Nature Communications 2024.
    """
    recipe = Recipe([spike(calibrators.maximum), HALF])
    return Method(recipe, code=Linear(), wait=lambda steps: steps - 1)


def best(spikes: float | None = None, code: snnjax.codes.Code = RATE) -> Method:
    """Ours, `snnjax.best`."""
    recipe = snnjax.best(spikes=spikes)
    return Method(recipe, None, code, wait=lambda steps: None, encodes=True)


METHODS: dict[str, Callable[[], Method]] = {
    "max": maximum,
    "percentile": percentile,
    "spike norm": spike_norm,
    "soft reset": soft_reset,
    "bias shift": bias_shift,
    "light": light,
    "advanced": advanced,
    "burst": burst,
    "signed": signed,
    "local balancing": local_balancing,
    "differential": differential,
    "canonic": canonic,
    "few spikes": few_spikes,
    "first spike": first_spike,
    "best": best,
    "best digits": functools.partial(best, code=RADIX),
    "best few digits": functools.partial(best, 0.5, RADIX),
}


# ---------------------------------------------------------------------- command


@dataclasses.dataclass(frozen=True)
class Methods(options.Work):
    """Conversion of networks by the papers' methods; results go to `out`."""

    dataset: str = "cifar10"
    out: str = "runs/methods"
    # Networks of experiments.presets.CHECKPOINTS, or folders of train_ann.
    models: tuple[str, ...] = ("resnet20", "resnet56", "whitened_vgg8", "vit")
    # Methods, of experiments.methods.METHODS.
    methods: tuple[str, ...] = tuple(METHODS)
    # Numbers of time steps T; each is a separate conversion.
    steps: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    # Training images to calibrate with, without their labels.
    calibration_images: int = 256
    # Test images to evaluate on, the first ones; by default all.
    test_images: int | None = None
    # Adam steps per site of weight calibration in "advanced" (the paper: 5000).
    iterations: int = 1000

    def __post_init__(self):
        super().__post_init__()
        options.check_range(self, "methods", options.one_of(*METHODS))


def run(config: Methods) -> str:
    """Measure the rows that are missing, and draw each network; the table of all."""
    networks = []
    for model in config.models:
        out = Path(config.out) / Path(model).stem
        conversion = Convert(
            dataset=config.dataset,
            data_dir=config.data_dir,
            mesh=config.mesh,
            steps=config.steps,
            calibration_images=config.calibration_images,
            test_images=config.test_images,
            checkpoint=CHECKPOINTS.get(model, model),
            seeds=(0,),
            out=str(out),
        )
        task = convert.prepare(conversion)._replace(held_out=None)
        measure(task, dataclasses.replace(config, models=(model,), out=str(out)))
        networks.append(read_results(out))
        draw(networks[-1].results, task.ann, out / "methods.png")
    return published.table_of_methods(networks)


def draw(results: Sequence[Result], ann: float, path: Path) -> None:
    """Accuracy against latency and spikes: of binary spikes that count, of others."""
    groups: dict[bool, list[Result]] = {}
    for row in results:
        # Rows near chance would leave no space for the others.
        if row.final > ann / 4:
            is_binary = figures.kind_of(row) == "rate, binary"
            groups.setdefault(is_binary, []).append(row)
    panels = []
    for rows in groups.values():
        by_latency = figures.against(rows, ann, "latency")
        panels.append([by_latency, figures.against(rows, ann, "spikes")])
    if panels:
        figures.write_accuracy(path, *panels)


def measure(task: Experiment, config: Methods) -> None:
    """Add the rows of a network that its file does not have yet."""
    file = Path(config.out) / "metrics.json"
    results = _finished(task, config, file)
    done = {(row.recipe, row.steps) for row in results}
    print(header(30), flush=True)
    for steps, name in itertools.product(config.steps, config.methods):
        if (name, steps) in done:
            continue
        try:
            result = _result(task, config, name, steps)
        except ValueError as reason:
            print(f"{name}, T = {steps} is left out: {reason}", file=sys.stderr)
            continue
        print(report.row(result, 30), flush=True)
        results.append(result)
        results.sort(key=lambda row: (list(METHODS).index(row.recipe), row.steps))
        # The facts have the methods and T of all rows, also of other calls.
        measured = dataclasses.replace(
            config,
            methods=tuple(dict.fromkeys(row.recipe for row in results)),
            steps=tuple(sorted({row.steps for row in results})),
        )
        facts = convert.facts_of(task, "experiments.methods", measured)
        report.write_metrics(file, facts, results)


def _result(task: Experiment, config: Methods, name: str, steps: int) -> Result:
    """The row of a method and T; raises ValueError where the method does not apply."""
    method = METHODS[name]()
    if name == "advanced":
        method = advanced(config.iterations)
    images = conversions.calibration_images(task.config, task.data, 0)
    start = time.perf_counter()
    snn = method.convert(task.fn, task.params, images, steps=steps)
    jax.block_until_ready(snn)
    seconds = time.perf_counter() - start
    snn = conversions.widen_all(snn, task.sites)
    return conversions.evaluated(task, name, snn, seconds)


def _finished(task: Experiment, config: Methods, file: Path) -> list[Result]:
    """The rows of a file; raises unless they are of these options and weights."""
    if not file.exists():
        return []
    facts = json.loads(file.read_text())
    options_now = options_of_results(config)
    options_now["weights"] = task.source.card.get("sha256")
    options_of_file = facts["config"] | {"weights": facts["source"].get("sha256")}
    # Rows of other methods, T and networks stand beside each other.
    for option in options_now.keys() - {"methods", "steps", "models"}:
        if options_now[option] != options_of_file.get(option):
            raise ValueError(
                f"{file} has rows of {option} {options_of_file.get(option)}, not "
                f"{options_now[option]}; give another --out, or the options that it "
                "was made with"
            )
    return read_results(file).results


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; user errors end with one message and exit code 1."""
    config = parse(Methods, {}, argv, {"methods": METHODS})
    run_command(lambda: print(run(config), end=""))


if __name__ == "__main__":
    main()
