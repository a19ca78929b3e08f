"""What does the first conversion of a fresh process cost?

    python -m benchmarks.cold_start --out benchmarks/results/cold_start.json

Most of a first conversion by `snnjax.best` is compilation. Each row is a process of its
own, without a cache of compiled programs, and counts from behind the imports to the end
of one conversion: CPU seconds of all threads, seconds on the clock, how many of them
XLA compiled for, and how many programs it compiled. The conversion has 256 images. The
MLP and the CNN have random weights and read scikit-learn's digits. ResNet-20 has the
weights of experiments/sources and reads noise, as its cost does not depend on what an
image shows. ``--long`` adds the row that takes longest.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from sklearn.datasets import load_digits

import snnjax
from benchmarks import timing
from benchmarks.networks import convolution
from experiments.models import load_source, source_function

IMAGES = 256
COMPILED = "/jax/core/compile/backend_compile_duration"  # JAX's event of a program


class Case(NamedTuple):
    """A conversion by `snnjax.best`."""

    network: str
    code: str
    steps: int

    @property
    def name(self) -> str:
        return f"{self.network}, {self.code}, T = {self.steps}"


class Network(NamedTuple):
    """A network and its calibration images."""

    fn: Callable[[Any, jax.Array], jax.Array]
    params: Any
    images: np.ndarray


# ---------------------------------------------------------------------- the networks


def random_kernel(generator: np.random.Generator, *shape: int) -> np.ndarray:
    """A kernel [..., I, O] with He's initialization, which keeps the variance."""
    fan_in = np.prod(shape[:-1])
    kernel = generator.normal(size=shape) * np.sqrt(2 / fan_in)
    return kernel.astype(np.float32)


def digits() -> np.ndarray:
    """Images [256, 8, 8, 1] of digits, 0 .. 1."""
    images = load_digits().images[:IMAGES, :, :, None]
    return (images / 16).astype(np.float32)


def mlp() -> Network:
    """Two hidden layers of 128 neurons."""

    def fn(kernels, x):
        first, second, readout = kernels
        hidden = jax.nn.relu(x @ first)
        return jax.nn.relu(hidden @ second) @ readout

    generator = np.random.default_rng(0)
    kernels = (
        random_kernel(generator, 64, 128),
        random_kernel(generator, 128, 128),
        random_kernel(generator, 128, 10),
    )
    return Network(fn, kernels, digits().reshape(IMAGES, 64))


def cnn() -> Network:
    """Three convolutions and a dense layer: four sites."""

    def fn(kernels, x):
        for kernel, stride in zip(kernels[:3], (1, 2, 2), strict=True):
            x = jax.nn.relu(convolution(x, kernel, stride))
        hidden = jax.nn.relu(x.reshape(len(x), -1) @ kernels[3])
        return hidden @ kernels[4]

    generator = np.random.default_rng(0)
    kernels = (
        random_kernel(generator, 3, 3, 1, 16),
        random_kernel(generator, 3, 3, 16, 32),
        random_kernel(generator, 3, 3, 32, 32),
        random_kernel(generator, 2 * 2 * 32, 64),
        random_kernel(generator, 64, 10),
    )
    return Network(fn, kernels, digits())


def resnet20() -> Network:
    """The trained ResNet-20, and noise with the statistics of normalized images."""
    source = load_source("experiments/sources/resnet20.safetensors")
    generator = np.random.default_rng(0)
    images = generator.normal(size=(IMAGES, 32, 32, 3)).astype(np.float32)
    return Network(source_function(source), source.variables, images)


NETWORKS = {
    "MLP": mlp,
    "CNN": cnn,
    "ResNet-20": resnet20,
}
CASES = (
    Case("MLP", "radix", steps=4),
    Case("MLP", "rate", steps=8),
    Case("CNN", "radix", steps=4),
    Case("CNN", "rate", steps=8),
    Case("ResNet-20", "radix", steps=4),
    Case("ResNet-20", "rate", steps=8),
)
LONG = Case("ResNet-20", "rate", steps=16)
CODES = {"radix": snnjax.codes.radix, "rate": snnjax.codes.rate}


# -------------------------------------------------------------------- the measurement


def first_conversion(case: Case) -> dict[str, float]:
    """Convert once in this process, and say what it took."""
    network = NETWORKS[case.network]()
    params = jax.device_put(network.params)
    jax.block_until_ready(params)
    compile_seconds = []

    def listen(event: str, seconds: float, **_: Any) -> None:
        if event == COMPILED:
            compile_seconds.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    cpu_start = time.process_time()
    start = time.perf_counter()
    snn = snnjax.convert(
        network.fn,
        params,
        network.images,
        steps=case.steps,
        code=CODES[case.code](),
        recipe=snnjax.best(),
    )
    jax.block_until_ready(snn)
    return {
        "cpu_seconds": time.process_time() - cpu_start,
        "seconds": time.perf_counter() - start,
        "compile_seconds": sum(compile_seconds),
        "programs": len(compile_seconds),
    }


def in_fresh_process(case: Case) -> dict[str, float]:
    """`first_conversion` in a process that finds no compiled programs.

    Raises:
        SystemExit: the process failed; its messages are on standard error.
    """
    environment = os.environ | {
        "PYTHONPATH": str(timing.ROOT),
        "JAX_ENABLE_COMPILATION_CACHE": "false",
    }
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.cold_start", f"--side={case.name}"],
        cwd=timing.ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    if process.returncode:
        raise SystemExit(f"the conversion of {case.name} failed")
    # A library may print before the last line, which is ours.
    return json.loads(process.stdout.splitlines()[-1])


COLUMNS = {
    "cpu_seconds": "CPU seconds",
    "seconds": "seconds",
    "compile_seconds": "compiling",
    "programs": "programs",
}


def main(arguments: list[str] | None = None) -> dict | None:
    """The command: a result, which is printed too; None in the process of a row."""
    parser = timing.parser(__doc__)
    parser.add_argument("--long", action="store_true", help=f"also {LONG.name}")
    timing.only_option(parser)
    options = parser.parse_args(arguments)
    if options.side:
        (case,) = (case for case in (*CASES, LONG) if case.name == options.side)
        print(json.dumps(first_conversion(case)))
        return None
    cases = list(CASES)
    if options.long:
        cases.append(LONG)
    if options.quick:
        cases = cases[:1]
    timing.check_only(parser, options.only, [case.name for case in cases])
    result = timing.new_result(__doc__, ("jax", "jaxlib", "numpy"), images=IMAGES)
    for case in cases:
        if timing.is_selected(case.name, options.only):
            result["sides"][case.name] = in_fresh_process(case)
    table = timing.table_of("network, code", COLUMNS, result["sides"])
    return timing.report(result, table, options.out)


if __name__ == "__main__":
    main()
