"""A network's sites as a graph, and its drawing: which site feeds which other one.

Between two sites everything is affine, so a site is fed by every site from which its
current can be reached without crossing another one. A residual connection is an edge
that passes over a site.
"""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from experiments import svg
from snnjax.network.equations import Network, variables

INPUT, OUTPUT = "input", "output"


class Node(NamedTuple):
    """A site, the input or the output.

    Attributes:
        name: of the site; "input" or "output" else.
        kind: as in `snnjax.network.Site`; "input" or "output" else.
        shape: of one example; of the first output, where there are several.
        depth: number of firing sites on the longest way to here, itself included.
        rank: number of nodes on the longest way from the input to here, itself not
            included; it grows along every edge, unlike the depth.
        parameters: paths of the parameters that feed it.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    depth: int
    rank: int
    parameters: tuple[str, ...] = ()

    @property
    def neurons(self) -> int:
        """Of one example; a max-pool and the ends have none."""
        fires = self.kind in ("relu", "clipped relu")
        return math.prod(self.shape) if fires else 0


class Edge(NamedTuple):
    """``source`` feeds ``target``; a skip passes over at least one node."""

    source: str
    target: str
    skip: bool


class Graph(NamedTuple):
    """Nodes by rank, then in order of execution; edges by target."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]


def site_graph(network: Network) -> Graph:
    """The graph of a captured network.

    Args:
        network: from ``snnjax.network.capture.capture``.

    >>> import jax, jax.numpy as jnp
    >>> from snnjax.network.capture import capture
    >>> def residual(w, x):
    ...     x = jax.nn.relu(w * x)
    ...     return jax.nn.relu(w * jax.nn.relu(w * x) + x)
    >>> graph = site_graph(capture(residual, jnp.array(2.0), jnp.ones((1, 3))))
    >>> for edge in graph.edges:
    ...     print(edge.source, "->", edge.target, "(skip)" if edge.skip else "")
    input -> relu
    relu -> relu_1
    relu -> relu_2 (skip)
    relu_1 -> relu_2
    relu_2 -> output
    """
    x = network.x
    nodes = {INPUT: Node(INPUT, INPUT, tuple(network.avals[x].shape[1:]), 0, 0)}
    fed_by: dict[str, list[str]] = {}
    behind = {x: [INPUT]}  # variable -> the nodes whose output it is affine in

    def sources(read) -> list[str]:
        return list(dict.fromkeys(name for v in read for name in behind.get(v, ())))

    for equation in network.equations:
        names = sources(variables(equation))
        site = equation.site
        if site is not None:
            rank = 1 + max(nodes[name].rank for name in names)
            about = (tuple(site.shape), site.depth, rank, site.parameters)
            nodes[site.name] = Node(site.name, site.kind, *about)
            fed_by[site.name], names = names, [site.name]
        behind.update(dict.fromkeys(equation.outputs, names))
    ends = [v for v in network.outputs if isinstance(v, int)]
    fed_by[OUTPUT] = sources(ends)
    rank = 1 + max(node.rank for node in nodes.values())
    depth = max(network.depths[v] for v in ends)
    shape = tuple(network.avals[ends[0]].shape[1:])
    nodes[OUTPUT] = Node(OUTPUT, OUTPUT, shape, depth, rank)
    ordered = sorted(nodes.values(), key=lambda node: node.rank)
    edges = [
        Edge(source, node.name, node.rank > nodes[source].rank + 1)
        for node in ordered
        for source in sorted(fed_by.get(node.name, ()), key=list(nodes).index)
    ]
    return Graph(tuple(ordered), tuple(edges))


def draw(graph: Graph, names: dict[str, str], label: str) -> str:
    """The sites from the input down to the output; what skips a site runs beside them.

    Args:
        graph: of `site_graph`.
        names: node -> the name to print.
        label: what a screen reader says.
    """
    pitch, top = 46, 20
    rows = {node.name: i for i, node in enumerate(graph.nodes)}
    lanes = _lanes(graph.edges, rows)
    column = 22 + 16 * (max(lanes.values(), default=-1) + 1)
    height = {name: top + pitch * row for name, row in rows.items()}
    drawn, width = [], 0.0
    for edge in graph.edges:
        start, end = height[edge.source], height[edge.target]
        note = svg.tag("title", escape(f"{names[edge.source]} to {names[edge.target]}"))
        if edge.source in lanes and rows[edge.target] != rows[edge.source] + 1:
            x = column - 12 - 16 * (lanes[edge.source] + 1) + 4
            way = (
                f"M{column} {start}C{x} {start} {x} {start + 6} {x} {start + 22}"
                f"V{end - 22}C{x} {end - 6} {x} {end} {column - 9} {end}"
            )
            tip = f"M{column - 14} {end - 4}l6 4l-6 4"
        else:
            way = f"M{column} {start}V{end - 9}"
            tip = f"M{column - 4} {end - 14}l4 6l4 -6"
        kind = "edge skip" if edge.skip else "edge"
        drawn.append(svg.tag("path", note, d=way + tip, class_=kind))
    for node in graph.nodes:
        y, x = height[node.name], column + 20
        about = _about(node)
        note = svg.tag("title", escape(", ".join([node.name, *node.parameters])))
        text = svg.text(x, y - 3, svg.short(names[node.name], 34), "name start")
        drawn += [svg.tag("g", note, node_glyph(node.kind, column, y), text)]
        drawn += [svg.text(x, y + 13, about, "about start")]
        longest = max(8.2 * min(34, len(names[node.name])), 7.0 * len(about))
        width = max(width, x + longest)
    tall = top + pitch * (len(rows) - 1) + 26
    return svg.figure(math.ceil(width), tall, label, *drawn, class_="graph")


def node_glyph(kind: str, x: float, y: float) -> str:
    """What stands for a node, by kind; also in a legend."""
    if kind == "max-pool":
        way = f"M{svg.number(x)} {svg.number(y - 8)}l8 8l-8 8l-8 -8z"
        return svg.tag("path", d=way, class_="node hollow")
    if kind == "clipped relu":
        at = {"x": x - 6, "y": y - 6, "width": 12, "height": 12}
        return svg.tag("rect", class_="node", **at)
    hollow = "" if kind == "relu" else " hollow"
    return svg.tag("circle", cx=x, cy=y, r=6.5, class_=f"node{hollow}")


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
    if node.kind in ("input", "output"):
        return shape
    neurons = f", {node.neurons} neurons" if node.neurons else ""
    return f"{node.kind}, {shape}, depth {node.depth}{neurons}"
