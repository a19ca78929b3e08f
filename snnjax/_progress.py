"""What a long call is doing: a bar on a terminal or in a notebook, otherwise log lines.

The bar is one line on stderr. Without a terminal, as in files and scripts of a cluster,
the same words go to ``logging.getLogger("snnjax")`` at level INFO.
"""

import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TypeVar

import jax

_BAR_WIDTH = 20
_NOTEBOOK_COLUMNS = 100
_SECONDS_BETWEEN_LOG_LINES = 5

_Item = TypeVar("_Item")


def shown(
    items: Iterable[_Item], title: str, noun: str, about: Callable[[_Item], str]
) -> Iterator[_Item]:
    """The items, while a bar or the log tells which of them is worked on.

    Each item is shown before the work on it begins, since its first program may have to
    be compiled. The bar is removed at the end. The log has a line every five seconds
    at most, over all calls: an epoch may take less. Only the first process shows
    anything.

    Args:
        items: what is worked on. Without a length of them there is no bar, only the
            number of the item.
        title: shown before the bar.
        noun: what an item is, such as "site".
        about: item -> what is said about it behind its number.
    """
    if jax.process_index() > 0:
        yield from items
        return
    display = _display()
    count = len(items) if isinstance(items, Sized) else None
    try:
        for number, item in enumerate(items, 1):
            if display.is_due():
                display.show(title, noun, number, count, about(item))
            yield item
    finally:
        display.clear()


class _Bar:
    """A line of stderr that is written again and again; subclasses overwrite it."""

    def is_due(self) -> bool:
        """Whether the next item is shown: a bar shows all of them."""
        return True

    def show(
        self, title: str, noun: str, number: int, count: int | None, detail: str
    ) -> None:
        """Show that item ``number`` of ``count`` begins, see `shown`."""
        if count is None:
            line = f"{title}{noun} {number}: {detail}"
        else:
            filled = "#" * (_BAR_WIDTH * number // count)
            bar = filled.ljust(_BAR_WIDTH, ".")
            line = f"{title}[{bar}] {noun} {number} of {count}: {detail}"
        self.overwrite(line)

    def clear(self) -> None:
        self.overwrite("")

    def overwrite(self, line: str) -> None:
        raise NotImplementedError


class _TerminalBar(_Bar):
    """The line of a terminal, of which an escape sequence erases what is left."""

    def overwrite(self, line: str) -> None:
        # A line that wraps could not be overwritten. The last column stays free, since
        # some terminals wrap as soon as it is used.
        columns = shutil.get_terminal_size().columns - 1
        erase_to_the_end = "\x1b[K"
        text = f"\r{line[:columns]}{erase_to_the_end}"
        print(text, end="", file=sys.stderr, flush=True)


class _NotebookBar(_Bar):
    """Notebooks know ``\\r``, but no escape sequence that erases a line."""

    def __init__(self):
        self.shown_length = 0  # characters of the line that is shown

    def overwrite(self, line: str) -> None:
        line = line[:_NOTEBOOK_COLUMNS]
        # Spaces cover the end of a longer line that was shown before.
        text = f"\r{line.ljust(self.shown_length)}"
        if not line:
            text += "\r"  # what is printed next starts at the left
        self.shown_length = len(line)
        print(text, end="", file=sys.stderr, flush=True)


class _LogLines:
    """Lines of the log, some seconds apart, also those of calls one after another."""

    def __init__(self):
        self.logger = logging.getLogger("snnjax")
        self.next_time = -float("inf")  # of ``time.monotonic``, for the next line

    def is_due(self) -> bool:
        """Whether the next item gets a line."""
        is_read = self.logger.isEnabledFor(logging.INFO)
        return is_read and time.monotonic() >= self.next_time

    def show(
        self, title: str, noun: str, number: int, count: int | None, detail: str
    ) -> None:
        """Write that item ``number`` of ``count`` begins, see `shown`."""
        position = f"{number}" if count is None else f"{number} of {count}"
        self.logger.info("%s%s %s: %s", title, noun, position, detail)
        self.next_time = time.monotonic() + _SECONDS_BETWEEN_LOG_LINES

    def clear(self) -> None:
        pass  # a log keeps its lines


_LOG_LINES = _LogLines()


def _display() -> _Bar | _LogLines:
    """The form that suits the place where stderr is read."""
    if sys.stderr.isatty():
        return _TerminalBar()
    if _is_notebook():
        return _NotebookBar()
    return _LOG_LINES


def _is_notebook() -> bool:
    """Whether a kernel of Jupyter or Colab runs this process.

    IPython is no dependency. Where it runs, it has been imported already.
    """
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return hasattr(shell, "kernel")
