"""A conversion as one HTML page that needs nothing else: ``--report report.html``.

`report` is a pure function of what the conversion found; `write` collects that and
writes the file. The page's frame, style and script are in ``report.html``, its figures
come from ``svg.py``.
"""

import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from datetime import date
from html import escape
from pathlib import Path
from string import Template

import chex
import jax
import numpy as np

import snnjax
from experiments import figures, plot
from experiments.configs import Convert
from experiments.graph import Graph, draw, site_graph
from snnjax.measures import costs
from snnjax.network.capture import capture

TEMPLATE = Path(__file__).with_name("report.html")
ENERGY_UNITS = ((1e-12, "pJ"), (1e-9, "nJ"), (1e-6, "µJ"), (1e-3, "mJ"), (1.0, "J"))
COUNT_UNITS = ((1.0, ""), (1e3, " thousand"), (1e6, " million"), (1e9, " billion"))


def write(
    path: str | Path,
    results: Sequence,
    facts: dict,
    fn: Callable,
    params: chex.ArrayTree,
    snn: snnjax.SNN,
    image: jax.Array,
) -> None:
    """Write the report of a conversion to ``path``.

    Args:
        results: of ``convert.run``.
        facts: as in ``metrics.json``, see `report`.
        fn, params: the ANN.
        snn: a spiking network of the best row, `winner`.
        image: [1, ...], whose spikes are shown.
    """
    trains = jax.jit(
        lambda snn, x: snnjax.measures.spike_trains(fn, snn, x, steps=snn.steps, wait=snn.wait)
    )(snn, image)
    graph = site_graph(capture(fn, params, image))
    facts = {**facts, "date": date.today().isoformat()}
    found = {name: np.asarray(train)[:, 0] for name, train in trains.items()}
    page = report(results, facts=facts, graph=graph, trains=found)
    Path(path).expanduser().write_text(page, encoding="utf-8")


def report(
    results: Sequence, *, facts: dict, graph: Graph, trains: dict[str, np.ndarray]
) -> str:
    """The page as text.

    Args:
        results: `results.Result` of every recipe, wait and T.
        facts: "config", "versions", "device", "source" (its card), "ann_accuracy",
            "test_images", "measured_images" and, if given, "date".
        graph: of the network's sites.
        trains: site name -> spikes bool [T, ...] of one image, for the `winner`.
    """
    best, ann, source = winner(results), facts["ann_accuracy"], facts["source"]
    short = figures.shortened(graph)
    title = f"{source['model']} on {facts['config']['dataset']}"
    streaming, against_latency = figures.curves(results, ann)
    longest = max(result.steps for result in results)
    values = {
        "title": escape(title),
        "heading": _breakable(title),
        "eyebrow": _eyebrow(facts),
        "lead": _lead(best, facts),
        "numbers": _numbers(best, ann),
        "accuracies": _accuracies(results, ann),
        "details": _details(results, ann),
        "energies": _energies(results),
        "measured": _measured(facts),
        "longest": str(longest),
        "legend": figures.legend(
            [plot.line_name(rows[0]) for rows in plot.lines(results)]
        ),
        "against_steps": streaming,
        "against_latency": against_latency,
        "best": escape(figures.called(best)),
        "graph": draw(graph, short, figures.graph_label(graph)),
        "graph_legend": figures.graph_legend(graph),
        "graph_facts": figures.graph_facts(graph),
        "parts_legend": figures.legend(plot.PARTS, with_line=False),
        "errors": figures.errors(best, short),
        "rates": figures.rates(best, short),
        "sites": _sites([best], "Measures per site of the best spiking network."),
        "all_sites": _sites(results, "Measures per site of all conversions.", True),
        "count": str(len(results)),
        "rasters": figures.rasters(best, graph, trains, short),
        "command": _words(command(facts["config"])),
        "config": _facts(facts["config"]),
        "versions": _facts({**facts["versions"], "device": facts["device"]}),
        "source": _facts(source),
        "version": escape(facts["versions"]["snnjax"]),
        "recipe": escape(best.recipe),
    }
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(values)


def winner(results: Sequence):
    """The best row, the first of equals: its first seed's SNN is what convert saves."""
    return max(results, key=lambda result: result.final)


