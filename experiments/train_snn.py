"""Trains a spiking network directly: ``python -m experiments.train_snn``.

Surrogate gradients through T steps of LIF neurons, with Adam and BatchNorm over time
and batch. Dspike's temperature is chosen once per epoch, as in the paper, or stays
fixed. Start an interrupted run again to resume it; it ends with the same weights, bit
for bit.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import snnjax
from experiments.data import Dataset, augment, load, load_events, normalize
from experiments.models import NAMES, SNN_FILE, build
from experiments.presets import PRESETS_SNN
from experiments.report import training_figures
from experiments.running import (
    TrainSNN,
    check_writable,
    devices,
    options,
    parse,
    run,
    training_loop,
)
from snnjax import SNN, training

SURROGATES: dict[str, Callable] = {
    "rectangle": snnjax.surrogate.rectangle,
    "triangle": snnjax.surrogate.triangle,
    "exponential": snnjax.surrogate.exponential,
    "sigmoid": snnjax.surrogate.sigmoid,
    "arctan": snnjax.surrogate.arctan,
    "dspike": snnjax.surrogate.dspike,
}
# name -> the model around a LIF neuron.
NEURONS: dict[str, Callable[[Any], Any]] = {
    "lif": lambda lif: lif,
    "synaptic": lambda lif: snnjax.neurons.Synaptic(lif, synaptic_leak=0.5),
    "adaptive": snnjax.neurons.Adaptive,
    "recurrent": snnjax.neurons.Recurrent,
}
MOST_RECURRENT = 2048  # neurons of a site: their kernel has the square of it


class State(NamedTuple):
    """The state that a training step changes."""

    snn: SNN
    opt_state: optax.OptState


class Setting(NamedTuple):
    """Values that do not change during a training."""

    config: TrainSNN
    data: Dataset
    model: nn.Module
    kinds: SNN  # a label for every leaf, see snnjax.training.param_labels
    optimizer: optax.GradientTransformation
    first: tuple[str, ...]  # paths of the first layer's weights

    @property
    def sequence(self) -> bool:
        """Whether examples are event frames, with a time axis of their own."""
        return self.data.train_images.ndim == 5

    def spiking(self, *, train: bool) -> Callable:
        """The network in time; in training mode with new statistics as aux."""
        config, in_training = self.config, {"mutable": ["batch_stats"]} if train else {}
        remat = snnjax.simulation.ByLayer(remat=True)
        return snnjax.spiking(
            functools.partial(self.model.apply, train=train, **in_training),
            steps=config.steps,
            surrogate=SURROGATES[config.surrogate],
            inputs="sequence" if self.sequence else "constant",
            execution=remat if train and config.remat else "auto",
            has_aux=train,
        )

    def loss(self, images: jax.Array, labels: jax.Array) -> Callable[[SNN], tuple]:
        """snn -> (loss, (accuracy, new statistics)), in training mode."""
        x, simulate = self.current(images), self.spiking(train=True)

        def loss(snn: SNN) -> tuple:
            outputs, updates = simulate(snn, x)
            accuracy = (outputs.mean(0).argmax(-1) == labels).mean()
            return training.mean_cross_entropy(outputs, labels), (accuracy, updates)

        return loss

    def current(self, images: jax.Array) -> jax.Array:
        """Images as they enter: [B, H, W, C], or frames [T, B, H, W, C]."""
        x = normalize(self.data, images)
        return jnp.moveaxis(x, 1, 0) if self.sequence else x


def train(config: TrainSNN, *, data: Dataset | None = None) -> SNN:
    """Trains a spiking network, or resumes the training in `config.out`.

    The network is also written there. By default the data are loaded.
    """
    options.check_range(config, "surrogate", options.one_of(*SURROGATES))
    options.check_range(config, "neuron", options.one_of(*NEURONS))
    check_writable(config.out, "--out")
    data = (_load(config) if data is None else data).first(config.train_images)
    training_loop.steps_per_epoch(config, data)  # fails early
    setting, state = _begin(config, data)
    out = Path(config.out).expanduser().resolve()
    simulate = setting.spiking(train=False)

    def predict(snn, images):
        return simulate(snn, setting.current(images)).mean(0)

    test = data.test_images, data.test_labels
    evaluate = devices.accuracy(predict, *test, devices.make_mesh(config.mesh))

    def measure(state: State, log: list[dict]) -> dict[str, Any]:
        temperatures = training.temperatures(state.snn).values()
        means = [float(b.mean()) for b in temperatures]
        entries = {"test_accuracy": evaluate(state.snn), "temperature": means}
        log = [*log[:-1], log[-1] | entries]
        if devices.first():
            training_figures.training(log, list(state.snn.neurons), out / "curves.png")
        return entries

    state, log = training_loop.fit(config, data, state, make_step(setting), measure)
    if devices.first():
        _save(setting, state.snn, log[-1]["test_accuracy"], out / SNN_FILE)
    return state.snn


def make_step(setting: Setting) -> Callable[..., tuple[State, dict[str, jax.Array]]]:
    """The step for `training_loop.fit`; checks once that gradients arrive."""
    descend = jax.jit(functools.partial(_step, setting))
    choose = jax.jit(functools.partial(_choose, setting))
    is_checked = False

    def step(state, key, images, labels, index):
        nonlocal is_checked
        if setting.config.learn == "choose" and index == 0:
            state = choose(state, images, labels)
        state, numbers, alive = descend(state, key, images, labels)
        if not is_checked:
            training.check_gradients(alive, setting.kinds)
            is_checked = True
        return state, numbers

    return step


def _step(setting: Setting, state: State, key, images, labels):
    """(state, report, which leaves received a gradient)."""
    config, (snn, opt_state) = setting.config, state
    loss_of = setting.loss(_augmented(config, key, images), labels)
    result, gradient = jax.value_and_grad(loss_of, has_aux=True)(snn)
    loss, (accuracy, updates) = result
    alive = jax.tree.map(lambda slope: jnp.any(slope != 0), gradient)
    changes, opt_state = setting.optimizer.update(gradient, opt_state, snn)
    snn = optax.apply_updates(snn, changes)
    snn = dataclasses.replace(snn, params={**snn.params, **updates})
    report = training_loop.report(loss, accuracy, snn.params)
    return State(snn, opt_state), report, alive


def _choose(setting: Setting, state: State, images, labels) -> State:
    """Algorithm 1 of the paper, on some of the first batch of an epoch."""
    config = setting.config
    count = config.difference_images
    loss_and_aux = setting.loss(images[:count], labels[:count])
    snn, _ = training.choose_temperature(
        lambda snn: loss_and_aux(snn)[0],
        state.snn,
        setting.first,
        step=config.difference_step,
        change=config.temperature_rate,
        lowest=config.lowest,
    )
    return state._replace(snn=snn)


def _augmented(config: TrainSNN, key, images):
    """Crops and mirrors; all frames of a recording alike."""
    change = functools.partial(augment, key, flip=config.flip, padding=config.padding)
    return jax.vmap(change, 1, 1)(images) if images.ndim == 5 else change(images)


# ------------------------------------------------------------------------ set-up


def _load(config: TrainSNN) -> Dataset:
    if config.dataset.endswith(".npz"):
        path = Path(config.data_dir or ".") / config.dataset
        return load_events(path, config.steps)
    return load(config.dataset, config.data_dir)


def _begin(config: TrainSNN, data: Dataset) -> tuple[Setting, State]:
    model = build(config.model, data.num_classes, norm=config.norm)
    example = jnp.zeros((1, *data.train_images.shape[-3:]))
    variables = jax.jit(model.init)(jax.random.key(config.seed), example)
    sites = snnjax.sites(model.apply, variables, example)
    neuron, key = _neuron(config, sites), jax.random.key(config.seed)
    snn = snnjax.init(model.apply, variables, example, model=neuron, key=key)
    # All weights are trained, and nothing else.
    names = ("weights", "kernel") if config.neuron == "recurrent" else ("weights",)
    kinds = training.param_labels(snn, names)
    adam = optax.adamw(
        training_loop.schedule(config, data),
        weight_decay=config.weight_decay,
        mask=training.kernels,
    )
    optimizer = training.optimizer(dict.fromkeys(names, adam))
    first = tuple(p for p in sites[0].parameters if p.endswith("kernel"))
    setting = Setting(config, data, model, kinds, optimizer, first)
    return setting, State(snn, optimizer.init(snn))


def _neuron(config: TrainSNN, sites: Sequence[snnjax.network.Site]) -> Any:
    """The model of all sites, recurrent where the kernel is not too large."""
    lif = snnjax.lif(
        leak=config.leak,
        threshold=config.threshold,
        reset=config.reset,
        temperature=config.temperature,
    )
    model = NEURONS[config.neuron](lif)
    if config.neuron != "recurrent":
        return model
    sizes = {site.name: math.prod(site.shape) for site in sites if site.fires}
    names = [name for name, size in sizes.items() if size <= MOST_RECURRENT]
    if not names:
        raise ValueError(
            f"recurrent neurons need a site of at most {MOST_RECURRENT} neurons; "
            f"{config.model} has sites of {sorted(sizes.values())}. Take another "
            "--model"
        )
    if len(names) == len(sizes):
        return model
    return {**dict.fromkeys(names, model), "*": lif}


def _save(setting: Setting, snn: SNN, accuracy: float, file: Path) -> None:
    config, data = setting.config, setting.data
    card = {
        "model": config.model,
        "norm": config.norm,
        "clip": None,
        **data.facts(),
        "training": dataclasses.asdict(config),
        "packages": {package: version(package) for package in ("flax", "optax")},
    }
    recipe = f"direct training, {config.surrogate}, {config.learn}"
    snn = dataclasses.replace(snn, steps=config.steps, wait=0)
    snnjax.save(file, snn, extras=card, recipe=recipe, accuracy=accuracy)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; user errors end with one message and exit code 1."""
    names = {"models": NAMES, "neurons": NEURONS, "surrogates": SURROGATES}
    config = parse(TrainSNN, PRESETS_SNN, argv, names)
    run(lambda: train(config))
    print(f"{config.out}: metrics.jsonl, curves.png, the SNN in {SNN_FILE}")


if __name__ == "__main__":
    main()
