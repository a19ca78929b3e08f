"""What a conversion gave: results and tables, figures, and a page with all of it.

``results.py`` has the rows of one network and ``networks.py`` those of several; they
and ``figures.py`` serve the commands too. ``page.py`` fills ``report.html`` with the
tables of ``page_tables.py``, the graph of ``site_graph.py`` and the figures; their
style is in ``drawing.py``. Like every package here, this one hands on the names that
the others use.
"""

from experiments.report import figures, training_figures
from experiments.report.figures import draw_networks
from experiments.report.networks import (
    NetworkResults,
    costs_of_networks,
    epochs_of_networks,
    network_name,
    read_results,
    table_of_networks,
    with_steps,
)
from experiments.report.page import write_page
from experiments.report.rasters import spikes_of
from experiments.report.results import (
    Result,
    choice,
    console_table,
    deviation,
    header,
    markdown_table,
    row,
    write_results,
)
from experiments.report.site_graph import SiteGraph, site_graph

__all__ = [
    "NetworkResults",
    "Result",
    "SiteGraph",
    "choice",
    "console_table",
    "costs_of_networks",
    "deviation",
    "draw_networks",
    "epochs_of_networks",
    "figures",
    "header",
    "markdown_table",
    "network_name",
    "read_results",
    "row",
    "site_graph",
    "spikes_of",
    "table_of_networks",
    "training_figures",
    "with_steps",
    "write_page",
    "write_results",
]
