"""`report`: what a chip makes of a network, layer by layer."""

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from snnjax._checks import check_chip
from snnjax._text import Table, shown_as_table
from snnjax.deploy.chips import geometry, properties
from snnjax.deploy.chips.chip import Chip
from snnjax.deploy.chips.cores import Cores
from snnjax.deploy.chips.geometry import Layer
from snnjax.deploy.chips.rules import Finding, Verdict
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
        name: of a population or an output; or "network", "code" or "input".
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
        heads = ["layer", "verdict", "core"]
        cells = [[row.name, row.verdict, _core_text(row)] for row in self.rows]
        # Without cores the reasons get the room of their column.
        if not any(row.core is not None for row in self.rows):
            heads = heads[:2]
            cells = [line[:2] for line in cells]
        columns = zip(heads, *cells, strict=True)
        room = WIDTH - sum(2 + max(map(len, column)) for column in columns)
        lines = [(*heads, "why")]
        for row, line in zip(self.rows, cells, strict=True):
            problems = "; ".join(finding.problem for finding in row.findings)
            reasons = textwrap.wrap(problems, max(room, 30)) or [""]
            lines.append((*line, reasons[0]))
            # The next lines of a row have reasons alone.
            lines += [(*[""] * len(line), reason) for reason in reasons[1:]]
        grade = f"{self.chip.name}: {self.grade}"
        return Table(lines, above=grade, below="\n".join(self._advice()))

    def _advice(self) -> list[str]:
        """Lines with each remedy once, behind all of the fields that ask for it."""
        fields_by_remedy: dict[str, list[str]] = {}
        for row in self.rows:
            for finding in row.findings:
                fields = fields_by_remedy.setdefault(finding.remedy, [])
                if finding.field not in fields:
                    fields.append(finding.field)
        notes = []
        for remedy, fields in fields_by_remedy.items():
            notes.append(f"{', '.join(fields)}: {remedy}")
        if self.chip.not_stated:
            notes.append(f"not stated: {', '.join(self.chip.not_stated)}")
        lines: list[str] = []
        for note in notes:
            lines += textwrap.wrap(note, WIDTH, subsequent_indent="  ")
        return lines


def _core_text(row: Row) -> str:
    return "" if row.core is None else str(row.core)


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
    network_findings = list(properties.number_of_steps(layers, chip))
    for rule in chip.rules:
        network_findings += rule.network_findings(layers)
    rows = [
        Row("network", tuple(network_findings)),
        Row("code", tuple(properties.code_and_wait(layers, chip))),
        Row("input", tuple(properties.input_levels(layers, chip))),
    ]
    table = [_as_computed(layer, chip) for layer in geometry.layers_of(layers)]
    cores = next((rule for rule in chip.rules if isinstance(rule, Cores)), None)
    core_numbers = {} if cores is None else cores.placed(table)
    for layer in table:
        limits = _limits(layer, chip)
        findings = list(properties.layer_findings(layer, limits))
        for rule in limits.rules:
            findings += rule.layer_findings(layer)
        core = core_numbers.get(layer.name)
        if cores is not None and core is None:
            findings.append(cores.no_core(layer))
        rows.append(Row(layer.name, tuple(findings), core))
    return Report(chip, tuple(rows))


def _limits(layer: Layer, chip: Chip) -> Chip:
    """The profile of a layer: some chips have other limits for those that read x."""
    return chip.first if chip.first is not None and layer.reads_x else chip


def _as_computed(layer: Layer, chip: Chip) -> Layer:
    """The layer as a chip computes it."""
    for rule in _limits(layer, chip).rules:
        layer = rule.seen(layer)
    return layer


def _worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The last of `GRADES` among these verdicts; "fits" of none."""
    present = {"fits", *verdicts}
    return next(verdict for verdict in reversed(GRADES) if verdict in present)
