"""What does training a layer of LIF neurons cost, in time and in temporary memory?

    python -m benchmarks.lif_layer --python sparxml=PYTHON313 \
        --python spyx=PYTHON313 --python jaxpike=PYTHON313 \
        --out benchmarks/results/lif_layer.json

Linear(512, 512) without bias, then leaky integrate-and-fire neurons with leak 0.9 and
threshold 1, which subtract it when they fire; B=16, T=500, input spikes with
probability 0.3; the same kernel and input on all sides. The loss is the sum of all
spikes, each weighted by a fixed random number of its neuron. Prints milliseconds of
the loss and of its value with the gradient of the kernel, best and median over
interleaved rounds, and the temporary memory that XLA plans for each. Before a side is
timed it has to show that it spikes and that its gradient is not zero; the modes of
snnjax and the plain loop must agree in loss and gradient.
"""

import functools
import math
import sys

import numpy as np

from benchmarks import timing

LEAK = 0.9
FORWARD, GRADIENT = "forward", "forward+backward"
SAVING, PLAIN = "snnjax segments of 25, remat", "plain lax.scan"
SNNJAX: dict[str, str | dict] = {  # executions, or options of by_layer
    "snnjax by_layer": "by_layer",
    "snnjax by_step": "by_step",
    "snnjax segments of 25": dict(segment=25),
    SAVING: dict(segment=25, remat=True),
    "snnjax remat": dict(remat=True),
}
SPARXML = {"sparxml": dict(), "sparxml unroll=4": dict(unroll=4)}
SPYX = {"spyx Sequential": False, "spyx Linear, then LIF": True}
JAXPIKE = {
    "jaxpike unroll": ("unroll", dict()),
    "jaxpike unroll, scan_unroll=1": ("unroll", dict(scan_unroll=1)),
    "jaxpike unroll, scan_unroll=1, remat_step": (
        "unroll",
        dict(scan_unroll=1, remat_step=True),
    ),
    "jaxpike unroll_checkpointed": ("unroll_checkpointed", dict()),
    "jaxpike unroll_checkpointed, scan_unroll=1": (
        "unroll_checkpointed",
        dict(scan_unroll=1),
    ),
}
GROUPS = {
    "snnjax": (*SNNJAX, PLAIN),
    "sparxml": tuple(SPARXML),
    "spyx": tuple(SPYX),
    "jaxpike": tuple(JAXPIKE),
}
PEERS = tuple(library for library in GROUPS if library != "snnjax")
PACKAGES = {
    "snnjax": ("jax", "jaxlib", "numpy"),
    "sparxml": ("sparxml", "jax", "jaxlib", "flax"),
    "spyx": ("spyx", "jax", "jaxlib", "flax"),
    "jaxpike": ("jaxpike", "jax", "jaxlib", "equinox"),
}
# What a library has instead; each keeps the surrogate that it comes with.
NEURONS = {
    "snnjax": "Dspike",
    "sparxml": "ATan",
    "spyx": "superspike; fires one step later, subtracts after the leak",
    "jaxpike": "FastSigmoid; learns kernel / (1 - leak), which it multiplies",
}


def layer(steps: int, batch: int, features: int):
    """Kernel [N, N], input spikes [T, B, N] and the weights of the loss [N]."""
    draw = np.random.default_rng(0)
    kernel = draw.normal(0, (2 / features) ** 0.5, (features, features))
    x = draw.random((steps, batch, features)) < 0.3
    weights = draw.normal(size=features)
    return [a.astype(np.float32) for a in (kernel, x, weights)]


# ---------------------------------------------------------------------- sides


def prepare(side: str, steps: int, batch: int, features: int):
    """(run, facts) of a side, "forward: NAME" or "forward+backward: NAME"."""
    work, _, name = side.partition(": ")
    kernel, x, weights = layer(steps, batch, features)
    build = {"sparxml": sparxml, "spyx": spyx, "jaxpike": jaxpike}.get(peer(name), ours)
    # Peers are imported there, before the first array makes JAX choose its options.
    spikes, kernel = build(name, kernel, x)
    import jax
    import jax.numpy as jnp

    kernel, x = jnp.asarray(kernel), jnp.asarray(x)

    def loss(kernel, x):
        return (spikes(kernel, x) * weights).sum()

    function = loss if work == FORWARD else jax.value_and_grad(loss)
    compiled = jax.jit(function).lower(kernel, x).compile()
    memory = compiled.memory_analysis().temp_size_in_bytes / 2**20
    facts = {
        "rate": float((jax.jit(spikes)(kernel, x) > 0).mean()),
        "temporary_mib": memory,
    }
    if work == FORWARD:
        facts["loss"] = float(compiled(kernel, x))
    else:
        value, slope = compiled(kernel, x)
        direction = np.random.default_rng(1).normal(size=slope.shape)
        facts["loss"], facts["gradient"] = float(value), float(jnp.linalg.norm(slope))
        facts["along"] = float((np.asarray(slope) * direction).sum())
    check_work(facts)
    return lambda: compiled(kernel, x), facts


