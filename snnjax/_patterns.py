"""Values by site: what a dictionary of names and patterns says of each site.

A key that is the name of a site counts before patterns. Among patterns, as of
``fnmatch``, the first that matches the name counts.
"""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any


def matching(
    values: Mapping[str, Any], site_names: Sequence[str], what: str, default: Any = None
) -> dict[str, Any]:
    """Site name -> its value, for all sites in their order.

    Args:
        values: name or pattern of sites -> value.
        site_names: of all sites.
        what: name of the argument that holds the values, for messages.
        default: value of sites that no pattern matches; None: each must have one.

    Raises:
        ValueError: no values; a key that is no text or counts for no site; or a site
            without a value.

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
    patterns = {name: _first_match(values, name) for name in site_names}  # by site
    unused_patterns = [key for key in values if key not in patterns.values()]
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
    values_by_site = {}
    for name, pattern in patterns.items():
        values_by_site[name] = default if pattern is None else values[pattern]
    return values_by_site


def _first_match(patterns: Mapping[str, Any], name: str) -> str | None:
    """The key that counts for the site of this name; None if none matches it."""
    if name in patterns:
        return name
    for pattern in patterns:
        if fnmatchcase(name, pattern):
            return pattern
    return None
