"""Refusals of files: what cannot be saved, and what a file does not hold.

Files that are damaged or of another program are in test_storage.py.
"""

import dataclasses
import functools
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_neuron_models as models
from networks import NETWORKS
from test_codes import Halves
from test_neuron_models import FIRST, MyNeuron

import snnjax
from refusals import Refusal, numbered
from refusals.measures import converted
from snnjax import SNN, codes
from snnjax.neurons import Recurrent, lif

STEPS = 4
DENSE = NETWORKS["dense"]
PROGRAM = {"fn": DENSE.fn, "x": DENSE.x}


# ----------------------------------------------------------------------------- saving


def save(name="snn.safetensors", snn=None, **options):
    """Saves an SNN in a folder of its own, in which no file may be left."""
    pytest.importorskip("safetensors")
    snn = converted() if snn is None else snn
    with tempfile.TemporaryDirectory() as folder:
        try:
            snnjax.save(Path(folder) / name, snn, **options)
        finally:
            assert not [path for path in Path(folder).rglob("*") if path.is_file()]


def save_as(path):
    pytest.importorskip("safetensors")
    snnjax.save(path, converted())


def save_below_a_file():
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "notes"
        file.write_text("")
        save_as(file / "nets" / "a.safetensors")


def save_as_folder():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "b.safetensors"
        path.mkdir()
        save_as(path)


@dataclasses.dataclass(frozen=True)
class Harmonic(Halves):
    """A code of one's own with the name of another one, and a field."""

    count: int = 3


def save_code(code):
    radix = snnjax.convert(
        *DENSE[:3],
        steps=STEPS,
        code=codes.radix(),
        recipe=snnjax.max_activation(),
    )
    save(snn=dataclasses.replace(radix, code=code, fitted_to=None))


JSON = "recipe and extras must be what JSON can hold"
ACCURACY = "allowed: 0 <= accuracy <= 1"
NOT_SAVED = [
    ({"name": "snn.npz"}, r"snn.npz; allowed: .* ends in \.safetensors"),
    ({"snn": {"w": 1}}, "snn is dict; allowed: an SNN of"),
    ({"snn": SNN({"act": "relu"}, {})}, r"params\['act'\] is a str; allowed: arrays"),
    (
        {"snn": SNN({(1, 2): jnp.ones(1)}, {})},
        r"a dict at params has the key \(1, 2\); allowed: str",
    ),
    ({"snn": SNN(np.array([None]), {})}, "params has dtype object; allowed: bool"),
    ({"extras": {"x": np.ones(2)}}, JSON),
    ({"extras": {"x": float("nan")}}, JSON),
    ({"extras": {1: 2}}, "allowed: keys that are str"),
    ({"recipe": snnjax.best()}, JSON),
    ({"accuracy": "90 %"}, f"accuracy is '90 %'; {ACCURACY}"),
    ({"accuracy": np.ones(2)}, f"accuracy is .*; {ACCURACY}"),
    ({"accuracy": float("nan")}, f"accuracy is nan; {ACCURACY}"),
    ({"accuracy": 99.5}, f"accuracy is 99.5; {ACCURACY}"),
    (
        {"x": DENSE.x, "steps": 8},
        "without fn there is no program that x, steps could belong to; pass fn",
    ),
    ({"fn": DENSE.fn}, "needs an example .* x=None.* leave fn out"),
    (PROGRAM | {"snn": SNN({}, {})}, "fitted to no number of steps: give steps=T"),
    (PROGRAM | {"inputs": "poisson"}, r"Draw the spikes, jax.random.bernoulli\("),
    (PROGRAM | {"x": jnp.zeros(())}, r"x has shape \(\); allowed: \[batch"),
    (
        {"calibration": jax.random.key(0)},
        r"calibration is Array\((.|\n)*; allowed: an array of numbers",
    ),
    (
        {"calibration": "images/train"},
        "calibration is .*; allowed: an array of numbers",
    ),
]
SAVING = [
    *numbered("saving", save, NOT_SAVED),
    Refusal(
        "a traced SNN",
        lambda: jax.jit(lambda snn: save(snn=snn))(converted()),
        "snn is traced; allowed: .* Call snnjax.save outside of jit",
    ),
    Refusal(
        "an SNN as path",
        lambda: save_as(converted()),
        r"path is a SNN; allowed: .* as in save\(path, snn\)",
    ),
    Refusal(
        "a folder as path",
        save_as_folder,
        "b.safetensors; allowed: a file whose name",
    ),
    Refusal(
        "a path in no folder",
        lambda: save("nowhere/snn.safetensors"),
        "no folder .*nowhere for snn.safe",
        FileNotFoundError,
    ),
    Refusal(
        "a path below a file",
        save_below_a_file,
        r"path is .*, but \S*notes is a file; give a path in a folder",
        NotADirectoryError,
    ),
    Refusal(
        "a file of a code of one's own",
        lambda: save_code(Halves()),
        r"code .*Halves.*weighted\(code.weights\(T\)",
    ),
    Refusal(
        "a file of a code with another one's name",
        lambda: save_code(Harmonic(3)),
        "cannot describe the code Harmonic.*Take snnjax.codes.weighted",
    ),
]

