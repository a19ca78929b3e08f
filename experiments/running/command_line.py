"""Command lines: options from a dataclass, and errors as one message.

`parse` reads a command line: ``--preset NAME`` chooses the defaults, and every field of
a dataclass is an option that overrides them. `command` writes the line of a
configuration. `run` carries the command out.
"""

import logging
import os
import shlex
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import simple_parsing

from experiments.data import MissingDataError
from experiments.running import devices

Config = TypeVar("Config")
Outcome = TypeVar("Outcome")

INTERRUPTED = 130  # exit code of a command that Ctrl-C ended, as in shells
OF_A_MACHINE = ("data_dir", "out", "report")  # options that no result depends on
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
    hook, sys.unraisablehook = sys.unraisablehook, _interrupt_again
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
    finally:
        sys.unraisablehook = hook


def _interrupt_again(unraisable: Any) -> None:
    """Interrupt once more where Python has ignored a Ctrl-C.

    Python ignores exceptions in callbacks of the garbage collector, and JAX has one
    that runs often. The timer lets Python leave the callback first.
    """
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        main = threading.main_thread().ident
        threading.Timer(0.05, signal.pthread_kill, (main, signal.SIGINT)).start()
    else:
        sys.__unraisablehook__(unraisable)


class Parser(simple_parsing.ArgumentParser):
    """A parser whose errors are one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (--help lists the options)\n")

    def format_help(self) -> str:
        return super().format_help().replace(" ['config']:", ":")  # a detail of ours


def parse(
    dataclass_type: type[Config],
    presets: Mapping[str, Config],
    argv: Sequence[str] | None = None,
    names: Mapping[str, Iterable[str]] | None = None,
) -> Config:
    """Configuration from the command line; a wrong one exits with code 2 and a line.

    Args:
        dataclass_type: frozen dataclass with defaults; comments become the help.
        presets: named configurations for the option `--preset`.
        argv: arguments; None for those of the process.
        names: what options may be, by what it is, for the end of the help.
    """
    option = {
        "choices": tuple(presets),
        "metavar": "NAME",
        "help": f"configuration to start from: {', '.join(presets)}",
    }
    argv = sys.argv[1:] if argv is None else argv
    # Two passes, because the preset gives the defaults of the other options.
    first = Parser(add_help=False, allow_abbrev=False)
    first.add_argument("--preset", **option)
    preset = first.parse_known_args(argv)[0].preset
    default = presets[preset] if preset else dataclass_type()
    program, about = _command()
    parser = Parser(
        allow_abbrev=False,
        prog=program,
        description=about,
        epilog="\n".join(_listed(kind, names[kind]) for kind in names or {}),
    )
    parser.add_argument("--preset", **option)
    parser.add_arguments(dataclass_type, dest="config", default=default)
    options = {word.partition("=")[0] for word in argv}
    for old, new in RENAMED.items():
        if old in options and new[2:] in (field.name for field in fields(default)):
            parser.error(f"{old} of snnjax 0.1 is now {new}")
    for name in _without_value(argv, fields(default)):
        parser.error(f"argument --{name}: expected a value")
    try:
        return parser.parse_args(argv).config
    except ValueError as error:  # from the checks of the dataclass
        parser.error(str(error))


def command(module: str, config: Any) -> str:
    """The command line that gives this configuration, without files of a machine."""
    default = vars(type(config)())
    words = ["python", "-m", module]
    for name, value in vars(config).items():
        if value is None or value == default[name] or name in OF_A_MACHINE:
            continue
        many = isinstance(value, tuple | list)
        words += [f"--{name}", *map(str, value if many else [value])]
    return shlex.join(words)


def _without_value(argv: Sequence[str], options: Iterable[Field]) -> list[str]:
    """Options that stand alone; one that may be None would silently become None."""
    names = [f"--{o.name}" for o in options if not isinstance(o.default, bool)]
    following = [*argv, "--"][1:]
    return [
        word[2:]
        for word, next_word in zip(argv, following, strict=True)
        if word in names and next_word.startswith("--")
    ]


def _command() -> tuple[str, str]:
    """How the running command is called, and what its module says of itself."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    program = f"python -m {spec.name}" if spec else Path(sys.argv[0]).name
    paragraphs = (main.__doc__ or "").strip().split("\n\n")
    return program, "\n\n".join(textwrap.fill(part, 79) for part in paragraphs)


def _listed(kind: str, names: Iterable[str]) -> str:
    return textwrap.fill(f"{kind}: {', '.join(names)}", 79, subsequent_indent="  ")
