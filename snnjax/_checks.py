"""Checks of arguments: errors say what was found, what is allowed, and a remedy."""

import collections
import functools
import inspect
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from snnjax._arrays import by_numpy_or_xla, namespace
from snnjax._ranges import COUNT, is_whole
from snnjax._text import closest, counted
from snnjax._trees import name_of

_F = TypeVar("_F", bound=Callable)

_MOST_STEPS = 2**24  # up to here float32 counts the spikes of a neuron exactly

NO_NUMBERS = "OSUmM"  # kinds of NumPy's types: objects, texts, times

AS_FLOATING = (
    "Give images as x.astype('float32') / 255, without / 255 if fn scales them"
)

MAP_EXAMPLES = (
    "pass a network of one example as jax.vmap(fn, in_axes=(None, 0)), and x as a "
    "batch of examples"
)


def called_as(form: str) -> Callable[[_F], _F]:
    """A decorator, by which the error of a wrong call ends with its right form.

    Unknown arguments come first, with the closest names or else all options, since a
    misspelled one makes another one missing. Of any other call, Python says what is
    wrong with it. Then follows "allowed: ``form``".
    """

    def decorate(function: Any) -> Any:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def checked(*args: Any, **options: Any) -> Any:
            try:
                signature.bind(*args, **options)
            except TypeError as error:
                problem = _unknown_argument(signature, options) or str(error)
                raise TypeError(
                    f"{function.__name__}() {problem}; allowed: {form}"
                ) from None
            return function(*args, **options)

        return checked

    return decorate


def _unknown_argument(signature: inspect.Signature, options: Iterable[str]) -> str:
    """That a call has an argument which its function does not take; "" if it has none.

    Args:
        signature: of the function.
        options: names of the arguments that the call gives by name.
    """
    parameters = signature.parameters
    unknown_names = [name for name in options if name not in parameters]
    missing_names = [name for name in parameters if name not in options]
    for name in unknown_names:
        suggestion = closest(name, missing_names)
        if suggestion:
            return f"has no argument {name!r}{suggestion}"
    kinds = [parameter.kind for parameter in parameters.values()]
    # The function may hand on what it does not know.
    if not unknown_names or inspect.Parameter.VAR_KEYWORD in kinds:
        return ""
    option_names = []
    for name, parameter in parameters.items():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            option_names.append(name)
    problem = f"has no argument {unknown_names[0]!r}"
    if option_names:
        problem += f"; its options are {', '.join(option_names)}"
    return problem


def warn(message: str) -> None:
    """Warn at the user's line: the innermost one that is not the library's."""
    level = 1  # frames from here to that line, as ``warnings.warn`` counts them
    frame = sys._getframe()
    while frame is not None and frame.f_globals["__name__"].startswith("snnjax."):
        level += 1
        frame = frame.f_back
    warnings.warn(message, stacklevel=level)


def check_function(fn: Any) -> None:
    """Raise unless this can be called with params and x."""
    if not callable(fn):
        raise ValueError(
            f"fn is a {type(fn).__name__}; allowed: a function fn(params, x) -> "
            "outputs, e.g. model.apply"
        )
    # Modules of PyTorch and flax.linen are called with x alone.
    libraries = {parent.__module__.split(".")[0] for parent in type(fn).__mro__}
    remedy = ""
    if "torch" in libraries:
        remedy = "fn, params = snnjax.torch.function(module, x)"
    elif hasattr(fn, "apply"):
        remedy = "model.apply, with the variables of model.init as params"
    if remedy:
        raise ValueError(
            f"fn is the module {type(fn).__name__}; allowed: a function fn(params, x) "
            f"-> outputs, here {remedy}"
        )
    if not takes(fn, None, None):
        name = getattr(fn, "__name__", type(fn).__name__)
        raise ValueError(
            f"fn is {name}{inspect.signature(fn)}; allowed: a function fn(params, x) "
            "-> outputs. docs/networks.md shows how to write it for modules of flax, "
            "equinox and haiku"
        )


def takes(function: Callable, *args: Any, **options: Any) -> bool:
    """Whether a function may be called with these arguments.

    Its signature must allow them, or be unknown.
    """
    try:
        inspect.signature(function).bind(*args, **options)
    except TypeError:
        return False
    except ValueError:  # Python cannot read its signature
        pass
    return True


