"""From a function to equations: what a network is, and whether spikes can carry it.

``capture.py`` makes networks: ``jaxprs.py`` reads what JAX has traced, ``affine.py``
refuses what cannot be converted, ``axes.py`` follows batch and channels. Then
``equations.py`` runs it with a rule of one's choice at every site, and ``stages.py``
cuts it there.
"""
