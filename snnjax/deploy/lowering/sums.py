"""Variables of a captured network as sums of nodes, while its layers are built.

    variable = sum_i scale_i node_i + constant

A node's output is a vector [N] or an image [C, H, W]. A scale is multiplied into the
weights that follow. Where no weights follow, it becomes a `Scale`, which
``products.py`` multiplies into the weights before it. A constant becomes the bias of
the next population. For example, the current of the neurons in

    relu(g * (x @ w) + b + x)        g a scale, b a bias

is the sum of the terms (g, "w") and (1, "input"), and its constant is b.

A variable may have another shape than its nodes, and another order of elements. The
``order`` of its sum says at which place of the flattened variable each element of a
node lies. Transpose, reshape and flatten change the order and need no node.
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
    """A scale times the output of a node.

    Attributes:
        node: name of the node.
        scale: of a shape that broadcasts to the output, such as [] or [C, 1, 1].
    """

    node: str
    scale: np.ndarray = np.ones(())


class Sum(NamedTuple):
    """A variable without its constant.

    Attributes:
        terms: scaled outputs of nodes, all of one shape, [N] or [C, H, W].
        order: int, in that shape: the index of each element in the flattened variable.
    """

    terms: tuple[Term, ...]
    order: np.ndarray


class NoLayer(Exception):
    """No layer computes an operation. The arguments are the reason and the remedy."""


class Builder:
    """The nodes of a network, added equation by equation.

    Attributes:
        network: the captured network.
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
        """Add a node and return its name, with a number if the name is taken."""
        # Populations come later, and have the names of their sites.
        names = [site.name for site in self.network.sites]
        names.extend(self.nodes)
        names.append(node.name)
        name = distinct(names)[-1]
        self.nodes[name] = dataclasses.replace(node, name=name)
        return name

    def scaled(self, term: Term, shape: Shape, path: str) -> str:
        """The name of a node of this shape whose output is the scaled term.

        A new node is named after ``path``.
        """
        # A scale of 1 needs no node, even if it has the shape of all neurons.
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
        """A variable as nodes without scales and a constant, which sum to it.

        Nodes that scale a term are added and named after ``path``.

        Returns:
            The names of the nodes; and the constant, [N] or [C, H, W] as the nodes.
        """
        terms, order = self.sums[v]
        names = []
        for term in terms:
            name = self.scaled(term, order.shape, path)
            names.append(name)
        constant = numbers(self.values[v]).ravel()
        return tuple(names), constant[order]

    def absorb_constant(self, variable: int, path: str) -> None:
        """Move the variable's constant into the bias of a node, named after ``path``.

        Raises:
            NoLayer: the constant differs between the pixels of a channel.
        """
        if not numbers(self.values[variable]).any():
            return
        names, constant = self.add_scaled_sum(variable, path)
        # A new node reads the first one and adds the constant.
        with_bias = Scale(
            join(path, "bias"),
            sources=names[:1],
            weight=np.ones(()),
            bias=per_channel(constant),
            shape=constant.shape,
        )
        names = (self.add(with_bias), *names[1:])
        # `add_scaled_sum` has made nodes of the scales.
        terms = tuple(Term(name) for name in names)
        self.sums[variable] = self.sums[variable]._replace(terms=terms)
        self.values[variable] = np.zeros(self.network.avals[variable].shape)

    def groups(self, operand: Sum, path: str) -> list[tuple[list[str], np.ndarray]]:
        """The terms of a variable, grouped by their scale: each group can share a map.

        Scales that differ within a channel become nodes, named after ``path``.

        Returns:
            For each group the names of its nodes and their scale, which is a scalar or
            has a number for each channel, or for each element of a vector.
        """
        groups: list[tuple[list[str], np.ndarray]] = []
        for term in operand.terms:
            if not is_channelwise(term.scale):
                term = Term(self.scaled(term, operand.order.shape, path))
            for names, scale in groups:
                if np.array_equal(scale, term.scale):
                    names.append(term.node)
                    break
            else:
                groups.append(([term.node], term.scale))
        return groups

    def flatten(self, name: str, shape: Sequence[int]) -> str:
        """The name of a node that flattens an image of ``shape``, sent by ``name``."""
        # Two layers that read one image share the node that flattens it.
        for node in self.nodes.values():
            if isinstance(node, Flatten) and node.sources == (name,):
                return node.name
        node = Flatten(
            join(name, "flatten"),
            sources=(name,),
            shape=tuple(shape),
        )
        return self.add(node)


