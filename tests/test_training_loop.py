"""The loop of a training: rates, and which runs it goes on with."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.running import TrainANN, digest, training_loop

CONFIG = TrainANN(dataset="digits", epochs=2, batch_size=64, warmup=0.0, flip=False)


def test_the_rate_is_highest_at_the_end_of_the_warm_up(digits):
    for warmup, peak in ((0.0, 0), (0.5, 2)):
        config = dataclasses.replace(CONFIG, warmup=warmup, learning_rate=1.0, epochs=1)
        rate = training_loop.schedule(config, digits)  # 4 steps
        rates = [float(rate(step)) for step in range(4)]
        assert rates[peak] == 1 and max(rates) == 1
        assert rates[0] == (0 if warmup else 1)


def step(state, key, images, labels, index):
    """Adds something that depends on the key and the order of the images."""
    noise = jax.random.uniform(key) + images[0, 0, 0, 0] + labels[0]
    state = jax.tree.map(lambda a: a + noise, state)
    return state, training_loop.report(noise, noise, state)


def run(out, digits, measure=lambda state, log: {}, start=0.0, **changes):
    config = dataclasses.replace(CONFIG, out=str(out), **changes)
    return training_loop.fit(config, digits, {"w": jnp.full(3, start)}, step, measure)


def test_a_killed_run_ends_in_the_same_bits_and_another_is_not_resumed(
    digits, tmp_path
):
    def killed(state, log):
        if log[-1]["epoch"] == 2:
            raise KeyboardInterrupt
        return {"test_accuracy": 0.5}

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, digits, measure=killed)
    assert training_loop.read_log(tmp_path)[0]["test_accuracy"] == 0.5
    resumed, log = run(tmp_path, digits)
    whole, whole_log = run(tmp_path / "whole", digits)
    np.testing.assert_array_equal(resumed["w"], whole["w"])
    assert [line["loss"] for line in log] == [line["loss"] for line in whole_log]
    assert training_loop.read_log(tmp_path) == log
    shared, shared_log = run(tmp_path / "shared", digits, mesh=2)
    np.testing.assert_array_equal(shared["w"], whole["w"])
    assert [line["loss"] for line in shared_log] == [line["loss"] for line in log]
    for changes, names in (
        ({"seed": 1}, "seed"),
        ({"epochs": 3, "learning_rate": 0.5}, "epochs, learning_rate"),
        ({"start": 1.0}, "state at the start"),  # as of another source network
    ):
        message = f"holds another training, with other {names}. Give another"
        with pytest.raises(ValueError, match=message):
            run(tmp_path, digits, **changes)
    run(tmp_path, digits, mesh=2, data_dir="moved")  # no result depends on these


def test_batches_that_do_not_fit_are_refused(digits, tmp_path):
    for changes, message in (
        ({"batch_size": 6, "mesh": 4}, "batch_size 6 cannot be shared evenly by 4"),
        ({"batch_size": 300}, "batch_size 300 exceeds the 256 training images of dig"),
    ):
        with pytest.raises(ValueError, match=message):
            run(tmp_path, digits, **changes)


def test_weights_that_are_not_finite_end_a_run(digits, tmp_path):
    message = "epoch 1 of 2, step 1 of 4.* Lower the learning rate or let it warm up"
    with pytest.raises(FloatingPointError, match=message):
        run(tmp_path, digits, start=np.inf)


def test_a_digest_is_of_all_numbers_and_types():
    trees = [
        {"w": np.zeros(2)},
        {"w": np.ones(2)},
        {"w": np.zeros(2, "f4")},
        {"w": np.zeros((2, 1))},
        {"w": np.zeros(2), "b": np.zeros(0)},
    ]
    digests = {digest(tree) for tree in trees}
    assert len(digests) == len(trees)
    assert digest({"w": jnp.zeros(2)}) == digest({"w": np.zeros(2, "f4")})
