"""Which core runs which population, where the cores of a chip have their own memory.

The assignment is a maximum matching by augmenting paths (Kuhn, 1955): if all layers can
have a core, they do.
"""

from collections.abc import Mapping, Sequence

from snnjax.deploy.chips.profiles import Core
from snnjax.deploy.chips.properties import Finding


def assign(needs: Mapping[str, Core], cores: Sequence[Core]) -> dict[str, int]:
    """Name -> number of a core; names that get none are left out.

    The largest needs come first, and take the smallest core that has both memories.

    >>> cores = [Core(16, 64), Core(64, 16)]
    >>> assign({"a": Core(10, 10), "b": Core(10, 60)}, cores)
    {'b': 0, 'a': 1}
    >>> assign({"a": Core(10, 60), "b": Core(10, 61)}, cores)
    {'b': 0}
    """
    names_of_cores: dict[int, str] = {}
    order = sorted(range(len(cores)), key=lambda i: cores[i])

    def place(name: str, visited: set[int]) -> bool:
        for i in order:
            if i in visited or not fits(needs[name], cores[i]):
                continue
            visited.add(i)
            # The core is free, or the layer that has it finds another one.
            if i not in names_of_cores or place(names_of_cores[i], visited):
                names_of_cores[i] = name
                return True
        return False

    names = sorted(needs, key=lambda name: (max(needs[name]), name), reverse=True)
    for name in names:
        place(name, set())
    numbers = {name: i for i, name in names_of_cores.items()}
    return {name: numbers[name] for name in names if name in numbers}


def fits(words: Core, core: Core) -> bool:
    """Whether a core has this much of both memories."""
    return words.kernels <= core.kernels and words.neurons <= core.neurons


def no_core(words: Core, cores: Sequence[Core]) -> Finding:
    """Why a layer got no core."""
    size = f"{_words(words.kernels)} of kernels and {_words(words.neurons)} of neurons"
    if any(fits(words, core) for core in cores):
        problem = f"needs {size}; other layers take every core that has them"
        return Finding("cores", "no", problem, "use fewer or smaller layers")
    largest = f"{_words(max(c.kernels for c in cores))} of kernels or " + (
        f"{_words(max(c.neurons for c in cores))} of neurons"
    )
    remedy = f"use fewer channels, or pool earlier: a core has at most {largest}"
    return Finding("cores", "no", f"needs {size}; no core has both", remedy)


def _words(count: int) -> str:
    return f"{count / 1024:.3g} Ki words" if count >= 1024 else f"{count} words"
