"""Trains a spiking network directly: ``python -m experiments.train_snn``.

Surrogate gradients through T steps of LIF neurons, with Adam and BatchNorm over time
and batch. Dspike's temperature is chosen once per epoch, as in the paper, stays fixed
or follows a schedule. Sequences are read step by step. Start an interrupted run again
to resume it; it ends with the same weights, bit for bit.
"""

import dataclasses
import functools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import snnjax
from experiments import running
from experiments.data import (
    Dataset,
    augment,
    augment_sequences,
    in_parts,
    load,
    load_cochlea,
    load_events,
    load_keywords,
    normalize,
)
from experiments.integers import tested, text_of, write_integers
from experiments.models import NAMES, SNN_FILE, build
from experiments.presets import PRESETS_SNN
from experiments.report import training_figures
from experiments.running import (
    CHIPS,
    TrainSNN,
    devices,
    options,
    temperature,
    training_loop,
)
from snnjax import SNN, neurons, surrogate, training

SURROGATES: dict[str, Callable] = {
    "rectangle": surrogate.rectangle,
    "triangle": surrogate.triangle,
    "exponential": surrogate.exponential,
    "sigmoid": surrogate.sigmoid,
    "arctan": surrogate.arctan,
    "dspike": surrogate.dspike,
}
# name -> the model around a LIF neuron.
NEURONS: dict[str, Callable[[Any], Any]] = {
    "lif": lambda lif: lif,
    "synaptic": lambda lif: neurons.Synaptic(lif, synaptic_leak=0.5),
    "adaptive": neurons.Adaptive,
    "resonate": lambda lif: neurons.ResonateAndFire(
        threshold=lif.threshold, temperature=lif.temperature
    ),
    "recurrent": neurons.Recurrent,
    "recurrent_adaptive": lambda lif: neurons.Recurrent(neurons.Adaptive(lif)),
    "recurrent_resonate": lambda lif: neurons.Recurrent(NEURONS["resonate"](lif)),
}
# Largest site whose neurons are recurrent: their kernel has the square of it.
RECURRENT_NEURONS = 2048
# Parameters of neurons that --learn_neurons leaves as they are: weights have the same
# effect, or, of the temperature, there is no gradient.
KEPT = ("frozen", "threshold", "bias", "initial_potential", "offset", "temperature")
CALIBRATION = 512  # training examples, for the ranges of whole numbers
NEURON_RATE = 0.1  # of the learning rate, since a leak near 1 is changed by small steps


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
    temperatures: dict[str, float]  # at the start, by site in the order of execution
    averages: bool  # the network has running averages

    @property
    def steps(self) -> int:
        """T: that of a sequence, or of the options."""
        if self.data.is_sequence:
            return self.data.train_images.shape[1]
        return self.config.steps

    @property
    def inputs(self) -> Any:
        """How `snnjax.spiking` reads an example."""
        return "sequence" if self.data.is_sequence else "constant"

    def spiking(self, *, train: bool) -> Callable:
        """The network in time; in training mode with new statistics as aux."""
        has_aux = train and self.averages
        fn = functools.partial(self.model.apply, train=has_aux)
        if has_aux:
            fn = functools.partial(fn, mutable=["batch_stats"])
        return snnjax.spiking(
            fn,
            steps=self.steps,
            surrogate=SURROGATES[self.config.surrogate],
            detach_reset=self.config.detach_reset,
            inputs=self.inputs,
            has_aux=has_aux,
        )

    def loss(self, images: jax.Array, labels: jax.Array) -> Callable[[SNN], tuple]:
        """snn -> (loss, (accuracy, new statistics)), in training mode."""
        x, simulate = self.current(images), self.spiking(train=True)

        def loss(snn: SNN) -> tuple:
            outputs, updates = simulate(snn, x), {}
            if self.averages:
                outputs, updates = outputs
            outputs = self.last(outputs)
            accuracy = (outputs.mean(0).argmax(-1) == labels).mean()
            return training.mean_cross_entropy(outputs, labels), (accuracy, updates)

        return loss

    def last(self, outputs: jax.Array) -> jax.Array:
        """The outputs [T, B, classes] whose mean is the answer."""
        return outputs[int(self.config.answer_from * len(outputs)) :]

    def current(self, images: jax.Array) -> jax.Array:
        """Examples as they enter: [B, H, W, C], or sequences [T, B, ...]."""
        x = normalize(self.data, images)
        return jnp.moveaxis(x, 1, 0) if self.data.is_sequence else x


