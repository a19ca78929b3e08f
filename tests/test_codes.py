"""Codes: what a spike is worth at each step."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

import snnjax
from snnjax import codes
from snnjax.neurons import integrate_and_fire, mean_output, unroll
from snnjax.neurons.models import as_encoder
from snnjax.neurons.spike_trains import decode
from snnjax.neurons.unroll import after_all_input, spike_train

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
]


def started(neuron, code, threshold, bias=0.0, steps=T):
    """Neurons that round to the nearest value: v(0) is half of the last threshold."""
    threshold = jnp.asarray(threshold, jnp.float32)
    return neuron.init()._replace(
        threshold=threshold,
        bias=jnp.float32(bias),
        initial_potential=steps * code.finest(steps) * threshold / 2,
    )


# ------------------------------------------------------------------- one site


@functools.partial(jax.jit, static_argnums=(0, 1, 4))
def at_a_site(neuron, code, params, currents, wait):
    options = {"wait": wait, "code": code}
    spikes = unroll(neuron, params, currents, **options)
    mean = mean_output(neuron, params, currents, **options)
    return spikes, mean, decode(spike_train(neuron, params, currents, **options), T)


@pytest.mark.parametrize("code", CODES, ids=repr)
def test_spikes_are_those_of_the_oracle(code):
    currents = np.random.default_rng(0).normal(0.4, 1.5, (T, 60)).astype(np.float32)
    for neuron, wait in itertools.product(MODELS, (0, 1, T)):
        params = started(neuron, code, 0.7, bias=0.1)
        spikes, mean, stream = at_a_site(neuron, code, params, currents, wait)
        expected = reference.simulate(
            currents,
            np.float32(0.7),
            bias=0.1,
            start=float(params.initial_potential),
            wait=wait,
            levels=neuron.levels,
            dead_zone=neuron.dead_zone,
            rectifies=neuron.rectifies,
            sizes=None if code == codes.rate() else code.sizes(T),
        )
        np.testing.assert_allclose(spikes, expected, 1e-5, 1e-5)
        np.testing.assert_allclose(mean, expected.mean(0), 1e-5, 1e-5)
        np.testing.assert_allclose(stream, code.stream(spikes), 1e-5, 1e-5)


def test_what_arrives_of_a_stream_is_what_was_sent():
    spikes = jnp.asarray(np.random.default_rng(0).normal(size=(T, 5)), jnp.float32)
    for code in CODES:
        stream = code.stream(spikes)
        np.testing.assert_allclose(code.arriving(stream), spikes, rtol=1e-5)
        np.testing.assert_allclose(code.result(stream), spikes.mean(0), rtol=1e-5)
        np.testing.assert_allclose(code.answers(spikes)[-1], spikes.mean(0), rtol=1e-5)


@functools.partial(jax.jit, static_argnums=(0, 1, 4))
def digits_of(neuron, code, params, values, steps):
    """Levels [T, n] of neurons that have all of their input, and what they sent."""
    spikes = after_all_input(neuron, params, values, steps, code=code)
    sizes = jnp.asarray(code.sizes(steps))[:, None] * params.threshold
    return spikes / sizes, code.stream(spikes)


def test_neighboring_digits_of_the_non_adjacent_form_are_never_both_non_zero():
    """But for the last one, which has no dead zone."""
    neuron = as_encoder(integrate_and_fire(levels=(-1, 1), dead_zone=2 / 3))
    code, steps = codes.radix(), 8
    values = jnp.linspace(-1.33, 1.33, 2001)  # up to 4/3
    params = started(neuron, code, 1.0, steps=steps)
    levels, sent = digits_of(neuron, code, params, values, steps)
    assert not np.any((levels[1:-1] != 0) & (levels[:-2] != 0))
    np.testing.assert_array_less(np.abs(sent[-1] - values), code.finest(steps) * 0.501)
    assert np.mean(levels != 0) < 0.4  # a third, and the last one


@pytest.mark.parametrize("levels, base", [((-1, 1), 2), ((-3, 3), 2), ((-1, 1), 3)])
def test_what_is_missing_stays_below_what_the_other_digits_can_send(levels, base):
    neuron = as_encoder(integrate_and_fire(levels=levels))
    code, steps = codes.radix(base), 6
    reach = levels[1] * code.reach(steps)
    values = jnp.linspace(-reach, reach, 4001)
    params = started(neuron, code, 1.0, steps=steps)
    _, sent = digits_of(neuron, code, params, values, steps)
    for t, stream in enumerate(sent, 1):
        later = levels[1] * sum(code.weights(steps)[t:]) + code.finest(steps) / 2
        assert np.abs(stream - values).max() <= later * 1.001


def test_binary_digits_round_to_the_grid_of_the_last_step():
    neuron, code = integrate_and_fire(), codes.radix()
    values = jnp.linspace(-1, 3, 1001)
    _, sent = digits_of(neuron, code, started(neuron, code, 1.0), values, T)
    expected = np.clip(np.floor(values * 8 + 0.5), 0, 15) / 8
    np.testing.assert_array_equal(sent[-1], expected)


# ----------------------------------------------------------------- a network


def network(params, x):
    """Residual sums of unequal depth, a max-pool, an operator, a masked mean."""
    x, mask = x
    hidden = jax.nn.relu(x @ params["first"] + 0.1)
    deep = jax.nn.relu(jax.nn.relu(hidden @ params["second"]) @ params["third"])
    hidden = hidden + deep
    pooled = hidden.reshape(*hidden.shape[:-1], -1, 2).max(-1)
    pooled = jax.nn.softmax(pooled) * pooled
    hidden = jax.nn.relu(pooled @ params["fourth"] + x @ params["first"])
    mean = (hidden * mask[..., None]).sum(1) / mask.sum(1)[:, None]
    return mean @ params["readout"]


@functools.cache
def example():
    generator = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(generator.normal(0, 0.6, shape), jnp.float32)

    params = {
        "first": draw(5, 6),
        "second": draw(6, 6),
        "third": draw(6, 6),
        "fourth": draw(3, 6),
        "readout": draw(6, 3),
    }
    mask = jnp.asarray(np.arange(4) < generator.integers(1, 5, (7, 1)), jnp.float32)
    return params, (draw(7, 4, 5), mask)


def spiking_network(code, neuron, steps=T, **options):
    params, x = example()
    snn = snnjax.init(network, params, x, model=neuron, code=code)
    neurons = {
        name: started(snn.model_of(name), code, 0.8, 0.03, steps)
        for name in snn.neurons
    }
    return dataclasses.replace(snn, neurons=neurons), x


# Every code, every model and every wait at least once with each of the others.
CASES = [
    (codes.radix(), MODELS[0], T - 1),
    (codes.radix(), MODELS[2], 0),
    (codes.radix(), MODELS[2], 1),
    (codes.radix(base=3), MODELS[3], 0),
    (codes.radix(base=3), MODELS[1], T),
    (codes.harmonic(), MODELS[2], T - 1),
    (codes.harmonic(), MODELS[3], 1),
    (codes.weighted((1, 0.8, 0.3, 0.2)), MODELS[0], 1),
    (codes.rate(), MODELS[2], 1),
]


@pytest.mark.parametrize("code, neuron, wait", CASES)
def test_all_executions_give_the_same_answers(code, neuron, wait):
    snn, x = spiking_network(code, neuron)
    executions = ("by_layer", "by_step", *["closed_form"] * (wait >= T - 1))

    @jax.jit
    def answers(snn, x):
        options = {"steps": T, "wait": wait}
        runs = [snnjax.spiking(network, execution=e, **options) for e in executions]
        return [run(snn, x).mean(0) for run in runs]

    by_layer, *others = answers(snn, x)
    assert np.isfinite(by_layer).all()
    for other in others:
        np.testing.assert_allclose(other, by_layer, 1e-4, 1e-5)


def test_the_gradient_of_the_executions_is_one_and_finite():
    snn, x = spiking_network(codes.radix(), MODELS[2])

    def gradient(wait, execution):
        run = snnjax.spiking(network, steps=T, wait=wait, execution=execution)
        return jax.jit(jax.grad(lambda snn: (run(snn, x).mean(0) ** 2).sum()))(snn)

    for wait, execution in ((1, "by_step"), (T - 1, "auto")):
        by_layer = gradient(wait, "by_layer")
        assert np.abs(by_layer.params["first"]).max() > 0
        trees = by_layer, gradient(wait, execution)
        for a, b in zip(*map(jax.tree.leaves, trees), strict=True):
            assert np.isfinite(a).all()
            np.testing.assert_allclose(a, b, 1e-3, 1e-5)


def test_the_closed_form_needs_a_wait_of_one_step_less_than_rate_coding():
    snn, x = spiking_network(codes.radix(), MODELS[0])
    for steps in (2, T):
        run = snnjax.spiking(network, steps=T, wait=steps - 1, execution="closed_form")
        if steps == T:
            assert run(snn, x).shape == (T, 7, 3)
        else:
            with pytest.raises(ValueError, match="closed_form"):
                run(snn, x)


def test_signed_digits_and_a_wait_of_one_come_as_near_as_the_last_digit():
    """Each neuron has one weight below 1, so that errors do not grow."""
    generator, code, steps = np.random.default_rng(1), codes.radix(), 6
    neuron = integrate_and_fire(levels=(-1, 1))
    kernels = [
        jnp.asarray(generator.permutation(np.eye(8)) * 0.9, jnp.float32)
        for _ in range(3)
    ]
    x = jnp.asarray(generator.uniform(0, 1, (50, 8)), jnp.float32)

    def chain(kernels, x):
        for kernel in kernels:
            x = jax.nn.relu(x @ kernel)
        return x

    snn = snnjax.init(chain, kernels, x, model=neuron, code=code)
    fresh = started(neuron, code, 1.0, steps=steps)
    snn = dataclasses.replace(snn, neurons=dict.fromkeys(snn.neurons, fresh))
    run = jax.jit(snnjax.spiking(chain, steps=steps, wait=1))
    error = np.abs(run(snn, x).mean(0) - chain(kernels, x))
    assert error.max() <= 3 * code.finest(steps) / 2 * 1.001  # half a digit per layer


# ---------------------------------------------------- conversion, measures, files


@functools.cache
def converted():
    generator = np.random.default_rng(0)
    kernels = [
        jnp.asarray(generator.normal(0, s**-0.5, (s, n)), jnp.float32)
        for s, n in ((8, 32), (32, 32), (32, 10))
    ]
    x = jnp.asarray(generator.uniform(0, 1, (64, 8)), jnp.float32)

    def dense(kernels, x):
        for kernel in kernels[:-1]:
            x = jax.nn.relu(x @ kernel)
        return x @ kernels[-1]

    recipe = snnjax.Recipe(
        [
            snnjax.calibrators.least_squares_threshold("channel", "round"),
            snnjax.calibrators.half_charge(),
            snnjax.calibrators.correct_potential(),
        ]
    )
    options = {"steps": T, "recipe": recipe}
    signed = integrate_and_fire(levels=(-1, 1), dead_zone=2 / 3)
    rate = snnjax.convert(dense, kernels, x, wait=1, model=signed, **options)
    radix = snnjax.convert(
        dense, kernels, x, wait=1, model=signed, code=codes.radix(), **options
    )
    return dense, kernels, x, rate, radix


def test_digits_are_nearer_to_the_network_than_as_many_steps_of_rate_coding():
    dense, kernels, x, rate, radix = converted()
    exact = np.asarray(dense(kernels, x))
    errors = [
        np.square(jax.jit(snnjax.spiking(dense))(snn, x).mean(0) - exact).mean()
        for snn in (rate, radix)
    ]
    assert errors[1] < 0.1 * errors[0]
    assert "radix(base=2)" in str(radix) and "radix" not in str(rate)


@pytest.mark.parametrize("steps", [3, 5])
def test_decoded_values_that_stay_are_no_events(steps):
    """A third is no binary number, so that sums differ in their last bits."""
    dense, kernels, x, _, _ = converted()
    recipe = snnjax.light("channel", "round")
    options = {"model": MODELS[2], "code": codes.radix(), "wait": 1, "recipe": recipe}
    snn = snnjax.convert(dense, kernels, x, steps=steps, **options)
    measures = snnjax.measure(dense, snn, x, params=kernels)
    trains = snnjax.measures.spike_trains(dense, snn, x).values()
    operations = sum(
        fan_out * np.sum(train != 0) / len(x)
        for fan_out, train in zip((32, 10), trains, strict=True)
    )
    np.testing.assert_allclose(measures.synaptic_operations, operations, rtol=1e-6)


def test_measures_count_digits_and_constants_once():
    dense, kernels, x, rate, radix = converted()
    measures = {
        snn: snnjax.measure(dense, snn, x, params=kernels) for snn in (rate, radix)
    }
    of_rate, of_radix = measures.values()
    assert (of_rate.values, of_radix.values) == (5, 16)  # T + 1, 2^T
    np.testing.assert_allclose(of_radix.spikes, T * of_radix.firing_rate)
    trains = snnjax.measures.spike_trains(dense, radix, x)
    spikes = np.mean([np.mean(train != 0) for train in trains.values()]) * T
    np.testing.assert_allclose(of_radix.spikes, spikes, rtol=1e-6)
    # A spike of the first layer reaches 32 neurons, one of the second 10.
    operations = [
        fan_out * np.sum(train != 0) / len(x)
        for fan_out, train in zip((32, 10), trains.values(), strict=True)
    ]
    np.testing.assert_allclose(of_radix.synaptic_operations, sum(operations), rtol=1e-6)
    np.testing.assert_allclose(of_radix.synaptic_additions, sum(operations), rtol=1e-6)
    parts = [s.error for s in of_radix.sites.values()]
    assert max(parts) < max(s.error for s in of_rate.sites.values())


def test_answers_get_nearer_step_by_step():
    dense, kernels, x, _, radix = converted()
    exact = np.asarray(dense(kernels, x))
    answers = radix.code.answers(jax.jit(snnjax.spiking(dense))(radix, x))
    errors = np.square(np.asarray(answers) - exact).mean((1, 2))
    assert np.all(np.diff(errors) < 0)


def test_a_file_holds_the_code(tmp_path):
    dense, _, x, _, radix = converted()
    outputs = jax.jit(snnjax.spiking(dense))(radix, x)
    for code in (*CODES[:4], codes.weighted((4, 3, 2, 1))):
        snn = dataclasses.replace(radix, code=code)
        path = snnjax.save(tmp_path / "snn.safetensors", snn)
        assert snnjax.load(path).snn.code == code
    path = snnjax.save(tmp_path / "run.safetensors", radix, fn=dense, x=x)
    np.testing.assert_allclose(snnjax.load(path).run(x), outputs, 1e-5, 1e-6)


@dataclasses.dataclass(frozen=True)
class Halves(codes.Code):
    """A code of one's own."""

    def weights(self, steps):
        return (0.5,) * steps


