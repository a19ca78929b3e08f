"""A network's sites as a graph, and its drawing: which site feeds which other one.

A residual connection is an edge that passes over a site. The drawing is SVG written by
hand: its elements carry titles and the classes of the page (``report.html``).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import NamedTuple

import chex
import jax

import snnjax
from experiments.report.figures import shortened
from snnjax.capture import connections
from snnjax.network import Site

INPUT, OUTPUT = "input", "output"


class Node(NamedTuple):
    """A site, the input or the output.

    Attributes:
        name: of the site; "input" or "output" otherwise.
        shape: of one example; of the first output, where there are several.
        depth: number of firing sites on the longest way to here, itself included.
        rank: number of nodes on the longest way from the input to here, itself not
            included; it grows along every edge, unlike the depth.
        site: None for the input and the output.
    """

    name: str
    shape: tuple[int, ...]
    depth: int
    rank: int
    site: Site | None = None

    @property
    def neurons(self) -> int:
        """Of one example."""
        fires = self.site is not None and self.site.fires
        return math.prod(self.shape) if fires else 0

    @property
    def sign(self) -> str:
        """One of `SIGNS`."""
        if self.site is None:
            return "end"
        return "neurons" if self.site.fires else "passes"


# What a sign in the drawing means, in the order of the legend.
SIGNS = {
    "neurons": "here neurons fire",
    "passes": "passes spikes on",
    "end": "input and output",
}


class Edge(NamedTuple):
    """``source`` feeds ``target``; a skip passes over at least one node."""

    source: str
    target: str
    skip: bool


class SiteGraph(NamedTuple):
    """Nodes by rank, then in order of execution; edges by target."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]

    @property
    def firing(self) -> list[Node]:
        """The nodes that have neurons."""
        return [node for node in self.nodes if node.neurons]


def site_graph(fn: Callable, params: chex.ArrayTree, x: chex.Array) -> SiteGraph:
    """The graph of ``fn(params, x)``.

    >>> import jax, jax.numpy as jnp
    >>> def residual(w, x):
    ...     x = jax.nn.relu(w * x)
    ...     return jax.nn.relu(w * jax.nn.relu(w * x) + x)
    >>> graph = site_graph(residual, jnp.array(2.0), jnp.ones((1, 3)))
    >>> [(edge.source, edge.target) for edge in graph.edges if edge.skip]
    [('relu', 'relu_2')]
    """
    sites = {site.name: site for site in snnjax.sites(fn, params, x)}
    sources = connections(fn, params, x)
    nodes = {INPUT: Node(INPUT, tuple(x.shape[1:]), 0, 0)}
    for name, site in sites.items():
        rank = 1 + max(nodes[source].rank for source in sources[name])
        nodes[name] = Node(name, tuple(site.shape), site.depth, rank, site)
    first = jax.tree.leaves(jax.eval_shape(fn, params, x))[0]
    depth = max(nodes[source].depth for source in sources[OUTPUT])
    rank = 1 + max(node.rank for node in nodes.values())
    nodes[OUTPUT] = Node(OUTPUT, tuple(first.shape[1:]), depth, rank)
    ordered = sorted(nodes.values(), key=lambda node: node.rank)
    edges = [
        Edge(source, node.name, node.rank > nodes[source].rank + 1)
        for node in ordered
        for source in sources.get(node.name, ())
    ]
    return SiteGraph(tuple(ordered), tuple(edges))


# --------------------------------------------------------------------- in words


def described(graph: SiteGraph) -> str:
    """The graph for a screen reader."""
    skips = [f"{e.source} to {e.target}" for e in graph.edges if e.skip]
    chain = ", ".join(node.name for node in graph.nodes)
    return f"Graph of the sites: {chain}. Skips: {', '.join(skips) or 'none'}."


def summary(graph: SiteGraph) -> str:
    """Sites, neurons, depth and skips, in one sentence."""
    skips = sum(edge.skip for edge in graph.edges)
    neurons = sum(node.neurons for node in graph.firing)
    return (
        f"{len(graph.firing)} firing sites with {neurons} neurons, "
        f"{max(node.depth for node in graph.nodes)} layers deep, "
        f"{skips} connection{'s' * (skips != 1)} that skip{'s' * (skips == 1)} a site."
    )


def legend(graph: SiteGraph) -> str:
    """The signs that the drawing has, as a list."""
    signs = {node.sign for node in graph.nodes}
    items = (
        f"<li>{_svg(16, 16, _sign(sign, 8, 8), aria_hidden='true')}{words}</li>"
        for sign, words in SIGNS.items()
        if sign in signs
    )
    return f'<ul class="legend">{"".join(items)}</ul>'


