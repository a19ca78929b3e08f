"""Codes: what a spike is worth at each step."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
import reference
from chex import assert_trees_all_close
from networks import by_executions, outputs_of
from rows import thorough

import snnjax
from snnjax import codes
from snnjax.neurons import integrate_and_fire, unroll
from snnjax.neurons.models import as_encoder
from snnjax.neurons.spike_trains import decode
from snnjax.neurons.unroll import after_all_input, mean_and_pace, spike_train

T = 4
CODES = [
    codes.rate(),
    codes.radix(),
    codes.radix(base=3),
    codes.harmonic(),
    codes.weighted((1, 0.8, 0.3, 0.2)),
]
MODELS = [
    integrate_and_fire(),
    integrate_and_fire(levels=(0, 3)),
    integrate_and_fire(levels=(-1, 1), dead_zone=2 / 3),
    integrate_and_fire(levels=(-3, 3)),
    as_encoder(integrate_and_fire(levels=(-1, 1), dead_zone=2 / 3)),
    integrate_and_fire(levels=(-1, 1), dead_zone=2 / 3, last_zone=0.75),
    integrate_and_fire(last_zone=0.9),
]


def started(neuron, code, threshold, bias=0.0, steps=T):
    """Neurons that round to the nearest value: v(0) is half of the last threshold."""
    threshold = np.float32(threshold)
    return neuron.init()._replace(
        threshold=threshold,
        bias=np.float32(bias),
        initial_potential=np.float32(steps * code.finest(steps) * threshold / 2),
    )


# ------------------------------------------------------------------- one site


@pytest.mark.parametrize("index", [0, 1, 2, *thorough(3), 4])
def test_spikes_are_those_of_the_oracle(index):
    """All pairs of a code, a model and a wait, but not all triples; three steps."""
    code, waits, steps = CODES[index], (0, 1, 3), 3
    code = codes.weighted((1, 0.8, 0.3)) if code is CODES[-1] else code
    cases = [(model, waits[(i + index) % 3]) for i, model in enumerate(MODELS)]
    currents = np.random.default_rng(0).normal(0.4, 1.5, (steps, 60))
    currents = currents.astype(np.float32)
    neurons = [started(model, code, 0.7, 0.1, steps) for model, _ in cases]

    @jax.jit
    def run(neurons, currents):
        results = []
        for (model, wait), params in zip(cases, neurons, strict=True):
            options = {"wait": wait, "code": code}
            spikes = unroll(model, params, currents, **options)
            mean, _ = mean_and_pace(model, params, currents, **options)
            train = spike_train(model, params, currents, **options)
            results.append((spikes, mean, decode(train, steps)))
        return results

    results = run(neurons, currents)
    for (model, wait), params, result in zip(cases, neurons, results, strict=True):
        spikes, mean, stream = result
        expected = reference.simulate(
            currents,
            np.float32(0.7),
            bias=0.1,
            start=float(params.initial_potential),
            wait=wait,
            levels=model.levels,
            dead_zone=model.dead_zone,
            last_zone=model.last_zone,
            rectifies=model.rectifies,
            sizes=None if code == codes.rate() else code.sizes(steps),
        )
        np.testing.assert_allclose(spikes, expected, 1e-5, 1e-5, err_msg=str(model))
        np.testing.assert_allclose(mean, expected.mean(0), 1e-5, 1e-5)
        decoded = expected if code == codes.rate() else np.cumsum(expected, 0) / steps
        np.testing.assert_allclose(stream, decoded, 1e-5, 1e-5)


def test_what_arrives_of_a_stream_is_what_was_sent():
    spikes = np.float32(np.random.default_rng(0).normal(size=(T, 5)))

    @jax.jit
    def run(spikes):
        results = []
        for code in CODES:
            stream = code.stream(spikes)
            last_answer = code.answers(spikes)[-1]
            results.append((code.arriving(stream), code.result(stream), last_answer))
        return results

    for arriving, result, answer in run(spikes):
        np.testing.assert_allclose(arriving, spikes, rtol=1e-5)
        np.testing.assert_allclose(result, spikes.mean(0), rtol=1e-5)
        np.testing.assert_allclose(answer, spikes.mean(0), rtol=1e-5)


def test_choices_counts_and_masks_are_answers_as_they_are():
    outputs = {"count": np.full((T, 2), 3), "mask": np.array([[True, False]] * T)}
    for code in CODES:
        jax.tree.map(np.testing.assert_array_equal, code.answers(outputs), outputs)


def digits_of(neuron, code, params, values, steps):
    """Levels [T, n] of neurons that have all of their input, and what they sent."""
    spikes = after_all_input(neuron, params, values, steps, code=code)
    sizes = code.sizes(steps)[:, None] * params.threshold
    return spikes / sizes, code.stream(spikes)


compiled_digits = jax.jit(digits_of, static_argnums=(0, 1, 4))


def test_neighboring_digits_of_the_non_adjacent_form_are_never_both_non_zero():
    """But for the last one, which has no dead zone."""
    neuron = as_encoder(integrate_and_fire(levels=(-1, 1), dead_zone=2 / 3))
    code, steps = codes.radix(), 8
    values = np.linspace(-1.33, 1.33, 2001, dtype=np.float32)  # up to 4/3
    params = started(neuron, code, 1.0, steps=steps)
    levels, sent = compiled_digits(neuron, code, params, values, steps)
    levels, sent = np.asarray(levels), np.asarray(sent)
    assert not np.any((levels[1:-1] != 0) & (levels[:-2] != 0))
    np.testing.assert_array_less(np.abs(sent[-1] - values), code.finest(steps) * 0.501)
    assert np.mean(levels != 0) < 0.4  # a third, and the last one


@pytest.mark.parametrize("levels, base", [((-1, 1), 2), ((-3, 3), 2), ((-1, 1), 3)])
def test_what_is_missing_stays_below_what_the_other_digits_can_send(levels, base):
    neuron = as_encoder(integrate_and_fire(levels=levels))
    code, steps = codes.radix(base), 6
    reach = levels[1] * code.reach(steps)
    values = np.linspace(-reach, reach, 4001, dtype=np.float32)
    params = started(neuron, code, 1.0, steps=steps)
    _, sent = compiled_digits(neuron, code, params, values, steps)
    for t, stream in enumerate(np.asarray(sent), 1):
        later_digits = levels[1] * sum(code.weights(steps)[t:])
        sendable = later_digits + code.finest(steps) / 2
        assert np.abs(stream - values).max() <= sendable * 1.001


def test_binary_digits_round_to_the_grid_of_the_last_step():
    neuron, code = integrate_and_fire(), codes.radix()
    values = np.linspace(-1, 3, 1001, dtype=np.float32)
    _, sent = compiled_digits(neuron, code, started(neuron, code, 1.0), values, T)
    expected = np.clip(np.floor(values * 8 + 0.5), 0, 15) / 8
    np.testing.assert_array_equal(sent[-1], expected)


# ----------------------------------------------------------------- a network


def network(params, x):
    """Residual sums of unequal depth, a max-pool, an operator, a masked mean."""
    x, mask = x
    hidden = jax.nn.relu(x @ params["first"] + 0.1)
    hidden = hidden + jax.nn.relu(hidden @ params["second"])
    pooled = hidden.reshape(*hidden.shape[:-1], -1, 2).max(-1)
    pooled = jax.nn.softmax(pooled) * pooled
    hidden = jax.nn.relu(pooled @ params["third"] + x @ params["first"])
    mean = (hidden * mask[..., None]).sum(1) / mask.sum(1)[:, None]
    return mean @ params["readout"]


DRAW = np.random.default_rng(0)
SHAPES = {"first": (5, 6), "second": (6, 6), "third": (3, 6), "readout": (6, 3)}
PARAMS = {name: np.float32(DRAW.normal(0, 0.6, size)) for name, size in SHAPES.items()}
MASK = np.float32(np.arange(4) < DRAW.integers(1, 5, (7, 1)))
X = np.float32(DRAW.normal(0, 0.6, (7, 4, 5))), MASK


def spiking_network(code, neuron):
    snn = snnjax.init(network, PARAMS, X, model=neuron, code=code)
    neurons = {
        name: started(snn.model_of(name), code, 0.8, 0.03) for name in snn.neurons
    }
    return dataclasses.replace(snn, neurons=neurons)


@pytest.mark.parametrize(
    "code, neuron, wait, executions",
    [
        (codes.radix(), MODELS[0], T - 1, ["closed_form"]),
        (codes.radix(base=3), MODELS[1], T, ["closed_form"]),
        pytest.param(
            codes.harmonic(),
            MODELS[2],
            T - 1,
            ["closed_form"],
            marks=pytest.mark.thorough,
        ),
        pytest.param(codes.rate(), MODELS[2], 0, [1, 3], marks=pytest.mark.thorough),
        (codes.rate(), MODELS[2], T, ["auto"]),
    ],
)
def test_all_executions_give_the_same_answers(code, neuron, wait, executions):
    snn, options = spiking_network(code, neuron), {"steps": T, "wait": wait}
    expected, *results = by_executions(network, [T, *executions], snn, X, **options)
    assert np.isfinite(expected).all()
    for execution, outputs in zip(executions, results, strict=True):
        np.testing.assert_allclose(outputs.mean(0), expected.mean(0), 1e-4, 1e-5)
        if execution not in (1, "closed_form"):  # the same at each step, too
            np.testing.assert_allclose(outputs, expected, 1e-4, 1e-5)
    for answer in by_executions(
        network, [T, *executions], snn, X, answer=True, **options
    ):
        np.testing.assert_allclose(answer, code.answers(expected)[-1], 1e-4, 1e-5)


@pytest.mark.thorough
def test_a_value_that_is_infinite_before_any_spike_is_0_there():
    def logarithm(p, x):
        return jnp.log(snnjax.encode(x)) @ p

    params, x = np.ones((1, 1), np.float32), np.float32([[0.3], [0.4]])
    options = {"model": MODELS[3], "code": codes.radix()}
    snn = snnjax.init(logarithm, params, x, **options)
    spikes = snnjax.measures.spike_trains(logarithm, snn, x, steps=T)
    assert not spikes["encoder"][0].any()
    outputs = networks.compiled(logarithm, steps=T)(snn, x)
    np.testing.assert_allclose(outputs.mean(0), np.log(x), atol=0.3)


@pytest.mark.thorough
def test_the_gradient_of_the_executions_is_one_and_finite():
    snn = spiking_network(codes.radix(), MODELS[2])

    def gradient(**options):
        run = snnjax.spiking(network, steps=2, wait=1, **options)
        axes = () if "answer" in options else 0
        return jax.grad(lambda snn, x: (run(snn, x).mean(axes) ** 2).sum())

    runs = [gradient(execution=2), gradient(), gradient(answer=True)]
    expected, auto, answer = outputs_of(runs, snn, X)
    assert np.abs(expected.params["first"]).max() > 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(expected))
    assert_trees_all_close(auto, expected, rtol=1e-3, atol=1e-5)
    assert_trees_all_close(answer, expected, rtol=1e-3, atol=1e-5)


def test_signed_digits_and_a_wait_of_one_come_as_near_as_the_last_digit():
    """Each neuron has one weight below 1, so that errors do not grow."""
    generator, code, steps = np.random.default_rng(1), codes.radix(), 6
    neuron = integrate_and_fire(levels=(-1, 1))
    kernels = [np.float32(generator.permutation(np.eye(8)) * 0.9) for _ in range(3)]
    x = np.float32(generator.uniform(0, 1, (50, 8)))

    def chain(kernels, x):
        for kernel in kernels:
            x = jax.nn.relu(x @ kernel)
        return x

    snn = snnjax.init(chain, kernels, x, model=neuron, code=code)
    fresh = started(neuron, code, 1.0, steps=steps)
    snn = dataclasses.replace(snn, neurons=dict.fromkeys(snn.neurons, fresh))
    run = snnjax.spiking(chain, steps=steps, wait=1)
    outputs, ann = outputs_of([run, lambda snn, x: chain(snn.params, x)], snn, x)
    half_a_digit = code.finest(steps) / 2 * 1.001
    assert np.abs(outputs.mean(0) - ann).max() <= 3 * half_a_digit  # one per layer


# ---------------------------------------------------- conversion, measures, files


def dense(kernels, x):
    for kernel in kernels[:-1]:
        x = jax.nn.relu(x @ kernel)
    return x @ kernels[-1]


@functools.cache
def converted():
    generator = np.random.default_rng(0)
    kernels = [
        np.float32(generator.normal(0, s**-0.5, (s, n)))
        for s, n in ((8, 32), (32, 32), (32, 10))
    ]
    x = np.float32(generator.uniform(0, 1, (64, 8)))
    recipe = snnjax.Recipe(
        [
            snnjax.calibrators.least_squares_threshold("channel", 0.5),
            snnjax.calibrators.half_charge(),
            snnjax.calibrators.correct_potential(),
        ]
    )
    options = {"steps": T, "recipe": recipe, "wait": 1, "model": MODELS[2]}
    rate, radix = (
        jax.device_get(snnjax.convert(dense, kernels, x, code=code, **options))
        for code in (codes.rate(), codes.radix())
    )
    ann = functools.reduce(lambda x, w: np.maximum(x @ w, 0), kernels[:-1], x)
    return kernels, x, rate, radix, ann @ kernels[-1]


@functools.cache
def outputs():
    """Those of the two SNNs."""
    _, x, *snns, _ = converted()
    return [jax.device_get(jax.jit(snnjax.spiking(dense))(snn, x)) for snn in snns]


@pytest.mark.parametrize("steps, wait", [(2, 0), (3, 1), *thorough((2, 1), (3, 0))])
def test_a_converted_network_of_base_3_sends_the_spikes_of_the_oracle(steps, wait):
    kernels, x, *_ = converted()
    code = codes.radix(base=3)
    snn = snnjax.convert(dense, kernels, x, steps=steps, wait=wait, code=code)

    def trains(snn, x):
        return snnjax.measures.spike_trains(dense, snn, x)

    outputs, spikes = outputs_of([snnjax.spiking(dense), trains], snn, x)
    stream = np.zeros((steps, *x.shape))
    stream[0] = steps * x
    for kernel, name in zip(kernels[:-1], snn.neurons, strict=True):
        stream, levels = networks.oracle_spikes(snn, name, stream @ kernel)
        assert set(np.unique(levels)) == {-1, 0, 1}
        np.testing.assert_array_equal(spikes[name], levels, name)
    np.testing.assert_allclose(outputs, stream @ kernels[-1], 1e-4, 1e-4)


def test_a_tie_is_decided_once_whatever_the_size_of_the_batch():
    """XLA computes a step for its spikes and again for its state, see `tie_margin`."""

    def relu(params, x):
        return jax.nn.relu(x * params)

    weight, line = np.ones(1, np.float32), np.linspace(0, 1, 201)[:, None]
    code = codes.radix(base=3)
    plain = snnjax.max_activation()
    demand = {"steps": 4, "wait": 3, "code": code, "recipe": plain}
    snn = snnjax.convert(relu, weight, np.float32(line), **demand)
    unit = snn.neurons["relu"].threshold.item() * code.weights(4)[-1]
    tie = np.full((4001, 1), 0.125, np.float32)  # between the fifth unit and the sixth
    run = jax.jit(snnjax.spiking(relu))
    for batch in (tie[:1], tie):
        assert abs(run(snn, batch).mean(0) - batch).max() < 0.51 * unit


def test_digits_are_nearer_to_the_network_than_as_many_steps_of_rate_coding():
    *_, rate, radix, exact = converted()
    errors = [np.square(output.mean(0) - exact).mean() for output in outputs()]
    assert errors[1] < 0.1 * errors[0]
    assert "radix(base=2)" in str(radix) and "radix" not in str(rate)
    answers = radix.code.answers(outputs()[1])  # nearer with every step
    assert np.all(np.diff(np.square(answers - exact).mean((1, 2))) < 0)


@jax.jit
def measured(snn, kernels, x):
    """Measures and spike trains."""
    measures = snnjax.measure(dense, snn, x, params=kernels)
    return measures, snnjax.measures.spike_trains(dense, snn, x)


def operations(trains):
    """Per image; a spike of layer 1 reaches 32 neurons, one of layer 2 10."""
    return sum(
        fan_out * np.sum(train != 0) / train.shape[1]
        for fan_out, train in zip((32, 10), trains.values(), strict=True)
    )


def test_decoded_values_that_stay_are_no_events():
    """A third is no binary number, so that sums differ in their last bits."""
    kernels, x, *_ = converted()
    recipe = snnjax.light("channel")
    options = {"model": MODELS[2], "code": codes.radix(), "wait": 1, "recipe": recipe}
    snn = networks.converted(dense, kernels, x, steps=3, **options)
    measures, trains = measured(snn, kernels, x)
    expected = operations(trains)
    np.testing.assert_allclose(measures.synaptic_operations, expected, rtol=1e-6)


def test_measures_count_digits_and_constants_once():
    kernels, x, rate, radix, _ = converted()
    rate_measures, _ = measured(rate, kernels, x)
    measures, trains = measured(radix, kernels, x)
    assert rate_measures.values == T + 1
    assert measures.values == 2**T
    np.testing.assert_allclose(measures.spikes, T * measures.firing_rate)
    spikes = np.mean([np.mean(train != 0) for train in trains.values()]) * T
    np.testing.assert_allclose(measures.spikes, spikes, rtol=1e-6)
    expected = operations(trains)
    np.testing.assert_allclose(measures.synaptic_operations, expected, rtol=1e-6)
    np.testing.assert_allclose(measures.synaptic_additions, expected, rtol=1e-6)
    rate_errors = [site.error for site in rate_measures.sites.values()]
    radix_errors = [site.error for site in measures.sites.values()]
    assert max(radix_errors) < max(rate_errors)


def test_a_file_holds_the_code(tmp_path):
    _, x, _, radix, _ = converted()
    for code in (*CODES[:4], codes.weighted((4, 3, 2, 1))):
        snn = dataclasses.replace(radix, code=code, fitted_to=None)
        path = snnjax.save(tmp_path / "snn.safetensors", snn)
        assert snnjax.load(path).snn.code == code
    path = snnjax.save(tmp_path / "run.safetensors", radix, fn=dense, x=x)
    np.testing.assert_allclose(snnjax.load(path).run(x), outputs()[1], 1e-5, 1e-6)


class Halves(codes.Code):
    """A code of one's own."""

    def weights(self, steps):
        return (0.5,) * steps


