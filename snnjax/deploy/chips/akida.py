"""The profile of Akida 1.0 (AKD1000), which computes graded activations in one step.

Layers that read x have other limits than deeper ones. Sources: BrainChip's
documentation, its simulator, and its mapper where the package akida is installed.
"""

import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace

from snnjax.deploy.chips.chip import Chip, profile
from snnjax.deploy.chips.geometry import Layer
from snnjax.deploy.chips.rules import (
    Finding,
    Limit,
    Rule,
    SumPools,
    outside_limits,
    span,
)
from snnjax.deploy.lowering import values
from snnjax.deploy.tools.akida import INSTALL, to_akida
from snnjax.deploy.tools.refusals import import_package
from snnjax.network.capture.check import ConversionError


@dataclass(frozen=True)
class PaddingModes(Rule):
    """Convolutions have one of the paddings ``modes``: "SAME" or "VALID"."""

    name: str = "padding_modes"
    modes: tuple[str, ...] = ()

    def layer_findings(self, layer: Layer) -> Iterator[Finding]:
        for kernel in layer.kernels:
            if set(kernel.modes).isdisjoint(self.modes):
                problem = f"padding {kernel.padding}, not {span(self.modes)}"
                yield outside_limits(self.name, problem)

    def __str__(self) -> str:
        return span(self.modes)


@dataclass(frozen=True)
class MakersMapper(Rule):
    """The mapper of the package akida places the network, where it is installed."""

    name: str = "mapper"

    def network_findings(self, network: values.Layers) -> Iterator[Finding]:
        if network.arithmetic is None or importlib.util.find_spec("akida") is None:
            return
        akida = import_package("akida", "report", INSTALL)
        try:
            model = to_akida(network)
        except ConversionError as error:
            reason = error.problems[0].reason
            problem = f"the maker's mapper was not asked: {reason}"
            yield Finding(self.name, "fits", problem, remedy="")
            return
        try:
            model.map(akida.AKD1000(), hw_only=True)
        except RuntimeError as error:
            problem = f"the maker's mapper: {error}"
            yield Finding(self.name, "no", problem, "use fewer or smaller layers")
            return
        core_count = 0
        byte_count = 0
        for sequence in model.sequences:
            byte_count += len(sequence.program)
            for layers_at_once in sequence.passes:
                for layer in layers_at_once.layers:
                    core_count += len(layer.mapping.nps)
        problem = (
            f"{core_count} cores and {byte_count} bytes of program, by the maker's "
            "mapper"
        )
        yield Finding(self.name, "fits", problem, remedy="")


def akida1() -> Chip:
    """Akida 1.0 (AKD1000): graded activations in one step.

    With activations of b bits, its layers compute in whole numbers

        y = clip(ceil((sum w x - theta) / (Delta 2^(4-b))), 0, 2^b - 1).

    That is a neuron at T = 1 with levels (0, 2^b - 1), if Delta = V 2^(b-4) and
    theta = V - b_j - v(0) - 1. V is the threshold, b_j the bias of channel j and
    v(0) the initial potential.

    >>> akida1().levels, akida1().first.weight_bits
    (((0, 1), (0, 3), (0, 15)), (1, 2, 4, 8))
    """
    documentation = "brainchip-inc.github.io/akida_examples_"
    constraints = documentation + "2.4.0-doc-1/user_guide/1.0_hw_constraints.html"
    common_rules = (
        Limit("groups", (1,)),
        SumPools(whole_images=range(1, 33)),
        Limit("dense_inputs", 57334),
    )
    deeper = profile(
        "Akida 1.0",
        {
            constraints: dict(
                weight_bits=(1, 2, 4),
                levels=((0, 1), (0, 3), (0, 15)),
                input_levels=(0, 255),
                rules=(
                    Limit("kernels", (1, 3, 5, 7)),
                    Limit("strides", (1, 2)),
                    PaddingModes(modes=("SAME",)),
                    *common_rules,
                ),
            ),
            documentation + "2.3.0-doc-1/user_guide/hw_constraints.html": dict(
                rules=(Limit("strided_kernels", (3,)),)
            ),
            "akida 2.19.3, its software simulator: 245,760 outputs compared": dict(
                threshold_bits=32,
                bias_bits=32,
                thresholds="channel",
                biases="channel",
                initial_potentials="channel",
                synapse="instant",
                one_step=True,
                rules=(MakersMapper(),),
            ),
            "brainchip quantizeml 1.2.5, QuantizationParams": dict(scale="channel"),
        },
    )
    first_rules = (
        Limit("kernels", (3, 5, 7)),
        Limit("strides", (1, 2, 3)),
        PaddingModes(modes=("SAME", "VALID")),
        Limit("input_channels", (1, 3)),
        Limit("input_rows", range(5, sys.maxsize)),
        Limit("input_columns", range(5, 257)),
        *common_rules,
    )
    input_source = (constraints, "input_channels input_rows input_columns")
    first = replace(
        deeper,
        weight_bits=(1, 2, 4, 8),
        rules=first_rules,
        sources=(input_source, *deeper.sources),
    )
    return replace(deeper, first=first)