# ---------------------------------------------------------------------------- loading


def through_file(snn, program=None, **options):
    """The SNN that is saved, with its program if ``program`` holds fn and x."""
    pytest.importorskip("safetensors")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "snn.safetensors"
        snnjax.save(path, snn, **(program or {}))
        return snnjax.load(path, **options)


def load_like(like):
    params = {"l/a": jnp.ones(1), "l": {"a": jnp.zeros(1)}}
    through_file(SNN(params, {}), like=like)


def run_without_program():
    through_file(converted()).run(DENSE.x)


def run_program(x):
    """Runs the program of a network of vectors of 4 numbers."""
    through_file(converted(), PROGRAM).run(x)


def several(p, x):
    return jax.nn.relu(x["a"] @ p + x["b"])


def run_program_of_several(x):
    """Runs the program of two sequences of two steps with another x."""
    sequences = {"a": jnp.ones((2, 3, 4)), "b": jnp.ones((2, 3, 1))}
    one_step = jax.tree.map(lambda leaf: leaf[0], sequences)
    snn = snnjax.init(several, jnp.eye(4), one_step)
    program = {"fn": several, "x": sequences, "steps": 2, "inputs": "sequence"}
    through_file(snn, program).run(x)


def load_other_model():
    snn = models.fresh({FIRST: Recurrent(MyNeuron()), "*": lif()})
    with_other_factor = {FIRST: Recurrent(MyNeuron(0.25)), "*": lif()}
    through_file(snn, model=with_other_factor)


def load_like_other_model():
    snn = models.fresh(Recurrent(MyNeuron()))
    through_file(snn, like=models.fresh(Recurrent(MyNeuron(0.25))))


def run_unknown_model():
    """Without its class, a file has parameters and no equations."""
    stored = through_file(models.fresh(Recurrent(MyNeuron())))
    models.run(stored.snn)


def programs_refused():
    x = np.asarray(DENSE.x)
    for name, wrong_x in {
        "three features": x[:, :3],
        "an example": x[0],
        "bfloat16": x.astype(jnp.bfloat16),
    }.items():
        call = functools.partial(run_program, wrong_x)
        message = r"the program .* takes \[batch, 4\] of f"
        yield Refusal(f"a program of {name}", call, message)


def load_folder(*names):
    """Loads a folder with empty files of these names."""
    pytest.importorskip("safetensors")
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            (Path(folder) / name).touch()
        snnjax.load(folder)


LOADING = [
    *programs_refused(),
    Refusal(
        "a program of no example",
        lambda: run_program(DENSE.x[:0]),
        "x has no examples; the program .* takes one or more",
    ),
    Refusal(
        "a folder to load",
        lambda: load_folder("snn.safetensors", "results.md"),
        r"is a folder; give the path that .* returned \(it has snn.safetensors\)",
        IsADirectoryError,
    ),
    Refusal(
        "a folder without a file to load",
        lambda: load_folder("results.md"),
        r"\(it has no file that ends in .safetensors\)",
        IsADirectoryError,
    ),
    Refusal(
        "a program of NaN",
        lambda: run_program(DENSE.x.at[0, 0].set(jnp.nan)),
        "x holds 1 NaN of .* numbers; allowed: none",
    ),
    Refusal("a file without a program", run_without_program, "no program.*fn=fn, x=x"),
    Refusal(
        "one of two sequences for a program",
        lambda: run_program_of_several({"a": jnp.ones((2, 3, 4))}),
        r"takes {'a': '\[2, batch, 4\] of float32'",
    ),
    Refusal(
        "a file like another shape",
        lambda: load_like({"l/a": jnp.ones(1), "l": {"a": jnp.ones(2)}}),
        r"l/a has shape \(1,\), but .* \(2,\)",
    ),
    Refusal(
        "a file like other names",
        lambda: load_like({"l/a": jnp.ones(1), "x": jnp.zeros(1)}),
        r"lacks \['l/a'\] of 2 .* has \['x'\] besides.* like=",
    ),
    Refusal(
        "a file with another model",
        load_other_model,
        "factor=0.5.*and the model is .*factor=0.25.*Pass",
    ),
    Refusal(
        "a file like another model",
        load_like_other_model,
        "written with .* the model is",
    ),
    Refusal(
        "a run of a model without its class",
        run_unknown_model,
        r"model is .Recurrent.*MyNeuron.* model=\.\.",
    ),
]

ROWS = [*SAVING, *LOADING]
