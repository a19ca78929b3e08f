"""The table of refusals by topic: test_refusals.py tests the ROWS of each file here."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple


class Refusal(NamedTuple):
    """A name, a call that raises, and a regular expression that its message holds."""

    name: str
    call: Callable[[], Any]
    message: str
    error: type[BaseException] = ValueError


def numbered(subject, call, table):
    """Refusals of ``call(**options)``, one for each pair (options, message)."""
    for number, (options, message) in enumerate(table, 1):
        name = f"{subject} {number}: {', '.join(options)}"
        yield Refusal(name, functools.partial(call, **options), message)
