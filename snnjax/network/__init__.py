"""From a function to equations: what a network is, and whether spikes can carry it.

``capture.py`` reads jaxprs, ``affine.py`` refuses what cannot be converted;
``equations.py`` runs what is left with a rule of one's choice at every site, and
``stages.py`` cuts it there.
"""
