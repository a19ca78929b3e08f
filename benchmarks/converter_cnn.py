"""How fast is rate-coded inference of a converted network, against the peers?

    python -m benchmarks.converter_cnn --python spikingjelly=PYTHON311 \
        --python sparxml=PYTHON313 --out benchmarks/results/converter_cnn.json

3 x [Conv 3x3, 64, BatchNorm, ReLU, AvgPool 2x2], FC 512, ReLU, FC 1000; images 32x32x3;
T=16, B=64, as in SpikingJelly's own benchmark; README.md says what is compared. Prints
samples/s of every side, its time over T x the ANN's, and its speed over each peer's
best. Before a side is timed it has to show that its last step still changes the answer.
"""

import functools
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import timing

CHANNELS, HIDDEN, CLASSES = 64, 512, 1000
WAITING = "snnjax closed_form, wait T"
ANN = "ANN, T times"
SNNJAX = {
    "snnjax by_step": dict(execution="by_step"),
    "snnjax by_step, micro-batch 32": dict(execution="by_step", micro_batch=32),
    "snnjax by_step, micro-batch 16": dict(execution="by_step", micro_batch=16),
    "snnjax by_layer": dict(execution="by_layer"),
    "snnjax by_layer, micro-batch 16": dict(execution="by_layer", micro_batch=16),
    "snnjax auto": dict(),
    "snnjax auto, micro-batch 16": dict(micro_batch=16),
    "snnjax signed, by_step": dict(execution="by_step"),
    "snnjax signed, by_step, micro-batch 16": dict(execution="by_step", micro_batch=16),
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
PEERS = {"snnjax": (ANN, *SNNJAX), "spikingjelly": (*SPIKINGJELLY,), "sparxml": SPARXML}
PACKAGES = {  # distributions whose versions matter
    "snnjax": ("jax", "jaxlib", "flax", "numpy"),
    "spikingjelly": ("spikingjelly", "torch"),
    "sparxml": ("sparxml", "jax", "jaxlib", "flax"),
}
TARGETS = {"spikingjelly": 3.5, "sparxml": 3.0}


def weights(size: int) -> list[np.ndarray]:
    """Kernels [H, W, in, out] and [in, out] (of pixels H, W, C), He-initialized."""
    draw = np.random.default_rng(0)
    pixels = size // 8
    shapes = [(3, 3, 3, CHANNELS), *[(3, 3, CHANNELS, CHANNELS)] * 2]
    shapes += [(pixels * pixels * CHANNELS, HIDDEN), (HIDDEN, CLASSES)]
    scales = ((2 / np.prod(shape[:-1])) ** 0.5 for shape in shapes)
    pairs = zip(scales, shapes, strict=True)
    return [np.float32(draw.normal(0, *pair)) for pair in pairs]


def images(batch: int, size: int) -> np.ndarray:
    draw = np.random.default_rng(1)
    return draw.normal(size=(batch, size, size, 3)).astype(np.float32)


def channels_first(kernel: np.ndarray) -> np.ndarray:
    """The first dense kernel for a flattening in the order C, H, W."""
    pixels = round((len(kernel) // CHANNELS) ** 0.5)
    split = kernel.reshape(pixels, pixels, CHANNELS, -1)
    return split.transpose(2, 0, 1, 3).reshape(kernel.shape)


# ---------------------------------------------------------------------- sides


def prepare(side: str, steps: int, batch: int, size: int):
    """(run, facts) of a side; ``facts["ann"]`` must be the same number everywhere."""
    if side in SPIKINGJELLY:
        return spikingjelly(*SPIKINGJELLY[side], steps, batch, size)
    if side in SPARXML:
        return sparxml(steps, batch, size)
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
    network, ann = module.apply, jax.jit(module.apply)
    facts = {"ann": float(jnp.abs(ann(params, x)).mean())}
    if side == ANN:
        return lambda: [ann(params, x) for _ in range(steps)], facts
    wait = steps if side == WAITING else 0
    levels = (-1, 1) if side in SIGNED else (0, 1)
    options: dict[str, Any] = {"model": snnjax.integrate_and_fire(levels=levels)}
    options |= {"recipe": snnjax.max_activation(), "steps": steps, "wait": wait}
    snn = snnjax.convert(network, params, x, **options)
    run = jax.jit(snnjax.spiking(network, steps=steps, wait=wait, **SNNJAX[side]))
    check_steps(np.asarray(run(snn, x)), steps, silent_end=side == WAITING)
    return lambda: run(snn, x), facts


def spikingjelly(mode: str, channels_last: bool, steps: int, batch: int, size: int):
    """Its RateCodingRecipe, run as in its own benchmark."""
    try:
        import torch
        from spikingjelly.activation_based.ann2snn import Converter, RateCodingRecipe
    except ImportError as error:
        raise timing.NotInstalled(error) from None
    from torch import nn

    torch.set_grad_enabled(False)
    layers, inputs, (*convolutions, hidden, readout) = [], 3, weights(size)
    for _ in convolutions:
        layers += [nn.Conv2d(inputs, CHANNELS, 3, padding=1, bias=False)]
        layers += [nn.BatchNorm2d(CHANNELS), nn.ReLU(), nn.AvgPool2d(2)]
        inputs = CHANNELS
    ends = [nn.Linear(*hidden.shape), nn.Linear(*readout.shape)]
    ann = nn.Sequential(*layers, nn.Flatten(), ends[0], nn.ReLU(), ends[1]).eval()
    for layer, kernel in zip(ann[0:12:4], convolutions, strict=True):
        layer.weight.copy_(torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy()))
    for layer, kernel in zip(ends, (channels_first(hidden), readout), strict=True):
        layer.weight.copy_(torch.from_numpy(kernel.T.copy()))
        layer.bias.zero_()
    x = torch.from_numpy(images(batch, size).transpose(0, 3, 1, 2).copy())
    facts = {"ann": float(ann(x).abs().mean()), "threads": torch.get_num_threads()}
    recipe = RateCodingRecipe(dataloader=[(x,)], mode="Max", fuse_flag=True)
    snn = Converter(recipe=recipe, device="cpu").convert(ann).eval()
    return spikingjelly_run(snn, x, steps, mode, channels_last), facts


def spikingjelly_run(snn, x, steps: int, mode: str, channels_last: bool):
    """The sum over all steps of its network, for images [B, C, H, W] in a step mode."""
    import torch
    from spikingjelly.activation_based import functional

    if channels_last:
        snn = snn.to(memory_format=torch.channels_last)
        x = x.to(memory_format=torch.channels_last)
    functional.set_step_mode(snn, mode)

    def outputs():
        functional.reset_net(snn)
        if mode == "s":
            return [snn(x) for _ in range(steps)]
        return snn(x.unsqueeze(0).expand(steps, *x.shape).contiguous())

    check_steps(np.stack([output.numpy() for output in outputs()]), steps)
    total = sum if mode == "s" else (lambda outputs: outputs.sum(0))
    return torch.inference_mode()(lambda: total(outputs()))


def sparxml(steps: int, batch: int, size: int):
    """Its fold_batch_norm, normalize, convert and run_converted, jitted."""
    try:
        import flax.linen as nn
        import jax
        import jax.numpy as jnp
        from sparx.learn import convert, fold_batch_norm, normalize, run_converted
        from sparx.nn import Flatten
    except ImportError as error:
        raise timing.NotInstalled(error) from None
    pool = functools.partial(nn.avg_pool, window_shape=(2, 2), strides=(2, 2))
    layers = []
    for _ in range(3):
        layers += [nn.Conv(CHANNELS, (3, 3), padding=1, use_bias=False)]
        layers += [nn.BatchNorm(use_running_average=True), nn.relu, pool]
    layers += [Flatten(), nn.Dense(HIDDEN), nn.relu, nn.Dense(CLASSES)]
    model = nn.Sequential(layers)
    x = jnp.asarray(images(batch, size))
    variables = model.init(jax.random.key(0), x)
    *convolutions, hidden, readout = weights(size)
    kernels = [*convolutions, channels_first(hidden), readout]
    params = dict(variables["params"])
    for index, kernel in zip((0, 4, 8, 13, 15), kernels, strict=True):
        params[f"layers_{index}"] = {**params[f"layers_{index}"], "kernel": kernel}
    variables = {**variables, "params": params}
    facts = {"ann": float(jnp.abs(model.apply(variables, x)).mean())}
    model, variables = fold_batch_norm(model, variables)
    variables = normalize(model, variables, x, percentile=100)
    snn, snn_variables = convert(model, variables)
    run = jax.jit(lambda v, x, steps: run_converted(snn, v, x, steps), static_argnums=2)
    counts = [np.asarray(run(snn_variables, x, t)) * t for t in range(1, steps + 1)]
    check_steps(np.diff(counts, axis=0, prepend=0), steps)
    return lambda: run(snn_variables, x, steps), facts


def check_steps(outputs: np.ndarray, steps: int, silent_end: bool = False) -> None:
    """Raise unless there are T outputs [T, B, ...] and the last step does work.

    With wait T every neuron fires in its first steps, so the end may be silent.
    """
    assert len(outputs) == steps, (outputs.shape, steps)
    assert np.abs(outputs[-1] - outputs[0]).max() > 1e-3, "no step changes anything"
    assert silent_end or np.abs(outputs[-1]).max() > 1e-3, "the last step sends nothing"


# --------------------------------------------------------------------- report


def interpreters(options: Sequence[str]) -> dict[str, str]:
    """Library -> interpreter, from ``--python PEER=PATH`` options."""
    paths = dict.fromkeys(PEERS, sys.executable)
    for option in options:
        library, equals, path = option.partition("=")
        if library not in paths or not equals:
            raise SystemExit(f"--python {option}: not one of {', '.join(paths)}=PATH")
        paths[library] = path
    return paths


def peer(side: str) -> str:
    """The library that a side belongs to."""
    names = [library for library, sides in PEERS.items() if side in sides]
    return names[0] if names else "snnjax"


def add_ratios(results: dict[str, dict]) -> None:
    """To every side: its time over T x the ANN's, its speed over each peer's best."""
    speed = "samples_per_s"
    best = {lib: timing.fastest(results, speed, PEERS[lib]) for lib in TARGETS}
    for side in results.values():
        side["time_over_ann"] = timing.ratios(results[ANN][speed], side[speed])
        over = {lib: timing.ratios(side[speed], best[lib]) for lib in best}
        side["speed_over"] = over


def targets(results: dict[str, dict]) -> list[dict]:
    """Pass or miss of snnjax's fastest side that streams, and of signed spikes.

    With wait T the answer comes later, so that side does not count.
    """
    goals = []
    signed = [results[side]["time_over_ann"] for side in SIGNED if side in results]
    if signed:
        name = "time of signed spikes, by_step / (T x the ANN's)"
        least = {m: min(ratio[m] for ratio in signed) for m in timing.MEASURES}
        goals += timing.targets(name, least, at_most=1.35)
    others = (WAITING, *SIGNED)
    ours = [side for side in SNNJAX if side in results and side not in others]
    if ours:
        fastest = max(ours, key=lambda side: results[side]["samples_per_s"]["best"])
        side, name = results[fastest], f"time of {fastest} / (T x the ANN's)"
        goals += timing.targets(name, side["time_over_ann"], at_most=1.2)
        for library, ratio in side["speed_over"].items():
            name = f"speed of {fastest} / {library}'s fastest"
            goals += timing.targets(name, ratio, at_least=TARGETS[library])
    return goals


COLUMNS = {"samples_per_s.best": "samples/s best", "samples_per_s.median": "median"}
COLUMNS |= {"time_over_ann.best": "time / (T x ANN) best"}
COLUMNS |= {"time_over_ann.median": "median"}
COLUMNS |= {f"speed_over.{name}.best": f"speed / {name}" for name in TARGETS}
SIZES = {"steps": 16, "batch": 64, "size": 32}  # pixels, a multiple of 8
REPETITIONS = {"rounds": 5, "repeats": 2}
QUICK = {"batch": 2, "size": 8, "rounds": 1, "repeats": 1}


def main(arguments: list[str] | None = None) -> dict | None:
    """The command: a result, which is printed too; None in the process of a side."""
    parser = timing.parser(__doc__)
    python = {"metavar": "PEER=PATH", "action": "append", "default": []}
    python["help"] = "interpreter that has a peer installed; default: this one"
    parser.add_argument("--python", **python)
    timing.only_option(parser)
    for name, default in {**SIZES, **REPETITIONS}.items():
        number = {"metavar": "N", "type": timing.count, "default": default}
        parser.add_argument(f"--{name}", **number)
    options = parser.parse_args(arguments)
    if options.quick:
        vars(options).update(QUICK)
    sizes = {name: getattr(options, name) for name in SIZES}
    if options.side:
        work = functools.partial(prepare, options.side, **sizes)
        timing.serve(work, PACKAGES[peer(options.side)])
        return None
    repetitions = {name: getattr(options, name) for name in REPETITIONS}
    result = timing.new_result(__doc__, (), sizes=sizes, **repetitions)
    pythons = interpreters(options.python)
    command = ["-m", "benchmarks.converter_cnn", *(f"--{n}={sizes[n]}" for n in sizes)]
    commands = {
        side: [pythons[library], *command, f"--side={side}"]
        for library, sides in PEERS.items()
        for side in sides
        if side == ANN or timing.is_selected(side, options.only)
    }
    sides = timing.rounds(commands, *repetitions.values())
    results = timing.with_speeds(sides, "samples_per_s", options.batch, "ann")
    add_ratios(results)
    versions = {peer(name): side["versions"] for name, side in results.items()}
    result |= {"versions": versions, "sides": sides, "targets": targets(results)}
    timing.report(result, timing.table_of("side", COLUMNS, sides), options.out)
    return result


if __name__ == "__main__":
    main()
