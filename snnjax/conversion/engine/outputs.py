"""The outputs of an SNN beside those of its ANN: error and spikes of each image.

    e[n] = mean over columns k of (y_snn[n, k] - y_ann[n, k])^2 / s[k]^2

y_snn is the value after T steps, and s the size of a column (``columns.py``). Of
several outputs e is the mean.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from snnjax import sharding
from snnjax._arrays import by_numpy_or_xla, wide_dtype
from snnjax._checks import all_are_finite, check_finite
from snnjax.calibrators.running import answer
from snnjax.conversion.engine.calibration import Boundary, Calibration
from snnjax.conversion.engine.columns import column_sizes, column_squares
from snnjax.snn import check_weights


class Squares(NamedTuple):
    """`column_squares` of y_snn - y_ann and of y_ann, [N, K]."""

    missing: Any
    size: Any


def image_errors(squares: Sequence[Squares], images: Any) -> np.ndarray:
    """e[n] of these images, [n].

    Args:
        squares: of each output that has an error; may be empty.
        images: a mask [N] or a slice.

    >>> squares = Squares(np.array([[1.0], [2], [3]]), np.array([[4.0], [4], [4]]))
    >>> print(image_errors([squares], slice(2)))
    [0.25 0.5 ]
    """
    errors = []
    for missing, size in squares:
        # Squares that float32 does not hold give NaN, which the caution then names.
        with np.errstate(invalid="ignore"):
            size_of_columns = column_sizes(size[images].sum(0), len(size[images]))
            errors.append((missing[images] / size_of_columns).mean(1))
    # Outputs without an error are as they are in the ANN.
    return np.mean(errors, axis=0) if errors else np.zeros(1)


def output_squares(calibration: Calibration, boundary: Boundary) -> list[Squares]:
    """How far the outputs of the SNN are from those of the ANN.

    Outputs that are no floats, or do not depend on x, do not count. The outputs of one
    micro-batch are held at a time: those of a language model are large.

    Raises:
        ValueError: an output of the ANN is not finite.
    """
    network = calibration.network
    squares: list[list[Squares]] = [[] for _ in network.outputs]
    ann_stage = calibration.run_ann(-1, boundary.activations)
    snn_stage = calibration.run_snn(-1, boundary.spikes, boundary.params)
    for ann_results, snn_results in zip(ann_stage, snn_stage, strict=True):
        _check_outputs(calibration, ann_results.outputs)
        answers = _answers(calibration, snn_results.outputs)
        for number, exact in enumerate(ann_results.outputs):
            has_error = network.outputs[number] in network.dependent
            if has_error and jnp.issubdtype(exact.dtype, jnp.floating):
                squares[number].append(_squares(answers[number], exact))
    joined = []
    for squares_of_batches in filter(None, squares):
        parts = sharding.gathered(squares_of_batches, calibration.batch_sharding)
        missing = np.concatenate([part.missing for part in parts])
        size = np.concatenate([part.size for part in parts])
        joined.append(Squares(missing, size))
    return joined


def _check_outputs(calibration: Calibration, outputs: Sequence[jax.Array]) -> None:
    """Raise unless the ANN's outputs of a micro-batch are finite."""
    names = calibration.network.output_names()
    for name, output in zip(names, outputs, strict=True):
        if all_are_finite(output):
            continue
        check_weights(calibration.snn.params)  # names the weights that are the cause
        label = f" {name!r}" if name else ""
        check_finite(f"the outputs{label} of the network", [output])


def _answers(calibration: Calibration, outputs: Sequence[jax.Array]) -> list[jax.Array]:
    """The outputs of the SNN after T steps, for a micro-batch."""
    answers = []
    for variable, output in zip(calibration.network.outputs, outputs, strict=True):
        if variable in calibration.streams:
            output = answer(calibration.steps, calibration.snn.code, output)
        answers.append(output)
    return answers


@by_numpy_or_xla
def _squares(output: Any, exact: Any) -> Squares:
    """How far outputs [B, ..., K] of the SNN are from those of the ANN."""
    exact = exact.astype(wide_dtype(exact))
    missing = exact - output.astype(exact.dtype)
    return Squares(missing=column_squares(missing), size=column_squares(exact))


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
