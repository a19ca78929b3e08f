"""What the benchmarks share: options, timing in processes of their own, tables.

Every side of a comparison has a process, which prepares it once (imports, conversion,
compilation, a check of its numbers). Rounds then go over the sides one after the other,
so that a busy minute of the machine slows all of them alike. A side that is not
installed has a row that says so.
"""

import argparse
import contextlib
import datetime
import functools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class NotInstalled(Exception):
    """A peer that this interpreter cannot import."""


def once(run: Callable[[], Any]) -> float:
    """Seconds of ``run()``, until its arrays are there."""
    start = time.perf_counter()
    wait(run())
    return time.perf_counter() - start


def wait(result: Any) -> None:
    """Block until every array of a JAX result is computed; torch on CPU always is."""
    if "jax" in sys.modules:
        sys.modules["jax"].block_until_ready(result)


def serve(prepare: Callable[[], tuple[Callable[[], Any], dict]], names: Sequence[str]):
    """The worker: prepare, say so, then time once for every line on standard input.

    Args:
        prepare: () -> (run, facts); ``facts`` are JSON values about the side.
        names: distributions whose versions belong to the side.
    """
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    try:
        run, facts = prepare()
        wait(run())
    except NotInstalled as missing:
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
    workers, sides = {}, {}
    try:
        for side, command in commands.items():
            workers[side] = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )
            sides[side] = _answer(side, workers[side])
        installed = [side for side, entry in sides.items() if "missing" not in entry]
        for side in installed:
            sides[side]["seconds"] = []
        for _ in range(number):
            for side in installed:
                for _ in range(repeats):
                    # One that has ended gives no answer, which says which side it is.
                    with contextlib.suppress(BrokenPipeError):
                        print(file=workers[side].stdin, flush=True)
                    sides[side]["seconds"].append(_answer(side, workers[side]))
        return sides
    finally:
        for worker in workers.values():
            worker.terminate()
        for worker in workers.values():
            worker.wait()
            worker.stdout.close()
            with contextlib.suppress(BrokenPipeError):
                worker.stdin.close()


def _answer(side: str, worker: subprocess.Popen):
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
    both = min(seconds), statistics.median(seconds)
    return dict(zip(MEASURES, map(unit, both), strict=True))


def ratios(above: dict[str, float], below: dict[str, float]) -> dict[str, float]:
    """Quotients of two `measures`."""
    return {name: above[name] / below[name] for name in above}


def versions(names: Sequence[str]) -> dict[str, str]:
    numbers = {"python": platform.python_version()}
    for name in names:
        try:
            numbers[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            numbers[name] = "not installed"
    return numbers


def machine() -> dict[str, Any]:
    """Where and when a result was measured."""
    return {
        "date": datetime.date.today().isoformat(),
        "cpu_cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "machine": platform.machine(),
        "system": platform.system(),
    }


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A markdown table that also reads well as plain text."""
    cells = [list(head)] + [[_cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0f}" if abs(value) >= 999.5 else f"{value:.3g}"


def target(
    name: str,
    value: float,
    *,
    at_most: float | None = None,
    at_least: float | None = None,
) -> dict[str, Any]:
    """A target and whether it was met, as `report` prints it."""
    if at_most is not None:
        text, met = f"{name} <= {at_most:g}", value <= at_most
    else:
        text, met = f"{name} >= {at_least:g}", value >= at_least
    return {"target": text, "measured": value, "met": bool(met)}


def report(result: dict[str, Any], text: str, out: str | None) -> None:
    """Print a result; with ``out`` write it as JSON, and the text beside it (.md)."""
    lines = [text]
    for goal in result["targets"]:
        verdict = "pass" if goal["met"] else "MISS"
        lines.append(f"{verdict}: {goal['target']}; measured {_cell(goal['measured'])}")
    where = result["machine"]
    lines.append(f"{where['date']}, {where['cpu_cores']} CPU cores, {where['machine']}")
    for side, numbers in result["versions"].items():
        named = ", ".join(f"{name} {version}" for name, version in numbers.items())
        lines.append(f"{side}: {named}")
    print("\n\n".join(lines))
    if out:
        path = Path(out)
        path.write_text(json.dumps(result, indent=2) + "\n")
        path.with_suffix(".md").write_text("\n\n".join(lines) + "\n")


# ---------------------------------------------------------------------- options


def parser(doc: str) -> argparse.ArgumentParser:
    """Options that all benchmarks share."""
    options = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument(
        "--out", metavar="FILE.json", type=_result_file, help="and .md beside it"
    )
    options.add_argument("--quick", action="store_true", help="toy size, for tests")
    options.add_argument("--side", help=argparse.SUPPRESS)
    return options


def count_option(options: argparse.ArgumentParser, name: str, default: int) -> None:
    """An option that is a whole number from 1 on."""
    options.add_argument(f"--{name}", metavar="N", type=count, default=default)


def only_option(options: argparse.ArgumentParser) -> None:
    """``--only``: some of the sides, see `is_selected`."""
    options.add_argument(
        "--only", metavar="WORDS", help="sides with one of these, separated by commas"
    )


def count(text: str) -> int:
    """The type of options that are whole numbers from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}; allowed: a whole number >= 1")
    return int(text)


