"""What a chip can run: profiles of chips as data, and a report about a network.

`report` compares `snnjax.layers.Layers` with a `Chip` (``report.py``). ``profiles.py``
has the chips, with a source for every number. ``rules.py`` has one small function per
property, and ``memory.py`` gives the populations to the cores of a chip.
"""

from snnjax.chips.profiles import (
    Chip,
    Core,
    akida1,
    loihi2,
    speck,
    spinnaker2,
    xylo,
)
from snnjax.chips.report import Report, Row, report
from snnjax.chips.rules import Finding

__all__ = [
    "Chip",
    "Core",
    "Finding",
    "Report",
    "Row",
    "akida1",
    "loihi2",
    "report",
    "speck",
    "spinnaker2",
    "xylo",
]
