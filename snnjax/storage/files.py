"""A spiking network as one file, to keep and to share: `save` and `load`.

    name.safetensors = card and structure (JSON, in the header) + arrays + program

One file, because of two the card could be from one run and the weights from another.
`save` replaces it as a whole, and its card holds the sha256 of everything else. The
card is text at the head: ``head -c 2000 name.safetensors`` shows it, and so do the
viewers of the format. Nothing in the file is unpickled: the arrays are bytes, and the
program is StableHLO as `jax.export` writes it (flatbuffers), no Python. But XLA
compiles and runs that program when ``run`` is called: run only programs whose writer
you trust. The sha256 detects damage; it does not say who wrote the file.
Format: https://github.com/huggingface/safetensors
"""

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

from snnjax import _files
from snnjax._checks import is_number
from snnjax._types import Inputs
from snnjax._version import __version__
from snnjax.neurons.by_site import BySite, by_name, model_of
from snnjax.snn import SNN, check_snn, check_values, checked_fit
from snnjax.storage import program
from snnjax.storage.formats import upgraded
from snnjax.storage.models import (
    Unavailable,
    describe_model,
    models_without_description,
    restore_model,
    restore_params,
    without_addresses,
)
from snnjax.storage.structure import (
    DTYPES,
    PROGRAM,
    describe,
    fill,
    leaves,
    read_leaf,
    rebuild,
    store_leaf,
)

FORMAT = 2  # of the files that this version writes; it reads all up to this one
SUFFIX = ".safetensors"
_PARTS = ("params", "neurons")  # in the order of the SNN's leaves


class Stored(NamedTuple):
    """What a file holds.

    Attributes:
        snn: the spiking network, equal to the saved one, in the containers of `load`.
        card: facts about it, see `save`.
        run: ``run(x) -> outputs`` [T, B, ...] as those of `snnjax.spiking`, without
            the network's code; a NamedTuple comes as a dict. It raises ValueError if
            the file has no program, if x has another shape or type, or if a newer JAX
            wrote the program and this one cannot read it.

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

    The card gets the format's version, the SNN's steps, wait and neuron model, the
    versions of snnjax and jax, the facts given here, and the sha256 of all contents.

    Args:
        path: ends in ``.safetensors``; a file that is there is replaced.
        snn: from `snnjax.convert` or `snnjax.init`, trained or not.
        fn: the network ``fn(params, x) -> outputs``, to store its spiking function as
            a program too, for CPU, CUDA and TPU; then the file runs without its code.
            A newer jax reads the program for at least six months; an older one may not.
        x: example of its input [B, ...] ([T, B, ...] for a sequence), an array or
            ``jax.ShapeDtypeStruct``. The program takes any B; if the network cannot be
            traced for that, this one, and the card says so (``run`` pads, and takes
            larger batches in parts).
        steps, wait: of the program; by default those of the SNN's conversion.
        inputs: "constant" or "sequence", as for `snnjax.spiking`.
        recipe: name of the recipe that converted it, e.g. "best".
        accuracy: its accuracy, 0..1.
        calibration: its calibration images; the card gets their shape, type and the
            sha256 of their bytes in C order.
        extras: anything else that JSON can hold.

    Returns:
        The path.

    Raises:
        ValueError: another suffix, no SNN, numbers that no neuron can have, leaves
            that are no numbers, a neuron model of your own without fn, a recipe,
            accuracy or extras of another type, fn without x or steps, or these without
            fn.
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
    library = _safetensors()
    path = _target(path)
    check_snn(snn)
    check_values(snn)
    _check_facts(recipe, accuracy, extras)
    if fn is None:
        _check_described(snn)
        not_default = None if inputs == "constant" else inputs
        _check_no_program(x=x, steps=steps, wait=wait, inputs=not_default)
    arrays: dict[str, np.ndarray] = {}
    structure = {
        part: describe(getattr(snn, part), functools.partial(store_leaf, arrays, part))
        for part in _PARTS
    }
    card = {
        "format": FORMAT,
        "recipe": recipe,
        "steps": snn.steps,
        "wait": snn.wait,
        "neuron": describe_model(snn.model),
        "accuracy": None if accuracy is None else float(accuracy),
        "calibration": None if calibration is None else _fingerprint(calibration),
        "program": None,
        "versions": {"snnjax": __version__, "jax": jax.__version__},
        "extras": _jsonable(extras or {}),
    }
    if fn is not None:
        steps, wait = checked_fit(snn, steps, wait)
        facts, code = program.export(fn, snn, x, steps=steps, wait=wait, inputs=inputs)
        card["program"] = facts
        arrays[PROGRAM] = np.frombuffer(code, np.uint8)
    card["sha256"] = _digest(card, structure, arrays)
    texts = {"card": json.dumps(card), "structure": json.dumps(structure)}
    _files.write(path, library.numpy.save(arrays, texts))
    return path


def load(path: str | os.PathLike, *, like: chex.ArrayTree | None = None) -> Stored:
    """Read a file of `save`.

    Args:
        path: the file.
        like: params of the same network, e.g. new ones, or an SNN of it; the leaves of
            the file come in its structure, after a check of shapes. Without it a
            NamedTuple comes back as a dict of its fields. Nodes of other classes
            (nnx.State, equinox modules) come back as dicts if the file has a program;
            otherwise they need ``like``. A neuron model that is none of
            `snnjax.neurons` is taken from an SNN as ``like``; without one, only the
            program of the file runs.

    Returns:
        `Stored`: snn, card, run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, cut short, of a newer format, or holds no SNN; or
            ``like`` is missing or has another structure.
        ImportError: safetensors is missing.

    Files of snnjax 0.1 load, too. A readout correction, which they may hold, is left
    out with a warning; ``run`` still adds it.

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
    if not isinstance(path, str | os.PathLike):
        raise ValueError(
            f"path is a {type(path).__name__}; allowed: the name of a file"
        )
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(
            f"no file {path}; give the path that snnjax.save returned"
        )
    if not path.is_file():
        raise ValueError(
            f"{path} is no file; give one that snnjax.save wrote, *{SUFFIX}"
        )
    library = _safetensors()
    data = path.read_bytes()
    arrays, texts = _read(library, data, path)
    card, structure = _verified(arrays, texts, path)
    try:
        return _stored(arrays, card, structure, like, path)
    except (AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is whole, but holds no SNN as snnjax.save writes it ({error!r}); "
            "save the SNN again, by snnjax.save"
        ) from None


