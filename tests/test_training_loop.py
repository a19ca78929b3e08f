"""The loop of a training: rates, checkpoints, and which runs it goes on with."""

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.models import Source, source_digest
from experiments.running import TrainANN, digest, fit, read_log, schedule

CONFIG = TrainANN(dataset="digits", epochs=2, batch_size=64, warmup=0.0, flip=False)


def test_the_rate_is_highest_at_the_end_of_the_warm_up():
    for warmup, peak in ((0.0, 0), (0.5, 2)):
        config = dataclasses.replace(CONFIG, warmup=warmup, learning_rate=1.0, epochs=1)
        rate = schedule(config, steps=4)
        rates = [float(rate(step)) for step in range(4)]
        assert rates[peak] == 1 and max(rates) == 1
        assert rates[0] == (0 if warmup else 1)


def step(state, key, images, labels, index):
    """Adds 1, and something that depends on the key and the order of the images."""
    noise = jax.random.uniform(key) + images[0, 0, 0, 0] + labels[0]
    return jax.tree.map(lambda a: a + 1 + noise, state), jnp.array([0.0, 0.0, 1.0])


def run(out, digits, state, config=CONFIG, **options):
    config = dataclasses.replace(config, out=str(out))
    return fit(config, digits, state, step, lambda state: {}, **options)


@pytest.fixture(scope="module")
def finished(digits, tmp_path_factory):
    """The folder of a run, its state and its log."""
    out = tmp_path_factory.mktemp("finished")
    return out, *run(out, digits, {"w": jnp.zeros(3)}, inputs={"network": "a"})


def test_a_finished_run_gives_its_state_whatever_it_would_begin_with(finished, digits):
    out, state, log = finished
    begun = {"w": jnp.full(3, 9.0)}
    again, same_log = run(out, digits, begun, inputs={"network": "a"})
    np.testing.assert_array_equal(again["w"], state["w"])
    assert same_log == log == read_log(out)
    assert [line["epoch"] for line in log] == [1, 2]


def test_a_killed_run_ends_in_the_same_bits(finished, digits, tmp_path):
    """Killed after the line of epoch 2, while its checkpoint was being written."""
    out, state, _ = finished
    (tmp_path / "checkpoints").mkdir()
    for name in ("checkpoints/1.npz", "metrics.jsonl", "run.json"):
        shutil.copy(out / name, tmp_path / name)
    unfinished = tmp_path / "checkpoints" / ".2.npz.tmp"
    unfinished.write_bytes(b"half of")
    resumed, log = run(tmp_path, digits, {"w": jnp.zeros(3)}, inputs={"network": "a"})
    np.testing.assert_array_equal(resumed["w"], state["w"])
    assert [line["epoch"] for line in log] == [1, 2]
    assert read_log(tmp_path) == log and not unfinished.exists()


def test_a_run_of_something_else_is_not_resumed(finished, digits):
    out, *_ = finished
    state, inputs = {"w": jnp.zeros(3)}, {"network": "a"}
    seed = dataclasses.replace(CONFIG, seed=1)
    longer = dataclasses.replace(CONFIG, epochs=3, learning_rate=0.5)
    for other, config, begun, message in (
        (state, seed, inputs, "holds a run with seed 0, not 1. Choose another --out"),
        (state, longer, inputs, "epochs 2, not 3; learning_rate 0.1, not 0.5"),
        (state, CONFIG, {"network": "b"}, "network 'a', not 'b'"),
        (state, CONFIG, {"network": "a", "SNN": "c"}, "SNN None, not 'c'"),
        ({"w": jnp.zeros(4)}, CONFIG, inputs, "holds a state of 1 arrays, 3 numbers"),
        (state | {"b": jnp.zeros(1)}, CONFIG, inputs, "asked for are 2 arrays, 4"),
        ({}, CONFIG, inputs, "asked for are 0 arrays, 0 numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            run(out, digits, other, config, inputs=begun)
    elsewhere = dataclasses.replace(CONFIG, mesh=2, data_dir="moved")
    run(out, digits, state, elsewhere, inputs=inputs)  # no result depends on these


def test_a_batch_that_devices_cannot_share_is_refused(digits, tmp_path):
    config = dataclasses.replace(CONFIG, batch_size=6, mesh=4)
    with pytest.raises(ValueError, match="batch_size 6 cannot be shared evenly by 4"):
        run(tmp_path, digits, {}, config)


def test_a_digest_is_of_all_numbers_and_types():
    trees = [{"w": np.zeros(2)}, {"w": np.ones(2)}, {"w": np.zeros(2, "f4")}]
    trees += [{"w": np.zeros((2, 1))}, {"w": np.zeros(2), "b": np.zeros(0)}]
    assert len(set(map(digest, trees))) == len(trees)
    assert digest({"w": jnp.zeros(2)}) == digest({"w": np.zeros(2, "f4")})


def test_a_source_network_is_its_weights_and_how_its_images_are_normalized():
    source = Source(
        None, {"params": {"w": np.zeros(2)}}, {"model": "vgg8", "mean": [0.0]}
    )
    others = [source._replace(variables={"params": {"w": np.ones(2)}})]
    others += [source._replace(card={**source.card, "mean": [1.0]})]
    assert len({source_digest(each) for each in (source, *others)}) == 3
    renamed = source._replace(card={**source.card, "notes": "of mine"})
    assert source_digest(renamed) == source_digest(source)
