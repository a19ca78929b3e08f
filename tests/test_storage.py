"""A stored SNN is the saved one, bit for bit, runs without its code, or is refused."""

import dataclasses
import errno
import functools
import json
import os
import random
import re
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import networks
import numpy as np
import pytest
from flax import nnx
from hypothesis import example, given
from hypothesis import strategies as st
from networks import NETWORKS, compiled

import snnjax
from snnjax.storage import archive, models, tree

safetensors = pytest.importorskip("safetensors.numpy")
pytest.importorskip("flatbuffers")

STEPS = 4
DENSE = NETWORKS["dense"]
# Written in format 4 by snnjax 0.2.0 and jax 0.7.2, with the lines of `golden_snn`:
# snnjax.save(GOLDEN, golden_snn(), fn=DENSE.fn, x=DENSE.x, steps=STEPS)
ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden" / "snn_format_4.safetensors"


@functools.cache
def converted(wait=0):
    recipe = snnjax.max_activation()
    return networks.converted(*DENSE[:3], steps=STEPS, wait=wait, recipe=recipe)


@functools.cache
def outputs_of_dense():
    return np.asarray(compiled(DENSE.fn)(converted(), DENSE.x))


@pytest.fixture(scope="module")
def whole_file(tmp_path_factory):
    """A file of `converted` with a program."""
    path = tmp_path_factory.mktemp("whole") / "snn.safetensors"
    return snnjax.save(path, converted(), fn=DENSE.fn, x=DENSE.x, recipe="max")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "snn.safetensors"


def assert_same(result, expected):
    """The same structure, types and bits."""
    assert jax.tree.structure(result) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
        assert type(a) is type(b)
        if hasattr(b, "dtype"):
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
            if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
                a, b = map(jax.random.key_data, (a, b))
            assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
        else:
            assert a == b


# ------------------------------------------------------------------ round trips


def test_a_converted_and_a_trained_network_come_back_bit_for_bit(path):
    snnjax.save(path, converted(wait=1))
    assert_same(snnjax.load(path).snn, converted(wait=1))
    neuron = snnjax.lif(leak=0.5, reset="zero", temperature=3.0)
    snn = snnjax.init(*DENSE[:3], model=neuron)
    snn = jax.jit(lambda snn: jax.tree.map(lambda leaf: leaf * 0.7, snn))(snn)
    stored = snnjax.load(snnjax.save(path, snn))
    assert_same(stored.snn, snn)
    assert (stored.snn.steps, stored.snn.wait) == (None, None)


LEAVES = {
    "bf16": jnp.asarray([1.5, -2.0], jnp.bfloat16),
    "64 bits": np.asarray([1 / 3, 2**60], np.float64),
    "big-endian": np.arange(3, dtype=">i4"),
    "scalar": jnp.asarray(3, jnp.int8),
    "empty": jnp.zeros((0, 2)),
    "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "bool": np.array([True, False]),
    "numbers": [True, 7, 0.1, float("inf")],
    "nothing": (None, (), [], {}),
    "layers": {0: {"w": jnp.ones(2)}, 1: {"w": jnp.zeros(2)}},
    "key": jax.random.key(3),
    # Paths that print alike.
    "l/a": jnp.ones(1),
    "l": {"a": jnp.zeros(1)},
}


def test_every_kind_of_leaf_and_container_comes_back(path):
    snn = snnjax.SNN(LEAVES, {"relu": snnjax.lif().init()}, model=snnjax.lif())
    restored = snnjax.load(snnjax.save(path, snn)).snn
    as_jax = {k: jnp.asarray(LEAVES[k]) for k in ("transposed", "bool")}
    expected = {**LEAVES, **as_jax, "big-endian": jnp.arange(3)}
    assert_same(restored, dataclasses.replace(snn, params=expected))


def plain_trees(leaf):
    keys = st.text("a./'\"[]\\é\n\0")
    return st.lists(leaf) | st.lists(leaf).map(tuple) | st.dictionaries(keys, leaf)


@given(st.recursive(st.none() | st.booleans() | st.integers(), plain_trees))
@example(({"a": [()]}, None))
def test_any_tree_of_plain_containers_survives_json(plain):
    description = json.loads(json.dumps(tree.describe(plain, "params")))
    assert tree.rebuild(description, {}) == plain


