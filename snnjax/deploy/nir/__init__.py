"""Layers as graphs of NIR, the interchange format of neuromorphic tools.

``writing.py`` writes layers, of floats or whole numbers, as nodes of the package nir;
``reading.py`` reads such nodes as layers.
"""
