"""The documentation has every public name, and the site is built without warnings."""

import ast
import configparser
import importlib
import itertools
import json
import operator
import os
import re
import runpy
import shutil
import subprocess
import sys
import types
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import jax
import nbformat
import pytest

import snnjax

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "api"
OURS = ("snnjax", "experiments")
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))
HAS_MKDOCS = shutil.which("mkdocs", path=str(Path(sys.executable).parent)) is not None
SITE = pytest.mark.skipif(
    not HAS_MKDOCS, reason="needs mkdocs: pip install -e '.[docs]'"
)
BY_HAND = [  # the pages that list their names, in groups
    *"snnjax calibrators deploy measures network neurons".split(),
    *"simulation storage torch training".split(),
]


def test_the_reference_has_every_public_name():
    for page in BY_HAND:
        name = "snnjax" if page == "snnjax" else f"snnjax.{page}"
        module = importlib.import_module(name)
        public = {
            name
            for name in module.__all__
            if not isinstance(getattr(module, name), types.ModuleType | str)
        }
        text = (PAGES / f"{page}.md").read_text()
        entries = re.findall(r"^::: ([\w.]+)$", text, re.M)
        names = [entry.rpartition(".")[2] for entry in entries]
        if page != "snnjax":  # first the module itself
            names.remove(page)
        assert sorted(names) == sorted(public), page


def test_every_page_is_in_the_menu():
    menu = (ROOT / "mkdocs.yml").read_text()
    pages = [*(ROOT / "docs").rglob("*.md"), *TUTORIALS]
    for page in pages:
        assert str(page.relative_to(ROOT / "docs")) in menu


def test_every_page_answers_a_task():
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"how_do_i.md"}
    tasks = (ROOT / "docs" / "how_do_i.md").read_text()
    assert pages == set(re.findall(r"\]\((\w+\.md)[)#]", tasks))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site; a warning would fail."""
    folder = tmp_path_factory.mktemp("site")
    options = ["build", "--strict", "--quiet", "--site-dir", str(folder)]
    command = [sys.executable, "-m", "mkdocs", *options]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return folder


@SITE
@pytest.mark.thorough
def test_the_reference_shows_functions_with_examples_and_whole_sentences(site):
    pages = {file.stem: file.read_text() for file in (site / "api").glob("*.html")}
    assert 'id="snnjax.integrate_and_fire"' in pages["snnjax"]
    # An example is a block of code, and an equation one of its own.
    assert "&gt;&gt;&gt;" in pages["snnjax"] and "<blockquote>" not in pages["snnjax"]
    for name, page in pages.items():
        # A function and its file may have one name; the page then names both.
        assert not re.search(r"<h3[^>]*>\s*<code class=[^>]*symbol-module", page), name
        returns = re.findall(r"Returns:</span></p>\s*<ul>.*?</ul>", page, re.S)
        assert all(part.count("<li") == 1 for part in returns), name


@SITE
@pytest.mark.thorough
def test_search_works_in_pages_from_the_disk(site):
    index = (site / "search" / "search_index.js").read_text()
    assert index.startswith("var __index = ")
    shim = '<script src="theme/iframe-worker.js"></script>'  # runs the worker there
    assert shim in (site / "index.html").read_text()


@SITE
@pytest.mark.thorough
def test_search_finds_headings_and_text_without_cells_of_notebooks(site):
    text = (site / "search" / "search_index.js").read_text()
    entries = json.loads(text.removeprefix("var __index = "))["docs"]
    by_location = {entry["location"]: entry for entry in entries}
    assert len(by_location) > 300
    for location, entry in by_location.items():
        assert "¶" not in entry["title"], location
        assert "Copied!" not in entry["text"], location
    # Words of a title count most.
    title = by_location["neurons.html#write-a-neuron-of-your-own"]["title"]
    assert title == "Write a neuron of your own"
    assert by_location["api/torch.html"]["title"] == "snnjax.torch"
    assert "whole threshold" in by_location["tutorials/chip.html#whole-numbers"]["text"]


@SITE
@pytest.mark.thorough
def test_a_phone_shows_halves_of_figures_with_two_columns(site):
    gallery = (site / "gallery.html").read_text()
    largest, second, *_ = re.findall(r'<span class="halves">.*?</a>', gallery)
    # Three groups of panels in the first figure, one in the second.
    assert (
        largest.count('class="half left"') == largest.count('class="half right"') == 3
    )
    assert second.count('class="half left"') == 1
    assert largest.count('alt=""') == 5
    home = (site / "index.html").read_text()
    assert home.count('class="half right"') == 1
    for page, file in ("results", "accuracy"), ("accuracy", "layers"):
        text = (site / f"{page}.html").read_text()
        assert re.search(rf'class="half right"[^>]*><img [^>]*{file}.png', text)


@SITE
@pytest.mark.thorough
def test_every_link_of_the_site_leads_to_a_file_and_a_place_in_it(site):
    pages = {file: _Page(file.read_text()) for file in site.rglob("*.html")}
    dead = []
    for file, page in pages.items():
        for link in page.links:
            path, _, place = unquote(link).partition("#")
            folder = site if path.startswith("/") else file.parent  # as of 404.html
            target = Path(os.path.normpath(folder / path.lstrip("/")) if path else file)
            ids = pages[target].ids if target in pages else set()
            if not target.exists() or place not in ids | {""}:
                dead.append((str(file.relative_to(site)), link))
    assert sum(len(page.links) for page in pages.values()) > 1000
    assert dead == []


class _Page(HTMLParser):
    """The ids of a page, and its links to files of the site."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links = set(), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.ids |= {attributes[name] for name in ("id", "name") if name in attributes}
        for name in ("href", "src"):
            address = attributes.get(name) or ""
            # A page of the site loads nothing from elsewhere.
            assert tag == "a" or "://" not in address, (tag, address)
            if address and not re.match(r"[a-z]+:", address):
                self.links.append(address)


