"""Networks of whole numbers on a core of Catalyst N1, by its rule and without its RTL.

benchmarks/silicon_rtl.py runs the RTL.
"""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from rows import quick_first
from test_conformance import drawn

import snnjax
from benchmarks import catalyst, silicon_rtl
from benchmarks.chip_programs import Misfit
from snnjax.codes import radix, rate
from snnjax.deploy import Arithmetic, Dense, Input, Layers, Output, Population


def core(commands):
    """What a core answers to the commands of its driver.

    v <- v + sum of (weight x payload) >> 7;  a spike at v >= threshold
    """
    v, currents, reset_potential, threshold = np.zeros((4, catalyst.MOST_NEURONS), int)
    threshold += 2**15 - 1
    parameters = {0: threshold, 2: reset_potential}
    index = {}  # neuron -> addresses of its synapses
    synapses = {}  # address -> the neuron that it leads to, and its weight
    events = []
    waiting = []  # spikes of the step before: pairs of a neuron and its payload
    step = 0
    is_graded = 0
    for line in commands.splitlines():
        letter, *numbers = line.split()
        match letter, *map(int, numbers):
            case "g", mode, _, _:
                is_graded = mode
            case "p", neuron, parameter, value:
                parameters[parameter][neuron] = value
            case "w", address, target, weight:
                synapses[address] = target, weight
            case "i", neuron, base, count:
                index[neuron] = range(base, base + count)
            case "x", neuron, current, _:
                currents[neuron] = current
            case "r", neuron, _, _:
                events.append(f"potential {neuron} {v[neuron]}")
            case "s", _, _, _:
                for source, payload in waiting[:64]:
                    for address in index.get(source, ()):
                        target, weight = synapses[address]
                        if is_graded:
                            weight = weight * payload >> 7
                        currents[target] += weight
                v += currents
                fires = v >= threshold
                payloads = np.clip(v - threshold, 1, 255)
                waiting = [(n, payloads[n]) for n in np.flatnonzero(fires)]
                events += [f"spike {step} {n} {payload}" for n, payload in waiting]
                v[:] = np.where(fires | (v <= 0), reset_potential, v)
                currents[:] = 0
                step += 1
    return "\n".join(events)


def perceptron(code, steps, wait, reset="subtract", sizes=(8, 12, 6), **model):
    """Layers of random whole numbers, in which the encoder's share the divisor 5."""
    generator = np.random.default_rng(1)
    model = snnjax.integrate_and_fire(reset=reset, **model)
    # Units of a bias and of an initial potential; digits enter once, not at each step.
    bias_unit = 1
    start_unit = 1
    if code != rate():
        bias_unit = 2 ** (1 - steps)
        start_unit = steps * bias_unit
    nodes = [Input("x", (), (8,), np.ones(()))]
    source = "x"
    fan_in = 8
    for n, size in enumerate(sizes):
        weight = generator.integers(-3, 4, (size, fan_in))
        bias = generator.integers(-1, 2, size) * bias_unit
        start = generator.integers(0, 3, size) * start_unit
        threshold = 3 + generator.integers(0, 4, size)
        if n == 0:  # the encoder: one weight, and thresholds that 5 divides
            weight = 5 * np.eye(size)
            bias = np.zeros(size)
            threshold = 35 + 5 * (threshold - 3)
        nodes += [
            Dense(f"{n}/0", (source,), weight * 1.0, None),
            Population(
                str(n),
                (f"{n}/0",),
                (size,),
                model,
                threshold=threshold * 1.0,
                initial_potential=start * 1.0,
                bias=bias * 1.0,
            ),
        ]
        source = str(n)
        fan_in = size
    weight = generator.integers(-3, 4, (3, sizes[-1])) * 1.0
    bias = generator.integers(-2, 3, 3) * bias_unit * 1.0
    nodes += [
        Dense("out/0", (source,), weight, None),
        Output("out", ("out/0",), (3,), bias, np.full((), 0.5)),
    ]
    arithmetic = Arithmetic(3, 5, 16, "wrap")
    layers = Layers(tuple(nodes), steps, wait, code, arithmetic)
    return layers, np.float32(generator.integers(0, 8, (6, 8)))


def counts_of(layers, x):
    """As the benchmark compares them, with the rule in place of the RTL."""
    program = catalyst.program_of(layers)
    counts = Counter()
    expected = silicon_rtl.expected(layers, program, x)  # of each image
    whole_x = silicon_rtl.whole_x(layers, x)
    for expected_run, numbers in zip(expected, whole_x, strict=True):
        events = core(program.commands(numbers))
        recorded_run = catalyst.recorded(program, events)
        counts += silicon_rtl.number_counts(expected_run, recorded_run)
    return counts


