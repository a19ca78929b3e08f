"""Results of a conversion: tables, files and figures.

``results.py`` has the rows of one network and ``networks.py`` those of several.
``figures.py`` draws them in the style of ``drawing.py``.
"""

from experiments.report import figures, networks, training_figures
from experiments.report.conclusion import conclusion
from experiments.report.networks import network_name, read_results
from experiments.report.results import (
    LEGEND,
    NAME_WIDTH,
    Result,
    choice,
    console_table,
    deviation,
    header,
    markdown_table,
    name_of,
    row,
    write_results,
)
