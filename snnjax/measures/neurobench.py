"""The counts of `snnjax.measure` under the names of NeuroBench.

    Footprint            bytes of all arrays of the SNN
    ParameterCount       number of their entries
    ConnectionSparsity   zeros among the weights, 0..1, to four decimals
    ActivationSparsity   1 - spikes / (neurons x steps), 0..1
    SynapticOperations   per image: Dense counts every connection at every step,
                         Effective_ACs those that spikes reach, if all of them have
                         level 1 or -1, Effective_MACs those that other inputs reach

NeuroBench itself leaves out weights and pixels that are 0; here they count. To it
averaged spikes, as after pooling, cause MACs; here ACs, since the next weights can
absorb the factor. To both an analog input counts at every step, although the simulation
computes a constant one once. MembraneUpdates needs the potential at every step, and is
left out.

Source: Yik et al., *The neurobench framework for benchmarking neuromorphic computing
algorithms and systems*, Nature Communications 16, 2025; definitions of its version 2.3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from snnjax._checks import check_on_host
from snnjax.measures.metrics import measure
from snnjax.snn import SNN, check_snn


def neurobench(
    fn: Callable,
    snn: SNN,
    x: chex.ArrayTree,
    *,
    steps: int | None = None,
    wait: int | None = None,
) -> dict[str, Any]:
    """NeuroBench's metrics of an SNN, ready for ``json.dumps``; not inside ``jit``.

    The module's documentation lists the metrics and the differences from NeuroBench.
    Its ClassificationAccuracy is ``snnjax.accuracy(outputs, labels)[-1]``.

    Args:
        fn, snn, x, steps, wait: as for `snnjax.measure`.

    Returns:
        name -> number; averages are over the images x.

    Raises:
        ValueError: as `snnjax.measure`.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn = lambda p, x: jax.nn.relu(x @ p[0]) @ p[1]
    >>> params = [jnp.array([[1.0, 0.0]]), jnp.ones((2, 3))]
    >>> snn = snnjax.init(fn, params, jnp.ones((1, 1)),
    ...                   model=snnjax.integrate_and_fire())
    >>> metrics = neurobench(fn, snn, jnp.array([[0.5]]), steps=4)
    >>> metrics["ConnectionSparsity"], metrics["ActivationSparsity"]
    (0.125, 0.75)
    >>> metrics["SynapticOperations"]
    {'Effective_MACs': 8.0, 'Effective_ACs': 6.0, 'Dense': 32.0}
    """
    check_snn(snn)
    check_on_host("snnjax.measures.neurobench", snn=snn, x=x)
    measures = measure(fn, snn, x, params=snn.params, steps=steps, wait=wait)
    operations, steps = float(measures.synaptic_operations), int(measures.steps)
    # If all spikes have level 1 or -1, each operation is an addition. Graded spikes
    # need more additions; for unknown levels their number is NaN, which equals nothing.
    if measures.synaptic_additions == measures.synaptic_operations:
        spike_macs, spike_additions = 0.0, operations
    else:
        spike_macs, spike_additions = operations, 0.0
    input_steps = snn.code.constant_steps(steps)  # at which the constant input comes
    analog_macs = input_steps * float(measures.input_macs)
    analog_macs += float(measures.operator_macs)
    arrays = [jnp.asarray(leaf) for leaf in jax.tree.leaves(snn)]
    sparsity = measures.zero_weights / jnp.maximum(1, measures.weights)
    return {
        "Footprint": sum(array.nbytes for array in arrays),
        "ParameterCount": sum(array.size for array in arrays),
        "ConnectionSparsity": round(float(sparsity), 4),
        "ActivationSparsity": 1 - float(measures.firing_rate),
        "SynapticOperations": {
            "Effective_MACs": analog_macs + spike_macs,
            "Effective_ACs": spike_additions,
            "Dense": steps * float(measures.macs),
        },
    }
