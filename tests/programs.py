"""Counts the programs that each file of tests asks XLA for, and limits them.

Two thirds of the time of the tests is XLA's, and a small program takes as long as a
test. A file that asks for more programs than `CEILING` fails the run. Tests that are
marked as slow or thorough are not counted, since nobody waits for them. A program
counts also if it is read from the cache on disk, so that a first run and a second one
agree.
"""

import collections

import jax
import pytest

CEILING = 600
_LARGEST = 10
_LONG = ("slow", "thorough")
_EVENT = "/jax/core/compile/backend_compile_duration"


class Programs:
    """A plugin of pytest: it counts in the workers, and reports in their controller."""

    def __init__(self):
        self._file = None
        self._counts = collections.Counter()
        self._seconds = collections.Counter()
        jax.monitoring.register_event_duration_secs_listener(self._count)

    def _count(self, event, duration, **_):
        if event == _EVENT and self._file is not None:
            self._counts[self._file] += 1
            self._seconds[self._file] += duration

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        is_long = any(item.get_closest_marker(mark) for mark in _LONG)
        self._file = None if is_long else item.location[0]
        result = yield
        self._file = None
        return result

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node):
        """Add what a worker of pytest-xdist has counted."""
        counts, seconds = getattr(node, "workeroutput", {}).get("programs", ({}, {}))
        self._counts.update(counts)
        self._seconds.update(seconds)

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session):
        worker_output = getattr(session.config, "workeroutput", None)
        if worker_output is not None:
            worker_output["programs"] = (dict(self._counts), dict(self._seconds))
        elif self._above_ceiling() and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _above_ceiling(self):
        return [name for name, count in self._counts.items() if count > CEILING]

    def pytest_terminal_summary(self, terminalreporter):
        total = self._counts.total()
        if not total:
            return
        terminalreporter.section(f"{total} programs of XLA")
        for name, count in self._counts.most_common(_LARGEST):
            seconds = self._seconds[name]
            terminalreporter.line(f"{count:5} in {seconds:5.1f} s  {name}")
        for name in self._above_ceiling():
            terminalreporter.line(
                f"{name} asks XLA for {self._counts[name]} programs; allowed: "
                f"{CEILING}. Share conversions, or jit what is run twice",
                red=True,
            )
