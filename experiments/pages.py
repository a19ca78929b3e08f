"""Rewrites the tables of Markdown pages: ``python -m experiments.pages PAGE ...``.

Each HTML comment of a page names the command that prints the table below it, or a file
of benchmarks/results that has the table:

    <!-- python -m experiments.results --costs convert_cifar10_vit -->
    <!-- benchmarks/results/ablation.md -->

The rows of the table are replaced. The rest of the page stays as it is.
"""

import argparse
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from itertools import dropwhile, takewhile
from pathlib import Path

from experiments import codes, comparison, prices, published, results
from experiments.running import run
from experiments.sources import __main__ as source_networks

ROOT = Path(__file__).parents[1]
COMMANDS: Mapping[str, Callable[[Sequence[str]], str]] = {
    "python -m experiments.results": results.table_of,
    "python -m experiments.sources": source_networks.table_of,
    "python -m experiments.codes": codes.table_of,
    "python -m experiments.comparison": comparison.table_of,
    "python -m experiments.published": published.table_of,
    "python -m experiments.prices": prices.table_of,
}
FILES = "benchmarks/results/"
# A comment, and the table below it, if there is one yet.
TABLE = re.compile(
    r"<!--(?P<source>.*?)-->(?:[ \t]*\n)*(?P<rows>(?:^[ \t]*\|[^\n]*\n?)*)",
    re.DOTALL | re.MULTILINE,
)


def sources_of(page: str) -> list[str]:
    """The commands and files of a page's tables, in order."""
    return [" ".join(match["source"].split()) for match in TABLE.finditer(page)]


def with_new_tables(page: str) -> str:
    """The page with each table as its command or file has it now."""

    def with_new_rows(match: re.Match[str]) -> str:
        text = f"<!--{match['source']}-->\n\n{rows_of(match['source'])}"
        if not match["rows"] and match.end() < len(page):
            # A new table needs an empty line before what follows.
            text += "\n"
        return text

    if page.count("<!--") != page.count("-->"):
        raise ValueError("a comment has no end, or no beginning; write <!-- ... -->")
    return TABLE.sub(with_new_rows, page)


def rows_of(source: str) -> str:
    """The table that a command prints, or the first one of a file."""
    source = " ".join(source.split())
    if source.startswith(FILES):
        return _first_table(source)
    for command, table_of in COMMANDS.items():
        if f"{source} ".startswith(f"{command} "):
            try:
                return table_of(shlex.split(source.removeprefix(command)))
            except SystemExit:  # of argparse, which has said why
                raise ValueError(f"the options of {source!r} give no table") from None
    raise ValueError(
        f"the comment {source!r} names no table; allowed: {', '.join(COMMANDS)}, with "
        f"options, or {FILES}NAME.md"
    )


def _first_table(file: str) -> str:
    """The first table of a Markdown file."""
    try:
        lines = (ROOT / file).read_text(encoding="utf-8").splitlines(keepends=True)
    except OSError:
        lines = []
    below = dropwhile(lambda line: not line.startswith("|"), lines)
    rows = "".join(takewhile(lambda line: line.startswith("|"), below))
    if not rows:
        raise ValueError(f"{file} is not a file with a table")
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Command line: rewrite the pages, and name those that change."""
    parser = argparse.ArgumentParser(prog="pages", description=__doc__)
    parser.add_argument("pages", nargs="+", type=Path, metavar="PAGE")
    pages = parser.parse_args(argv).pages
    run(lambda: rewrite(pages), compiles=False)


def rewrite(pages: Sequence[Path]) -> None:
    """Write all pages whose tables have changed, or none if a comment is wrong."""
    changes = {}
    for page in pages:
        text = page.read_text(encoding="utf-8")
        try:
            new = with_new_tables(text)
        except ValueError as error:
            raise ValueError(f"{page}: {error}") from None
        if new != text:
            changes[page] = new
    for page, text in changes.items():
        page.write_text(text, encoding="utf-8")
        print(f"{page}: new tables")


if __name__ == "__main__":
    main()
