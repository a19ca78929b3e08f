"""`Chip`: a chip as its numbers and a tuple of rules, each with its source.

None means that no source states a number. A report then compares nothing and says
"not stated". We measured none of it on a chip.
"""

import dataclasses
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
        weight_bits: widths that a weight may have, its sign included.
        state_bits, threshold_bits, bias_bits: of a potential, a threshold and a bias,
            signed, in units of a weight.
        overflow: what happens to a potential outside of its bits.
        scale: what shares a scale of weights, see `snnjax.deploy.quantize`.
        thresholds, biases, initial_potentials: what has a number of its own: a
            "layer", a "channel" or a "neuron".
        resets: of its neurons.
        levels: pairs (low, high) that a neuron may send in a step; high None: any.
        lowest: of a potential: "any" bound that is set, or that of its "register".
        leak: a `Leak`, its rule; "factor", by a rule that is not stated; "constant",
            v - c, which is a bias.
        synapse: "instant", or "exponential" if currents decay over steps.
        input_levels: (low, high) of an element of x in a step; high None: any.
        readout: "potential" if potentials of an output can be read, or "spikes".
        programmable: what users can write: "neurons" of their own, which run any code;
            or "thresholds" before each step, as a code other than rate coding and a
            wait need.
        one_step: it computes T = 1 alone, graded activations without time.
        joules: of a synaptic operation, and of the update of a neuron at a step.
        rules: what else it can run, see `Rule`, e.g. ``Limit("kernels", (1, 3))``. Of
            several rules with one name the last one counts.
        first: the profile for layers that read x, where it differs; `replace` of a
            field does not change it.
        sources: pairs of a source and the fields and rules that it states.

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
    first: "Chip | None" = None
    sources: tuple[tuple[str, str], ...] = ()

    def __post_init__(self):
        by_name = {rule.name: rule for rule in self.rules}
        object.__setattr__(self, "rules", tuple(by_name.values()))

    def source(self, field: str) -> str | None:
        """The source of a field or a rule; None: there is none."""
        for source, fields in self.sources:
            if field in fields.split():
                return source
        return None

    @property
    def not_stated(self) -> tuple[str, ...]:
        """Limits that no source states."""
        return tuple(name for name in _LIMITS if name not in self._properties())

    def _properties(self) -> dict[str, Any]:
        """Name -> value of each property that is stated, and of each rule."""
        properties = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            is_property = field.name not in ("name", "rules", "first", "sources")
            if is_property and value is not None:
                properties[field.name] = value
        for rule in self.rules:
            properties[rule.name] = rule
        return properties

    def defaults(
        self, steps: int, code: Code | None, model: Any
    ) -> tuple[Code, Any, Per]:
        """Code, model, and what has a threshold, for ``snnjax.convert(..., chip=)``.

        What is given stays. Otherwise the code is rate coding, for which no neuron
        changes from step to step, with the chip's levels whose high one is least. A
        chip of one step takes the highest, under a code for which biases suffice.

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
        # Users of a programmable chip can write the neurons that a code asks for.
        has_own_neurons = self.programmable == "neurons"
        if model is None and (code.is_streaming() or steps == 1 or not has_own_neurons):
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
        subtracts = self.resets is None or "subtract" in self.resets
        may_subtract = subtracts or self.programmable == "neurons"
        if steps > 1 and not has_model and not may_subtract:
            raise ValueError(
                f"{self.name} resets to zero, and conversion needs the reset by "
                "subtraction; allowed: steps=1; or no chip=, for several of its "
                "neurons in place of one"
            )

    def _levels(self, code: Code) -> tuple[int, int]:
        """The levels of converted neurons: the least, or the most of a single step."""
        pairs = [(low, high or 1) for low, high in self.levels or (code.levels,)]
        if self.one_step:
            return max(pairs, key=lambda pair: pair[1])
        return min(pairs, key=lambda pair: pair[1])

    def __repr__(self) -> str:
        return f"Chip({self.name!r})"

    def _table(self) -> Table:
        numbers = {source: f"[{n}]" for n, (source, _) in enumerate(self.sources, 1)}
        properties = self._properties()
        rows = [("property", "value", "source")]
        for name, value in properties.items():
            rows.append((name, _shown(value), numbers.get(self.source(name) or "", "")))
        if self.first is not None:
            for name, value in self.first._properties().items():
                if value != properties.get(name):
                    number = numbers.get(self.first.source(name) or "", "")
                    rows.append((f"first: {name}", _shown(value), number))
        notes = [f"{number} {source}" for source, number in numbers.items()]
        unknown = f"not stated: {', '.join(self.not_stated)}"
        notes += textwrap.wrap(unknown, 80, subsequent_indent="  ")
        return Table(rows, above=self.name, below="\n".join(notes))


def _shown(value: Any) -> str:
    """A number or a rule as text."""
    return span(value) if isinstance(value, tuple | range) else str(value)


def profile(name: str, statements: Mapping[str, Mapping[str, Any]]) -> Chip:
    """A chip by its sources: source -> the fields that it states, and its "rules"."""
    fields: dict[str, Any] = {}
    rules: list[Rule] = []
    sources = []
    for source, stated in statements.items():
        numbers = {field: stated[field] for field in stated if field != "rules"}
        fields |= numbers
        stated_rules = stated.get("rules", ())
        rules += stated_rules
        names = [*numbers, *(rule.name for rule in stated_rules)]
        sources.append((source, " ".join(names)))
    return Chip(name, **fields, rules=tuple(rules), sources=tuple(sources))
