"""NeuroBench's metrics: those of `measure`, and equal to those of its own harness."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import NETWORKS, eighths

import snnjax
from snnjax.measures import neurobench

STEPS = 6


@pytest.mark.parametrize("levels", [(0, 1), (0, 3)])
def test_metrics_are_the_counts_of_measure_and_numbers_for_json(levels):
    fn, params, x, _ = NETWORKS["dense"]
    neuron = snnjax.integrate_and_fire(levels=levels, threshold=0.25)
    snn = snnjax.init(fn, params, x, model=neuron)
    measures = snnjax.measure(fn, snn, x, params=params, steps=STEPS, wait=1)
    metrics = neurobench(fn, snn, x, steps=STEPS, wait=1)
    assert json.loads(json.dumps(metrics)) == metrics
    rate, counts = 1 - metrics["ActivationSparsity"], metrics["SynapticOperations"]
    np.testing.assert_allclose(rate, measures.firing_rate, rtol=1e-5)
    np.testing.assert_allclose(counts["Dense"], STEPS * measures.macs, rtol=1e-6)
    spiking = float(measures.synaptic_operations)
    analog = STEPS * float(measures.input_macs)
    sent = (spiking, analog) if levels == (0, 1) else (0, analog + spiking)
    effective = counts["Effective_ACs"], counts["Effective_MACs"]
    np.testing.assert_allclose(effective, sent, rtol=1e-6)
    numbers = jax.tree.leaves(snn)
    assert metrics["ParameterCount"] == sum(map(np.size, numbers))
    assert metrics["Footprint"] == 4 * metrics["ParameterCount"]


def test_zeros_among_the_weights_are_a_sparsity():
    w, x = jnp.array([[1.0, 0.0, 1.0], [1.0, 1.0, 1.0]]), jnp.ones((1, 2))
    fn = lambda w, x: jax.nn.relu(x @ w) @ w.T  # noqa: E731
    metrics = neurobench(fn, snnjax.init(fn, w, x), x, steps=2)
    assert metrics["ConnectionSparsity"] == round(1 / 6, 4)
    fn = lambda p, x: jax.nn.relu(x * 2)  # noqa: E731
    metrics = neurobench(fn, snnjax.init(fn, {}, x), x, steps=2)
    assert metrics["ConnectionSparsity"] == metrics["SynapticOperations"]["Dense"] == 0


# -------------------------------------------- against NeuroBench's own harness


def network(p, x):
    """Convolution, dense layer, readout."""
    numbers = ("NHWC", "HWIO", "NHWC")
    x = jax.lax.conv_general_dilated(
        x, p["conv"], (1, 1), "SAME", dimension_numbers=numbers
    )
    x = jax.nn.relu(x)
    x = jax.nn.relu(x.transpose(0, 3, 1, 2).reshape(len(x), -1) @ p["dense"])
    return x @ p["readout"]


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
            self.readout = nn.Linear(8, 3, bias=False)
            arrays = [p["conv"].transpose(3, 2, 0, 1), p["dense"].T, p["readout"].T]
            layers = [self.conv, self.dense, self.readout]
            for layer, array in zip(layers, arrays, strict=True):
                layer.weight.data = torch.tensor(np.array(array))

        def forward(self, x):
            x = self.first(self.conv(x))
            x = self.second(self.dense(x.flatten(1)))
            return self.readout(x), None

    return Net()


@pytest.mark.filterwarnings("ignore")  # those of another library's imports
@pytest.mark.parametrize(
    "leak, reset", [(None, "subtract"), (0.75, "zero")], ids=["IF", "LIF"]
)
def test_the_metrics_are_those_of_neurobench(leak, reset):
    """Where neither weights nor pixels are zero."""
    snntorch = pytest.importorskip("snntorch")
    torch = pytest.importorskip("torch")
    benchmarks = pytest.importorskip("neurobench.benchmarks")
    from neurobench.metrics import static, workload
    from neurobench.models import SNNTorchModel

    size, random = 2027 / 2048, np.random.default_rng(1)  # no potential is at it
    p = {
        "conv": eighths(0, (3, 3, 2, 4)) + 1 / 32,
        "dense": jnp.asarray(random.normal(size=(4 * 6 * 6, 8)) / 4, jnp.float32),
        "readout": eighths(2, (8, 3)) + 1 / 32,
    }
    x = eighths(3, (5, 6, 6, 2)) + 1 / 32
    assert all(np.all(array != 0) for array in (x, *p.values()))
    model = snnjax.integrate_and_fire(threshold=size)
    if leak is not None:
        model = snnjax.lif(leak=leak, reset=reset, threshold=size)
    snn = snnjax.init(network, p, x, model=model)
    # A spike of theirs is 1: the next weights take the threshold over.
    scaled = {n: w if n == "conv" else size * w for n, w in p.items()}
    theirs = {"beta": leak or 1.0, "threshold": size, "reset_mechanism": reset}
    net = torch_network(torch, snntorch, scaled, theirs)
    frames = np.repeat(np.moveaxis(np.array(x), -1, 1)[:, None], STEPS, axis=1)
    data = torch.utils.data.TensorDataset(torch.tensor(frames), torch.zeros(len(x)))
    expected = benchmarks.Benchmark(
        SNNTorchModel(net),
        torch.utils.data.DataLoader(data, batch_size=len(x)),
        [],
        [lambda outputs: outputs.mean(1).argmax(-1)],
        [
            [static.ParameterCount, static.ConnectionSparsity],
            [workload.ActivationSparsity, workload.SynapticOperations],
        ],
    ).run(quiet=True)
    metrics = neurobench(network, snn, x, steps=STEPS)
    # Theirs has other numbers in its neurons than ours; the weights are the same.
    own = [leaf for n in snn.neurons.values() for leaf in jax.tree.leaves(n)]
    assert metrics["ParameterCount"] - len(own) == expected["ParameterCount"]
    assert metrics["ConnectionSparsity"] == expected["ConnectionSparsity"] == 0
    np.testing.assert_allclose(
        metrics["ActivationSparsity"], expected["ActivationSparsity"], rtol=1e-6
    )
    counts = metrics["SynapticOperations"]
    for name, count in expected["SynapticOperations"].items():
        np.testing.assert_allclose(counts[name], count, rtol=1e-6, err_msg=name)
        assert count > 0
