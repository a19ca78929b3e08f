"""Results of a conversion: tables, files and figures.

``results.py`` has the rows of one network and ``networks.py`` those of several.
``figures.py`` draws them in the style of ``drawing.py``. As in every package here,
``__init__`` exports the names that other packages use.
"""

from experiments.report import figures, networks, training_figures
from experiments.report.networks import network_name, read_results
from experiments.report.results import (
    LEGEND,
    Result,
    Table,
    choice,
    console_table,
    deviation,
    header,
    markdown_table,
    row,
    write_results,
)