def test_a_code_of_ones_own_runs():
    _, x, _, radix, _ = converted()
    snn = dataclasses.replace(radix, code=Halves(), fitted_to=None)
    assert np.isfinite(jax.jit(snnjax.spiking(dense))(snn, x)).all()


def test_the_name_of_a_code_tells_its_base():
    assert repr(codes.radix(2)) == "radix(base=2)"
    assert repr(codes.radix(2.0000001)) != repr(codes.radix(2))


def test_as_many_digits_as_float32_holds_are_converted():
    (first, _, last), x, *_ = converted()
    recipe = snnjax.light("channel")
    options = {"wait": 1, "model": MODELS[2], "code": codes.radix(), "recipe": recipe}
    outputs, answers = networks.simulated(dense, [first, last], x, steps=24, **options)
    np.testing.assert_allclose(outputs.mean(0), answers, atol=1e-2)


def relu(w, x):
    return jax.nn.relu(x @ w)


def converted_relu(**options):
    """One layer, by default of three steps."""
    x = np.float32(np.random.default_rng(0).normal(size=(16, 4)))
    options = {"steps": 3, "recipe": snnjax.max_activation()} | options
    return snnjax.convert(relu, np.eye(4, dtype=np.float32), x, **options)


def test_a_code_brings_the_neuron_and_the_wait_that_it_needs():
    signed = snnjax.integrate_and_fire(levels=(-3, 3))
    cases = [
        (codes.rate(), None, (0, 1), 0),
        (codes.radix(), None, (-1, 1), 1),
        (codes.radix(base=4), None, (-3, 3), 1),
        (codes.radix(), snnjax.integrate_and_fire(), (0, 1), 2),
        (codes.radix(), signed, (-3, 3), 0),
    ]
    for code, model, levels, wait in cases:
        snn = converted_relu(code=code, model=model)
        assert (snn.model.levels, snn.wait) == (levels, wait)
        assert code.least_wait(levels, steps=1) == 0


