"""`report`: what a chip makes of a network, layer by layer."""

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from snnjax._checks import called_as, check_chip
from snnjax._text import Table, shown_as_table
from snnjax.deploy.chips import geometry, properties
from snnjax.deploy.chips.chip import Chip
from snnjax.deploy.chips.cores import Cores
from snnjax.deploy.chips.geometry import Layer
from snnjax.deploy.chips.rules import Finding, Verdict
from snnjax.deploy.lowering import values

# Verdict about a layer -> what it makes of the whole network, from best to worst.
GRADES: dict[Verdict, str] = {
    "fits": "bit for bit",
    "approximately": "approximately",
    "no": "does not run",
}
WIDTH = 80  # characters of a line of the table


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
        """The worst verdict of its findings; "fits" if it has none."""
        return _worst(finding.verdict for finding in self.findings)


@shown_as_table
@dataclass(frozen=True, repr=False)
class Report:
    """What a chip makes of a network; ``print`` shows a table.

    Attributes:
        chip: the profile.
        rows: those of "network", "code" and "input", then one for each population and
            one for each output.

    ``report["hidden"]`` is the row of the population "hidden".
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
        cells = [["layer", "verdict", "core"]]
        for row in self.rows:
            core = "" if row.core is None else str(row.core)
            cells.append([row.name, row.verdict, core])
        # Without cores the reasons get the room of their column.
        if all(row.core is None for row in self.rows):
            for line in cells:
                del line[2]
        room = WIDTH  # characters of a line that are left to the reasons
        for column in zip(*cells, strict=True):
            room -= max(map(len, column)) + len("  ")
        head, *lines = cells
        table = [(*head, "why")]
        for row, line in zip(self.rows, lines, strict=True):
            problems = "; ".join(finding.problem for finding in row.findings)
            reasons = textwrap.wrap(problems, max(room, 30))
            # A row without findings is one line.
            for reason in reasons or [""]:
                table.append((*line, reason))
                # The next lines of a row have reasons alone.
                line = [""] * len(line)
        grade = f"{self.chip.name}: {self.grade}"
        return Table(table, above=grade, below="\n".join(self._advice()))

    def _advice(self) -> list[str]:
        """Lines of text: each remedy once, behind all of the fields that ask for it."""
        fields_by_remedy: dict[str, list[str]] = {}
        for row in self.rows:
            for finding in row.findings:
                if not finding.remedy:
                    continue
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


@called_as("snnjax.deploy.report(layers, chip)")
def report(layers: values.Layers, chip: Chip) -> Report:
    """What a chip makes of a network, layer by layer.

    Each property of the network is compared with the chip's profile. A property that no
    source states is listed and not compared. The grade is the worst of all verdicts:
    "bit for bit" if the chip computes the same whole numbers, "approximately" if it
    rounds numbers or spikes arrive at other times, "does not run" otherwise.

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
    # Some chips compute a layer in another form, such as a matrix as a convolution.
    # Their rules say so, and all findings are those of that form.
    table = []
    for layer in geometry.layers_of(layers):
        for rule in _profile(layer, chip).rules:
            layer = rule.seen(layer)
        table.append(layer)
    # Only a chip whose cores have their own memory has this rule. It concerns all
    # layers together, since two layers cannot have the same core.
    cores = None
    core_numbers = {}
    for rule in chip.rules:
        if isinstance(rule, Cores):
            cores = rule
            core_numbers = cores.placed(table)
    for layer in table:
        layer_profile = _profile(layer, chip)
        findings = list(properties.layer_findings(layer, layer_profile))
        for rule in layer_profile.rules:
            findings += rule.layer_findings(layer)
        core = core_numbers.get(layer.name)
        if cores is not None and core is None:
            findings.append(cores.no_core(layer))
        rows.append(Row(layer.name, tuple(findings), core))
    return Report(chip, tuple(rows))


def _profile(layer: Layer, chip: Chip) -> Chip:
    """The profile for a layer: some chips have other limits for those that read x."""
    if chip.first is not None and layer.reads_x:
        return chip.first
    return chip


def _worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The last of `GRADES` among these verdicts; "fits" if there is none."""
    present = set(verdicts)
    worst: Verdict = "fits"
    for verdict in GRADES:  # from the best on
        if verdict in present:
            worst = verdict
    return worst
