"""Direct training by surrogate gradients.

``losses.py``: losses, readouts, what trains; ``temperature.py``: Dspike's b, by what
``differences.py`` finds.
"""
