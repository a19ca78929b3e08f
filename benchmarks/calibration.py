"""What does calibration cost, in passes of the ANN?

    python -m benchmarks.calibration --data_dir DATA \
        --out benchmarks/results/calibration.json

ResNet-20 of experiments/sources, fitted to 256 training images of CIFAR-10. The unit is
T + 1 passes of the ANN over the same images: T steps of the SNN and the ANN itself. A
side is converted once to compile it, and then timed on other images in every round,
right behind a pass of the ANN; medians of the rounds.
"""

import functools
import itertools
import statistics
import sys
from collections.abc import Iterator

import jax
import numpy as np

import snnjax
from benchmarks import timing
from experiments.data import Dataset, load, normalize, normalized_as
from experiments.models import load_source, source_function

SOURCE = "experiments/sources/resnet20.safetensors"
IMAGES, GROUP = 256, 64  # to calibrate with; of a pass of the ANN
RECIPES = {"light": snnjax.light, "best": snnjax.best}
TARGETS = {"light": 2.2, "best": 5}  # at most so many times T + 1 passes
COLUMNS = {"seconds": "seconds", "passes": "ANN passes", "over_t": "/ (T + 1)"}
COLUMNS |= {"compiling": "first, seconds"}
# Side -> recipe, code, T.
SIDES = {
    f"{recipe}, {code}, T = {steps}": (recipe, code, steps)
    for code, all_steps in (("rate", (4, 8, 16)), ("radix", (4,)))
    for recipe in RECIPES
    for steps in all_steps
}


def draws(data: Dataset, count: int) -> Iterator[jax.Array]:
    """Normalized training images, others in each draw."""
    for draw in itertools.count():
        numbers = np.arange(draw * count, (draw + 1) * count) % len(data.train_images)
        yield normalize(data, data.train_images[numbers])


def main(arguments: list[str] | None = None) -> dict:
    parser = timing.parser(__doc__)
    parser.add_argument("--data_dir", help="of TFDS; --help of experiments.convert")
    parser.add_argument("--images", metavar="N", type=timing.count, default=IMAGES)
    parser.add_argument("--rounds", metavar="N", type=timing.count, default=3)
    options = parser.parse_args(arguments)
    sides = dict([*SIDES.items()][: 1 if options.quick else None])
    more = {"images": options.images, "rounds": options.rounds}
    result = timing.new_result(__doc__, ("jax", "jaxlib", "flax"), **more)
    source = load_source(SOURCE)
    data = normalized_as(load("cifar10", options.data_dir), source.card)
    fn, variables = source_function(source), source.variables
    network, images = jax.jit(fn), draws(data, options.images)

    def one_pass(x: jax.Array) -> list[jax.Array]:
        return [network(variables, x[i : i + GROUP]) for i in range(0, len(x), GROUP)]

    def convert(side: str, x: jax.Array) -> snnjax.SNN:
        recipe, code, steps = sides[side]
        options = {"recipe": RECIPES[recipe](), "code": getattr(snnjax.codes, code)()}
        return snnjax.convert(fn, variables, x, steps=steps, **options)

    jax.block_until_ready(one_pass(next(images)))
    results = result["sides"]
    for side in sides:
        print(f"compiling {side}", file=sys.stderr, flush=True)
        first = timing.once(functools.partial(convert, side, next(images)))
        results[side] = {"compiling": first, "rounds": []}
    for _ in range(options.rounds):
        for side in sides:
            x = next(images)
            ann = timing.once(functools.partial(one_pass, x))
            seconds = timing.once(functools.partial(convert, side, x))
            results[side]["rounds"].append({"ann": ann, "seconds": seconds})
    for side, (recipe, _, steps) in sides.items():
        here, rounds = results[side], results[side]["rounds"]
        here["seconds"] = statistics.median(r["seconds"] for r in rounds)
        here["passes"] = statistics.median(r["seconds"] / r["ann"] for r in rounds)
        here["over_t"] = over_t = here["passes"] / (steps + 1)
        goal, at_most = f"passes of {side}, over T + 1", TARGETS[recipe]
        result["targets"].append(timing.target(goal, over_t, at_most=at_most))
    text = timing.table_of("conversion", COLUMNS, results)
    return timing.report(result, text, options.out)


if __name__ == "__main__":
    main()