def train(config: TrainSNN, *, data: Dataset | None = None) -> SNN:
    """Trains a spiking network, or resumes the training in `config.out`.

    The network is also written there. By default the data are loaded.
    """
    options.check_range(config, "surrogate", options.one_of(*SURROGATES))
    options.check_range(config, "neuron", options.one_of(*NEURONS))
    running.check_writable(config.out, "--out")
    if data is None:
        data = _load(config)
    data = data.with_choice(config.choice).first(config.train_images)
    if config.sequence is not None:
        data = in_parts(data, config.sequence, config.pixels)
    training_loop.steps_per_epoch(config, data)  # fails early
    setting, state = _begin(config, data)
    if config.weight_bits or config.chip:
        # What has no whole numbers is refused before it is trained.
        _, quantized = _whole_numbers(setting, state.snn)
        quantized(chip=None if config.chip is None else CHIPS[config.chip]())
    out = Path(config.out).expanduser().resolve()
    state, log = training_loop.fit(
        # What was trained may be tested in other whole numbers.
        dataclasses.replace(config, weight_bits=None, chip=None),
        data,
        state,
        make_step(setting),
        _make_measure(setting, out),
    )
    if devices.first():
        _save(setting, state.snn, log[-1]["test_accuracy"], out)
    return state.snn


def _make_measure(
    setting: Setting, out: Path
) -> Callable[[State, list[dict]], dict[str, Any]]:
    """What `training_loop.fit` calls after each epoch; it also draws the curves."""
    data, simulate = setting.data, setting.spiking(train=False)

    def predict(snn, images):
        return setting.last(simulate(snn, setting.current(images))).mean(0)

    mesh = devices.make_mesh(setting.config.mesh)
    accuracies = {
        "test_accuracy": devices.accuracy(
            predict, data.test_images, data.test_labels, mesh
        )
    }
    if data.choice is not None:
        images, labels = data.choice
        accuracies["choice_accuracy"] = devices.accuracy(predict, images, labels, mesh)
    # Sites come out of a program sorted by name; the log has their order in time.
    site_names = list(setting.temperatures)

    def measure(state: State, log: list[dict]) -> dict[str, Any]:
        entries: dict[str, Any] = {}
        for name, accuracy in accuracies.items():
            entries[name] = accuracy(state.snn)
        entries["spikes"] = spikes_of(setting, state.snn)
        by_site = temperature.temperatures(state.snn)
        entries["temperature"] = [float(by_site[name].mean()) for name in site_names]
        if devices.first():
            log = [*log[:-1], log[-1] | entries]
            training_figures.training(log, site_names, out / "curves.png")
        return entries

    return measure


def _save(setting: Setting, snn: SNN, accuracy: float, out: Path) -> None:
    """Write the trained SNN and, if the options ask for it, its whole numbers."""
    config = setting.config
    snn = dataclasses.replace(snn, steps=setting.steps, wait=0)
    snnjax.save(
        out / SNN_FILE,
        snn,
        recipe=f"direct training, {config.surrogate}, {config.learn}",
        accuracy=accuracy,
        extras=_card(setting),
    )
    if config.weight_bits or config.chip:
        try:
            _test_whole_numbers(setting, snn, accuracy, out)
        except ValueError as reason:  # the training itself is worth its files
            text = running.wrapped(f"The saved SNN stays in floats: {reason}")
            print(f"\n{text}", file=sys.stderr)