ZONES = [((0, 1), 0), ((0, 3), 0)]
ZONES += itertools.product([(-1, 1), (-3, 3)], [0, 0.6, 2 / 3, 0.9])


@pytest.mark.parametrize("code", [*map(codes.radix, (2, 3, 4)), codes.harmonic()])
def test_digits_add_up_to_the_nearest_value_exactly_where_a_code_says_so(code):
    finest, shares = code.finest(T), np.linspace(-1.1, 1.1, 10_007, dtype=np.float32)

    def run(levels, dead_zone):
        neuron = integrate_and_fire(levels=levels, dead_zone=dead_zone)
        neuron = dataclasses.replace(neuron, rectifies=False)
        params, reach = started(neuron, code, 1.0), code.reach(T) * levels[1]
        return lambda shares: digits_of(neuron, code, params, reach * shares, T)[1][-1]

    all_sent = outputs_of(itertools.starmap(run, ZONES), shares)
    for (levels, dead_zone), sent in zip(ZONES, all_sent, strict=True):
        reach = code.reach(T) * levels[1]
        lowest = 0 if levels[0] == 0 else -reach
        nearest = np.clip(np.rint(reach * shares / finest) * finest, lowest, reach)
        are_nearest = np.allclose(sent, nearest, atol=1e-5)
        assert code.is_nearest(levels, dead_zone, T) == are_nearest, (levels, dead_zone)


