"""What the benchmarks share: options, timing in separate processes, tables.

Every side of a comparison has its own process, which prepares it once (imports,
conversion, compilation, a check of its numbers). Rounds then go over the sides one
after the other, so a busy minute of the machine slows all of them alike.
"""

import argparse
import contextlib
import datetime
import difflib
import json
import math
import os
import platform
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent


def once(run: Callable[[], Any]) -> float:
    """Seconds of ``run()``, until its arrays are there; those of torch on CPU are."""
    start = time.perf_counter()
    result = run()
    if "jax" in sys.modules:
        sys.modules["jax"].block_until_ready(result)
    return time.perf_counter() - start


def serve(prepare: Callable[[], tuple[Callable[[], Any], dict]], names: Sequence[str]):
    """The worker: prepare, report, then time once for every line on standard input.

    A side whose packages this interpreter cannot import reports what is missing.

    Args:
        prepare: () -> (run, facts); ``facts`` are JSON values about the side.
        names: distributions whose versions are reported.
    """
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # The output of libraries must not mix with the answers.
    try:
        run, facts = prepare()
        once(run)
    except ModuleNotFoundError as missing:
        print(f"a side is left out: {missing}", file=sys.stderr)
        print(json.dumps({"missing": str(missing)}), file=channel)
        return
    print(json.dumps({"facts": facts, "versions": versions(names)}), file=channel)
    for _ in sys.stdin:
        print(json.dumps(once(run)), file=channel)


def rounds(
    commands: Mapping[str, Sequence[str]], number: int, repeats: int
) -> dict[str, dict]:
    """Start a worker per side; ``number`` rounds of ``repeats`` timings of each.

    Returns:
        side -> {"seconds": [...], "facts", "versions"}, or {"missing": reason}.

    Raises:
        RuntimeError: a worker failed; its messages are on standard error.
    """
    workers = {}
    sides = {}
    with contextlib.ExitStack() as stack:
        for side, command in commands.items():
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
            worker = stack.enter_context(process)
            stack.callback(worker.terminate)
            sides[side] = _answer(side, worker)
            if "missing" not in sides[side]:
                sides[side]["seconds"] = []
                workers[side] = worker
        for _ in range(number):
            for side, worker in workers.items():
                for _ in range(repeats):
                    # A worker that has ended gives no answer; `_answer` raises then.
                    with contextlib.suppress(BrokenPipeError):
                        worker.stdin.write(b"\n")
                    sides[side]["seconds"].append(_answer(side, worker))
    return sides


def _answer(side: str, worker: subprocess.Popen) -> Any:
    """The next line of a worker."""
    line = worker.stdout.readline()
    if not line:
        raise RuntimeError(f"side {side!r} failed: {' '.join(worker.args)}")
    return json.loads(line)


MEASURES = ("best", "median")


def measures(seconds: Sequence[float], unit: Callable[[float], float] = float) -> dict:
    """The `MEASURES` of timings, each as the unit of its seconds.

    >>> measures([4.0, 1.0, 2.0], lambda seconds: 8 / seconds)
    {'best': 8.0, 'median': 4.0}
    """
    return {"best": unit(min(seconds)), "median": unit(statistics.median(seconds))}


def ratios(above: Mapping[str, float], below: Mapping[str, float]) -> dict[str, float]:
    """Quotients of two `measures`; none, if nothing is below."""
    return {name: above[name] / below[name] for name in below}


def fastest(results: Mapping[str, dict], name: str, sides: Iterable[str]) -> dict:
    """The `measures` ``name`` of the fastest side that has results; {} of none."""
    speeds = [results[side][name] for side in sides if side in results]
    return max(speeds, key=lambda speed: speed["best"], default={})


def with_speeds(sides: dict[str, dict], name: str, batch: int, answer: str) -> dict:
    """The sides of `rounds` that are installed, with images per second as ``name``.

    Args:
        sides: from `rounds`.
        name: of the new entry.
        batch: images of a timing.
        answer: name of the fact that is of the ANN, and so of all sides the same.
    """
    results = {name: side for name, side in sides.items() if "missing" not in side}
    answers = [side["facts"][answer] for side in results.values()]
    for value in answers:
        assert math.isclose(answers[0], value, rel_tol=1e-3), "the sides' ANNs differ"
    for side in results.values():
        side[name] = measures(side["seconds"], lambda seconds: batch / seconds)
    return results