def _result_file(text: str) -> str:
    """The name, once its folder is there: a benchmark takes minutes."""
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
    return only is None or any(word in side for word in only.split(","))


def interpreters(choices: Sequence[str], peers: Iterable[str]) -> dict[str, str]:
    """Peer -> interpreter, from ``--python PEER=PATH`` options."""
    paths = dict.fromkeys(peers, sys.executable)
    for choice in choices:
        peer, equals, path = choice.partition("=")
        if peer not in paths or not equals:
            raise SystemExit(f"--python {choice}: not one of {', '.join(paths)}=PATH")
        paths[peer] = path
    return paths


# ------------------------------------------------------------------ comparisons


class Comparison(NamedTuple):
    """A benchmark of several libraries, each perhaps with an interpreter of its own.

    Attributes:
        module: that is run, e.g. "benchmarks.lif_layer".
        prepare: (side, **sizes) -> (run, facts), called in the process of a side.
        peers: library -> its sides.
        packages: library -> distributions whose versions matter.
        sizes: name of an option -> its default, a whole number.
        quick: the same for ``--quick``.
        rounds, repeats: defaults; each round has so many repeats.
        compare: options -> (side -> what `time_sides` gives and more, targets).
        text: of a result.
    """

    module: str
    prepare: Callable[..., tuple[Callable[[], Any], dict]]
    peers: Mapping[str, Sequence[str]]
    packages: Mapping[str, Sequence[str]]
    sizes: Mapping[str, int]
    quick: Mapping[str, int]
    rounds: int
    repeats: int
    compare: Callable[[argparse.Namespace], tuple[dict[str, dict], list[dict]]]
    text: Callable[[dict], str]

    def peer(self, side: str) -> str:
        """The library that a side belongs to."""
        return next(peer for peer, sides in self.peers.items() if side in sides)

    def run(self, doc: str, arguments: Sequence[str] | None) -> dict | None:
        """The command: a result, which is printed too; None in the process of a side.

        Args:
            doc: of the module; its first line is the question.
        """
        options = self._options(doc, arguments)
        if options.side:
            work = functools.partial(self.prepare, options.side, **options.sizes)
            serve(work, self.packages[self.peer(options.side)])
            return None
        before = machine()
        sides, targets = self.compare(options)
        result = {
            "question": doc.splitlines()[0],
            "sizes": options.sizes,
            "rounds": options.rounds,
            "repeats": options.repeats,
            "machine": before,
            "versions": {
                self.peer(name): side["versions"]
                for name, side in installed(sides).items()
            },
            "sides": sides,
            "targets": targets,
        }
        report(result, self.text(result), options.out)
        return result

    def _options(self, doc: str, arguments: Sequence[str] | None) -> argparse.Namespace:
        options = parser(doc)
        options.add_argument(
            "--python",
            metavar="PEER=PATH",
            action="append",
            default=[],
            help="interpreter that has a peer installed; default: this one",
        )
        only_option(options)
        repetitions = {"rounds": self.rounds, "repeats": self.repeats}
        for name, default in {**self.sizes, **repetitions}.items():
            count_option(options, name, default)
        parsed = options.parse_args(arguments)
        if parsed.quick:
            vars(parsed).update(self.quick, rounds=1, repeats=1)
        parsed.sizes = {name: getattr(parsed, name) for name in self.sizes}
        return parsed

    def time_sides(
        self, options: argparse.Namespace, sides: Iterable[str]
    ) -> dict[str, dict]:
        """`rounds` of these sides."""
        pythons = interpreters(options.python, self.peers)
        sizes = [f"--{name}={value}" for name, value in options.sizes.items()]
        commands = {}
        for side in sides:
            python = pythons[self.peer(side)]
            commands[side] = [python, "-m", self.module, f"--side={side}", *sizes]
        return rounds(commands, options.rounds, options.repeats)


def installed(sides: dict[str, dict]) -> dict[str, dict]:
    """The sides whose library was found."""
    return {name: side for name, side in sides.items() if "missing" not in side}