# ---------------------------------------------------------------------- drawing


def draw(graph: SiteGraph, names: dict[str, str]) -> str:
    """The sites from the input down to the output; what skips a site runs beside them.

    Args:
        graph: of `site_graph`.
        names: node -> the name to print.
    """
    pitch, top = 46, 20
    rows = {node.name: i for i, node in enumerate(graph.nodes)}
    lanes = _lanes(graph.edges, rows)
    column = 22 + 16 * (max(lanes.values(), default=-1) + 1)
    height = {name: top + pitch * row for name, row in rows.items()}
    parts = []
    for edge in graph.edges:
        beside = rows[edge.target] != rows[edge.source] + 1
        x = column - 24 - 16 * lanes[edge.source] if beside else None
        way = _way(column, height[edge.source], height[edge.target], x)
        title = f"{names[edge.source]} to {names[edge.target]}"
        kind = "edge skip" if edge.skip else "edge"
        parts.append(_tag("path", _title(title), d=way, class_=kind))
    width = 0.0
    for node in graph.nodes:
        name, about = shortened(names[node.name], 34), _about(node)
        x, y = column + 20, height[node.name]
        text = _tag("text", escape(name), x=x, y=y - 3, class_="name")
        parameters = node.site.parameters if node.site else ()
        title = _title(", ".join([node.name, *parameters]))
        parts.append(_tag("g", title, _sign(node.sign, column, y), text))
        parts.append(_tag("text", escape(about), x=x, y=y + 13))
        width = max(width, x + 8.2 * len(name), x + 7.0 * len(about))
    tall = top + pitch * (len(rows) - 1) + 26
    words = {"role": "img", "aria_label": described(graph), "class_": "graph"}
    return _svg(math.ceil(width), tall, *parts, **words)


def _way(column: float, start: float, end: float, beside: float | None) -> str:
    """Path of an edge with its tip: straight down, or in a lane at x = ``beside``."""
    if beside is None:
        return f"M{column} {start}V{end - 9}M{column - 4} {end - 14}l4 6l4 -6"
    return (
        f"M{column} {start}C{beside} {start} {beside} {start + 6} {beside} {start + 22}"
        f"V{end - 22}C{beside} {end - 6} {beside} {end} {column - 9} {end}"
        f"M{column - 14} {end - 4}l6 4l-6 4"
    )


def _lanes(edges: Sequence[Edge], rows: dict[str, int]) -> dict[str, int]:
    """Source of an edge that cannot run straight -> its lane beside the nodes.

    Edges of one source share a lane; short ones are the inner ones, so that few cross.
    """
    ends: dict[str, int] = {}
    for edge in edges:
        if rows[edge.target] != rows[edge.source] + 1:
            ends[edge.source] = max(ends.get(edge.source, 0), rows[edge.target])
    lanes: dict[str, int] = {}
    for source in sorted(ends, key=lambda name: (ends[name] - rows[name], rows[name])):
        beside = {
            lanes[other]
            for other in lanes
            if rows[other] < ends[source] and rows[source] < ends[other]
        }
        lanes[source] = min(set(range(len(lanes) + 1)) - beside)
    return lanes


def _about(node: Node) -> str:
    shape = "×".join(map(str, node.shape)) or "scalar"
    if node.site is None:
        return shape
    neurons = f", {node.neurons} neurons" if node.neurons else ""
    return f"{node.site.kind}, {shape}, depth {node.depth}{neurons}"


def _sign(sign: str, x: float, y: float) -> str:
    """The sign of a node, also for the legend."""
    if sign == "passes":
        way = f"M{x} {y - 8}l8 8l-8 8l-8 -8z"
        return _tag("path", d=way, class_="node hollow")
    hollow = "" if sign == "neurons" else " hollow"
    return _tag("circle", cx=x, cy=y, r=6.5, class_=f"node{hollow}")


def _svg(width: float, height: float, *children: str, **attributes: str) -> str:
    box = {"width": width, "height": height, "viewBox": f"0 0 {width} {height}"}
    return _tag("svg", *children, **box, **attributes)


def _title(words: str) -> str:
    return _tag("title", escape(words))


def _tag(name: str, *children: str, **attributes: object) -> str:
    """An element; attributes are escaped, children are markup."""
    pairs: Iterable[tuple[str, str]] = (
        (key.rstrip("_").replace("_", "-"), escape(str(value)))
        for key, value in attributes.items()
    )
    text = "".join(f' {key}="{value}"' for key, value in pairs)
    return f"<{name}{text}>{''.join(children)}</{name}>"
