"""What a conversion has found and what to try next, in sentences for the terminal."""

import textwrap
from collections.abc import Sequence
from typing import Any

from experiments.report.results import (
    Result,
    choice,
    equal_percent,
    line_name,
    most_accurate,
    output_error,
    percent,
)

COLUMNS = 79
LOSS = 0.01  # of accuracy, from which more steps are worth a try


def conclusion(facts: dict[str, Any], results: Sequence[Result], out: str) -> str:
    """The last lines of a run: its best rows, then files and commands to go on with.

    Args:
        facts: what all rows share, as in ``experiments.convert.facts_of``.
        results: the rows.
        out: the folder of the files, as the user wrote it.
    """
    saved, best = choice(results), most_accurate(results)
    ann = facts["ann_accuracy"]
    images = f"{facts['test_images']} {facts['evaluated_on']}"
    paragraphs = [f"The ANN is right on {100 * ann:.1f} % of {images}."]
    if best is saved:
        paragraphs.append(f"Most accurate, and saved: {in_words(saved)}.")
    else:
        paragraphs.append(f"Most accurate: {in_words(best)}.")
        paragraphs.append(
            f"Saved: {in_words(saved)}. It is the fastest that is not significantly "
            "worse."
        )
    if saved.held_out is None:
        paragraphs.append(
            "Too few training images were left to choose a conversion by, so the last "
            "one is saved."
        )
    else:
        paragraphs.append(
            "The choice was made on training images that calibrated no conversion."
        )
    text = ["What was found"]
    for paragraph in paragraphs:
        text.append(textwrap.fill(paragraph, COLUMNS, subsequent_indent="  "))
    text += ["", "What to try next"]
    text += [f"  {line}" for line in _next_steps(facts, results, best, out)]
    return "\n".join(text)


def _next_steps(
    facts: dict[str, Any], results: Sequence[Result], best: Result, out: str
) -> list[str]:
    """Files to open and commands to run, each with what it shows."""
    steps = [result.steps for result in results]
    options = []
    if facts["ann_accuracy"] - best.final > LOSS:
        options.append(f"--steps {2 * max(steps)}: more steps lose less accuracy")
    elif min(steps) > 2:
        options.append("--steps 2 3: fewer steps, since little accuracy is lost")
    if not facts["config"]["chip"]:
        options.append("--weight_bits 8 --chip spinnaker2: as a chip computes it")
    return [
        f"{out}/results.md: energy, and the errors of every layer",
        f"{out}/accuracy.png and layers.png: the same as figures",
        f"python -m experiments.convert --restore {out}: the saved network again",
        *(f"your command with {option}" for option in options),
        "docs/tutorials/five_minutes.ipynb: how to convert a network of your own",
    ]


def in_words(result: Result) -> str:
    """A row: its name, T, accuracy, equal answers, error, spikes and latency."""
    agreement = ""
    if equal_percent(result):
        agreement = f"{equal_percent(result)} % as the ANN answers, "
    if output_error(result):
        agreement += f"error {output_error(result)}, "
    return (
        f"{line_name(result)}, T = {result.steps}: {percent(result)} % right, "
        f"{agreement}{result.spikes:.2f} spikes per neuron, {result.latency} steps "
        "until the answer"
    )