def test_what_a_tutorial_imports_and_calls_exists():
    for file in TUTORIALS:
        for node in ast.walk(ast.parse(_code(nbformat.read(file, as_version=4)))):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in OURS:
                module = importlib.import_module(node.module)
                for alias in node.names:
                    assert hasattr(module, alias.name), (file, alias.name)
            name = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
            if re.fullmatch(r"snnjax(\.\w+)+", name):
                attribute = operator.attrgetter(name.partition(".")[2])
                assert attribute(snnjax) is not None, file


# All but the one with PyTorch, which stands for them.
LONG = [file.stem for file in TUTORIALS if file.stem != "from_pytorch_to_nir"]


@pytest.mark.parametrize(
    "file",
    [
        pytest.param(file, marks=[pytest.mark.slow] if file.stem in LONG else [])
        for file in TUTORIALS
    ],
    ids=lambda file: file.stem,
)
def test_a_tutorial_runs_and_shows_what_it_was_saved_with(file, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    saved = nbformat.read(file, as_version=4)
    modules = set(re.findall(r"^(?:from|import) (\w+)", _code(saved), re.M))
    for module in modules:
        pytest.importorskip(module, reason=f"the tutorial needs {module}")
    if "torch" not in modules and not HAS_MKDOCS:
        pytest.skip("runs where the site is built")
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
    # What one tutorial compiles, the next one reads.
    monkeypatch.setenv(
        "JAX_COMPILATION_CACHE_DIR", jax.config.jax_compilation_cache_dir
    )
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    monkeypatch.delenv("XLA_FLAGS", raising=False)  # a tutorial has its own devices
    notebook = nbformat.read(file, as_version=4)
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=resources).execute()
    for cell, saved_cell in zip(notebook.cells, saved.cells, strict=True):
        assert _outputs(cell) == _outputs(saved_cell), cell.source
    # Accuracies depend on the machine in their last digits.
    shown = re.findall(r"([\d.]+) % of \d+ test", str(notebook.cells))
    assert shown and min(map(float, shown)) > 94


def _code(notebook):
    return "\n".join(c.source for c in notebook.cells if c.cell_type == "code")


def _outputs(cell):
    """Kinds of what a cell shows; printed lines may come in several parts."""
    kinds = [
        o.output_type for o in cell.get("outputs", ()) if o.get("name") != "stderr"
    ]
    return [kind for kind, _ in itertools.groupby(kinds)]


def test_a_release_has_absolute_addresses(tmp_path):
    prepare = runpy.run_path(str(ROOT / ".github" / "prepare_release.py"))
    (tmp_path / "README.md").write_text(
        "[a](docs/a.md#b) ![c](docs/c.png) [d](#d) [e](https://e.org/e.md)"
    )
    (tmp_path / "setup.cfg").write_text("[metadata]\nname = a\nclassifiers =\n    b\n")
    prepare["main"]("https://example.org/a", "v1", tmp_path)
    assert (tmp_path / "README.md").read_text() == (
        "[a](https://example.org/a/blob/v1/docs/a.md#b) "
        "![c](https://example.org/a/raw/v1/docs/c.png) [d](#d) [e](https://e.org/e.md)"
    )
    setup = configparser.ConfigParser()
    setup.read(tmp_path / "setup.cfg")
    addresses = setup["metadata"]["project_urls"].split("\n")
    assert "Source = https://example.org/a" in addresses
    assert setup["metadata"]["classifiers"].strip() == "b"
    with pytest.raises(SystemExit, match="has addresses already"):
        prepare["main"]("https://example.org/a", "v1", tmp_path)


def test_links_of_the_readme_lead_to_files():
    targets = re.findall(r"\]\(([^)\s]+)\)", (ROOT / "README.md").read_text())
    assert len(targets) > 10
    for target in targets:
        assert "://" in target or (ROOT / target.partition("#")[0]).exists(), target


def test_docstrings_are_turned_into_markdown(monkeypatch):
    pytest.importorskip("griffe")
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "theme"))
    docstrings = importlib.import_module("docstrings")
    text = "Adds.\n\nArgs:\n    a, b: > 0.\n\n>>> 1 + 1\n2\n\n>>> 2\n2\n\nSource: none."
    assert docstrings.separated(docstrings.fenced(text)) == (
        "Adds.\n\nArgs:\n    a: \\> 0.\n    b: \\> 0.\n\n"
        "```pycon\n>>> 1 + 1\n2\n\n>>> 2\n2\n```\n\nSource: none."
    )
