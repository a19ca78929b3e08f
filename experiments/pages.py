"""Tables of Markdown pages, made anew: ``python -m experiments.pages PAGE ...``.

Each HTML comment of a page names the command that prints the table below it, or the
file of benchmarks/results that begins with the table:

    <!-- python -m experiments.results --costs convert_cifar10_vit -->
    <!-- benchmarks/results/ablation.md -->

The rows of the table are replaced, and all else stays.
"""

import argparse
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from itertools import dropwhile, takewhile
from pathlib import Path

from experiments import results
from experiments.running import run
from experiments.sources import __main__ as source_networks

ROOT = Path(__file__).parents[1]
COMMANDS: Mapping[str, Callable[[Sequence[str]], str]] = {
    "python -m experiments.results": results.table_of,
    "python -m experiments.sources": source_networks.table_of,
}
FILES = "benchmarks/results/"
# A comment, and below it a table, if there is one yet.
TABLE = re.compile(
    r"<!--(?P<source>.*?)-->(?:[ \t]*\n)*(?P<rows>(?:^[ \t]*\|[^\n]*\n?)*)",
    re.DOTALL | re.MULTILINE,
)


def sources_of(page: str) -> list[str]:
    """The commands and files of a page's tables, in their order."""
    return [_in_one_line(match["source"]) for match in TABLE.finditer(page)]


def with_new_tables(page: str) -> str:
    """The page with each table as its command prints it now, or its file holds it.

    Raises:
        ValueError: a comment, whose line is named, is of another command, of one with
            other options, or of a file that has no table or cannot be read; or it has
            no end.
    """

    def with_new_rows(match: re.Match[str]) -> str:
        gap = "" if match["rows"] or match.end() == len(page) else "\n"
        try:
            rows = rows_of(match["source"])
        except (ValueError, OSError) as error:
            line = 1 + page.count("\n", 0, match.start())
            raise ValueError(f"line {line}: {error}") from None
        return f"<!--{match['source']}-->\n\n{rows}{gap}"

    if page.count("<!--") != page.count("-->"):
        raise ValueError("a comment has no end, or no beginning; allowed: <!-- ... -->")
    return TABLE.sub(with_new_rows, page)


def rows_of(source: str) -> str:
    """The table that a command prints, or the first one of a file."""
    source = _in_one_line(source)
    if source.startswith(FILES):
        lines = (ROOT / source).read_text(encoding="utf-8").splitlines(keepends=True)
        below = dropwhile(lambda line: not line.startswith("|"), lines)
        rows = "".join(takewhile(lambda line: line.startswith("|"), below))
        if not rows:
            raise ValueError(f"{source} has no table; name a file that has one")
        return rows
    for command, table_of in COMMANDS.items():
        if f"{source} ".startswith(f"{command} "):
            try:
                return table_of(shlex.split(source.removeprefix(command)))
            except SystemExit:  # of argparse, which has said why
                raise ValueError(f"the options of {source!r} give no table") from None
    raise ValueError(
        f"a comment holds {source!r}; allowed: {', '.join(COMMANDS)}, with arguments, "
        f"or a file {FILES}NAME.md"
    )


def _in_one_line(source: str) -> str:
    return " ".join(source.split())


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: rewrite the pages, and name those that have changed."""
    parser = argparse.ArgumentParser(prog="pages", description=__doc__)
    parser.add_argument("pages", nargs="+", type=Path, metavar="PAGE")
    arguments = parser.parse_args(argv)

    def rewrite() -> None:
        changes = {}
        for page in arguments.pages:
            text = page.read_text(encoding="utf-8")
            try:
                new = with_new_tables(text)
            except ValueError as error:
                raise ValueError(f"{page}: {error}") from None
            if new != text:
                changes[page] = new
        for page, text in changes.items():  # all or none
            page.write_text(text, encoding="utf-8")
            print(f"{page}: new tables")

    run(rewrite, compiles=False)


if __name__ == "__main__":
    main()