def _stored(
    arrays: dict[str, np.ndarray], card: dict, structure: dict, like: Any, path: Path
) -> Stored:
    """What the verified contents of a file describe."""
    read = functools.partial(read_leaf, arrays)
    # Before `upgraded`, which may drop leaves: the program takes all of the file's.
    described = [leaf for name in structure for _, leaf in leaves(structure[name])]
    program_arrays = [array for array in map(read, described) if array is not None]
    card, structure = upgraded(card, structure, path)
    like_snn = like if isinstance(like, SNN) else None
    like = like_snn.params if like_snn is not None else like
    has_program = card["program"] is not None
    params = _params(structure["params"], read, like, has_program, path)
    neuron = restore_model(card["neuron"])
    fields = rebuild(structure["neurons"], read)
    like_params = {} if like_snn is None else like_snn.neurons
    names = (
        [name for name, _ in neuron.models] if isinstance(neuron, BySite) else fields
    )
    models = {name: _model(model_of(neuron, name), like_snn, name) for name in names}
    neurons = {
        name: restore_params(models[name], own, like_params.get(name))
        for name, own in fields.items()
    }
    neuron = by_name(models.items()) if models else neuron
    snn = SNN(params, neurons, card["steps"], card["wait"], neuron)
    if not has_program:
        return Stored(snn, card, functools.partial(_no_program, path))
    code, writer = arrays[PROGRAM].tobytes(), card["versions"]["jax"]
    run = program.runner(code, card["program"], program_arrays, writer)
    return Stored(snn, card, run)


# ---------------------------------------------------------------------- parts


def _params(described: Any, read: Any, like: Any, has_program: bool, path: Path) -> Any:
    """The params, in the structure of ``like`` if there is one."""
    try:
        if like is not None:
            return fill(like, described, read)
        return rebuild(described, read, nodes=has_program)
    except ValueError as error:
        remedy = "Pass like=" if like is None else "In like= pass"
        raise ValueError(
            f"cannot restore the params of {path}: {error}. {remedy} new params of the "
            "same network, or an SNN of it"
        ) from None


def _model(model: Any, like: SNN | None, site_name: str) -> Any:
    """The model of a site; where the file does not hold it, that of ``like``.

    Raises:
        ValueError: the model of ``like`` is another one.
    """
    if like is None or not isinstance(model, Unavailable):
        return model
    at_hand = like.model_of(site_name)
    if without_addresses(repr(at_hand)) != without_addresses(model.text):
        raise ValueError(
            f"the file was written with the neuron model {model.text} at site "
            f"{site_name!r}, and like has {at_hand!r}. Pass an SNN with that model"
        )
    return at_hand


def _no_program(path: Path, x: Any) -> Any:
    """``run`` of a file without a program."""
    del x
    raise ValueError(
        f"{path} holds no program, since it was saved without fn. Save it with "
        "snnjax.save(path, snn, fn=fn, x=x), or run snnjax.spiking(fn, steps=T) with "
        "the snn of this file"
    )


