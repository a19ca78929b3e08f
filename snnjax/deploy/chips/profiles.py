"""Profiles of chips: what their documents and tools state, each value with its source.

These chips have few rules beside their numbers. Two chips that have rules of their own
are in ``speck.py`` and ``akida.py``.
"""

from snnjax.deploy.chips.chip import Chip, profile
from snnjax.deploy.chips.rules import Limit, NeuronsAfterMaps
from snnjax.deploy.lowering.values import Leak


def xylo() -> Chip:
    """Xylo Audio: 1000 neurons with exponential synapses."""
    return profile(
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
                input_levels=(0, 15),
                rules=(
                    Limit("fan_out", 64),
                    Limit("inputs", 16),
                    Limit("neurons", 1000),
                    Limit("outputs", 8),
                ),
            ),
            "synsense/rockpool 42cee1c9, transform/quantize_methods.py": dict(
                state_bits=16,
                threshold_bits=16,
                bias_bits=16,
                scale="channel",
            ),
        },
    )


def loihi1() -> Chip:
    """Loihi 1, whose neurons fire if v exceeds V.

    Potentials have 24 bits, and a weight is multiplied by 2^6, as on `loihi2`. A core
    takes 81 pJ to update a neuron that is active, and 52 pJ otherwise.

    >>> loihi1().joules
    (2.36e-11, 8.1e-11)
    """
    return profile(
        "Loihi 1",
        {
            "Davies et al., IEEE Micro 2018, table 2 (SPICE)": dict(
                joules=(23.6e-12, 81e-12),
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

    Lava has been archived since 13 May 2026. `run` computes its rule without it.

    Potentials have 24 bits there, and a weight is multiplied by 2^6, which leaves 18
    bits in units of a weight. A threshold has 17 bits without a sign. A neuron fires if
    v exceeds its threshold, so write V - 1 for a threshold of V.
    """
    lava = "lava-nc/lava b6822fbc, src/lava/"
    return profile(
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
                programmable="neurons",
                rules=(Limit("neurons", 1_000_000),),
            ),
        },
    )


def catalyst_n1() -> Chip:
    """A core of Catalyst N1, an open design whose RTL can be run.

    ``benchmarks/silicon_rtl.py`` runs it, also with resets by subtraction and digits of
    both signs, which take three and seven of its neurons for one.

    >>> catalyst_n1().programmable
    'thresholds'
    """
    return profile(
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
                readout="potential",
                programmable="thresholds",
                rules=(Limit("fan_out", 4095), Limit("neurons", 1024)),
            ),
        },
    )


def spinnaker2() -> Chip:
    """SpiNNaker 2 with the NIR importer of py-spinnaker2."""
    return profile(
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
                input_levels=(0, 1),
                readout="potential",
                rules=(NeuronsAfterMaps(),),
            ),
            "arXiv 2401.04491: Arm Cortex-M4F cores": dict(programmable="neurons"),
            "Hoeppner et al., 2019, arXiv 1903.08941": dict(joules=(450e-12, 2.19e-9)),
        },
    )
