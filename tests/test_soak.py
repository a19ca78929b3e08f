"""Many conversions in one process: neither memory nor compiled programs grow."""

import gc
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import relu

import snnjax

WIDTHS = (4, 8)
RUNS = 1000
COMPILED = "backend_compile"


def resident() -> float:
    """MB of memory that the process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def random_network(generator):
    """A plain or residual network of two or three layers, another one at every call."""
    width, depth = int(generator.choice(WIDTHS)), int(generator.integers(2, 4))
    skip = bool(generator.integers(2))

    def fn(params, x):
        for kernel in params[:-1]:
            y = relu(x @ kernel)
            x = y + x if skip else y
        return x @ params[-1]

    shapes = [(width, width)] * depth + [(width, 3)]
    params = [jnp.asarray(generator.normal(size=s), jnp.float32) for s in shapes]
    return fn, params, jnp.asarray(generator.normal(size=(16, width)), jnp.float32)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
def test_a_thousand_conversions_leave_nothing_behind():
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if COMPILED in event else None
    )
    generator = np.random.default_rng(0)
    recipes = (snnjax.light(), snnjax.best())
    memory = []  # MB after each hundred conversions
    programs = []  # compiled until then
    for i in range(RUNS):
        fn, params, x = random_network(generator)
        snn = snnjax.convert(fn, params, x, steps=4, recipe=recipes[i % 2])
        jax.block_until_ready(snn)
        if i % 100 == 99:
            gc.collect()
            memory.append(resident())
            programs.append(len(compiled))
            print(i + 1, f"{memory[-1]:.0f} MB", programs[-1], "programs")
    assert programs[0] > 0
    assert programs[-1] == programs[2]
    assert memory[-1] < memory[2] + 30