def _whole_numbers(
    setting: Setting, snn: SNN
) -> tuple[snnjax.deploy.Layers, Callable[..., snnjax.deploy.Layers]]:
    """The layers, and how they are quantized."""
    fn = functools.partial(setting.model.apply, train=False)
    snn = dataclasses.replace(snn, steps=setting.steps)
    x = setting.current(setting.data.train_images[:CALIBRATION])
    # The layers are those of a batch of images, or of a step of sequences [T, B, ...].
    batch = x[0] if setting.data.is_sequence else x
    layers = snnjax.deploy.layers(fn, snn, batch)
    quantized = functools.partial(
        snnjax.deploy.quantize, layers, x, inputs=setting.inputs
    )
    return layers, quantized


def _test_whole_numbers(setting: Setting, snn: SNN, accuracy: float, out: Path) -> None:
    """Writes and prints what the trained network does as a chip computes it."""
    data = setting.data

    def run(layers: snnjax.deploy.Layers, images: Any) -> snnjax.deploy.Trace:
        x = setting.current(images)
        trace = snnjax.deploy.outputs(layers, x, inputs=setting.inputs)
        return trace._replace(outputs=setting.last(trace.outputs))

    layers, quantized = _whole_numbers(setting, snn)
    integers = tested(
        setting.config,
        layers,
        quantized,
        run,
        test=(data.test_images, data.test_labels),
        accuracy=accuracy,
    )
    card = _card(setting)
    facts = {
        "command": running.command("experiments.train_snn", setting.config),
        "versions": card["packages"],
        "source": card,
    }
    write_integers(out, integers, facts)
    print(f"\n{text_of(integers)}")


def spikes_of(setting: Setting, snn: SNN, count: int = 200) -> float:
    """Spikes per neuron and step, on the first test examples."""
    trains = snnjax.measures.spike_trains(
        functools.partial(setting.model.apply, train=False),
        snn,
        setting.current(setting.data.test_images[:count]),
        steps=setting.steps,
        inputs=setting.inputs,
    )
    spikes = sum(np.count_nonzero(train) for train in trains.values())
    return spikes / sum(train.size for train in trains.values())


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


def _step(
    setting: Setting, state: State, key: jax.Array, images: jax.Array, labels: jax.Array
) -> tuple[State, dict[str, jax.Array], SNN]:
    """(state, report, which leaves received a gradient)."""
    snn, opt_state = state
    loss_of = setting.loss(_augmented(setting, key, images), labels)
    result, gradient = jax.value_and_grad(loss_of, has_aux=True)(snn)
    loss, (accuracy, updates) = result
    alive = jax.tree.map(lambda slope: jnp.any(slope != 0), gradient)
    changes, opt_state = setting.optimizer.update(gradient, opt_state, snn)
    snn = optax.apply_updates(snn, changes)
    snn = dataclasses.replace(snn, params={**snn.params, **updates})
    if setting.config.temperature_end is not None:
        snn = _cooled(setting, snn)
    report = training_loop.report(loss, accuracy, snn.params)
    return State(snn, opt_state), report, alive


def _choose(
    setting: Setting, state: State, images: jax.Array, labels: jax.Array
) -> State:
    """Algorithm 1 of the paper, on some of the first batch of an epoch."""
    config = setting.config
    count = config.difference_images
    loss_and_aux = setting.loss(images[:count], labels[:count])
    snn, _ = temperature.choose_temperature(
        lambda snn: loss_and_aux(snn)[0],
        state.snn,
        setting.first,
        step=config.difference_step,
        change=config.temperature_rate,
        lowest=config.lowest,
    )
    return state._replace(snn=snn)


