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
POINTS = 1  # of accuracy that a side may lose
BATCH = 64  # images
STEPS = {"radix": (2, 3, 4, 5, 6), "rate": (8, 16, 32, 64, 128, 256)}
ANN = "ANN"
RATE = "snnjax rate, by_step"
CLOSED_FORM = "snnjax radix, wait T - 1, closed_form"
WAIT_1 = "snnjax radix, wait 1, by_layer"  # the execution that "auto" takes
SNNJAX = {  # side -> options of `snnjax.spiking`
    CLOSED_FORM: dict(execution="closed_form"),
    WAIT_1: dict(micro_batch=16),
    RATE: dict(execution=1, micro_batch=16),
}
TARGETS = {
    CLOSED_FORM: 12,
    WAIT_1: 8,
    RATE: 3.7,
}  # least speed over SpikingJelly's
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


def facts_of(
    logits: Any,
    labels: np.ndarray,
    choices: Sequence[int],
    measure: Callable[[int], Accuracies],
) -> dict:
    """Facts of a side, of the first T of the choices that suffices, or of the last.

    Args:
        logits, labels: of the ANN.
        choices: T that may suffice.
        measure: T -> `Accuracies`.
    """
    ann_accuracy = timing.percent(logits, labels)
    tried = {}
    for steps in choices:
        accuracies = measure(steps)
        tried[steps] = accuracies
        recipe = max(accuracies, key=accuracies.__getitem__)
        lost = round(ann_accuracy - accuracies[recipe], 6)
        if lost <= POINTS:
            break
    return {
        "steps": steps,
        "recipe": recipe,
        "lost": lost,
        "accuracies": tried,
        "logits": float(abs(logits).mean()),
    }


def snnjax_or_ann(side: str, folder: Path) -> tuple[Callable[[], Any], dict]:
    """(run, facts): conversions by `snnjax.best`, or the ANN itself."""
    import jax

    import snnjax
    from experiments.models import load_source, source_function

    source = load_source(SOURCE)
    arrays = np.load(folder / "inputs.npz")
    fn = source_function(source)
    x = arrays["x"]
    labels = arrays["labels"]
    network = jax.jit(fn)
    logits = network(source.variables, x)
    first = jax.device_put(x[:BATCH])
    if side == ANN:
        accuracies = {"ANN": timing.percent(logits, labels)}
        facts = facts_of(logits, labels, [1], lambda steps: accuracies)
        return lambda: network(source.variables, first), facts
    spiking = snnjax.spiking(fn, **SNNJAX[side])
    run = jax.jit(lambda snn, x: spiking(snn, x).mean(0))
    code = side.split()[1].strip(",")  # of "snnjax radix, ..."

    @functools.cache
    def converted(steps: int) -> snnjax.SNN:
        return snnjax.convert(
            fn,
            source.variables,
            arrays["calibration"],
            steps=steps,
            # None: the shortest wait that is enough
            wait=steps - 1 if side == CLOSED_FORM else None,
            code=getattr(snnjax.codes, code)(),
        )

    def accuracies_at(steps: int) -> Accuracies:
        answers = timing.in_parts(functools.partial(run, converted(steps)), x, BATCH)
        return {"best": timing.percent(answers, labels)}

    facts = facts_of(logits, labels, STEPS[code], accuracies_at)
    return functools.partial(run, converted(facts["steps"]), first), facts


def spikingjelly(side: str, folder: Path) -> tuple[Callable[[], Any], dict]:
    """(run, facts); the facts are kept in a file, for these inputs."""
    from benchmarks import spikingjelly as peer_networks

    arrays = dict(np.load(folder / "inputs.npz"))
    calibration = peer_networks.images(arrays["calibration"])
    x = peer_networks.images(arrays["x"])
    labels = arrays["labels"]

    @functools.cache
    def converted(recipe: str):
        ann = peer_networks.resnet20(arrays)
        return peer_networks.converted(ann, calibration, **RECIPES[recipe])

    def accuracies_at(steps: int) -> Accuracies:
        accuracies = {}
        for recipe in RECIPES:
            answers = peer_networks.answers(
                converted(recipe),
                calibration=calibration,
                x=x,
                steps=steps,
                batch=BATCH,
            )
            accuracies[recipe] = timing.percent(answers, labels)
        return accuracies

    digest = hashlib.sha256((folder / "inputs.npz").read_bytes()).hexdigest()
    file = folder / f"spikingjelly_{digest[:16]}.json"
    if not file.exists():
        logits = peer_networks.resnet20(arrays)(x)
        facts = facts_of(logits, labels, STEPS["rate"], accuracies_at)
        file.write_text(json.dumps(facts))
    facts = json.loads(file.read_text())
    mode, channels_last = SPIKINGJELLY[side]
    run = peer_networks.runner(
        converted(facts["recipe"]),
        x[:BATCH],
        facts["steps"],
        mode,
        channels_last,
    )
    return run, facts