def check_on_host(function: str, **trees: Any) -> None:
    """Raise where a function of the host is called inside of jit, or on traced arrays.

    Args:
        function: its name, for the message.
        trees: what it reads the numbers of, pytrees by the names of its arguments.
    """
    check_concrete(function, **trees)
    # Inside of jit, what is computed of arrays with numbers is traced all the same.
    if isinstance(jax.device_put(0), Tracer):
        raise ValueError(
            f"{function} is called inside of jit, where arrays have no numbers yet; "
            "allowed: a call outside of jit. It compiles what takes long by itself"
        )


def check_concrete(function: str, **trees: Any) -> None:
    """Raise if a pytree holds a traced array, see `check_on_host`."""
    for name, tree in trees.items():
        check_keys(name, tree)
        if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree)):
            verb = "are" if name.endswith("s") else "is"
            raise ValueError(
                f"{name} {verb} traced; allowed: arrays with numbers. Call {function} "
                "outside of jit, vmap and grad"
            )


def check_keys(name: str, tree: Any) -> None:
    """Raise if a dict in a pytree has keys that cannot be sorted, as JAX sorts them."""

    def is_unsortable(node: Any) -> bool:
        if not isinstance(node, dict):
            return False
        try:
            sorted(node)
        except TypeError:
            return not isinstance(node, collections.OrderedDict)
        return False

    nodes = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_unsortable)
    for path, node in nodes:
        if is_unsortable(node):
            types = sorted({type(key).__name__ for key in node})
            where = f"{name}{jax.tree_util.keystr(path)}"
            raise ValueError(
                f"{where} is a dict with keys of the types {', '.join(types)}, which "
                "JAX cannot sort; allowed: keys of one type in each dict, e.g. "
                "{str(key): value for key, value in d.items()}"
            )


