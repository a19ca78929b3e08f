"""Figures as SVG text: small, with selectable text, drawn by hand instead of a library.

Colours, fonts and line widths are classes of the page that holds the figure (see
``report.html``), so that they follow its light or dark scheme. What a colour says, a
shape says too.
"""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

import numpy as np

WIDTH = 480  # of a chart, in units that are about a pixel on a desktop
COLORS = 8  # classes c0, c1, ... of the page
MARKERS = ("circle", "square", "up", "diamond", "down")
CHARACTER = 8.6  # width of one of a label, at its largest (on a phone)


class Series(NamedTuple):
    """One line of a chart; ``notes`` say of each point what a pointer may read."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    notes: Sequence[str]


def curves(
    series: Sequence[Series], reference: float, label: str, x_label: str, *, log=False
) -> str:
    """Lines over steps, y in percent, with the ANN as a dashed line.

    Args:
        series: each keeps the colour and marker of its place.
        reference: the ANN's accuracy in percent.
        label: what a screen reader says.
        x_label: under the axis.
        log: logarithmic x, base 2.
    """
    left, top, right, bottom = 44, 30, WIDTH - 14, 300
    steps = sorted({x for one in series for x in one.x})
    low = min(y for one in series for y in one.y)
    high = max(y for one in series for y in one.y)
    ticks_y = _ticks(low, max(high, reference))
    scale = math.log2 if log else float
    first, last = scale(steps[0]), scale(steps[-1])
    span = (last - first) or 1

    def at(x, y):
        across = left + 10 + (right - left - 20) * (scale(x) - first) / span
        return across, _between(y, ticks_y[0], ticks_y[-1], bottom, top)

    parts = []
    for y in ticks_y:
        height = at(steps[0], y)[1]
        parts += [line(left, height, right, height, "grid")]
        parts += [text(left - 8, height + 4, f"{y:g}", "tick end")]
    for x in _thinned(steps, log):
        across = at(x, ticks_y[0])[0]
        parts += [line(across, bottom, across, bottom + 4, "axis")]
        parts += [text(across, bottom + 20, f"{x:g}", "tick middle")]
    height = at(steps[0], reference)[1]
    parts += [line(left, height, right, height, "reference")]
    above = text(right, height - 10, f"ANN {reference:.1f}", "halo end")
    parts += [text(left - 8, 12, "accuracy in %", "axis-title start")]
    parts += [text((left + right) / 2, bottom + 42, x_label, "axis-title middle")]
    for i, one in enumerate(series):
        points = [at(x, y) for x, y in zip(one.x, one.y, strict=True)]
        every = max(1, len(points) // 16)
        marks = [
            marker(i, *point, note=note)
            for n, (point, note) in enumerate(zip(points, one.notes, strict=True))
            if n % every == 0 or n == len(points) - 1
        ]
        way = " ".join(f"{number(x)},{number(y)}" for x, y in points)
        drawn = tag("polyline", points=way, class_="curve")
        parts.append(tag("g", drawn, *marks, class_=f"c{i % COLORS}"))
    return figure(WIDTH, bottom + 50, label, *parts, above)


def dots(
    rows: Sequence[tuple[str, float, Sequence[float]]], names: Sequence[str], label: str
) -> str:
    """One row per site: a bar for the whole error, a mark for each of its parts.

    Args:
        rows: name, error and parts, in percent; all NaN where they have no meaning.
        names: of the parts, for the pointer.
        label: what a screen reader says.
    """
    left, right = _label_width(rows), WIDTH - 16
    top, pitch = 8, _pitch(rows)
    bottom = top + pitch * len(rows)
    known = [v for _, error, parts in rows for v in (error, *parts) if v == v]
    ticks = _ticks(0.0, max(known, default=1.0), 4)
    drawn = []

    def at(value):
        return _between(value, 0, ticks[-1], left, right)

    for tick in ticks:
        drawn += [line(at(tick), top, at(tick), bottom, "grid")]
        drawn += [text(at(tick), bottom + 18, f"{tick:g}", "tick middle")]
    for i, (name, error, parts) in enumerate(rows):
        middle = top + pitch * (i + 0.5)
        drawn.append(text(left - 10, middle + 4, short(name), "label end"))
        if error != error:
            continue
        note = tag("title", escape(f"{name}: error {error:.1f} %"))
        shape = {"x": left, "y": middle - 6, "width": at(error) - left, "height": 12}
        drawn.append(tag("rect", note, class_="bar", **shape))
        drawn.append(line(at(error), middle - 6, at(error), middle + 6, "bar-end"))
        for k, part in enumerate(parts):
            about = f"{name}: {names[k]} {part:.1f} %"
            mark = marker(k, at(part), middle, note=about)
            drawn.append(tag("g", mark, class_=f"c{k}"))
    title = "RMS in % of the RMS activation"
    drawn.append(text((left + right) / 2, bottom + 40, title, "axis-title middle"))
    return figure(WIDTH, bottom + 48, label, *drawn)


def rates(rows: Sequence[tuple[str, float, float, float]], label: str) -> str:
    """One row per site: firing rate as a bar; silent and saturated as numbers, in %."""
    left, right = _label_width(rows), WIDTH - 16
    top, pitch = 34, _pitch(rows)
    columns = (right - 86, right)  # where silent and saturated end
    widest = columns[0] - 122 - left  # of a bar, with room for the numbers
    highest = max(rate for _, rate, _, _ in rows) or 1.0
    drawn = [
        text(left, 14, "firing rate", "axis-title start"),
        text(columns[0], 14, "silent", "axis-title end"),
        text(columns[1], 14, "saturated", "axis-title end"),
    ]
    for i, (name, rate, silent, saturated) in enumerate(rows):
        middle = top + pitch * (i + 0.5) - 8
        width = max(1.0, widest * rate / highest)
        drawn += [
            text(left - 10, middle + 4, short(name), "label end"),
            tag(
                "rect",
                x=left,
                y=middle - 5,
                width=width,
                height=10,
                class_="fill",
            ),
            text(left + width + 6, middle + 4, f"{rate:.1f} %", "tick start"),
        ]
        for end, share in zip(columns, (silent, saturated), strict=True):
            drawn.append(text(end, middle + 4, f"{share:.1f} %", "tick end"))
    return figure(WIDTH, top + pitch * len(rows) - 4, label, *drawn)


def raster(spikes: np.ndarray, first: int, last: int, label: str) -> str:
    """Spikes of one site in real time, one row per neuron.

    Args:
        spikes: bool [T, neurons]; all are drawn.
        first: step, from 1, in which the site may fire for the first time.
        last: step of the network's answer, where the axis ends.
        label: what a screen reader says.
    """
    left, right, top, pitch = 6, WIDTH - 6, 6, 3.5
    steps, neurons = spikes.shape
    bottom = top + pitch * neurons + 4
    step = (right - left) / last
    begin = left + (first - 1) * step
    window = {"x": begin, "y": top, "width": steps * step, "height": bottom - top}
    drawn = [tag("rect", class_="window", **window)]
    drawn.append(line(left, bottom, right, bottom, "axis"))
    dashes = []
    for t, n in zip(*np.nonzero(spikes), strict=True):
        x, y = begin + (t + 0.15) * step, top + pitch * (n + 0.5) + 2
        dashes.append(f"M{number(x)} {number(y)}h{number(0.7 * step)}")
    way = "".join(dashes)
    drawn.append(tag("path", d=way or "M0 0", class_="spikes"))
    every = _every(last, 16)
    for t in range(1, last + 1):
        if t == 1 or t % every == 0:
            across = left + (t - 0.5) * step
            drawn.append(text(across, bottom + 18, str(t), "tick middle"))
    return figure(WIDTH, bottom + 24, label, *drawn)


def marker(i: int, x: float, y: float, note: str = "") -> str:
    """The mark of a series by its place: five shapes, filled, then hollow."""
    shape, r = MARKERS[i % len(MARKERS)], 4.4
    ways = {
        "square": f"M{number(x - 4)} {number(y - 4)}h8v8h-8z",
        "up": f"M{number(x)} {number(y - 5)}l5 9h-10z",
        "diamond": f"M{number(x)} {number(y - 5.6)}l5.6 5.6l-5.6 5.6l-5.6 -5.6z",
        "down": f"M{number(x)} {number(y + 5)}l5 -9h-10z",
    }
    title = [tag("title", escape(note))] if note else []
    hollow = " hollow" if (i // len(MARKERS)) % 2 else ""
    if shape == "circle":
        return tag("circle", *title, cx=x, cy=y, r=r, class_=f"mark{hollow}")
    return tag("path", *title, d=ways[shape], class_=f"mark{hollow}")


def swatch(i: int, *, with_line: bool = True) -> str:
    """The mark of a series for a legend, hidden from screen readers."""
    drawn = [line(1, 8, 29, 8, "curve")] if with_line else []
    x = 15 if with_line else 8
    group = tag("g", *drawn, marker(i, x, 8), class_=f"c{i % COLORS}")
    return small(30 if with_line else 16, group)


def small(width: int, *children: str) -> str:
    """A sign beside words of a legend: 16 high, hidden from screen readers."""
    box = {"width": width, "height": 16, "viewBox": f"0 0 {width} 16"}
    return tag("svg", *children, aria_hidden="true", **box)


# ----------------------------------------------------------------------- helpers


def _ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers from at most ``low`` to at least ``high``."""
    span = (high - low) or 1.0
    for exponent in range(-6, 7):
        for digit in (1, 2, 5):
            size = digit * 10.0**exponent
            if span / size <= most - 1:
                count = math.ceil(high / size - 1e-9) - math.floor(low / size)
                first = math.floor(low / size)
                return [size * (first + i) for i in range(count + 1)]
    return [low, high]


