"""Converts a network and trains it further: ``python -m experiments.finetune``.

With one to four steps a conversion loses accuracy. A few epochs of training with
surrogate gradients recover a part of it. Adam trains all parameters of the SNN on
cross-entropy and distillation from the ANN. BatchNorm takes its statistics over time
and batch, or keeps those of the source network. Where layers wait for all of their
input, the closed form is trained, and an epoch costs one of the ANN. With
``--weight_bits`` it trains the weights of whole numbers, through their rounding. Writes
the same files as `experiments.convert`, and the accuracy after every epoch. Start an
interrupted run again to resume it; it ends with the same weights, bit for bit.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import snnjax
from experiments import conversions, running
from experiments.conversions import Experiment
from experiments.convert import facts_of, in_dtype, prepare, write_files
from experiments.data import Dataset, augment, load, normalize
from experiments.models import NAMES, Source
from experiments.presets import PRESETS_FINETUNE
from experiments.report import Result, console_table, header, row
from experiments.running import FineTune, devices, training_loop
from snnjax import SNN, training


def run(config: FineTune, *, data: Dataset | None = None) -> list[Result]:
    """Convert, train, and write the results of both."""
    start = time.perf_counter()
    whole = data
    if whole is None:
        whole = load(config.dataset, config.data_dir)
    data = whole.first(config.train_images).held_back(config.held_back)
    # A batch, a disk or a folder that does not fit is told before minutes of
    # conversion.
    training_loop.steps_per_epoch(config, data)
    running.check_writable(config.out, "--out")
    task = prepare(
        config.conversion(),
        data,
        whole=whole,
        calibrates=not config.from_scratch,
        check=functools.partial(_check_network, config),
    )
    # The trained SNN is saved, so no row is chosen by held-out images.
    task = task._replace(held_out=None)
    print(header(), flush=True)
    first, snn = _begin(config, task)
    learner = _learner(config, task, snn)
    if config.weight_bits is not None:
        name = f"{first.recipe}, {config.weight_bits} bits"
        first = conversions.evaluated(learner.task, name, learner.snn, first.seconds)
        print(row(first), flush=True)
    snn, log = _train(config, task, learner)
    seconds = sum(line["seconds"] for line in log)
    name = _name(config, first, task.sites)
    last = conversions.evaluated(learner.task, name, snn, seconds)
    results = [first, last]
    print(f"\n{console_table(results)}")
    if devices.first():
        accuracies = [first.final, *(line["test_accuracy"] for line in log)]
        _write(config, learner.task, results, snn, accuracies)
        print(f"{time.perf_counter() - start:.0f} s in all, with compilation")
    return results


def _name(config: FineTune, first: Result, sites: snnjax.network.Sites) -> str:
    """Name of the trained row: its start, the epochs, and unusual options."""
    unit = "epoch" if config.epochs == 1 else "epochs"
    name = f"{first.recipe}, {config.epochs} {unit}"
    if config.keep_averages and not sites.operators:
        name += ", averages kept"
    if config.held_back:
        name += ", images held back"
    return name


def _check_network(config: FineTune, sites: snnjax.network.Sites) -> None:
    """Raise if the network has operators, and BatchNorm would take new statistics."""
    operators = [site.name for site in sites.operators]
    if operators and not config.keep_averages:
        way_out = "Leave out --from_scratch and add" if config.from_scratch else "Add"
        raise ValueError(
            f"the network has operators ({operators[0]}), which are computed on "
            "running means; in training mode they would see one step at a time. "
            f"{way_out} --keep_averages true"
        )


def _write(
    config: FineTune,
    task: Experiment,
    results: list[Result],
    snn: SNN,
    accuracies: list[float],
) -> None:
    """Write all files of a run, and print where they are; results as `run` has them."""
    facts = facts_of(task, "experiments.finetune", config)
    facts["source"] = {**facts["source"], "weight_bits": config.weight_bits}
    facts["accuracy_after_epochs"] = accuracies
    images = None
    if not config.from_scratch:
        images = conversions.calibration_images(task.config, task.data, config.seed)
    file = write_files(task, facts, results, snn, images)
    conversions.forget(task.config)
    evaluation = f"python -m experiments.convert --restore {config.out}\nevaluates it."
    if config.weight_bits is not None:
        evaluation = "its function is that of snnjax.deploy.trainable."
    print(
        f"\n{config.out}: metrics.jsonl, metrics.json, results.md, accuracy.png,\n"
        f"layers.png; {file.name} holds the SNN after the last epoch:\n"
        f"{evaluation}"
    )


def _begin(config: FineTune, task: Experiment) -> tuple[Result, SNN]:
    """The SNN that training begins with, and its result.

    That is a conversion, or random weights, and neurons as `snnjax.integrate_and_fire`
    makes them. Of these, as many parameters are trained as after a conversion:
    thresholds per channel, potentials per neuron.
    """
    if not config.from_scratch:
        (result,), (snn,) = conversions.carry_out(task)
        return result, snn
    image = task.test.images[:1]
    variables = jax.jit(task.source.model.init)(jax.random.key(config.seed), image)
    snn = snnjax.init(
        task.fn,
        variables,
        image,
        model=conversions.neuron_of(config.levels, config.code, config),
        code=running.CODES[config.code],
    )
    snn = dataclasses.replace(snn, steps=config.steps, wait=config.wait)
    snn = conversions.widen_all(snn, task.sites)
    result = conversions.evaluated(task, "from scratch", snn, 0.0)
    print(row(result), flush=True)
    return result, snn


class Learner(NamedTuple):
    """What is trained."""

    task: Experiment  # with the function, test images and comparison of the SNN
    snn: SNN  # before training
    fn: Callable  # in training mode with has_aux
    has_aux: bool  # whether fn returns new running averages too
    read: Callable  # normalized images -> what the network reads
    rules: Any  # an optimizer of all leaves, or of the weights alone


def _learner(config: FineTune, task: Experiment, snn: SNN) -> Learner:
    """The SNN of a conversion, or the same in whole numbers."""
    has_aux = not config.keep_averages
    adam = optax.adamw(
        training_loop.schedule(config, task.data),
        weight_decay=config.weight_decay,
        mask=training.kernels,
    )
    if config.weight_bits is None:
        return Learner(
            task=task,
            snn=snn,
            fn=_in_training(task.source, config.dtype) if has_aux else task.fn,
            has_aux=has_aux,
            read=lambda x: x,
            rules=adam,
        )
    images = conversions.calibration_images(task.config, task.data, config.seed)
    layers = snnjax.deploy.layers(task.fn, snn, images)
    layers = snnjax.deploy.quantize(layers, images, weight_bits=config.weight_bits)
    fn, snn = snnjax.deploy.trainable(layers)
    read = functools.partial(snnjax.deploy.on_grid, layers)
    test = task.test._replace(images=np.asarray(read(task.test.images)))
    task = task._replace(
        fn=fn,
        params=snn.params,
        sites=snnjax.sites(fn, snn.params, test.images[:1]),
        test=test,
        compare=conversions.comparison(fn),
        measure=conversions.measurement(fn),
    )
    return Learner(
        task=task, snn=snn, fn=fn, has_aux=False, read=read, rules={"weights": adam}
    )


def _train(config: FineTune, ann: Experiment, learner: Learner) -> training.Finetuned:
    """The SNN after the last epoch, and the log."""
    task, out = learner.task, Path(config.out).expanduser()

    def measure(snn: SNN, line: dict[str, Any]) -> dict[str, Any]:
        hits = conversions.total_counts(task, snn, task.test).hits
        entries = {"test_accuracy": int(hits[-1]) / len(task.test.labels)}
        training_loop.print_line(line | entries)
        return entries

    depends_on = running.options_of_results(config)
    depends_on["source_network"] = ann.source[1:]
    depends_on["training_images"] = (task.data.train_images, task.data.train_labels)
    snn, log = training.finetune(
        learner.fn,
        learner.snn,
        Examples(config, task, learner.read),
        epochs=config.epochs,
        rules=learner.rules,
        teacher=functools.partial(ann.fn, ann.params),
        share=config.distillation,
        measure=measure,
        folder=training_loop.state_folder(config),
        depends_on=depends_on,
        has_aux=learner.has_aux,
    )
    if devices.first():
        training_loop.write_log(out, log)
    if task.mesh is not None:
        # Programs without the mesh, e.g. for the figures, need arrays of this process.
        snn = jax.device_get(snn)
    return training.Finetuned(snn, log)


class Examples:
    """Pairs of augmented images and labels: `examples(epoch)` yields those of an epoch.

    `snnjax.training.finetune` compares examples that are no function by their repr, so
    a training resumes in another folder and on another number of devices. What they
    are made of is in `depends_on`.
    """

    def __init__(self, config: FineTune, task: Experiment, read: Callable):
        self.config, self.data, self.mesh = config, task.data, task.mesh

        @jax.jit
        def prepare(key: jax.Array, images: jax.Array) -> jax.Array:
            images = augment(key, images, flip=config.flip, padding=config.padding)
            return read(normalize(task.data, images))

        self.prepare = prepare

    def __call__(self, epoch: int) -> Iterator[tuple[jax.Array, jax.Array]]:
        batches = training_loop.batches(self.config, self.data, self.mesh, epoch)
        for key, images, labels, _ in batches:
            yield self.prepare(key, images), labels

    def __repr__(self) -> str:
        return "augmented training images"


def _in_training(source: Source, dtype: str) -> Callable:
    """The network in training mode: (variables, x) -> (logits, new averages)."""

    def network(params, x, batch_stats):
        variables = {"params": params, "batch_stats": batch_stats}
        return source.model.apply(variables, x, train=True, mutable=["batch_stats"])

    # Running averages stay float32, since they are a keyword argument.
    apply = in_dtype(network, dtype)

    def fn(variables, x):
        averages = variables.get("batch_stats", {})
        return apply(variables["params"], x, batch_stats=averages)

    return fn


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; user errors end with one message and exit code 1."""
    names = {"recipes": running.RECIPES, "models": NAMES}
    config = running.parse(FineTune, PRESETS_FINETUNE, argv, names)
    running.run(lambda: run(config))


if __name__ == "__main__":
    main()
