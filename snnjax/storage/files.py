"""A spiking network as one file: `save`, `load` and `renew`.

    name.safetensors = card and structure (JSON, in the header) + arrays + program

One file, so that card and weights always come from the same run. ``head -c 2000`` shows
the card. The program is StableHLO, not Python. ``run`` compiles and runs it by XLA, so
run only programs from a source that you trust.
"""

import datetime
import functools
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import chex
import jax
import numpy as np

from snnjax._checks import is_number
from snnjax._types import Inputs
from snnjax._version import __version__
from snnjax.neurons.by_site import model_of
from snnjax.snn import SNN, check_snn, check_values, checked_fit
from snnjax.storage import archive, models, program, structure

SUFFIX = ".safetensors"


class Stored(NamedTuple):
    """What a file holds.

    Attributes:
        snn: the spiking network, equal to the saved one. `load` describes its
            containers.
        card: facts about it, see `save`.
        run: ``run(x) -> outputs`` [T, B, ...] as from `snnjax.spiking`, without the
            network's code. Outputs in a NamedTuple become a dict. ``run`` raises
            ValueError if the file has no program or if x has another shape or dtype. It
            also does so if JAX cannot run the program, for example because it is too
            old (see `renew`).

    >>> import jax, jax.numpy as jnp, snnjax, tempfile
    >>> snn = snnjax.init(lambda w, x: jax.nn.relu(x @ w), jnp.eye(2), jnp.eye(2))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = snnjax.save(f"{folder}/snn.safetensors", snn, accuracy=0.9)
    ...     stored = snnjax.load(path)
    >>> card, model = stored.card, stored.snn.model_of("relu")
    >>> card["accuracy"], card["program"], model.leak
    (0.9, None, 0.5)
    """

    snn: SNN
    card: dict[str, Any]
    run: Callable[[chex.ArrayTree], Any]


def save(
    path: str | os.PathLike,
    snn: SNN,
    *,
    fn: Callable | None = None,
    x: Any = None,
    steps: int | None = None,
    wait: int | None = None,
    inputs: Inputs = "constant",
    recipe: str | None = None,
    accuracy: float | None = None,
    calibration: chex.Array | None = None,
    extras: dict[str, Any] | None = None,
) -> Path:
    """Write a spiking network to one file, whole or not at all.

    The card holds the format's version, the SNN's steps, wait, neuron model and code,
    the versions of snnjax and jax, the date, and the facts given here.

    Args:
        path: ends in ``.safetensors``; an existing file is replaced.
        snn: from `snnjax.convert` or `snnjax.init`, trained or not.
        fn: the network ``fn(params, x) -> outputs``. The file then holds its spiking
            function as a program for CPU, CUDA and TPU, and runs without its code. JAX
            reads a program for six months at least; `renew` writes it anew.
        x: an example of the network's input [B, ...] ([T, B, ...] for a sequence), an
            array or ``jax.ShapeDtypeStruct``. The program takes any batch size B. If
            the network cannot be traced for any B, the program takes only the B of the
            example.
        steps, wait: steps and wait of the program; by default those that the SNN was
            fitted to.
        inputs: "constant" or "sequence", as for `snnjax.spiking`.
        recipe: name of the recipe of the conversion, such as "best".
        accuracy: its accuracy, 0..1.
        calibration: its calibration images. The card gets their shape, dtype and the
            sha256 of their bytes in C order.
        extras: anything else that JSON can hold.

    Returns:
        The path.

    Raises:
        ValueError: an argument is out of range; a leaf is neither an array nor a
            number; a neuron model of your own comes without fn; or only some of fn, x
            and steps are given.
        FileNotFoundError: the folder does not exist.
        ImportError: safetensors is missing, or flatbuffers with fn.

    >>> import jax, jax.numpy as jnp, snnjax, tempfile
    >>> fn = lambda w, x: jax.nn.relu(x @ w)
    >>> x = jnp.array([[0.5, 0.25]])
    >>> snn = snnjax.convert(fn, jnp.eye(2), x, steps=4)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = save(f"{folder}/snn.safetensors", snn, fn=fn, x=x, recipe="best")
    ...     stored = load(path)
    >>> stored.card["recipe"], stored.card["steps"], stored.run(x).shape
    ('best', 4, (4, 1, 2))
    """
    archive.safetensors()
    path = _as_path(path)
    _check_target(path)
    check_snn(snn)
    check_values(snn)
    _check_facts(recipe, accuracy, extras)
    exported = None
    if fn is None:
        not_default = None if inputs == "constant" else inputs
        options = {"x": x, "steps": steps, "wait": wait, "inputs": not_default}
        _check_without_program(snn, options)
    else:
        steps, wait = checked_fit(snn, steps, wait)
        exported = program.export(fn, snn, x, steps=steps, wait=wait, inputs=inputs)
    card = {
        "format": archive.FORMAT,
        "recipe": recipe,
        "steps": snn.steps,
        "wait": snn.wait,
        "model": models.describe_model(snn.model),
        "code": models.describe_code(snn.code),
        "accuracy": None if accuracy is None else float(accuracy),
        "calibration": None if calibration is None else _fingerprint(calibration),
        "extras": _jsonable(extras or {}),
    }
    return _write(path, snn, card, exported)


