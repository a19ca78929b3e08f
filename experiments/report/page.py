"""A conversion, or its fine-tuning, as one HTML page that needs nothing else.

The option ``--report report.html`` asks for it. `page` is a pure function of results,
facts, graph and spikes; `write_page` writes the file. The frame, style and script are
in ``report.html``.
"""

import re
from collections.abc import Sequence
from datetime import date
from html import escape
from pathlib import Path
from string import Template
from typing import NamedTuple

import numpy as np

import snnjax
from experiments.report import figures, page_tables, site_graph
from experiments.report.drawing import COLORS, alone
from experiments.report.networks import network_name
from experiments.report.rasters import NEURONS, raster
from experiments.report.results import Result, choice, line_name, percent
from experiments.report.site_graph import SiteGraph
from experiments.running import write
from snnjax.measures import ENERGY_PER_AC, ENERGY_PER_MAC

TEMPLATE = Path(__file__).with_name("report.html")
RASTERS = 4  # sites with a raster


class Wording(NamedTuple):
    """What the page says of what it shows."""

    kind: str
    module: str
    eyebrow: str
    entries: str
    second: str  # the figure beside that of accuracy against steps
    about_second: str
    sources: str = ""  # more papers


CONVERSION = Wording(
    "conversion",
    "experiments.convert",
    "ANN to SNN conversion",
    "Each entry is a conversion of its own, fitted to its T and wait.",
    "Against latency",
    "Each T converted for itself; logarithmic axis.",
)
FINE_TUNING = Wording(
    "fine-tuning",
    "experiments.finetune",
    "Fine-tuning of an SNN",
    "The SNN that training began with, and the trained one.",
    "Against epochs",
    "After each epoch of training; 0 is the start.",
    "<li>Li, Guo, Zhang, Deng, Hai and Gu. <cite>Differentiable Spike: Rethinking "
    "Gradient-Descent for Training Spiking Neural Networks.</cite> NeurIPS 2021. "
    '<span class="note">The surrogate <code>dspike</code>.</span></li>'
    "<li>Hinton, Vinyals and Dean. <cite>Distilling the Knowledge in a Neural "
    'Network.</cite> 2015. <a href="https://arxiv.org/abs/1503.02531">'
    'arXiv:1503.02531</a>. <span class="note">Distillation from the ANN.</span></li>',
)


def write_page(
    path: str | Path,
    results: Sequence[Result],
    facts: dict,
    graph: SiteGraph,
    trains: dict[str, np.ndarray],
) -> None:
    """Write the page of a conversion to ``path``, with the date of today."""
    facts = {**facts, "date": date.today().isoformat()}
    write(Path(path).expanduser(), page(results, facts, graph, trains))


def page(
    results: Sequence[Result],
    facts: dict,
    graph: SiteGraph,
    trains: dict[str, np.ndarray],
) -> str:
    """The page as text.

    Args:
        results: of every recipe, wait and T.
        facts: as in ``metrics.json``: "config", "command", "versions", "device",
            "source" (its card), "ann_accuracy", "test_images" and what these are,
            "evaluated_on", "measured_images", "chosen_on" (None: the SNN is the last
            one of a training); optional: "date"; "accuracy_after_epochs", of a
            fine-tuning.
        graph: of the network's sites.
        trains: site name -> spikes bool [T, ...] of one image, for the `choice`.
    """
    best, ann, source = choice(results), facts["ann_accuracy"], facts["source"]
    ends = {node.name: node.name for node in graph.nodes if node.site is None}
    sites = [node.name for node in graph.nodes if node.site is not None]
    names = ends | figures.short_names(sites)
    title = f"{network_name(source)} on {facts['config']['dataset']}"
    epochs = facts.get("accuracy_after_epochs")
    wording = FINE_TUNING if epochs else CONVERSION
    early, second = figures.accuracy(results, ann, epochs)
    values = {
        "colors": " ".join(f"--{name}: {color};" for name, color in COLORS.items()),
        "title": escape(title),
        "heading": _breakable(title),
        "kind": wording.kind,
        "entries": wording.entries,
        "module": wording.module,
        "eyebrow": _eyebrow(wording, facts),
        "lead": _lead(best, facts),
        "numbers": _numbers(best, ann),
        "accuracies": page_tables.accuracies(results, ann, facts["test_images"]),
        "details": page_tables.details(results, ann),
        "energies": page_tables.energies(results),
        "measured": _measured(facts),
        "longest": str(max(result.steps for result in results)),
        "against_steps": alone(early),
        "second": wording.second,
        "about_second": wording.about_second,
        "sources": wording.sources,
        "second_figure": alone(second),
        "best": escape(f"{line_name(best)}, T = {best.steps}"),
        "graph": site_graph.draw(graph, names),
        "graph_legend": site_graph.legend(graph),
        "graph_facts": site_graph.summary(graph),
        "errors": alone(figures.errors(best, names)),
        "rates": alone(figures.rates(best, names)),
        "sites": page_tables.sites([best], "Measures per site of the chosen SNN."),
        "all_sites": page_tables.sites(
            results, "Measures per site of all entries.", True
        ),
        "count": str(len(results)),
        "rasters": _rasters(best, graph, trains, names),
        "command": _words(facts["command"]),
        "config": _facts(facts["config"]),
        "versions": _facts({**facts["versions"], "device": facts["device"]}),
        "source": _facts(source),
        "version": escape(facts["versions"]["snnjax"]),
        "recipe": escape(best.name),
    }
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(values)


