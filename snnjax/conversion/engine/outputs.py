"""The outputs of an SNN beside those of its ANN: error and spikes of each image.

    e[n] = sum |y_snn[n] - y_ann[n]|^2 / mean over images of sum |y_ann|^2

y_snn is the value after T steps. Of several outputs e is the mean.
"""

import functools
import operator
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from snnjax._arrays import by_numpy_or_xla, namespace, wide_dtype
from snnjax._checks import check_finite
from snnjax.calibrators.running import answer
from snnjax.conversion.engine.calibration import Boundary, Calibration


def ann_outputs(
    calibration: Calibration, boundary: Boundary
) -> list[tuple[jax.Array, ...]]:
    """The outputs of the ANN for each micro-batch; raise unless all are finite."""
    last_stage = calibration.run_ann(-1, boundary.activations)
    outputs = [results.outputs for results in last_stage]
    for number, name in enumerate(calibration.network.output_names()):
        label = f" {name!r}" if name else ""
        batches = [batch_outputs[number] for batch_outputs in outputs]
        check_finite(f"the outputs{label} of the network", batches)
    return outputs


def output_error(
    calibration: Calibration,
    boundary: Boundary,
    exact_outputs: Sequence[tuple[jax.Array, ...]],
) -> float:
    """The mean of e[n] over all images.

    Outputs that are no floats, or do not depend on x, do not count.
    """
    answers = _snn_answers(calibration, boundary)
    pairs = []
    for number, variable in enumerate(calibration.network.outputs):
        if variable in calibration.network.dependent:
            snn_parts = [batch[number] for batch in answers]
            ann_parts = [batch[number] for batch in exact_outputs]
            pairs.append((snn_parts, ann_parts))
    return float(_mean_error(pairs))


def _snn_answers(calibration: Calibration, boundary: Boundary) -> list[list[jax.Array]]:
    """The outputs of the SNN after T steps, for each micro-batch."""
    variables = calibration.network.outputs
    streams = calibration.streams
    answers = []
    for results in calibration.run_snn(-1, boundary.spikes, boundary.params):
        batch_answers = []
        for variable, output in zip(variables, results.outputs, strict=True):
            if variable in streams:
                output = answer(calibration.steps, calibration.snn.code, output)
            batch_answers.append(output)
        answers.append(batch_answers)
    return answers


def spikes_per_neuron(calibration: Calibration, boundary: Boundary) -> float:
    """The spikes of either sign that a neuron sends on average for an image."""
    total = float(_total(boundary.spike_counts))
    return total / (calibration.neuron_count * sum(calibration.batch_sizes))


@by_numpy_or_xla
def _total(counts: list[list[jax.Array]]) -> Any:
    total = 0.0
    for batch in counts:
        for count in batch:
            total = total + count.sum()
    return total


@by_numpy_or_xla
def _mean_error(pairs: list[tuple[list[jax.Array], list[jax.Array]]]) -> Any:
    """The mean over outputs of |y_snn - y_ann|^2 / |y_ann|^2, both over all images."""
    errors: list[Any] = []
    for snn_parts, ann_parts in pairs:
        xp = namespace(ann_parts[0])
        exact = xp.concatenate(ann_parts)
        if not jnp.issubdtype(exact.dtype, jnp.floating):
            continue
        exact = exact.astype(wide_dtype(exact))
        missing = exact - xp.concatenate(snn_parts).astype(exact.dtype)
        size = xp.sum(exact**2)
        errors.append(xp.sum(missing**2) / xp.where(size > 0, size, 1))
    return functools.reduce(operator.add, errors, 0.0) / max(1, len(errors))