def times(operand: Sum, factor: np.ndarray | float) -> Sum:
    """A sum times a constant factor, of a shape that broadcasts to its nodes."""
    terms = []
    for term in operand.terms:
        scale = compact(term.scale * factor)
        terms.append(term._replace(scale=scale))
    return operand._replace(terms=tuple(terms))


def compact(array: Any) -> np.ndarray:
    """The numbers [N] or [C, H, W] in the smallest shape that broadcasts to theirs.

    This is a scalar if all of them are equal, and [C, 1, 1] if those of each channel
    are.
    """
    array = np.asarray(array, np.float64)
    if array.size == 0:
        return array
    first = array.flat[0]
    if (array == first).all():
        return np.asarray(first)
    if array.ndim == 3:
        channels = array[:, :1, :1]
        if (array == channels).all():
            return channels
    return array


def is_channelwise(array: np.ndarray) -> bool:
    """Whether numbers for nodes do not differ between the pixels of a channel.

    That holds for scalars, vectors [N] and [C, 1, 1], see `compact`.
    """
    return array.ndim < 3 or array.shape[1:] == (1, 1)


def per_channel(constant: np.ndarray) -> np.ndarray:
    """The constant of vectors [N] as it is, that of images [C, H, W] as [C].

    Raises:
        NoLayer: the constant differs between the pixels of a channel.
    """
    if constant.ndim < 3:
        return constant
    channels = constant.mean(axis=(1, 2), keepdims=True)
    # The network computed the constant in float32, so it may differ by rounding.
    tolerance = 1e-5 * np.abs(constant).max()
    if (np.abs(constant - channels) > tolerance).any():
        raise NoLayer(
            "its bias would differ between pixels, and a layer has one per channel",
            "use constants, thresholds and leaks per channel (also before a padded "
            "convolution)",
        )
    return channels[:, 0, 0]


def numbers(value: Any) -> np.ndarray:
    """An array of NumPy in double precision, in which scales are multiplied."""
    return np.asarray(jax.device_get(value)).astype(np.float64)


def join(path: str, name: str) -> str:
    """A name below a path, which may be empty."""
    return f"{path}/{name}" if path else name


# ------------------------------------------------------------------------- orders


def flat_indices(shape: Sequence[int], axes: Sequence[int]) -> np.ndarray:
    """The index of each element in the flattened variable, int, with axes in an order.

    Args:
        shape: of the variable.
        axes: those of the result, in their order, such as channels, rows and columns.
            All other axes of the variable have size 1.
    """
    index = np.arange(math.prod(shape)).reshape(tuple(shape))
    single_axes = [axis for axis in range(len(shape)) if axis not in axes]
    index = index.transpose(*axes, *single_axes)
    sizes = [shape[axis] for axis in axes]
    return index.reshape(sizes)


def axis_choices(count: int) -> list[tuple[int, ...]]:
    """All choices of channels, rows and columns among the ``count`` axes of a variable.

    Axis 0 comes last. It usually counts the examples, of which there is one, and must
    not stand for rows or columns if another axis of size 1 can.
    """
    axes = [*range(1, count), 0]
    return list(itertools.permutations(axes, 3))


def image_axes(
    operand: Sum,
    shape: Sequence[int],
    candidates: Iterable[tuple[int, ...]] | None = None,
) -> tuple[int, ...]:
    """The axes of a variable that are the channels, rows and columns of its nodes.

    Args:
        operand: the sum of the variable.
        shape: of the variable, which may have an axis of size 1 for its one example.
        candidates: (channels, rows, columns) that an operation allows, of which the
            first that fits the nodes is taken; None: all.

    Raises:
        NoLayer: the nodes are vectors, or no candidate fits.
    """
    if operand.order.ndim == 1:
        raise NoLayer(
            f"it needs an image, and {tuple(shape[1:])} is a vector here; no layer "
            "unflattens a vector",
            "keep [H, W, C] from the input to the last operation on images",
        )

    def fits(axes: tuple[int, ...]) -> bool:
        sizes = tuple(shape[axis] for axis in axes)
        if sizes != operand.order.shape:
            return False
        return np.array_equal(flat_indices(shape, axes), operand.order)

    all_choices = axis_choices(len(shape))
    if candidates is None:
        candidates = all_choices
    for axes in candidates:
        if fits(axes):
            return axes
    # The reason depends on whether axes that the operation does not allow fit. Messages
    # leave out the first axis, that of the one example.
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
