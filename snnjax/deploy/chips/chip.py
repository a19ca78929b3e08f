"""`Chip`: a chip as its numbers and a tuple of rules, each with its source.

A property that is None is stated by no source: a report compares nothing and says
"not stated". We measured none of these properties on a chip.
"""

from __future__ import annotations

import dataclasses
import operator
import textwrap
from collections.abc import Mapping
from typing import Any, Literal

from snnjax._text import Table, shown_as_table
from snnjax._types import Per
from snnjax.codes import Code, radix, rate
from snnjax.deploy.chips.geometry import Granularity
from snnjax.deploy.chips.rules import Rule, span
from snnjax.deploy.lowering.values import Leak
from snnjax.neurons.models import IntegrateAndFire

# Rules and fields that every chip could state; a report lists those that one does not.
_LIMITS = (
    "weight_bits state_bits threshold_bits bias_bits overflow thresholds biases "
    "initial_potentials resets levels lowest leak synapse kernels strides paddings "
    "pools groups channels input_rows input_columns output_image dense_inputs "
    "successive_maps destinations fan_out inputs neurons outputs input_levels readout"
).split()


@shown_as_table
@dataclasses.dataclass(frozen=True, repr=False)
class Chip:
    """A chip as data, compared by value; ``print`` shows it with its sources.

    ``dataclasses.replace`` changes a profile, and ``Chip("mine", weight_bits=(4,))``
    is one of your own. None: not stated.

    Attributes:
        name: what reports and messages call the chip.
        weight_bits: numbers of bits that a weight may have, its sign included.
        state_bits, threshold_bits, bias_bits: number of bits of a potential, a
            threshold and a bias, with the sign, in units of a weight.
        overflow: what happens to a potential outside of its bits.
        scale: which weights have one scale, see `snnjax.deploy.quantize`.
        thresholds, biases, initial_potentials: whether each "layer", each "channel" or
            each "neuron" has a threshold, a bias and a v(0) of its own.
        resets: resets that its neurons can have: "subtract" and "zero".
        levels: pairs (low, high) that a neuron may send in a step; high None: any.
        lowest: lower bound of a potential: "any" that is set, or the least number of
            its "register".
        leak: a `Leak`, its rule; "factor", by a rule that is not stated; "constant",
            v - c, which is a bias.
        synapse: "instant", or "exponential" if currents decay over steps.
        input_levels: (low, high) of an element of x in a step; high None: any.
        readout: "potential" if potentials of an output can be read, or "spikes".
        programmable: what users can write: "neurons" of their own, which run any code;
            or "thresholds" before each step, as a code other than rate coding and a
            wait need.
        one_step: whether it computes T = 1 alone, graded activations without time.
        joules: energy of a synaptic operation, and of an update of a neuron at a step.
        rules: what else it can run, see `Rule`, e.g. ``Limit("kernels", (1, 3))``. Of
            several rules with one name the last one counts.
        first: the profile for layers that read x, where it differs; `replace` of a
            field does not change it.
        sources: pairs of a source, and the names of the fields and rules that it
            states, with spaces between them.

    >>> import dataclasses, snnjax
    >>> speck = snnjax.deploy.speck()
    >>> rules = (*speck.rules, snnjax.deploy.Limit("kernels", (1, 3)))
    >>> chip = dataclasses.replace(speck, name="mine", rules=rules)
    >>> chip.state_bits, len(chip.rules) == len(speck.rules), chip == speck
    (16, True, False)
    >>> speck.source("kernels")
    'synsense/sinabs 904eb893, docs/speck/overview.md'
    """

    name: str
    weight_bits: tuple[int, ...] | None = None
    state_bits: int | None = None
    threshold_bits: int | None = None
    bias_bits: int | None = None
    overflow: Literal["saturate", "wrap"] | None = None
    scale: Literal["channel", "layer", "power_of_two"] | None = None
    thresholds: Granularity | None = None
    biases: Granularity | None = None
    initial_potentials: Granularity | None = None
    resets: tuple[str, ...] | None = None
    levels: tuple[tuple[int, int | None], ...] | None = None
    lowest: Literal["any", "register"] | None = None
    leak: Leak | Literal["factor", "constant"] | None = None
    synapse: Literal["instant", "exponential"] | None = None
    input_levels: tuple[int, int | None] | None = None
    readout: Literal["potential", "spikes"] | None = None
    programmable: Literal["neurons", "thresholds"] | None = None
    one_step: bool | None = None
    joules: tuple[float, float] | None = None
    rules: tuple[Rule, ...] = ()
    first: Chip | None = None
    sources: tuple[tuple[str, str], ...] = ()

    def __post_init__(self):
        # Of several rules with one name the last one counts.
        by_name = {rule.name: rule for rule in self.rules}
        object.__setattr__(self, "rules", tuple(by_name.values()))

    def source(self, field: str) -> str | None:
        """The source of a field or of the rule with this name; None: there is none."""
        for source, fields in self.sources:
            if field in fields.split():
                return source
        return None

    @property
    def not_stated(self) -> tuple[str, ...]:
        """Names of the limits that no source states."""
        return tuple(name for name in _LIMITS if name not in self._properties())

    def _properties(self) -> dict[str, Any]:
        """Name -> value of each property that is stated, and of each rule."""
        properties = {}
        for name, value in vars(self).items():
            is_property = name not in ("name", "rules", "first", "sources")
            if is_property and value is not None:
                properties[name] = value
        for rule in self.rules:
            properties[rule.name] = rule
        return properties

    def defaults(
        self, steps: int, code: Code | None, model: Any
    ) -> tuple[Code, Any, Per]:
        """What ``snnjax.convert(..., chip=)`` takes for this chip.

        By default the code is rate coding, for which no neuron changes from step to
        step. Neurons have those of the chip's levels whose high one is least. A chip
        that computes one step alone takes the highest levels instead, and a radix code,
        for which biases suffice.

        Args:
            steps: T of the conversion.
            code, model: those of the call, which stay; None: by default.

        Returns:
            The code; the neuron model, or None for the default of `snnjax.convert`; and
            whether each "layer" or each "channel" has a threshold.

        Raises:
            ValueError: conversion makes no neurons for this chip, or not at these T.

        >>> import snnjax
        >>> code, model, per = snnjax.deploy.speck().defaults(16, None, None)
        >>> code, model.levels, per
        (rate(), (0, 1), 'layer')
        """
        self._check_converts(steps, has_model=model is not None)
        if code is None:
            code = radix() if self.one_step else rate()
        # Users of a chip whose neurons can be programmed write those that a code asks
        # for. Rate coding and a single step ask for none.
        is_plain = code.is_streaming() or steps == 1
        if model is None and (is_plain or self.programmable != "neurons"):
            levels = self._levels(code)
            model = IntegrateAndFire(levels=levels, dead_zone=code.dead_zone(levels))
        return code, model, "layer" if self.thresholds == "layer" else "channel"

    def _check_converts(self, steps: int, *, has_model: bool) -> None:
        """Raise unless conversion makes neurons that this chip has."""
        if self.one_step and steps != 1:
            raise ValueError(
                f"{self.name} computes T = 1, not {steps}; allowed: steps=1"
            )
        if self.synapse == "exponential":
            raise ValueError(
                f"{self.name} filters currents, and conversion needs instant synapses; "
                "allowed: networks that were trained with such synapses"
            )
        # A single step has no reset, and users answer for a model of their own.
        if steps == 1 or has_model or self.programmable == "neurons":
            return
        if self.resets is not None and "subtract" not in self.resets:
            raise ValueError(
                f"{self.name} resets to zero, and conversion needs the reset by "
                "subtraction; allowed: steps=1; or no chip=, for several of its "
                "neurons in place of one"
            )

    def _levels(self, code: Code) -> tuple[int, int]:
        """The pair (low, high) of levels that converted neurons send.

        Of the chip's pairs it is the one with the smallest high level, because steps
        give the resolution. If the chip computes a single step, levels alone give it,
        and the pair with the largest high level is taken. Where no source states
        levels, it is the pair of the code.
        """
        if not self.levels:
            return code.levels
        pairs = []
        for low, high in self.levels:
            # Where any high level is allowed, neurons send single spikes.
            pairs.append((low, 1 if high is None else high))
        choose = max if self.one_step else min
        return choose(pairs, key=operator.itemgetter(1))

    def __repr__(self) -> str:
        return f"Chip({self.name!r})"

    def _table(self) -> Table:
        # None is what `source` returns for a property without one.
        footnotes: dict[str | None, str] = {}
        for number, (source, _) in enumerate(self.sources, 1):
            footnotes[source] = f"[{number}]"
        lines = [f"{footnote} {source}" for source, footnote in footnotes.items()]
        not_stated = f"not stated: {', '.join(self.not_stated)}"
        lines += textwrap.wrap(not_stated, 80, subsequent_indent="  ")
        rows = [("property", "value", "source")]
        properties = self._properties()
        for name, value in properties.items():
            rows.append((name, span(value), footnotes.get(self.source(name), "")))
        if self.first is not None:
            for name, value in self.first._properties().items():
                if value != properties.get(name):
                    footnote = footnotes.get(self.first.source(name), "")
                    rows.append((f"first: {name}", span(value), footnote))
        return Table(rows, above=self.name, below="\n".join(lines))


def profile(name: str, statements: Mapping[str, Mapping[str, Any]]) -> Chip:
    """A chip made of what its sources state.

    Args:
        name: of the chip.
        statements: source -> the fields of `Chip` that it states; "rules" are the rules
            of this source alone.
    """
    fields: dict[str, Any] = {}
    rules: list[Rule] = []
    sources = []
    for source, stated in statements.items():
        names = []
        for field, value in stated.items():
            if field == "rules":
                rules += value
                names += [rule.name for rule in value]
            else:
                fields[field] = value
                names.append(field)
        sources.append((source, " ".join(names)))
    return Chip(name, **fields, rules=tuple(rules), sources=tuple(sources))