def _cooled(setting: Setting, snn: SNN) -> SNN:
    """The SNN with its temperatures one step nearer to the last one."""
    config = setting.config
    steps_per_epoch = training_loop.steps_per_epoch(config, setting.data)
    return temperature.cooled(
        snn,
        starts=setting.temperatures,
        end=config.temperature_end,
        steps=config.epochs * steps_per_epoch,
    )


def _start_temperatures(
    config: TrainSNN, site_names: Sequence[str]
) -> dict[str, float]:
    """The temperature of each site before the first step, in the order of the sites."""
    count = len(site_names)
    numbers = config.temperatures or (config.temperature,) * count
    if len(numbers) != count:
        raise ValueError(
            f"temperatures has length {len(numbers)}; allowed: {count}, the number of "
            f"sites of {config.model}"
        )
    return dict(zip(site_names, numbers, strict=True))


def _augmented(setting: Setting, key: jax.Array, images: jax.Array) -> jax.Array:
    """Crops and mirrors, all frames of a recording alike; shifts of a sequence."""
    config = setting.config
    if images.ndim == 3:
        return augment_sequences(
            key,
            images,
            jnp.asarray(setting.data.mean),
            # Permuted pixels have no neighbors in time.
            shift=0 if config.sequence == "permuted" else config.padding,
            mask=config.mask,
        )
    augment_frame = functools.partial(
        augment, key, flip=config.flip, padding=config.padding
    )
    if images.ndim == 5:
        # Frames are the second axis, and have the same key.
        return jax.vmap(augment_frame, in_axes=1, out_axes=1)(images)
    return augment_frame(images)


# ------------------------------------------------------------------------ set-up


def _load(config: TrainSNN) -> Dataset:
    """The data set of the options; its files tell its kind."""
    path = Path(config.data_dir or ".").expanduser() / config.dataset
    if config.dataset in ("shd", "ssc"):
        return load_cochlea(path.parent, config.dataset, config.steps)
    if path.is_dir() and any(path.glob("*/*.wav")):
        return load_keywords(path)
    recordings = ("Train", "trials_to_train.txt", "ibmGestureTrain")
    if path.suffix == ".npz" or any((path / name).exists() for name in recordings):
        return load_events(path, config.steps)
    return load(config.dataset, config.data_dir)


def _begin(config: TrainSNN, data: Dataset) -> tuple[Setting, State]:
    """What a training needs, and its state before the first step."""
    if data.train_images.ndim == 3 and config.model != "dense":
        raise ValueError(
            f"each step of {data.name} is a vector, and the model {config.model!r} "
            "reads images; allowed: --model dense, or a preset such as rows"
        )
    model = build(
        config.model,
        data.num_classes,
        norm=config.norm,
        width=config.width,
        depth=config.depth,
    )
    shape = data.train_images.shape[1:]
    if data.is_sequence:
        shape = shape[1:]  # of one step
    example = jnp.zeros((1, *shape))
    key = jax.random.key(config.seed)
    variables = jax.jit(model.init)(key, example)
    sites = snnjax.sites(model.apply, variables, example)
    neuron = _neuron(config, sites)
    snn = snnjax.init(model.apply, variables, example, model=neuron, key=key)
    shapes = {site.name: site.shape for site in sites if site.fires}
    temperatures = _start_temperatures(config, list(shapes))
    snn = _with_start_values(config, snn, shapes, temperatures)
    rules = _rules(config, data, snn)
    optimizer = training.optimizer(rules)
    if config.clip_norm is not None:
        clip = optax.clip_by_global_norm(config.clip_norm)
        optimizer = optax.chain(clip, optimizer)
    kernels = [path for path in sites[0].parameters if path.endswith("kernel")]
    setting = Setting(
        config=config,
        data=data,
        model=model,
        kinds=training.param_labels(snn, rules),
        optimizer=optimizer,
        first=tuple(kernels),
        temperatures=temperatures,
        averages="batch_stats" in variables,
    )
    return setting, State(snn, optimizer.init(snn))


