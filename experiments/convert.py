"""Converts a trained network by several recipes: ``python -m experiments.convert``.

Loads a source network (for digits, trains one) and converts it for every number of
steps T. Prints the sites and the results, and writes figures, `metrics.json` and one
spiking network, which ``--restore`` evaluates again. It is the first draw of the row
that answers earliest, of those as accurate as the best one but for chance, on training
images that no calibration used. Start an interrupted run again to resume it.
"""

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax

import snnjax
from experiments import conversions, models, running
from experiments.conversions import Experiment, LabeledImages
from experiments.data import Dataset, load, normalized_as
from experiments.integers import Integers, in_whole_numbers, text_of, write_integers
from experiments.models import Source
from experiments.presets import PRESETS_ANN, PRESETS_CONVERT
from experiments.report import (
    LEGEND,
    Result,
    choice,
    conclusion,
    figures,
    header,
    write_results,
)
from experiments.running import Convert, devices
from experiments.train_ann import train


def run(config: Convert, *, data: Dataset | None = None) -> list[Result]:
    """Carry out all conversions of a configuration and write their results."""
    start = time.perf_counter()
    task = prepare(config, data)
    print(f"{LEGEND}\n{header(conversions.width_of(config))}", flush=True)
    results, snns = conversions.carry_out(task)
    if devices.first():
        _write(task, results, snns)
        conversions.forget(config)
        seconds = time.perf_counter() - start
        print(f"{seconds:.0f} s in all, with compilation and figures", flush=True)
    return results


def prepare(
    config: Convert,
    data: Dataset | None = None,
    *,
    whole: Dataset | None = None,
    calibrates: bool = True,
    check: Callable[[snnjax.network.Sites], None] = lambda sites: None,
) -> Experiment:
    """Check options and files, read data and network; print sites and accuracy.

    Args:
        data: images for calibration and evaluation; by default those of the options.
        whole: images to train a missing source network on; by default `data`.
        calibrates: whether a conversion follows, which needs calibration images.
        check: raises if the network does not suit the options.
    """
    running.check_writable(config.out, "--out")
    if data is None:
        data = load(config.dataset, config.data_dir)
    mesh = devices.make_mesh(config.mesh)
    _check_images("test_images", config.test_images, data.test_images, data.name)
    if calibrates:
        count = config.calibration_images
        _check_images("calibration_images", count, data.train_images, data.name)
        devices.check_shared("calibration_images", count, mesh)
    if whole is None:
        whole = data
    source = _source(config, data, whole)
    data = normalized_as(data, source.card)
    fn = in_dtype(models.source_function(source), config.dtype)
    params = source.variables
    test = conversions.images_to_test(config, data)
    sites = snnjax.sites(fn, params, test.images[:1])
    check(sites)
    running.writable(config.out, "--out")

    def with_ann_outputs(images: LabeledImages) -> LabeledImages:
        return images._replace(ann_outputs=devices.outputs(fn, params, images.images))

    test = with_ann_outputs(test)
    ann = int((test.ann_outputs.argmax(-1) == test.labels).sum()) / len(test.labels)
    print(
        f"{sites}\n\nANN: {100 * ann:.2f} % of {len(test.labels)} "
        f"{data.evaluated_on}{_accuracy_in_card(source.card)}\n"
    )
    held_out = None
    if calibrates:
        held_out = conversions.held_out_images(config, data)
        if held_out is not None:
            held_out = with_ann_outputs(held_out)
    return Experiment(
        config=config,
        data=data,
        fn=fn,
        params=params,
        sites=sites,
        test=test,
        held_out=held_out,
        compare=conversions.comparison(fn),
        measure=conversions.measurement(fn),
        mesh=mesh,
        source=source,
        ann=ann,
    )


def restore(config: Convert, *, data: Dataset | None = None) -> float:
    """Evaluate the spiking network at ``config.restore``; its accuracy."""
    model, snn, card = models.load_snn(config.restore)
    name = card["dataset"]
    if name.endswith(".npz"):
        raise ValueError(
            f"{config.restore} was trained on events, {name}; --restore evaluates on "
            "images. Its accuracy is in the card, and snnjax.load reads the SNN"
        )
    if card.get("weight_bits") is not None:
        raise ValueError(
            f"{config.restore} was trained in whole numbers of {card['weight_bits']} "
            "bits, so its function is not that of its model. Its accuracy is in the "
            "card, and snnjax.load reads the SNN"
        )
    if data is None:
        data = load(name, config.data_dir)
    _check_images("test_images", config.test_images, data.test_images, data.name)
    test = conversions.images_to_test(config, normalized_as(data, card))
    fn = models.source_function(Source(model, {}, card))
    count = conversions.counter(in_dtype(fn, card.get("dtype", "float32")))
    hits = conversions.count_hits(count, snn, test, devices.make_mesh(config.mesh))
    accuracy = hits[-1] / len(test.labels)
    print(
        f"{config.restore}: {card['model']} on {name}, recipe {card['recipe']}, "
        f"T = {card['steps']}, wait {card['wait']}\n"
        f"{100 * accuracy:.2f} % of {len(test.labels)} test images"
        f"{_accuracy_in_card(card)}"
    )
    return accuracy