@dataclasses.dataclass(frozen=True)
class Harmonic(Halves):
    """A code of one's own with the name of another one, and a field."""

    first: float


def test_codes_are_told_apart_by_what_they_are(tmp_path):
    assert repr(codes.radix(2)) == "radix(base=2)"
    assert repr(codes.radix(2.0000001)) != repr(codes.radix(2))
    snn = dataclasses.replace(converted()[-1], code=Harmonic(0.5))
    with pytest.raises(ValueError, match="cannot describe the code .*Harmonic"):
        snnjax.save(tmp_path / "snn.safetensors", snn)


def test_a_code_of_ones_own_runs_and_is_named_where_a_file_cannot_hold_it(tmp_path):
    dense, kernels, x, _, radix = converted()
    snn = dataclasses.replace(radix, code=Halves())
    assert np.isfinite(jax.jit(snnjax.spiking(dense))(snn, x)).all()
    with pytest.raises(ValueError, match=r"code .*Halves.*weighted\(code.weights\(T\)"):
        snnjax.save(tmp_path / "snn.safetensors", snn)


# ------------------------------------------------------------------- refusals


def test_codes_outside_their_range_are_refused():
    for base in (1, 0.5, np.inf, "2", None):
        with pytest.raises(ValueError, match="base is .*allowed: a finite number > 1"):
            codes.radix(base)
    for weights in ((), (1, 0), (1, np.nan), "ab", 3, ("1", "2"), (1, np.inf)):
        with pytest.raises(ValueError, match="weights are .*allowed: one finite"):
            codes.weighted(weights)
    with pytest.raises(ValueError, match="has 2 weights, and there are 4 steps"):
        codes.weighted((1, 0.5)).weights(4)
    for code, steps in ((codes.radix(), 200), (codes.radix(1e30), 3), (Halves(), 0)):
        with pytest.raises(ValueError, match="allowed: one number > 0 for each step"):
            code.sizes(steps) if steps else Thirds().sizes(4)


