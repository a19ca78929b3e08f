"""A one-line bar on a terminal: how far a long call is, and what it works on now."""

import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import TypeVar

import jax

_WIDTH = 20

_Item = TypeVar("_Item")


def shown(
    items: Iterable[_Item], title: str, noun: str, about: Callable[[_Item], str]
) -> Iterator[_Item]:
    """The items, and a bar on stderr while each of them is worked on.

    It shows each item before the work on it begins, since its first program may have to
    be compiled. The bar is removed at the end. There is none where stderr is no
    terminal, as in notebooks and files, and in other processes than the first.

    Args:
        items: without a length there is no bar, only the number of the item.
        title: shown before the bar.
        noun: what an item is, such as "site".
        about: item -> what is said about it behind its number.
    """
    if not sys.stderr.isatty() or jax.process_index() > 0:
        yield from items
        return
    count = len(items) if isinstance(items, Sized) else None
    try:
        for number, item in enumerate(items, 1):
            line = f"{title}{noun} {number}: {about(item)}"
            if count:
                bar = ("#" * (_WIDTH * number // count))[:_WIDTH].ljust(_WIDTH, ".")
                line = f"{title}[{bar}] {noun} {number} of {count}: {about(item)}"
            columns = shutil.get_terminal_size().columns
            _overwrite(line[: columns - 1])
            yield item
    finally:
        _overwrite("")


def _overwrite(line: str) -> None:
    """Replace the line on the terminal: back to its start, and clear the rest."""
    print(f"\r{line}\x1b[K", end="", file=sys.stderr, flush=True)
