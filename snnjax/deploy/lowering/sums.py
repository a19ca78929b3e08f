"""Variables of a captured network as sums of nodes, while its layers are built.

    variable = sum_i scale_i node_i + constant

A scale is multiplied into the weights that follow, or becomes a `Scale`, which
``products.py`` multiplies into the weights before it. A constant becomes the bias of
the next population. For example, the current of the neurons in

    relu(g * (x @ w) + b + x)        g a scale, b a bias

is the sum of the terms (g, "w") and (1, "input"), and its constant is b.

``order`` says which element of the (flat) variable each element of a node is.
Transpose, reshape and flatten change the order and need no node.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from snnjax._trees import distinct
from snnjax.deploy.lowering.values import Flatten, Node, Scale
from snnjax.network.equations import Network, Values


class Term(NamedTuple):
    """``scale`` times a node's output, of a shape that broadcasts to it."""

    node: str
    scale: np.ndarray = np.ones(())


class Sum(NamedTuple):
    """A variable without its constant.

    Attributes:
        terms: outputs of nodes, all of one shape, [N] or [C, H, W].
        order: int, in that shape: the index of each element in the flat variable.
    """

    terms: tuple[Term, ...]
    order: np.ndarray


class NoLayer(Exception):
    """No layer computes an operation: the reason, and the remedy."""


class Builder:
    """The nodes of a network, added equation by equation.

    Attributes:
        nodes: name -> node, in order of execution; also nodes that no output needs.
        values: variable -> its value while x is 0 and no neuron fires. That is the
            variable's constant, if it depends on x; the biases of its nodes are not
            part of it.
        sums: variable -> Sum, for variables that depend on x.
    """

    def __init__(self, network: Network, values: Values):
        self.network, self.values = network, dict(values)
        self.nodes: dict[str, Any] = {}
        self.sums: dict[int, Sum] = {}

    def add(self, node: Node) -> str:
        """Add a node; return its name, made unique. Those of sites are taken."""
        sites = [site.name for site in self.network.sites]
        name = distinct([*sites, *self.nodes, node.name])[-1]
        self.nodes[name] = dataclasses.replace(node, name=name)
        return name

    def scaled(self, term: Term, shape: tuple[int, ...], path: str) -> str:
        """The name of a node whose output is the term, its scale included."""
        # A scale of 1 is no node, even if it has the shape of all neurons.
        if (term.scale == 1).all():
            return term.node
        name = join(path, "scale")
        return self.add(Scale(name, (term.node,), term.scale, None, shape))

    def received(self, v: int, path: str) -> tuple[tuple[str, ...], np.ndarray]:
        """Names of the nodes that sum to a variable, and its constant in their order.

        New nodes are named after ``path``.
        """
        terms, order = self.sums[v]
        constant = numbers(self.values[v]).ravel()[order]
        return tuple(self.scaled(t, order.shape, path) for t in terms), constant

    def absorb_constant(self, v: int, path: str) -> None:
        """Move the variable's constant into a node."""
        if numbers(self.values[v]).any():
            (first, *others), constant = self.received(v, path)
            path, bias = join(path, "bias"), per_channel(constant)
            copy = Scale(path, (first,), np.ones(()), bias, constant.shape)
            terms = tuple(Term(name) for name in (self.add(copy), *others))
            self.sums[v] = self.sums[v]._replace(terms=terms)
            self.values[v] = np.zeros(self.network.avals[v].shape)

    def groups(self, total: Sum, path: str) -> list[tuple[list[str], np.ndarray]]:
        """Terms with equal scales together: names of nodes, and the scale, [] or [C].

        Scales that differ within a channel become nodes.
        """
        groups: list[tuple[list[str], np.ndarray]] = []
        for term in total.terms:
            if not is_channelwise(term.scale):
                term = Term(self.scaled(term, total.order.shape, path))
            same = [g for g, other in groups if np.array_equal(other, term.scale)]
            if same:
                same[0].append(term.node)
            else:
                groups.append(([term.node], term.scale))
        return groups

    def flatten(self, name: str, shape: Sequence[int]) -> str:
        """The name of a node that flattens another one."""
        # Two layers that read one image share its flattening.
        for node in self.nodes.values():
            if isinstance(node, Flatten) and node.sources == (name,):
                return node.name
        return self.add(Flatten(join(name, "flatten"), (name,), tuple(shape)))


