"""NeuroBench's metrics: counted by hand, and equal to those of its own harness."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import NETWORKS, eighths

import snnjax
from snnjax.measures import neurobench

STEPS = 6


def metrics(fn, params, x, *, steps=STEPS, wait=0, neuron=None, labels=None):
    neuron = snnjax.integrate_and_fire() if neuron is None else neuron
    snn = snnjax.init(fn, params, x, model=neuron)
    return neurobench(fn, snn, x, steps=steps, wait=wait, labels=labels)


def test_a_network_counted_by_hand():
    """One input of 1/2, weights 1 and 0, then three outputs; one neuron fires twice."""

    def fn(p, x):
        return jax.nn.relu(x @ p["w"]) @ p["v"]

    params = {"w": jnp.array([[1.0, 0.0]]), "v": jnp.array([[1.0, 2, 0], [1, 1, 1]])}
    found = metrics(fn, params, jnp.array([[0.5]]), steps=4)
    assert found["SynapticOperations"] == {
        "Effective_MACs": 4.0,  # 1/2 x 1 at four steps; 1/2 x 0 is none
        "Effective_ACs": 4.0,  # two spikes, of three weights two are not zero
        "Dense": 4 * (2 + 6.0),
    }
    assert found["ActivationSparsity"] == 1 - 2 / 8
    assert found["ConnectionSparsity"] == 0.25  # two zeros of eight
    # Both neurons at the first step; the first has 1/2, 1, 1/2, 1 before it fires.
    assert found["MembraneUpdates"] == 2 + 3
    assert found["ParameterCount"] == 8 + 3  # with threshold, bias, potential
    assert found["Footprint"] == 4 * 11


def test_binary_inputs_are_events_and_pooled_spikes_are_not():
    def fn(w, x):
        spikes = jax.nn.relu(x)
        return spikes.reshape(-1, 2, 2).mean(-1) @ w

    events = metrics(lambda w, x: jax.nn.relu(x @ w), jnp.ones((2, 3)), jnp.eye(2))
    assert events["SynapticOperations"]["Effective_MACs"] == 0
    assert events["SynapticOperations"]["Effective_ACs"] == STEPS * 3
    half = jnp.array([[1.0, 0.0, 1.0, 1.0]])  # pooled: 1/2 and 1
    pooled = metrics(fn, jnp.ones((2, 3)), half)
    assert pooled["SynapticOperations"]["Effective_MACs"] == STEPS * 6
    assert pooled["SynapticOperations"]["Effective_ACs"] == 0


def test_thresholds_are_absorbed_whatever_their_size():
    net = NETWORKS["convolutions"]
    found = metrics(*net[:3], neuron=snnjax.integrate_and_fire(threshold=0.25))
    assert found["SynapticOperations"]["Effective_ACs"] > 0


@pytest.mark.parametrize("name", ["dense", "projection", "max-pool after"])
def test_firing_and_operations_agree_with_measure(name):
    net = NETWORKS[name]
    recipe = snnjax.light()
    snn = snnjax.convert(*net[:3], steps=STEPS, wait=1, recipe=recipe)
    seen = snnjax.measure(net.fn, net.params, snn, net.x, steps=STEPS, wait=1)
    found = neurobench(net.fn, snn, net.x, steps=STEPS, wait=1)
    rate = 1 - found["ActivationSparsity"]
    np.testing.assert_allclose(rate, seen.firing_rate, rtol=1e-5)
    counts = found["SynapticOperations"]
    np.testing.assert_allclose(counts["Dense"], STEPS * seen.macs, rtol=1e-6)
    effective = counts["Effective_ACs"] + counts["Effective_MACs"]
    most = seen.synaptic_operations + STEPS * seen.input_macs
    assert 0.5 * most < effective <= most  # where no weight and no pixel is zero


def test_silent_neurons_update_their_membranes_once():
    found = metrics(
        lambda w, x: jax.nn.relu(x @ w), jnp.ones((2, 3)), jnp.zeros((4, 2)), wait=2
    )
    assert found["MembraneUpdates"] == 3
    assert found["ActivationSparsity"] == 1


@pytest.mark.parametrize(
    "labels, message",
    [([1], r"shape \(1,\); allowed: .*\(2,\)"), (np.eye(2), "the class of each image")],
)
def test_labels_of_another_shape_are_refused(labels, message):
    fn, x = (lambda w, x: jax.nn.relu(x @ w) @ w), jnp.ones((2, 2))
    snn = snnjax.init(fn, jnp.eye(2), x)
    with pytest.raises(ValueError, match=message):
        neurobench(fn, snn, x, steps=2, labels=labels)
    features = lambda w, x: fn(w, x)[:, :, None]  # noqa: E731
    with pytest.raises(ValueError, match="labels need logits"):
        neurobench(features, snn, x, steps=2, labels=[0, 1])


def test_random_keys_among_the_parameters_count_as_what_they_are_made_of():
    def fn(p, x):
        return jax.nn.relu(x @ p["w"])

    params = {"w": jnp.eye(2), "key": jax.random.key(0)}
    x = jnp.ones((2, 2))
    with_key, without = (
        neurobench(fn, snnjax.init(fn, p, x), x, steps=2)
        for p in (params, {"w": params["w"]})
    )
    assert with_key["ParameterCount"] == without["ParameterCount"] + 2


def test_numbers_inside_of_jit_are_refused():
    fn, x = (lambda w, x: jax.nn.relu(x @ w)), jnp.ones((2, 2))
    snn = snnjax.init(fn, jnp.eye(2), x)
    with pytest.raises(ValueError, match="inside jit .* call it outside"):
        jax.jit(lambda snn: neurobench(fn, snn, x, steps=2))(snn)


def test_the_result_is_json_and_has_the_accuracy_where_labels_are_given():
    net = NETWORKS["dense"]
    snn = snnjax.init(net.fn, net.params, net.x)
    outputs = snnjax.spiking(net.fn, steps=STEPS)(snn, net.x)
    labels = outputs.mean(0).argmax(-1).at[0].add(1)
    found = metrics(*net[:3], neuron=snnjax.lif(), labels=labels)
    assert found["ClassificationAccuracy"] == 1 - 1 / len(labels)
    assert json.loads(json.dumps(found)) == found


# -------------------------------------------- against NeuroBench's own harness


def weights():
    """Some of them zero; no potential of theirs is exactly at the threshold."""
    dense = np.random.default_rng(1).normal(size=(4 * 6 * 6, 8)) / 4
    return {
        "conv": eighths(0, (3, 3, 2, 4)),
        "dense": jnp.asarray(dense * (abs(dense) > 0.05), jnp.float32),
        "readout": eighths(2, (2, 3)),
    }


def network(p, x):
    """Convolution, dense layer, average over groups of four neurons, readout."""
    numbers = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(
        x, p["conv"], (1, 1), "SAME", dimension_numbers=numbers
    )
    x = jax.nn.relu(x)
    x = jax.nn.relu(x.transpose(0, 3, 1, 2).reshape(len(x), -1) @ p["dense"])
    return x.reshape(-1, 2, 4).mean(-1) @ p["readout"]


def torch_network(torch, snntorch, p, neuron):
    """The same in PyTorch, as one step; channels come first."""

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            nn = torch.nn
            self.conv = nn.Conv2d(2, 4, 3, padding=1, bias=False)
            self.first = snntorch.Leaky(init_hidden=True, **neuron)
            self.dense = nn.Linear(4 * 6 * 6, 8, bias=False)
            self.second = snntorch.Leaky(init_hidden=True, **neuron)
            self.readout = nn.Linear(2, 3, bias=False)
            arrays = [p["conv"].transpose(3, 2, 0, 1), p["dense"].T, p["readout"].T]
            layers = [self.conv, self.dense, self.readout]
            for layer, array in zip(layers, arrays, strict=True):
                layer.weight.data = torch.tensor(np.array(array))

        def forward(self, x):
            x = self.first(self.conv(x))
            x = self.second(self.dense(x.flatten(1)))
            return self.readout(x.reshape(-1, 2, 4).mean(-1)), None

    return Net()


@pytest.mark.filterwarnings("ignore")  # those of another library's imports
@pytest.mark.parametrize(
    "neuron, theirs",
    [
        (
            snnjax.integrate_and_fire(threshold=127 / 128),
            {"beta": 1.0, "threshold": 127 / 128},
        ),
        (
            snnjax.lif(leak=0.75, reset="zero", threshold=127 / 128),
            {"beta": 0.75, "threshold": 127 / 128, "reset_mechanism": "zero"},
        ),
    ],
    ids=["IF", "LIF"],
)
def test_all_metrics_are_those_of_neurobench(neuron, theirs):
    torch = pytest.importorskip("torch")
    snntorch = pytest.importorskip("snntorch")
    benchmarks = pytest.importorskip("neurobench.benchmarks")
    from neurobench.metrics import static, workload
    from neurobench.models import SNNTorchModel

    p, x = weights(), eighths(3, (5, 6, 6, 2))
    snn = snnjax.init(network, p, x, model=neuron)
    simulate = snnjax.spiking(network, steps=STEPS)
    labels = simulate(snn, x).mean(0).argmax(-1).at[0].add(1) % 3
    # A spike of theirs is 1: the next weights take the threshold over.
    scale = theirs["threshold"]
    scaled = {n: w if n == "conv" else scale * w for n, w in p.items()}
    net = torch_network(torch, snntorch, scaled, theirs)
    frames = np.repeat(np.moveaxis(np.array(x), -1, 1)[:, None], STEPS, axis=1)
    data = torch.utils.data.TensorDataset(
        torch.tensor(frames), torch.tensor(np.array(labels)).long()
    )
    expected = benchmarks.Benchmark(
        SNNTorchModel(net),
        torch.utils.data.DataLoader(data, batch_size=len(x)),
        [],
        [lambda outputs: outputs.mean(1).argmax(-1)],
        [
            [static.Footprint, static.ParameterCount, static.ConnectionSparsity],
            [
                workload.ClassificationAccuracy,
                workload.ActivationSparsity,
                workload.SynapticOperations,
                workload.MembraneUpdates,
            ],
        ],
    ).run(quiet=True)
    found = neurobench(network, snn, x, steps=STEPS, labels=labels)
    # Theirs has other numbers in its neurons than ours; the weights are the same.
    own = [leaf for n in snn.neurons.values() for leaf in jax.tree.leaves(n)]
    assert found["ParameterCount"] - len(own) == expected.pop("ParameterCount")
    buffers = sum(b.numel() * b.element_size() for b in net.buffers() if b.numel() == 1)
    state = sum(b.numel() * b.element_size() for b in net.buffers()) - buffers
    assert expected.pop("Footprint") - buffers == found["Footprint"] - 4 * len(own)
    assert state == 4 * len(x) * (4 * 6 * 6 + 8)  # potentials, once it has run
    counts = expected.pop("SynapticOperations")
    assert found["SynapticOperations"] == counts
    assert counts["Effective_MACs"] > 0 and counts["Effective_ACs"] > 0
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, err_msg=name)
    assert len(expected) == 4