def _rules(
    config: TrainSNN, data: Dataset, snn: SNN
) -> dict[str, optax.GradientTransformation]:
    """The optimizer of each label of `snnjax.training.param_labels` that is trained.

    That is all weights, also those from neuron to neuron, and what --learn_neurons
    adds.
    """
    schedule = training_loop.schedule(config, data)
    adam = optax.adamw(
        schedule, weight_decay=config.weight_decay, mask=training.kernels
    )
    slow_adam = optax.adam(lambda count: NEURON_RATE * schedule(count))
    labels = {*jax.tree.leaves(training.param_labels(snn))}
    rules = {"weights": adam}
    for label in sorted(labels - {"weights", *KEPT}):
        if label == "kernel":
            rules[label] = adam
        elif config.learn_neurons:
            rules[label] = slow_adam
    return rules


def _with_start_values(
    config: TrainSNN,
    snn: SNN,
    shapes: Mapping[str, tuple[int, ...]],
    temperatures: Mapping[str, float],
) -> SNN:
    """The SNN with its temperatures; what is trained of neurons has a value for each.

    Args:
        config: options.
        snn: of `snnjax.init`.
        shapes: shape of one example's neurons, by site.
        temperatures: temperature of all neurons of a site, by site.
    """
    filled = {
        site_name: jnp.full_like(leaf, temperatures[site_name])
        for site_name, leaf in temperature.temperatures(snn).items()
    }
    snn = temperature.with_temperatures(snn, filled)
    if not config.learn_neurons:
        return snn

    def value_of_each_neuron(path: Any, leaf: jax.Array) -> jax.Array:
        site_entry, *_, field_entry = path
        if field_entry.name in ("kernel", *KEPT):
            return leaf
        return jnp.broadcast_to(leaf, shapes[site_entry.key])

    neurons_of_sites = jax.tree_util.tree_map_with_path(
        value_of_each_neuron, snn.neurons
    )
    return dataclasses.replace(snn, neurons=neurons_of_sites)


def _neuron(config: TrainSNN, sites: Sequence[snnjax.network.Site]) -> Any:
    """The model of all sites, recurrent where the kernel is not too large."""
    leak = config.leak
    if config.time_constants is not None:
        leak = neurons.TimeConstants(*config.time_constants)
    lif = snnjax.lif(
        leak=leak,
        threshold=config.threshold,
        reset=config.reset,
        temperature=config.temperature,
    )
    model = NEURONS[config.neuron](lif)
    if not isinstance(model, neurons.Recurrent):
        return model
    sizes = {site.name: math.prod(site.shape) for site in sites if site.fires}
    models = {name: model for name, size in sizes.items() if size <= RECURRENT_NEURONS}
    if not models:
        raise ValueError(
            f"recurrent neurons need a site of at most {RECURRENT_NEURONS} neurons; "
            f"{config.model} has sites of {sorted(sizes.values())}. Take another "
            "--model"
        )
    if len(models) == len(sizes):
        return model
    return {**models, "*": lif}


def _card(setting: Setting) -> dict[str, Any]:
    """What the card of the SNN says beside its own fields."""
    config = setting.config
    return {
        "model": config.model,
        "norm": config.norm,
        "width": config.width,
        "depth": config.depth,
        "clip": None,
        **setting.data.facts(),
        "training": dataclasses.asdict(config),
        "packages": {"flax": version("flax"), "optax": version("optax")},
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; user errors end with one message and exit code 1."""
    names = {"models": NAMES, "neurons": NEURONS, "surrogates": SURROGATES}
    config = running.parse(TrainSNN, PRESETS_SNN, argv, names)
    running.run(lambda: train(config))
    print(f"{config.out}: metrics.jsonl, curves.png, the SNN in {SNN_FILE}")


if __name__ == "__main__":
    main()
