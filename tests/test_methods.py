"""The papers' methods are what the papers say, and the command goes on where it was."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import snnjax
from experiments import methods, published
from experiments.data import load
from experiments.methods import METHODS, Methods
from experiments.running import TrainANN
from experiments.train_ann import train

T = 4
draw = np.random.default_rng(0).normal


def random_array(deviation, shape):
    return jnp.asarray(draw(0, deviation, shape), jnp.float32)


# Two hidden layers, of which the first has a bias, and a readout.
PARAMS = [
    random_array(8**-0.5, (8, 16)),
    random_array(4**-0.5, (16,)),
    random_array(16**-0.5, (16, 12)),
    random_array(12**-0.5, (12, 3)),
]
IMAGES = jnp.asarray(draw(size=(256, 8)), jnp.float32)


def network(params, x):
    first, bias, second, third = params
    return jax.nn.relu(jax.nn.relu(x @ first + bias) @ second) @ third


def activations():
    """The activations of both hidden layers, [images, channels] each, in float64."""
    first, bias, second, _ = (np.asarray(p, np.float64) for p in PARAMS)
    hidden = np.maximum(np.asarray(IMAGES, np.float64) @ first + bias, 0)
    return hidden, np.maximum(hidden @ second, 0)


def channel_maxima(a):
    """The largest activations; a channel that is never active takes the layer's."""
    return np.where(a.max(0) > 0, a.max(0), a.max())


@functools.cache
def converted(name, steps=T):
    if name == "advanced":
        method = methods.advanced(10)
    else:
        method = METHODS[name]()
    return method.convert(network, PARAMS, IMAGES, steps=steps)


def thresholds(name, steps=T):
    return [neurons.threshold for neurons in converted(name, steps).neurons.values()]


def assert_thresholds(name, expected_of_layers, rtol=1e-5):
    for threshold, expected in zip(thresholds(name), expected_of_layers, strict=True):
        np.testing.assert_allclose(threshold, expected, rtol=rtol)


def test_thresholds_are_those_of_the_papers():
    layers = activations()
    largest = [a.max() for a in layers]
    for name in ("max", "soft reset", "bias shift", "first spike"):
        assert_thresholds(name, largest)
    for name in ("percentile", "burst"):
        assert_thresholds(name, [np.percentile(a, 99.9) for a in layers])
    for name in ("canonic", "few spikes"):
        assert_thresholds(name, [a / (2 - 2 ** (1 - T)) for a in largest])
    assert_thresholds("signed", [channel_maxima(a) for a in layers])
    # The nearest of 2 T high values from 0 to the threshold of a spike of level 8.
    best = []
    for a in layers:
        candidates = channel_maxima(a) * (1 - 0.01 * np.arange(95)[:, None])
        grid = candidates[:, None] / 64
        errors = np.clip(np.floor(a / grid + 0.5), 0, 64) * grid - a
        index = np.square(errors).sum(1).argmin(0)
        best.append(np.take_along_axis(candidates, index[None], 0)[0] / 8)
    assert_thresholds("differential", best)


def test_local_balancing_is_the_local_rule():
    expected = []
    for a in activations():
        theta = np.zeros(a.shape[1])
        for _ in range(1000):
            theta += 2 * np.maximum(a - theta, 0).mean(0)
        expected.append(np.where(theta > 0, theta, theta.max()))
    assert_thresholds("local balancing", expected, rtol=1e-3)
    silent = methods.local_balance(jnp.array([[0.0, 1.0], [0.0, 3.0]]), 100)
    assert silent[0] == silent[1] > 0
    assert methods.local_balance(jnp.zeros((2, 1)), 9) == 1


def test_spike_norm_takes_the_largest_current_in_the_snn():
    first, bias, second, _ = (np.asarray(p, np.float64) for p in PARAMS)
    current = np.asarray(IMAGES, np.float64) @ first + bias
    threshold = current.max()
    potential = np.zeros_like(current)
    largest_current = 0.0  # of the second layer
    for _ in range(T):
        potential += current
        spikes = threshold * (potential >= threshold * (1 - 1e-6))
        potential -= spikes
        largest_current = max(largest_current, (spikes @ second).max())
    assert_thresholds("spike norm", [threshold, largest_current])


def test_neurons_and_codes_are_those_of_the_papers():
    for name in ("max", "spike norm"):
        assert converted(name).model.reset == "zero"
    assert converted("soft reset").model.reset == "subtract"
    levels = {
        "burst": (0, 5),
        "canonic": (-1, 1),
        "differential": (-8, 8),
        "signed": (-1, 1),
    }
    for name in METHODS:
        if not name.startswith("best"):
            assert converted(name).model.levels == levels.get(name, (0, 1))
    waits = {"canonic": 1, "few spikes": T - 1, "first spike": T - 1}
    for name in METHODS:
        # The conversion measures the wait of our digits.
        if name not in ("best digits", "best few digits"):
            assert converted(name).wait == waits.get(name, 0)
    assert converted("canonic", 1).wait == 0
    assert converted("differential").code == snnjax.codes.harmonic()
    assert methods.Linear().weights(T) == (1, 0.75, 0.5, 0.25)


