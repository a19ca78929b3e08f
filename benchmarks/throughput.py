"""How fast do spiking networks run and train, against T times the ANN?

    python -m benchmarks.throughput --out benchmarks/results/throughput.json

He's ResNet-20 (random weights, calibrated thresholds), and what T, the batch and the
depth change: one of them at a time, from T=8, 64 images, 20 layers. The ratio would be
1 if a step cost as much as the ANN does. The device's peak is that of a matrix product
in the same run, and the memory what XLA plans. All in one process, in rounds over all
sides; medians of the rounds.
"""

import dataclasses
import functools
import statistics
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import snnjax
from benchmarks import timing
from experiments.models import build

GROUPS = ", groups of 16"
SIGNED = "signed, by_step" + GROUPS
INFERENCE = ("by_step" + GROUPS, "by_layer", "closed_form")
RADIX = "radix, "  # the code, before an execution; neurons and waits are the code's own
RADIX_SIDES = (RADIX + "by_layer", RADIX + "closed_form")
TRAINING = "training, by_layer"
FINE_TUNING = "fine-tuning, by_layer"  # with a teacher, BatchNorm over time
ANN_OF = {TRAINING: "ANN, training", FINE_TUNING: "ANN, training with BatchNorm"}
PEAK = 2048  # side of the matrices
MODELS = {  # layers -> name, shape of its images
    8: ("digits_resnet", (8, 8, 1)),
    20: ("resnet20", (32, 32, 3)),
    56: ("resnet56", (32, 32, 3)),
}


@dataclasses.dataclass(frozen=True)
class Side:
    """One thing to time; ``mode`` is "ANN" for the network itself."""

    mode: str
    steps: int = 8
    batch: int = 64
    layers: int = 20

    @property
    def name(self) -> str:
        return f"{self.mode}: T={self.steps} B={self.batch} layers={self.layers}"

    @property
    def ann(self) -> "Side":
        """What it is compared with; of an ANN itself."""
        if self.mode.startswith("ANN"):
            return self
        return dataclasses.replace(self, mode=ANN_OF.get(self.mode, "ANN"), steps=1)


def sides(quick: bool) -> list[Side]:
    """Every side, each behind the ANN that it is compared with."""
    if quick:
        modes = (*INFERENCE, SIGNED, *RADIX_SIDES, *ANN_OF)
        spiking = [
            Side(
                mode,
                steps=2,
                batch=2,
                layers=8,
            )
            for mode in modes
        ]
    else:
        spiking = []
        for mode in INFERENCE:
            spiking += [
                Side(mode),
                Side(mode, steps=2),
                Side(mode, steps=32),
                Side(mode, batch=1),
                Side(mode, batch=16),
                Side(mode, layers=56),
            ]
        spiking += [Side(SIGNED), Side(SIGNED, layers=56)]
        spiking += [Side(mode, steps=4) for mode in ("by_layer", *RADIX_SIDES)]
        spiking += [
            Side(TRAINING, steps=4, batch=16),
            Side(TRAINING, steps=2, batch=16),
            Side(TRAINING, steps=4, batch=64),
            Side(
                TRAINING,
                steps=4,
                batch=16,
                layers=56,
            ),
        ]
        spiking += [Side(FINE_TUNING, steps=steps) for steps in (1, 2, 4)]
    ordered: dict[Side, None] = {}
    for side in spiking:
        ordered[side.ann] = None
        ordered[side] = None
    return list(ordered)


def prepare(side: Side) -> tuple[Callable[[], Any], dict]:
    """(run, facts): a compiled call, its temporary memory and operations."""
    module, params, x = network(side.layers, side.batch)
    function, arguments = work(side, module, params, x)
    program = jax.jit(function).lower(*arguments).compile()
    memory = program.memory_analysis()
    facts = {"temporary_mib": memory.temp_size_in_bytes / 2**20}
    if side.mode.startswith("ANN"):
        facts["gflop"] = program.cost_analysis()["flops"] / 1e9
    return functools.partial(program, *arguments), facts


@functools.cache
def network(layers: int, batch: int):
    """A module, random variables, and images."""
    name, shape = MODELS[layers]
    module = build(name, 10)
    x = jax.random.normal(jax.random.key(1), (batch, *shape))
    params = jax.jit(module.init)(jax.random.key(0), x[:1])
    return module, params, x


def work(side: Side, module: Any, params, x) -> tuple[Callable, tuple]:
    """(function, arguments) of a side."""

    def fn(params, x):
        return module.apply(params, x, train=False)

    if side.mode in (*ANN_OF, *ANN_OF.values()):
        return gradient(side, module, fn, params, x)
    if side.mode == "ANN":
        return fn, (params, x)
    is_closed_form = side.mode.endswith("closed_form")
    code = snnjax.codes.rate()
    wait = side.steps if is_closed_form else None
    if side.mode.startswith(RADIX):
        code = snnjax.codes.radix()
        wait = side.steps - 1 if is_closed_form else None
    options = {}
    if side.mode == SIGNED:
        options["model"] = snnjax.integrate_and_fire(levels=(-1, 1))
    snn = snnjax.convert(
        fn,
        params,
        x[:8],
        steps=side.steps,
        wait=wait,
        code=code,
        recipe=snnjax.light(),
        **options,
    )
    execution: Any = "closed_form"
    micro_batch = None
    if side.mode.endswith(GROUPS):
        execution = 1
        micro_batch = 16
    elif side.mode.endswith("by_layer"):
        execution = side.steps
    simulate = snnjax.spiking(fn, execution=execution, micro_batch=micro_batch)
    return lambda snn, x: simulate(snn, x).mean(0), (snn, x)