def _accuracy_in_card(card: dict) -> str:
    """The accuracy of the ANN as its card has it; an SNN of train_snn has none."""
    accuracy = card.get("test_accuracy")
    if accuracy is None:
        return ""
    return f"; by the card, the ANN is right on {100 * accuracy:.2f} % of all"


# ---------------------------------------------------------------------- results


def _write(task: Experiment, results: list[Result], snns: list[snnjax.SNN]) -> None:
    """Write all files of a run, and print where they are."""
    config, saved = task.config, choice(results)
    (number,) = [i for i, result in enumerate(results) if result is saved]
    snn = snns[number]
    facts = facts_of(task, "experiments.convert", config)
    images = conversions.calibration_images(config, task.data, config.seeds[0])
    integers = None
    if config.weight_bits or config.chip:
        try:
            integers = in_whole_numbers(task, snn, images, saved.accuracies[0][-1])
        except ValueError as reason:  # the conversion itself is worth its files
            text = running.wrapped(f"The saved SNN stays in floats: {reason}")
            print(f"\n{text}", file=sys.stderr)
    file = write_files(task, facts, results, snn, images, integers)
    print(
        f"\n{config.out}: metrics.json, results.md, accuracy.png, layers.png, and\n"
        f"{file.name} of the saved conversion, with the images of the first seed\n"
        f"\n{conclusion(facts, results, config.out)}\n"
    )


def write_files(
    task: Experiment,
    facts: dict,
    results: list[Result],
    snn: snnjax.SNN,
    calibration: jax.Array | None,
    integers: Integers | None = None,
) -> Path:
    """Tables, figures, and the SNN of the `choice`; the SNN's file."""
    config, saved = task.config, choice(results)
    out = Path(config.out).expanduser()
    file = snnjax.save(
        out / models.SNN_FILE,
        snn,
        extras=facts["source"] | {"dtype": config.dtype},
        recipe=saved.recipe,
        accuracy=saved.accuracies[0][-1],  # of the first seed, as the SNN is
        calibration=calibration,
    )
    write_results(out, facts, results, task.sites)
    if integers is not None:
        print(f"\nThe saved SNN in whole numbers:\n{text_of(integers)}")
        write_integers(out, integers, facts)
    ann = facts["ann_accuracy"]
    figures.write_figures(out, results, ann, facts.get("accuracy_after_epochs", ()))
    return file


def facts_of(task: Experiment, module: str, config: Any) -> dict:
    """Facts that all results of a run share; module and options are of the command."""
    options = dataclasses.asdict(config)
    for name in running.OF_A_MACHINE:
        # Folders and files of this machine are nobody else's.
        options[name] = None
    versions = {"snnjax": snnjax.__version__}
    for package in ("jax", "flax", "optax"):
        versions[package] = version(package)
    image_count = len(task.test.labels)
    return {
        "config": options,
        "command": running.command(module, config),
        "versions": versions,
        "device": str(jax.devices()[0]),
        "source": task.source.card,
        "ann_accuracy": task.ann,
        "test_images": image_count,
        "evaluated_on": task.data.evaluated_on,
        "measured_images": min(conversions.MEASURED, image_count),
    }


# ----------------------------------------------------------------------- inputs


def _source(config: Convert, data: Dataset, whole: Dataset) -> Source:
    """The source network; the default one is trained, on `whole`, if it is missing."""
    description = None
    if config.model is not None:
        description = {"model": config.model, **data.facts()}
    is_default = config.checkpoint == Convert.checkpoint and config.model is None
    try:
        source = models.load_source(config.checkpoint, description)
    except (FileNotFoundError, ValueError):
        if config.dataset != "digits" or not is_default:
            raise
        print(f"training a source network first: {config.checkpoint}", flush=True)
        preset = PRESETS_ANN["digits_resnet"]
        preset = dataclasses.replace(preset, out=config.checkpoint, mesh=config.mesh)
        source = train(preset, data=whole)
    card = source.card
    source_shape, source_classes = list(card["input_shape"]), card["num_classes"]
    data_shape = list(data.train_images.shape[1:])
    if source_shape != data_shape or source_classes != data.num_classes:
        raise ValueError(
            f"the source network {config.checkpoint} takes images of {source_shape} in "
            f"{source_classes} classes ({card.get('dataset', 'its card names no set')})"
            f", but {data.name} has {data_shape} in {data.num_classes}; give the "
            "--checkpoint of a network trained on it"
        )
    # The SNN belongs to the data that it is calibrated and evaluated on.
    return source._replace(card={**card, "dataset": data.name})


def in_dtype(fn: Callable, dtype: str) -> Callable:
    """`snnjax.in_dtype`, but the function as it is for float32."""
    return fn if dtype == "float32" else snnjax.in_dtype(fn, dtype)


def _check_images(option: str, count: int | None, images: Any, name: str) -> None:
    """Raise if an option asks for more images than the data set has."""
    if count is not None and count > len(images):
        raise ValueError(
            f"{option} {count} exceeds the {len(images)} images of {name}; choose fewer"
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; user errors end with one message and exit code 1."""
    names = {"recipes": running.RECIPES, "models": models.NAMES}
    config = running.parse(Convert, PRESETS_CONVERT, argv, names)
    work = run if config.restore is None else restore
    running.run(lambda: work(config))


if __name__ == "__main__":
    main()
