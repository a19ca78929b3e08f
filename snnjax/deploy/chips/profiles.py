"""Profiles of chips: what their documents and tools state, each value with its source.

None means that no source states the value. A report then compares nothing and says
"not stated". We measured none of it on a chip.
"""

import dataclasses
import sys
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from snnjax._text import Table, shown_as_table
from snnjax._types import Per
from snnjax.codes import Code, radix, rate
from snnjax.deploy.lowering.values import Leak
from snnjax.neurons.models import IntegrateAndFire

Numbers = tuple[int, ...] | range
Granularity = Literal["layer", "channel", "neuron"]  # what has a number of its own


class Core(NamedTuple):
    """Words of memory of a core, or that a layer needs.

    Attributes:
        kernels: of weights; c input channels, f filters and k taps need c f k words,
            or c 2^(ceil log2 k + ceil log2 f) if kernels are addressed by bits.
        neurons: of potentials.
    """

    kernels: int
    neurons: int


def span(values: Sequence[Any]) -> str:
    """Values as text.

    >>> span(range(1, 5)), span(range(5, sys.maxsize)), span((1, 2, 4))
    ('1 to 4', '5 and more', '1, 2, 4')
    """
    if isinstance(values, range):
        last = f"to {values[-1]}" if values.stop < sys.maxsize else "and more"
        return f"{values[0]} {last}"
    return ", ".join(map(str, values))


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
        programmable: users can write neuron models for it.
        step_thresholds: thresholds may change from step to step, as a code other than
            rate coding and a wait need: the "host" writes them.
        one_step: it computes T = 1 alone, graded activations without time.
        event_driven: it has no steps; each spike is computed when it arrives.
        kernels, strides, paddings: of convolutions, per axis.
        strided_kernels: kernels that may have a stride above 1.
        padding_modes: "SAME" and "VALID".
        groups: of convolutions.
        pools: windows of sum-pools. global_pool: images that a sum may read whole.
        channels: of input and output, at most. input_channels: of x.
        input_rows, input_columns: of an image that a layer reads.
        output_image: rows and columns of its neurons, at most.
        dense_as_kernel: a dense layer is a convolution as large as its image.
        dense_inputs: of a dense layer, at most.
        successive_maps: maps may follow each other without neurons between.
        one_kernel: all that a population reads goes through one kernel and stride.
        destinations: populations that one may send to, at most.
        fan_out: neurons that a neuron may send to, at most.
        inputs, neurons, outputs: of a chip, at most.
        cores: memory of each core, where a core runs one population.
        kernel_memory: "powers_of_two" or "plain" words of kernels, see `Core`.
        input_levels: (low, high) of an element of x in a step; high None: any.
        readout: "potential" if potentials of an output can be read, or "spikes".
        joules: of a synaptic operation, and of the update of a neuron at a step.
        first: the profile for layers that read x, where it differs; `replace` of a
            field does not change it.
        sources: pairs of a source and the fields that it states.

    >>> import dataclasses
    >>> chip = dataclasses.replace(speck(), name="mine", kernels=(1, 3))
    >>> chip.kernels, chip.state_bits, chip == speck()
    ((1, 3), 16, False)
    >>> speck().source("kernels")
    'synsense/sinabs 904eb893, docs/speck/overview.md'
    """

    name: str
    weight_bits: tuple[int, ...] | None = None
    state_bits: int | None = None
    threshold_bits: int | None = None
    bias_bits: int | None = None
    overflow: Literal["saturate", "wrap"] | None = None
    thresholds: Granularity | None = None
    biases: Granularity | None = None
    initial_potentials: Granularity | None = None
    resets: tuple[str, ...] | None = None
    levels: tuple[tuple[int, int | None], ...] | None = None
    lowest: Literal["any", "register"] | None = None
    leak: Leak | Literal["factor", "constant"] | None = None
    synapse: Literal["instant", "exponential"] | None = None
    kernels: Numbers | None = None
    strides: Numbers | None = None
    paddings: Numbers | None = None
    pools: Numbers | None = None
    groups: Numbers | None = None
    channels: int | None = None
    input_rows: Numbers | None = None
    input_columns: Numbers | None = None
    output_image: int | None = None
    dense_inputs: int | None = None
    successive_maps: bool | None = None
    destinations: int | None = None
    fan_out: int | None = None
    inputs: int | None = None
    neurons: int | None = None
    outputs: int | None = None
    input_levels: tuple[int, int | None] | None = None
    readout: Literal["potential", "spikes"] | None = None
    # What single chips have beside these limits; None: nothing of the kind.
    scale: Literal["channel", "layer", "power_of_two"] | None = None
    programmable: bool | None = None
    step_thresholds: Literal["host"] | None = None
    one_step: bool | None = None
    event_driven: bool | None = None
    strided_kernels: Numbers | None = None
    padding_modes: tuple[str, ...] | None = None
    global_pool: Numbers | None = None
    input_channels: Numbers | None = None
    dense_as_kernel: bool | None = None
    one_kernel: bool | None = None
    cores: tuple[Core, ...] | None = None
    kernel_memory: Literal["powers_of_two", "plain"] | None = None
    joules: tuple[float, float] | None = None
    first: "Chip | None" = None
    sources: tuple[tuple[str, str], ...] = ()

    def source(self, field: str) -> str | None:
        """The source of a field; None: there is none."""
        sources = (name for name, fields in self.sources if field in fields.split())
        return next(sources, None)

    def defaults(
        self, steps: int, code: Code | None, model: Any
    ) -> tuple[Code, Any, Per]:
        """Code, model, and what has a threshold, for ``snnjax.convert(..., chip=)``.

        What is given stays. Otherwise the code is rate coding, for which no neuron
        changes from step to step, with the chip's levels whose high one is least. A
        chip of one step takes the highest, under a code for which biases suffice.

        Raises:
            ValueError: conversion makes no neurons for this chip, or not at these T.

        >>> code, model, per = speck().defaults(16, None, None)
        >>> code, model.levels, per
        (rate(), (0, 1), 'layer')
        """
        can_subtract = self.programmable or "subtract" in (self.resets or ("subtract",))
        for applies, problem, allowed in (
            (self.one_step and steps != 1, f"computes T = 1, not {steps}", "steps=1"),
            (
                self.synapse == "exponential",
                "filters currents, and conversion needs instant synapses",
                "networks that were trained with such synapses",
            ),
            (
                steps > 1 and model is None and not can_subtract,
                "resets to zero, and conversion needs the reset by subtraction",
                "steps=1; or no chip=, for several of its neurons in place of one",
            ),
        ):
            if applies:
                raise ValueError(f"{self.name} {problem}; allowed: {allowed}")
        if code is None:
            code = radix() if self.one_step else rate()
        if model is None and (
            code.is_streaming() or steps == 1 or not self.programmable
        ):
            pairs = [(low, high or 1) for low, high in self.levels or (code.levels,)]
            levels = (max if self.one_step else min)(pairs, key=lambda pair: pair[1])
            model = IntegrateAndFire(levels=levels, dead_zone=code.dead_zone(levels))
        return code, model, "layer" if self.thresholds == "layer" else "channel"

    @property
    def not_stated(self) -> tuple[str, ...]:
        """Limits that no source states: fields before `scale` that are None."""
        # None means "not stated" for limits that every chip must have, and "nothing of
        # the kind" for the fields from `scale` on.
        limits = _VALUES[: _VALUES.index("scale")]
        return tuple(name for name in limits if getattr(self, name) is None)

    def __repr__(self) -> str:
        return f"Chip({self.name!r})"

    def _table(self) -> Table:
        order = [source for source, _ in self.sources]
        rows = [("property", "value", "source")]
        for prefix, chip in (("", self), ("first: ", self.first or self)):
            for name in _VALUES:
                value = getattr(chip, name)
                is_repeated = bool(prefix) and value == getattr(self, name)
                if value is not None and not is_repeated:
                    source = self.source(name)
                    number = f"[{order.index(source) + 1}]" if source else ""
                    rows.append((prefix + name, _shown(value), number))
        notes = [f"[{n}] {source}" for n, source in enumerate(order, 1)]
        unknown = f"not stated: {', '.join(self.not_stated)}"
        notes += textwrap.wrap(unknown, 80, subsequent_indent="  ")
        return Table(rows, above=self.name, below="\n".join(notes))


_UNSOURCED = "name", "first", "sources"  # all other fields have a source
_VALUES = [f.name for f in dataclasses.fields(Chip) if f.name not in _UNSOURCED]


def _shown(value: Any) -> str:
    if not isinstance(value, tuple | range):
        return str(value)
    if isinstance(value, tuple) and value and isinstance(value[0], Core):
        value = [f"{n} x {k}/{m}" for (k, m), n in Counter(value).items()]
    return span(value) or "none"


def _profile(name: str, values_of: Mapping[str, Mapping[str, Any]]) -> Chip:
    """A chip by its sources: source -> the fields that it states, with values."""
    fields = {field: v for values in values_of.values() for field, v in values.items()}
    sources = [(source, " ".join(values)) for source, values in values_of.items()]
    return Chip(name, **fields, sources=tuple(sources))


def speck() -> Chip:
    """Speck, with DYNAP-CNN: nine cores for convolutions, driven by events."""
    kernels = [16, 16, 16, 32, 32, 64, 64, 16, 16]  # Ki words of each core
    neurons = [64, 64, 64, 32, 32, 16, 16, 16, 16]
    cores = [Core(1024 * k, 1024 * n) for k, n in zip(kernels, neurons, strict=True)]
    sinabs = "synsense/sinabs 904eb893, "
    docs = "synsense/sinabs 13ad316c, docs/speck/faqs/"
    return _profile(
        "Speck",
        {
            sinabs + "docs/speck/overview.md": dict(
                weight_bits=(8,),
                state_bits=16,
                leak="constant",
                event_driven=True,
                kernels=range(1, 17),
                strides=(1, 2, 4, 8),
                paddings=range(8),
                pools=(1, 2, 4),
                channels=1024,
                input_rows=range(1, 129),
                input_columns=range(1, 129),
                output_image=64,
                destinations=2,
                kernel_memory="powers_of_two",
            ),
            sinabs + "chips/dynapcnn.py": dict(
                resets=("subtract", "zero"),
                thresholds="layer",
                biases="channel",
                initial_potentials="neuron",
                one_kernel=True,
                cores=tuple(cores),
            ),
            sinabs + "discretize.py": dict(
                threshold_bits=16, bias_bits=8, scale="layer", lowest="any"
            ),
            sinabs + "docs/speck/dangers.md": dict(
                levels=((0, None),), input_levels=(0, None)
            ),
            docs + "tips_for_training.md": dict(synapse="instant"),
            docs + "available_network_arch.md": dict(successive_maps=False),
            "synsense/sinabs 283d3f13, docs/speck/specksim.md": dict(
                dense_as_kernel=True, readout="spikes"
            ),
        },
    )


def xylo() -> Chip:
    """Xylo Audio: 1000 neurons with exponential synapses."""
    return _profile(
        "Xylo",
        {
            "rockpool.ai/devices/xylo-overview.html": dict(
                weight_bits=(8,),
                thresholds="neuron",
                biases="neuron",
                resets=("subtract",),
                levels=((0, 31),),
                lowest="register",
                leak=Leak("shift"),
                synapse="exponential",
                fan_out=64,
                inputs=16,
                neurons=1000,
                outputs=8,
                input_levels=(0, 15),
            ),
            "synsense/rockpool 42cee1c9, transform/quantize_methods.py": dict(
                state_bits=16, threshold_bits=16, bias_bits=16, scale="channel"
            ),
        },
    )


def loihi1() -> Chip:
    """Loihi 1. Its cores take 81 pJ to update a neuron that is active, 52 pJ otherwise.

    Potentials have 24 bits, and a weight counts 2^6, as on `loihi2`; v must exceed V.

    >>> loihi1().joules
    (2.36e-11, 8.1e-11)
    """
    return _profile(
        "Loihi 1",
        {
            "Davies et al., IEEE Micro 2018, table 2 (SPICE)": dict(
                joules=(23.6e-12, 81e-12)
            ),
            "intel-nrc-ecosystem/models 3dc53bf": dict(
                weight_bits=(9,),
                state_bits=18,
                threshold_bits=18,
                biases="neuron",
                resets=("zero", "subtract"),
                levels=((0, 1),),
                leak=Leak("factor", bits=12, fraction=6),
                synapse="instant",
            ),
        },
    )


def loihi2() -> Chip:
    """Loihi 2 with the LIF neuron of Lava, which is bit-accurate to the chip's.

    Potentials have 24 bits there, and a weight counts 2^6: 18 bits in units of a
    weight. A threshold has 17 bits without a sign, and v must exceed it: write V - 1.
    """
    lava = "lava-nc/lava b6822fbc, src/lava/"
    return _profile(
        "Loihi 2",
        {
            lava + "proc/lif/models.py": dict(
                state_bits=18,
                threshold_bits=18,
                bias_bits=13,
                overflow="saturate",
                thresholds="layer",
                biases="neuron",
                initial_potentials="neuron",
                resets=("zero",),
                levels=((0, 1),),
                lowest="register",
                leak=Leak("factor", bits=12, fraction=6),
                synapse="instant",
            ),
            lava + "utils/weightutils.py": dict(weight_bits=(8,), scale="power_of_two"),
            "open-neuromorphic.org/neuromorphic-computing/hardware/loihi-2-intel": dict(
                programmable=True, neurons=1_000_000
            ),
        },
    )


def akida1() -> Chip:
    """Akida 1.0 (AKD1000): graded activations in one step.

    With b bits and whole numbers, y = clip(ceil((sum w x - theta) / (Delta 2^(4-b))),
    0, 2^b - 1) is a neuron at T = 1 with levels (0, 2^b - 1), Delta = V 2^(b-4) and
    theta = V - b_j - v(0) - 1.

    >>> akida1().levels, akida1().first.weight_bits
    (((0, 1), (0, 3), (0, 15)), (1, 2, 4, 8))
    """
    docs = "brainchip-inc.github.io/akida_examples_"
    deep = _profile(
        "Akida 1.0",
        {
            docs + "2.4.0-doc-1/user_guide/1.0_hw_constraints.html": dict(
                weight_bits=(1, 2, 4),
                kernels=(1, 3, 5, 7),
                strides=(1, 2),
                padding_modes=("SAME",),
                groups=(1,),
                pools=(),
                global_pool=range(1, 33),
                levels=((0, 1), (0, 3), (0, 15)),
                dense_inputs=57334,
                input_levels=(0, 255),
                # Limits of the first layer alone.
                input_channels=None,
                input_rows=None,
                input_columns=None,
            ),
            docs + "2.3.0-doc-1/user_guide/hw_constraints.html": dict(
                strided_kernels=(3,)
            ),
            "akida 2.19.3, its software simulator: 245,760 outputs compared": dict(
                threshold_bits=32,
                bias_bits=32,
                thresholds="channel",
                biases="channel",
                initial_potentials="channel",
                synapse="instant",
                one_step=True,
            ),
            "brainchip quantizeml 1.2.5, QuantizationParams": dict(scale="channel"),
        },
    )
    first = dataclasses.replace(
        deep,
        weight_bits=(1, 2, 4, 8),
        kernels=(3, 5, 7),
        strides=(1, 2, 3),
        strided_kernels=None,
        padding_modes=("SAME", "VALID"),
        input_channels=(1, 3),
        input_rows=range(5, sys.maxsize),
        input_columns=range(5, 257),
    )
    return dataclasses.replace(deep, first=first)


def catalyst_n1() -> Chip:
    """A core of Catalyst N1, an open design whose RTL can be run.

    ``benchmarks/silicon_rtl.py`` runs it, also with resets by subtraction and digits of
    both signs, which take three and seven of its neurons for one.

    >>> catalyst_n1().step_thresholds
    'host'
    """
    return _profile(
        "Catalyst N1",
        {
            "catalyst-neuromorphic/catalyst-n1 fbfd2e5, rtl/scalable_core_v2.v": dict(
                weight_bits=(16,),
                state_bits=15,
                threshold_bits=15,
                thresholds="neuron",
                initial_potentials="neuron",
                resets=("zero",),
                levels=((0, 1),),
                synapse="instant",
                fan_out=4095,
                neurons=1024,
                step_thresholds="host",
                readout="potential",
            ),
        },
    )


def spinnaker2() -> Chip:
    """SpiNNaker 2 with the NIR importer of py-spinnaker2."""
    return _profile(
        "SpiNNaker 2",
        {
            "py-spinnaker2, s2_nir.py (NIR importer)": dict(
                weight_bits=(8,),
                scale="layer",
                thresholds="neuron",
                resets=("subtract", "zero"),
                levels=((0, 1),),
                leak="factor",
                synapse="instant",
                successive_maps=False,
                input_levels=(0, 1),
                readout="potential",
            ),
            "arXiv 2401.04491: Arm Cortex-M4F cores": dict(programmable=True),
            "Hoeppner et al., 2019, arXiv 1903.08941": dict(joules=(450e-12, 2.19e-9)),
        },
    )
