"""How fast are converted networks at equal accuracy, against SpikingJelly's converter?

    python -m benchmarks.equal_accuracy --data_dir DATA --spikingjelly PYTHON311 \
        --out benchmarks/results/equal_accuracy.json

ResNet-20 of experiments/sources on CIFAR-10. T of a side is the least one of `STEPS`
that loses at most a point on the first 1000 test images; README.md says the rest. There
are no other peers: sparxml converts a sequence of layers, which a residual network is
not, and snnTorch has no converter.
"""

import functools
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import timing
from benchmarks.converter_cnn import PACKAGES, SPIKINGJELLY, peer

SOURCE = "experiments/sources/resnet20.safetensors"
POINTS, BATCH = 1, 64  # of accuracy that a side may lose; images at a time
STEPS = {"radix": (2, 3, 4, 5, 6), "rate": (8, 16, 32, 64, 128, 256)}
ANN, RATE = "ANN", "snnjax rate, by_step"
CLOSED_FORM = "snnjax radix, wait T - 1, closed_form"
WAIT_1 = "snnjax radix, wait 1, by_layer"  # the execution that "auto" takes
SNNJAX = {  # side -> options of `snnjax.spiking`
    CLOSED_FORM: dict(execution="closed_form"),
    WAIT_1: dict(micro_batch=16),
    RATE: dict(execution=1, micro_batch=16),
}
TARGETS = {CLOSED_FORM: 12, WAIT_1: 8, RATE: 3.7}  # least speed over SpikingJelly's
RECIPES = {  # of SpikingJelly; the last one is that of its example for ImageNet
    "max": dict(mode="max"),
    "99.9%": dict(mode="99.9%"),
    "99.9% by channel": dict(mode="99.9%", channel_wise=True, half_threshold=True),
}


def write_inputs(file: Path, data_dir: str | None, images: int) -> None:
    """PyTorch's weights, and normalized images, for the processes of all sides."""
    from experiments.data import load, normalize, normalized_as
    from experiments.models import load_source, read_weights

    data = normalized_as(load("cifar10", data_dir), load_source(SOURCE).card)
    splits = {
        "calibration": normalize(data, data.train_images[:256]),
        "x": normalize(data, data.test_images[:images]),
        "labels": data.test_labels[:images],
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, **splits, **read_weights(SOURCE))


Accuracies = dict[str, float]  # of recipes, in percent


def facts_of(logits: Any, labels: np.ndarray, choices: Sequence[int], measure) -> dict:
    """Facts of a side, of the first T of the choices that suffices, or of the last.

    Args:
        logits, labels: of the ANN.
        measure: T -> `Accuracies`.
    """
    ann, tried = timing.percent(logits, labels), {}
    for steps in choices:
        accuracies = tried[steps] = measure(steps)
        recipe = max(accuracies, key=accuracies.__getitem__)
        lost = round(ann - accuracies[recipe], 6)
        if lost <= POINTS:
            break
    facts = {"steps": steps, "recipe": recipe, "lost": lost, "accuracies": tried}
    return facts | {"logits": float(abs(logits).mean())}


def snnjax_or_ann(side: str, folder: Path) -> tuple[Callable[[], Any], dict]:
    """(run, facts): conversions by `snnjax.best`, or the ANN itself."""
    import jax

    import snnjax
    from experiments.models import load_source, source_function

    source, arrays = load_source(SOURCE), np.load(folder / "inputs.npz")
    fn, variables = source_function(source), source.variables
    x, labels, network = arrays["x"], arrays["labels"], jax.jit(fn)
    logits, first = network(variables, x), jax.device_put(x[:BATCH])
    if side == ANN:
        ann = {"ANN": timing.percent(logits, labels)}
        facts = facts_of(logits, labels, [1], lambda steps: ann)
        return lambda: network(variables, first), facts
    spiking = snnjax.spiking(fn, **SNNJAX[side])
    run = jax.jit(lambda snn, x: spiking(snn, x).mean(0))
    name, waits = side.split()[1].strip(","), side == CLOSED_FORM
    code, calibration = getattr(snnjax.codes, name)(), arrays["calibration"]

    @functools.cache
    def converted(steps: int) -> snnjax.SNN:
        wait = steps - 1 if waits else None  # None: the least that the code needs
        options = dict(steps=steps, wait=wait, code=code)
        return snnjax.convert(fn, variables, calibration, **options)

    def accuracies(steps: int) -> Accuracies:
        answers = timing.in_parts(functools.partial(run, converted(steps)), x, BATCH)
        return {"best": timing.percent(answers, labels)}

    facts = facts_of(logits, labels, STEPS[name], accuracies)
    return functools.partial(run, converted(facts["steps"]), first), facts


