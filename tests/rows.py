"""Rows of a table of tests that a first run leaves out."""

import pytest


def thorough(*rows):
    """Parameters whose kind another row of the same test covers."""
    return [
        pytest.param(
            *(row if isinstance(row, tuple) else (row,)), marks=pytest.mark.thorough
        )
        for row in rows
    ]


def quick_first(names, *quick):
    """The names: the quick ones are in a first run, and the others are thorough."""
    others = [name for name in names if name not in quick]
    return [*quick, *thorough(*others)]
