"""Rows of the table of refusals, a file for each door; test_refusals.py is the test."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Refusal(NamedTuple):
    """A call that raises, and a regular expression that its message holds."""

    call: Callable[[], Any]
    message: str
    error: type[BaseException] = ValueError