SIGNED = {"levels": (-1, 1)}
PERCEPTRONS = {
    "reset to zero": (rate(), 6, 0, "zero"),
    "reset to zero, after a wait": (rate(), 6, 2, "zero"),
    "subtraction": (rate(), 6, 0),
    "radix": (radix(), 4, 3),
    "radix, early": (radix(), 4, 1),
    "signed": (radix(), 4, 1),
    "signed, later": (radix(), 4, 3),
}


@pytest.mark.parametrize(
    "name", quick_first(PERCEPTRONS, "reset to zero", "subtraction", "signed")
)
def test_the_core_sends_the_spikes_of_whole_numbers(name):
    model = SIGNED if "signed" in name else {}
    layers, x = perceptron(*PERCEPTRONS[name], **model)
    counts = counts_of(layers, x)
    assert counts["mismatches"] == 0 and counts["equal"] == counts["sums"] == 18
    assert counts["not_0"] > counts["spikes"] / 10
    if model:
        levels = snnjax.deploy.run(layers, x).spikes
        assert all((np.asarray(k) < 0).any() for k in levels.values())


@pytest.mark.parametrize("zones", [{"last_zone": 0.9}, {"dead_zone": 0.7}])
def test_a_core_computes_dead_zones_and_last_zones(zones):
    layers, x = perceptron(radix(), 4, 1, **SIGNED, **zones)
    counts = counts_of(layers, x)
    plain, _ = perceptron(radix(), 4, 1, **SIGNED)
    assert counts["mismatches"] == 0 and counts["equal"] == 18
    assert 0 < counts["not_0"] < counts_of(plain, x)["not_0"]


def test_a_core_computes_convolutions_and_pools():
    layers, x = drawn(reset="zero", weight=15)
    counts = counts_of(layers, x[:2])
    assert counts["mismatches"] == 0 and counts["equal"] == counts["sums"] == 4
    assert counts["not_0"] > counts["spikes"] / 20


def test_more_synapses_than_a_core_has_are_refused(monkeypatch):
    layers, _ = perceptron(rate(), 4, 0)
    for name in ("MOST_SYNAPSES", "MOST_FAN_OUT"):
        with monkeypatch.context() as patch:
            patch.setattr(catalyst, name, 10)
            with pytest.raises(Misfit, match=r"synapses.*; a core has 10$"):
                catalyst.program_of(layers)


def test_spikes_at_other_steps_are_mismatches():
    layers, x = perceptron(rate(), 4, 0, "zero")
    program = catalyst.program_of(layers)
    events = core(program.commands(silicon_rtl.whole_x(layers, x)[0]))
    expected_run = silicon_rtl.expected(layers, program, x)[0]
    for extra, count in (
        ("", 0),
        (f"\nspike 99 {program.groups['1'].fire[0, 0]} 1", 1),
    ):
        recorded_run = catalyst.recorded(program, events + extra)
        counts = silicon_rtl.number_counts(expected_run, recorded_run)
        assert counts["mismatches"] == count


@pytest.mark.thorough
def test_the_command_writes_a_row_that_a_second_run_reads(
    monkeypatch, capsys, tmp_path
):
    """With the rule in the place of Icarus."""
    options = ["--rtl", str(tmp_path), "--quick", "--only", "CNN: rate"]

    def error():
        with pytest.raises(SystemExit):
            silicon_rtl.main(options)
        return capsys.readouterr().err

    assert "has no scalable_core_v2.v, spike_fifo.v, sram.v; --help" in error()
    for name in silicon_rtl.FILES:
        (tmp_path / name).write_bytes(b"")
    assert "is of another version; " in error()
    empty = "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"  # of Git
    monkeypatch.setattr(silicon_rtl, "FILES", dict.fromkeys(silicon_rtl.FILES, empty))
    monkeypatch.setattr(shutil, "which", lambda tool: None)
    assert "iverilog is missing; apt-get install iverilog" in error()

    def run(tool, *arguments):
        if tool == "vvp":
            files = dict(word[1:].split("=") for word in arguments[1:])
            commands = Path(files["commands"]).read_text()
            Path(files["events"]).write_text(core(commands))

    monkeypatch.setattr(shutil, "which", lambda tool: tool)
    monkeypatch.setattr(silicon_rtl, "_run", run)
    out = tmp_path / "rtl.json"
    result = silicon_rtl.main([*options, "--out", str(out)])
    [(name, row)] = result["sides"].items()
    assert name == "CNN: rate with reset to zero" and row["spikes"] == 16 * 128
    assert row["mismatches"] == 0 and row["equal"] == row["sums"] == 10
    assert all(goal["met"] for goal in result["targets"])
    assert out.with_suffix(".md").read_text() == capsys.readouterr().out
    monkeypatch.setattr(silicon_rtl, "_run", None)  # a second run reads the row
    again = silicon_rtl.main([*options, "--out", str(out)])
    assert again["sides"] == json.loads(out.read_text())["sides"] == result["sides"]
    options[2:3] = ["--images", "2", "--out", str(out)]
    with pytest.raises(SystemExit, match="with other sizes; take another name"):
        silicon_rtl.main(options)