def load(path: str | os.PathLike, *, like: chex.ArrayTree | None = None) -> Stored:
    """Read a file of `save`.

    The SNN of a file can always be read; only the program, which ``run`` uses, can
    expire.

    Args:
        path: the file.
        like: params or an SNN of the same network, for example new ones. The loaded
            params get the structure of ``like``, after a check of shapes. It is needed
            for classes other than dict, list and tuple (a NamedTuple, nnx.State,
            equinox modules). Without ``like``, these become dicts if the file has a
            program. For a neuron model of your own, ``like`` must be an SNN that has
            it; otherwise only ``run`` works.

    Returns:
        `Stored`: snn, card, run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, has another format or holds no SNN; or ``like``
            is missing or has another structure.
        ImportError: safetensors is missing.

    >>> import collections, jax, jax.numpy as jnp, snnjax, tempfile
    >>> Params = collections.namedtuple("Params", "w")
    >>> fn = lambda params, x: jax.nn.relu(x @ params.w)
    >>> snn = snnjax.init(fn, Params(jnp.eye(2)), jnp.eye(2))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = snnjax.save(f"{folder}/snn.safetensors", snn)
    ...     stored = load(path, like=Params(jnp.zeros((2, 2))))
    >>> print(snnjax.spiking(fn, steps=2)(stored.snn, jnp.eye(2)).mean(0))
    [[1. 0.]
     [0. 1.]]
    """
    path = _as_path(path)
    card, leaves, code = archive.read(path)
    with archive.restoring(path):
        has_program = card["program"] is not None
        snn = _snn(card, leaves, like, classes_as_dicts=has_program)
        if not has_program:
            return Stored(snn, card, functools.partial(_no_program, path))
        arrays = [value for _, value in sum(leaves, []) if hasattr(value, "dtype")]
        run = program.runner(code, card["program"], arrays, _origin(path, card))
        return Stored(snn, card, run)


def renew(
    path: str | os.PathLike, fn: Callable, *, like: chex.ArrayTree | None = None
) -> Path:
    """Write the program of a file again, with this version of JAX.

    JAX reads a program for six months at least, and refuses older ones. Everything
    else in the file stays as it is. The command is
    ``python -m snnjax renew FILE MODULE:FUNCTION``.

    Args:
        path: a file of `save`; it is replaced as a whole.
        fn: the network ``fn(params, x) -> outputs`` of the SNN.
        like: as for `load`.

    Returns:
        The path.

    Raises:
        ValueError: as `load`, or the file has no program.

    >>> import jax, jax.numpy as jnp, snnjax, tempfile
    >>> fn = lambda w, x: jax.nn.relu(x @ w)
    >>> snn = snnjax.convert(fn, jnp.eye(2), jnp.eye(2), steps=4)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = save(f"{folder}/snn.safetensors", snn, fn=fn, x=jnp.eye(2))
    ...     load(renew(path, fn)).run(jnp.eye(2)).shape
    (4, 2, 2)
    """
    path = _as_path(path)
    card, leaves, _ = archive.read(path)
    if card.get("program") is None:
        _no_program(path)
    with archive.restoring(path):
        snn = _snn(card, leaves, like, classes_as_dicts=False)
        facts, origin = program.Facts(**card["program"]), _origin(path, card)
    return _write(path, snn, card, program.export_again(fn, snn, facts, origin))


# -------------------------------------------------------------------- contents


def _write(
    path: Path, snn: SNN, card: dict, exported: tuple[program.Facts, bytes] | None
) -> Path:
    """Write the file; ``exported`` is from `program.export`, None: no program."""
    facts, code = exported or (None, b"")
    card = {
        **card,
        "program": None if facts is None else facts._asdict(),
        "date": datetime.date.today().isoformat(),
        "versions": {"snnjax": __version__, "jax": jax.__version__},
    }
    parts = {"params": snn.params, "neurons": snn.neurons}  # in JAX's order
    archive.write(path, card, parts, code)
    return path


