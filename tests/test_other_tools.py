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

DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "other_tools.md").read_text()
BEGINNING, *TITLES_AND_TEXTS = re.split(r"^## (.+)$", PAGE, flags=re.MULTILINE)
SECTIONS = dict(zip(TITLES_AND_TEXTS[::2], TITLES_AND_TEXTS[1::2], strict=True))
LIBRARIES = ["SpikingJelly", "snnTorch", "Norse", "Spyx"]  # in the page's order
TOLERANCES = {"spikes": 0, "outputs": 1e-5, "gradient": 1e-5, "losses": 1e-5}


def blocks(language, text):
    """The sources of all fenced blocks of a language."""
    fenced = re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    if language == "python":
        return fenced
    sources = []
    for block in fenced:
        examples = doctest.DocTestParser().get_examples(block)
        sources.append("".join(example.source for example in examples))
    return sources


def numbers(sources, namespace):
    """What each block assigns to the names that are compared, without empty blocks."""
    results = []
    for source in sources:
        exec(source, namespace)
        arrays = {}
        for name in TOLERANCES:
            if name in namespace:
                array = namespace.pop(name)
                if hasattr(array, "detach"):  # a tensor of PyTorch
                    array = array.detach()
                arrays[name] = np.asarray(array)
        if arrays:
            results.append(arrays)
    return results


@functools.cache
def snnjax_numbers():
    """The names of the beginning, and the numbers of snnjax's blocks by section.

    A section uses names of earlier ones, but none of SpikingJelly's, whose conversions
    take longest.
    """
    namespace = {}
    numbers(blocks("pycon", BEGINNING), namespace)
    beginning = dict(namespace)
    libraries = LIBRARIES
    if importlib.util.find_spec("spikingjelly") is None:
        libraries = LIBRARIES[1:]
    by_section = {}
    for title in libraries:
        by_section[title] = numbers(blocks("pycon", SECTIONS[title]), namespace)
    return beginning, by_section


def test_doctest_runs_the_python_of_all_other_pages():
    """Python in a block of another kind could tell users to do what raises.

    tests/test_torch_modules.py runs the block of the home page.
    """
    for page in DOCS.glob("*.md"):
        if page.name not in ("other_tools.md", "index.md"):
            assert not blocks("python", page.read_text()), page


@pytest.mark.filterwarnings("ignore")  # those of other libraries
@pytest.mark.parametrize("library", LIBRARIES)
def test_the_code_of_another_library_gives_the_numbers_of_ours(library):
    pytest.importorskip(library.lower())
    beginning, by_section = snnjax_numbers()
    expected = numbers(blocks("python", SECTIONS[library]), dict(beginning))
    assert expected
    for arrays, results in zip(expected, by_section[library], strict=True):
        assert arrays.keys() == results.keys()
        for name, array in arrays.items():
            assert np.abs(array).mean() > 0
            tolerance = TOLERANCES[name] * np.abs(array).max()
            np.testing.assert_allclose(
                results[name], array, rtol=0, atol=tolerance, err_msg=name
            )
