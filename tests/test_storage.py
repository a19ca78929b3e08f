"""A stored SNN is the saved one, bit for bit, runs without its code, or is refused."""

import dataclasses
import json
import subprocess
import sys
from collections import OrderedDict, namedtuple
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import example, given, settings
from hypothesis import strategies as st
from networks import NETWORKS

import snnjax
from snnjax.storage import files, structure

safetensors = pytest.importorskip("safetensors.numpy")
pytest.importorskip("flatbuffers")

STEPS = 4
GOLDEN = Path(__file__).parent / "golden"
DENSE = NETWORKS["dense"]
RECIPES = {
    "light": snnjax.light(),
    "best": snnjax.best(),
    "advanced": snnjax.advanced(iterations=2),
}


def converted(net=DENSE, recipe=None, wait=0):
    return snnjax.convert(
        net.fn, net.params, net.x, steps=STEPS, wait=wait, recipe=recipe
    )


def assert_same(found, expected):
    """The same structure, types and bits."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert type(a) is type(b)
        if hasattr(b, "dtype"):
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
            assert getattr(a, "weak_type", None) == getattr(b, "weak_type", None)
            assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
        else:
            assert a == b


def stored(tmp_path, snn, **card):
    path = snnjax.save(tmp_path / "snn.safetensors", snn, **card)
    return snnjax.load(path)


@pytest.fixture(scope="module")
def with_program(tmp_path_factory):
    """A file with a program, its SNN and what it computes."""
    path = tmp_path_factory.mktemp("program") / "snn.safetensors"
    snn = converted(recipe=snnjax.best())
    snnjax.save(path, snn, fn=DENSE.fn, x=DENSE.x, recipe="best")
    return path, snn, snnjax.spiking(DENSE.fn, steps=STEPS)(snn, DENSE.x)


# ------------------------------------------------------------------ round trips


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_converted_network_comes_back_bit_for_bit(recipe, tmp_path):
    snn = converted(NETWORKS["projection"], RECIPES[recipe], wait=1)
    assert_same(stored(tmp_path, snn).snn, snn)


def test_a_trained_network_comes_back_bit_for_bit(tmp_path):
    neuron = snnjax.lif(leak=0.5, reset="zero", temperature=3.0)
    snn = snnjax.init(DENSE.fn, DENSE.params, DENSE.x, model=neuron)
    simulate = snnjax.spiking(DENSE.fn, steps=2)
    gradient = jax.grad(lambda snn: (simulate(snn, DENSE.x) ** 2).mean())(snn)
    snn = jax.tree.map(lambda a, g: a - 0.1 * g, snn, gradient)
    found = stored(tmp_path, snn)
    assert_same(found.snn, snn)
    assert (found.snn.steps, found.snn.wait) == (None, None)


def test_a_file_without_a_program_says_how_to_run_it(tmp_path):
    path = snnjax.save(
        tmp_path / "snn.safetensors", snnjax.init(DENSE.fn, DENSE.params, DENSE.x)
    )
    with pytest.raises(ValueError, match="no program.*fn=fn, x=x"):
        snnjax.load(path).run(DENSE.x)


LEAVES = {
    "bf16": jnp.asarray([1.5, -2.0], jnp.bfloat16),
    "64 bits": np.asarray([1 / 3, 2**60], np.float64),
    "big-endian": np.arange(3, dtype=">i4"),
    "scalar": jnp.asarray(3, jnp.int8),
    "empty": jnp.zeros((0, 2)),
    "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "weak": jnp.full((2,), 0.1),
    "bool": np.array([True, False]),
    "numbers": [True, 7, 0.1, float("inf")],
    "nothing": (None, (), [], {}),
    "layers": {0: {"w": jnp.ones(2)}, 1: {"w": jnp.zeros(2)}},
    "a/b": jnp.ones(1),
    "a": {"b": jnp.zeros(1)},
}


def test_every_kind_of_leaf_and_container_comes_back(tmp_path):
    snn = snnjax.SNN(LEAVES, {"relu": snnjax.lif().init()}, model=snnjax.lif())
    found = stored(tmp_path, snn).snn
    as_jax = {k: jnp.asarray(LEAVES[k]) for k in ("transposed", "bool")}
    expected = {**LEAVES, **as_jax, "big-endian": jnp.arange(3)}
    assert_same(found, dataclasses.replace(snn, params=expected))


def test_random_keys_come_back(tmp_path):
    key = jax.random.key(3)
    found = stored(tmp_path, snnjax.SNN({"key": key}, {})).snn.params["key"]
    assert jax.random.key_impl(found) == jax.random.key_impl(key)
    assert jax.random.bits(found) == jax.random.bits(key)


class Pair(NamedTuple):
    w: jax.Array
    b: jax.Array


def test_a_named_tuple_comes_back_as_a_dict_or_as_itself(tmp_path):
    pair = Pair(jnp.ones(2), jnp.zeros(1))
    snn = snnjax.SNN({"layer": pair}, {})
    path = snnjax.save(tmp_path / "snn.safetensors", snn)
    assert set(snnjax.load(path).snn.params["layer"]) == {"w", "b"}
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), snn)
    assert_same(snnjax.load(path, like=like.params).snn.params, snn.params)
    assert_same(snnjax.load(path, like=like).snn, snn)


def nnx_network():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.a = nnx.Linear(4, 6, rngs=rngs)
            self.b = nnx.Linear(6, 3, rngs=rngs)

        def __call__(self, x):
            return self.b(nnx.relu(self.a(x)))

    graph, state = nnx.split(Net(nnx.Rngs(0)))
    return lambda state, x: nnx.merge(graph, state)(x), state


def equinox_network():
    eqx = pytest.importorskip("equinox")
    net = eqx.nn.MLP(4, 3, 6, 2, key=jax.random.key(0))
    params, static = eqx.partition(net, eqx.is_array)
    return lambda params, x: jax.vmap(eqx.combine(params, static))(x), params


@pytest.mark.parametrize("build", [nnx_network, equinox_network])
def test_what_only_code_can_make_is_filled_into_like(build, tmp_path):
    fn, params = build()
    recipe = snnjax.light()
    snn = snnjax.convert(fn, params, DENSE.x, steps=STEPS, recipe=recipe)
    path = snnjax.save(tmp_path / "snn.safetensors", snn)
    with pytest.raises(ValueError, match="only its own code can make .*Pass like="):
        snnjax.load(path)
    zeros = jax.tree.map(jnp.zeros_like, params)
    assert_same(snnjax.load(path, like=zeros).snn, snn)
    # With a program the code is not needed: the file runs as it is.
    snnjax.save(path, snn, fn=fn, x=DENSE.x)
    outputs = snnjax.spiking(fn, steps=STEPS)(snn, DENSE.x)
    np.testing.assert_array_equal(snnjax.load(path).run(DENSE.x), outputs)


def test_a_like_that_does_not_fit_is_refused(tmp_path):
    path = snnjax.save(tmp_path / "snn.safetensors", converted())
    turned = OrderedDict(reversed(DENSE.params.items()))
    with pytest.raises(ValueError, match=r"another order: .*'b1'.* `like` .*'w3'"):
        snnjax.load(path, like=turned)
    other = {**DENSE.params, "w1": jnp.zeros((4, 7))}
    with pytest.raises(ValueError, match=r"w1 has shape \(4, 6\), but .* \(4, 7\)"):
        snnjax.load(path, like=other)
    with pytest.raises(ValueError, match=r"lacks \['b1'.* has \['x'\] besides"):
        snnjax.load(path, like={"x": jnp.zeros(1)})


leaf = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False))
tree = st.recursive(
    leaf,
    lambda item: st.one_of(
        st.lists(item, max_size=3),
        st.lists(item, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=3), item, max_size=3),
    ),
    max_leaves=10,
)


@given(tree)
@example(({"a": [()]}, None))
def test_any_tree_of_plain_containers_survives_json(tree):
    def never(path, value):
        raise AssertionError(path)

    text = json.dumps(structure.describe(tree, never))
    assert structure.rebuild(json.loads(text), lambda found: found) == tree


def test_the_card_says_where_the_network_comes_from(tmp_path):
    extras = {"data": "digits", "seeds": [1, 2]}
    card = stored(
        tmp_path,
        converted(wait=1),
        recipe="light",
        accuracy=np.float32(0.5),
        calibration=DENSE.x,
        extras=extras,
    ).card
    assert (card["steps"], card["wait"], card["neuron"]["reset"]) == (
        STEPS,
        1,
        "subtract",
    )
    assert (card["recipe"], card["accuracy"], card["extras"]) == ("light", 0.5, extras)
    assert card["calibration"]["shape"] == list(DENSE.x.shape)
    assert card["versions"]["jax"] == jax.__version__
    other = stored(tmp_path, converted(), calibration=DENSE.x + 1).card
    assert card["calibration"]["sha256"] != other["calibration"]["sha256"]


def test_the_card_can_be_read_without_this_library(with_program):
    path, _, _ = with_program
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        assert json.loads(file.metadata()["card"])["recipe"] == "best"
        assert "params/w1" in file.keys()  # noqa: SIM118


# --------------------------------------------------------------------- programs


def test_a_program_runs_where_the_network_is_unknown(with_program, tmp_path):
    path, _, outputs = with_program
    np.save(tmp_path / "x.npy", DENSE.x)
    code = (
        "import sys, numpy as np, snnjax\n"
        "run = snnjax.load(sys.argv[1]).run\n"
        "np.save(sys.argv[3], run(np.load(sys.argv[2])))\n"
    )
    files = [path, tmp_path / "x.npy", tmp_path / "outputs.npy"]
    subprocess.run([sys.executable, "-c", code, *files], check=True, cwd=tmp_path)
    np.testing.assert_array_equal(np.load(files[2]), outputs)


@pytest.mark.parametrize(
    "name, wait",
    [("max-pool after", 0), ("projection", 1), ("several outputs", STEPS)],
)
def test_a_program_takes_any_batch(name, wait, tmp_path):
    net = NETWORKS[name]
    snn = converted(net, wait=wait)
    found = stored(tmp_path, snn, fn=net.fn, x=net.x)
    assert found.card["program"]["batch"] is None
    for x in (net.x[:1], jnp.concatenate([net.x, net.x])):
        outputs = snnjax.spiking(net.fn, steps=STEPS, wait=wait)(snn, x)
        jax.tree.map(np.testing.assert_array_equal, found.run(x), outputs)


def test_a_network_that_flattens_takes_any_batch(tmp_path):
    def fn(p, x):
        return DENSE.fn(p, x.reshape(x.shape[0], -1))

    x = DENSE.x.reshape(-1, 2, 2)
    found = stored(tmp_path, converted(), fn=fn, x=x)
    assert found.card["program"]["batch"] is None
    outputs = snnjax.spiking(fn, steps=STEPS)(converted(), x[:3])
    np.testing.assert_array_equal(found.run(x[:3]), outputs)


def test_a_network_of_one_batch_size_runs_in_parts(tmp_path):
    def fn(p, x):
        return DENSE.fn(p, x.reshape(4, -1))  # four examples and no other number

    found = stored(tmp_path, converted(), fn=fn, x=DENSE.x)
    assert found.card["program"]["batch"] == 4
    assert found.card["program"]["why_this_batch"]
    x = jnp.concatenate([DENSE.x, -DENSE.x, DENSE.x])[:11]  # two parts and a rest
    outputs = snnjax.spiking(DENSE.fn, steps=STEPS)(converted(), x)
    np.testing.assert_allclose(found.run(x), outputs, atol=1e-6)


def test_a_sequence_and_numbers_in_params_are_part_of_the_program(tmp_path):
    def fn(p, x):
        return jax.nn.relu(x @ p["w"] * p["scale"])

    params = {"w": jnp.eye(4), "scale": 0.5}
    snn = snnjax.init(fn, params, DENSE.x)
    x = jnp.stack([DENSE.x, -DENSE.x])
    found = stored(tmp_path, snn, fn=fn, x=x, steps=2, inputs="sequence")
    assert_same(found.snn, snn)
    outputs = snnjax.spiking(fn, steps=2, inputs="sequence")(snn, x[:, :3])
    np.testing.assert_array_equal(jax.jit(found.run)(x[:, :3]), outputs)


def test_outputs_keep_their_nesting(tmp_path):
    Answer = namedtuple("Answer", "first second")

    def fn(p, x):
        y = DENSE.fn(p, x)
        return [y, Answer(y, y[:, 0])]

    snn = snnjax.convert(fn, DENSE.params, DENSE.x, steps=2)
    first, second = stored(tmp_path, snn, fn=fn, x=DENSE.x).run(DENSE.x)
    assert set(second) == {"first", "second"}
    np.testing.assert_array_equal(second["second"], first[:, :, 0])


OLD = {name: GOLDEN / f"snn_0.1_{name}.safetensors" for name in ("converted", "lif")}


def test_a_file_of_snnjax_0_1_loads():
    """Written by 0.1 with "delay", "reset" and a readout correction."""
    expected = np.load(GOLDEN / "snn_0.1_outputs.npz")
    x = jnp.asarray(expected["x"])
    with pytest.warns(UserWarning, match="its readout correction, .* is left out"):
        snn, card, run = snnjax.load(OLD["converted"])
    assert (snn.steps, snn.wait, card["wait"], card["program"]["wait"]) == (4, 2, 2, 2)
    writer, reader = (
        [int(part) for part in version.split(".")[:2]]
        for version in (card["versions"]["jax"], jax.__version__)
    )
    if writer <= reader:  # an older JAX cannot run the program of a newer one
        np.testing.assert_allclose(run(x), expected["converted"], rtol=1e-6)
    simulate = snnjax.spiking(old_network, steps=4, wait=2)
    constant = simulate(snn, x) - expected["converted"]
    np.testing.assert_allclose(constant, constant[:1, :1] + 0 * constant, atol=1e-6)


def test_trained_neurons_of_snnjax_0_1_load():
    expected = np.load(GOLDEN / "snn_0.1_outputs.npz")
    snn = snnjax.load(OLD["lif"]).snn
    assert snn.model == snnjax.integrate_and_fire(reset="zero")
    outputs = snnjax.spiking(old_network, steps=4)(snn, jnp.asarray(expected["x"]))
    np.testing.assert_allclose(outputs, expected["lif"], rtol=1e-6)


def old_network(p, x):
    hidden = jax.nn.relu(x @ p["w1"] + p["b1"])
    return jax.nn.relu(hidden @ p["w2"] + hidden) @ p["w3"]


def test_a_whole_file_without_an_snn_is_told(tmp_path):
    path = snnjax.save(tmp_path / "snn.safetensors", converted())
    whole = path.read_bytes()
    for change in ({"neurons": None}, {"neurons": 3}):
        path.write_bytes(whole)
        rewritten(path, structure=change)
        with pytest.raises(ValueError, match=f"{path.name} is whole, but holds no SNN"):
            snnjax.load(path)


def test_a_name_may_be_as_long_as_names_can_be(tmp_path):
    path = tmp_path / f"{'a' * 240}.safetensors"
    assert snnjax.save(path, converted()) == path


def test_a_program_refuses_other_inputs(with_program):
    run = snnjax.load(with_program[0]).run
    for x in (DENSE.x[:, :3], DENSE.x.astype(jnp.bfloat16), DENSE.x[:0]):
        with pytest.raises(ValueError, match=r"program takes \[batch, 4\] of float32"):
            run(x)


def test_a_program_of_a_newer_jax_that_does_not_run_says_so(tmp_path, monkeypatch):
    path = tmp_path / "snn.safetensors"
    with monkeypatch.context() as newer:
        newer.setattr(jax, "__version__", "999.1.0")
        snnjax.save(path, converted(), fn=DENSE.fn, x=DENSE.x)
    found = snnjax.load(path)  # the weights can be read whatever the program is
    np.testing.assert_array_equal(found.snn.params["w1"], DENSE.params["w1"])
    run = found.run
    assert run(DENSE.x).shape[0] == STEPS  # and so can a program, if it can

    def fail(code):
        raise RuntimeError("unknown operation")

    monkeypatch.setattr(jax.export, "deserialize", fail)
    with pytest.raises(ValueError, match="written by jax 999.1.0, .*snnjax.spiking"):
        snnjax.load(path).run(DENSE.x)


# ----------------------------------------------------------------- broken files


def rewritten(path, structure=None, **changes):
    """The file with other entries in its card, which then claims what it holds."""

    arrays, texts = files._read(files._safetensors(), path.read_bytes(), path)
    card = {**json.loads(texts["card"]), **changes}
    parts = json.loads(texts["structure"]) | (structure or {})
    card["sha256"] = files._digest(card, parts, arrays)
    texts |= {"card": json.dumps(card), "structure": json.dumps(parts)}
    path.write_bytes(safetensors.save(arrays, texts))
    return path


def test_a_program_of_64_bits_says_what_it_needs(x64, tmp_path):
    x64()
    params, x = jax.tree.map(lambda a: a.astype(jnp.float64), (DENSE.params, DENSE.x))
    snn = snnjax.init(DENSE.fn, params, x)
    path = tmp_path / "snn.safetensors"
    snnjax.save(path, snn, fn=DENSE.fn, x=x, steps=2)
    jax.config.update("jax_enable_x64", False)
    with pytest.raises(ValueError, match="of float64, which JAX has under .*x64"):
        snnjax.load(path).run(np.asarray(x))


def test_missing_foreign_and_future_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file .*nowhere"):
        snnjax.load(tmp_path / "nowhere.safetensors")
    with pytest.raises(ValueError, match="is no file"):
        snnjax.load(tmp_path)
    path = tmp_path / "snn.safetensors"
    path.write_text("not a network")
    with pytest.raises(ValueError, match="is no safetensors file"):
        snnjax.load(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="is no safetensors file"):
        snnjax.load(path)
    safetensors.save_file({"w": np.ones(2)}, path, {"author": "another"})
    with pytest.raises(ValueError, match=r"no card \(found: \['author'\]\)"):
        snnjax.load(path)
    snnjax.save(path, converted())
    with pytest.raises(ValueError, match="has format 3; .* pip install -U snnjax"):
        snnjax.load(rewritten(path, format=3))


def test_other_contents_than_the_card_claims_are_refused(with_program, tmp_path):
    original, *_ = with_program
    data = original.read_bytes()
    path = tmp_path / "snn.safetensors"
    card = b'\\"recipe\\": \\"best\\"'
    assert card in data
    path.write_bytes(data.replace(card, b'\\"recipe\\": \\"rest\\"'))
    with pytest.raises(ValueError, match="not those that were written: their sha256"):
        snnjax.load(path)
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ValueError, match="not those that were written: their sha256"):
        snnjax.load(path)


def equal_or_refused(path, data, snn):
    path.write_bytes(data)
    try:
        found = snnjax.load(path)
    except ValueError as error:
        assert str(path) in str(error)
    else:
        assert_same(found.snn, snn)


@settings(max_examples=60)
@given(st.data())
def test_no_changed_or_cut_file_gives_other_numbers(with_program, draw):
    path, snn, _ = with_program
    data = path.read_bytes()
    header = int.from_bytes(data[:8], "little")
    # Half of the places are in the header, where a change may be harmless.
    end = draw.draw(st.sampled_from([8, 8 + header, len(data)]))
    place = draw.draw(st.integers(0, end - 1))
    bits = draw.draw(st.integers(1, 255))
    changed = path.with_name("changed.safetensors")
    flipped = bytes([data[place] ^ bits])
    equal_or_refused(changed, data[:place] + flipped + data[place + 1 :], snn)
    changed.write_bytes(data[:place])
    with pytest.raises(ValueError, match="no safetensors file"):
        snnjax.load(changed)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = snnjax.save(tmp_path / "snn.safetensors", converted())
    before = path.read_bytes()

    def fail(file):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        snnjax.save(path, converted(recipe=snnjax.best()))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"path": "snn.npz"}, r"must end in \.safetensors"),
        ({"snn": {"w": 1}}, "snn is dict; allowed: an SNN of"),
        ({"snn": snnjax.SNN({"act": "relu"}, {})}, "params/act is a str"),
        ({"snn": snnjax.SNN({(1, 2): jnp.ones(1)}, {})}, r"has the key \(1, 2\)"),
        ({"snn": snnjax.SNN(np.array([None]), {})}, "params has dtype object"),
        ({"extras": {"x": np.ones(2)}}, "extras must be what JSON can hold"),
        ({"extras": {"x": float("nan")}}, "extras must be what JSON can hold"),
        ({"accuracy": {}}, "accuracy is {}; allowed: a number"),
        ({"extras": {1: 2}}, "allowed: a dict whose keys are str"),
        ({"recipe": snnjax.best()}, "allowed: its name, e.g. 'best'"),
        ({"accuracy": "90 %"}, "accuracy is '90 %'; allowed: a number"),
        ({"accuracy": np.ones(2)}, "accuracy is .*; allowed: a number"),
        ({"accuracy": float("nan")}, "accuracy is nan; allowed: 0 to 1"),
        ({"accuracy": 99.5}, "accuracy is 99.5; allowed: 0 to 1"),
        ({"x": DENSE.x, "steps": 8}, "x, steps describe a program"),
        ({"fn": DENSE.fn}, "needs an example of its input, one array; found x=None"),
        ({"fn": DENSE.fn, "x": DENSE.x, "snn": snnjax.SNN({}, {})}, "give steps=T"),
        ({"fn": DENSE.fn, "x": DENSE.x, "inputs": "poisson"}, "draws nothing"),
        ({"fn": DENSE.fn, "x": jnp.zeros(())}, r"x has shape \(\); allowed: \[batch"),
        ({"calibration": jax.random.key(0)}, "allowed: an array of numbers"),
        ({"calibration": "images/train"}, "allowed: an array of numbers"),
    ],
)
def test_what_cannot_be_stored_is_refused(changes, message, tmp_path):
    arguments = {"path": "snn.safetensors", "snn": converted(), **changes}
    path = tmp_path / arguments.pop("path")
    with pytest.raises(ValueError, match=message):
        snnjax.save(path, arguments.pop("snn"), **arguments)
    assert not path.exists()


def test_a_missing_folder_and_a_folder_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder .*nowhere for a.safe"):
        snnjax.save(tmp_path / "nowhere" / "a.safetensors", converted())
    (tmp_path / "b.safetensors").mkdir()
    with pytest.raises(ValueError, match="b.safetensors, a folder; give a file"):
        snnjax.save(tmp_path / "b.safetensors", converted())


def test_path_and_snn_in_the_other_order_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"path is a SNN; allowed: save\(path, snn\)"):
        snnjax.save(converted(), tmp_path / "a.safetensors")


def test_the_missing_library_is_named(tmp_path, monkeypatch):
    path = snnjax.save(tmp_path / "snn.safetensors", converted())
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r'pip install "snnjax\[share\]"'):
        snnjax.load(path)