def check_leaves(params: Any) -> None:
    """Raise unless all leaves of a pytree are arrays or numbers."""
    check_keys("params", params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        where = name_of(path) or "the top"
        _check_dtype(f"the leaf of params at {where}", leaf)
        if isinstance(leaf, np.ndarray) and leaf.dtype.kind in NO_NUMBERS:
            raise ValueError(
                f"params hold an array of dtype {leaf.dtype} at {where}; allowed: "
                "arrays of numbers"
            )
        is_array = hasattr(leaf, "dtype") and hasattr(leaf, "shape")
        if not is_array and not isinstance(leaf, int | float | complex):
            raise ValueError(
                f"params hold {type(leaf).__name__} {leaf!r} at {where}; allowed: "
                "arrays and numbers. What is no number belongs to fn, e.g. by "
                "eqx.partition(model, eqx.is_array)"
            )
        if jnp.issubdtype(getattr(leaf, "dtype", type(leaf)), jnp.complexfloating):
            raise ValueError(
                f"params hold complex numbers at {where}; allowed: real ones, since "
                "a potential is compared with a threshold"
            )


def check_examples(x: Any, axis: int = 0) -> None:
    """Raise unless x is what a network takes: arrays [batch, ...], or their shapes.

    They are of floating point, or whole numbers and truth values that choose, such as
    tokens and masks.

    Args:
        x: a pytree.
        axis: of the batch; 1 for a sequence [T, batch, ...].
    """
    check_keys("x", x)
    leaves = jax.tree_util.tree_leaves_with_path(x)
    if not leaves:
        raise ValueError(f"x is {x!r}, without an array; allowed: arrays [batch, ...]")
    for path, leaf in leaves:
        _check_example(f"x{jax.tree_util.keystr(path)}", leaf, axis)
    sizes = {leaf.shape[axis] for _, leaf in leaves}
    if len(sizes) > 1:
        raise ValueError(
            f"x has arrays of {', '.join(map(str, sorted(sizes)))} examples; allowed: "
            f"the same number in each, on axis {axis}. Parameters come before x, as in "
            "fn(params, x)"
        )


def _check_example(name: str, leaf: Any, axis: int) -> None:
    """Raise unless a leaf of x is allowed, see `check_examples`.

    Args:
        name: of the leaf, for messages.
        leaf: an array or its shape.
        axis: of the batch.
    """
    form = "[T, batch, ...]" if axis else "[batch, ...]"
    if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
        raise ValueError(
            f"{name} is a {type(leaf).__name__}; allowed: an array {form}, e.g. "
            "jnp.asarray(x)"
        )
    _check_dtype(name, leaf)
    kinds = (jnp.floating, jnp.integer, jnp.bool_)
    is_real = any(jnp.issubdtype(leaf.dtype, kind) for kind in kinds)
    if not is_real or leaf.dtype in (jnp.uint8, jnp.int8):
        raise ValueError(
            f"{name} has dtype {leaf.dtype}; allowed: floating point, and whole "
            "numbers of more than 8 bits or bool, as tokens and masks are. "
            f"{AS_FLOATING}"
        )
    if len(leaf.shape) <= axis or 0 in leaf.shape:
        raise ValueError(
            f"{name} has shape {tuple(leaf.shape)}; allowed: {form} with at least one "
            "example"
        )


def _check_dtype(name: str, leaf: Any) -> None:
    """Raise if JAX does not take the type of a leaf's numbers.

    That is a type of another library, or of the other order of bytes, as in FITS files.
    """
    try:
        jnp.issubdtype(getattr(leaf, "dtype", float), jnp.floating)
    except TypeError:
        library = type(leaf).__module__.split(".")[0]
        raise ValueError(
            f"{name} is a {library}.{type(leaf).__name__} of {leaf.dtype}; allowed: "
            "arrays of JAX and NumPy, e.g. tensor.numpy(force=True)"
        ) from None
    if isinstance(leaf, np.ndarray | np.generic) and not leaf.dtype.isnative:
        raise ValueError(
            f"the dtype of {name} is {leaf.dtype.str}, in the other order of bytes; "
            "allowed: that of this machine, e.g. "
            "array.astype(array.dtype.newbyteorder('='))"
        )


def check_numbers(
    x: Any, name: str = "x", cause: str = "the normalization of the images"
) -> None:
    """Raise if numbers of x are NaN or plus infinity; a traced x has none yet.

    A NaN never reaches a threshold, so a network would answer as if nothing came in.
    Minus infinity is allowed: a mask may hold it.

    Args:
        x: a pytree of arrays.
        name: of x, for the message.
        cause: what to check.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(x):
        if isinstance(leaf, Tracer) or not jnp.issubdtype(leaf.dtype, jnp.floating):
            continue
        if all_are_finite(leaf):
            continue
        for test, word in (("isnan", "NaN"), ("isposinf", "inf")):
            broken_count = int(count(test, leaf))
            if broken_count:
                raise ValueError(
                    f"{name}{jax.tree_util.keystr(path)} holds {broken_count} {word} "
                    f"of {counted(leaf.size, 'number')}; allowed: none. Check {cause}"
                )


def all_are_finite(array: Any) -> bool:
    """Whether an array of concrete numbers holds neither NaN nor infinity."""
    return int(count("isfinite", array)) == array.size


def check_floating(name: str, array: Any) -> None:
    """Raise unless an array is of floating point."""
    if not jnp.issubdtype(jnp.result_type(array), jnp.floating):
        raise ValueError(
            f"{name} has dtype {jnp.result_type(array)}; allowed: floating point, e.g. "
            f"{name}.astype('float32')"
        )


def check_wait(steps: int, wait: int) -> None:
    """Raise unless 1 <= steps <= 2^24 and 0 <= wait <= steps, both whole numbers."""
    COUNT.check("steps", steps)
    if steps > _MOST_STEPS:
        raise ValueError(
            f"steps is {steps}; allowed: at most 2**24 = {_MOST_STEPS}, up to which "
            "float32 counts spikes exactly. snnjax.codes.radix() needs few steps"
        )
    if not is_whole(wait) or not 0 <= wait <= steps:
        raise ValueError(
            f"wait is {wait!r}; allowed: a whole number from 0 (streaming) to "
            f"steps={steps} (each layer waits for all of its input)"
        )


def check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    """Raise unless ``value`` is one of the words."""
    if value not in allowed:
        words = ", ".join(map(repr, allowed))
        raise ValueError(f"{name} is {value!r}; allowed: {words}")


def check_inputs(inputs: Any) -> None:
    """Raise unless this says how x enters a network: "constant" or "sequence"."""
    if inputs == "poisson":  # of earlier versions
        raise ValueError(
            "inputs is 'poisson'; allowed: 'constant', 'sequence'. Draw the spikes, "
            "jax.random.bernoulli(key, x, (steps, *x.shape)).astype(x.dtype), and pass "
            "them with inputs='sequence'"
        )
    check_choice("inputs", inputs, ("constant", "sequence"))


def check_chip(chip: Any) -> None:
    """Raise unless this is the profile of a chip."""
    # An attribute tells its class, since snnjax.deploy is imported only when needed.
    if not hasattr(type(chip), "defaults"):
        raise ValueError(
            f"chip is {getattr(chip, '__name__', repr(chip))}; allowed: a profile, "
            "e.g. snnjax.deploy.speck() (called)"
        )


def check_flags(**flags: bool) -> None:
    """Raise unless the flags, by the names of their arguments, are True or False."""
    for name, flag in flags.items():
        if not isinstance(flag, bool | np.bool_):
            raise ValueError(f"{name} is {flag!r}; allowed: True or False")


def check_finite(what: str, arrays: Sequence[Any]) -> None:
    """Raise unless all numbers of these arrays are finite.

    Args:
        what: the arrays, as the subject of the message.
        arrays: of any shapes.
    """
    size = 0
    finite_counts = []
    # Each array is read once: if it lies in a file, reading it takes long. The counts
    # are read after the loop, so that a device counts in one array after the other
    # while nobody waits for it.
    for array in arrays:
        size += array.size
        finite_counts.append(count("isfinite", array))
    broken_count = size - sum(map(int, finite_counts))
    if broken_count:
        raise ValueError(
            f"{what} hold {counted(broken_count, 'value')} of NaN or infinity, of "
            f"{size} in all; allowed: finite numbers. Check the normalization of the "
            "images, the parameters, and calibrators of your own"
        )


def count(test: str, array: Any) -> Any:
    """How many numbers pass a test, as an array [] that may still be computed.

    Args:
        test: a function of JAX and NumPy by name, such as "isnan".
        array: of any shape.
    """
    # A concrete array that a function closes over is counted inside of jit, too.
    with jax.ensure_compile_time_eval():
        return _count(test, array)


@functools.partial(by_numpy_or_xla, static=1)
def _count(test: str, array: Any) -> Any:
    passes = getattr(namespace(array), test)
    return passes(array).sum()


def check_file(path: Path, suffix: str, origin: str) -> None:
    """Raise unless a path leads to a file.

    Args:
        path: of a file that is to be read.
        suffix: how the names of such files end, such as ".nir".
        origin: what such a path is, for the message.
    """
    if path.is_dir():
        names = sorted(file.name for file in path.glob(f"*{suffix}"))
        if len(names) > 3:
            names = [*names[:3], "..."]
        inside = f"it has {', '.join(names) or f'no file that ends in {suffix}'}"
        raise IsADirectoryError(f"{path} is a folder; give {origin} ({inside})")
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; give {origin}")


def check_folder_of(path: Path) -> None:
    """Raise unless the folder exists that a file is to be written to."""
    for folder in path.parents:
        if folder.is_dir():
            break
        if folder.exists():
            raise NotADirectoryError(
                f"path is {path}, but {folder} is a file; give a path in a folder"
            )
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no folder {path.parent} for {path.name}; create it")


def check_labels(outputs: Any, labels: Any) -> None:
    """Raise unless outputs are [T, B, classes] and labels whole numbers [B].

    Where their numbers are concrete, each must be a class.
    """
    label_shape = np.shape(labels)
    shape = np.shape(outputs)
    if len(shape) != 3 or label_shape != shape[1:2]:
        message = (
            f"outputs have shape {shape}, labels {label_shape}; allowed: the readout "
            "at each step [T, B, classes], not its mean, and one class number each, [B]"
        )
        if len(shape) > 3:
            message += "; inputs='sequence' says that x is [T, B, ...]"
        raise ValueError(message)
    if 0 in shape:
        raise ValueError(
            f"outputs have shape {shape}, without a number; allowed: one or more steps "
            "and examples. An empty batch has no accuracy and no loss"
        )
    _check_dtype("labels", labels)
    dtype = labels.dtype if hasattr(labels, "dtype") else np.asarray(labels).dtype
    if not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(
            f"labels have dtype {dtype}; allowed: whole numbers, e.g. "
            "labels.astype('int32')"
        )
    # Labels that are traced, or on devices of other processes, cannot be read.
    if isinstance(labels, Tracer) or not getattr(labels, "is_fully_addressable", True):
        return
    numbers = np.asarray(labels)
    lowest, highest = numbers.min(), numbers.max()
    last_class = shape[-1] - 1
    if lowest < 0 or highest > last_class:
        raise ValueError(
            f"labels range from {lowest} to {highest}; allowed: 0 to {last_class}, "
            "the classes of the outputs"
        )
