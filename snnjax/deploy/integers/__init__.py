"""Layers of whole numbers: what a digital chip computes, bit for bit.

``quantize.py`` makes them of layers, where each receiver has its own weights:
``fitting.py`` fits one receiver by the compiled ``programs.py``, and ``rounding.py``
has the mathematics of scales and rounding. ``exact.py`` computes the network,
``streams.py`` what its maps and neurons send; ``timing.py`` says what arrives when.
``training.py`` trains through the rounding.
"""
