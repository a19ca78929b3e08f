"""Converts a network and trains it further: ``python -m experiments.finetune``.

With one to four steps a conversion loses accuracy; a few epochs of training with
surrogate gradients win a part of it back. All parameters of the SNN are trained, by
Adam, on cross-entropy and distillation from the ANN; BatchNorm takes its statistics
over time and batch. Writes what `experiments.convert` writes, and the accuracy after
every epoch. A run that was interrupted goes on when started again, and ends in the same
weights, bit for bit.
"""

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import snnjax
from experiments.conversions import (
    RECIPES,
    Draw,
    Experiment,
    calibration_images,
    carry_out,
    count_hits,
    forget,
    levels_of,
    result_of,
)
from experiments.convert import Setup, facts_of, in_dtype, prepare, write_files
from experiments.data import Dataset, augment, load, normalize
from experiments.models import NAMES, Source, load_snn
from experiments.presets import PRESETS_FINETUNE
from experiments.report import HEADER, Result, row, training_figures
from experiments.running import (
    FineTune,
    check_resumable,
    devices,
    fit,
    parse,
    schedule,
    steps_per_epoch,
)
from experiments.running import run as run_command
from experiments.train_snn import SURROGATES
from snnjax import SNN, training


class State(NamedTuple):
    """All that a step of training changes."""

    snn: SNN
    opt_state: optax.OptState


def run(config: FineTune, *, data: Dataset | None = None) -> list[Result]:
    """Convert, train, and write the results of both.

    Raises:
        FloatingPointError: the loss or the weights are not finite; the checkpoint of
          the last good epoch is kept.
        ValueError: options that do not fit together, or `out` holds another run.
    """
    start = time.perf_counter()
    if config.surrogate not in SURROGATES:
        raise ValueError(
            f"no surrogate {config.surrogate!r}; allowed: {', '.join(SURROGATES)}"
        )
    data = load(config.dataset, config.data_dir) if data is None else data
    data = data.first(config.train_images).held_back(config.held_back)
    steps_per_epoch(config, data)  # before anything takes time
    check_resumable(config)
    setup = prepare(config.conversion(), data)
    _check_operators(config, setup)
    print(HEADER, flush=True)
    conversion, snn = _begin(config, setup)
    snn = _train(config, setup, snn, conversion.final)
    lines = (Path(config.out).expanduser() / "metrics.jsonl").read_text().splitlines()
    log = [json.loads(line) for line in lines]
    seconds = sum(line["seconds"] for line in log)
    accuracies = [conversion.final, *(line["test_accuracy"] for line in log)]
    epochs = f"{config.epochs} epoch{'' if config.epochs == 1 else 's'}"
    result = _evaluate(setup.task, f"{conversion.recipe}, {epochs}", snn, seconds)
    print(f"\n{HEADER}\n{row(conversion, setup.ann)}\n{row(result, setup.ann)}")
    if devices.first():
        _write(config, setup, [conversion, result], snn, accuracies)
        print(f"{time.perf_counter() - start:.0f} s in all, with compilation")
    return [conversion, result]


def _check_operators(config: FineTune, setup: Setup) -> None:
    operators = [site.name for site in setup.task.sites.operators]
    if operators and not config.keep_averages:
        raise ValueError(
            f"the network has operators ({operators[0]}), which are computed on "
            "running means; in training mode they would see one step at a time. Add "
            "--keep_averages true"
            + (" and leave out --from_scratch" if config.from_scratch else "")
        )


def _write(
    config: FineTune,
    setup: Setup,
    results: list[Result],
    snn: SNN,
    accuracies: list[float],
) -> None:
    """All files of a run; says where they are.

    Args:
        accuracies: of the conversion, and after each epoch.
    """
    task, module = setup.task, "experiments.finetune"
    facts = facts_of(task, setup.ann, setup.source.card, module=module, config=config)
    facts["chosen_on"] = None
    facts["accuracy_after_epochs"] = accuracies
    # `choice` takes the row with hits: the files show the trained SNN.
    conversion = results[0]._replace(choice_hits=None)
    images = None
    if config.converts():
        images = calibration_images(task.config, task.data, config.seed)
    results = [conversion, *results[1:]]
    file = write_files(task, facts, results, snn, setup.page, images)
    forget(task.config)
    print(
        f"\n{config.out}: metrics.jsonl, epochs.png, metrics.json, results.md, "
        f"accuracy.png,\nlayers.png, raster.png; {file.name} holds the SNN after the "
        f"last epoch:\npython -m experiments.convert --restore {config.out}\n"
        "evaluates it." + (f" The report is {setup.page}." if setup.page else "")
    )


def _begin(config: FineTune, setup: Setup) -> tuple[Result, SNN]:
    """The SNN that training begins with, and its result."""
    task = setup.task
    if config.converts():
        (result,), (snn,) = carry_out(task, setup.ann)
        return result, snn
    name = "from scratch" if config.from_scratch else "restored"
    snn = (_fresh if config.from_scratch else _restored)(config, setup)
    result = _evaluate(task, name, snn, 0.0)
    print(row(result, setup.ann), flush=True)
    return result, snn


