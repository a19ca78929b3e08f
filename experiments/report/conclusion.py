"""What a conversion has found and what to try next, in sentences for the terminal."""

import textwrap
from collections.abc import Sequence
from typing import Any

from experiments.report.results import (
    Result,
    choice,
    equal_percent,
    held_out_share,
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
    is_judged = saved.held_out is not None
    if not is_judged:
        paragraphs.append(f"Saved: {_in_words(saved)}.")
    elif best is saved:
        paragraphs.append(f"Most accurate, and saved: {_in_words(saved)}.")
    else:
        paragraphs.append(f"Most accurate: {_in_words(best)}.")
        paragraphs.append(
            f"Saved: {_in_words(saved)}. It is the fastest within a standard error of "
            f"the most accurate: {_held_out_percent(saved)} and "
            f"{_held_out_percent(best)} % right on the images of the choice."
        )
    if is_judged:
        paragraphs.append(
            "The choice was made on training images that calibrated no conversion."
        )
    else:
        paragraphs.append(
            "Too few training images were left to choose a conversion by, so the last "
            "one is saved."
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
    elif choice(results).steps == min(steps) > 2:
        options.append("--steps 2 3: fewer steps, since little accuracy is lost")
    if not facts["config"]["chip"]:
        options.append("--weight_bits 8 --chip spinnaker2: as a chip computes it")
    commands = [f"your command with {option}" for option in options]
    return [
        f"{out}/results.md: energy, and the errors of every layer",
        f"{out}/accuracy.png and layers.png: the same as figures",
        f"python -m experiments.convert --restore {out}: the saved network again",
        *commands,
        "docs/tutorials/five_minutes.ipynb: how to convert a network of your own",
    ]


def _held_out_percent(result: Result) -> str:
    """The right answers on the held-out images in percent."""
    return f"{100 * held_out_share(result):.1f}"


def _in_words(result: Result) -> str:
    """A row: its name, T, accuracy, equal answers, error, spikes and latency."""
    agreement = ""
    equal, error = equal_percent(result), output_error(result)
    if equal:
        agreement = f"{equal} % as the ANN answers, "
    if error:
        agreement += f"error {error}, "
    return (
        f"{line_name(result)}, T = {result.steps}: {percent(result)} % right, "
        f"{agreement}{result.spikes:.2f} spikes per neuron, the answer after step "
        f"{result.latency}"
    )
