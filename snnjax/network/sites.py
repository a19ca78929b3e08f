"""Sites: the places of a network where neurons fire, or where spikes accumulate.

The code asks a site for its capabilities (fires, signed, accumulates), never for the
name of the activation that stood there.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from snnjax._trees import common_path


class Site(NamedTuple):
    """A place where a rule replaces an activation.

    Attributes:
        name: its path in the network, e.g. ``ResNet/Block_0/relu_1``.
        kind: what stands there, for people: "relu", "clipped relu", "max-pool".
        shape: of one example, without the batch axis.
        parameters: paths of the parameters that reach it without crossing
            another site; weight calibration changes only these.
        depth: number of firing sites on the longest way from the input to here.
        dtype: of its input and output.
        channel: axis that counts channels, from the end: -1 is the last.
        fires: neurons fire here.
        signed: what stands here may be negative.
        accumulates: its output is the increment of a function of all spikes so far, as
            that of a max-pool.
        own_maxima: each channel of a clipped ReLU has a maximum of its own.
        lag: layers that a stream is held back here, by a delay line that `delay_lines`
            put in; 0 at the sites of a network.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: tuple[str, ...]
    depth: int
    dtype: Any
    channel: int = -1
    fires: bool = True
    signed: bool = False
    accumulates: bool = False
    own_maxima: bool = False
    lag: int = 0


class Sites(tuple[Site, ...]):
    """The sites of a network, in order of execution; ``print`` shows a table."""

    def __str__(self) -> str:
        head = ("site", "kind", "shape", "depth", "parameters")
        rows = [head] + [
            (
                site.name,
                site.kind,
                "x".join(map(str, site.shape)) or "scalar",
                str(site.depth),
                _shorten(site.parameters),
            )
            for site in self
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True))
            for row in rows
        ]
        return "\n".join(line.rstrip() for line in lines)


def _shorten(paths: Sequence[str], limit: int = 40) -> str:
    """At most ``limit`` characters: the first paths, and how many more there are."""
    text = ", ".join(paths)
    if len(text) <= limit:
        return text
    above = common_path(paths)
    return f"{above}/* ({len(paths)})" if above else f"{paths[0]}, ... ({len(paths)})"
