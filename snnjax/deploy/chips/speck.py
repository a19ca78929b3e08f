"""The profile of Speck, with DYNAP-CNN: nine cores for convolutions, driven by events.

The chip has no steps: it computes each spike when it arrives. A core runs one
population, which reads all of its inputs through one kernel. Sources: sinabs and its
documentation.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from snnjax.deploy.chips.chip import Chip, profile
from snnjax.deploy.chips.cores import Core, Cores
from snnjax.deploy.chips.geometry import Layer
from snnjax.deploy.chips.rules import (
    Finding,
    Limit,
    NeuronsAfterMaps,
    Rule,
    SumPools,
    outside_limits,
)
from snnjax.deploy.lowering import values


@dataclass(frozen=True)
class EventDriven(Rule):
    """The chip has no steps, and adds a bias at each tick of a clock of its own."""

    name: str = "event_driven"

    def network_findings(self, network: values.Layers) -> Iterator[Finding]:
        yield Finding(
            field=self.name,
            verdict="approximately",
            problem="no steps: a neuron may fire before all spikes of a step arrive",
            remedy="compare the accuracy on the chip; more steps bring rates together",
        )

    def layer_findings(self, layer: Layer) -> Iterator[Finding]:
        if any(bias.any() for bias in layer.arrays["bias_bits"]):
            yield Finding(
                field=self.name,
                verdict="approximately",
                problem="bias at each step, not at ticks of a clock",
                remedy="train without biases and BatchNorm, and fit v(0) instead of "
                "biases",
            )


@dataclass(frozen=True)
class DenseAsKernel(Rule):
    """The chip computes a dense layer as a convolution with a kernel of image size."""

    name: str = "dense_as_kernel"

    def seen(self, layer: Layer) -> Layer:
        return replace(layer, dense_as_kernel=True)


@dataclass(frozen=True)
class EqualPadding(Rule):
    """Kernels are square, and all sides of an image have the same padding."""

    name: str = "equal_padding"

    def seen(self, layer: Layer) -> Layer:
        return replace(layer, equal_padding=True)

    def layer_findings(self, layer: Layer) -> Iterator[Finding]:
        for kernel in layer.kernels:
            is_equal = all(low == high for low, high in kernel.padding)
            is_square = len(set(kernel.size)) == 1
            if not is_equal or not is_square:
                size = "x".join(map(str, kernel.size))
                padding = f"padding {kernel.padding}, not square and alike"
                yield outside_limits(self.name, f"kernel {size} with {padding}")


@dataclass(frozen=True)
class OneKernel(Rule):
    """All that a population reads goes through one kernel with one stride."""

    name: str = "one_kernel"

    def layer_findings(self, layer: Layer) -> Iterator[Finding]:
        strides_and_images = {(kernel.stride, kernel.image) for kernel in layer.kernels}
        if len(strides_and_images) > 1:
            problem = "inputs of unlike stride or size, not one kernel"
            yield outside_limits(self.name, problem)


def speck() -> Chip:
    """Speck, with DYNAP-CNN: nine cores for convolutions, driven by events."""
    kernel_ki = (16, 16, 16, 32, 32, 64, 64, 16, 16)  # Ki words of each core
    neuron_ki = (64, 64, 64, 32, 32, 16, 16, 16, 16)
    cores = []
    for kernels, neurons in zip(kernel_ki, neuron_ki, strict=True):
        cores.append(Core(kernels=1024 * kernels, neurons=1024 * neurons))
    sinabs = "synsense/sinabs 904eb893, "
    questions = "synsense/sinabs 13ad316c, docs/speck/faqs/"
    return profile(
        "Speck",
        {
            sinabs + "docs/speck/overview.md": dict(
                weight_bits=(8,),
                state_bits=16,
                leak="constant",
                rules=(
                    EventDriven(),
                    Limit("kernels", range(1, 17)),
                    Limit("strides", (1, 2, 4, 8)),
                    Limit("paddings", range(8)),
                    EqualPadding(),
                    SumPools(windows=(1, 2, 4)),
                    Limit("channels", 1024),
                    Limit("input_rows", range(1, 129)),
                    Limit("input_columns", range(1, 129)),
                    Limit("output_image", 64),
                    Limit("destinations", 2),
                ),
            ),
            sinabs + "chips/dynapcnn.py": dict(
                resets=("subtract", "zero"),
                thresholds="layer",
                biases="channel",
                initial_potentials="neuron",
                # That kernels are addressed by bits is in docs/speck/overview.md.
                rules=(OneKernel(), Cores(cores=tuple(cores), addressed_by_bits=True)),
            ),
            sinabs + "discretize.py": dict(
                threshold_bits=16,
                bias_bits=8,
                scale="layer",
                lowest="any",
            ),
            sinabs + "docs/speck/dangers.md": dict(
                levels=((0, None),),
                input_levels=(0, None),
            ),
            questions + "tips_for_training.md": dict(synapse="instant"),
            questions + "available_network_arch.md": dict(rules=(NeuronsAfterMaps(),)),
            "synsense/sinabs 283d3f13, docs/speck/specksim.md": dict(
                readout="spikes",
                rules=(DenseAsKernel(),),
            ),
        },
    )
