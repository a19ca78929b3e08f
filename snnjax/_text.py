"""Text that users read: tables in columns, ranges of arrays, names of calls."""

import difflib
import functools
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import Any, NamedTuple, NoReturn, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def columns(rows: Iterable[Sequence[str]]) -> str:
    """Rows of text, each column as wide as its widest cell.

    >>> print(columns([("site", "kind"), ("hidden/relu", "relu")]))
    site         kind
    hidden/relu  relu
    """
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


class Table(NamedTuple):
    """Rows of text with lines around them, for a terminal and for a notebook.

    Attributes:
        rows: the first has the names of the columns.
        above, below: lines of text; "" for none.

    >>> table = Table([("site", "kind"), ("hidden/relu", "relu")], below="1 site")
    >>> print(table)
    site         kind
    hidden/relu  relu
    1 site
    >>> table._repr_html_().count("<td")
    2
    """

    rows: Sequence[Sequence[str]]
    above: str = ""
    below: str = ""

    def __str__(self) -> str:
        parts = [self.above, columns(self.rows), self.below]
        return "\n".join(part for part in parts if part)

    def _repr_html_(self) -> str:
        """The table in HTML, as a notebook shows it."""
        lines = []
        for number, row in enumerate(self.rows):
            tag = "th" if number == 0 else "td"
            cells = [f"<{tag}>{escape(cell)}</{tag}>" for cell in row]
            lines.append(f"<tr>{''.join(cells)}</tr>")
        table = f"<table>{''.join(lines)}</table>"
        return _html_lines(self.above) + table + _html_lines(self.below)


def _html_lines(text: str) -> str:
    """Lines of text in HTML."""
    return "".join(f"<div>{escape(line)}</div>" for line in text.splitlines())


def numbers(array: Any, digits: int = 3, factor: float = 1) -> str:
    """The lowest and the highest number of an array, times a factor, and its shape.

    An array whose numbers cannot be read, e.g. a tracer, is shown by its type and
    shape. None is "-", and a text is returned as it is.

    >>> numbers(np.float32(0.5)), numbers(np.array([1.0, 2.0, 4.0])), numbers(None)
    ('0.5', '1..4 [3]', '-')
    """
    if array is None:
        return "-"
    if isinstance(array, str):
        return array
    shape = "x".join(map(str, np.shape(array)))
    if not has_numbers(array):
        return f"{getattr(array, 'dtype', type(array).__name__)} [{shape}]"
    values = factor * np.asarray(array, np.float64)
    if not values.size:
        return f"none [{shape}]"
    lowest = f"{values.min():.{digits}g}"
    highest = f"{values.max():.{digits}g}"
    text = lowest if lowest == highest else f"{lowest}..{highest}"
    return f"{text} [{shape}]" if shape else text


def has_numbers(array: Any) -> bool:
    """Whether this is an array, or a number, whose numbers this process can read.

    Tracers have none yet, random keys are no numbers, and of an array that several
    processes hold none of them has all.
    """
    if isinstance(array, Tracer | jax.ShapeDtypeStruct):
        return False
    if isinstance(array, jax.Array):
        is_key = jnp.issubdtype(array.dtype, jax.dtypes.extended)
        return array.is_fully_addressable and not is_key
    return isinstance(array, int | float | np.ndarray | np.generic)


def closest(name: str, allowed: Iterable[str]) -> str:
    """The allowed names that are most like a wrong one, as the end of a message.

    >>> closest("treshold", ["threshold", "leak"]), closest("tau", ["leak"])
    ("; closest: 'threshold'", '')
    """
    names = difflib.get_close_matches(name, list(allowed))
    if not names:
        return ""
    return f"; closest: {', '.join(map(repr, names))}"


def no_attribute(module: str, names: Sequence[str], name: str) -> NoReturn:
    """Raise for an unknown attribute of a module, with the closest of its names.

    Python itself adds them on a terminal, and a notebook shows the message alone.
    """
    suggestion = closest(name, names)
    raise AttributeError(
        f"module {module!r} has no attribute {name!r}{suggestion}",
        # If these are given, Python does not suggest the same names once more.
        name=name,
        obj=None,
    )


def counted(number: Any, noun: str) -> str:
    """How many things there are: the noun is in the plural unless there is one.

    >>> counted(1, "example"), counted(3, "example")
    ('1 example', '3 examples')
    """
    return f"{number} {noun}" if str(number) == "1" else f"{number} {noun}s"


def sites_in_words(names: Iterable[str]) -> str:
    """How many sites there are, and the names of the first two.

    >>> sites_in_words(["relu"]), sites_in_words(["a", "b", "c"])
    ('1 site: relu', '3 sites: a, b, ...')
    """
    names = [str(name) for name in names]
    text = counted(len(names), "site")
    if names:
        text += f": {', '.join(names[:2])}"
    if len(names) > 2:
        text += ", ..."
    return text


class Named:
    """A function whose ``repr`` says what it is; Python's own shows an address.

    As a function, it is its own copy.

    >>> Named(lambda x: x + 1, "successor")
    successor
    """

    def __init__(self, function: Callable, text: str):
        # JAX, and what compares trainings, look for the function at ``__wrapped__``.
        functools.update_wrapper(self, function)
        self.function = function
        self._text = text

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.function(*args, **options)

    def __repr__(self) -> str:
        return self._text

    def __reduce__(self) -> str:
        # For copy and pickle: a name, as that of a function.
        return self.function.__qualname__


P = ParamSpec("P")


def named(make: Callable[P, Callable]) -> Callable[P, Callable]:
    """A decorator that names each function which ``make`` returns after its call.

    >>> @named
    ... def adder(n, *, sign=1):
    ...     return lambda x: x + sign * n
    >>> adder(3, sign=-1)
    adder(3, sign=-1)
    >>> adder(3, sign=-1)(5)
    2
    """

    @functools.wraps(make)
    def make_named(*args: P.args, **options: P.kwargs) -> Callable:
        function = make(*args, **options)
        if isinstance(function, Named):  # by the name of a more general one
            function = function.function
        arguments = [name_of_value(value) for value in args]
        for name, value in options.items():
            arguments.append(f"{name}={name_of_value(value)}")
        text = f"{make.__name__}({', '.join(arguments)})"
        function.__name__ = function.__qualname__ = text
        return Named(function, text)

    return make_named


def name_of_value(value: Any) -> str:
    """The name of a function, which `named` may have set; the repr of anything else."""
    return value.__name__ if hasattr(value, "__name__") else repr(value)


def repr_pretty(self: Any, printer: Any, cycle: bool) -> None:
    """``_repr_pretty_`` of IPython for a class whose ``str`` notebooks should show."""
    printer.text(str(self))


def repr_of_numbers(self: Any) -> str:
    """``__repr__`` of a named tuple that shows the ranges of its arrays."""
    texts = [f"{name}={numbers(value)}" for name, value in self._asdict().items()]
    return f"{type(self).__name__}({', '.join(texts)})"


Shown = TypeVar("Shown")


def shown_as_table(cls: type[Shown]) -> type[Shown]:
    """A decorator of a class, by which ``print`` and notebooks show its table.

    The method ``_table`` of the class returns the `Table`.
    """
    methods = {
        "__str__": lambda self: str(self._table()),
        "_repr_html_": lambda self: self._table()._repr_html_(),
        "_repr_pretty_": repr_pretty,
    }
    for name, method in methods.items():
        setattr(cls, name, method)
    return cls
