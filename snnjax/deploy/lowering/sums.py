"""Variables of a captured network as sums of nodes, while its layers are built.

    variable = sum_i scale_i node_i + constant

A scale is multiplied into the weights that follow. Where no weights follow, it becomes
a `Scale`, which ``products.py`` multiplies into the weights before it. A constant
becomes the bias of the next population. For example, the current of the neurons in

    relu(g * (x @ w) + b + x)        g a scale, b a bias

is the sum of the terms (g, "w") and (1, "input"), and its constant is b.

``order`` says which element of the flat variable each element of a node is. Transpose,
reshape and flatten change the order and need no node.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from snnjax._trees import distinct
from snnjax.deploy.lowering.values import Flatten, Node, Scale, Shape
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
    """No layer computes an operation. The arguments are the reason and the remedy."""


class Builder:
    """The nodes of a network, added equation by equation.

    Attributes:
        nodes: name -> node, in order of execution. Some may be of use to no output.
        values: variable -> its value while x is 0 and no neuron fires. For a variable
            that depends on x, this is its constant, without the biases of its nodes.
        sums: variable -> Sum, for variables that depend on x.
    """

    def __init__(self, network: Network, values: Values):
        self.network = network
        self.values = dict(values)
        self.nodes: dict[str, Any] = {}
        self.sums: dict[int, Sum] = {}

    def add(self, node: Node) -> str:
        """Add a node and return its name, made unlike those of nodes and sites."""
        names = [site.name for site in self.network.sites]
        names.extend(self.nodes)
        names.append(node.name)
        name = distinct(names)[-1]
        self.nodes[name] = dataclasses.replace(node, name=name)
        return name

    def scaled(self, term: Term, shape: Shape, path: str) -> str:
        """The name of a node whose output is the term with its scale."""
        # A scale of 1 is no node, even if it has the shape of all neurons.
        if (term.scale == 1).all():
            return term.node
        node = Scale(
            join(path, "scale"),
            sources=(term.node,),
            weight=term.scale,
            bias=None,
            shape=shape,
        )
        return self.add(node)

    def add_scaled_sum(self, v: int, path: str) -> tuple[tuple[str, ...], np.ndarray]:
        """Add what scales the terms of a variable; the nodes' names and its constant.

        The outputs of these nodes and the constant sum to the variable. The constant
        has the order of the nodes. New nodes are named after ``path``.
        """
        terms, order = self.sums[v]
        names = []
        for term in terms:
            name = self.scaled(term, order.shape, path)
            names.append(name)
        constant = numbers(self.values[v]).ravel()
        return tuple(names), constant[order]

    def absorb_constant(self, variable: int, path: str) -> None:
        """Move the variable's constant into the bias of a node."""
        if not numbers(self.values[variable]).any():
            return
        names, constant = self.add_scaled_sum(variable, path)
        # The first node goes through a new one, which adds the constant.
        with_bias = Scale(
            join(path, "bias"),
            sources=names[:1],
            weight=np.ones(()),
            bias=per_channel(constant),
            shape=constant.shape,
        )
        names = (self.add(with_bias), *names[1:])
        # The terms have no scale: `received` has made nodes of their scales.
        terms = tuple(Term(name) for name in names)
        self.sums[variable] = self.sums[variable]._replace(terms=terms)
        self.values[variable] = np.zeros(self.network.avals[variable].shape)

    def groups(self, total: Sum, path: str) -> list[tuple[list[str], np.ndarray]]:
        """The terms grouped by their scale, as names of nodes and the scale, [] or [C].

        Scales that differ within a channel become nodes.
        """
        groups: list[tuple[list[str], np.ndarray]] = []
        for term in total.terms:
            if not is_channelwise(term.scale):
                term = Term(self.scaled(term, total.order.shape, path))
            for names, scale in groups:
                if np.array_equal(scale, term.scale):
                    names.append(term.node)
                    break
            else:
                groups.append(([term.node], term.scale))
        return groups

    def flatten(self, name: str, shape: Sequence[int]) -> str:
        """The name of a node that flattens the node ``name`` of this shape."""
        # Two layers that read one image share its flattening.
        for node in self.nodes.values():
            if isinstance(node, Flatten) and node.sources == (name,):
                return node.name
        node = Flatten(
            join(name, "flatten"),
            sources=(name,),
            shape=tuple(shape),
        )
        return self.add(node)


def times(total: Sum, factor: np.ndarray | float) -> Sum:
    """A sum times a constant that broadcasts to its nodes."""
    terms = []
    for term in total.terms:
        scale = compact(term.scale * factor)
        terms.append(term._replace(scale=scale))
    return total._replace(terms=tuple(terms))


def compact(factor: Any) -> np.ndarray:
    """The same factor: a scalar if it is uniform, [C, 1, 1] if it is per channel."""
    factor = np.asarray(factor, np.float64)
    if factor.size == 0:
        return factor
    first = factor.flat[0]
    if (factor == first).all():
        return np.asarray(first)
    if factor.ndim == 3:
        channels = factor[:, :1, :1]
        if (factor == channels).all():
            return channels
    return factor


def is_channelwise(factor: np.ndarray) -> bool:
    """Whether a factor is one number per channel, or one of a vector's elements."""
    return factor.ndim < 3 or factor.shape[1:] == (1, 1)


def per_channel(constant: np.ndarray) -> np.ndarray:
    """The constant of vectors [N] as it is, that of images [C, H, W] as [C].

    Raises:
        NoLayer: the constant differs between the pixels of a channel.
    """
    if constant.ndim < 3:
        return constant
    channels = constant.mean(axis=(1, 2), keepdims=True)
    tolerance = 1e-5 * np.abs(constant).max()
    if (np.abs(constant - channels) > tolerance).any():
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
    """Flat indices of a variable along ``axes``, in their order.

    All its other axes have size 1.
    """
    size = math.prod(shape)
    index = np.arange(size).reshape(tuple(shape))
    single_axes = [axis for axis in range(len(shape)) if axis not in axes]
    index = index.transpose(*axes, *single_axes)
    sizes = [shape[axis] for axis in axes]
    return index.reshape(sizes)


def axis_choices(count: int) -> list[tuple[int, ...]]:
    """All choices of three of ``count`` axes, as channels, rows and columns.

    Axis 0 comes last. It usually counts the examples, of which there is one, and must
    not stand for rows or columns if another axis of size 1 can.
    """
    axes = [*range(1, count), 0]
    return list(itertools.permutations(axes, 3))


def image_axes(
    total: Sum,
    shape: Sequence[int],
    candidates: Iterable[tuple[int, ...]] | None = None,
) -> tuple[int, ...]:
    """The variable's axes that are the channels, rows and columns of its nodes.

    Args:
        total: the variable's sum.
        shape: of the variable, which may have an axis of size 1 for its one example.
        candidates: choices of axes, of which the first that fits is taken; None: all.

    Raises:
        NoLayer: the nodes are vectors, or no candidate fits.
    """
    if total.order.ndim == 1:
        raise NoLayer(
            f"it needs an image, and {tuple(shape[1:])} is a vector here; no layer "
            "unflattens a vector",
            "keep [H, W, C] from the input to the last operation on images",
        )

    def fits(axes: tuple[int, ...]) -> bool:
        sizes = tuple(shape[axis] for axis in axes)
        if sizes != total.order.shape:
            return False
        return np.array_equal(flat_indices(shape, axes), total.order)

    all_choices = axis_choices(len(shape))
    for axes in all_choices if candidates is None else candidates:
        if fits(axes):
            return axes
    if any(fits(axes) for axes in all_choices):
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