@pytest.mark.parametrize("base", [2, 2.5, 3, 4, 5, 7, 128])
def test_the_digits_of_a_base_reach_every_value_with_their_dead_zone(base):
    """And an odd base has balanced digits: as many levels as the base."""
    code = codes.radix(base)
    low, high = code.levels
    zone = code.dead_zone((low, high))
    assert not code.has_gaps((low, high), zone, steps=6)
    assert 1 / 2 <= zone <= 2 / 3
    assert code.is_nearest((low, high), zone, 4) == (base != 2.5)
    if base % 2 == 1:
        assert high - low + 1 == base
        fewer = low + 1, high - 1
        assert code.has_gaps(fewer, 0, steps=6)


@pytest.mark.parametrize("levels", [(0, 1), (-1, 1)])
def test_the_closed_form_has_a_straight_through_gradient_up_to_the_readout(levels):
    code, x = codes.radix(), np.linspace(-0.5, 2.5, 16, dtype=np.float32)[:, None]
    options = {"model": integrate_and_fire(levels=levels), "code": code}
    snn = snnjax.init(relu, np.eye(1, dtype=np.float32), x, **options)
    simulate = snnjax.spiking(relu, steps=T, wait=T, execution="closed_form")
    slopes = jax.jit(jax.grad(lambda x: simulate(snn, x).mean(0).sum()))(x)[:, 0]
    is_inside = (x[:, 0] > 0) & (x[:, 0] < code.reach(T))
    np.testing.assert_array_equal(slopes, is_inside)


