"""Tables of Markdown pages, made anew: ``python -m experiments.pages PAGE ...``.

A table stands below a comment that names the command that prints it, or its file:

    <!-- python -m experiments.results --costs convert_cifar10_vit -->
    <!-- benchmarks/results/ablation.md -->

Its rows become those that are printed now, or are in the file, all else stays.
"""

import argparse
import contextlib
import io
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from itertools import dropwhile, takewhile
from pathlib import Path

from experiments import results
from experiments.running import run
from experiments.sources import __main__ as sources

ROOT = Path(__file__).parents[1]
COMMANDS: Mapping[str, Callable[[Sequence[str]], None]] = {
    "python -m experiments.results": results.main,
    "python -m experiments.sources": sources.main,
}
TABLE = re.compile(
    r"^<!-- (?P<source>python -m [^>]+?|[\w/]+\.md)\s-->\n+(?P<rows>(?:^\|.*\n)*)",
    re.MULTILINE,
)


def sources_of(page: str) -> list[str]:
    """The commands and files of a page's tables, in their order."""
    return [match["source"] for match in TABLE.finditer(page)]


def renewed(page: str) -> str:
    """The page with each table as its command prints it now, or its file holds it.

    Raises:
        ValueError: a comment names another command, or a file that is missing.
    """

    def new_rows(match: re.Match[str]) -> str:
        comment = match[0].removesuffix(match["rows"]).rstrip()
        return f"{comment}\n\n{rows_of(match['source'])}" + "\n" * (not match["rows"])

    return TABLE.sub(new_rows, page)


def rows_of(source: str) -> str:
    """The table that a command prints, or the first one of a file."""
    command = " ".join(source.split())
    if not command.startswith("python "):
        lines = (ROOT / command).read_text().splitlines(keepends=True)
        rows = dropwhile(lambda line: not line.startswith("|"), lines)
        return "".join(takewhile(lambda line: line.startswith("|"), rows))
    name = next((n for n in COMMANDS if f"{command} ".startswith(f"{n} ")), "")
    if not name:
        raise ValueError(
            f"a comment names {command!r}; allowed: {', '.join(COMMANDS)}, with "
            "arguments, or a file of benchmarks/results"
        )
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        COMMANDS[name](shlex.split(command.removeprefix(name)))
    return output.getvalue()


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: rewrite the pages, and name those that have changed."""
    parser = argparse.ArgumentParser(prog="pages", description=__doc__)
    parser.add_argument("pages", nargs="+", type=Path, metavar="PAGE")
    arguments = parser.parse_args(argv)

    def rewrite() -> None:
        pages = {page: page.read_text() for page in arguments.pages}
        changes = {page: renewed(text) for page, text in pages.items()}
        for page, text in changes.items():
            if text != pages[page]:
                page.write_text(text)
                print(f"{page}: new tables")

    run(rewrite)


if __name__ == "__main__":
    main()
