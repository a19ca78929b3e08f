"""Does memory_budget bound the memory of a conversion, and what does that cost?

    python -m benchmarks.memory --out benchmarks/results/memory.json
    python -m benchmarks.memory --network torchvision_resnet34 --images 1024 \
        --wait 32 --budgets 2000 --out benchmarks/results/memory_resnet34.json

Converts a network with random weights by ``light()`` or ``best()``, T = 32, images of
224x224, once for each budget, each in a process of its own: three convolutions of 16
channels, where both streams of 64 images take 0.8 GB, or one of
experiments.models.NAMES. Prints how much the process grew over what it held before
(peak of the resident set, without the images and the weights), and its seconds. A wait
of T needs one pass instead of T, so that a thousand images can be afforded without an
accelerator, within 8 GiB.
"""

import functools
import gc
import os
import sys
import threading
import time
from pathlib import Path

from benchmarks import timing
from experiments.models import NAMES, build

STEPS = 32
RECIPES = ("light", "best")
CONVOLUTIONS = "three convolutions"


def resident() -> float:
    """MB that the process holds (Linux); pages of files can be taken back, so they do
    not count. Where temporary files are on a tmpfs they are memory all the same.
    """
    pages = Path("/proc/self/statm").read_text().split()
    size = os.sysconf("SC_PAGE_SIZE")
    return (int(pages[1]) - int(pages[2])) * size / 1e6


def prepare(budget: int, name: str, images: int, width: int, wait: int, recipe: str):
    """(run, facts) of one budget; the facts are all that is measured."""
    import jax
    import numpy as np

    import snnjax

    fn, params = network(name, width)
    draw = np.random.default_rng(0)
    x = draw.normal(size=(images, width, width, 3)).astype(np.float32)

    def run():
        fitted = {"steps": STEPS, "wait": wait, "recipe": getattr(snnjax, recipe)()}
        snn = snnjax.convert(fn, params, x, **fitted, memory_budget=budget * 10**6)
        return jax.block_until_ready(snn)

    gc.collect()
    before, peak, done = resident(), [0.0], threading.Event()

    def watch():
        while not done.wait(0.02):
            peak[0] = max(peak[0], resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    try:
        run()
        seconds = time.perf_counter() - start
        peak[0] = max(peak[0], resident())
    finally:  # or this process would never end
        done.set()
        watcher.join()
    # All is measured; there is nothing left to time in rounds.
    facts = {"grown_mb": peak[0] - before, "peak_mb": peak[0], "seconds": seconds}
    return lambda: None, facts


def network(name: str, width: int):
    """``fn(params, x)`` and random weights."""
    import jax
    import jax.numpy as jnp

    if name != CONVOLUTIONS:
        module = build(name, 1000)
        params = jax.jit(module.init)(jax.random.key(0), jnp.ones((1, width, width, 3)))
        return lambda params, x: module.apply(params, x, train=False), params

    def fn(params, x):
        axes = ("NHWC", "HWIO", "NHWC")
        for kernel in params[:-1]:
            x = jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=axes
            )
            x = jax.nn.relu(x)
        return x.mean((1, 2)) @ params[-1]

    shapes = [(3, 3, 3, 16), (3, 3, 16, 16), (3, 3, 16, 16), (16, 10)]
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return fn, [
        jax.random.normal(key, s) / 8 for key, s in zip(keys, shapes, strict=True)
    ]


def compare(options) -> dict:
    before = timing.machine()
    arguments = [f"--network={options.network}", f"--images={options.images}"]
    arguments += [f"--width={options.width}", f"--wait={options.wait}"]
    arguments += [f"--recipe={options.recipe}"]
    module = [sys.executable, "-m", "benchmarks.memory"]
    sides = {}
    for budget in options.budgets:  # one after the other, so that each has the machine
        command = {f"{budget} MB": [*module, f"--side={budget}", *arguments]}
        sides |= timing.rounds(command, 0, 0)
    return {
        "question": __doc__.splitlines()[0],
        "sizes": {
            "network": options.network,
            "images": options.images,
            "width": options.width,
            "steps": STEPS,
            "wait": options.wait,
            "recipe": options.recipe,
        },
        "machine": before,
        "versions": {"snnjax": next(iter(sides.values()))["versions"]},
        "sides": sides,
        "targets": targets(sides),
    }


def targets(sides: dict) -> list[dict]:
    """Of several budgets, what the least saves and costs; of one, whether 8 GiB do."""
    facts = [side["facts"] for side in sides.values()]
    first, last = facts[0], facts[-1]
    if len(facts) == 1:
        return [timing.target("MB of the process", first["peak_mb"], at_most=8590)]
    grown, seconds = (first[n] / last[n] for n in ("grown_mb", "seconds"))
    return [
        timing.target("memory, least over largest budget", grown, at_most=0.5),
        timing.target("seconds, least over largest budget", seconds, at_most=2),
    ]


def text(result: dict) -> str:
    rows = [
        [name, side["facts"]["grown_mb"], side["facts"]["seconds"]]
        for name, side in result["sides"].items()
    ]
    return timing.table(["memory_budget", "grown by MB", "seconds"], rows)


def main(arguments: list[str] | None = None) -> dict | None:
    parser = timing.parser(__doc__)
    names = (CONVOLUTIONS, *NAMES)
    parser.add_argument("--network", default=CONVOLUTIONS, choices=names)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--width", type=int, default=224)
    parser.add_argument("--wait", type=int, default=0)
    parser.add_argument("--recipe", default="light", choices=RECIPES)
    budgets = {"nargs": "+", "type": int, "default": [0, 200, 1600]}
    parser.add_argument("--budgets", metavar="MB", **budgets)
    options = parser.parse_args(arguments)
    if options.images < 1 or options.width < 1:
        parser.error("--images and --width must be >= 1")
    if not 0 <= options.wait <= STEPS or min(options.budgets) < 0:
        parser.error(f"--wait must be in 0..{STEPS}, --budgets >= 0")
    if options.quick:
        options.images, options.width = 4, 16
    if options.side:
        arguments = (options.network, options.images, options.width, options.wait)
        arguments += (options.recipe,)
        work = functools.partial(prepare, int(options.side), *arguments)
        timing.serve(work, ("jax", "jaxlib"))
        return None
    result = compare(options)
    timing.report(result, text(result), options.out)
    return result


if __name__ == "__main__":
    main(sys.argv[1:])