def peer(name: str) -> str:
    """The library that a side belongs to; the plain loop goes with snnjax."""
    return next(library for library, sides in GROUPS.items() if name in sides)


def ours(name: str, kernel: np.ndarray, x: np.ndarray):
    """`snnjax.spiking`, or the same layer as a loop written out."""
    import dataclasses

    import jax
    import jax.numpy as jnp

    import snnjax

    if name == PLAIN:

        def step(v, current):
            v = LEAK * v + current
            spikes = snnjax.surrogate.dspike((v - 1) / 2)
            return v - spikes, spikes

        def loop(kernel, x):
            return jax.lax.scan(step, jnp.zeros(x.shape[1:]), x @ kernel)[1]

        return loop, kernel

    def fn(kernel, x):
        return jax.nn.relu(x @ kernel)

    neuron = snnjax.lif(leak=LEAK)
    snn = snnjax.init(fn, jnp.asarray(kernel), x[0], model=neuron)
    execution = SNNJAX[name]
    if isinstance(execution, dict):
        execution = snnjax.simulation.by_layer(**execution)
    run = snnjax.spiking(fn, steps=len(x), inputs="sequence", execution=execution)
    return lambda kernel, x: run(dataclasses.replace(snn, params=kernel), x), kernel


def sparxml(name: str, kernel: np.ndarray, x: np.ndarray):
    """Its layers for flax.linen."""
    try:
        import flax.linen as nn
        import sparx.nn
    except ImportError as error:
        raise timing.NotInstalled(str(error)) from None
    lif = sparx.nn.LIF(tau=-1 / math.log(LEAK), **SPARXML[name])
    model = nn.Sequential([nn.Dense(kernel.shape[1], use_bias=False), lif])

    def spikes(kernel, x):
        return model.apply({"params": {"layers_0": {"kernel": kernel}}}, x)

    return spikes, kernel


def spyx(name: str, kernel: np.ndarray, x: np.ndarray):
    """Its `run` over a Sequential, or over its LIF after one product for all steps."""
    try:
        import spyx.nn
        from flax import nnx
    except ImportError as error:
        raise timing.NotInstalled(str(error)) from None
    linear = nnx.Linear(*kernel.shape, use_bias=False, rngs=nnx.Rngs(0))
    lif = spyx.nn.LIF(kernel.shape[1:], beta=LEAK, rngs=nnx.Rngs(0))
    definition, state = nnx.split(spyx.nn.Sequential(linear, lif))

    def spikes(kernel, x):
        model = nnx.merge(definition, state)
        linear, lif = model.layers
        linear.kernel = nnx.Param(kernel)
        if SPYX[name]:
            return spyx.nn.run(lif, linear(x))[0]
        return spyx.nn.run(model, x)[0]

    return spikes, kernel


def jaxpike(name: str, kernel: np.ndarray, x: np.ndarray):
    """Its `unroll` and `unroll_checkpointed`, which hoist the product themselves."""
    try:
        import equinox as eqx
        import jax
        import jaxpike
    except ImportError as error:
        raise timing.NotInstalled(str(error)) from None
    dense = jaxpike.Dense(*kernel.shape, key=jax.random.key(0), use_bias=False)
    net = jaxpike.Sequential(dense, jaxpike.LIF(tau=-1 / math.log(LEAK)))
    unroll, options = JAXPIKE[name]

    def spikes(weight, x):
        model = eqx.tree_at(lambda net: net.layers[0].weight, net, weight)
        return getattr(jaxpike, unroll)(model, x, **options)[0]

    return spikes, kernel.T / (1 - LEAK)


def check_work(facts: dict) -> None:
    """Raise unless the neurons fire, but not always, and their gradient is not zero."""
    assert 0.01 < facts["rate"] < 0.9, f"mean rate {facts['rate']}"
    gradient = facts.get("gradient", 1.0)
    assert math.isfinite(gradient) and gradient > 0, f"gradient {gradient}"


def check_agreement(results: dict[str, dict]) -> None:
    """Raise unless our modes agree in loss and gradient, and all that can in rate."""
    facts = {side: s["facts"] for side, s in results.items()}
    same = [f for s, f in facts.items() if "snnjax" in s or PLAIN in s]
    for key in ("loss", "gradient"):
        values = [f[key] for f in same if key in f]
        assert np.allclose(values, values[:1], rtol=1e-3), f"{key} differs: {values}"
    slopes = [f for f in same if "gradient" in f]
    along = [f["along"] / f["gradient"] for f in slopes]
    assert np.allclose(along, along[:1], atol=1e-2), f"gradients differ: {along}"
    rates = [f["rate"] for s, f in facts.items() if ": spyx" not in s]
    assert np.allclose(rates, rates[:1], rtol=1e-2), f"rates differ: {rates}"


# --------------------------------------------------------------------- report


