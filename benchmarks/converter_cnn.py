"""How fast is rate-coded inference of a converted network, against the peers?

    python -m benchmarks.converter_cnn --python spikingjelly=PYTHON311 \
        --python sparxml=PYTHON313 --out benchmarks/results/converter_cnn.json

The network and sizes of SpikingJelly's own converter benchmark: 3 x [Conv 3x3, 64,
BatchNorm, ReLU, AvgPool 2x2], FC 512, ReLU, FC 1000; images 32x32x3; T=16, B=64; the
same weights on all sides. Prints samples/s of every side, best and median over
interleaved rounds, its time over T x the ANN's, and its speed over each peer's best.
Before a side is timed it has to show that its last step still changes the answer.
"""

import functools
import sys

import numpy as np

from benchmarks import timing

CHANNELS, HIDDEN, CLASSES = 64, 512, 1000
WAITING = "snnjax closed_form, wait T"
# side -> (interpreter, distributions whose versions matter)
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
PEERS = {
    "snnjax": (ANN, *SNNJAX),
    "spikingjelly": tuple(SPIKINGJELLY),
    "sparxml": SPARXML,
}
PACKAGES = {
    "snnjax": ("jax", "jaxlib", "numpy"),
    "spikingjelly": ("spikingjelly", "torch"),
    "sparxml": ("sparxml", "jax", "jaxlib", "flax"),
}
TARGETS = {"spikingjelly": 3.5, "sparxml": 3.0}


def weights(size: int) -> list[np.ndarray]:
    """Kernels [H, W, in, out] and [in, out] (of pixels H, W, C), He-initialised."""
    draw = np.random.default_rng(0)
    pixels = size // 8
    shapes = [(3, 3, 3, CHANNELS), *[(3, 3, CHANNELS, CHANNELS)] * 2]
    shapes += [(pixels * pixels * CHANNELS, HIDDEN), (HIDDEN, CLASSES)]
    return [
        draw.normal(0, (2 / np.prod(s[:-1])) ** 0.5, s).astype(np.float32)
        for s in shapes
    ]


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

    def network(params, x):
        *convolutions, hidden, readout = params
        for kernel, norm in convolutions:
            x = jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = (x - norm["mean"]) * jax.lax.rsqrt(norm["variance"] + 1e-5)
            x = jax.nn.relu(x * norm["scale"] + norm["bias"])
            x = jax.lax.reduce_window(
                x, 0.0, jax.lax.add, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
            )
            x = x / 4
        x = x.reshape(x.shape[0], -1)
        return jax.nn.relu(x @ hidden) @ readout

    kernels = jax.tree.map(jnp.asarray, weights(size))
    zero, one = jnp.zeros(CHANNELS), jnp.ones(CHANNELS)
    norm = {"mean": zero, "variance": one, "scale": one, "bias": zero}
    params = [(kernel, norm) for kernel in kernels[:3]] + kernels[3:]
    x = jnp.asarray(images(batch, size))
    facts = {"ann": float(jnp.abs(network(params, x)).mean())}
    if side == ANN:
        ann = jax.jit(network)
        return lambda: [ann(params, x) for _ in range(steps)], facts
    wait = steps if side == WAITING else 0
    recipe = snnjax.max_activation()
    levels = (-1, 1) if side in SIGNED else (0, 1)
    neuron = snnjax.integrate_and_fire(levels=levels)
    snn = snnjax.convert(
        network, params, x, steps=steps, recipe=recipe, wait=wait, model=neuron
    )
    transform = snnjax.spiking(network, steps=steps, wait=wait, **SNNJAX[side])
    run = jax.jit(transform)
    outputs = run(snn, x)
    check_steps(np.asarray(outputs), steps, silent_end=side == WAITING)
    return lambda: run(snn, x), facts


def spikingjelly(mode: str, channels_last: bool, steps: int, batch: int, size: int):
    """Its RateCodingRecipe, run as in its own benchmark."""
    try:
        import torch
        from spikingjelly.activation_based import functional
        from spikingjelly.activation_based.ann2snn import Converter, RateCodingRecipe
    except ImportError as error:
        raise timing.NotInstalled(error) from None
    from torch import nn

    torch.set_grad_enabled(False)
    layers, inputs, (*convolutions, hidden, readout) = [], 3, weights(size)
    for _ in convolutions:
        layers += [
            nn.Conv2d(inputs, CHANNELS, 3, padding=1, bias=False),
            nn.BatchNorm2d(CHANNELS),
            nn.ReLU(),
            nn.AvgPool2d(2),
        ]
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
    if channels_last:
        snn = snn.to(memory_format=torch.channels_last)
        x = x.to(memory_format=torch.channels_last)
    functional.set_step_mode(snn, mode)

    def single():
        functional.reset_net(snn)
        return sum(snn(x) for _ in range(steps))

    def multi():
        functional.reset_net(snn)
        return snn(x.unsqueeze(0).expand(steps, *x.shape).contiguous()).sum(0)

    functional.reset_net(snn)
    if mode == "s":
        outputs = torch.stack([snn(x) for _ in range(steps)])
    else:
        outputs = snn(x.unsqueeze(0).expand(steps, *x.shape).contiguous())
    check_steps(outputs.numpy(), steps)
    run = torch.inference_mode()(single if mode == "s" else multi)
    return run, facts


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
        layers += [
            nn.Conv(CHANNELS, (3, 3), padding=1, use_bias=False),
            nn.BatchNorm(use_running_average=True),
            nn.relu,
            pool,
        ]
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


