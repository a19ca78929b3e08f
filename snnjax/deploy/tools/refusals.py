"""What the tools of this folder have in common: how they refuse a network."""

import importlib
from collections.abc import Iterable, Iterator
from types import ModuleType

import numpy as np

from snnjax.deploy.lowering.values import Layers, Population, maps_to_itself
from snnjax.network.capture.check import ConversionError, Problem
from snnjax.neurons.gradients import without_surrogate

# The remedy where x has negative numbers and a chip takes none.
WITHOUT_SIGN = (
    "train and convert for images >= 0, such as pixels / 255. If the first layer has "
    "no padding, its weights and bias can take the place of (x - mean) / deviation"
)


def check_problems(problems: Iterable[Problem], tool: str) -> None:
    """Raise a `ConversionError` that lists these problems, if there are any."""
    problems = list(problems)
    if problems:
        headline = f"this network cannot be written for {tool}"
        raise ConversionError(problems, headline)


def problem_at(path: str, reason: str, remedy: str) -> Problem:
    """A problem of a node, or of the whole "network"; a layer names no operations."""
    return Problem(path, operations=(), reason=reason, remedy=remedy)


def neuron_problems(node: Population) -> Iterator[Problem]:
    """What neurons of Akida and of sinabs do not have, such as a leak."""
    model = without_surrogate(node.model)
    if node.is_leaky:
        reason = "its neurons leak, which is not written"
        yield problem_at(node.name, reason, "write neurons without a leak, or NIR")
    if maps_to_itself(node):
        reason = "its neurons are recurrent, which is not written"
        yield problem_at(node.name, reason, "train neurons without a kernel")
    if model.levels[0] < 0:
        reason = f"levels {model.levels}, and the tool has no negative spikes"
        remedy = "convert with model=snnjax.integrate_and_fire(levels=(0, 1))"
        yield problem_at(node.name, reason, remedy)
    elif model.has_zones:
        reason = f"last_zone {model.last_zone}, and the tool has no silent zone"
        yield problem_at(node.name, reason, "convert with last_zone=0.5")
    if model.lowest is not None:
        reason = f"lowest {model.lowest}, a bound that is not written"
        yield problem_at(node.name, reason, "convert with lowest=None")


def output_count_problems(layers: Layers) -> Iterator[Problem]:
    """The problem of a network that has not exactly one output."""
    names = [node.name for node in layers.outputs]
    if len(names) != 1:
        reason = f"{len(names)} outputs, and the tool's model has one"
        remedy = "let the function return one array"
        yield problem_at(", ".join(names), reason, remedy)


def channel_numbers(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """A number for each channel, [C]; None if neurons of a channel differ.

    Args:
        values: a scalar, [C, 1, 1], or a number for every neuron.
        shape: of the neurons, [N] or [C, H, W].
    """
    by_channel = np.broadcast_to(values, shape).reshape(shape[0], -1)  # [C, H W]
    first_of_channel = by_channel[:, 0]
    if (by_channel != first_of_channel[:, None]).any():
        return None
    return first_of_channel


def import_package(name: str, tool: str, install: str) -> ModuleType:
    """An optional package; where it is missing, the error says how to get it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"{tool} needs the package {name}, which is not installed or does not "
            f"load ({error}): {install}"
        ) from error
