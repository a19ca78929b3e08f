"""A conversion that was interrupted resumes, and ends in the same bits."""

import functools
import io
import os
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import NETWORKS, relu

import snnjax
from snnjax._folders import digest
from snnjax.calibrators import least_squares_offset, max_threshold
from snnjax.conversion.engine import sweep

NET = NETWORKS["concatenation"]
BEST = snnjax.best()
ADVANCED = snnjax.advanced(iterations=5, learning_rate=1e-2)


def convert(**options):
    options = {"steps": 4, "recipe": snnjax.light("channel")} | options
    x = options.pop("x", NET.x)
    fn, params = options.pop("fn", NET.fn), options.pop("params", NET.params)
    return snnjax.convert(fn, params, x, **options)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def interrupt(monkeypatch, count, **options):
    """A conversion that is interrupted after so many sites."""
    fit_site, fitted = sweep._fit_site, []

    def fit_or_raise(*arguments):
        if len(fitted) == count:
            raise KeyboardInterrupt
        fitted.append(fit_site(*arguments))
        return fitted[-1]

    with monkeypatch.context() as patch:
        patch.setattr(sweep, "_fit_site", fit_or_raise)
        with pytest.raises(KeyboardInterrupt):
            convert(**options)


@pytest.mark.parametrize("recipe", [BEST, ADVANCED], ids=["best", "advanced"])
def test_an_interrupted_conversion_ends_in_the_same_bits(recipe, tmp_path, monkeypatch):
    interrupt(monkeypatch, 2, recipe=recipe, folder=tmp_path)
    assert len(list(tmp_path.glob("*.npz"))) == 2
    resumed = convert(recipe=recipe, folder=tmp_path)
    assert_equal(resumed, convert(recipe=recipe))


def test_no_site_is_fitted_twice(tmp_path, monkeypatch):
    names = []

    def note(view, fit):
        names.append(view.site.name)
        return fit

    recipe = snnjax.Recipe([max_threshold(), note])
    interrupt(monkeypatch, 1, recipe=recipe, folder=tmp_path)
    assert len(names) == 1
    convert(recipe=recipe, folder=tmp_path)
    assert len(set(names)) == len(names) == NET.sites


def test_fits_of_another_conversion_are_refused(tmp_path, monkeypatch):
    interrupt(monkeypatch, 1, folder=tmp_path)
    signed = snnjax.integrate_and_fire(levels=(-1, 1))
    for changes, names in (
        ({"steps": 5}, "steps"),
        ({"wait": 1}, "wait"),
        ({"model": signed}, "model"),
        ({"x": NET.x + 1}, "images"),
        ({"params": jax.tree.map(lambda p: p + 1, NET.params)}, "parameters"),
        ({"recipe": snnjax.light()}, "recipe"),
        ({"recipe": snnjax.percentile(99.0), "steps": 8}, "steps, recipe"),
        ({"fn": lambda p, x: relu(NET.fn(p, x))}, "network"),
    ):
        with pytest.raises(ValueError, match=f"conversion, with other {names}\\. "):
            convert(folder=tmp_path, **changes)
    convert(folder=tmp_path, recipe=snnjax.light("channel"))  # made anew, but equal


def test_folders_that_cannot_be_used_are_refused(tmp_path):
    file = tmp_path / "file"
    file.write_text("two years of work")
    fits = tmp_path / "fits"
    (fits / "sweep_0_site_000.npz").mkdir(parents=True)
    (fits / "conversion.json").write_text("[1]")
    cases = (
        (tmp_path, "is not a folder of a conversion: it holds 'file'"),
        (file, "folder is .*file, a file; give a folder"),
        (fits, "conversion.json is damaged"),
        *((folder, "allowed: the path of a folder, or None") for folder in ("", True)),
    )
    for folder, message in cases:
        with pytest.raises(ValueError, match=message):
            convert(folder=folder)
    with pytest.raises(OSError, match="file"):
        convert(folder=file / "fits")
    new = tmp_path / "new"
    with pytest.raises(ValueError, match="folder= cannot be used inside jit"):
        jax.jit(lambda x: convert(x=x, folder=new))(NET.x)
    with pytest.raises(ValueError, match="NaN"):
        convert(x=NET.x.at[0].set(jnp.nan), folder=new)
    new.mkdir(exist_ok=True)
    (new / ".0123abcd_0123abcd.unfinished").write_text("of a kill")
    convert(folder=new)  # a refused call and a kill leave the folder usable
    assert not list(new.glob(".*"))