# ------------------------------------------------------------------ words and tables


def _breakable(text: str) -> str:
    """Escaped, and broken behind the words of a path first."""
    return re.sub(r"([/_])", r"\1<wbr>", escape(text))


def _eyebrow(facts: dict) -> str:
    parts = ["ANN to SNN conversion", f"snnjax {facts['versions']['snnjax']}"]
    parts += [facts["date"]] if "date" in facts else []
    return " · ".join(f"<span>{escape(part)}</span>" for part in parts)


def _lead(best, facts: dict) -> str:
    source, config = facts["source"], facts["config"]
    whole = f"{best.latency} steps" if best.wait else f"{best.steps} steps"
    return (
        f"The network <strong>{escape(str(source['model']))}</strong> classifies "
        f"<strong>{100 * facts['ann_accuracy']:.1f} %</strong> of "
        f"{facts['test_images']} test images of "
        f"<strong>{escape(str(config['dataset']))}</strong>; its best spiking version "
        f"(<code>{escape(best.recipe)}</code>, T = {best.steps}, wait {best.wait}) "
        f"<strong>{figures.percent(best)} %</strong>, with the answer after {whole}."
    )


def _numbers(best, ann: float) -> str:
    spiking, multiplying = map(float, snnjax.energy(best.measures).operations)
    mean, _, spread = figures.percent(best).partition(" ")
    gained = 100 * (best.final - ann)
    points = f"{spread + '; ' if spread else ''}{_zero(gained, 1, '+')} points vs ANN"
    found = [
        ("ANN accuracy", f"{100 * ann:.1f} %", ""),
        ("SNN accuracy", f"{mean} %", points),
        ("latency", str(best.latency), "steps to the answer"),
        ("firing rate", f"{100 * best.firing_rate:.1f} %", "of all steps"),
        ("energy", f"{spiking / multiplying:.2f}", "of the ANN's, operations only"),
    ]
    return "".join(
        f"<div><dt>{name}</dt><dd>{escape(value)}<small>{note}</small></dd></div>"
        for name, value, note in found
    )


def _measured(facts: dict) -> str:
    mac, addition = costs.ENERGY_PER_MAC, costs.ENERGY_PER_AC
    return (
        "Rates, operations and errors are means over the first "
        f"{facts['measured_images']} test images and belong to the first seed. Energy "
        f"counts operations alone, {1e12 * mac:.1f} pJ for a multiply-add and "
        f"{1e12 * addition:.1f} pJ for an addition (45 nm), and no memory traffic. "
        "With memory: all reads and writes too, without a cache. Quantized: integers, "
        "against an ANN whose activations have log2(T + 1) bits (snnjax.energy)."
    )


def _accuracies(results: Sequence, ann: float) -> str:
    steps = sorted({result.steps for result in results})
    rows, most = [], {}
    for result in results:
        most[result.steps] = max(most.get(result.steps, 0.0), result.final)
    for line in plot.lines(results):
        found = {result.steps: result for result in line}
        cells = [_th(line[0].recipe), _td(plot.waits(line[0]))]
        for t in steps:
            text = figures.percent(found[t]) if t in found else ""
            top = t in found and found[t].final == most[t]
            cells.append(f"<td><b>{text}</b></td>" if top else _td(text))
        rows.append(cells)
    foot = [_th("ANN"), _td(""), *[_td(f"{100 * ann:.1f}")] * len(steps)]
    seeds = len(results[0].accuracies)
    caption = (
        "Test accuracy in % after T steps"
        + (f", mean ± deviation over {seeds} draws of calibration images" * (seeds > 1))
        + ". Bold: the best for this T."
    )
    head = ["recipe", "wait", *[f"T = {t}" for t in steps]]
    return _table(caption, head, rows, foot)


