"""From a network to spikes: `snnjax.spiking` and the SNN that it runs.

``simulate.py`` is the transform of a network with what ``snn.py`` describes,
``executions.py`` the ways to compute it, ``remat.py`` those with little memory for the
gradient; ``sharding.py`` spreads batches over the devices of a mesh.
"""
