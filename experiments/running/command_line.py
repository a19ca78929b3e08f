"""Command lines: options from a dataclass, and errors as one message.

`parse` reads a command line: ``--preset NAME`` chooses the defaults, and every field of
a dataclass is an option that overrides them. `command` writes the line of a
configuration. `run` carries the command out.
"""

import contextlib
import itertools
import logging
import os
import shlex
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import jax
import simple_parsing
from tqdm import tqdm

from experiments.data import MissingDataError
from experiments.running import devices
from experiments.running.options import closest

Config = TypeVar("Config")
Outcome = TypeVar("Outcome")

# Options that no result depends on.
OF_A_MACHINE = ("data_dir", "out")
# Errors that a user can mend, which a command tells in one line.
USER_ERRORS = (MissingDataError, ValueError, FloatingPointError, OSError, ImportError)


def run(work: Callable[[], Outcome], *, compiles: bool = True) -> Outcome:
    """Carry out the work of a command; an error ends it with one message.

    Args:
        work: called after all other processes have joined.
        compiles: keep compiled programs on disk, and say where.
    """
    try:
        with devices.together(), _progress_in_lines():
            if compiles:
                keep_programs()
            return work()
    except USER_ERRORS as error:
        sys.exit(_for_terminal(f"error: {error}"))


@contextlib.contextmanager
def _progress_in_lines() -> Iterator[None]:
    """Shows what snnjax logs of long calls, where no terminal shows their bars."""
    if sys.stderr.isatty():
        yield
        return
    logger = logging.getLogger("snnjax")
    level, propagates = logger.level, logger.propagate
    handler = logging.StreamHandler()  # on stderr
    handler.setFormatter(logging.Formatter("  %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    # Packages such as orbax give the root logger a handler, which would repeat lines.
    logger.propagate = False
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.propagate = propagates
        logger.removeHandler(handler)


def warn(text: str) -> None:
    """Print a text to stderr, above a bar; from the first process alone."""
    if devices.first():
        tqdm.write(wrapped(text), file=sys.stderr)


def _for_terminal(text: str) -> str:
    """The text of an error, `wrapped` where stderr is a terminal."""
    return wrapped(text) if sys.stderr.isatty() else text


def wrapped(text: str) -> str:
    """The text in lines that fit on the terminal; without one, in 79 characters."""
    width = shutil.get_terminal_size().columns - 1
    lines = []
    for line in text.splitlines():
        margin = line[: len(line) - len(line.lstrip())]
        filled = textwrap.fill(
            line,
            width,
            subsequent_indent=f"{margin}  ",
            break_long_words=False,
            break_on_hyphens=False,
        )
        lines.append(filled)
    return "\n".join(lines)


def keep_programs() -> None:
    """Keep compiled programs for the next run, in JAX's cache; says where it is.

    JAX_COMPILATION_CACHE_DIR names another folder.
    """
    if jax.config.jax_compilation_cache_dir is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser()
        jax.config.update("jax_compilation_cache_dir", str(cache / "snnjax"))
        # By default JAX keeps only programs that took a second to compile.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    folder = jax.config.jax_compilation_cache_dir
    print(f"compiled programs are kept in {folder}", flush=True)


class Parser(simple_parsing.ArgumentParser):
    """A parser whose errors are one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        text = _for_terminal(f"error: {message} (--help lists the options)")
        self.exit(2, f"{text}\n")

    def format_help(self) -> str:
        return super().format_help().replace(" ['config']:", ":")  # a detail of ours


def parse(
    dataclass_type: type[Config],
    presets: Mapping[str, Config],
    argv: Sequence[str] | None = None,
    names: Mapping[str, Iterable[str]] | None = None,
) -> Config:
    """Configuration from the command line; errors exit with code 2 and one line.

    Args:
        dataclass_type: frozen dataclass with defaults, whose comments are the help
            texts.
        presets: named configurations for the option `--preset`.
        argv: arguments; None for those of the process.
        names: kind -> allowed names, to list at the end of the help.
    """
    if argv is None:
        argv = sys.argv[1:]

    def add_preset(parser: Parser) -> None:
        parser.add_argument(
            "--preset",
            metavar="NAME",
            help=f"configuration to start from: {', '.join(presets)}",
        )

    # Two passes, because the preset gives the defaults of the other options.
    preset_parser = Parser(add_help=False, allow_abbrev=False)
    add_preset(preset_parser)
    preset = preset_parser.parse_known_args(argv)[0].preset
    if preset is None:
        default = dataclass_type()
    elif preset in presets:
        default = presets[preset]
    else:
        preset_parser.error(
            f"preset must be one of {', '.join(presets)}, not {preset}"
            f"{closest(preset, presets)}"
        )
    parser = _parser_of_main(names or {})
    add_preset(parser)
    parser.add_arguments(dataclass_type, dest="config", default=default)
    for name in _without_value(argv, fields(default)):
        parser.error(f"argument --{name}: expected a value")
    try:
        arguments, unknown = parser.parse_known_args(argv)
        if unknown:
            options = [f"--{field.name}" for field in fields(default)]
            suggestion = closest(unknown[0], options)
            parser.error(f"unrecognized arguments: {' '.join(unknown)}{suggestion}")
        return arguments.config
    except ValueError as error:  # from the checks of the dataclass
        parser.error(str(error))


def _parser_of_main(names: Mapping[str, Iterable[str]]) -> Parser:
    """A parser that describes the program by its docstring, and the names below."""
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    program = Path(sys.argv[0]).name if spec is None else f"python -m {spec.name}"
    paragraphs = (main.__doc__ or "").strip().split("\n\n")
    description = [textwrap.fill(paragraph, 79) for paragraph in paragraphs]
    epilog = []
    for kind, allowed in names.items():
        line = f"{kind}: {', '.join(allowed)}"
        epilog.append(textwrap.fill(line, 79, subsequent_indent="  "))
    return Parser(
        allow_abbrev=False,
        prog=program,
        description="\n\n".join(description),
        epilog="\n".join(epilog),
    )


def _without_value(argv: Sequence[str], options: Iterable[Field]) -> list[str]:
    """Options that stand alone; one that may be None would silently become None."""
    names = set()
    for option in options:
        if not isinstance(option.default, bool):
            names.add(f"--{option.name}")
    alone = []
    for word, next_word in itertools.pairwise([*argv, "--"]):
        if word in names and next_word.startswith("--"):
            alone.append(word.removeprefix("--"))
    return alone


def options_of_results(config: Any) -> dict[str, Any]:
    """The options that results depend on."""
    options = dict(vars(config))
    for name in (*OF_A_MACHINE, "mesh"):
        options.pop(name, None)
    return options


def command(module: str, config: Any) -> str:
    """The command line of this configuration, without file paths of this machine."""
    default = vars(type(config)())
    words = ["python", "-m", module]
    for name, value in vars(config).items():
        if value is None or value == default[name] or name in OF_A_MACHINE:
            continue
        values = value if isinstance(value, tuple | list) else [value]
        words.append(f"--{name}")
        words += [str(entry) for entry in values]
    return shlex.join(words)
