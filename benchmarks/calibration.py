"""What does calibrated conversion cost, and does the cost grow with the depth?

    python -m benchmarks.calibration --python spikingjelly=PYTHON311 \
        --out benchmarks/results/calibration.json

Converts He's ResNet-20 and ResNet-56 (random weights, BatchNorm) by ``light()`` and
``best()`` with T=16 and 128 images, and a ResNet-34 with 8 images of 64x64. Prints the
seconds of the first call in a fresh process (with compilation) and of later calls, and
their ratio to T+1 passes of the ANN. Beside it: the scheme of the authors' code, which
runs the whole network once as ANN and T times as SNN for every layer (measured on
digits_resnet, generously without its fits; estimated from the ANN's time on the
others), and SpikingJelly's conversion of the same ResNet-20, which finds thresholds
only.
"""

import functools
import itertools
import sys

import numpy as np

from benchmarks import timing

SHAPES = {
    "resnet20": (32, 32, 3),
    "resnet56": (32, 32, 3),
    "digits_resnet": (8, 8, 1),
    "resnet34": (64, 64, 3),
}
FEWER = {"resnet34": 16}  # divides the number of images
PASSES, LAYERS = "ANN, T+1 times", "layer by layer, no fits"
CONVERT = {f"snnjax {recipe}": recipe for recipe in ("light", "best")}
THRESHOLDS = "SpikingJelly, thresholds only"
SIDES = tuple(
    [f"{work}: {model}" for model in SHAPES for work in (PASSES, *CONVERT)]
    + [f"{LAYERS}: digits_resnet", f"{THRESHOLDS}: resnet20"]
)
PACKAGES = {
    "snnjax": ("jax", "jaxlib", "flax"),
    "spikingjelly": ("spikingjelly", "torch"),
}
AFTER = 5.0  # seconds of ResNet-20, once it is compiled
COMPILATION = {"resnet20": 10.0, "resnet34": 40.0}  # seconds


