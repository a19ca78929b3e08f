"""The style of all figures, and how one becomes a PNG.

Matplotlib draws them. It is imported when the first figure is drawn, so that results
and tables work without it.
"""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from experiments.running import write

INK, MUTED, BAR = "#1a1f26", "#56606c", "#d5dae1"
SERIES = (
    "#0072b2",
    "#c44e00",
    "#00795a",
    "#a8337c",
    "#7d6200",
    "#5a55c9",
    "#4a525c",
    "#1a7f9c",
    "#b5121b",
)
MARKERS = "os^Dvos^D"  # one for each color
WIDTH = 440  # of a panel, in points

_STYLE = {
    "font.size": 13,
    "axes.titlesize": 13,
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "text.color": INK,
    "axes.titlecolor": INK,
    "axes.labelcolor": MUTED,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dfe3e8",
    "lines.linewidth": 1.8,
    "lines.markersize": 6.5,
    "lines.markeredgecolor": "white",
    "legend.frameon": False,
    "legend.fontsize": 12,
    "legend.columnspacing": 1.2,
    "legend.handlelength": 1.6,
}


@contextlib.contextmanager
def new_figure(
    path: Path,
    width: float,
    height: float,
    legend: int = 0,
    legend_parts: int = 1,
    groups: int = 1,
    **subplots: Any,
) -> Iterator[tuple[Any, Any]]:
    """Context with a new figure and its axes, which are written as a PNG at the end.

    Args:
        path: of the PNG.
        width, height: in points.
        legend: columns of the legend below a group, which describes its first axis; 0:
            no legend.
        legend_parts: 2 puts a part of the legend into each half of the figure, because
            a page shows the halves one below the other on a phone.
        groups: of axes, one below the other.
        subplots: options of ``Figure.subplots``, for each group.

    Yields:
        The figure, and an array of the axes of all groups.
    """
    import matplotlib
    from cycler import cycler
    from matplotlib.figure import Figure

    cycle = cycler(color=SERIES) + cycler(marker=list(MARKERS))
    with matplotlib.rc_context(_STYLE | {"axes.prop_cycle": cycle}):
        figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
        parts = figure.subfigures(groups, squeeze=False)[:, 0]
        axes = [np.ravel(part.subplots(squeeze=False, **subplots)) for part in parts]
        yield figure, np.concatenate(axes)
        for part, part_axes in zip(parts, axes, strict=True):
            if legend:
                _add_legend(part, part_axes, columns=legend, parts=legend_parts)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=150, metadata={"Software": None})
    write(path, file.getvalue())


def _add_legend(part: Any, axes: Any, columns: int, parts: int) -> None:
    """A legend of the first axis below all axes, in one part or in two."""
    handles, labels = axes[0].get_legend_handles_labels()
    if parts == 1:
        places = {"outside lower center": slice(None)}
    else:
        # The left part has one entry more, if their number is odd.
        middle = (len(handles) + 1) // 2
        places = {
            "outside lower left": slice(middle),
            "outside lower right": slice(middle, None),
        }
    for place, entries in places.items():
        if handles[entries]:
            part.legend(
                handles[entries],
                labels[entries],
                loc=place,
                ncols=min(max(1, columns // parts), len(handles[entries])),
            )


def shades(count: int) -> Any:
    """Colors with an order, from dark to light, e.g. of the layers of a network."""
    import matplotlib

    return matplotlib.colormaps["viridis"](np.linspace(0, 0.9, count))
