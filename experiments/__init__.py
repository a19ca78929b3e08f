"""Experiments with snnjax, run from the clone: ``python -m experiments.train_ann``.

The ``__init__`` of a package here exports the names that other packages use.
"""

import importlib.util
import os
import signal
import sys


def require(what: str, *names: str) -> None:
    """Exit with one line where modules are missing that ``.[experiments]`` has."""
    absent = [name for name in names if importlib.util.find_spec(name) is None]
    if absent:
        sys.exit(
            f"error: {what} need {', '.join(absent)}: pip install -e '.[experiments]'"
        )


def _end(*_) -> None:
    """End the process at Ctrl-C.

    A KeyboardInterrupt would be lost in a callback of the garbage collector, and the
    usual end could wait for threads that compile.
    """
    os.write(2, b"\ninterrupted\n")
    os._exit(130)


if sys.argv[:1] == ["-m"]:  # Python is about to run one of the commands
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)
    require("the experiments", "flax", "optax", "simple_parsing", "tqdm")