def _snn(
    card: dict[str, Any],
    leaves: list[structure.Leaves],
    like: Any,
    classes_as_dicts: bool,
) -> SNN:
    """The SNN of a file, in the structure of ``like`` if there is one."""
    params_leaves, neurons_leaves = leaves
    like_snn = like if isinstance(like, SNN) else None
    like_params = like if like_snn is None else like_snn.params
    if like_params is None:
        classes = {kind for path, _ in params_leaves for kind, _ in path}
        classes -= structure.BUILTINS
        if classes and not classes_as_dicts:
            raise ValueError(f"only its own code can make a {min(classes)}")
        params = structure.rebuild(params_leaves)
    else:
        params = structure.fill(like_params, params_leaves)
    model = models.restore_model(card["model"], getattr(like_snn, "model", None))
    like_neurons = getattr(like_snn, "neurons", {})
    neurons = {
        name: models.restore_params(model_of(model, name), own, like_neurons.get(name))
        for name, own in structure.rebuild(neurons_leaves).items()
    }
    code = models.restore_code(card.get("code", {}), getattr(like_snn, "code", None))
    return SNN(params, neurons, card["steps"], card["wait"], model, code)


def _origin(path: Path, card: dict[str, Any]) -> str:
    """The program of a file, for error messages."""
    jax_version = card["versions"]["jax"]
    return f"the program of {path}, written by jax {jax_version} on {card['date']},"


def _no_program(path: Path, x: Any = None) -> Any:
    """``run`` of a file without a program."""
    del x
    raise ValueError(
        f"{path} has no program, since it was saved without fn. Save it with "
        "snnjax.save(path, snn, fn=fn, x=x), or run snnjax.spiking(fn, steps=T) with "
        "the snn of this file"
    )


# --------------------------------------------------------------------- checks


def _as_path(path: str | os.PathLike) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise ValueError(
            f"path is a {type(path).__name__}; allowed: the name of a file, as in "
            "save(path, snn)"
        )
    return Path(path).expanduser()


def _check_target(path: Path) -> None:
    if path.suffix != SUFFIX or path.is_dir():
        raise ValueError(f"path is {path}; allowed: a file whose name ends in {SUFFIX}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no folder {path.parent} for {path.name}; create it")


def _check_facts(recipe: Any, accuracy: Any, extras: Any) -> None:
    if not isinstance(recipe, str | None):
        raise ValueError(f"recipe is {recipe!r}; allowed: its name, e.g. 'best'")
    in_range = accuracy is None or (is_number(accuracy) and 0 <= accuracy <= 1)
    if not in_range:
        raise ValueError(f"accuracy is {accuracy!r}; allowed: a number from 0 to 1")
    has_names = isinstance(extras, dict) and all(isinstance(k, str) for k in extras)
    if extras is not None and not has_names:
        raise ValueError(f"extras are {extras!r}; allowed: a dict whose keys are str")


def _check_without_program(snn: SNN, options: dict[str, Any]) -> None:
    """Raise if arguments are given that only a program can store."""
    names = [name for name, option in options.items() if option is not None]
    if names:
        raise ValueError(
            f"{', '.join(names)} describe a program, and without fn there is none; "
            "pass fn, the network, or leave these arguments out"
        )
    texts = models.undescribed_models(snn.model)
    if texts:
        raise ValueError(
            f"a file cannot describe the neuron model {', '.join(texts)}, which is "
            "none of snnjax.neurons. Pass fn and x: then the file has a program, "
            "and stored.run(x) needs no model"
        )
    if models.describe_code(snn.code)["name"] is None:
        raise ValueError(
            f"a file cannot describe the code {snn.code!r}, which is none of "
            "snnjax.codes. Take snnjax.codes.weighted(code.weights(T))"
        )


def _fingerprint(x: chex.Array) -> dict[str, Any]:
    """Shape, dtype and sha256 of calibration images."""
    try:
        array = np.asarray(x, order="C")
    except TypeError:  # a random key
        array = np.asarray(None)
    if array.dtype.kind not in "biufcV":  # V: bfloat16
        raise ValueError(
            f"calibration is {x!r}; allowed: an array of numbers, the images"
        )
    digest = hashlib.sha256(array.tobytes()).hexdigest()
    return {"shape": list(array.shape), "dtype": array.dtype.name, "sha256": digest}


def _jsonable(extras: dict[str, Any]) -> dict[str, Any]:
    """The extras as JSON gives them back, e.g. tuples as lists."""
    try:
        return json.loads(json.dumps(extras, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"extras must be what JSON can hold ({error}); turn arrays and NumPy's "
            "numbers into lists and Python numbers by .tolist()"
        ) from None
