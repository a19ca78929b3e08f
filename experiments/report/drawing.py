"""The style of all figures, and how they become files or part of a page.

Matplotlib draws them, and is imported when the first one is drawn, so that results and
tables do without it. In a page the colours are the page's own, which follow its light
or dark scheme: each of `COLORS` is replaced by the CSS variable of the same name.
"""

import contextlib
import io
import re
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from typing import Any

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
