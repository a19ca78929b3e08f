"""`sweep`: one network at several T, as a table.

For each T it converts, counts right answers on labeled examples, and measures spikes
and energy: the loop that comes before the choice of T, code and levels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from snnjax._checks import called_as, check_examples, check_on_host
from snnjax._text import Table, shown_as_table
from snnjax._trees import batch_of
from snnjax.conversion.convert import convert
from snnjax.measures.costs import Energy, energy
from snnjax.measures.metrics import Measures, accuracy, measure
from snnjax.network.capture.capture import sites
from snnjax.simulation.simulate import latency, spiking
from snnjax.snn import SNN

__all__ = ["Point", "Sweep", "sweep"]

MEASURED = 100  # examples whose spikes and operations are counted
AT_A_TIME = 250  # examples that are simulated together


class Point(NamedTuple):
    """A conversion for one T.

    Attributes:
        snn: the converted network.
        accuracies: [T], 0..1, after each step, on all examples.
        latency: steps until the answer, T + depth x wait.
        measures: spikes and operations of the first 100 examples.
        energy: of the ANN and the SNN for these examples.
    """

    snn: SNN
    accuracies: np.ndarray
    latency: int
    measures: Measures
    energy: Energy


@shown_as_table
class Sweep(NamedTuple):
    """The points of `sweep`, one for each T; ``print`` shows them as a table."""

    ann: float  # its accuracy, 0..1, on the same examples
    points: tuple[Point, ...]

    def __repr__(self) -> str:
        steps = ", ".join(str(point.snn.steps) for point in self.points)
        return f"Sweep(ann={self.ann:.3g}, points at T = {steps})"

    def _table(self) -> Table:
        head = [
            "T",
            "wait",
            "latency",
            "accuracy %",
            "lost",
            "spikes",
            "energy %",
            "with memory %",
        ]
        rows = [head]
        for point in self.points:
            accuracy = point.accuracies[-1]
            operations = point.energy.operations
            memory = point.energy.memory
            row = [
                str(point.snn.steps),
                str(point.snn.wait),
                str(point.latency),
                f"{100 * accuracy:.1f}",
                f"{100 * (self.ann - accuracy):.1f}",
                f"{float(point.measures.spikes):.2f}",
                f"{100 * operations.spiking / operations.ann:.0f}",
                f"{100 * memory.spiking / memory.ann:.0f}",
            ]
            rows.append(row)
        below = (
            f"ANN {100 * self.ann:.1f} %; energy in percent of the ANN's, by "
            "operations and with memory\n"
            f"spikes and energy of the first {MEASURED} examples"
        )
        return Table(rows, below=below)


@called_as("snnjax.sweep(fn, params, images, x, labels, steps=(2, 4), ...)")
def sweep(
    fn: Callable,
    params: chex.ArrayTree,
    images: chex.ArrayTree,
    x: chex.ArrayTree,
    labels: Any,
    *,
    steps: int | Sequence[int] = (1, 2, 4, 8),
    **options: Any,
) -> Sweep:
    """Convert for several T, and compare accuracy, latency, spikes and energy.

    Args:
        fn, params: the network and its trained parameters.
        images: calibration images [N, ...], without labels.
        x: examples [B, ...] that accuracy is counted on.
        labels: their classes, int [B].
        steps: number of time steps T, or several, each a conversion.
        **options: of `snnjax.convert`, such as code, model, recipe and wait.

    >>> import jax, numpy as np, snnjax
    >>> def fn(w, x):
    ...     return jax.nn.relu(jax.nn.relu(x @ w["a"]) @ w["b"]) @ w["c"]
    >>> draw = np.random.default_rng(0).normal
    >>> shapes = {"a": (8, 32), "b": (32, 32), "c": (32, 4)}
    >>> w = {name: np.float32(draw(size=shape) / 4) for name, shape in shapes.items()}
    >>> x = np.float32(draw(size=(256, 8)))
    >>> labels, code = fn(w, x).argmax(-1), snnjax.codes.radix()
    >>> print(sweep(fn, w, x, x, labels, steps=(2, 4), code=code))
    T  wait  latency  accuracy %  lost  spikes  energy %  with memory %
    2  1     4        81.6        18.4  0.41    25        71
    4  1     6        95.3        4.7   0.70    29        105
    ANN 100.0 %; energy in percent of the ANN's, by operations and with memory
    spikes and energy of the first 100 examples
    """
    check_on_host("snnjax.sweep", params=params, images=images, x=x, labels=labels)
    _check_swapped(x, labels)
    check_examples(x)
    steps_of_points = np.atleast_1d(steps).tolist()
    if not steps_of_points:
        raise ValueError("steps is empty; allowed: one or more numbers >= 1")

    def examples(start: int, count: int) -> chex.ArrayTree:
        return jax.tree.map(lambda leaf: leaf[start : start + count], x)

    def accuracies_after_steps(run: Callable, network: Any) -> np.ndarray:
        """The accuracy after each step, [T], of ``run(network, x) -> outputs``."""
        parts = []
        for start in range(0, batch_of(x), AT_A_TIME):
            part = run(network, examples(start, AT_A_TIME))
            parts.append(part)
        outputs = jnp.concatenate(parts, axis=1)  # [T, B, classes]
        # Outside of jit, where the labels are checked.
        return np.asarray(accuracy(outputs, labels))

    # The outputs of the ANN, with an axis of one step.
    run_ann = jax.jit(lambda params, x: fn(params, x)[None])
    simulate = jax.jit(spiking(fn))
    (ann_accuracy,) = accuracies_after_steps(run_ann, params)
    network_sites = sites(fn, params, examples(0, 1))
    points = []
    for point_steps in steps_of_points:
        snn = convert(fn, params, images, steps=point_steps, **options)
        measures = measure(fn, snn, examples(0, MEASURED), params=params)
        point = Point(
            snn=snn,
            accuracies=accuracies_after_steps(simulate, snn),
            latency=latency(network_sites, steps=point_steps, wait=snn.wait or 0),
            measures=measures,
            energy=energy(measures),
        )
        points.append(point)
    return Sweep(float(ann_accuracy), tuple(points))


def _check_swapped(x: chex.ArrayTree, labels: Any) -> None:
    """Raise if x is one whole number per example, and labels are not."""
    if not isinstance(x, jax.Array | np.ndarray):
        return
    has_form_of_labels = x.ndim == 1 and jnp.issubdtype(x.dtype, jnp.integer)
    if has_form_of_labels and np.ndim(labels) > 1:
        raise ValueError(
            f"x has shape {np.shape(x)} and labels {np.shape(labels)}; allowed: "
            "examples x [B, ...], then labels [B]. Swap the two: snnjax.sweep(fn, "
            "params, images, x, labels)"
        )
