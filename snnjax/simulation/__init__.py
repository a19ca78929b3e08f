"""From a network to spikes: `snnjax.spiking` and the ways to compute it.

``simulate.py`` is the transform, ``options.py`` its arguments and ``sequences.py`` its
input over time. ``executions.py`` computes it, and ``choice.py`` is what "auto" takes.
"""

from snnjax.simulation.simulate import SpikingFunction, init, latency, spiking

__all__ = ["SpikingFunction", "init", "latency", "spiking"]
