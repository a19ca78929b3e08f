"""From a network to spikes: `snnjax.spiking` and the ways to compute it.

``simulate.py`` is the transform and ``options.py`` its arguments. ``executions.py``
computes it, and ``choice.py`` is what "auto" takes.
"""

from snnjax.simulation.simulate import SpikingFunction, init, latency, spiking

__all__ = ["SpikingFunction", "init", "latency", "spiking"]