def check_steps(outputs: np.ndarray, steps: int, silent_end: bool = False) -> None:
    """Raise unless there are T outputs [T, B, ...] and the last step does work.

    With wait T every neuron fires in its first steps, so the end may be silent.
    """
    assert len(outputs) == steps, (outputs.shape, steps)
    assert np.abs(outputs[-1] - outputs[0]).max() > 1e-3, "no step changes anything"
    assert silent_end or np.abs(outputs[-1]).max() > 1e-3, "the last step sends nothing"


def percent(logits: Any, labels: Any) -> float:
    """Right answers of [N, classes]."""
    return 100 * float((np.asarray(logits).argmax(-1) == np.asarray(labels)).mean())


def in_parts(run: Callable, x: Any, size: int, axis: int = 0) -> Any:
    """``run`` on ``size`` examples of x at a time; its results lie along the axis."""
    parts = []
    for start in range(0, len(x), size):
        parts.append(run(x[start : start + size]))
    return np.concatenate(parts, axis)


def versions(names: Sequence[str]) -> dict[str, str]:
    """Version of Python and of each distribution."""
    numbers = {"python": platform.python_version()}
    for name in names:
        try:
            numbers[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            numbers[name] = "not installed"
    return numbers


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A markdown table that also reads well as plain text."""
    lines = [list(head)]
    for row in rows:
        lines.append([_cell(value) for value in row])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    text = []
    for cells_of_line in lines:
        padded = map(str.ljust, cells_of_line, widths)
        text.append(f"| {' | '.join(padded)} |")
    return "\n".join(text)


def table_of(
    title: str, columns: Mapping[str, str], sides: Mapping[str, Mapping[str, Any]]
) -> str:
    """A row for each side: its name under ``title``, and its `cells`.

    Args:
        title: of the first column.
        columns: name of a number -> title of its column; "a.b" is b of the dict a.
        sides: name -> numbers.
    """
    rows = [[name, *cells(side, columns)] for name, side in sides.items()]
    return table([title, *columns.values()], rows)


def cells(side: Mapping[str, Any], columns: Mapping[str, str]) -> list[Any]:
    """The numbers of a side in the order of the columns; None where it has none."""
    if "missing" in side:
        return ["not installed", *[None] * (len(columns) - 1)]
    values = []
    for name in columns:
        value: Any = side
        for key in name.split("."):
            value = (value or {}).get(key)
        values.append(value)
    return values


def _cell(value: Any) -> str:
    """A value as text: floats with three digits."""
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    if abs(value) >= 999.5:
        return f"{value:.0f}"
    return f"{value:.3g}"


def target(
    name: str,
    value: float,
    at_most: float | None = None,
    at_least: float | None = None,
) -> dict[str, Any]:
    """A target, of one bound, and whether it was met, for `report`."""
    if at_most is not None:
        sign, bound, met = "<=", at_most, value <= at_most
    else:
        assert at_least is not None
        sign, bound, met = ">=", at_least, value >= at_least
    return {
        "target": f"{name} {sign} {bound:g}",
        "measured": value,
        "met": bool(met),
    }


def targets(name: str, speeds: Mapping[str, float], **bound: float) -> list[dict]:
    """A `target` for each of the `MEASURES`."""
    return [target(f"{m} {name}", value, **bound) for m, value in speeds.items()]


def new_result(doc: str, packages: Sequence[str], **facts: Any) -> dict[str, Any]:
    """A result without sides and targets yet, for `report`; made before the work.

    Args:
        doc: of the benchmark, whose first line is its question.
        packages: distributions whose versions are reported.
        facts: more entries.
    """
    return {
        "question": doc.splitlines()[0],
        **facts,
        "machine": {
            "date": datetime.date.today().isoformat(),
            "cpu_cores": os.cpu_count(),
            "load": os.getloadavg()[0],
            "machine": platform.machine(),
            "system": platform.system(),
        },
        "versions": {"snnjax": versions(packages)},
        "sides": {},
        "targets": [],
    }


def earlier_result(out: str | None) -> dict[str, Any]:
    """The result that a run continues: that of the file, or nothing."""
    if not out or not Path(out).exists():
        return {}
    return read(Path(out), lambda file: dict(json.loads(file.read_text())))


def continued(result: dict[str, Any], out: str | None, *facts: str) -> dict[str, Any]:
    """The result with the sides of the file, of which these facts must be the same.

    Raises:
        SystemExit: the file is of another benchmark, or of other facts.
    """
    earlier = earlier_result(out)
    if not earlier:
        return result
    unlike = []
    for name in ("question", *facts):
        if earlier.get(name) != result[name]:
            unlike.append(name)
    if unlike:
        raise SystemExit(
            f"{out} is of another run, with other {' and '.join(unlike)}; take another "
            "name"
        )
    result["sides"] = earlier["sides"]
    return result


def report(result: dict[str, Any], text: str, out: str | None) -> dict[str, Any]:
    """Print a result; with ``out`` write it as JSON, and the text beside it (.md)."""
    lines = [text]
    for goal in result["targets"]:
        verdict = "pass" if goal["met"] else "MISS"
        lines.append(f"{verdict}: {goal['target']}; measured {_cell(goal['measured'])}")
    machine = result["machine"]
    lines.append(
        f"{machine['date']}, {machine['cpu_cores']} CPU cores, {machine['machine']}"
    )
    for side, numbers in result["versions"].items():
        packages = ", ".join(f"{name} {version}" for name, version in numbers.items())
        lines.append(f"{side}: {packages}")
    print("\n\n".join(lines))
    if out:
        path = Path(out)
        path.write_text(json.dumps(result, indent=2) + "\n")
        path.with_suffix(".md").write_text("\n\n".join(lines) + "\n")
    return result


def parser(doc: str) -> argparse.ArgumentParser:
    """Options that all benchmarks share."""
    options = argparse.ArgumentParser(
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    options.add_argument(
        "--out",
        metavar="FILE.json",
        type=_result_file,
        help="and .md beside it",
    )
    options.add_argument("--quick", action="store_true", help="toy size, for tests")
    options.add_argument("--side", help=argparse.SUPPRESS)
    return options


def check_files(options: argparse.ArgumentParser, folder: Path, *names: str) -> None:
    """End the command with one line if the folder lacks one of the files."""
    missing = ", ".join(name for name in names if not (folder / name).is_file())
    if missing:
        options.error(f"{folder} has no {missing}; --help says what the folder holds")


def read(file: Path, reader: Callable[[Path], Any]) -> Any:
    """What a reader makes of a file; ends the command with one line if it cannot."""
    try:
        return reader(file)
    except (OSError, EOFError, KeyError, ValueError, struct.error) as error:
        reason = str(error).partition("\n")[0]
        raise SystemExit(
            f"{file} is not what --help describes, or a pointer to it: {reason}"
        ) from None


def only_option(options: argparse.ArgumentParser) -> None:
    """``--only``: some of the sides, see `is_selected`."""
    options.add_argument(
        "--only",
        metavar="WORDS",
        help="sides with one of these, separated by commas",
    )


def check_only(
    options: argparse.ArgumentParser, only: str | None, sides: Iterable[str]
) -> None:
    """End the command with one line if a word of ``--only`` is in no side."""
    sides = list(sides)
    for word in (only or "").split(","):
        if not any(word in side for side in sides):
            names = difflib.get_close_matches(word, sides)
            suggestion = f"; closest: {', '.join(map(repr, names))}" if names else ""
            options.error(
                f"argument --only: {word!r} is in no side; allowed: words of "
                f"{', '.join(map(repr, sides))}{suggestion}"
            )


def count(text: str) -> int:
    """The argparse type of whole numbers from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}; allowed: a whole number >= 1")
    return int(text)


def _result_file(text: str) -> str:
    """The name, after its folder is made: a benchmark takes minutes."""
    path = Path(text)
    if path.suffix != ".json" or path.is_dir():
        raise argparse.ArgumentTypeError(f"{text}; allowed: a file named NAME.json")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from None
    return text


def is_selected(side: str, only: str | None) -> bool:
    """Whether a side has one of the words of ``--only``, separated by commas."""
    if only is None:
        return True
    return any(word in side for word in only.split(","))
