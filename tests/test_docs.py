"""The documentation has every public name, and the site is built without warnings."""

import importlib
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "api"
BY_HAND = [  # the pages that list their names, in groups
    "snnjax",
    *"calibrators measures network neurons nir simulation storage training".split(),
]


@pytest.mark.parametrize("page", BY_HAND)
def test_the_reference_has_every_public_name(page):
    module = importlib.import_module("snnjax" if page == "snnjax" else f"snnjax.{page}")
    public = {
        name
        for name in module.__all__
        if not isinstance(getattr(module, name), types.ModuleType | str)
    }
    entries = re.findall(r"^::: ([\w.]+)$", (PAGES / f"{page}.md").read_text(), re.M)
    names = [entry.rpartition(".")[2] for entry in entries]
    if page != "snnjax":  # first the module itself
        names.remove(page)
    assert sorted(names) == sorted(public)


def test_every_page_is_in_the_menu():
    menu = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        assert str(page.relative_to(ROOT / "docs")) in menu


@pytest.mark.skipif(
    shutil.which("mkdocs", path=str(Path(sys.executable).parent)) is None,
    reason="needs mkdocs: pip install -e '.[docs]'",
)
def test_the_site_is_built_without_warnings(tmp_path):
    options = ["build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    command = [sys.executable, "-m", "mkdocs", *options]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    page = (tmp_path / "api" / "snnjax.html").read_text()
    assert 'id="snnjax.integrate_and_fire"' in page
    # An example is a block of code, and an equation one of its own.
    assert "&gt;&gt;&gt;" in page and "<blockquote>" not in page
    assert "http://" not in re.sub(r"<a [^>]*>|http://www.w3.org", "", page)


def test_docstrings_are_turned_into_markdown(monkeypatch):
    pytest.importorskip("griffe")
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "theme"))
    docstrings = importlib.import_module("docstrings")
    text = "Adds.\n\nArgs:\n    a, b: > 0.\n\n>>> 1 + 1\n2\n\n>>> 2\n2\n\nSource: none."
    assert docstrings.separated(docstrings.fenced(text)) == (
        "Adds.\n\nArgs:\n    a: \\> 0.\n    b: \\> 0.\n\n"
        "```pycon\n>>> 1 + 1\n2\n\n>>> 2\n2\n```\n\nSource: none."
    )
