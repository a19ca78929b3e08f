"""The loop of a training by itself: rates, and which runs it goes on with."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.models import Source, source_digest
from experiments.running import digest, fit, schedule
from experiments.running.options import TrainANN

CONFIG = TrainANN(dataset="digits", epochs=2, batch_size=64, warmup=0.0, flip=False)


@pytest.mark.parametrize("warmup, peak", [(0.0, 0), (0.5, 2)])
def test_the_rate_is_highest_at_the_end_of_the_warm_up(warmup, peak):
    config = dataclasses.replace(CONFIG, warmup=warmup, learning_rate=1.0, epochs=1)
    rate = schedule(config, steps=4)
    rates = [float(rate(step)) for step in range(4)]
    assert rates[peak] == 1 and max(rates) == 1
    assert rates[0] == (0 if warmup else 1)


def run(out, digits, state, epochs=1, **options):
    """A training that adds 1 in every step."""

    def step(state, key, images, labels, index):
        return jax.tree.map(lambda a: a + 1, state), jnp.array([0.0, 0.0, 1.0])

    config = dataclasses.replace(CONFIG, out=str(out), epochs=epochs)
    return fit(config, digits, state, step, lambda state: {}, **options)


def test_a_finished_run_gives_its_state_whatever_it_would_begin_with(tmp_path, digits):
    first = run(tmp_path, digits, {"w": jnp.zeros(3)})
    again = run(tmp_path, digits, {"w": jnp.full(3, 9.0)})
    np.testing.assert_array_equal(first["w"], 4)  # steps of an epoch
    np.testing.assert_array_equal(again["w"], 4)


@pytest.mark.parametrize(
    "state",
    [{"w": jnp.zeros(4)}, {"w": jnp.zeros(3), "b": jnp.zeros(1)}, {}],
    ids=["another shape", "one more", "none"],
)
def test_a_state_of_another_network_is_not_called_damaged(state, tmp_path, digits):
    run(tmp_path, digits, {"w": jnp.zeros(3)})
    with pytest.raises(
        ValueError, match="of another network or optimizer: 1 arrays, 3"
    ):
        run(tmp_path, digits, state)


def test_a_run_that_began_with_something_else_is_not_resumed(tmp_path, digits):
    state = {"w": jnp.zeros(3)}
    run(tmp_path, digits, state, inputs={"source network": "a"})
    run(tmp_path, digits, state, inputs={"source network": "a"})
    with pytest.raises(ValueError, match="began with another source network; choose"):
        run(tmp_path, digits, state, inputs={"source network": "b"})


def test_a_digest_is_of_all_numbers_and_types():
    trees = [{"w": np.zeros(2)}, {"w": np.ones(2)}, {"w": np.zeros(2, "f4")}]
    trees += [{"w": np.zeros((2, 1))}, {"w": np.zeros(2), "b": np.zeros(0)}]
    assert len(set(map(digest, trees))) == len(trees)
    assert digest({"w": jnp.zeros(2)}) == digest({"w": np.zeros(2, "f4")})


@pytest.mark.parametrize(
    "content, message",
    [
        ("[]", "is damaged .no JSON object"),
        ("{", "is damaged .Expecting"),
        (None, "has checkpoints, but no config.json"),
    ],
)
def test_a_folder_without_its_options_is_refused(content, message, tmp_path, digits):
    run(tmp_path, digits, {"w": jnp.zeros(3)})
    file = tmp_path / "config.json"
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(ValueError, match=message):
        run(tmp_path, digits, {"w": jnp.zeros(3)})


def test_a_run_of_a_version_without_inputs_goes_on_and_has_them_then(tmp_path, digits):
    state = {"w": jnp.zeros(3)}
    run(tmp_path, digits, state)
    run(tmp_path, digits, state, inputs={"source network": "a"})
    with pytest.raises(ValueError, match="began with another source network"):
        run(tmp_path, digits, state, inputs={"source network": "b"})


def test_a_source_network_is_its_weights_and_how_its_images_are_normalized():
    source = Source(
        None, {"params": {"w": np.zeros(2)}}, {"model": "vgg8", "mean": [0.0]}
    )
    others = [source._replace(variables={"params": {"w": np.ones(2)}})]
    others += [source._replace(card={**source.card, "mean": [1.0]})]
    assert len({source_digest(each) for each in (source, *others)}) == 3
    renamed = source._replace(card={**source.card, "notes": "of mine"})
    assert source_digest(renamed) == source_digest(source)
