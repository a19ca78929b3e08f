"""What a chip can run: profiles of chips as data, and a report about layers.

``report.py`` compares `Layers` with a `Chip`. ``profiles.py`` has the chips, with a
source for every number. ``properties.py`` has one small function per property, and
``geometry.py`` the sizes that they compare.
"""