class Pair(NamedTuple):
    w: jax.Array
    b: jax.Array


def named_tuple_network():
    params = Pair(jnp.eye(4), jnp.ones(4))
    return lambda pair, x: jax.nn.relu(x @ pair.w + pair.b), params


def nnx_network():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.a = nnx.Linear(4, 4, rngs=rngs)
            self.b = nnx.Linear(4, 4, rngs=rngs)

        def __call__(self, x):
            return self.b(nnx.relu(self.a(x)))

    graph, state = nnx.split(Net(nnx.Rngs(0)))
    return lambda state, x: nnx.merge(graph, state)(x), state


@pytest.mark.parametrize("build", [named_tuple_network, nnx_network])
def test_classes_come_back_by_like_and_run_without_their_code(build, path):
    fn, params = build()
    snn = snnjax.init(fn, params, DENSE.x, model=snnjax.integrate_and_fire())
    stored = snnjax.load(snnjax.save(path, snn, fn=fn, x=DENSE.x, steps=2))
    assert type(stored.snn.params) is dict
    assert len(jax.tree.leaves(stored.snn)) == len(jax.tree.leaves(snn))
    outputs = compiled(fn, steps=2)(snn, DENSE.x)
    np.testing.assert_array_equal(stored.run(DENSE.x), outputs)
    shapes = jax.eval_shape(lambda: snn)
    for like in (shapes.params, shapes):
        assert_same(snnjax.load(path, like=like).snn, snn)


def test_like_is_filled_by_keys(path):
    a, b = jnp.ones(1), jnp.zeros(1)
    snn = snnjax.SNN({"l/a": a, "l": {"a": b}}, {})
    snnjax.save(path, snn)
    other_order = OrderedDict([("l/a", b), ("l", {"a": b})])
    restored = snnjax.load(path, like=other_order).snn.params
    assert_same(restored, OrderedDict([("l/a", a), ("l", {"a": b})]))


def test_the_card_says_where_the_network_comes_from(path):
    extras = {"data": "digits", "seeds": [1, 2]}
    facts = {"recipe": "light", "accuracy": np.float32(0.5), "extras": extras}
    snnjax.save(path, converted(), calibration=DENSE.x, **facts)
    # Readable without this library.
    with safetensors.safe_open(path, "np") as file:
        card = json.loads(file.metadata()["card"])
        assert "params['w1']" in file.keys()  # noqa: SIM118
    assert card | snnjax.load(path).card == card
    assert (card["steps"], card["wait"], card["model"]["reset"]) == (4, 0, "subtract")
    assert {name: card[name] for name in facts} == facts
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", card["date"])
    assert card["versions"]["jax"] == jax.__version__
    assert card["calibration"]["shape"] == list(DENSE.x.shape)
    snnjax.save(path, converted(), calibration=DENSE.x + 1)
    other = snnjax.load(path).card["calibration"]
    assert card["calibration"]["sha256"] != other["sha256"]


# --------------------------------------------------------------------- programs


RUN = """
import sys, numpy as np, snnjax
run = snnjax.load(sys.argv[1]).run
np.save("outputs.npy", run(np.load("x.npy")))
"""


def test_a_file_names_no_folder_of_its_author(whole_file):
    for file in (whole_file, GOLDEN):
        content = file.read_bytes()
        assert str(ROOT).encode() not in content and b".py" not in content
    assert jax.config.jax_traceback_in_locations_limit != 0  # only while it exports


