"""`training.finetune`: the loop that a user would write, its folder and its errors."""

import dataclasses
import errno
import functools
import io
import re
import sys

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from networks import converted
from rows import thorough

import snnjax
from snnjax import training
from snnjax.training.identity import digest

DRAW = np.random.default_rng(0)
X = np.float32(DRAW.normal(size=(3, 16, 6)))
LABELS = DRAW.integers(0, 3, (3, 16))
BATCHES = list(zip(X, LABELS, strict=True))


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        norm = nn.BatchNorm(use_running_average=not train, momentum=0.9)
        return nn.Dense(3)(nn.relu(norm(nn.Dense(8)(x))))


NET = Net()
VARIABLES = jax.jit(NET.init)(jax.random.key(0), X[0])


def in_training(variables, x):
    return NET.apply(variables, x, train=True, mutable=["batch_stats"])


def teacher(x):
    return NET.apply(VARIABLES, x)


def summed(outputs, labels):
    """A loss of one's own: the cross-entropy of every step."""
    labels = jnp.broadcast_to(labels, outputs.shape[:-1])
    return optax.softmax_cross_entropy_with_integer_labels(outputs, labels).mean()


def shuffled(epoch):
    for i in np.random.default_rng(epoch).permutation(3):
        yield BATCHES[i]


@pytest.fixture(scope="module")
def snn():
    recipe = snnjax.light()
    return converted(NET.apply, VARIABLES, X[0], steps=2, recipe=recipe)


def finetune(snn, examples=BATCHES, fn=NET.apply, **options):
    options = {"epochs": 2, "rules": optax.adam(0.01)} | options
    return training.finetune(fn, snn, examples, **options)


def distance_of(outputs, logits):
    """KL(softmax(logits) || softmax(mean_t outputs))."""
    logs = (jax.nn.log_softmax(a) for a in (outputs.mean(0), logits))
    return optax.losses.kl_divergence_with_log_targets(*logs).mean()


def by_hand(snn, fn, *, has_aux, share, **options):
    """Two epochs of `shuffled`, as a loop."""
    simulate = snnjax.spiking(fn, has_aux=has_aux, **options)

    def loss(snn, x, labels):
        outputs, averages = simulate(snn, x) if has_aux else (simulate(snn, x), {})
        entropy = training.mean_cross_entropy(outputs, labels)
        distance = distance_of(outputs, teacher(x))
        return (1 - share) * entropy + share * distance, averages

    init, descend = training.descent(loss, optax.adam(0.01), has_aux=True)
    state, step = init(snn), jax.jit(descend)
    for epoch in (1, 2):
        for x, labels in shuffled(epoch):
            snn, state, (_, averages) = step(snn, state, x, labels)
            snn = dataclasses.replace(snn, params={**snn.params, **averages})
    return snn


@pytest.mark.parametrize(
    "has_aux, wait",
    [
        (False, 2),
        *thorough((True, 0)),
        pytest.param(False, 0, marks=pytest.mark.slow),
        pytest.param(True, 2, marks=pytest.mark.slow),
    ],
)
def test_it_is_the_loop_that_one_would_write(snn, has_aux, wait):
    snn = dataclasses.replace(snn, wait=wait, fitted_to=None)
    fn = in_training if has_aux else NET.apply
    options = {"has_aux": has_aux, "share": 0.3}
    tuned = finetune(snn, shuffled, fn, teacher=teacher, **options).snn
    execution = "closed_form" if wait else "auto"
    expected = by_hand(snn, fn, execution=execution, **options)
    chex.assert_trees_all_equal(tuned, expected)
    old, new = (
        tree.params["batch_stats"]["BatchNorm_0"]["mean"] for tree in (snn, tuned)
    )
    assert np.any(old != new) == has_aux


@pytest.mark.thorough
def test_an_snn_of_init_learns_a_sequence_and_keeps_its_steps():
    """What comes first decides, so the mean over time says nothing."""
    x = np.zeros((6, 32, 4), np.float32)
    x[0, ::2, 0] = x[5, 1::2, 0] = x[5, ::2, 1] = x[0, 1::2, 1] = 1
    labels = np.arange(32) % 2

    def fn(params, x):
        return jax.nn.relu(x @ params["first"]) @ params["second"]

    first, second = (jax.random.normal(jax.random.key(i), (4, 4)) for i in (0, 1))
    params, neuron = {"first": first, "second": second}, snnjax.lif(leak=0.9)
    model, key = snnjax.neurons.Recurrent(neuron), jax.random.key(2)
    snn = snnjax.init(fn, params, x[0], model=model, key=key)
    options = {"steps": 6, "inputs": "sequence", "rules": optax.adam(0.03)}
    tuned, log = training.finetune(fn, snn, [(x, labels)], epochs=60, **options)
    assert (tuned.steps, tuned.wait) == (6, 0) and log[-1]["accuracy"] == 1
    outputs = snnjax.spiking(fn, inputs="sequence")(tuned, x)
    np.testing.assert_array_equal(outputs.mean(0)[:, :4].argmax(-1), labels)