def test_digits_that_float32_does_not_tell_apart_are_warned_of():
    converted_relu(code=codes.radix(), steps=24)  # 2^24 values, without a warning
    with pytest.warns(UserWarning, match="tells 3.4e.07 values apart in 25 steps"):
        converted_relu(code=codes.radix(), steps=25)
    with pytest.warns(UserWarning, match="tells 2.2e.07 values apart in 16 steps"):
        converted_relu(code=codes.radix(base=3), steps=16)


def test_two_steps_of_base_2_say_that_base_3_is_closer():
    def names_base_3(**options):
        return "radix(base=3) come closer" in converted_relu(**options).fit

    assert names_base_3(code=codes.radix(), steps=2)
    assert not names_base_3(code=codes.radix(base=3), steps=2)
    assert not names_base_3(code=codes.radix(), steps=2, model=integrate_and_fire())
    assert not names_base_3(code=codes.radix(), steps=3)


def test_levels_that_leave_gaps_are_warned_of():
    radix = codes.radix(base=4)
    with pytest.warns(UserWarning, match=r"recommended: the levels \(-3, 3\)"):
        converted_relu(code=radix, model=integrate_and_fire())
    snn = converted_relu(code=radix)  # without a warning
    zone = integrate_and_fire(levels=(-1, 1), dead_zone=2 / 3)
    with pytest.warns(UserWarning, match="recommended.* and a dead zone of 0.5"):
        converted_relu(code=codes.radix(base=3), model=zone)
    with pytest.warns(UserWarning, match="recommended: weights that fall more slowly"):
        converted_relu(code=codes.weighted((1, 0.3, 0.1)))
    for base, levels, has_gaps in (
        (2, (-1, 1), False),
        (3, (-1, 1), False),
        (4, (0, 1), True),
    ):
        many = codes.radix(base).has_gaps(levels, 0, steps=100)  # no rounding errors
        assert many == has_gaps
    assert "code=radix(base=4)" in repr(snn)
    assert codes.weighted(jnp.array([1, 0.5])) == codes.weighted((1, 0.5))
