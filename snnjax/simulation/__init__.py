"""From a network to spikes: `snnjax.spiking` and the SNN that it runs.

``simulate.py`` is the transform, ``executions.py`` the ways to compute it, and
``sharding.py`` spreads batches over the devices of a mesh.
"""
