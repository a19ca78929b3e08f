"""What a chip can run: profiles of chips as data, and a report about layers.

``report.py`` compares `Layers` with a `Chip` (``chip.py``): its numbers in
``properties.py``, its rules in ``rules.py`` and ``cores.py``, by the sizes of
``geometry.py``. ``profiles.py``, ``speck.py`` and ``akida.py`` have the chips.
"""
