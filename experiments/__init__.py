"""Experiments with snnjax, run from the clone: ``python -m experiments.train_ann``.

The ``__init__`` of a package here exports the names that other packages use.
"""

import difflib
import importlib.util
import os
import signal
import sys
from pathlib import Path


def require(what: str, *names: str) -> None:
    """Exit with one line where modules are missing that ``.[experiments]`` has."""
    absent = [name for name in names if importlib.util.find_spec(name) is None]
    if absent:
        sys.exit(
            f"error: {what} need {', '.join(absent)}: pip install -e '.[experiments]'"
        )


def check_command(folder: str) -> None:
    """Exit with one line unless ``python -m NAME`` names a command of this folder.

    Python would run any other file of it, which prints nothing.
    """
    words = sys.orig_argv
    package = Path(folder).name
    if "-m" not in words:
        return
    module = words[words.index("-m") + 1]
    root, _, wanted = module.partition(".")
    if root != package:  # a benchmark imports the experiments
        return
    names = []
    for file in sorted(Path(folder).rglob("*.py")):
        if '\nif __name__ == "__main__":' in file.read_text(encoding="utf-8"):
            parts = file.relative_to(folder).with_suffix("").parts
            names.append(".".join(part for part in parts if part != "__main__"))
    if wanted in names:
        return
    closest = difflib.get_close_matches(wanted, names)
    suggestion = f"; closest: {', '.join(closest)}" if closest else ""
    sys.exit(
        f"error: {module} is no command; allowed: python -m {package}.NAME with one "
        f"of {', '.join(names)}{suggestion}"
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
    check_command(__path__[0])
    require("the experiments", "flax", "optax", "simple_parsing", "tqdm")