@pytest.mark.thorough
def test_an_interrupted_training_ends_in_the_same_bits(snn, tmp_path):
    """Also of bfloat16 and a random key, which NumPy does not store."""
    narrow = jax.tree.map(lambda w: w.astype(jnp.bfloat16), snn.params)
    snn = dataclasses.replace(snn, params={"net": narrow, "key": jax.random.key(1)})

    def fn(params, x):
        return NET.apply(params["net"], x)

    def interrupt(snn, line):
        if line["epoch"] == 2:
            raise KeyboardInterrupt
        return {"numbers": np.arange(2), "mean": jnp.float32(0.5)}

    def measure(snn, line):
        return {"more": line["loss"]}

    class Examples:
        are_read = True

        def __call__(self, epoch):
            assert self.are_read
            return shuffled(epoch)

    examples = Examples()
    options = {"fn": fn, "examples": examples, "epochs": 3}
    folder = {"folder": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        finetune(snn, measure=interrupt, **options, **folder)
    resumed, log = finetune(snn, measure=measure, **options, **folder)
    whole, whole_log = finetune(snn, **options)
    assert jax.tree.structure(resumed) == jax.tree.structure(whole)
    pairs = zip(jax.tree.leaves(resumed), jax.tree.leaves(whole), strict=True)
    assert all(a.dtype == b.dtype and bool((a == b).all()) for a, b in pairs)
    assert [line["loss"] for line in log] == [line["loss"] for line in whole_log]
    assert log[0]["numbers"] == [0, 1] and log[0]["mean"] == 0.5
    assert log[2]["more"] == log[2]["loss"] and log[0]["epoch"] == 1
    examples.are_read = False  # a finished training needs none
    again = finetune(snn, **options, **folder)
    assert again.log == log


def test_a_teacher_pulls_and_a_loss_may_be_ones_own(snn):
    options = {"examples": BATCHES, "epochs": 8, "rules": {"weights": optax.adam(0.02)}}

    def distance(snn):  # for all examples: the conversion was fitted to some of them
        x = X.reshape(-1, X.shape[-1])
        return float(distance_of(snnjax.spiking(NET.apply)(snn, x), teacher(x)))

    pulled = finetune(snn, teacher=teacher, share=1.0, **options).snn
    alone = finetune(snn, loss=summed, **options)
    assert distance(pulled) < distance(snn) < distance(alone.snn)
    assert alone.log[-1]["loss"] < alone.log[0]["loss"]
    assert alone.log[-1]["accuracy"] > alone.log[0]["accuracy"]
    chex.assert_trees_all_equal(pulled.neurons, snn.neurons)  # rules are for weights


def test_devices_share_the_batches(snn):
    mesh = jax.make_mesh((4,), ("data",))
    place = jax.NamedSharding(mesh, jax.P("data"))
    shared = [tuple(jax.device_put(part, place) for part in batch) for batch in BATCHES]
    alone, ours = finetune(snn), finetune(snn, shared)
    chex.assert_trees_all_close(alone.snn, jax.device_get(ours.snn), atol=1e-5)
    assert len(jax.tree.leaves(ours.snn)[0].devices()) == 4


def test_a_bar_on_a_terminal_shows_step_and_loss(snn, monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    finetune(snn, lambda epoch: list(shuffled(epoch)) if epoch > 1 else shuffled(1))
    lines = [line.removesuffix("\x1b[K") for line in terminal.getvalue().split("\r")]
    assert lines[1] == "epoch 1 of 2 step 1: no loss yet"
    assert re.fullmatch(r"epoch 1 of 2 step 2: loss [\d.]+", lines[2])
    bar = r"epoch 2 of 2 \[#{13}\.{7}\] step 2 of 3: loss [\d.]+"
    assert re.fullmatch(bar, lines[6])
    assert lines[4] == lines[-1] == ""


def test_a_large_loss_may_go_on_if_it_is_large_from_the_beginning():
    def step(weight, batch):
        return 1e4 * weight, {"loss": weight, "finite": True}

    _, log = training.train(step, jnp.full((), 1e12), [0], epochs=2)
    assert len(log) == 2


def batches_of(size):
    """Examples that read their batch size from the scope around them."""

    def batches(epoch):
        return [(x[:size], labels[:size]) for x, labels in shuffled(epoch)]

    return batches


SIZE_CHANGED = r"with other examples \(changed: size\), seed. Give"


def test_a_folder_belongs_to_one_training(snn, tmp_path):
    call = {"snn": snn, "folder": tmp_path, "depends_on": {"seed": 1}}
    finetune(**call)
    threshold = snn.neurons["Net/relu"]._replace(threshold=jnp.float32(2.0))
    other = dataclasses.replace(snn, neurons={"Net/relu": threshold})
    own = {"loss": summed, "surrogate": snnjax.surrogate.arctan}
    fitted_to_more_steps = dataclasses.replace(snn, steps=3, fitted_to=None)
    finetune(snn, batches_of(16), folder=tmp_path / "batches")
    other_labels = [(x, (labels + 1) % 3) for x, labels in BATCHES]

    for options, message in (
        ({"snn": other}, "another training, with other state at the start. Give"),
        ({"snn": fitted_to_more_steps}, "with other state at the start"),
        ({"rules": optax.sgd(0.1)}, "with other state at the start, rules. Give"),
        ({"rules": optax.adam(0.1)}, "with other rules. Give"),
        ({"examples": other_labels}, "with other examples. Give"),
        ({"examples": shuffled}, "with other examples. Give"),
        ({"examples": batches_of(8), "folder": tmp_path / "batches"}, SIZE_CHANGED),
        ({"teacher": teacher}, "with other teacher, share. Give"),
        ({"fn": lambda *arguments: NET.apply(*arguments)}, "with other fn. Give"),
        ({"depends_on": {"seed": 2}, **own}, "with other loss, options, seed. Give"),
        ({"depends_on": None}, "with other seed. Give"),
        ({"epochs": 1}, "holds 2 epochs; allowed: epochs >= 2"),
    ):
        with pytest.raises(ValueError, match=message):
            finetune(**call | options)
    with pytest.raises(TypeError, match="loss"):  # a name of its own
        finetune(snn, folder=tmp_path, depends_on={"loss": 1})
    (tmp_path / "file").write_text("of somebody else")
    with pytest.raises(FileExistsError, match="file, a file; allowed: a folder"):
        finetune(snn, folder=tmp_path / "file")


def test_a_damaged_checkpoint_and_a_full_disk_are_named(snn, tmp_path, monkeypatch):
    orbax = pytest.importorskip("orbax.checkpoint")
    finetune(snn, folder=tmp_path / "a", epochs=1)
    for file in tmp_path.rglob("*"):
        if file.is_file():
            file.write_bytes(b"damaged")
    message = "checkpoint of epoch 1 in .*a is damaged, .* Delete the folder"
    with pytest.raises(ValueError, match=message):
        finetune(snn, folder=tmp_path / "a")

    def fail(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(orbax.CheckpointManager, "save", fail)
    message = "cannot write epoch 1 to .*b: .*No space left on device. Free space"
    with pytest.raises(OSError, match=message):
        finetune(snn, folder=tmp_path / "b")


def scaled(rate):
    return lambda x: rate * x


def test_a_digest_is_of_values_and_not_of_addresses():
    trees = [jnp.ones(3), jnp.ones((3, 1)), jnp.ones(3, int), {"a": jnp.ones(3)}]
    trees += [jax.random.key(0), jax.random.key(1), 1e-3, training.mean_cross_entropy]
    assert len({*map(digest, trees)}) == len(trees)
    assert digest({"w": jnp.ones(3)}) == digest({"w": np.ones(3, "f4")})
    assert digest(object()) == digest(object())


def test_a_digest_of_a_function_is_of_its_code_and_of_what_it_reads():
    half = jax.tree.map(lambda w: w / 2, VARIABLES)
    schedules = [optax.cosine_decay_schedule(0.1, steps) for steps in (8, 9)]
    functions = [
        scaled(2.0),
        scaled(3.0),
        jax.jit(scaled(4.0)),
        functools.partial(teacher, x=X[0]),
        functools.partial(teacher, x=X[1]),
        lambda x: NET.apply(half, x),
        lambda x: NET.apply(VARIABLES, x),
        lambda x: x - 1,
        lambda x: x + 1,
        *(optax.adam(schedule) for schedule in schedules),
        optax.adam(0.1),
        snnjax.surrogate.step_with_derivative(scaled(2.0)),
    ]
    assert len({*map(digest, functions)}) == len(functions)
    assert digest(scaled(2.0)) == digest(scaled(2.0))
    assert digest(optax.adam(0.1)) == digest(optax.adam(0.1))
