"""A one-line bar on a terminal: which site is fitted, and how many there are."""

import shutil
import sys
from collections.abc import Iterator, Sequence

import jax

from snnjax.network.sites import Site

_WIDTH = 20


def shown(sites: Sequence[Site], title: str = "") -> Iterator[Site]:
    """The sites, and a bar on stderr while they are fitted.

    The bar is removed at the end. There is none where stderr is no terminal, as in
    notebooks and files, and in other processes than the first.

    Args:
        title: shown before the bar.
    """
    if not sys.stderr.isatty() or jax.process_index() > 0:
        yield from sites
        return
    try:
        for number, site in enumerate(sites, 1):
            bar = ("#" * (_WIDTH * number // len(sites))).ljust(_WIDTH, ".")
            line = f"{title}[{bar}] site {number} of {len(sites)}: {site.name}"
            columns = shutil.get_terminal_size().columns
            _overwrite(line[: columns - 1])
            yield site
    finally:
        _overwrite("")


def _overwrite(line: str) -> None:
    """Replace the line on the terminal: back to its start, and clear the rest."""
    print(f"\r{line}\x1b[K", end="", file=sys.stderr, flush=True)
