"""A griffe extension: what our docstrings write shorter than Markdown and griffe do.

An example becomes a code block: a line that begins with ``>>>`` would be a quotation.
``a, b: text`` among the arguments becomes an entry for each of them, and a text that
begins with > is none either.
"""

import re

import griffe

# From the first ``>>>`` to the next empty line.
EXAMPLE = re.compile(r"(?:^[ ]*>>>.*\n?)(?:^[ ]*\S.*\n?)*", re.MULTILINE)
SHARED = re.compile(r"^( +)(\w+(?:, \w+)+): (.*)$", re.MULTILINE)

QUOTATION = re.compile(r"^( +\w+: )>(?!>)", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Rewrites every docstring before griffe parses it."""

    def on_object(self, *, obj: griffe.Object, **_) -> None:
        if obj.docstring is not None:
            obj.docstring.value = separated(fenced(obj.docstring.value))


def fenced(docstring: str) -> str:
    r"""The docstring with its examples between fences.

    >>> print(fenced("Adds.\n\n>>> 1 + 1\n2\n\nSource: none.").replace("`", "'"))
    Adds.
    <BLANKLINE>
    '''pycon
    >>> 1 + 1
    2
    '''
    <BLANKLINE>
    Source: none.
    """
    blocks = EXAMPLE.sub(
        lambda match: f"```pycon\n{match[0].rstrip()}\n```\n", docstring
    )
    return blocks.replace("```\n\n```pycon\n", "\n")


def separated(docstring: str) -> str:
    r"""The docstring with an entry for every argument.

    >>> print(separated("Args:\n    low, high: as there."))
    Args:
        low: as there.
        high: as there.
    """

    def entries(match: re.Match) -> str:
        indentation, names, text = match.groups()
        return "\n".join(f"{indentation}{name}: {text}" for name in names.split(", "))

    return QUOTATION.sub(r"\1\\>", SHARED.sub(entries, docstring))
