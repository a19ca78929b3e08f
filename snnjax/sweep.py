"""`sweep`: one network at several T, as a table and a figure.

For each T it converts, counts right answers on labeled examples, and measures spikes
and energy: the loop that comes before the choice of T, code and levels.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from snnjax._checks import check_examples, check_share
from snnjax._text import Table, shown_as_table
from snnjax.capture.capture import sites
from snnjax.conversion.convert import convert
from snnjax.measures.costs import Energy, energy
from snnjax.measures.metrics import Measures, accuracy, measure
from snnjax.simulation.simulate import latency, spiking
from snnjax.snn import SNN

__all__ = ["Point", "Sweep", "sweep"]

MEASURED = 100  # examples whose spikes and operations are counted
AT_A_TIME = 250  # examples that are simulated together


class Point(NamedTuple):
    """A conversion for one T.

    Attributes:
        snn: the spiking network.
        accuracies: 0..1, after each of the T steps, on all examples.
        latency: steps until the answer, T + depth x wait.
        measures: on the first 100 examples.
        energy: three estimates.
    """

    snn: SNN
    accuracies: np.ndarray
    latency: int
    measures: Measures
    energy: Energy


@shown_as_table
class Sweep(NamedTuple):
    """The points of `sweep`, which ``print`` shows as a table.

    Attributes:
        ann: accuracy of the ANN, 0..1, on the same examples.
        points: in the order of ``steps``.
    """

    ann: float
    points: tuple[Point, ...]

    def cheapest(self, lost: float = 0.01) -> Point:
        """The point of fewest spikes whose accuracy is at most so far below the ANN's.

        Args:
            lost: difference of the accuracies of ANN and SNN, 0.01 for one point.

        Raises:
            ValueError: every point loses more, or `lost` is not in 0 .. 1.
        """
        check_share("lost", lost)
        limit = lost + 1e-6  # accuracies have the rounding errors of float32
        close = [p for p in self.points if self.ann - p.accuracies[-1] <= limit]
        if not close:
            losses = (self.ann - p.accuracies[-1] for p in self.points)
            raise ValueError(
                f"every point loses more than {lost:g}, the best of them "
                f"{min(losses):.3g}; allowed: a larger loss, or a sweep with more "
                "steps or code=snnjax.codes.radix()"
            )
        return min(close, key=lambda point: float(point.measures.spikes))

    def _table(self) -> Table:
        head = "T wait latency accuracy_% lost spikes energy_% with_memory_%".split()
        rows = [tuple(name.replace("_", " ") for name in head)]
        for snn, accuracies, steps, measures, estimates in self.points:
            percent = 100 * accuracies[-1]
            rows.append(
                (
                    *(str(number) for number in (snn.steps, snn.wait, steps)),
                    f"{percent:.1f}",
                    f"{100 * self.ann - percent:.1f}",
                    f"{float(measures.spikes):.2f}",
                    *(f"{100 * e.spiking / e.ann:.0f}" for e in estimates[:2]),
                )
            )
        below = (
            f"ANN {100 * self.ann:.1f} %; energy in percent of the ANN's, by "
            "operations and with memory\n"
            f"spikes and energy of the first {MEASURED} examples"
        )
        return Table(rows, below=below)

    def figure(self) -> Any:
        """Accuracy against latency and against spikes, a figure of matplotlib.

        Raises:
            ImportError: matplotlib is missing.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError:
            raise ImportError(
                "a figure needs matplotlib; pip install matplotlib"
            ) from None
        figure = Figure(figsize=(8, 3.2), layout="constrained")
        axes = figure.subplots(1, 2, sharey=True)
        percent = [100 * point.accuracies[-1] for point in self.points]
        spikes = [float(point.measures.spikes) for point in self.points]
        latencies = [point.latency for point in self.points]
        names = "latency, steps", "spikes per neuron"
        for ax, values, name in zip(axes, (latencies, spikes), names, strict=True):
            ax.axhline(100 * self.ann, color="0.6", linewidth=1)
            ax.plot(values, percent, "o-")
            for point, value, height in zip(self.points, values, percent, strict=True):
                place = {"xytext": (4, -12), "textcoords": "offset points"}
                ax.annotate(f"T = {point.snn.steps}", (value, height), **place)
            ax.margins(0.15)
            ax.set_xlabel(name)
        axes[0].set_ylabel("accuracy %")
        axes[0].annotate("ANN", (min(latencies), 100 * self.ann), va="bottom")
        return figure


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

    Returns:
        `Sweep`: prints as a table; ``figure()`` draws it; ``points`` have the SNNs.

    Raises:
        ValueError: no steps; labels of another length; and as `snnjax.convert`.

    >>> import jax, snnjax
    >>> def fn(w, x):
    ...     return jax.nn.relu(jax.nn.relu(x @ w["a"]) @ w["b"]) @ w["c"]
    >>> keys = iter(jax.random.split(jax.random.key(0), 4))
    >>> shapes = {"a": (8, 32), "b": (32, 32), "c": (32, 4)}
    >>> w = {n: jax.random.normal(next(keys), s) / 4 for n, s in shapes.items()}
    >>> x = jax.random.normal(next(keys), (256, 8))
    >>> labels, code = fn(w, x).argmax(-1), snnjax.codes.radix()
    >>> result = sweep(fn, w, x, x, labels, steps=(2, 4), code=code)
    >>> print(result)
    T  wait  latency  accuracy %  lost  spikes  energy %  with memory %
    2  1     4        87.5        12.5  0.44    25        73
    4  1     6        98.0        2.0   0.74    30        107
    ANN 100.0 %; energy in percent of the ANN's, by operations and with memory
    spikes and energy of the first 100 examples
    >>> result.cheapest(lost=0.1).snn.steps
    4
    """
    check_examples(x)
    steps = tuple(np.atleast_1d(steps).tolist())
    if not steps:
        raise ValueError("steps is empty; allowed: one or more numbers >= 1")
    labels, count = np.asarray(labels), len(jax.tree.leaves(x)[0])
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"labels are {labels.dtype} {list(labels.shape)}; allowed: a whole number "
            f"for each of the {count} examples of x, [{count}], e.g. "
            "labels.astype(int), or labels.argmax(-1) of one-hot ones"
        )

    def part(start: int, size: int) -> Any:
        return jax.tree.map(lambda leaf: leaf[start : start + size], x)

    def accuracies_of(run: Callable) -> np.ndarray:
        starts = range(0, count, AT_A_TIME)
        outputs = [run(part(start, AT_A_TIME)) for start in starts]
        return np.asarray(accuracy(jnp.concatenate(outputs, 1), labels))

    network = sites(fn, params, part(0, 1))
    outputs = jax.eval_shape(fn, params, part(0, 1))
    if len(getattr(outputs, "shape", ())) != 2:
        raise ValueError(
            f"fn returns {outputs}; allowed: one array [B, classes], whose largest "
            "element is the answer"
        )
    # `accuracy` stays outside of jit, where it refuses labels that are no classes.
    of_ann, of_snn = jax.jit(fn), jax.jit(spiking(fn))
    (ann,) = accuracies_of(lambda x: of_ann(params, x)[None])
    points = []
    for number in steps:
        snn = convert(fn, params, images, steps=number, **options)
        accuracies = accuracies_of(functools.partial(of_snn, snn))
        measures = measure(fn, snn, part(0, MEASURED), params=params)
        steps_of_answer = latency(network, steps=number, wait=snn.wait or 0)
        points.append(
            Point(snn, accuracies, steps_of_answer, measures, energy(measures))
        )
    return Sweep(float(ann), tuple(points))
