"""Converts a network and trains it further: ``python -m experiments.finetune``.

Conversion ends where few steps begin; a few epochs of surrogate gradients go on from
there. All of the SNN trains, weights, thresholds, biases and potentials: cross-entropy
and distillation from the ANN, Adam, BatchNorm at its running averages. Writes what
`experiments.convert` writes, and the accuracy after every epoch. A run that was
interrupted goes on when started again, and ends in the same weights, bit for bit.
"""

import dataclasses
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
    Draw,
    Experiment,
    carry_out,
    count_hits,
    forget,
    result_of,
)
from experiments.convert import Prepared, facts_of, prepare, write_files
from experiments.data import Dataset, augment, load, normalize
from experiments.models import load_snn
from experiments.presets import PRESETS_FINETUNE
from experiments.report import HEADER, Result, command, row, training_figures
from experiments.running import (
    FineTune,
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
    """
    start = time.perf_counter()
    if config.surrogate not in SURROGATES:
        raise ValueError(
            f"no surrogate {config.surrogate!r}; allowed: {', '.join(SURROGATES)}"
        )
    data = load(config.dataset, config.data_dir) if data is None else data
    data = data.first(config.train_images).held_back(config.held_back)
    steps_per_epoch(config, data)  # before anything takes time
    prepared = prepare(config.conversion(), data)
    task, ann = prepared.task, prepared.ann
    converted, snn = _start(config, task, ann)
    trained, losses = _trained(config, prepared, snn, converted.final)
    seconds = sum(line["seconds"] for line in losses)
    name = f"{converted.recipe}, {_epochs(config.epochs)}"
    result = _evaluated(task, name, trained, seconds)
    print(f"\n{HEADER}\n{row(converted, ann)}\n{row(result, ann)}")
    if devices.first():
        facts = facts_of(task, ann, prepared.card) | {
            "config": dataclasses.asdict(config) | {"data_dir": None, "out": None},
            "command": command("experiments.finetune", config),
            "chosen_on": "nothing: it is the last one",
        }
        results = [converted._replace(choice_hits=None), result]
        file = write_files(task, facts, results, trained, prepared.page)
        forget(task.config)
        print(
            f"\n{config.out}: metrics.jsonl, epochs.png, metrics.json, results.md, "
            f"accuracy.png,\nlayers.png, raster.png; {file.name} after the last epoch; "
            f"python -m\nexperiments.convert --restore {config.out} evaluates it."
            + (f"\nThe report is {prepared.page}." if prepared.page else "")
        )
        print(f"{time.perf_counter() - start:.0f} s in all, with compilation")
    return [converted, result]


def _start(config: FineTune, task: Experiment, ann: float) -> tuple[Result, SNN]:
    """The SNN that training begins with, and what it achieves."""
    if config.restore is None:
        (result,), (snn,) = carry_out(task, ann)
        return result, snn
    snn = load_snn(config.restore).snn
    result = _evaluated(task, "restored", snn, 0.0)
    own = snn.steps, snn.wait, result.levels
    if own != (config.steps, config.wait, tuple(config.levels)):
        raise ValueError(
            f"{config.restore} has steps {own[0]}, wait {own[1]} and levels {own[2]}; "
            f"asked for are {config.steps}, {config.wait} and {config.levels}. Give "
            "those of the SNN, or convert anew without --restore"
        )
    return result, snn


def _evaluated(task: Experiment, name: str, snn: SNN, seconds: float) -> Result:
    hits = count_hits(task.simulate, snn, task.test, task.mesh)
    return result_of(task, name, [Draw(snn, hits, hits[-1], seconds)])


def _trained(
    config: FineTune, prepared: Prepared, snn: SNN, converted: float
) -> tuple[SNN, list[dict]]:
    """The SNN after the last epoch, and the lines of the log.

    Args:
        converted: accuracy of the SNN at the start.
    """
    task = prepared.task
    init, step = training.descent(
        _loss(config, task), _rules(config, task.data), has_aux=True
    )
    out, lines = Path(config.out).expanduser().resolve(), []

    def finished_epoch(state: State, log: list[dict]) -> None:
        lines[:] = log
        accuracies = [converted, *(line["test_accuracy"] for line in log)]
        training_figures.epochs(accuracies, prepared.ann, out / "epochs.png")

    def measure(state: State) -> dict[str, Any]:
        hits = count_hits(task.simulate, state.snn, task.test, task.mesh)
        return {"test_accuracy": hits[-1] / len(task.test.labels)}

    state = State(snn, init(snn))
    step = _make_step(config, task.data, step)
    state = fit(config, task.data, state, step, measure, finished_epoch)
    if not lines:  # every epoch was there already
        text = (out / "metrics.jsonl").read_text()
        lines = [json.loads(line) for line in text.splitlines()]
    return state.snn, lines


def _rules(config: FineTune, data: Dataset) -> optax.GradientTransformation:
    rate = schedule(config, steps_per_epoch(config, data))
    return optax.adamw(
        rate,
        weight_decay=config.weight_decay,
        mask=lambda tree: jax.tree.map(lambda leaf: jnp.ndim(leaf) > 1, tree),
    )


def _loss(config: FineTune, task: Experiment) -> Callable:
    """(snn, x, labels) -> (loss, accuracy)."""
    surrogate = SURROGATES[config.surrogate]
    simulate = snnjax.spiking(
        task.fn,
        steps=config.steps,
        wait=config.wait,
        surrogate=lambda x: surrogate(x, config.temperature),
        mesh=task.mesh,
    )
    params = task.params

    def loss(snn: SNN, x: jax.Array, labels: jax.Array):
        outputs, teacher = simulate(snn, x), task.fn(params, x)
        value = training.distillation(
            outputs, teacher, labels, weight=config.distillation
        )
        return value, (outputs.mean(0).argmax(-1) == labels).mean()

    return loss


def _make_step(config: FineTune, data: Dataset, descend: Callable) -> Callable:
    """The step for `experiments.running.fit`."""

    @jax.jit
    def step(state: State, key, images, labels):
        images = augment(key, images, flip=config.flip, padding=config.padding)
        x = normalize(data, images)
        snn, opt_state, (loss, accuracy) = descend(*state, x, labels)
        floats, _ = training.differentiable(snn)
        finite = jnp.isfinite(loss + optax.tree.norm(floats))
        report = jnp.stack([loss, accuracy, finite.astype(loss.dtype)])
        return State(snn, opt_state), report

    return lambda state, key, images, labels, index: step(state, key, images, labels)


def _epochs(number: int) -> str:
    return f"{number} epoch{'' if number == 1 else 's'}"


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; user errors end with one message and exit code 1."""
    config = parse(FineTune, PRESETS_FINETUNE, argv)
    run_command(lambda: run(config), "the same command goes on from the last epoch")


if __name__ == "__main__":
    main()
