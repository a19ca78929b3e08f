"""A conversion, or its fine-tuning, as one HTML page that loads nothing else.

The option ``--report report.html`` asks for it. The page has the tables of
``results.py``, a table of the sites, and the figures of the run as embedded PNGs. Its
frame and style are the template ``report.html``.
"""

import base64
import math
import re
from collections.abc import Mapping, Sequence
from datetime import date
from html import escape
from pathlib import Path
from string import Template

import snnjax
from experiments.report.figures import PARTS, relative_errors
from experiments.report.networks import network_name
from experiments.report.results import (
    Result,
    Table,
    about_costs,
    accuracy_table,
    choice,
    cost_table,
    line_name,
    percent,
)
from experiments.running import write

TEMPLATE = Path(__file__).with_name("report.html")
FIGURES = {
    "accuracy.png": "Accuracy after each step of one run; beside it, accuracy of every "
    "T against its latency, or of a fine-tuning against its epochs.",
    "layers.png": "Conversion error of every site with its parts, and firing rates.",
    "raster.png": "Spikes of some sites for one image.",
}


_ABOUT_INTEGERS = """<h2>Whole numbers</h2>
<p>The chosen SNN with weights of so many bits, as a chip computes it, on all test
images. <b>overflows</b>: potentials beyond the highest number of their bits.</p>
"""


def write_page(
    path: str | Path,
    results: Sequence[Result],
    facts: dict,
    sites: snnjax.network.Sites,
    sources: Mapping[str, Sequence[str]],
    folder: Path,
    integers: str | None = None,
) -> None:
    """Write the page of a conversion.

    Args:
        path: of the page.
        results, facts, sites, sources, integers: see `page`.
        folder: of `FIGURES`.
    """
    figures = {name: (folder / name).read_bytes() for name in FIGURES}
    facts = {**facts, "date": date.today().isoformat()}
    text = page(results, facts, sites, sources, figures, integers)
    file = Path(path).expanduser()
    file.parent.mkdir(parents=True, exist_ok=True)
    write(file, text)


def page(
    results: Sequence[Result],
    facts: dict,
    sites: snnjax.network.Sites,
    sources: Mapping[str, Sequence[str]],
    figures: Mapping[str, bytes],
    integers: str | None = None,
) -> str:
    """The page as text.

    Args:
        results: of every recipe, wait and T.
        facts: as in ``metrics.json``: "config", "command", "versions", "device",
            "source" (the network's card), "ann_accuracy", "test_images",
            "evaluated_on", "measured_images", "chosen_on" (None: the SNN is the last
            one of a training); optional: "date"; "accuracy_after_epochs", of a
            fine-tuning.
        sites: of the network.
        sources: site -> the sites that feed it, from `snnjax.network.connections`.
        figures: PNGs by the names of `FIGURES`.
        integers: HTML about the SNN in whole numbers; None: no such part.
    """
    best, source = choice(results), facts["source"]
    setup = {
        "Options": facts["config"],
        "Source network": source,
        "Versions": {**facts["versions"], "device": facts["device"]},
    }
    values = {
        "kind": "Fine-tuning" if facts.get("accuracy_after_epochs") else "Conversion",
        "title": escape(f"{network_name(source)} on {facts['config']['dataset']}"),
        "version": escape(facts["versions"]["snnjax"]),
        "date": facts.get("date", ""),
        "lead": _lead(best, facts),
        "accuracies": table(*accuracy_table(results, facts["ann_accuracy"])),
        "costs": table(*cost_table(results)),
        "about_costs": marked(about_costs(facts)),
        "chosen": escape(_chosen(facts)),
        "best": escape(f"{line_name(best)}, T = {best.steps}"),
        "sites": table(*site_table(best, sites, sources)),
        "integers": "" if integers is None else f"{_ABOUT_INTEGERS}{integers}",
        "command": escape(facts["command"]),
        "setup": "".join(
            f"<div><h3>{title}</h3>{table((), _rows(part))}</div>"
            for title, part in setup.items()
        ),
    }
    for name, words in FIGURES.items():
        data = base64.b64encode(figures[name]).decode()
        image = f'<img alt="{escape(words)}" src="data:image/png;base64,{data}" />'
        image = f"<figure>{image}</figure>"
        values[Path(name).stem] = image
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(values)


def site_table(
    result: Result,
    sites: snnjax.network.Sites,
    sources: Mapping[str, Sequence[str]],
) -> Table:
    """A row per site: the sites that feed it, and its measures.

    Errors are RMS in percent of the RMS activation, "–" where that is zero.
    """
    head = ["site", "kind", "shape", "depth", "fed by", "rate %", "silent %"]
    head += ["saturated %", "error %", *(f"{part} %" for part in PARTS)]
    rows = []
    for site in sites:
        fed_by = ", ".join(f"`{name}`" for name in sources[site.name])
        shape = "×".join(map(str, site.shape))
        cells = [f"`{site.name}`", site.kind, shape, str(site.depth), fed_by]
        if measures := result.measures.sites.get(site.name):
            shares = measures.firing_rate, measures.silent, measures.saturated
            numbers = [100 * float(share) for share in shares]
            numbers += relative_errors(measures)
            cells += ["–" if math.isnan(x) else f"{x:.1f}" for x in numbers]
        rows.append(cells + [""] * (len(head) - len(cells)))
    return head, rows


def marked(text: str) -> str:
    """Escaped text; `name` becomes <code>name</code>."""
    return re.sub("`([^`]*)`", r"<code>\1</code>", escape(text))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as an element."""

    def line(tag: str, cells: Sequence[str]) -> str:
        texts = "".join(f"<{tag}>{marked(cell)}</{tag}>" for cell in cells)
        return f"<tr>{texts}</tr>"

    titles = f"<thead>{line('th', head)}</thead>" if head else ""
    body = "".join(line("td", cells) for cells in rows)
    return f'<div class="scroll"><table>{titles}<tbody>{body}</tbody></table></div>'


def _lead(best: Result, facts: dict) -> str:
    """The most important numbers, in two sentences."""
    operations = snnjax.energy(best.measures).operations
    energy = 100 * float(operations.spiking / operations.ann)
    return marked(
        f"The network `{network_name(facts['source'])}` classifies "
        f"{100 * facts['ann_accuracy']:.1f} % of {facts['test_images']} "
        f"{facts['evaluated_on']} of {facts['config']['dataset']}. The chosen SNN "
        f"(`{line_name(best)}`, T = {best.steps}) reaches {percent(best)} % after "
        f"{best.latency} steps. Its firing rate is {100 * best.firing_rate:.1f} %, and "
        f"its operations alone take {energy:.0f} % of the ANN's energy. That is "
        "the column `energy, % of ANN`; the two columns beside it estimate more."
    )


def _chosen(facts: dict) -> str:
    """A sentence about the choice of the SNN."""
    if curve := facts.get("accuracy_after_epochs"):
        accuracies = ", ".join(f"{100 * accuracy:.1f}" for accuracy in curve)
        return (
            "The chosen SNN is that after the last epoch of training. Accuracy at "
            f"the start and after each epoch: {accuracies} %."
        )
    return (
        "The chosen SNN answers earliest, of those that are within a standard error of "
        f"the best one on {facts['chosen_on']}. Ties go to the fewest spikes."
    )


def _rows(facts: dict) -> list[tuple[str, str]]:
    """Names and values."""
    return [(name, _words(value)) for name, value in facts.items()]


def _words(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_words(part)}" for name, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_words, value))
    if isinstance(value, float):
        return f"{value:g}"
    return "–" if value is None else str(value)