# --------------------------------------------------------------------- checks


def _target(path: str | os.PathLike) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise ValueError(
            f"path is a {type(path).__name__}; allowed: save(path, snn), and a name "
            f"that ends in {SUFFIX}"
        )
    path = Path(path).expanduser()
    if path.suffix != SUFFIX:
        raise ValueError(f"path is {path}; its name must end in {SUFFIX}")
    if path.is_dir():
        raise ValueError(f"path is {path}, a folder; give a file in it")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no folder {path.parent} for {path.name}; create it")
    return path


def _check_facts(recipe, accuracy, extras) -> None:
    if not isinstance(recipe, str | None):
        raise ValueError(f"recipe is {recipe!r}; allowed: its name, e.g. 'best'")
    if accuracy is not None and not is_number(accuracy):
        raise ValueError(f"accuracy is {accuracy!r}; allowed: a number, e.g. 0.9")
    if accuracy is not None and not 0 <= accuracy <= 1:
        raise ValueError(f"accuracy is {accuracy}; allowed: 0 to 1")
    named = isinstance(extras, dict) and all(isinstance(key, str) for key in extras)
    if extras is not None and not named:
        raise ValueError(f"extras are {extras!r}; allowed: a dict whose keys are str")


def _check_described(snn: SNN) -> None:
    """Raise unless the file's card describes all models."""
    models = models_without_description(snn.model)
    if models:
        raise ValueError(
            f"a file cannot describe the neuron model {', '.join(models)}, which is "
            "none of snnjax.neurons. Pass fn and x: then the file holds the program, "
            "and stored.run(x) needs no model"
        )


def _check_no_program(**options) -> None:
    """Raise for options of a program, which `save` would ignore without one."""
    ignored = [name for name, option in options.items() if option is not None]
    if ignored:
        raise ValueError(
            f"{', '.join(ignored)} describe a program, and without fn there is none; "
            "pass fn, the network, or leave them out"
        )


# ----------------------------------------------------------------------- file


def _read(library, data: bytes, path: Path):
    """Arrays and texts of a safetensors file.

    It takes the bytes: the library's own readers give either arrays or texts, and
    would open the file twice.
    """
    try:
        entries = library.deserialize(data)
        length = int.from_bytes(data[:8], "little")
        texts = json.loads(data[8 : 8 + length]).get("__metadata__") or {}
        arrays = {
            name: np.frombuffer(entry["data"], np.dtype(DTYPES[entry["dtype"]]))
            for name, entry in entries
        }
        shapes = {name: entry["shape"] for name, entry in entries}
        arrays = {name: array.reshape(shapes[name]) for name, array in arrays.items()}
    except (library.SafetensorError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path} is no safetensors file, or is damaged or cut short ({error}). "
            "Fetch the file again, or save the SNN again"
        ) from None
    return arrays, texts


def _verified(arrays, texts, path: Path) -> tuple[dict, dict]:
    """Card and structure; raise for a newer format and where the sha256 differs."""
    if not {"card", "structure"} <= set(texts):
        raise ValueError(
            f"{path} is a safetensors file without a spiking network: its header has "
            f"no card (found: {sorted(texts) or 'nothing'}). snnjax.save writes one"
        )
    try:
        card, structure = (json.loads(texts[name]) for name in ("card", "structure"))
        version, claimed = card["format"], card["sha256"]
        if isinstance(version, int) and version > FORMAT:
            raise ValueError(
                f"{path} has format {version}; this snnjax reads up to {FORMAT}. "
                "Install a newer one: pip install -U snnjax"
            )
        actual = _digest(card, structure, arrays)
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"the card of {path} is damaged ({error!r}). Fetch the file again"
        ) from None
    if actual != claimed:
        raise ValueError(
            f"the contents of {path} are not those that were written: their sha256 is "
            f"{actual}, the card says {claimed}. Fetch the file again"
        )
    return card, structure


def _digest(card, structure, arrays: dict[str, np.ndarray]) -> str:
    """sha256 of the card without its entry "sha256", the structure, and all arrays."""
    facts = {key: item for key, item in card.items() if key != "sha256"}
    text = json.dumps([facts, structure], sort_keys=True)
    digest = hashlib.sha256(text.encode())
    for name, array in sorted(arrays.items()):
        digest.update(json.dumps([name, array.dtype.name, list(array.shape)]).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _fingerprint(x: chex.Array) -> dict[str, Any]:
    """Shape, type and sha256 of calibration images."""
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


def _safetensors():
    """The package, imported here since only files need it."""
    try:
        import safetensors
        import safetensors.numpy
    except ImportError:
        raise ImportError(
            'files of spiking networks need safetensors: pip install "snnjax[share]"'
        ) from None
    return safetensors
