"""The style of all figures, and how they become files or part of a page.

A panel is a function that draws on one axis, with a label for screen readers. A file
has several panels (`beside`, `below`), a page each one alone (`alone`).

Matplotlib draws them, and is imported when the first one is drawn, so that results and
tables do without it. In a page the colours are the page's own, which follow its light
or dark scheme: each of `COLORS` is replaced by the CSS variable of the same name.
"""

import contextlib
import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from experiments.running import write

# Of the light scheme; report.html has those of the dark one.
COLORS = {
    "paper": "#ffffff",
    "raised": "#f5f6f8",
    "ink": "#1a1f26",
    "muted": "#56606c",
    "rule": "#dfe3e8",
    "strong": "#828d99",
    "accent": "#0a5c9e",
    "bar": "#d5dae1",
    "window": "#e8f0f8",
    "c0": "#0072b2",
    "c1": "#c44e00",
    "c2": "#00795a",
    "c3": "#a8337c",
    "c4": "#7d6200",
    "c5": "#5a55c9",
    "c6": "#4a525c",
    "c7": "#1a7f9c",
}
SERIES = [color for name, color in COLORS.items() if re.fullmatch(r"c\d", name)]
MARKERS = "os^Dv"
WIDTH = 440  # of a panel, in points, which the page shows as pixels

_STYLE = {
    "font.size": 13,
    "axes.titlesize": 13,
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "text.color": COLORS["ink"],
    "axes.titlecolor": COLORS["ink"],
    "axes.labelcolor": COLORS["muted"],
    "axes.edgecolor": COLORS["strong"],
    "axes.facecolor": COLORS["paper"],
    "xtick.color": COLORS["strong"],
    "ytick.color": COLORS["strong"],
    "xtick.labelcolor": COLORS["muted"],
    "ytick.labelcolor": COLORS["muted"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": COLORS["rule"],
    "lines.linewidth": 1.8,
    "lines.markersize": 6.5,
    "legend.frameon": False,
    "legend.fontsize": 12,
    "svg.fonttype": "none",  # text stays text
}


@contextlib.contextmanager
def canvas(
    width: float, height: float, rows: int = 1, columns: int = 1, **options: Any
) -> Iterator[tuple[Any, Sequence[Any]]]:
    """A new figure of this size in points, and its axes, in the style of all."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, **options)
        yield figure, axes.ravel().tolist()


def mark(i: int) -> dict[str, Any]:
    """Colour and marker of series i: five shapes, filled, then hollow."""
    color = SERIES[i % len(SERIES)]
    hollow = (i // len(MARKERS)) % 2
    return {
        "color": color,
        "marker": MARKERS[i % len(MARKERS)],
        "markerfacecolor": COLORS["paper"] if hollow else color,
        "markeredgecolor": color if hollow else COLORS["paper"],
        "markeredgewidth": 1.6 if hollow else 0.8,
    }


def png(figure: Any, path: Path) -> None:
    """Write a figure to a file."""
    import matplotlib

    file = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(file, format="png", dpi=150, metadata={"Software": None})
    write(path, file.getvalue())


def svg(figure: Any, label: str) -> str:
    """A figure as an element of a page, the same text for the same figure.

    Args:
        figure: from `canvas`.
        label: what a screen reader says; no two figures of a page have the same.
    """
    import matplotlib

    file = io.StringIO()
    metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": label}):
        figure.savefig(file, format="svg", transparent=True, metadata=metadata)
    text = file.getvalue()
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None
    text = text[text.index(">", text.index("<svg")) + 1 :]
    # The style of one figure would apply to the whole page.
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)
    text = text.replace("xlink:href", "href")
    shared = set(re.findall(r'(?:url\(|href=")#([^)"]+)', text))
    text = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in shared else "", text)
    text = re.sub(r'<text style="([^"]*)"', _text_style, text)
    for name, color in COLORS.items():
        text = text.replace(color, f"var(--{name})")
    head = f'<svg class="chart" role="img" aria-label="{escape(label)}" {box[0]}>'
    return head + re.sub(r"\s*\n\s*", " ", text)


def _text_style(match: re.Match) -> str:
    """The page's font in place of the figure's; size, anchor and colour stay."""
    parts = [part.strip() for part in match[1].split(";")]
    declarations = [part for part in parts if not part.startswith("font")]
    size = re.search(r"[\d.]+px", match[1])
    declarations += [f"font-size: {size[0]}"] if size else []
    mono = ' class="mono"' if "Mono" in match[1] else ""
    return f'<text{mono} style="{"; ".join(declarations)}"'


# ----------------------------------------------------------------------- panels


class Panel(NamedTuple):
    """What is drawn on one axis.

    Attributes:
        title: above the panel, where a file has several.
        label: the same in words, with the most important numbers.
        height: in points.
        draw: draws it on a matplotlib axis.
    """

    title: str
    label: str
    height: float
    draw: Callable[[Any], None]


def beside(
    panels: Sequence[Panel], path: Path, heading: str = "", columns: int = 5
) -> None:
    """A PNG of these panels, with one legend of at most `columns` below them."""
    height = max(panel.height for panel in panels) + (60 if heading else 30)
    with canvas(len(panels) * WIDTH, height, columns=len(panels)) as (figure, axes):
        figure.suptitle(heading)
        for panel, axis in zip(panels, axes, strict=True):
            panel.draw(axis)
            axis.set_title(panel.title)
        legend(figure, axes[0], columns)
        png(figure, path)


def alone(panel: Panel) -> str:
    """SVG of one panel, with its legend below it."""
    with canvas(WIDTH, panel.height) as (figure, (axis,)):
        panel.draw(axis)
        legend(figure, axis, 3)
        return svg(figure, panel.label)


def legend(figure: Any, axis: Any, columns: int) -> None:
    """The names of all that is drawn, below the figure."""
    handles, labels = axis.get_legend_handles_labels()
    if handles:
        figure.legend(
            handles,
            labels,
            loc="outside lower center",
            ncols=min(columns, len(labels)),
            columnspacing=1.2,
            handlelength=1.6,
        )


def below(panels: Sequence[Panel], path: Path, heading: str = "") -> None:
    """A PNG of these panels, one below the other."""
    height = (50 if heading else 20) + sum(0.5 * p.height + 24 for p in panels)
    with canvas(1.3 * WIDTH, height, rows=len(panels)) as (figure, axes):
        figure.suptitle(heading)
        for panel, axis in zip(panels, axes, strict=True):
            panel.draw(axis)
            axis.set_title(panel.title, fontsize=11, pad=4)
            axis.tick_params(labelbottom=axis is axes[-1])
        title = (
            "step (rows: neurons; %: firing rate; orange: negative; shaded: may fire)"
        )
        axes[-1].set_xlabel(title, fontsize=11)
        png(figure, path)


def every(count: int, most: int) -> int:
    """The power of two of which at most ``most`` multiples reach ``count``."""
    return 2 ** max(0, math.ceil(math.log2(count / most)))
