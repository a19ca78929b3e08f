"""docs/other_tools.md: another library's code gives the numbers of snnjax's code.

A library that is not installed is skipped; the extras interop and peers have them all.
"""

import doctest
import functools
import importlib.util
import re
from pathlib import Path

import numpy as np
import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "other_tools.md").read_text()
BEGINNING, *TITLES_AND_TEXTS = re.split(r"^## (.+)$", PAGE, flags=re.MULTILINE)
SECTIONS = dict(zip(TITLES_AND_TEXTS[::2], TITLES_AND_TEXTS[1::2], strict=True))
LIBRARIES = ["SpikingJelly", "snnTorch", "Norse", "Spyx"]  # in the page's order
TOLERANCES = {"spikes": 0, "outputs": 1e-5, "gradient": 1e-5, "losses": 1e-5}


def blocks(language, text):
    """The sources of all fenced blocks of a language."""
    fenced = re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    if language == "python":
        return fenced
    examples = map(doctest.DocTestParser().get_examples, fenced)
    return ["".join(example.source for example in block) for block in examples]


def numbers(sources, namespace):
    """What each block gives to the names that are compared, without empty ones."""
    results = []
    for source in sources:
        exec(source, namespace)
        arrays = {n: namespace.pop(n) for n in TOLERANCES if n in namespace}
        results.append({n: np.asarray(_detached(a)) for n, a in arrays.items()})
    return [result for result in results if result]


def _detached(array):
    return array.detach() if hasattr(array, "detach") else array


@functools.cache
def ours():
    """Numbers of the blocks of snnjax by section, and the names before them.

    A section uses names of those before it, but none of SpikingJelly's, whose
    conversions take longest.
    """
    namespace = {}
    numbers(blocks("pycon", BEGINNING), namespace)
    beginning = dict(namespace)
    first = 0 if importlib.util.find_spec("spikingjelly") else 1
    return beginning, {
        title: numbers(blocks("pycon", SECTIONS[title]), namespace)
        for title in LIBRARIES[first:]
    }


@pytest.mark.filterwarnings("ignore")  # those of other libraries
@pytest.mark.parametrize("library", LIBRARIES)
def test_the_code_of_another_library_gives_the_numbers_of_ours(library):
    pytest.importorskip(library.lower())
    beginning, by_section = ours()
    theirs = numbers(blocks("python", SECTIONS[library]), dict(beginning))
    assert theirs
    for a, b in zip(theirs, by_section[library], strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert np.abs(a[name]).mean() > 0
            scale = TOLERANCES[name] * np.abs(a[name]).max()
            np.testing.assert_allclose(b[name], a[name], 0, scale, err_msg=name)
