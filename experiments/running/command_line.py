"""Command lines: options from a dataclass, and errors as one message.

`parse` reads a command line: ``--preset NAME`` chooses the defaults, and every field of
a dataclass is an option that overrides them. `run` carries the command out.
"""

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import TypeVar

import simple_parsing

from experiments.data import MissingDataError
from experiments.running import devices

Config = TypeVar("Config")
Outcome = TypeVar("Outcome")

INTERRUPTED = 130  # exit code of a command that Ctrl-C ended, as in shells
RENAMED = {"--delays": "--waits"}  # options of snnjax 0.1


def run(work: Callable[[], Outcome], resume: str = "") -> Outcome:
    """Carry out the work of a command; an error or Ctrl-C ends it with one message.

    Args:
        work: called once the other processes have joined, if there are any.
        resume: what the same command does after Ctrl-C, for the message.
    """
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax logs errors as well
    in_main = threading.current_thread() is threading.main_thread()
    # A parent process may have set SIGINT to be ignored: then there is no handler.
    if in_main and callable(signal.getsignal(signal.SIGINT)):
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with devices.together():
            return work()
    except KeyboardInterrupt:
        print(f"\ninterrupted{resume and f'; {resume}'}", file=sys.stderr, flush=True)
        # The usual end would wait for threads that compile, or crash in one of them.
        os._exit(INTERRUPTED)
    except (
        MissingDataError,
        ValueError,
        FloatingPointError,
        OSError,
        ImportError,
    ) as error:
        sys.exit(f"error: {error}")


def parse(
    dataclass_type: type[Config],
    presets: Mapping[str, Config],
    argv: Sequence[str] | None = None,
) -> Config:
    """Configuration from the command line; a wrong one exits with code 2 and a line.

    Args:
        dataclass_type: frozen dataclass with defaults; comments become the help.
        presets: named configurations for the option `--preset`.
        argv: arguments; None for those of the process.
    """
    option = {
        "choices": tuple(presets),
        "metavar": "NAME",
        "help": f"configuration to start from: {', '.join(presets)}",
    }
    argv = sys.argv[1:] if argv is None else argv
    # Two passes, because the preset gives the defaults of the other options.
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", **option)
    preset = first.parse_known_args(argv)[0].preset
    default = presets[preset] if preset else dataclass_type()
    parser = simple_parsing.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--preset", **option)
    parser.add_arguments(dataclass_type, dest="config", default=default)
    options = {word.partition("=")[0] for word in argv}
    for old, new in RENAMED.items():
        if old in options and new[2:] in (field.name for field in fields(default)):
            parser.error(f"{old} of snnjax 0.1 is now {new}")
    try:
        return parser.parse_args(argv).config
    except ValueError as error:  # from the checks of the dataclass
        parser.error(str(error))
