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
from typing import NamedTuple

import jax
import numpy as np

import snnjax
from benchmarks import timing
from experiments.data import Dataset, load, normalize, normalized_as
from experiments.models import load_source, source_function
from experiments.running import CODES

SOURCE = "experiments/sources/resnet20.safetensors"
IMAGES = 256  # to calibrate with
GROUP = 64  # images of a pass of the ANN
RECIPES = {"light": snnjax.light, "best": snnjax.best}
TARGETS = {"light": 2.2, "best": 5}  # at most so many times T + 1 passes
COLUMNS = {
    "seconds": "seconds",
    "passes": "ANN passes",
    "over_t": "/ (T + 1)",
    "compiling": "first, seconds",
}


class Row(NamedTuple):
    """A conversion."""

    recipe: str
    code: str
    steps: int

    @property
    def name(self) -> str:
        return f"{self.recipe}, {self.code}, T = {self.steps}"


ROWS = (
    Row("light", "rate", steps=4),
    Row("light", "rate", steps=8),
    Row("light", "rate", steps=16),
    Row("best", "rate", steps=4),
    Row("best", "rate", steps=8),
    Row("best", "rate", steps=16),
    Row("light", "radix", steps=4),
    Row("best", "radix", steps=4),
)


def draws(data: Dataset, count: int) -> Iterator[jax.Array]:
    """Normalized training images, others in each draw."""
    for draw in itertools.count():
        indices = np.arange(draw * count, (draw + 1) * count) % len(data.train_images)
        yield normalize(data, data.train_images[indices])


def main(arguments: list[str] | None = None) -> dict:
    """The command: a result with the rounds of each row, which is printed too."""
    parser = timing.parser(__doc__)
    parser.add_argument("--data_dir", help="of TFDS; --help of experiments.convert")
    parser.add_argument(
        "--images",
        metavar="N",
        type=timing.count,
        default=IMAGES,
    )
    parser.add_argument(
        "--rounds",
        metavar="N",
        type=timing.count,
        default=3,
    )
    options = parser.parse_args(arguments)
    rows = ROWS[:1] if options.quick else ROWS
    result = timing.new_result(
        __doc__,
        ("jax", "jaxlib", "flax"),
        images=options.images,
        rounds=options.rounds,
    )
    source = load_source(SOURCE)
    data = normalized_as(load("cifar10", options.data_dir), source.card)
    fn = source_function(source)
    network = jax.jit(fn)
    images = draws(data, options.images)

    def ann_pass(x: jax.Array) -> list[jax.Array]:
        starts = range(0, len(x), GROUP)
        return [network(source.variables, x[i : i + GROUP]) for i in starts]

    def convert(row: Row, x: jax.Array) -> snnjax.SNN:
        return snnjax.convert(
            fn,
            source.variables,
            x,
            steps=row.steps,
            recipe=RECIPES[row.recipe](),
            code=CODES[row.code],
        )

    jax.block_until_ready(ann_pass(next(images)))
    sides = result["sides"]
    for row in rows:
        print(f"compiling {row.name}", file=sys.stderr, flush=True)
        first = timing.once(functools.partial(convert, row, next(images)))
        sides[row.name] = {"compiling": first, "rounds": []}
    for _ in range(options.rounds):
        for row in rows:
            x = next(images)
            ann_seconds = timing.once(functools.partial(ann_pass, x))
            seconds = timing.once(functools.partial(convert, row, x))
            sides[row.name]["rounds"].append({"ann": ann_seconds, "seconds": seconds})
    for row in rows:
        side = sides[row.name]
        passes = [r["seconds"] / r["ann"] for r in side["rounds"]]
        side["seconds"] = statistics.median(r["seconds"] for r in side["rounds"])
        side["passes"] = statistics.median(passes)
        side["over_t"] = side["passes"] / (row.steps + 1)
        goal = timing.target(
            f"passes of {row.name}, over T + 1",
            side["over_t"],
            at_most=TARGETS[row.recipe],
        )
        result["targets"].append(goal)
    text = timing.table_of("conversion", COLUMNS, sides)
    return timing.report(result, text, options.out)


if __name__ == "__main__":
    main()