def _thinned(steps: Sequence[float], log: bool) -> Sequence[float]:
    """At most some ten ticks; on a logarithmic axis none too close to the last."""
    if not log:
        every = _every(len(steps), 10)
        return [x for x in steps if x % every == 0 or x == steps[0]]
    kept: list[float] = []
    for x in steps:
        span = math.log2(steps[-1] / steps[0]) or 1
        if not kept or math.log2(x / kept[-1]) / span > 0.06:
            kept.append(x)
    return kept


def _every(count: int, most: int) -> int:
    """The power of two of which at most ``most`` multiples reach ``count``."""
    return 2 ** max(0, math.ceil(math.log2(count / most)))


def _pitch(rows: Sequence[tuple]) -> int:
    """Height of a row: a long list is set closer."""
    return 30 if len(rows) <= 20 else 22


def _label_width(rows: Sequence[tuple]) -> float:
    return 16 + CHARACTER * max(len(short(row[0])) for row in rows)


def short(name: str, limit: int = 20) -> str:
    """At most ``limit`` characters: the beginning and the end."""
    if len(name) <= limit:
        return name
    return f"{name[: limit // 2 - 1]}…{name[-(limit - limit // 2) :]}"


def _between(value: float, low: float, high: float, start: float, end: float) -> float:
    return start + (end - start) * (value - low) / (high - low)


def figure(
    width: float, height: float, label: str, *children: str, class_="chart"
) -> str:
    box = {
        "viewBox": f"0 0 {number(width)} {number(height)}",
        "width": width,
        "height": height,
    }
    return tag("svg", *children, role="img", aria_label=label, class_=class_, **box)


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=kind)


def text(x: float, y: float, words: str, kind: str) -> str:
    return tag("text", escape(words), x=x, y=y, class_=kind)


def tag(name: str, *children: str, **attributes) -> str:
    """An element; attributes are escaped, children are markup."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(number(value))}"'
        for key, value in attributes.items()
    )
    return f"<{name}{written}>{''.join(children)}</{name}>"


def number(value) -> str:
    """Numbers to a tenth, which is less than a pixel; anything else as it is."""
    return value if isinstance(value, str) else f"{value:.1f}".removesuffix(".0")