def test_a_signed_neuron_needs_a_whole_threshold_for_both_signs():
    neuron = converted("signed").model
    currents = draw(size=(12, 64)).astype(np.float32)
    params = neuron.init()._replace(initial_potential=jnp.array(0.5))
    # One example of one neuron at each of 64 places.
    x = jnp.asarray(currents)[:, None]
    trains = snnjax.neurons.unroll(neuron, params, x)[:, 0]
    potential, sent = np.zeros(64), np.zeros(64)
    for spikes, current in zip(trains, currents, strict=True):
        potential += current
        is_positive = potential >= 1
        is_negative = (potential <= -1) & (sent > 0)
        expected = 1.0 * is_positive - is_negative
        np.testing.assert_array_equal(spikes, expected)
        potential -= expected
        sent += expected
    assert (trains < 0).any()
    assert (trains > 0).any()


def test_digits_and_first_spikes_send_the_value_that_the_papers_say():
    value = jnp.array([0.0, 0.1, 0.3, 0.55, 0.99])
    for name, start, expected in (
        # The nearest of 0, 1/4 .. 1.
        ("first spike", 0.125 * T, [[], [], [3], [2], [0]]),
        # Floor to eighths, 2 - 1/8 at most.
        ("few spikes", 0.0, [[], [], [2], [1], [1, 2, 3]]),
    ):
        snn = converted(name)
        params = snn.model.init()._replace(
            initial_potential=jnp.array(start, jnp.float32)
        )
        spikes = snnjax.neurons.after_all_input(
            snn.model, params, value, T, code=snn.code
        )
        assert [np.flatnonzero(train).tolist() for train in spikes.T] == expected


@pytest.mark.thorough
def test_more_steps_are_more_accurate():
    outputs = network(PARAMS, IMAGES)

    def error(name, steps):
        answers = snnjax.spiking(network)(converted(name, steps), IMAGES).mean(0)
        return float(jnp.square(answers - outputs).sum() / jnp.square(outputs).sum())

    for name in ("soft reset", "local balancing", "differential", "first spike"):
        assert error(name, 16) < error(name, T) / 2
    with pytest.warns(UserWarning, match="tells 4.3e.09 values apart in 32 steps"):
        assert error("few spikes", 32) < 1e-6  # more values than int32 counts
    assert error("soft reset", 16) < error("max", 16)


def test_differential_spikes_carry_signed_values():
    def fn(params, x):
        return snnjax.encode(x) @ params

    snn = methods.differential().convert(fn, jnp.eye(8), IMAGES, steps=2)
    assert snn.model.levels == (-8, 8)


# ---------------------------------------------------------------------- command


@pytest.fixture(scope="module")
def config(small_network, tmp_path_factory):
    out = str(tmp_path_factory.mktemp("runs") / "source")
    training = {"dataset": "digits", "flip": False, "padding": 1, "epochs": 2}
    ann = TrainANN(model="events", out=out, batch_size=64, warmup=0.1, **training)
    train(ann, data=load("digits").first(720))
    return Methods(
        dataset="digits",
        models=(out,),
        methods=("soft reset", "canonic"),
        steps=(2,),
        calibration_images=64,
        test_images=100,
        out=str(Path(out).parent / "methods"),
    )


def methods_in(table):
    """The methods of the rows of a table, whose head has two lines."""
    return [row.split("|")[2].strip() for row in table.splitlines()[2:]]


@pytest.mark.thorough
def test_a_run_adds_the_rows_that_are_missing(config, monkeypatch, capsys):
    assert methods_in(methods.run(config)) == ["soft reset", "canonic"]
    folder = Path(config.out) / "source"
    assert (folder / "methods.png").read_bytes().startswith(b"\x89PNG")
    words = ["--methods", "light", "soft reset", "--steps", "2"]
    convert = methods.Method.convert

    def only_light(self, *arguments, **options):
        assert "least_squares_threshold" in str(self.recipe)
        return convert(self, *arguments, **options)

    monkeypatch.setattr(methods.Method, "convert", only_light)
    for name, value in vars(config).items():
        if name in ("methods", "steps", "mesh", "iterations") or value is None:
            continue
        if isinstance(value, tuple):
            (value,) = value
        words += [f"--{name}", str(value)]
    methods.main(words)
    table = capsys.readouterr().out
    assert [name for name in METHODS if f"| {name} | " in table] == [
        "soft reset",
        "light",
        "canonic",
    ]
    facts = json.loads((folder / "metrics.json").read_text())
    assert "--methods 'soft reset' light canonic --steps 2" in facts["command"]
    published_table = published.table_of(
        ["--methods", "--steps", "2", "--", str(folder)]
    )
    assert published_table in table
    assert "| T |" in published_table
    with pytest.raises(ValueError, match="has rows of test_images 100, not 99"):
        methods.run(methods.dataclasses.replace(config, test_images=99))

    def refuse(*_, **__):
        raise ValueError("no such thing")

    monkeypatch.setattr(methods.Method, "convert", refuse)
    methods.run(methods.dataclasses.replace(config, methods=("burst",)))
    assert "burst, T = 2 is left out: no such thing" in capsys.readouterr().err


def test_published_losses_stand_beside_ours_of_the_same_steps():
    words = ["convert_cifar10_resnet20_light", "--methods", "--steps", "4", "16"]
    table = published.table_of(words)
    assert methods_in(table) == [
        "light",
        "light",
        "QCFS, its ANN 91.77",
        "QCFS, its ANN 91.77",
    ]
    assert "| 86.3 |" in table
    assert "2.5 (VGG-16), 1.8 (ResNet-20, wide) |" in table
    assert "| 2 | 4 | 4 | 83.8 | 8.0 |" in table
