"""Trains a source network: ``python -m experiments.train_ann --preset digits_resnet``.

SGD with Nesterov momentum, warm-up and cosine decay. It starts from random weights or
from another network, whose ReLUs may become quantized (QCFS, ICLR 2022). Start an
interrupted run again to resume it from its last checkpoint; it ends with the same
weights, bit for bit.
"""

from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from experiments.data import Dataset, augment, load, normalize, normalized_as
from experiments.models import NAMES, Source, build, load_source, save_source
from experiments.presets import PRESETS_ANN
from experiments.running import TrainANN, command, devices, parse, run, training_loop

CALIBRATION_IMAGES = 256  # to fit the first maxima of quantized ReLUs on


class TrainState(NamedTuple):
    """The state that a training step changes."""

    variables: dict[str, Any]  # "params" and "batch_stats"
    opt_state: optax.OptState


def train(config: TrainANN, *, data: Dataset | None = None) -> Source:
    """Trains a network, or resumes the training in `config.out`.

    The network is also written there, for `load_source`. By default the data are
    loaded.
    """
    if data is None:
        data = load(config.dataset, config.data_dir)
    data = data.first(config.train_images)
    model = build(
        config.model,
        data.num_classes,
        norm=config.norm,
        clip=config.clip,
        levels=config.levels,
    )
    origin = None
    if config.checkpoint is not None:
        origin = _origin(config, data)
        data = normalized_as(data, origin.card)

    def predict(variables, images):
        return model.apply(variables, normalize(data, images), train=False)

    mesh = devices.make_mesh(config.mesh)
    evaluate = devices.accuracy(predict, data.test_images, data.test_labels, mesh)
    optimizer = make_optimizer(config, data)
    step = make_step(model, optimizer, config, data)
    state, log = training_loop.fit(
        config,
        data,
        _initial_state(model, optimizer, config, data, origin),
        lambda state, key, images, labels, index: step(state, key, images, labels),
        lambda state, log: {"test_accuracy": evaluate(state.variables)},
    )
    variables = jax.device_get(state.variables)
    card = {
        "model": config.model,
        "norm": config.norm,
        "clip": config.clip,
        "levels": config.levels,
        **data.facts(),
        "test_accuracy": evaluate(variables),
        "epochs": config.epochs,
        "seconds": round(sum(line["seconds"] for line in log), 2),
        "seed": config.seed,
        "command": command("experiments.train_ann", config),
        "versions": {package: version(package) for package in ("jax", "flax", "optax")},
    }
    source = Source(model, variables, card)
    if devices.first():
        save_source(Path(config.out).expanduser().resolve(), source)
    return source


def make_optimizer(config: TrainANN, data: Dataset) -> optax.GradientTransformation:
    """SGD with Nesterov momentum; kernels decay."""
    kernels = partial(jax.tree.map, lambda x: x.ndim > 1)
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay, mask=kernels),
        optax.sgd(training_loop.schedule(config, data), momentum=0.9, nesterov=True),
    )


def make_step(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    config: TrainANN,
    data: Dataset,
) -> Callable[..., tuple[TrainState, dict[str, jax.Array]]]:
    """A jitted step for `fit`, `step(state, key, images, labels) -> state, report`.

    A state must not be used again after it was passed in.
    """

    def loss_of(params, variables, images, labels):
        logits, updates = model.apply(
            {**variables, "params": params},
            normalize(data, images),
            train=True,
            mutable=["batch_stats"],
        )
        entropy = optax.losses.softmax_cross_entropy_with_integer_labels
        loss = entropy(logits, labels).mean()
        accuracy = (logits.argmax(axis=-1) == labels).mean()
        return loss, (accuracy, updates)

    def step(state, key, images, labels):
        variables, params = state.variables, state.variables["params"]
        images = augment(key, images, flip=config.flip, padding=config.padding)
        loss_and_gradient = jax.value_and_grad(loss_of, has_aux=True)
        result, gradient = loss_and_gradient(params, variables, images, labels)
        loss, (accuracy, averages) = result
        updates, opt_state = optimizer.update(gradient, state.opt_state, params)
        params = optax.apply_updates(params, updates)
        state = TrainState({**variables, **averages, "params": params}, opt_state)
        return state, training_loop.report(loss, accuracy, params)

    return jax.jit(step, donate_argnums=0)


def _origin(config: TrainANN, data: Dataset) -> Source:
    """The network to begin with; raises if it is not that of the options."""
    assert config.checkpoint is not None
    checkpoint = Path(config.checkpoint).expanduser().resolve()
    out = Path(config.out).expanduser().resolve()
    if out in (checkpoint, checkpoint.parent):
        raise ValueError(
            f"--checkpoint {config.checkpoint} is in --out, where the trained network "
            "will be; give another --out"
        )
    card = {
        "model": config.model,
        "num_classes": data.num_classes,
        "input_shape": list(data.train_images.shape[1:]),
        "norm": config.norm,
    }
    # Clipping leaves no trace in the weights.
    source = load_source(config.checkpoint, {**card, "clip": config.clip})
    if source.card["levels"] is not None:
        # Plain ReLUs would have no place for the maxima of quantized ones.
        card["levels"] = config.levels
    for name, value in card.items():
        if source.card[name] != value:
            raise ValueError(
                f"{name} of {config.checkpoint} is {source.card[name]}, and this "
                f"training has {value}; change the option, or give the --checkpoint of "
                "another network"
            )
    return source


def _initial_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    config: TrainANN,
    data: Dataset,
    origin: Source | None,
) -> TrainState:
    """Random weights, or those of `origin`; maxima of quantized ReLUs fitted to images.

    The images are the first of the training set.
    """
    images = jnp.zeros((1, *data.train_images.shape[1:]))
    if config.levels is not None:
        images = normalize(data, data.train_images[:CALIBRATION_IMAGES])
    key = jax.random.key(config.seed)
    if origin is None:
        variables = devices.jit_for_few_runs(model.init)(key, images)
    else:
        # This initializes the parameters that the origin lacks: the maxima.
        apply = jax.jit(partial(model.apply, mutable=["params"], train=False))
        _, maxima = apply(origin.variables, images, rngs={"params": key})
        variables = origin.variables | maxima
    variables = {"batch_stats": {}, **variables}  # also without BatchNorm
    return TrainState(variables, optimizer.init(variables["params"]))


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; user errors end with one message and exit code 1."""
    config = parse(TrainANN, PRESETS_ANN, argv, {"models": NAMES})
    source = run(lambda: train(config))
    accuracy = 100 * source.card["test_accuracy"]
    print(f"{config.out}/source.safetensors: {accuracy:.2f} % of the test images")


if __name__ == "__main__":
    main()