def times(total: Sum, factor: np.ndarray | float) -> Sum:
    """A sum times a constant that broadcasts to its nodes."""
    terms = tuple(t._replace(scale=compact(t.scale * factor)) for t in total.terms)
    return total._replace(terms=terms)


def compact(factor: Any) -> np.ndarray:
    """The same factor: a scalar if it is uniform, [C, 1, 1] if it is per channel."""
    factor = np.asarray(factor, np.float64)
    if factor.size and (factor == factor.flat[0]).all():
        return factor.flat[0] * np.ones(())
    if factor.ndim == 3 and (factor == factor[:, :1, :1]).all():
        return factor[:, :1, :1]
    return factor


def is_channelwise(factor: np.ndarray) -> bool:
    """Whether a factor is one number per channel, or one of a vector's elements."""
    return factor.ndim < 3 or factor.shape[1:] == (1, 1)


def per_channel(constant: np.ndarray) -> np.ndarray:
    """A constant [N] as it is, one of [C, H, W] as [C].

    Raises:
        NoLayer: it differs between the pixels of a channel.
    """
    if constant.ndim < 3:
        return constant
    channels = constant.mean(axis=(1, 2), keepdims=True)
    if (np.abs(constant - channels) > 1e-5 * np.abs(constant).max()).any():
        raise NoLayer(
            "its bias would differ between pixels, and a layer has one per channel",
            "use constants, thresholds and leaks per channel (also before a padded "
            "convolution)",
        )
    return channels[:, 0, 0]


def numbers(value: Any) -> np.ndarray:
    """An array in double precision, in which scales are multiplied."""
    return np.asarray(jax.device_get(value)).astype(np.float64)


def join(path: str, name: str) -> str:
    """A name below a path, which may be empty."""
    return f"{path}/{name}" if path else name


# ------------------------------------------------------------------------- orders


def flat_indices(shape: Sequence[int], axes: Sequence[int]) -> np.ndarray:
    """Flat indices of a variable, its ``axes`` in that order, all others of size 1."""
    index = np.arange(math.prod(shape)).reshape(tuple(shape))
    rest = [a for a in range(len(shape)) if a not in axes]
    return index.transpose(*axes, *rest).reshape([shape[a] for a in axes])


def image_axes(
    total: Sum,
    shape: Sequence[int],
    candidates: Iterable[tuple[int, ...]] | None = None,
) -> tuple[int, ...]:
    """The variable's axes that are the channels, rows and columns of its nodes.

    Args:
        total: the variable's sum.
        shape: of the variable; the axis of its one example, of size 1, may be in it.
        candidates: choices of axes, the first that fits is taken; None: all.

    Raises:
        NoLayer: the nodes are vectors, or have none of these axes.
    """
    if total.order.ndim == 1:
        raise NoLayer(
            f"it needs an image, and {tuple(shape[1:])} is a vector here; no layer "
            "unflattens a vector",
            "keep [H, W, C] from the input to the last operation on images",
        )
    # Axis 0 comes last: it counts examples as a rule, of which there is one, and must
    # not stand for rows or columns if another axis of size 1 can.
    every = [*itertools.permutations([*range(1, len(shape)), 0], 3)]

    def fits(axes: tuple[int, ...]) -> bool:
        sizes = tuple(shape[a] for a in axes)
        return sizes == total.order.shape and np.array_equal(
            flat_indices(shape, axes), total.order
        )

    axes = next(filter(fits, every if candidates is None else candidates), None)
    if axes is not None:
        return axes
    if any(map(fits, every)):
        raise NoLayer(
            f"its channels, rows and columns are other axes of {tuple(shape[1:])} than "
            "those of the images before it, and no layer transposes",
            "keep one order of axes, mix channels only, and pool height and width only",
        )
    raise NoLayer(
        f"the rows, columns or channels of {tuple(shape[1:])} were flipped or "
        "permuted, and no layer does that",
        "reorder the images before fn, or the weights instead of the activations",
    )