def _fresh(config: FineTune, setup: Setup) -> SNN:
    """Random weights, and neurons as `snnjax.integrate_and_fire` makes them."""
    key, task = jax.random.key(config.seed), setup.task
    image = task.test.images[:1]
    variables = jax.jit(setup.source.model.init)(key, image)
    neuron = snnjax.integrate_and_fire(levels=config.levels)
    snn = snnjax.init(task.fn, variables, image, neuron=neuron)
    return dataclasses.replace(snn, steps=config.steps, wait=config.wait)


def _restored(config: FineTune, setup: Setup) -> SNN:
    """The SNN at `config.restore`, which must be for the T, wait and levels asked."""
    snn = load_snn(config.restore).snn
    for name, own, asked in (
        ("steps", snn.steps, config.steps),
        ("wait", snn.wait, config.wait),
        ("levels", levels_of(setup.task.sites, snn), tuple(config.levels)),
    ):
        if own != asked:
            raise ValueError(
                f"{config.restore} has {name} {own}, and asked for are {asked}; give "
                f"--{name} of the SNN, or convert anew without --restore"
            )
    return snn


def _evaluate(task: Experiment, name: str, snn: SNN, seconds: float) -> Result:
    hits = count_hits(task.simulate, snn, task.test, task.mesh)
    return result_of(task, name, [Draw(snn, hits, hits[-1], seconds)])


def _train(config: FineTune, setup: Setup, snn: SNN, accuracy_at_start: float) -> SNN:
    """The SNN after the last epoch."""
    task, out = setup.task, Path(config.out).expanduser().resolve()
    init, step = training.descent(
        _loss(config, setup), _optimizer(config, task.data), has_aux=True
    )

    def finished_epoch(state: State, log: list[dict]) -> None:
        accuracies = [accuracy_at_start, *(line["test_accuracy"] for line in log)]
        training_figures.epochs(accuracies, setup.ann, out / "epochs.png")

    def measure(state: State) -> dict[str, Any]:
        hits = count_hits(task.simulate, state.snn, task.test, task.mesh)
        return {"test_accuracy": hits[-1] / len(task.test.labels)}

    state = State(snn, init(snn))
    step = _make_step(config, task.data, step)
    return fit(config, task.data, state, step, measure, finished_epoch).snn


def _optimizer(config: FineTune, data: Dataset) -> optax.GradientTransformation:
    """Adam for weights and neurons; kernels decay."""

    def is_kernel(path, leaf) -> bool:
        return path[0].name == "params" and jnp.ndim(leaf) > 1

    return optax.adamw(
        schedule(config, steps_per_epoch(config, data)),
        weight_decay=config.weight_decay,
        mask=lambda snn: jax.tree_util.tree_map_with_path(is_kernel, snn),
    )


def _loss(config: FineTune, setup: Setup) -> Callable:
    """(snn, x, labels) -> (loss, (accuracy, new running averages))."""
    task, simulate = setup.task, _simulation(config, setup)

    def loss(snn: SNN, x: jax.Array, labels: jax.Array):
        (outputs, averages), teacher = simulate(snn, x), task.fn(task.params, x)
        value = training.distillation(
            outputs, teacher, labels, weight=config.distillation
        )
        return value, ((outputs.mean(0).argmax(-1) == labels).mean(), averages)

    return loss


def _simulation(config: FineTune, setup: Setup) -> Callable:
    """(snn, x) -> (outputs, what replaces the running averages)."""
    surrogate = SURROGATES[config.surrogate]
    spiking = functools.partial(
        snnjax.spiking,
        steps=config.steps,
        wait=config.wait,
        surrogate=lambda x: surrogate(x, config.temperature),
        mesh=setup.task.mesh,
    )
    if config.keep_averages:
        simulate = spiking(setup.task.fn)
        return lambda snn, x: (simulate(snn, x), {})
    return spiking(_in_training(setup.source, config.dtype), has_aux=True)


def _in_training(source: Source, dtype: str) -> Callable:
    """The network in training mode: (variables, x) -> (logits, new averages)."""

    def network(params, x, batch_stats):
        variables = {"params": params, "batch_stats": batch_stats}
        return source.model.apply(variables, x, train=True, mutable=["batch_stats"])

    computed = in_dtype(network, dtype)  # running averages stay float32

    def fn(variables, x):
        averages = variables.get("batch_stats", {})
        return computed(variables["params"], x, batch_stats=averages)

    return fn


def _make_step(config: FineTune, data: Dataset, descent_step: Callable) -> Callable:
    """The step for `experiments.running.fit`."""

    @jax.jit
    def step(state: State, key, images, labels):
        images = augment(key, images, flip=config.flip, padding=config.padding)
        x = normalize(data, images)
        snn, opt_state, (loss, aux) = descent_step(*state, x, labels)
        accuracy, averages = aux
        snn = dataclasses.replace(snn, params={**snn.params, **averages})
        floats, _ = training.differentiable(snn)
        finite = jnp.isfinite(loss + optax.tree.norm(floats))
        report = jnp.stack([loss, accuracy, finite.astype(loss.dtype)])
        return State(snn, opt_state), report

    return lambda state, key, images, labels, index: step(state, key, images, labels)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; user errors end with one message and exit code 1."""
    names = {"recipes": RECIPES, "models": NAMES, "surrogates": SURROGATES}
    config = parse(FineTune, PRESETS_FINETUNE, argv, names)
    run_command(lambda: run(config), "the same command goes on from the last epoch")


if __name__ == "__main__":
    main()
