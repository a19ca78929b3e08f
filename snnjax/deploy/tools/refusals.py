"""What the tools of this folder have in common: how they refuse a network."""

import importlib
from collections.abc import Iterable, Iterator
from types import ModuleType

import numpy as np

from snnjax.deploy.lowering.values import Layers, Population, maps_to_itself
from snnjax.network.capture.check import ConversionError, Problem
from snnjax.neurons.gradients import without_surrogate


def check_problems(problems: Iterable[Problem], tool: str) -> None:
    """Raise a `ConversionError` that lists these problems, if there are any."""
    problems = list(problems)
    if problems:
        headline = f"this network cannot be written for {tool}"
        raise ConversionError(problems, headline)


def neuron_problems(node: Population) -> Iterator[Problem]:
    """Neurons that leak, are recurrent or have a bound: neither tool gets them."""
    model = without_surrogate(node.model)
    if node.is_leaky:
        reason = "its neurons leak, which is not written"
        yield Problem(node.name, (), reason, "write neurons without a leak, or NIR")
    if maps_to_itself(node):
        reason = "its neurons are recurrent, which is not written"
        yield Problem(node.name, (), reason, "train neurons without a kernel")
    if model.levels[0] < 0:
        reason = f"levels {model.levels}, and the tool has no negative spikes"
        remedy = "convert with model=snnjax.integrate_and_fire(levels=(0, 1))"
        yield Problem(node.name, (), reason, remedy)
    elif model.has_zones:
        reason = f"last_zone {model.last_zone}, and the tool has no silent zone"
        yield Problem(node.name, (), reason, "convert with last_zone=0.5")
    if model.lowest is not None:
        reason = f"lowest {model.lowest}, a bound that is not written"
        yield Problem(node.name, (), reason, "convert with lowest=None")


def single_output(layers: Layers) -> Iterator[Problem]:
    """A network with several outputs."""
    names = [node.name for node in layers.outputs]
    if len(names) != 1:
        reason = f"{len(names)} outputs, and the tool's model has one"
        remedy = "let the function return one array"
        yield Problem(", ".join(names), (), reason, remedy)


def channel_numbers(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """A number for each channel, [C]; None if neurons of a channel differ.

    Args:
        values: a scalar, [C, 1, 1], or a number for every neuron.
        shape: of the neurons, [N] or [C, H, W].
    """
    rows = np.broadcast_to(values, shape).reshape(shape[0], -1)
    if (rows != rows[:, :1]).any():
        return None
    return rows[:, 0]


def import_package(name: str, tool: str, install: str) -> ModuleType:
    """An optional package; where it is missing, the error says how to get it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"{tool} needs the package {name}, which is not installed or does not "
            f"load ({error}): {install}"
        ) from error
