"""`report`: what a chip makes of a network, layer by layer."""

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from snnjax._checks import check_chip
from snnjax._text import Table, shown_as_table
from snnjax.deploy.chips import geometry, properties
from snnjax.deploy.chips.profiles import Chip
from snnjax.deploy.chips.properties import Finding, Layer, Verdict
from snnjax.deploy.lowering import values

GRADES: dict[Verdict, str] = {  # from the best to the worst
    "fits": "bit for bit",
    "approximately": "approximately",
    "no": "does not run",
}
WIDTH = 80


class Row(NamedTuple):
    """What a report says about a layer.

    Attributes:
        name: of a population or an output; "network", "code" and "input" for the rest.
        findings: properties that the chip approximates or does not have.
        core: number of the core that runs it, where cores have their own memory.
    """

    name: str
    findings: tuple[Finding, ...]
    core: int | None = None

    @property
    def verdict(self) -> Verdict:
        """The worst of its findings; without one "fits"."""
        return _worst(finding.verdict for finding in self.findings)


@shown_as_table
@dataclass(frozen=True, repr=False)
class Report:
    """What a chip makes of a network; ``print`` shows a table.

    Attributes:
        chip: the profile.
        rows: "network", "code", "input", then one of each population and output.

    ``report["hidden"]`` is a row.
    """

    chip: Chip
    rows: tuple[Row, ...]

    @property
    def grade(self) -> str:
        """ "bit for bit", "approximately" or "does not run"."""
        return GRADES[_worst(row.verdict for row in self.rows)]

    def __getitem__(self, name: str) -> Row:
        rows = {row.name: row for row in self.rows}
        if name not in rows:
            raise KeyError(f"{name!r}; allowed: {', '.join(rows)}")
        return rows[name]

    def __repr__(self) -> str:
        return f"Report({self.chip.name}: {self.grade})"

    def _table(self) -> Table:
        cells = [("layer", "verdict", "core")]
        for row in self.rows:
            core = "" if row.core is None else str(row.core)
            cells.append((row.name, row.verdict, core))
        # Columns without an entry are left out, and the reasons get the room.
        columns = [column for column in zip(*cells, strict=True) if any(column[1:])]
        room = WIDTH - sum(2 + max(map(len, column)) for column in columns)
        texts = ["; ".join(f.problem for f in row.findings) for row in self.rows]
        lines: list[tuple[str, ...]] = []
        for *start, why in zip(*columns, ["why", *texts], strict=True):
            for line in textwrap.wrap(why, max(room, 30)) or [""]:
                lines.append((*start, line))
                start = [""] * len(start)
        grade = f"{self.chip.name}: {self.grade}"
        return Table(lines, above=grade, below="\n".join(self._advice()))

    def _advice(self) -> list[str]:
        # Each remedy once, behind all of the fields that ask for it.
        remedies: dict[str, dict[str, None]] = {}
        for row in self.rows:
            for finding in row.findings:
                remedies.setdefault(finding.remedy, {})[finding.field] = None
        notes = [f"{', '.join(fields)}: {r}" for r, fields in remedies.items()]
        if self.chip.not_stated:
            notes.append(f"not stated: {', '.join(self.chip.not_stated)}")
        paragraphs = (textwrap.wrap(n, WIDTH, subsequent_indent="  ") for n in notes)
        return [line for lines in paragraphs for line in lines]


def report(layers: values.Layers, chip: Chip) -> Report:
    """Compare a network with what a chip can run.

    Each property is compared with the chip's profile. What no source states is not
    compared, and listed. The grade is the worst of all verdicts: "bit for bit" if the
    chip computes the same whole numbers, "approximately" if numbers are rounded or
    spikes arrive at other times, and "does not run".

    Args:
        layers: from `snnjax.deploy.layers`, or whole numbers of `quantize`.
        chip: a profile, e.g. ``snnjax.deploy.speck()``.

    Raises:
        ValueError: an argument of another kind.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn = lambda params, x: jax.nn.relu(x @ params["hidden"]) @ params["readout"]
    >>> params = {"hidden": jnp.ones((3, 8)), "readout": jnp.ones((8, 2))}
    >>> model = snnjax.integrate_and_fire(levels=(-1, 1))
    >>> snn = snnjax.init(fn, params, jnp.ones((1, 3)), model=model)
    >>> layers = snnjax.deploy.layers(fn, snn, jnp.ones((1, 3)))
    >>> speck = report(layers, snnjax.deploy.speck())
    >>> speck.grade, speck["hidden/relu"].verdict
    ('does not run', 'no')
    >>> print(speck["hidden/relu"].findings[-1].problem)
    levels (-1, 1), not (0, n)
    """
    values.check_layers(layers)
    check_chip(chip)
    all_ways = layers.connections
    shapes = {n.name: n.shape for n in (layers.input, *layers.populations)}

    def layer_of(node: values.Receiver) -> Layer:
        ways = [way for way in all_ways if way.receiver == node.name]
        kernels = [k for w in ways for k in geometry.kernels(w, shapes[w.sender], chip)]
        images = {way.sender: shapes[way.sender][1:] for way in ways}
        readers = {way.receiver for way in all_ways if way.sender == node.name}
        return Layer(node, ways, kernels, images, readers, layers)

    table = [layer_of(node) for node in layers.receivers]
    needs = {
        layer.node.name: geometry.need(layer.kernels, layer.node.shape, chip)
        for layer in (table if chip.cores else ())
    }
    cores = geometry.assign(needs, chip.cores or ())
    rows = [
        Row("network", (*properties.of_network(layers, chip),)),
        Row("code", (*properties.of_code(layers, chip),)),
        Row("input", (*properties.input_levels(layers, chip),)),
    ]
    for layer in table:
        name = layer.node.name
        # Some chips have other limits for the layer that reads x.
        limits = chip.first if chip.first and layer.reads_x else chip
        findings = [f for check in properties.OF_LAYER for f in check(layer, limits)]
        if name in needs and name not in cores:
            findings.append(properties.no_core(needs[name], chip.cores or ()))
        rows.append(Row(name, tuple(findings), cores.get(name)))
    return Report(chip, tuple(rows))


def _worst(verdicts: Iterable[Verdict]) -> Verdict:
    found = {"fits", *verdicts}
    return next(verdict for verdict in reversed(GRADES) if verdict in found)