COLUMNS = {
    "facts.steps": "T",
    "facts.lost": "points lost",
    "images_per_s.best": "images/s best",
    "images_per_s.median": "median",
    "speed_over.median": "/ SpikingJelly's",
}


def add_speeds(results: dict[str, dict]) -> list[dict]:
    """Images per second over those of SpikingJelly's fastest mode; the targets."""
    fastest_peer = timing.fastest(results, "images_per_s", SPIKINGJELLY)
    goals = []
    for name, side in results.items():
        side["speed_over"] = timing.ratios(side["images_per_s"], fastest_peer)
        if name in SNNJAX:
            lost = side["facts"]["lost"]
            goals.append(timing.target(f"points lost by {name}", lost, at_most=POINTS))
            goals += timing.targets(
                f"speed of {name} / SpikingJelly's fastest",
                side["speed_over"],
                at_least=TARGETS[name],
            )
    return goals


def text(result: dict) -> str:
    """A table of sides, and one of the accuracies for each T that was tried."""
    rows = {}
    for name, side in result["sides"].items():
        # All modes of SpikingJelly have the same accuracies.
        library = "SpikingJelly" if name in SPIKINGJELLY else name
        for steps, accuracies in side.get("facts", {}).get("accuracies", {}).items():
            for recipe, accuracy in accuracies.items():
                row = [library, recipe, steps, f"{accuracy:.1f}"]
                rows[library, recipe, steps] = row
    tried = timing.table(["side", "recipe", "T", "accuracy %"], [*rows.values()])
    return f"{timing.table_of('side', COLUMNS, result['sides'])}\n\n{tried}"


def main(arguments: list[str] | None = None) -> dict | None:
    """The command: a result, which is printed too; None in the process of a side."""
    parser = timing.parser(__doc__)
    parser.add_argument("--data_dir", help="of CIFAR-10")
    parser.add_argument("--folder", default="runs/equal_accuracy", help="of kept work")
    parser.add_argument("--spikingjelly", metavar="PYTHON", default=sys.executable)
    parser.add_argument(
        "--rounds",
        metavar="N",
        type=timing.count,
        default=7,
    )
    options = parser.parse_args(arguments)
    folder = Path(options.folder).absolute()
    if options.side:
        prepare = spikingjelly if options.side in SPIKINGJELLY else snnjax_or_ann
        work = functools.partial(prepare, options.side, folder)
        timing.serve(work, PACKAGES[peer(options.side)])
        return None
    images = BATCH if options.quick else 1000
    rounds = 1 if options.quick else options.rounds
    write_inputs(folder / "inputs.npz", options.data_dir, images)
    sizes = {
        "batch": BATCH,
        "images": images,
        "rounds": rounds,
    }
    result = timing.new_result(__doc__, (), sizes=sizes)
    commands = {}
    for side in (ANN, *SNNJAX, *SPIKINGJELLY):
        commands[side] = [
            options.spikingjelly if side in SPIKINGJELLY else sys.executable,
            "-m",
            "benchmarks.equal_accuracy",
            f"--folder={folder}",
            f"--side={side}",
        ]
    sides = timing.rounds(commands, rounds, repeats=1)
    results = timing.with_speeds(sides, "images_per_s", BATCH, "logits")
    result["sides"] = sides
    result["targets"] = add_speeds(results)
    result["versions"] = {peer(name): s["versions"] for name, s in results.items()}
    return timing.report(result, text(result), options.out)


if __name__ == "__main__":
    main()
