"""How fast is rate-coded inference of a converted network, against the peers?

    python -m benchmarks.converter_cnn --spikingjelly PYTHON311 --sparxml PYTHON313 \
        --out benchmarks/results/converter_cnn.json

3 x [Conv 3x3, 64, BatchNorm, ReLU, AvgPool 2x2], FC 512, ReLU, FC 1000; images 32x32x3;
T=16, B=64, as in SpikingJelly's own benchmark; README.md says what is compared. Prints
samples/s of every side, its time over T x the ANN's, and its speed over each peer's
best. Before a side is timed it has to show that its last step still changes the answer.
"""

import functools
import itertools
import sys
from typing import Any

import numpy as np

from benchmarks import timing

CHANNELS, HIDDEN, CLASSES = 64, 512, 1000
WAITING = "snnjax closed_form, wait T"
ANN = "ANN, T times"
ALL_STEPS = "all"  # in place of the number of steps
SNNJAX = {
    "snnjax by_step": dict(execution=1),
    "snnjax by_step, micro-batch 32": dict(execution=1, micro_batch=32),
    "snnjax by_step, micro-batch 16": dict(execution=1, micro_batch=16),
    "snnjax by_layer": dict(execution=ALL_STEPS),
    "snnjax by_layer, micro-batch 16": dict(execution=ALL_STEPS, micro_batch=16),
    "snnjax auto": dict(),
    "snnjax auto, micro-batch 16": dict(micro_batch=16),
    "snnjax signed, by_step": dict(execution=1),
    "snnjax signed, by_step, micro-batch 16": dict(execution=1, micro_batch=16),
    WAITING: dict(execution="closed_form"),
}
SIGNED = [side for side in SNNJAX if "signed" in side]
SPIKINGJELLY = {
    "SpikingJelly single-step": ("s", False),
    "SpikingJelly multi-step": ("m", False),
    "SpikingJelly single-step, channels last": ("s", True),
    "SpikingJelly multi-step, channels last": ("m", True),
}
SPARXML = ("sparxml run_converted",)
PEERS = {
    "snnjax": (ANN, *SNNJAX),
    "spikingjelly": tuple(SPIKINGJELLY),
    "sparxml": SPARXML,
}
PACKAGES = {  # distributions whose versions matter
    "snnjax": ("jax", "jaxlib", "flax", "numpy"),
    "spikingjelly": ("spikingjelly", "torch"),
    "sparxml": ("sparxml", "jax", "jaxlib", "flax"),
}
TARGETS = {"spikingjelly": 3.5, "sparxml": 3.0}


def weights(size: int) -> list[np.ndarray]:
    """Kernels [H, W, in, out] and [in, out] (of pixels H, W, C), He-initialized."""
    generator = np.random.default_rng(0)
    pixels = size // 8
    shapes = (
        (3, 3, 3, CHANNELS),
        (3, 3, CHANNELS, CHANNELS),
        (3, 3, CHANNELS, CHANNELS),
        (pixels * pixels * CHANNELS, HIDDEN),
        (HIDDEN, CLASSES),
    )
    kernels = []
    for shape in shapes:
        scale = (2 / np.prod(shape[:-1])) ** 0.5
        kernels.append(np.float32(generator.normal(0, scale, shape)))
    return kernels


def images(batch: int, size: int) -> np.ndarray:
    """Random images [B, H, W, 3]."""
    generator = np.random.default_rng(1)
    return generator.normal(size=(batch, size, size, 3)).astype(np.float32)