def images(model: str, batch: int) -> np.ndarray:
    draw = np.random.default_rng(1)
    count = max(1, batch // FEWER.get(model, 1))
    return draw.normal(size=(count, *SHAPES[model])).astype(np.float32)


# ---------------------------------------------------------------------- sides


def prepare(side: str, steps: int, batch: int):
    """(run, facts) of a side; ``facts["first"]`` is its first call in seconds."""
    work, _, model = side.partition(": ")
    if work == THRESHOLDS:
        return thresholds(batch)
    import jax
    import jax.numpy as jnp

    import snnjax
    from experiments.models import build
    from snnjax.neurons import integrate_and_fire

    module = build(model, 10)
    x = jnp.asarray(images(model, batch))
    variables = module.init(jax.random.key(0), x[:1])

    def fn(variables, x):
        return module.apply(variables, x, train=False)

    sites = len(snnjax.sites(fn, variables, x))
    ann = jax.jit(fn)
    if work == PASSES:

        def run():
            return [ann(variables, x) for _ in range(steps + 1)]

    elif work in CONVERT:

        def run():
            recipe = getattr(snnjax, CONVERT[work])()
            return snnjax.convert(fn, variables, x, steps=steps, recipe=recipe)

    else:
        snn = snnjax.init(fn, variables, x, model=integrate_and_fire())
        spiking = jax.jit(snnjax.spiking(fn, steps=steps))

        def run():
            return [(ann(variables, x), spiking(snn, x)) for _ in range(sites)]

    return run, {"sites": sites, "first": timing.once(run)}


def thresholds(batch: int):
    """SpikingJelly's RateCodingRecipe on ResNet-20: one pass that finds thresholds."""
    try:
        import torch
        from spikingjelly.activation_based.ann2snn import Converter, RateCodingRecipe
    except ImportError as error:
        raise timing.NotInstalled(str(error)) from None
    from torch import nn

    class Block(nn.Module):
        def __init__(self, inputs, channels, stride):
            super().__init__()
            self.conv1 = nn.Conv2d(inputs, channels, 3, stride, 1, bias=False)
            self.norm1, self.relu1 = nn.BatchNorm2d(channels), nn.ReLU()
            self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
            self.norm2, self.relu2 = nn.BatchNorm2d(channels), nn.ReLU()
            # He's option A as a fixed 1x1 convolution: its tracer refuses F.pad.
            self.shortcut = nn.Identity()
            if stride != 1:
                self.shortcut = nn.Conv2d(inputs, channels, 1, stride, bias=False)
                nn.init.dirac_(self.shortcut.weight)

        def forward(self, x):
            y = self.relu1(self.norm1(self.conv1(x)))
            return self.relu2(self.norm2(self.conv2(y)) + self.shortcut(x))

    def resnet20():
        layers = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
        inputs = 16
        for channels in (16, 32, 64):
            for index in range(3):
                stride = 2 if index == 0 and channels != 16 else 1
                layers.append(Block(inputs, channels, stride))
                inputs = channels
        ends = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
        return nn.Sequential(*layers, *ends).eval()

    x = torch.from_numpy(images("resnet20", batch).transpose(0, 3, 1, 2).copy())

    def run():
        recipe = RateCodingRecipe(dataloader=[(x,)], mode="Max", fuse_flag=True)
        return Converter(recipe=recipe, device="cpu").convert(resnet20())

    return run, {"sites": 19, "first": timing.once(run)}


# --------------------------------------------------------------------- report


def compare(options) -> dict:
    """All sides, their seconds, ratios and targets."""
    before = timing.machine()
    pythons = timing.interpreters(options.python, list(PACKAGES))
    arguments = [f"--steps={options.steps}", f"--batch={options.batch}"]
    module = ("-m", "benchmarks.calibration")
    commands = {
        side: [pythons[peer(side)], *module, f"--side={side}", *arguments]
        for side in SIDES
        if timing.is_selected(side, options.only)
    }
    sides = timing.rounds(commands, options.rounds, options.repeats)
    results = {side: s for side, s in sides.items() if "missing" not in s}
    for name, side in results.items():
        measures = timing.MEASURES.items()
        side["later"] = {m: measure(side["seconds"]) for m, measure in measures}
        passes = results.get(f"{PASSES}: {name.partition(': ')[2]}")
        if passes and peer(name) == "snnjax":
            of = {m: measure(passes["seconds"]) for m, measure in measures}
            side["over_passes"] = {m: side["later"][m] / of[m] for m in of}
    return {
        "question": __doc__.splitlines()[0],
        "sizes": {"steps": options.steps, "batch": options.batch},
        "rounds": options.rounds,
        "repeats": options.repeats,
        "machine": before,
        "versions": {peer(name): side["versions"] for name, side in results.items()},
        "sides": sides,
        "targets": targets(results),
    }


def peer(side: str) -> str:
    return "spikingjelly" if side.startswith(THRESHOLDS) else "snnjax"


def targets(results: dict[str, dict]) -> list[dict]:
    goals = []
    for (work, recipe), model in itertools.product(CONVERT.items(), COMPILATION):
        side = results.get(f"{work}: {model}")
        if side is None:
            continue
        later = side["later"]["median"]
        compilation = side["facts"]["first"] - later
        name = f"compilation of {recipe}() on {model}, seconds"
        goals.append(timing.target(name, compilation, at_most=COMPILATION[model]))
        if (recipe, model) == ("light", "resnet20"):
            name = "seconds of light() on resnet20, later calls (median)"
            goals.append(timing.target(name, later, at_most=AFTER))
    return goals


def text(result: dict) -> str:
    head = ["side", "sites", "first call s", "later s best", "median"]
    head += ["/ (T+1) ANN passes best", "median"]
    rows = []
    for name, side in result["sides"].items():
        if "missing" in side:
            rows.append([name, "not installed", *[None] * 5])
            continue
        facts, later = side["facts"], side["later"]
        over = side.get("over_passes", {"best": None, "median": None})
        rows.append([name, facts["sites"], facts["first"], *later.values()])
        rows[-1] += over.values()
        if name.startswith(PASSES):
            sites = facts["sites"]
            estimate = [sites * seconds for seconds in later.values()]
            label = f"{LAYERS} (estimate){name.removeprefix(PASSES)}"
            rows.append([label, sites, None, *estimate, float(sites), float(sites)])
    return timing.table(head, rows)


def main(arguments: list[str] | None = None) -> dict | None:
    parser = timing.parser(__doc__)
    timing.peer_options(parser)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--batch", type=int, default=128, help="calibration images")
    timing.rounds_option(parser, 4)
    parser.add_argument(
        "--repeats", type=timing.count, default=1, help="timings per round"
    )
    options = parser.parse_args(arguments)
    if options.quick:
        options.steps, options.batch, options.rounds = 2, 2, 1
    if options.side:
        work = functools.partial(prepare, options.side, options.steps, options.batch)
        timing.serve(work, PACKAGES[peer(options.side)])
        return None
    result = compare(options)
    timing.report(result, text(result), options.out)
    return result


if __name__ == "__main__":
    main(sys.argv[1:])