# ------------------------------------------------------------------------ words


def _rasters(best: Result, graph: SiteGraph, trains, names: dict[str, str]) -> str:
    """Spikes of some sites, from the first to the last."""
    firing = graph.firing
    places = np.unique(np.linspace(0, len(firing) - 1, RASTERS).round().astype(int))
    items = []
    for node in (firing[i] for i in places):
        first = 1 + node.depth * best.wait
        shown = min(NEURONS, node.neurons)
        rate = 100 * (trains[node.name] != 0).mean()
        panel = raster(node.name, trains[node.name], first, best.latency)
        items.append(
            f"<figure><figcaption><code>{escape(names[node.name])}</code> "
            f"<span>depth {node.depth}, fires in steps {first} to "
            f"{first + best.steps - 1}, {shown} of {node.neurons} neurons; rate "
            f"{rate:.1f} %</span></figcaption>{alone(panel)}</figure>"
        )
    return "".join(items)


def _breakable(text: str) -> str:
    """Escaped, and broken behind the words of a path first."""
    return re.sub(r"([/_])", r"\1<wbr>", escape(text))


def _eyebrow(wording: Wording, facts: dict) -> str:
    parts = [wording.eyebrow, f"snnjax {facts['versions']['snnjax']}"]
    parts += [facts["date"]] if "date" in facts else []
    return " · ".join(f"<span>{escape(part)}</span>" for part in parts)


def _lead(best, facts: dict) -> str:
    source, config = facts["source"], facts["config"]
    whole = f"{best.latency} step{'' if best.latency == 1 else 's'}"
    return (
        f"The network <strong>{escape(network_name(source))}</strong> classifies "
        f"<strong>{100 * facts['ann_accuracy']:.1f} %</strong> of "
        f"{facts['test_images']} {facts['evaluated_on']} of "
        f"<strong>{escape(str(config['dataset']))}</strong>. The chosen SNN "
        f"(<code>{escape(best.name)}</code>, T = {best.steps}, wait {best.wait}) "
        f"reaches <strong>{percent(best)} %</strong>, with the answer after {whole}."
    )


def _numbers(best, ann: float) -> str:
    spiking, multiplying = map(float, snnjax.energy(best.measures).operations)
    mean, _, spread = percent(best).partition(" ")
    gain = page_tables.signless_zero(100 * (best.final - ann), 1, "+")
    points = f"{spread + '; ' if spread else ''}{gain} points vs ANN"
    numbers = [
        ("ANN accuracy", f"{100 * ann:.1f} %", ""),
        ("SNN accuracy", f"{mean} %", points),
        ("latency", str(best.latency), "steps to the answer"),
        ("firing rate", f"{100 * best.firing_rate:.1f} %", "of all steps"),
        ("energy", f"{spiking / multiplying:.2f}", "of the ANN's, operations only"),
    ]
    return "".join(
        f"<div><dt>{name}</dt><dd>{escape(value)}<small>{note}</small></dd></div>"
        for name, value, note in numbers
    )


def _measured(facts: dict) -> str:
    product, addition = 1e12 * ENERGY_PER_MAC, 1e12 * ENERGY_PER_AC
    choice = "The chosen SNN is that after the last epoch of training."
    if curve := facts.get("accuracy_after_epochs"):
        accuracies = ", ".join(f"{100 * accuracy:.1f}" for accuracy in curve)
        choice += f" Accuracy at the start and after each epoch: {accuracies} %."
    if facts["chosen_on"] is not None:
        choice = (
            f"The chosen SNN answers best on {escape(facts['chosen_on'])}; of equal "
            "ones the lowest latency counts, then the least energy."
        )
    return (
        f"{choice} Rates, operations and errors are means over the first "
        f"{facts['measured_images']} of these images and belong to the first seed. "
        f"Energy counts operations alone, {product:.1f} pJ for a multiply-add and "
        f"{addition:.1f} pJ for an addition (45 nm), and no memory traffic. "
        "With memory: all reads and writes too, without a cache. Quantized: integers, "
        "against an ANN whose activations have log2(T + 1) bits (snnjax.energy)."
    )


def _words(line: str) -> str:
    """Escaped, and broken between words only."""
    return " ".join(f"<span>{escape(word)}</span>" for word in line.split(" "))


def _facts(facts: dict) -> str:
    rows = []
    for name, value in facts.items():
        if isinstance(value, dict):
            value = [f"{key} {item}" for key, item in value.items()]
        if isinstance(value, tuple | list):
            value = ", ".join(
                f"{v:g}" if isinstance(v, float) else str(v) for v in value
            )
        text = "–" if value is None else str(value)
        rows.append(f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>")
    return f'<dl class="facts">{"".join(rows)}</dl>'