@dataclasses.dataclass(frozen=True)
class Thirds(codes.Code):
    """A code of too few steps."""

    def weights(self, steps):
        return (1 / 3,) * 3


def test_neurons_that_do_not_keep_what_is_missing_are_refused():
    dense, kernels, x, rate, radix = converted()
    leaky = {n: p._replace(leak=jnp.float32(0.5)) for n, p in radix.neurons.items()}
    run = snnjax.spiking(dense)
    for snn, message in (
        (dataclasses.replace(radix, neurons=leaky), "have a leak.*allowed: leak None"),
        (dataclasses.replace(radix, code="radix"), "code is 'radix'; allowed: a code"),
        (dataclasses.replace(radix, code=codes.Code()), "code is Code.*allowed"),
    ):
        with pytest.raises(ValueError, match=message):
            run(snn, x)
    within = snnjax.neurons.synaptic(MODELS[2])
    with pytest.raises(ValueError, match="a dead zone is for .*alone"):
        snnjax.init(dense, kernels, x, model=within)


def test_a_dead_zone_is_the_same_in_segments_and_where_layers_wait():
    snn, x = spiking_network(codes.rate(), MODELS[2])
    by_layer = snnjax.simulation.by_layer
    for wait, others in ((0, ("by_step", by_layer(segment=3))), (T, ("auto",))):

        def run(execution, wait=wait):
            fn = snnjax.spiking(network, steps=T, wait=wait, execution=execution)
            return jax.jit(fn)(snn, x)

        expected = run("by_layer")
        for execution in others:
            np.testing.assert_allclose(run(execution), expected, 1e-4, 1e-5)


