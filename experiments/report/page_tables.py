"""The tables of the page, as HTML that its script can sort."""

from collections.abc import Iterable, Sequence
from html import escape

import snnjax
from experiments.report.figures import PARTS, relative
from experiments.report.results import (
    Result,
    lines,
    most_hits,
    operations,
    percent,
    waits,
)

ENERGY_UNITS = ((1e-12, "pJ"), (1e-9, "nJ"), (1e-6, "µJ"), (1e-3, "mJ"), (1.0, "J"))
COUNT_UNITS = ((1.0, ""), (1e3, " thousand"), (1e6, " million"), (1e9, " billion"))


def accuracies(results: Sequence[Result], ann: float, images: int) -> str:
    """Accuracy of every recipe and wait at every T; all of the best are bold."""
    steps = sorted({result.steps for result in results})
    rows, most = [], most_hits(results, images)
    for line in lines(results):
        cells = [_th(line[0].name), _td(waits(line[0]))]
        by_steps = {result.steps: result for result in line}
        for t in steps:
            result = by_steps.get(t)
            if result is not None and result.hits(images) == most[t]:
                cells.append(f"<td><b>{percent(result)}</b></td>")
            else:
                cells.append(_td("" if result is None else percent(result)))
        rows.append(cells)
    foot = [_th("ANN"), _td(""), *[_td(f"{100 * ann:.1f}")] * len(steps)]
    seeds = len(results[0].accuracies)
    caption = (
        "Accuracy in % after T steps"
        + (f", mean ± deviation over {seeds} draws of calibration images" * (seeds > 1))
        + ". Bold: the best for this T."
    )
    head = ["recipe", "wait", *[f"T = {t}" for t in steps]]
    return _table(caption, head, rows, foot)


def details(results: Sequence[Result], ann: float) -> str:
    """Costs of every row."""
    joules = [tuple(map(float, snnjax.energy(r.measures).operations)) for r in results]
    scale, unit = _unit(max(max(pair) for pair in joules), ENERGY_UNITS)
    most = max(result.synaptic_operations for result in results)
    count, thousands = _unit(most / 10, COUNT_UNITS)
    head = ["recipe", "wait", "T", "latency", "bits"]
    head += ["accuracy %", "loss", "firing rate %"]
    head += [f"SynOps{thousands}", f"energy {unit}", "of ANN %", "seconds"]
    rows = []
    for result, (spiking, multiplying) in zip(results, joules, strict=True):
        numbers = [
            f"{float(result.measures.bits):.3g}",
            percent(result, 2),
            signless_zero(100 * (ann - result.final), 2),
            f"{100 * result.firing_rate:.1f}",
            operations(result, count, 1),
            f"{spiking / scale:.2f}",
            f"{100 * spiking / multiplying:.1f}",
            f"{result.seconds:.2f}",
        ]
        whole = [result.wait, result.steps, result.latency]
        rows.append([_th(result.name), *map(_td, [*map(str, whole), *numbers])])
    energy = f"{joules[0][1] / scale:.2f}"
    foot = [_th("ANN"), *map(_td, ["", "", "", "", f"{100 * ann:.2f}", "0.00", "", ""])]
    foot += map(_td, [energy, "100.0", ""])
    caption = (
        "Cost of every entry. Latency in steps, bits that a neuron sends in one "
        "inference, loss in points, seconds of fitting or training."
    )
    return _table(caption, head, rows, foot)


def energies(results: Sequence[Result]) -> str:
    """The three estimates of energy, as shares of the ANN's."""
    head = ["recipe", "wait", "T", *snnjax.measures.Energy._fields]
    rows = []
    for result in results:
        estimates = snnjax.energy(result.measures)
        shares = [100 * float(joules.spiking / joules.ann) for joules in estimates]
        about = [str(result.wait), str(result.steps)]
        texts = [*about, *[f"{share:.1f}" for share in shares]]
        rows.append([_th(result.name), *map(_td, texts)])
    caption = "Energy in % of the ANN's: operations only, with memory, quantized."
    return _table(caption, head, rows)


def sites(results: Sequence[Result], caption: str, which: bool = False) -> str:
    """Measures of every site; ``which`` adds columns that name the row."""
    head = ["site"] + ["recipe", "wait", "T"] * which
    head += ["firing rate %", "silent %", "saturated %", "error %"]
    head += [f"{part} %" for part in PARTS]
    rows = []
    for result in results:
        about = [result.name, str(result.wait), str(result.steps)] * which
        for name, site in result.measures.sites.items():
            shares = (site.firing_rate, site.silent, site.saturated)
            numbers = [f"{100 * float(share):.1f}" for share in shares]
            errors = relative(site)
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


def signless_zero(value: float, digits: int, sign: str = "-") -> str:
    """The number without the sign of a zero; ``sign`` "+" shows that of all others."""
    rounded = round(value, digits) + 0.0
    return f"{rounded:{sign if rounded else '-'}.{digits}f}"


def _unit(largest: float, units) -> tuple[float, str]:
    """The largest unit in which the number is at least 1."""
    return [unit for unit in units if unit[0] <= largest or unit is units[0]][-1]