def compare(options) -> dict:
    """All sides, their speeds, ratios and targets."""
    before = timing.machine()
    pythons = timing.interpreters(options.python, list(PEERS))
    sizes = {name: getattr(options, name) for name in ("steps", "batch", "size")}
    arguments = [f"--{name}={value}" for name, value in sizes.items()]
    module = ("-m", "benchmarks.converter_cnn")
    commands = {
        side: [pythons[peer], *module, f"--side={side}", *arguments]
        for peer, sides in PEERS.items()
        for side in sides
        if side == ANN or timing.is_selected(side, options.only)
    }
    sides = timing.rounds(commands, options.rounds, options.repeats)
    results = {side: s for side, s in sides.items() if "missing" not in s}
    answers = [s["facts"]["ann"] for s in results.values()]
    assert np.allclose(answers, answers[0], rtol=1e-3), "the sides' ANNs differ"
    for side in results.values():
        side["samples_per_s"] = {
            name: options.batch / measure(side["seconds"])
            for name, measure in timing.MEASURES.items()
        }
    add_ratios(results)
    return {
        "question": __doc__.splitlines()[0],
        "sizes": sizes,
        "rounds": options.rounds,
        "repeats": options.repeats,
        "machine": before,
        "versions": {
            peer: results[side]["versions"]
            for peer, listed in PEERS.items()
            for side in listed[:1]
            if side in results
        },
        "sides": sides,
        "targets": targets(results),
    }


def add_ratios(results: dict[str, dict]) -> None:
    """To every side: its time over T x the ANN's, its speed over each peer's best."""
    ann = results[ANN]["samples_per_s"]
    for side in results.values():
        speed = side["samples_per_s"]
        side["time_over_ann"] = {m: ann[m] / speed[m] for m in speed}
        side["speed_over"] = {}
        for peer in TARGETS:
            modes = [results[s]["samples_per_s"] for s in PEERS[peer] if s in results]
            if modes:
                other = max(modes, key=lambda mode: mode["best"])
                side["speed_over"][peer] = {m: speed[m] / other[m] for m in speed}


def targets(results: dict[str, dict]) -> list[dict]:
    """Pass or miss of snnjax's fastest side that streams, and of signed spikes.

    With wait T the answer comes later, so that side does not count.
    """
    signed = [results[side]["time_over_ann"] for side in SIGNED if side in results]
    goals = [
        timing.target(
            f"{m} time of signed spikes, by_step / (T x the ANN's)",
            min(ratio[m] for ratio in signed),
            at_most=1.35,
        )
        for m in timing.MEASURES
        if signed
    ]
    others = (WAITING, *SIGNED)
    ours = [side for side in SNNJAX if side in results and side not in others]
    if not ours:
        return goals
    chosen = max(ours, key=lambda side: results[side]["samples_per_s"]["best"])
    side = results[chosen]
    for m in timing.MEASURES:
        name = f"{m} time of {chosen} / (T x the ANN's)"
        goals.append(timing.target(name, side["time_over_ann"][m], at_most=1.2))
    for peer, ratio in side["speed_over"].items():
        for m in timing.MEASURES:
            name = f"{m} speed of {chosen} / {peer}'s fastest"
            goals.append(timing.target(name, ratio[m], at_least=TARGETS[peer]))
    return goals


def text(result: dict) -> str:
    head = ["side", "samples/s best", "median", "time / (T x ANN) best", "median"]
    head += [f"speed / {peer}" for peer in TARGETS]
    rows = []
    for side, entry in result["sides"].items():
        if "missing" in entry:
            rows.append([side, "not installed", *[None] * (len(head) - 2)])
            continue
        speed, ratio = entry["samples_per_s"], entry["time_over_ann"]
        over = [entry["speed_over"].get(peer) for peer in TARGETS]
        rows.append(
            [side, speed["best"], speed["median"], ratio["best"], ratio["median"]]
            + [other and other["best"] for other in over]
        )
    return timing.table(head, rows)


def main(arguments: list[str] | None = None) -> dict | None:
    parser = timing.parser(__doc__)
    timing.peer_options(parser)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--size", type=int, default=32, help="pixels, multiple of 8")
    timing.rounds_option(parser, 5)
    parser.add_argument(
        "--repeats", type=timing.count, default=2, help="timings per round"
    )
    options = parser.parse_args(arguments)
    if options.quick:
        options.batch, options.size = 2, 8
        options.rounds = options.repeats = 1
    if options.side:
        sizes = options.steps, options.batch, options.size
        peer = next(p for p, sides in PEERS.items() if options.side in sides)
        work = functools.partial(prepare, options.side, *sizes)
        timing.serve(work, PACKAGES[peer])
        return None
    result = compare(options)
    timing.report(result, text(result), options.out)
    return result


if __name__ == "__main__":
    main(sys.argv[1:])
