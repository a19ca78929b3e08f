"""Values by site: what a dictionary of names and patterns says of each site.

The site's own name counts first, then the first pattern of ``fnmatch`` that matches it.
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any


def matching(
    values: Mapping[str, Any], site_names: Sequence[str], what: str, default: Any = None
) -> dict[str, Any]:
    """Site name -> its value, for all sites in their order.

    Args:
        what: the name of the argument, for messages.
        default: of sites that no pattern matches; None: there is none.

    >>> matching({"head": 1, "*": 2}, ["stem", "head"], "recipe")
    {'stem': 2, 'head': 1}
    """
    sites = f"sites: {', '.join(site_names)}"
    if not values:
        raise ValueError(f"{what} is empty; allowed: name or pattern of sites -> value")
    for key in values:
        if not isinstance(key, str):
            raise ValueError(
                f"{what} has the key {key!r}; allowed: patterns of site names, e.g. "
                "'readout/*'"
            )
    patterns = {name: _first_match(values, name) for name in site_names}
    unused_patterns = [p for p in values if p not in patterns.values()]
    if unused_patterns:
        raise ValueError(
            f"the patterns {', '.join(map(repr, unused_patterns))} of {what} match no "
            f"site, or only sites that an earlier pattern matches; {sites}"
        )
    unmatched_names = [name for name, pattern in patterns.items() if pattern is None]
    if unmatched_names and default is None:
        raise ValueError(
            f"{what} has no pattern for {', '.join(unmatched_names)}; allowed: one for "
            f"every site, e.g. '*' for the rest; {sites}"
        )
    return {
        name: default if pattern is None else values[pattern]
        for name, pattern in patterns.items()
    }


def _first_match(patterns: Mapping[str, Any], name: str) -> str | None:
    """The pattern that counts for a site; None if none matches its name."""
    if name in patterns:
        return name
    for pattern in patterns:
        if fnmatchcase(name, pattern):
            return pattern
    return None