def channels_first(kernel: np.ndarray) -> np.ndarray:
    """The first dense kernel for a flattening in the order C, H, W."""
    pixels = round((len(kernel) // CHANNELS) ** 0.5)
    split = kernel.reshape(pixels, pixels, CHANNELS, -1)
    return split.transpose(2, 0, 1, 3).reshape(kernel.shape)


def prepare(side: str, steps: int, batch: int, size: int):
    """(run, facts) of a side; ``facts["ann"]`` must be the same number everywhere."""
    if side in SPIKINGJELLY:
        return spikingjelly(side, steps, batch, size)
    if side in SPARXML:
        return sparxml(steps, batch, size)
    return snnjax_or_ann(side, steps, batch, size)


def snnjax_or_ann(side: str, steps: int, batch: int, size: int):
    """A conversion of ours, or T passes of the ANN."""
    import jax
    import jax.numpy as jnp

    import snnjax
    from experiments.models.zoo import VGG

    module = VGG(CLASSES, stages=((CHANNELS,),) * 3, dense=(HIDDEN,))
    x = jnp.asarray(images(batch, size))
    params = jax.jit(module.init)(jax.random.key(0), x[:1])
    names = ("Conv_0", "Conv_1", "Conv_2", "Dense_0", "Dense_1")
    for name, kernel in zip(names, weights(size), strict=True):
        params["params"][name]["kernel"] = jnp.asarray(kernel)
    ann = jax.jit(module.apply)
    facts = {"ann": float(jnp.abs(ann(params, x)).mean())}
    if side == ANN:
        return lambda: [ann(params, x) for _ in range(steps)], facts
    wait = steps if side == WAITING else 0
    levels = (-1, 1) if side in SIGNED else (0, 1)
    snn = snnjax.convert(
        module.apply,
        params,
        x,
        steps=steps,
        wait=wait,
        model=snnjax.integrate_and_fire(levels=levels),
        recipe=snnjax.max_activation(),
    )
    options = dict(SNNJAX[side])
    if options.get("execution") == ALL_STEPS:
        options["execution"] = steps
    run = jax.jit(
        snnjax.spiking(
            module.apply,
            steps=steps,
            wait=wait,
            **options,
        )
    )
    timing.check_steps(np.asarray(run(snn, x)), steps, silent_end=side == WAITING)
    return lambda: run(snn, x), facts


def spikingjelly(side: str, steps: int, batch: int, size: int):
    """Its RateCodingRecipe, run as in its own benchmark."""
    from benchmarks import spikingjelly as peer_networks

    *convolutions, hidden, readout = weights(size)
    ann = peer_networks.cnn(convolutions, (channels_first(hidden), readout))
    x = peer_networks.images(images(batch, size))
    facts = {
        "ann": float(ann(x).abs().mean()),
        "threads": peer_networks.torch.get_num_threads(),
    }
    snn = peer_networks.converted(
        ann,
        x,
        mode="Max",
        fuse_flag=True,
    )
    mode, channels_last = SPIKINGJELLY[side]
    return peer_networks.runner(snn, x, steps, mode, channels_last), facts


def sparxml(steps: int, batch: int, size: int):
    """Its fold_batch_norm, normalize, convert and run_converted, jitted."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    from sparx.learn import convert, fold_batch_norm, normalize, run_converted
    from sparx.nn import Flatten

    pool = functools.partial(nn.avg_pool, window_shape=(2, 2), strides=(2, 2))
    layers: list[Any] = []
    for _ in range(3):
        layers.append(
            nn.Conv(
                CHANNELS,
                (3, 3),
                padding=1,
                use_bias=False,
            )
        )
        layers += [nn.BatchNorm(use_running_average=True), nn.relu, pool]
    layers += [Flatten(), nn.Dense(HIDDEN), nn.relu, nn.Dense(CLASSES)]
    model = nn.Sequential(layers)
    x = jnp.asarray(images(batch, size))
    variables = model.init(jax.random.key(0), x)
    *convolutions, hidden, readout = weights(size)
    kernels = [*convolutions, channels_first(hidden), readout]
    params = dict(variables["params"])
    for index, kernel in zip((0, 4, 8, 13, 15), kernels, strict=True):
        name = f"layers_{index}"
        params[name] = {**params[name], "kernel": kernel}
    variables = {**variables, "params": params}
    facts = {"ann": float(jnp.abs(model.apply(variables, x)).mean())}
    model, variables = fold_batch_norm(model, variables)
    variables = normalize(model, variables, x, percentile=100)
    snn, snn_variables = convert(model, variables)
    run = jax.jit(
        lambda v, x, steps: run_converted(snn, v, x, steps),
        static_argnums=2,
    )
    # It returns the mean over T; the sums up to each step give the single steps.
    sums = [np.asarray(run(snn_variables, x, t)) * t for t in range(1, steps + 1)]
    timing.check_steps(np.diff(sums, axis=0, prepend=0), steps)
    return lambda: run(snn_variables, x, steps), facts


def peer(side: str) -> str:
    """The library that a side belongs to."""
    for library, sides in PEERS.items():
        if side in sides:
            return library
    return "snnjax"


def add_ratios(results: dict[str, dict]) -> None:
    """To every side: its time over T x the ANN's, its speed over each peer's best."""
    speed = "samples_per_s"
    best = {}
    for library in TARGETS:
        best[library] = timing.fastest(results, speed, PEERS[library])
    for side in results.values():
        side["time_over_ann"] = timing.ratios(results[ANN][speed], side[speed])
        side["speed_over"] = {}
        for library, peer_speed in best.items():
            side["speed_over"][library] = timing.ratios(side[speed], peer_speed)


def targets(results: dict[str, dict]) -> list[dict]:
    """Pass or miss of snnjax's fastest side that streams, and of signed spikes.

    With wait T the answer comes later, so that side does not count.
    """
    goals = []
    signed = [results[side]["time_over_ann"] for side in SIGNED if side in results]
    if signed:
        shortest = {m: min(ratio[m] for ratio in signed) for m in timing.MEASURES}
        name = "time of signed spikes, by_step / (T x the ANN's)"
        goals += timing.targets(name, shortest, at_most=1.35)
    streaming = []
    for side in SNNJAX:
        if side in results and side not in (WAITING, *SIGNED):
            streaming.append(side)
    if streaming:
        fastest = max(
            streaming, key=lambda name: results[name]["samples_per_s"]["best"]
        )
        side = results[fastest]
        name = f"time of {fastest} / (T x the ANN's)"
        goals += timing.targets(name, side["time_over_ann"], at_most=1.2)
        for library, ratio in side["speed_over"].items():
            name = f"speed of {fastest} / {library}'s fastest"
            goals += timing.targets(name, ratio, at_least=TARGETS[library])
    return goals


COLUMNS = {
    "samples_per_s.best": "samples/s best",
    "samples_per_s.median": "median",
    "time_over_ann.best": "time / (T x ANN) best",
    "time_over_ann.median": "median",
    "speed_over.spikingjelly.best": "speed / spikingjelly",
    "speed_over.sparxml.best": "speed / sparxml",
}
SIZES = {
    "steps": 16,
    "batch": 64,
    "size": 32,
}  # pixels, a multiple of 8
REPETITIONS = {"rounds": 5, "repeats": 2}
QUICK = {
    "batch": 2,
    "size": 8,
    "rounds": 1,
    "repeats": 1,
}


def main(arguments: list[str] | None = None) -> dict | None:
    """The command: a result, which is printed too; None in the process of a side."""
    parser = timing.parser(__doc__)
    for library in TARGETS:
        parser.add_argument(
            f"--{library}",
            metavar="PYTHON",
            default=sys.executable,
            help="one that has it installed",
        )
    timing.only_option(parser)
    for name, default in (SIZES | REPETITIONS).items():
        parser.add_argument(
            f"--{name}",
            metavar="N",
            type=timing.count,
            default=default,
        )
    options = parser.parse_args(arguments)
    if options.quick:
        vars(options).update(QUICK)
    sizes = {name: getattr(options, name) for name in SIZES}
    if options.side:
        work = functools.partial(prepare, options.side, **sizes)
        timing.serve(work, PACKAGES[peer(options.side)])
        return None
    result = timing.new_result(
        __doc__,
        (),
        sizes=sizes,
        rounds=options.rounds,
        repeats=options.repeats,
    )
    sides = itertools.chain.from_iterable(PEERS.values())
    timing.check_only(parser, options.only, sides)
    commands = {}
    for library, sides_of_library in PEERS.items():
        python = getattr(options, library, sys.executable)
        for side in sides_of_library:
            if side == ANN or timing.is_selected(side, options.only):
                command = [python, "-m", "benchmarks.converter_cnn", f"--side={side}"]
                command += [f"--{name}={size}" for name, size in sizes.items()]
                commands[side] = command
    sides = timing.rounds(commands, options.rounds, options.repeats)
    results = timing.with_speeds(sides, "samples_per_s", options.batch, "ann")
    add_ratios(results)
    result["sides"] = sides
    result["targets"] = targets(results)
    result["versions"] = {peer(name): s["versions"] for name, s in results.items()}
    return timing.report(result, timing.table_of("side", COLUMNS, sides), options.out)


if __name__ == "__main__":
    main()
