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

from typing import Any

from benchmarks import timing
from snnjax.measures import ENERGY_PER_AC, access_energy

# Network -> mW at rest, mW in all, millions of spikes.
TABLE_1 = {
    "gestures": (0.42, 9.5, 1.0),
    "gestures, fewer spikes": (0.42, 3.8, 0.4),
    "gait by day": (0.42, 16.1, 2.9),
    "gait by day, fewer spikes": (0.42, 7.3, 1.2),
    "gait by night": (0.42, 46.8, 3.3),
    "gait by night, fewer spikes": (0.42, 12.3, 1.5),
}
WINDOW = 0.54  # s
MOST, FEWEST = 9 * 32, 32  # synapses of a spike
KERNELS, NEURONS = 16 * 2**10, 64 * 2**10  # words of the memories of a core

COLUMNS = {"spike": "nJ per spike", "most": f"pJ per synapse, if {MOST}"}
COLUMNS |= {"fewest": f"if {FEWEST}"}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    choice = timing.parser(__doc__).parse_args(arguments)
    # A weight of a byte is read, a potential of two bytes is read and written. The
    # constants are those of accesses of 32 bits.
    memory = float(access_energy(KERNELS) + 2 * access_energy(2 * NEURONS))
    estimates = {"operations": ENERGY_PER_AC, "with memory": ENERGY_PER_AC + memory}
    result = timing.new_result(__doc__, ("jax",))
    for name, (rest, whole, spikes) in TABLE_1.items():
        e = WINDOW * (whole - rest) * 1e-3 / (1e6 * spikes)
        row = {"spike": 1e9 * e, "most": 1e12 * e / MOST, "fewest": 1e12 * e / FEWEST}
        result["sides"][f"measured: {name}"] = row
    for name, e in estimates.items():
        result["sides"][f"estimate: {name}"] = {"most": 1e12 * e, "fewest": 1e12 * e}
    text = timing.table_of("energy on Speck", COLUMNS, result["sides"])
    return timing.report(result, text, choice.out)


if __name__ == "__main__":
    main()