def test_as_many_digits_as_float32_holds_are_converted():
    dense, kernels, x, _, radix = converted()
    recipe = snnjax.light("channel", "round")
    options = {"wait": 1, "model": MODELS[2], "code": codes.radix(), "recipe": recipe}
    snn = snnjax.convert(dense, kernels, x, steps=32, **options)
    answer = jax.jit(snnjax.spiking(dense))(snn, x).mean(0)
    np.testing.assert_allclose(answer, dense(kernels, x), atol=1e-2)


def test_what_only_rate_coding_has_is_refused_with_a_way_out():
    dense, kernels, x, _, radix = converted()
    by_layer = snnjax.simulation.by_layer
    for options, message in (
        ({"inputs": "sequence"}, "inputs='sequence' works with rate coding only"),
        ({"inputs": "poisson"}, "inputs='poisson' works with rate coding only"),
        ({"execution": by_layer(segment=2), "wait": None}, "segment"),
        ({"execution": by_layer(remat=True)}, r"by_layer\(remat=True\) works with"),
    ):
        data = jnp.ones((T, *x.shape)) if "sequence" in str(options) else x
        with pytest.raises(ValueError, match=message):
            snnjax.spiking(dense, **options)(radix, data, jax.random.key(0))
    with pytest.raises(ValueError, match="radix.*needs IF neurons with reset by subtr"):
        snnjax.init(dense, kernels, x, code=codes.radix())  # LIF
    with pytest.raises(ValueError, match=r"code is .*allowed: a code, .*radix\(\)"):
        snnjax.convert(dense, kernels, x, steps=T, code=codes.radix)
    with pytest.raises(ValueError, match="NIR cannot express the code radix"):
        snnjax.to_nir(dense, radix, x)


