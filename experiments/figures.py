"""The figures of a report: what a conversion found, as SVG with words for it."""

from collections.abc import Sequence
from html import escape

import numpy as np

from experiments import plot, svg
from experiments.graph import Graph, node_glyph
from snnjax.measures import metrics

RASTERS = 4  # sites with a raster
NEURONS = 40  # rows of a raster
KINDS = {
    "relu": "ReLU: here neurons fire",
    "clipped relu": "clipped ReLU: here neurons fire",
    "max-pool": "max-pool: passes spikes on",
    "input": "input and output",
}


def curves(results: Sequence, ann: float) -> tuple[str, str]:
    """Accuracy of one long run read early; of every T against its latency."""
    longest = max(result.steps for result in results)
    early, whole = [], []
    for rows in plot.lines(results):
        name = plot.line_name(rows[0])
        last = next((row for row in rows if row.steps == longest), rows[-1])
        curve = [float(a) for a in 100 * np.mean(last.accuracies, axis=0)]
        steps = range(1, last.steps + 1)
        notes = [f"{name}, t = {t}: {y:.1f} %" for t, y in enumerate(curve, 1)]
        early.append(svg.Series(name, steps, curve, notes))
        rows = sorted(rows, key=lambda row: row.latency)
        latency = [row.latency for row in rows]
        final = [100 * row.final for row in rows]
        notes = [f"{called(r)}: {percent(r)} % after {r.latency}" for r in rows]
        whole.append(svg.Series(name, latency, final, notes))
    label = f"Accuracy after each step of one run at T = {longest}. " + _ends(early)
    label_latency = "Accuracy of each conversion against latency. " + _ends(whole)
    reference = 100 * ann
    return (
        svg.curves(early, reference, label, "t, steps read"),
        svg.curves(whole, reference, label_latency, "latency in steps", log=True),
    )


def legend(names: Sequence[str], *, with_line: bool = True) -> str:
    """Names with their marks, in the order of the series."""
    items = "".join(
        f"<li>{svg.swatch(i, with_line=with_line)}{escape(name)}</li>"
        for i, name in enumerate(names)
    )
    return f'<ul class="legend">{items}</ul>'


def errors(best, short: dict[str, str]) -> str:
    """Error of every site and its parts; ``short`` has the names to print."""
    rows = []
    for name, seen in best.measures.sites.items():
        error, *parts = relative(seen)
        rows.append((short[name], error, parts))
    name, worst, _ = max(rows, key=lambda row: row[1] if row[1] == row[1] else -1.0)
    label = f"Error of every site and its parts; the largest, {worst:.1f} %, at {name}"
    return svg.dots(rows, plot.PARTS, f"{label}. The table below has all numbers.")


def rates(best, short: dict[str, str]) -> str:
    """Firing rate, silent and saturated channels of every site."""
    rows = [
        (short[name], *(100 * float(s) for s in (m.firing_rate, m.silent, m.saturated)))
        for name, m in best.measures.sites.items()
    ]
    label = "Firing rate, silent and saturated channels of every site, in percent"
    return svg.rates(rows, label)


def relative(seen: metrics.SiteMeasures) -> list[float]:
    """Error and its parts in percent of the activation; NaN where there is none."""
    activation = float(seen.activation) or float("nan")
    return [
        100 * float(getattr(seen, part)) / activation for part in ("error", *plot.PARTS)
    ]


def rasters(best, graph: Graph, trains, short: dict[str, str]) -> str:
    """Spikes of some sites from the first to the last, of some of their neurons."""
    firing = [node for node in graph.nodes if node.neurons]
    chosen = np.unique(np.linspace(0, len(firing) - 1, RASTERS).round().astype(int))
    drawn = []
    for node in (firing[i] for i in chosen):
        spikes = np.asarray(trains[node.name]).reshape(best.steps, -1)
        every = np.linspace(0, spikes.shape[1] - 1, min(NEURONS, spikes.shape[1]))
        first = 1 + node.depth * best.wait
        about = f"rate {100 * spikes.mean():.1f} %"
        spiking = svg.raster(
            spikes[:, every.round().astype(int)],
            first,
            best.latency,
            f"Spikes of {node.name}: {about}; it may fire in steps {first} to "
            f"{first + best.steps - 1}",
        )
        drawn.append(
            f"<figure><figcaption><code>{escape(short[node.name])}</code> "
            f"<span>depth {node.depth}, fires in steps {first} to "
            f"{first + best.steps - 1}, {len(every)} of {node.neurons} neurons; "
            f"{about}</span></figcaption>{spiking}</figure>"
        )
    return "".join(drawn)


def graph_label(graph: Graph) -> str:
    """The graph in words."""
    skips = [f"{e.source} to {e.target}" for e in graph.edges if e.skip]
    chain = ", ".join(node.name for node in graph.nodes)
    return f"Graph of the sites: {chain}. Skips: {', '.join(skips) or 'none'}."


def graph_legend(graph: Graph) -> str:
    """The signs of those kinds of nodes that the graph has."""
    kinds = {node.kind for node in graph.nodes}
    items = "".join(
        f"<li>{svg.small(16, node_glyph(kind, 8, 8))}{text}</li>"
        for kind, text in KINDS.items()
        if kind in kinds
    )
    return f'<ul class="legend">{items}</ul>'


def graph_facts(graph: Graph) -> str:
    """What the graph amounts to, in one sentence."""
    skips = sum(edge.skip for edge in graph.edges)
    firing = [node for node in graph.nodes if node.neurons]
    neurons = sum(node.neurons for node in firing)
    return (
        f"{len(firing)} firing sites with {neurons} neurons, "
        f"{max(node.depth for node in graph.nodes)} layers deep, "
        f"{skips} connection{'s' * (skips != 1)} that skip{'s' * (skips == 1)} a site."
    )


def shortened(graph: Graph) -> dict[str, str]:
    """Node -> its name without the first part of the path, if all sites share it."""
    names = [node.name for node in graph.nodes]
    first = {name.partition("/")[:2] for name in names[1:-1]}
    shared = len(first) == 1 and first.pop()[1] == "/"
    return {name: name.partition("/")[2] if shared else name for name in names} | {
        name: name for name in (names[0], names[-1])
    }


def called(result) -> str:
    """A conversion by recipe, wait and T."""
    return f"{plot.line_name(result)}, T = {result.steps}"


def percent(result, digits: int = 1) -> str:
    """Mean accuracy in percent, with the deviation where there are several seeds."""
    several = len(result.accuracies) > 1
    spread = f" ± {100 * result.deviation:.{digits}f}" if several else ""
    return f"{100 * result.final:.{digits}f}{spread}"


def _ends(series: Sequence[svg.Series]) -> str:
    return "; ".join(f"{s.name}: {s.y[0]:.1f} to {s.y[-1]:.1f} %" for s in series)
