"""NeuroBench's metrics: those of `measure`, and equal to those of its own harness."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import NETWORKS, conv, eighths

import snnjax
from snnjax.measures import neurobench

STEPS = 6


def test_graded_spikes_are_multiply_adds_and_all_numbers_are_for_json():
    fn, params, x, _ = NETWORKS["dense"]
    neuron = snnjax.integrate_and_fire(levels=(0, 3), threshold=0.25)
    snn = snnjax.init(fn, params, x, model=neuron)
    measures = snnjax.measure(fn, snn, x, params=params, steps=STEPS, wait=1)
    metrics = neurobench(fn, snn, x, steps=STEPS, wait=1)
    assert json.loads(json.dumps(metrics)) == metrics
    spikes = float(measures.synaptic_operations)
    analog = STEPS * float(measures.input_macs)
    dense = STEPS * float(measures.macs)
    operations = {"Effective_MACs": analog + spikes, "Effective_ACs": 0, "Dense": dense}
    assert metrics["SynapticOperations"] == pytest.approx(operations)
    assert metrics["ParameterCount"] == sum(map(np.size, jax.tree.leaves(snn)))
    assert metrics["Footprint"] == 4 * metrics["ParameterCount"]


def test_a_network_without_weights_has_no_sparse_connections():
    x = jnp.ones((1, 2))
    fn = lambda p, x: jax.nn.relu(x * 2)  # noqa: E731
    metrics = neurobench(fn, snnjax.init(fn, {}, x), x, steps=2)
    assert metrics["ConnectionSparsity"] == metrics["SynapticOperations"]["Dense"] == 0


def network(p, x):
    """Convolution, dense layer, readout."""
    h = jax.nn.relu(conv(x, p["conv"])).transpose(0, 3, 1, 2)
    return jax.nn.relu(h.reshape(len(x), -1) @ p["dense"]) @ p["readout"]


@pytest.mark.filterwarnings("ignore")  # those of another library's imports
@pytest.mark.parametrize("leak, reset", [(None, "subtract"), (0.75, "zero")])
def test_the_metrics_are_those_of_neurobench(leak, reset):
    """Where neither weights nor pixels are zero."""
    snntorch = pytest.importorskip("snntorch")
    torch = pytest.importorskip("torch")
    benchmarks = pytest.importorskip("neurobench.benchmarks")
    from neurobench.metrics import static, workload
    from neurobench.models import SNNTorchModel

    threshold = 2027 / 2048  # no potential is at it
    x = eighths(3, (5, 6, 6, 2)) + 1 / 32
    kernel = eighths(0, (3, 3, 2, 4)) + 1 / 32
    draw = np.random.default_rng(1).normal
    dense = np.float32(draw(size=(4 * 6 * 6, 8)) / 4)
    readout = eighths(2, (8, 3)) + 1 / 32
    p = {"conv": kernel, "dense": dense, "readout": readout}
    model = snnjax.integrate_and_fire(threshold=threshold)
    if leak is not None:
        model = snnjax.lif(leak=leak, reset=reset, threshold=threshold)
    snn = snnjax.init(network, p, x, model=model)
    metrics = neurobench(network, snn, x, steps=STEPS)

    class Step(torch.nn.Sequential):
        def forward(self, x):
            return super().forward(x), None

    def neurons():
        beta = 1.0 if leak is None else leak
        return snntorch.Leaky(beta, threshold, init_hidden=True, reset_mechanism=reset)

    nn = torch.nn
    layers = [
        nn.Conv2d(2, 4, 3, padding=1, bias=False),
        neurons(),
        nn.Flatten(),
        nn.Linear(4 * 6 * 6, 8, bias=False),
        neurons(),
        nn.Linear(8, 3, bias=False),
    ]
    # A spike of snnTorch is 1: the next weights take the threshold over.
    weights = {
        0: kernel.transpose(3, 2, 0, 1),
        3: threshold * dense.T,
        5: threshold * readout.T,
    }
    for layer, array in weights.items():
        layers[layer].weight.data = torch.tensor(np.array(array))
    frames = np.repeat(np.moveaxis(np.array(x), -1, 1)[:, None], STEPS, axis=1)
    data = torch.utils.data.TensorDataset(torch.tensor(frames), torch.zeros(len(x)))
    static_metrics = [static.ParameterCount, static.ConnectionSparsity]
    workload_metrics = [workload.ActivationSparsity, workload.SynapticOperations]
    expected = benchmarks.Benchmark(
        SNNTorchModel(Step(*layers)),
        torch.utils.data.DataLoader(data, batch_size=len(x)),
        [],
        [lambda outputs: outputs.mean(1).argmax(-1)],
        [static_metrics, workload_metrics],
    ).run(quiet=True)
    # NeuroBench counts no numbers of neurons; the weights are the same.
    expected["ParameterCount"] += len(jax.tree.leaves(snn.neurons))
    assert expected["ConnectionSparsity"] == 0 < expected["ActivationSparsity"]
    for name, number in expected.items():
        assert metrics[name] == pytest.approx(number, rel=1e-6), name