def test_a_damaged_fit_is_fitted_anew_and_a_swapped_one_refused(tmp_path):
    first = convert(folder=tmp_path)
    fit, *_ = sorted(tmp_path.glob("*.npz"))
    whole = fit.read_bytes()
    one, other = io.BytesIO(), io.BytesIO()
    np.save(one, np.ones(3))
    with np.load(fit) as entries:
        np.savez(other, **dict(entries) | {"threshold": np.ones(17)})
    damaged = (
        b"",
        whole[:100],
        whole.replace(b"PK\x01\x02", b"PK\x01\x03"),
        one.getvalue(),
        other.getvalue(),
    )
    for content in damaged:
        fit.write_bytes(content)
        with pytest.warns(UserWarning, match=f"{fit.name} cannot be read"):
            assert_equal(convert(folder=tmp_path), first)
    other_fit = sorted(tmp_path.glob("*.npz"))[1]
    contents = fit.read_bytes(), other_fit.read_bytes()
    other_fit.write_bytes(contents[0])
    fit.write_bytes(contents[1])
    with pytest.raises(ValueError, match="_000.npz holds the fit of sweep 0, site"):
        convert(folder=tmp_path)


def test_weights_in_bfloat16_and_keys_come_back_as_they_were(tmp_path):
    net = jax.tree.map(lambda p: p.astype(jnp.bfloat16), NET.params)
    run = functools.partial(
        convert,
        fn=lambda params, x: NET.fn(params["net"], x),
        params={"net": net, "key": jax.random.key(0)},
        x=NET.x.astype(jnp.bfloat16),
        recipe=ADVANCED,
        folder=tmp_path,
    )
    first, again = run(), run()
    assert_equal(again.params["net"], first.params["net"])
    assert_equal(again.neurons, first.neurons)
    pairs = zip(*map(jax.tree.leaves, (first.params["net"], net)), strict=True)
    assert any(np.any(np.asarray(a) != np.asarray(b)) for a, b in pairs)
    types = {p.dtype for p in jax.tree.leaves(again.params["net"])}
    assert types == {jnp.dtype("bfloat16")}


def test_offsets_come_back_with_the_other_parameters(tmp_path):
    def fn(p, x):
        return jax.nn.gelu(relu(x @ p["in"]) @ p["up"]) @ p["out"]

    draw = np.random.default_rng(0).normal
    shapes = {"in": (6, 8), "up": (8, 12), "out": (12, 3)}
    params = {name: jnp.asarray(draw(size=s) / 3, "f4") for name, s in shapes.items()}
    x = jnp.asarray(draw(size=(32, 6)), jnp.float32)
    recipe = snnjax.Recipe([least_squares_offset(), max_threshold()])
    options = {"fn": fn, "params": params, "x": x, "recipe": recipe, "folder": tmp_path}
    first, again = convert(**options), convert(**options)
    assert any(params.offset is not None for params in again.neurons.values())
    assert_equal(again, first)


def test_a_digest_is_of_values_and_not_of_addresses():
    trees = (
        jnp.ones(3),
        jnp.ones((3, 1)),
        jnp.ones(3, int),
        {"a": jnp.ones(3)},
        jax.random.key(0),
        repr(BEST),
        snnjax.best,
    )
    assert len(set(map(digest, trees))) == len(trees)
    assert digest(repr(snnjax.best())) == digest(repr(BEST))
    assert digest(object()) == digest(object())


WORK = """
import sys, jax, snnjax
from networks import NETWORKS
net = NETWORKS["concatenation"]
snnjax.convert(*net[:3], steps=4, recipe=snnjax.best(), folder=sys.argv[1])
"""


@pytest.mark.slow
def test_a_kill_at_any_moment_costs_the_site_that_was_fitted(tmp_path):
    fits, expected = tmp_path / "fits", convert(recipe=BEST)
    generator = np.random.default_rng(0)
    for _ in range(10):
        before = set(fits.glob("*.npz"))
        worker = subprocess.Popen(
            [sys.executable, "-c", WORK, str(fits)],
            cwd=Path(__file__).parent,
            # As here: other optimizations may round otherwise.
            env=os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "true"},
        )
        time.sleep(generator.uniform(2, 10))
        worker.kill()
        worker.wait()
        after = set(fits.glob("*.npz"))
        assert before <= after
        for file in after:
            with np.load(file) as entries:  # never half of one
                numbers = [entries[name] for name in entries.files if name != "place"]
                assert all(np.isfinite(array).all() for array in numbers)
    assert_equal(convert(recipe=BEST, folder=fits), expected)