def gradient(
    side: Side, module: Any, fn: Callable, params, x
) -> tuple[Callable, tuple]:
    """(function, arguments) of a side that trains."""
    labels = jnp.zeros(side.batch, jnp.int32)

    def in_training(params, x):
        return module.apply(
            params,
            x,
            train=True,
            mutable=["batch_stats"],
        )

    def loss(logits):
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    if side.mode == ANN_OF[TRAINING]:
        return jax.grad(lambda params, x: loss(fn(params, x))), (params, x)
    if side.mode == ANN_OF[FINE_TUNING]:
        return jax.grad(lambda params, x: loss(in_training(params, x)[0])), (params, x)
    snn = snnjax.init(fn, params, x)
    if side.mode == TRAINING:
        simulate = snnjax.spiking(fn, steps=side.steps, execution=side.steps)
        return jax.grad(lambda snn, x: loss(simulate(snn, x).mean(0))), (snn, x)
    simulate_with_averages = snnjax.spiking(
        in_training,
        steps=side.steps,
        execution=side.steps,
        has_aux=True,
    )

    def distillation_loss(snn, params, x):
        outputs, averages = simulate_with_averages(snn, x)
        logits = outputs.mean(0)
        teacher = jax.nn.softmax(fn(params, x))
        log_p = jax.nn.log_softmax(logits)
        distance = optax.losses.kl_divergence(log_p, teacher).mean()
        return (loss(logits) + distance) / 2, averages

    return jax.grad(distillation_loss, has_aux=True), (snn, params, x)


def peak() -> tuple[Callable[[], Any], dict]:
    """A matrix product, as fast as this device gets."""
    a = jax.random.normal(jax.random.key(0), (PEAK, PEAK))
    return functools.partial(jax.jit(jnp.matmul), a, a), {"gflop": 2 * PEAK**3 / 1e9}


def add_measures(side: Side, results: dict, peak_speed: float) -> None:
    """Images per second, and for an SNN what it costs against T times the ANN."""
    row = results[side.name]
    ann = results[side.ann.name]
    row["images_per_s"] = timing.measures(
        row["seconds"], lambda seconds: side.batch / seconds
    )
    if row is ann:
        return
    ratios = []
    for seconds, ann_seconds in zip(row["seconds"], ann["seconds"], strict=True):
        ratios.append(seconds / (side.steps * ann_seconds))
    row["over_t_ann"] = statistics.median(ratios)
    # The closed form does the work of one pass, not of T.
    if not side.mode.endswith("closed_form"):
        gflop = side.steps * ann["facts"]["gflop"]
        speed = gflop / statistics.median(row["seconds"])
        row["share_of_peak"] = speed / peak_speed


COLUMNS = {
    "mode": "side",
    "steps": "T",
    "batch": "batch",
    "layers": "layers",
    "images_per_s.median": "images/s",
    "over_t_ann": "/ T ANN",
    "share_of_peak": "of peak",
    "facts.temporary_mib": "MiB",
}


def main(arguments: list[str] | None = None) -> dict:
    """The command: a result with a row for each side, which is printed too."""
    parser = timing.parser(__doc__)
    parser.add_argument(
        "--rounds",
        metavar="N",
        type=timing.count,
        default=5,
    )
    options = parser.parse_args(arguments)
    rounds = 1 if options.quick else options.rounds
    timed_sides = sides(options.quick)
    sizes = {side.name: dataclasses.asdict(side) for side in timed_sides}
    result = timing.new_result(
        __doc__,
        ("jax", "jaxlib", "flax"),
        sizes=sizes,
        rounds=rounds,
    )
    result["machine"]["device"] = jax.devices()[0].device_kind
    makers: dict[str, Callable] = {"peak": peak}
    for side in timed_sides:
        makers[side.name] = functools.partial(prepare, side)
    results = result["sides"]
    runs = {}
    for name, make in makers.items():
        print(f"compiling {name}", file=sys.stderr, flush=True)
        runs[name], facts = make()
        results[name] = {"facts": facts, "seconds": []}
        timing.once(runs[name])
    for _ in range(rounds):
        for name, run in runs.items():
            results[name]["seconds"].append(timing.once(run))
    peak_row = results["peak"]
    peak_speed = peak_row["facts"]["gflop"] / min(peak_row["seconds"])
    result["peak_gflop_per_s"] = peak_speed
    rows = []
    for side in timed_sides:
        add_measures(side, results, peak_speed)
        rows.append(timing.cells(sizes[side.name] | results[side.name], COLUMNS))
    return timing.report(result, timing.table([*COLUMNS.values()], rows), options.out)


if __name__ == "__main__":
    main()
