"""A spiking network as one file: `save` and `load`.

    name.safetensors = card (JSON, in the header) + arrays + program

One file, so that card and weights always come from the same run. ``head -c 2000`` shows
the card. The program is StableHLO, not Python. ``run`` compiles and runs it by XLA, so
run only programs from a source that you trust.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import chex
import jax
import numpy as np

from snnjax._checks import check_concrete, check_folder_of
from snnjax._ranges import SHARE
from snnjax._text import Table, shown_as_table
from snnjax._types import Inputs
from snnjax._version import __version__
from snnjax.neurons.by_site import model_of, resolve_models
from snnjax.neurons.models import lif
from snnjax.snn import SNN, check_snn, check_values, checked_fit
from snnjax.storage import archive, models, program, tree


@shown_as_table
class Stored(NamedTuple):
    """What a file holds; ``print`` shows its card and a table of the neurons.

    Attributes:
        snn: the spiking network, equal to the saved one. `load` describes its
            containers.
        card: facts about it, see `save`.
        run: ``run(x) -> outputs`` [T, B, ...] as from `snnjax.spiking`, without the
            network's code. Outputs in a NamedTuple become a dict. ``run`` raises
            ValueError if the file has no program, if x has another shape or dtype, or
            if JAX cannot run the program, for example because it is too old.
    """

    snn: SNN
    card: dict[str, Any]
    run: Callable[[chex.ArrayTree], Any]

    def __repr__(self) -> str:
        return f"Stored(snn={self.snn!r}, card with {', '.join(self.card)})"

    def _table(self) -> Table:
        rows = [("card", "")]
        for name, fact in self.card.items():
            # The models of the neurons are in the table below.
            if name != "model" and fact not in (None, {}):
                rows.append((name, _fact_in_words(fact)))
        return Table(rows, below=str(self.snn))


def _fact_in_words(fact: Any) -> str:
    """A fact of a card on one line; a dict without what is None or empty."""
    if not isinstance(fact, dict):
        return str(fact)
    texts = []
    for name, value in fact.items():
        if value not in (None, {}):
            texts.append(f"{name} {_fact_in_words(value)}")
    return ", ".join(texts)


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
        snn: from `snnjax.convert` or `snnjax.init`, trained or not. Of a neuron model
            of your own the file has the name and the fields, its repr.
        fn: the network ``fn(params, x) -> outputs``. The file then holds its spiking
            function as a program for CPU, CUDA and TPU, and runs without its code. JAX
            reads a program for six months at least; load and save the SNN again then.
        x: an example of the network's input [B, ...] ([T, B, ...] for a sequence),
            arrays or ``jax.ShapeDtypeStruct``. The program takes any batch size B.
        steps, wait: steps and wait of the program; by default those that the SNN was
            fitted to.
        inputs: "constant" or "sequence", as for `snnjax.spiking`.
        recipe: name of the recipe of the conversion, such as "best".
        accuracy: its accuracy, 0..1.
        calibration: its calibration images. The card gets their shape, dtype and the
            sha256 of their bytes in C order.
        extras: a dict of anything else that JSON can hold.

    Returns:
        The path.

    Raises:
        ValueError: an argument is out of range; a leaf is neither an array nor a
            number; or only some of fn, x and steps are given.
        OSError: the folder does not exist, or is a file.
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
    if path.suffix != archive.SUFFIX or path.is_dir():
        raise ValueError(
            f"path is {path}; allowed: a file whose name ends in {archive.SUFFIX}"
        )
    check_folder_of(path)
    check_snn(snn)
    check_concrete("snnjax.save", snn=snn)
    check_values(snn)
    if snn.steps is not None:
        # A file does not say what an SNN was fitted to. After `load`, a T or code that
        # was changed would be taken for the one that the thresholds were fitted to.
        checked_fit(snn, steps=None, wait=None)
    facts = _facts(accuracy, recipe=recipe, extras=dict(extras or {}))
    # Of a file without program these stay as they are here.
    simulation = None
    outputs = None
    code = b""
    if fn is None:
        not_default = None if inputs == "constant" else inputs
        _check_without_program(snn, x=x, steps=steps, wait=wait, inputs=not_default)
    else:
        steps, wait = checked_fit(snn, steps, wait)
        simulation = {"steps": steps, "wait": wait, "inputs": inputs}
        outputs, code = program.export(fn, snn, x, **simulation)
    card = {
        "format": archive.FORMAT,
        "steps": snn.steps,
        "wait": snn.wait,
        "model": models.describe(snn.model),
        "code": models.describe(snn.code),
        **facts,
        "calibration": None if calibration is None else _fingerprint(calibration),
        "program": simulation,
        "date": datetime.date.today().isoformat(),
        "versions": {"snnjax": __version__, "jax": jax.__version__},
        "structure": {
            "params": tree.describe(snn.params, "params"),
            "neurons": tree.describe(snn.neurons, "neurons"),
            "outputs": outputs,
        },
    }
    archive.write(path, card, program.leaves_of(snn), code)
    return path


def load(
    path: str | os.PathLike, *, like: chex.ArrayTree | None = None, model: Any = None
) -> Stored:
    """Read a file of `save`.

    The SNN of a file can always be read; only the program, which ``run`` uses, can
    expire.

    Args:
        path: the file.
        like: params or an SNN of the same network, for example new ones. The loaded
            params get the structure of ``like``, after a check of shapes. Without it,
            containers other than dict, list and tuple (a NamedTuple, nnx.State, equinox
            modules) become dicts.
        model: as for `snnjax.init`: equal to that of the file, which needs it, or an
            SNN with it as ``like``, where it is of your own, or only ``run`` works.

    Returns:
        `Stored`: snn, card, run.

    Raises:
        OSError: there is no such file, or it is a folder.
        ValueError: the file is damaged, has another format or holds no SNN; ``like``
            has another structure, or the model is another one.
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
    card, arrays, code = archive.read(path)
    with archive.restoring(path):
        structure = card.pop("structure")
        snn = _snn(card, structure, arrays, like, model)
        run = program.runner(path, card, structure["outputs"], arrays, code)
    return Stored(snn, card, run)