def spikingjelly(side: str, folder: Path) -> tuple[Callable[[], Any], dict]:
    """(run, facts); the facts are kept in a file, for these inputs."""
    from benchmarks import spikingjelly as theirs

    arrays = dict(np.load(folder / "inputs.npz"))
    nchw = {name: theirs.images(arrays[name]) for name in ("calibration", "x")}
    x, labels = nchw["x"], arrays["labels"]

    @functools.cache
    def converted(recipe: str):
        ann = theirs.resnet20(arrays)
        return theirs.converted(ann, nchw["calibration"], **RECIPES[recipe])

    def accuracies(steps: int) -> Accuracies:
        options = dict(**nchw, steps=steps, batch=BATCH)
        sums = {name: theirs.answers(converted(name), **options) for name in RECIPES}
        return {name: timing.percent(answers, labels) for name, answers in sums.items()}

    digest = hashlib.sha256((folder / "inputs.npz").read_bytes()).hexdigest()
    file = folder / f"spikingjelly_{digest[:16]}.json"
    if not file.exists():
        logits = theirs.resnet20(arrays)(x)
        facts = facts_of(logits, labels, STEPS["rate"], accuracies)
        file.write_text(json.dumps(facts))
    facts = json.loads(file.read_text())
    options = x[:BATCH], facts["steps"], *SPIKINGJELLY[side]
    return theirs.runner(converted(facts["recipe"]), *options), facts


COLUMNS = {"facts.steps": "T", "facts.lost": "points lost"}
COLUMNS |= {"images_per_s.best": "images/s best", "images_per_s.median": "median"}
COLUMNS |= {"speed_over.median": "/ SpikingJelly's"}


def add_speeds(results: dict[str, dict]) -> list[dict]:
    """Images per second over those of SpikingJelly's fastest mode; the targets."""
    fastest, goals = timing.fastest(results, "images_per_s", SPIKINGJELLY), []
    for name, side in results.items():
        side["speed_over"] = timing.ratios(side["images_per_s"], fastest)
        if name in SNNJAX:
            goal, points = f"points lost by {name}", side["facts"]["lost"]
            goals.append(timing.target(goal, points, at_most=POINTS))
            goal, over = f"speed of {name} / SpikingJelly's fastest", side["speed_over"]
            goals += timing.targets(goal, over, at_least=TARGETS[name])
    return goals


def text(result: dict) -> str:
    """A table of sides, and one of the accuracies for each T that was tried."""
    tried = {}
    for name, side in result["sides"].items():
        shared = "SpikingJelly" if name in SPIKINGJELLY else name
        for steps, accuracies in side.get("facts", {}).get("accuracies", {}).items():
            for recipe, accuracy in accuracies.items():
                row = [shared, recipe, steps, f"{accuracy:.1f}"]
                tried[shared, recipe, steps] = row
    accuracies = timing.table(["side", "recipe", "T", "accuracy %"], [*tried.values()])
    return f"{timing.table_of('side', COLUMNS, result['sides'])}\n\n{accuracies}"


def main(arguments: list[str] | None = None) -> dict | None:
    """The command: a result, which is printed too; None in the process of a side."""
    parser = timing.parser(__doc__)
    parser.add_argument("--data_dir", help="of CIFAR-10")
    parser.add_argument("--folder", default="runs/equal_accuracy", help="of kept work")
    parser.add_argument("--spikingjelly", metavar="PYTHON", default=sys.executable)
    parser.add_argument("--rounds", metavar="N", type=timing.count, default=7)
    options = parser.parse_args(arguments)
    folder = Path(options.folder).absolute()
    if options.side:
        prepare = spikingjelly if options.side in SPIKINGJELLY else snnjax_or_ann
        work = functools.partial(prepare, options.side, folder)
        timing.serve(work, PACKAGES[peer(options.side)])
        return None
    images, rounds = (BATCH, 1) if options.quick else (1000, options.rounds)
    write_inputs(folder / "inputs.npz", options.data_dir, images)
    sizes = {"batch": BATCH, "images": images, "rounds": rounds}
    result = timing.new_result(__doc__, (), sizes=sizes)
    command = ["-m", "benchmarks.equal_accuracy", f"--folder={folder}"]
    commands = {
        side: [getattr(options, peer(side), sys.executable), *command, f"--side={side}"]
        for side in (ANN, *SNNJAX, *SPIKINGJELLY)
    }
    sides = timing.rounds(commands, rounds, repeats=1)
    results = timing.with_speeds(sides, "images_per_s", BATCH, "logits")
    versions = {peer(name): side["versions"] for name, side in results.items()}
    targets = add_speeds(results)
    result |= {"versions": versions, "sides": sides, "targets": targets}
    return timing.report(result, text(result), options.out)


if __name__ == "__main__":
    main()
