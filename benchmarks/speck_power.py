"""What does a spike cost on Speck, as measured and by our estimate with memory?

    python -m benchmarks.speck_power --out benchmarks/results/speck_power.json

Yao et al. (Nature Communications 2024, doi.org/10.1038/s41467-024-47811-6, table 1)
measured six networks on a Speck, 32C3S1-32C3S2-32C3S1-AP4-32FC: power at rest and in
all, and millions of spikes in a window of 540 ms, each for a network and for the same
one with fewer spikes. How many spikes each layer sends is not published. A spike
reaches 288 synapses through a convolution 3x3 with 32 filters, 72 if its stride is 2,
and 32 through the dense layer; fewer at borders. So the synapses of all spikes lie
between 32 and 288 for each.
"""

from typing import Any, NamedTuple

from benchmarks import timing
from snnjax.measures import ENERGY_PER_AC, access_energy


class Measurement(NamedTuple):
    """A row of the paper's table."""

    resting_power: float  # mW
    power: float  # mW in all
    spikes: float  # millions in a window


TABLE_1 = {
    "gestures": Measurement(0.42, 9.5, 1.0),
    "gestures, fewer spikes": Measurement(0.42, 3.8, 0.4),
    "gait by day": Measurement(0.42, 16.1, 2.9),
    "gait by day, fewer spikes": Measurement(0.42, 7.3, 1.2),
    "gait by night": Measurement(0.42, 46.8, 3.3),
    "gait by night, fewer spikes": Measurement(0.42, 12.3, 1.5),
}
WINDOW = 0.54  # s
LARGEST_FAN_OUT = 9 * 32  # synapses of a spike
SMALLEST_FAN_OUT = 32
KERNEL_WORDS = 16 * 2**10  # of the memories of a core
NEURON_WORDS = 64 * 2**10

COLUMNS = {
    "spike": "nJ per spike",
    "most": f"pJ per synapse, if {LARGEST_FAN_OUT}",
    "fewest": f"if {SMALLEST_FAN_OUT}",
}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """The command: a result with measured and estimated energies."""
    options = timing.parser(__doc__).parse_args(arguments)
    result = timing.new_result(__doc__, ("jax",))
    sides = result["sides"]
    for name, measurement in TABLE_1.items():
        watts = 1e-3 * (measurement.power - measurement.resting_power)
        joules = WINDOW * watts / (1e6 * measurement.spikes)
        sides[f"measured: {name}"] = {
            "spike": 1e9 * joules,
            "most": 1e12 * joules / LARGEST_FAN_OUT,
            "fewest": 1e12 * joules / SMALLEST_FAN_OUT,
        }
    # A weight of a byte is read, a potential of two bytes is read and written. The
    # constants are those of accesses of 32 bits.
    memory = float(access_energy(KERNEL_WORDS) + 2 * access_energy(2 * NEURON_WORDS))
    estimates = {"operations": ENERGY_PER_AC, "with memory": ENERGY_PER_AC + memory}
    for name, joules in estimates.items():
        picojoules = 1e12 * joules
        sides[f"estimate: {name}"] = {"most": picojoules, "fewest": picojoules}
    text = timing.table_of("energy on Speck", COLUMNS, sides)
    return timing.report(result, text, options.out)


if __name__ == "__main__":
    main()