def _snn(card: dict, structure: dict, arrays: dict, like: Any, model: Any) -> SNN:
    """The SNN of a file, in the structure of ``like`` if there is one.

    Args:
        card: of the file; it describes the model and the code.
        structure: descriptions of the trees of params and neurons.
        arrays: name of each leaf -> its array.
        like, model: as for `load`.
    """
    params = tree.rebuild(structure["params"], arrays)
    fields_of_sites = tree.rebuild(structure["neurons"], arrays)
    if isinstance(like, SNN):
        like_params = like.params
        like_neurons = like.neurons
        like_model = like.model
        like_code = like.code
    else:
        like_params = like
        like_neurons = {}
        like_model = None
        like_code = None
    # A model that the caller passes has to be the one of the file. The model of `like`
    # is only read if the file has no more than the text of its model.
    if model is None:
        snn_model = models.restore(card["model"], like_model)
    else:
        # Sites that no pattern matches have the default of `snnjax.init`.
        call_model = resolve_models(model, list(fields_of_sites), lif())
        snn_model = models.restore(card["model"], call_model, check=True)
    neurons = {}
    for name, fields in fields_of_sites.items():
        site_model = model_of(snn_model, name)
        like_fields = like_neurons.get(name)
        neurons[name] = models.restore_params(site_model, fields, like_fields)
    if like_params is not None:
        params = tree.fill(like_params, params)
    return SNN(
        params=params,
        neurons=neurons,
        steps=card["steps"],
        wait=card["wait"],
        model=snn_model,
        code=models.restore(card["code"], like_code),
    )


def _as_path(path: str | os.PathLike) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise ValueError(
            f"path is a {type(path).__name__}; allowed: the name of a file, as in "
            "save(path, snn)"
        )
    return Path(path).expanduser()


def _check_without_program(snn: SNN, **options: Any) -> None:
    """Raise if an option, or the code of the SNN, can only be stored by a program.

    Args:
        snn: its code may be none of `snnjax.codes`.
        options: arguments of `save` that describe a program; None where left out.
    """
    names = []
    for name, option in options.items():
        if option is not None:
            names.append(name)
    if names:
        raise ValueError(
            f"without fn there is no program that {', '.join(names)} could belong to; "
            "pass fn, the network, or leave them out"
        )
    if models.unknown(models.describe(snn.code)):
        raise ValueError(
            f"a file cannot describe the code {snn.code!r}, which is none of "
            "snnjax.codes. Take snnjax.codes.weighted(code.weights(T))"
        )


def _facts(accuracy: Any, **facts: Any) -> dict[str, Any]:
    """Facts for the card as JSON gives them back, e.g. tuples as lists."""
    if accuracy is not None:
        SHARE.check("accuracy", accuracy)
        accuracy = float(accuracy)
    try:
        text = json.dumps(facts, allow_nan=False)
        copy = json.loads(text)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{' and '.join(facts)} must be what JSON can hold ({error}); turn arrays "
            "and NumPy's numbers into lists and Python numbers by .tolist()"
        ) from None
    # JSON turns keys that are numbers into texts, without an error.
    if copy["extras"].keys() != facts["extras"].keys():
        raise ValueError(f"extras are {facts['extras']!r}; allowed: keys that are str")
    return {"accuracy": accuracy, **copy}


def _fingerprint(x: chex.Array) -> dict[str, Any]:
    """Shape, dtype and sha256 of calibration images."""
    try:
        array = np.asarray(x, order="C")
    except TypeError:
        # A random key is no array of NumPy; None is refused in its place.
        array = np.asarray(None)
    if array.dtype.kind not in "biufcV":  # V: bfloat16
        raise ValueError(
            f"calibration is {x!r}; allowed: an array of numbers, the images"
        )
    digest = hashlib.sha256(array.tobytes()).hexdigest()
    return {
        "shape": list(array.shape),
        "dtype": array.dtype.name,
        "sha256": digest,
    }