def _details(results: Sequence, ann: float) -> str:
    joules = [tuple(map(float, snnjax.energy(r.measures).operations)) for r in results]
    scale, unit = _unit(max(max(pair) for pair in joules), ENERGY_UNITS)
    most = max(result.synaptic_operations for result in results)
    count, thousands = _unit(most / 10, COUNT_UNITS)
    head = ["recipe", "wait", "T", "latency", "accuracy %", "loss", "firing rate %"]
    head += [f"SynOps{thousands}", f"energy {unit}", "of ANN %", "calibration s"]
    rows = []
    for result, (spiking, multiplying) in zip(results, joules, strict=True):
        numbers = [
            figures.percent(result, 2),
            f"{_zero(100 * (ann - result.final), 2)}",
            f"{100 * result.firing_rate:.1f}",
            f"{result.synaptic_operations / count:.1f}",
            f"{spiking / scale:.2f}",
            f"{100 * spiking / multiplying:.1f}",
            f"{result.seconds:.2f}",
        ]
        whole = [result.wait, result.steps, result.latency]
        rows.append([_th(result.recipe), *map(_td, [*map(str, whole), *numbers])])
    energy = f"{joules[0][1] / scale:.2f}"
    foot = [_th("ANN"), *map(_td, ["", "", "", f"{100 * ann:.2f}", "0.00", "", ""])]
    foot += map(_td, [energy, "100.0", ""])
    caption = "Cost of every conversion. Latency in steps, loss in points."
    return _table(caption, head, rows, foot)


def _energies(results: Sequence) -> str:
    head = ["recipe", "wait", "T", *snnjax.measures.Energy._fields]
    rows = []
    for result in results:
        found = snnjax.energy(result.measures)
        shares = [100 * float(energy.spiking / energy.ann) for energy in found]
        about = [str(result.wait), str(result.steps)]
        texts = [*about, *[f"{share:.1f}" for share in shares]]
        rows.append([_th(result.recipe), *map(_td, texts)])
    caption = "Energy in % of the ANN's: operations only, with memory, quantized."
    return _table(caption, head, rows)


def _sites(results: Sequence, caption: str, which: bool = False) -> str:
    head = ["site"] + ["recipe", "wait", "T"] * which
    head += ["firing rate %", "silent %", "saturated %", "error %"]
    head += [f"{part} %" for part in plot.PARTS]
    rows = []
    for result in results:
        about = [result.recipe, str(result.wait), str(result.steps)] * which
        for name, seen in result.measures.sites.items():
            shares = (seen.firing_rate, seen.silent, seen.saturated)
            numbers = [f"{100 * float(share):.1f}" for share in shares]
            errors = figures.relative(seen)
            numbers += ["–" if e != e else f"{e:.1f}" for e in errors]
            rows.append([_th(name), *map(_td, [*about, *numbers])])
    caption += " Silent, saturated: channels that never, or always, fire. Errors: RMS "
    caption += "in % of the RMS activation; the parts do not add up."
    return _table(caption, head, rows)


def _table(caption: str, head: Iterable[str], rows, foot=()) -> str:
    """Rows are lists of cells, which are markup; head and caption are text."""
    titles = "".join(f'<th scope="col">{escape(title)}</th>' for title in head)
    body = "".join(f"<tr>{''.join(cells)}</tr>" for cells in rows)
    last = f"<tfoot><tr>{''.join(foot)}</tr></tfoot>" if foot else ""
    return (
        '<div class="scroll" tabindex="0" role="region" '
        f'aria-label="{escape(caption)}">'
        f'<table class="sortable"><caption><span>{escape(caption)}</span></caption>'
        f"<thead><tr>{titles}</tr></thead><tbody>{body}</tbody>{last}</table></div>"
    )


def _td(text: str) -> str:
    return f"<td>{escape(text)}</td>"


def _th(text: str) -> str:
    return f'<th scope="row"><code>{escape(text)}</code></th>'


def _zero(value: float, digits: int, sign: str = "-") -> str:
    """Without the sign of a negative zero; ``sign`` "+" shows that of all others."""
    rounded = round(value, digits) + 0.0
    return f"{rounded:{sign if rounded else '-'}.{digits}f}"


def _unit(largest: float, units) -> tuple[float, str]:
    """The largest unit in which the number is at least 1."""
    return [unit for unit in units if unit[0] <= largest or unit is units[0]][-1]


def command(config: dict) -> str:
    """The command line that gives this configuration."""
    default = vars(Convert())
    words = ["python", "-m", "experiments.convert"]
    for name, value in config.items():
        if value is None or value == default[name]:
            continue
        many = isinstance(value, tuple | list)
        words += [f"--{name}", *map(str, value if many else [value])]
    return shlex.join(words)


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
