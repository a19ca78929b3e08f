"""Everything that users call works under JAX's strict settings, too.

No implicit promotion of types or ranks, and NaN is an error as soon as it appears.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import compiled, conv, converted, max_pool, outputs_of

import snnjax
from snnjax import deploy, training
from snnjax.calibrators import calibrate_weights, max_threshold
from snnjax.measures import neurobench, spike_trains
from snnjax.neurons.protocol import Wrapper
from snnjax.surrogate import rectangle

pytestmark = pytest.mark.usefixtures("strict")

STEPS = 4
LABELS = jnp.arange(6) % 3


@pytest.fixture
def strict():
    with (
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
        jax.debug_nans(True),
    ):
        yield


def network(p, x):
    """A convolution, a max-pool, a clipped ReLU and a readout, strictly written."""
    h = max_pool(jax.nn.relu(conv(x, p["conv"])))
    h = h.reshape(h.shape[0], -1) @ p["hidden"] + p["bias"][None]
    return snnjax.clipped_relu(h, 1.5) @ p["readout"]


def example(dtype=jnp.float32):
    draw = np.random.default_rng(0).normal
    shapes = {"conv": (3, 3, 2, 4), "hidden": (16, 8), "readout": (8, 3)}
    shapes |= {"bias": (8,), "x": (6, 4, 4, 2)}
    params = {}
    for name, shape in shapes.items():
        params[name] = jnp.asarray(draw(size=shape), dtype)
    x = params.pop("x")
    return params, x


RECIPES = {
    "percentile": snnjax.percentile(99.0, "channel"),
    "light": snnjax.light(),
    "spikes": snnjax.Recipe([max_threshold(), calibrate_weights(iterations=2)]),
    "advanced": snnjax.advanced(iterations=2),
    "best": snnjax.best(),
}
MARKS = {
    ("best", 0, jnp.float32): (),
    ("spikes", 0, jnp.bfloat16): pytest.mark.thorough,
    ("advanced", 1, jnp.bfloat16): pytest.mark.thorough,
}
slow = pytest.mark.slow


@pytest.mark.parametrize(
    "recipe, wait, dtype",
    [
        pytest.param(*options, marks=MARKS.get(options, slow))
        for options in itertools.product(
            RECIPES, (0, 1, STEPS), (jnp.float32, jnp.bfloat16)
        )
    ],
)
def test_conversions_and_measures_run_under_strict_settings(recipe, wait, dtype):
    params, x = example(dtype)
    snn = snnjax.convert(
        network, params, x, steps=STEPS, recipe=RECIPES[recipe], wait=wait
    )
    measures = snnjax.measure(network, snn, x, params=params)
    assert 0 < measures.firing_rate < 1
    assert snnjax.energy(measures).operations.spiking > 0
    outputs = compiled(network)(snn, x)
    assert snnjax.accuracy(outputs, LABELS).shape == (STEPS,)


@pytest.mark.thorough
def test_other_measures_and_files_run_under_strict_settings(tmp_path):
    params, x = example()
    snn, options = snnjax.init(network, params, x), {"steps": STEPS}
    assert neurobench(network, snn, x, **options)["Footprint"]
    assert len(spike_trains(network, snn, x, **options)) == 2
    path = snnjax.save(tmp_path / "snn.safetensors", snn, fn=network, x=x, **options)
    outputs = compiled(network, **options)(snn, x)
    np.testing.assert_allclose(snnjax.load(path).run(x), outputs, rtol=1e-6)


@pytest.mark.thorough
def test_whole_numbers_run_under_strict_settings():
    """Of images and of vectors; digits of either sign, and through the rounding."""
    params, images = example()

    def fn(p, x):
        h = jax.nn.relu(conv(x, p["conv"])).reshape(len(x), -1)
        return jax.nn.relu(h @ p["hidden"] + p["bias"][None]) @ p["readout"]

    params["hidden"] = jnp.concatenate([params["hidden"]] * 4) / 4
    options = {"steps": STEPS, "recipe": snnjax.max_activation()}
    options |= {"code": snnjax.codes.radix()}  # digits of either sign
    snn = converted(fn, params, images, **options)
    layers = deploy.layers(fn, snn, images)
    integers = deploy.quantize(layers, images, weight_bits=8)
    outputs = deploy.outputs(integers, images).outputs
    trained_fn, start = deploy.trainable(integers)
    floats = compiled(trained_fn)(start, deploy.on_grid(integers, images))
    np.testing.assert_allclose(outputs[-1], floats[-1], rtol=1e-5)


class WithoutLevels(Wrapper):
    levels = None


def test_models_run_and_what_cannot_be_measured_is_a_nan_of_numpy():
    params, x = example()
    model = snnjax.integrate_and_fire(levels=(-4, 5), dead_zone=0.25)
    snn = snnjax.init(network, params, x, model=model)
    outputs = compiled(network, steps=STEPS)(snn, x)
    assert np.isfinite(outputs).all()

    def measured(model):
        key = jax.random.key(0)
        snn = snnjax.init(network, params, x, model=model, key=key)
        return snnjax.measure(network, snn, x, params=params, steps=STEPS)

    wrapped = snnjax.neurons.Synaptic(WithoutLevels(snnjax.lif()))
    assert np.isnan(measured(snnjax.neurons.Recurrent(wrapped)).bits)
    sites = measured(snnjax.lif()).sites.values()
    assert all(np.isnan(site.flooring) and site.error >= 0 for site in sites)


EXECUTIONS = [(1, 0), (STEPS, STEPS), (3, 0)]
INPUTS = ("constant", "sequence")


@pytest.mark.thorough
@pytest.mark.parametrize("shift", [0, pytest.param(1, marks=slow)])
def test_gradients_run_under_strict_settings(shift):
    """Every execution, each with another kind of input; if slow, all of both."""
    params, x = example(jnp.bfloat16)
    snn = snnjax.init(network, params, x, model=snnjax.lif(temperature=3.0))

    def gradient(inputs, execution, wait):
        simulate = snnjax.spiking(
            network,
            steps=STEPS,
            wait=wait,
            execution=execution,
            inputs=inputs,
            surrogate=rectangle,
        )

        def loss(snn, x):
            if inputs == "sequence":
                x = jnp.broadcast_to(x, (STEPS, *x.shape))
            outputs = simulate(snn, x)
            potentials = training.membrane_readout(outputs)
            return training.mean_cross_entropy(potentials, LABELS)

        return jax.grad(loss)

    gradients = [
        gradient(INPUTS[(i + shift) % 2], *case) for i, case in enumerate(EXECUTIONS)
    ]
    for leaf in jax.tree.leaves(outputs_of(gradients, snn, x)):
        assert np.isfinite(np.float32(leaf)).all()