@pytest.mark.thorough
def test_a_program_runs_where_the_network_is_unknown(whole_file, tmp_path):
    np.save(tmp_path / "x.npy", DENSE.x)
    subprocess.run(
        [sys.executable, "-c", RUN, whole_file],
        check=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    np.testing.assert_array_equal(np.load(tmp_path / "outputs.npy"), outputs_of_dense())
    run = snnjax.load(whole_file).run
    np.testing.assert_array_equal(run(np.asarray(DENSE.x).tolist()), run(DENSE.x))


def test_a_program_takes_any_batch_and_returns_what_the_function_does(path):
    """Outputs of a class become a dict."""

    def fn(p, x):
        h = jax.nn.relu(x @ p["w1"])
        narrow = jax.nn.relu(x.astype(jnp.bfloat16) @ p["w1"].astype(jnp.bfloat16))
        counted = jax.nn.relu(x.reshape(len(x), -1) @ p["w1"])
        pooled = h.reshape(-1, 3, 2).max(-1) @ p["w3"][:3]
        nested = [h, (None, {0: x, 1: h.sum(-1)}), Pair(h, None)]
        return narrow, counted, pooled, nested, jnp.ones((x.shape[0], 2))

    snn = snnjax.init(fn, DENSE.params, DENSE.x, model=snnjax.integrate_and_fire())
    stored = snnjax.load(snnjax.save(path, snn, fn=fn, x=DENSE.x, steps=2, wait=1))
    assert_same(stored.snn, snn)
    simulate = compiled(fn, steps=2, wait=1)
    for x in (DENSE.x[:1], np.concatenate([DENSE.x, DENSE.x])):
        expected = simulate(snn, x)
        expected[3][2] = expected[3][2]._asdict()
        outputs = stored.run(x)
        assert_same(outputs, expected)
        assert all(leaf.shape[:2] == (2, len(x)) for leaf in jax.tree.leaves(outputs))


def test_a_program_of_several_sequences_with_numbers_and_keys_in_params(path):
    def fn(p, x):
        return jax.nn.relu(x["a"] @ p["w"] * p["scale"] + x["b"])

    params = {"w": jnp.eye(4), "scale": 0.5, "key": jax.random.key(0)}
    x = {"a": jnp.stack([DENSE.x, -DENSE.x]), "b": jnp.ones((2, len(DENSE.x), 1))}
    snn = snnjax.init(fn, params, jax.tree.map(lambda x: x[0], x))
    snnjax.save(path, snn, fn=fn, x=x, steps=2, inputs="sequence")
    stored = snnjax.load(path)
    assert_same(stored.snn, snn)
    few = jax.tree.map(lambda x: x[:, :3], x)
    outputs = compiled(fn, steps=2, inputs="sequence")(snn, few)
    np.testing.assert_array_equal(jax.jit(stored.run)(few), outputs)


def test_a_program_of_64_bits_says_what_it_needs(x64, path):
    def fn(p, x):
        return jax.nn.relu(x.astype(jnp.float64) @ p["w"])

    x64()
    params = {"w": np.eye(4)}
    snnjax.save(path, snnjax.init(fn, params, DENSE.x), fn=fn, x=DENSE.x, steps=2)
    jax.config.update("jax_enable_x64", False)
    stored = snnjax.load(path)
    np.testing.assert_array_equal(stored.snn.params["w"], params["w"])
    with pytest.raises(ValueError, match=f"{path}.*'jax_enable_x64', True"):
        stored.run(DENSE.x)


# ------------------------------------------------------------------ old programs


def golden_snn():
    models = {"w2/*": snnjax.lif(leak=0.25), "*": snnjax.neurons.Synaptic(snnjax.lif())}
    return snnjax.init(*DENSE[:3], model=models)


REFUSAL = "written by jax .* on 20.*: load and save it again with fn and x"


def test_an_snn_of_its_format_is_readable_and_its_program_runs_or_says_what_to_do():
    stored = snnjax.load(GOLDEN)
    assert_same(stored.snn, golden_snn())
    try:
        outputs = stored.run(DENSE.x)
    except ValueError as error:  # a JAX of another time
        assert re.search(REFUSAL, str(error))
    else:
        expected = snnjax.spiking(DENSE.fn, steps=STEPS)(golden_snn(), DENSE.x)
        np.testing.assert_allclose(outputs, expected, atol=1e-6)


def test_the_adaptive_threshold_of_an_old_file_is_no_adaptation_current(path):
    snnjax.save(path, snnjax.init(*DENSE[:3]))
    old = {"class": "Adaptive", "neuron": models.describe(snnjax.lif())}
    old |= {"adaptation": 1.0, "adaptation_leak": 0.9}
    with pytest.raises(ValueError, match="Adaptive with adaptation, which .* its card"):
        snnjax.load(rewritten(path, path, {"model": old}))


def test_an_snn_whose_program_is_refused_can_be_saved_again(whole_file, path):
    stored = snnjax.load(rewritten(whole_file, path, program=b"of another time"))
    with pytest.raises(ValueError, match=f"{path}, {REFUSAL}"):
        stored.run(DENSE.x)
    assert_same(stored.snn, converted())


# ----------------------------------------------------------------- broken files


def parts_of(source):
    """Texts and arrays of a file."""
    with safetensors.safe_open(source, "np") as file:
        return file.metadata(), {name: file.get_tensor(name) for name in file.keys()}


def write_signed(path, texts, data):
    """A file that claims what it holds."""
    texts = texts | {"sha256": archive._digest(texts["card"], data)}
    path.write_bytes(safetensors.save(data, texts))


def rewritten(source, path, card=None, program=None):
    """A signed file with other entries in its card, or another program."""
    texts, data = parts_of(source)
    texts["card"] = json.dumps(json.loads(texts["card"]) | (card or {}))
    if program is not None:
        data["program"] = np.frombuffer(program, np.uint8)
    write_signed(path, texts, data)
    return path


def test_missing_foreign_old_and_future_files_are_refused(whole_file, tmp_path, path):
    name = tmp_path / "nowhere.safetensors"
    with pytest.raises(FileNotFoundError, match=f"no file {name}; give the path"):
        snnjax.load(name)
    for content in (
        b"not a network",
        b"",
        safetensors.save({"w": np.ones(2)}, {"author": "another"}),
        safetensors.save({"w": np.ones(2)}, {"card": "[" * 200_000}),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{path} is no file of snnjax.save"):
            snnjax.load(path)
    for version in (3, 5):
        rewritten(whole_file, path, {"format": version})
        with pytest.raises(
            ValueError, match=rf"format {version} .* reads format 4\. C"
        ):
            snnjax.load(path)
    for card in ({"model": {"class": "New"}}, {"structure": {}}):
        rewritten(whole_file, path, card)
        with pytest.raises(ValueError, match=f"cannot restore the SNN of {path}"):
            snnjax.load(path)


def works_or_names_the_file(path):
    """The SNN of the file; None if a ValueError names the file and a remedy."""
    try:
        stored = snnjax.load(path)
        stored.run(DENSE.x)
    except ValueError as error:
        assert str(path) in str(error)
        assert re.search("again|anew|like=|x64|takes", str(error)), error
        return None
    return stored.snn


def test_no_content_of_a_file_leads_to_other_errors_or_numbers(whole_file, path):
    generator = random.Random(0)

    def flipped(content, end=None, most=128):
        place = generator.randrange(end or len(content))
        byte = content[place] ^ generator.randrange(1, most)
        return content[:place] + bytes([byte]) + content[place + 1 :]

    data = whole_file.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")  # a change may be harmless there
    for end in [8] * 10 + [header] * 30 + [len(data)] * 20:
        path.write_bytes(flipped(data, end, most=256))
        snn = works_or_names_the_file(path)
        if snn is not None:
            assert_same(snn, converted())
        path.write_bytes(data[: generator.randrange(end)])
        with pytest.raises(ValueError, match="damaged or cut short"):
            snnjax.load(path)
    texts, arrays = parts_of(whole_file)
    for _ in range(60):
        text = flipped(texts["card"].encode()).decode()
        write_signed(path, texts | {"card": text}, arrays)
        works_or_names_the_file(path)
    # Not beyond the tables of a program: XLA itself may crash on a damaged module.
    program = arrays["program"].tobytes()
    damaged = [flipped(program, 32, most=256) for _ in range(10)]
    for content in (*damaged, program[:24], program[:7], b""):
        works_or_names_the_file(rewritten(whole_file, path, program=content))


def test_a_failed_write_leaves_the_old_file(path, monkeypatch):
    snnjax.save(path, converted())
    before = path.read_bytes()

    def fail(file):
        raise OSError(errno.ENOSPC, "disk full")

    monkeypatch.setattr("os.fsync", fail)
    message = r"disk full: cannot write the \d+ bytes of .*Free space .* is unchanged"
    with pytest.raises(OSError, match=message) as caught:
        snnjax.save(path, converted(wait=1))
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_name_may_be_as_long_as_the_file_system_allows(path):
    longest_name = path.with_name(f"{'a' * 240}.safetensors")
    assert snnjax.save(longest_name, converted()) == longest_name
    assert_same(snnjax.load(longest_name).snn, converted())


def test_without_the_package_safetensors_the_error_says_what_to_install(
    path, monkeypatch
):
    snnjax.save(path, converted())
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r'pip install "snnjax\[share\]"'):
        snnjax.load(path)