def compare(options) -> dict:
    """All sides, their milliseconds, ratios and targets."""
    before = timing.machine()
    pythons = timing.interpreters(options.python, list(GROUPS))
    sizes = {name: getattr(options, name) for name in ("steps", "batch", "features")}
    arguments = [f"--{name}={value}" for name, value in sizes.items()]
    module = ("-m", "benchmarks.lif_layer")
    sides = {}
    for work in (FORWARD, GRADIENT):
        commands = {
            f"{work}: {name}": [pythons[library], *module, f"--side={work}: {name}"]
            + arguments
            for library, names in GROUPS.items()
            for name in names
            if timing.is_selected(name, options.only)
        }
        sides |= timing.rounds(commands, options.rounds, options.repeats)
    results = {side: s for side, s in sides.items() if "missing" not in s}
    check_agreement(results)
    for side in results.values():
        measures = timing.MEASURES.items()
        side["ms"] = {m: 1e3 * measure(side["seconds"]) for m, measure in measures}
    add_ratios(results)
    return {
        "question": __doc__.splitlines()[0],
        "sizes": sizes,
        "rounds": options.rounds,
        "repeats": options.repeats,
        "machine": before,
        "versions": {
            peer(side.partition(": ")[2]): s["versions"] for side, s in results.items()
        },
        "sides": sides,
        "targets": targets(results),
    }


def fastest(results: dict[str, dict], work: str, names) -> str | None:
    """The side of these names that is the fastest at its best."""
    there = [side for name in names if (side := f"{work}: {name}") in results]
    return min(there, key=lambda side: results[side]["ms"]["best"], default=None)


def add_ratios(results: dict[str, dict]) -> None:
    """To every side: its time over that of each library's fastest mode."""
    for side, s in results.items():
        work = side.partition(": ")[0]
        s["over"] = {}
        for library in PEERS:
            other = fastest(results, work, GROUPS[library])
            if other:
                of = results[other]["ms"]
                s["over"][library] = {m: s["ms"][m] / of[m] for m in of}


def targets(results: dict[str, dict]) -> list[dict]:
    """Pass or miss of snnjax's fastest mode and of the one that saves memory."""
    chosen = fastest(results, GRADIENT, SNNJAX)
    if chosen is None:
        return []
    goals, ours, short = [], results[chosen]["ms"], chosen.partition(": ")[2]
    others = [
        name for lib, names in GROUPS.items() if lib != "snnjax" for name in names
    ]
    other = fastest(results, GRADIENT, others)
    if other:
        for m in timing.MEASURES:
            name = f"{m} {GRADIENT} time of {short} / {other.partition(': ')[2]}'s"
            ratio = ours[m] / results[other]["ms"][m]
            goals.append(timing.target(name, ratio, at_most=0.75))
    saving = results.get(f"{GRADIENT}: {SAVING}")
    if saving:
        name = f"{GRADIENT} temporary MiB of {SAVING}"
        memory = saving["facts"]["temporary_mib"]
        goals.append(timing.target(name, memory, at_most=20))
        for m in timing.MEASURES:
            name = f"{m} {GRADIENT} time of {SAVING} / {short}'s"
            goals.append(timing.target(name, saving["ms"][m] / ours[m], at_most=1.2))
    return goals


def text(result: dict) -> str:
    head = ["side", "forward ms best", "median", "temporary MiB"]
    head += ["forward+backward ms best", "median", "temporary MiB"]
    head += [f"time / {library}" for library in PEERS]
    head += ["rate", "surrogate; otherwise"]
    rows = []
    for side, there in result["sides"].items():
        work, _, name = side.partition(": ")
        if work == GRADIENT:
            continue
        if "missing" in there:
            rows.append([name, "not installed", *[None] * (len(head) - 2)])
            continue
        both = [there, result["sides"][f"{GRADIENT}: {name}"]]
        row = [name]
        for s in both:
            row += [*s["ms"].values(), s["facts"]["temporary_mib"]]
        over = both[1]["over"]
        row += [over[lib]["best"] if lib in over else None for lib in PEERS]
        rows.append([*row, there["facts"]["rate"], NEURONS[peer(name)]])
    return timing.table(head, rows)


def main(arguments: list[str] | None = None) -> dict | None:
    parser = timing.parser(__doc__)
    timing.peer_options(parser)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--features", type=int, default=512)
    timing.rounds_option(parser, 7)
    parser.add_argument(
        "--repeats", type=timing.count, default=3, help="timings per round"
    )
    options = parser.parse_args(arguments)
    if options.quick:
        options.steps, options.batch, options.features = 50, 2, 16
        options.rounds = options.repeats = 1
    if options.side:
        sizes = options.steps, options.batch, options.features
        work = functools.partial(prepare, options.side, *sizes)
        timing.serve(work, PACKAGES[peer(options.side.partition(": ")[2])])
        return None
    result = compare(options)
    timing.report(result, text(result), options.out)
    return result


if __name__ == "__main__":
    main(sys.argv[1:])
