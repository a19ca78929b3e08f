"""What a long call says while it works: on a terminal, in a notebook and in the log."""

import io
import itertools
import logging
import sys
from types import SimpleNamespace

import jax
import pytest

from snnjax import _progress

SITES = ["stem/relu", "block/relu", "head/relu"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def run(monkeypatch, stderr, items=SITES, title="sweep 1 "):
    monkeypatch.setattr(sys, "stderr", stderr)
    assert list(_progress.shown(items, title, "site", str)) == SITES
    return stderr.getvalue()


@pytest.fixture
def notebook(monkeypatch):
    """IPython as it is imported in a kernel of Jupyter."""
    shell = SimpleNamespace(kernel=object())
    ipython = SimpleNamespace(get_ipython=lambda: shell)
    monkeypatch.setitem(sys.modules, "IPython", ipython)


def screen(text):
    """What a line shows after carriage returns, as notebooks draw it."""
    characters, column = {}, 0
    for character in text:
        if character == "\r":
            column = 0
        else:
            characters[column] = character
            column += 1
    return "".join(character for _, character in sorted(characters.items()))


def test_a_terminal_has_a_bar(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    *lines, last = run(monkeypatch, Terminal()).split("\r")[1:]
    assert lines == [
        "sweep 1 [######..............] site 1 of 3: stem/relu\x1b[K",
        "sweep 1 [#############.......] site 2 of 3: block/relu\x1b[K",
        "sweep 1 [####################] site 3 of 3: head/relu\x1b[K",
    ]
    assert last == "\x1b[K"
    text = run(monkeypatch, Terminal(), title="a long title " * 9)
    assert max(map(len, text.split("\r"))) == 59 + len("\x1b[K")


def test_items_without_a_length_are_only_counted(monkeypatch):
    text = run(monkeypatch, Terminal(), items=iter(SITES))
    assert text.startswith("\rsweep 1 site 1: stem/relu\x1b[K")


def test_a_notebook_has_a_bar_that_overwrites_itself(monkeypatch, notebook):
    text = run(monkeypatch, io.StringIO())
    assert "\x1b" not in text
    third = text.index("site 3") + len("site 3 of 3: head/relu ")
    line = "sweep 1 [####################] site 3 of 3: head/relu"
    assert screen(text[:third]).rstrip() == line
    assert not screen(text).strip() and text.endswith("\r")


def test_ipython_on_a_terminal_is_no_notebook(monkeypatch):
    shell = SimpleNamespace()  # it has no kernel
    ipython = SimpleNamespace(get_ipython=lambda: shell)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    assert not run(monkeypatch, io.StringIO())


def test_elsewhere_the_log_has_lines_some_seconds_apart(monkeypatch, caplog):
    clock = itertools.count(0.0, 2.0)  # two seconds between any two questions
    monkeypatch.setattr(_progress.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(_progress, "_LOG_LINES", _progress._LogLines())
    caplog.set_level(logging.INFO, logger="snnjax")
    assert not run(monkeypatch, io.StringIO())
    assert caplog.messages == ["sweep 1 site 1 of 3: stem/relu"]
    caplog.clear()
    list(_progress.shown(iter(SITES * 2), "epoch 1 ", "step", str))
    assert caplog.messages == [
        "epoch 1 step 1: stem/relu",
        "epoch 1 step 4: stem/relu",
    ]
    caplog.clear()
    # Epochs of less than five seconds do not have a line each.
    for epoch in (2, 3, 4):
        list(_progress.shown(iter(SITES[:1]), f"epoch {epoch} ", "step", str))
    assert caplog.messages == ["epoch 2 step 1: stem/relu"]


def test_nobody_computes_a_line_that_nobody_reads(monkeypatch, caplog):
    caplog.set_level(logging.WARNING, logger="snnjax")

    def about(item):
        raise AssertionError("not asked")

    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert list(_progress.shown(SITES, "", "site", about)) == SITES


def test_the_first_process_speaks_for_all(monkeypatch):
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    assert not run(monkeypatch, Terminal())