@pytest.mark.parametrize(
    ("code", "model", "levels", "wait"),
    [
        (codes.rate(), None, (0, 1), 0),
        (codes.radix(), None, (-1, 1), 1),
        (codes.radix(base=4), None, (-3, 3), 1),
        (codes.radix(), snnjax.integrate_and_fire(), (0, 1), 2),
        (codes.radix(), snnjax.integrate_and_fire(levels=(-3, 3)), (-3, 3), 0),
    ],
)
def test_a_code_brings_the_neuron_and_the_wait_that_it_needs(code, model, levels, wait):
    fn = lambda w, x: jax.nn.relu(x @ w)  # noqa: E731
    images = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
    snn = snnjax.convert(
        fn,
        np.eye(4, dtype=np.float32),
        images,
        steps=3,
        code=code,
        model=model,
        recipe=snnjax.light(),
    )
    assert (snn.model.levels, snn.wait) == (levels, wait)
    one_step = code.least_wait(levels, steps=1)
    assert one_step == 0


@pytest.mark.parametrize("code", [*map(codes.radix, (2, 3, 4)), codes.harmonic()])
@pytest.mark.parametrize(
    ("levels", "dead_zone"),
    [((0, 1), 0), ((0, 3), 0)]
    + list(itertools.product([(-1, 1), (-3, 3)], [0, 0.6, 2 / 3, 0.9])),
)
def test_digits_add_up_to_the_nearest_value_exactly_where_a_code_says_so(
    code, levels, dead_zone
):
    steps = 4
    neuron = integrate_and_fire(levels=levels, dead_zone=dead_zone)
    neuron = dataclasses.replace(neuron, rectifies=False)
    params, finest = neuron.init(), code.finest(steps)
    reach = code.reach(steps) * levels[1]
    current = np.linspace(-1.1 * reach, 1.1 * reach, 10_007, dtype=np.float32)
    params = params._replace(initial_potential=steps * finest / 2)
    digits = after_all_input(neuron, params, current, steps, code=code)
    sent = np.asarray(code.stream(digits)[-1])
    lowest = 0 if levels[0] == 0 else -reach
    nearest = np.clip(np.rint(current / finest) * finest, lowest, reach)
    are_nearest = np.allclose(sent, nearest, atol=1e-5)
    assert code.is_nearest(levels, dead_zone, steps) == are_nearest
