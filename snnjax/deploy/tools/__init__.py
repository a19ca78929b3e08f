"""Whole numbers as models of other tools' packages, which stay optional.

``akida.py`` and ``sinabs.py`` first look for what the tool has no form for
(``refusals.py``), and import its package only then.
"""
