"""A conversion that was interrupted goes on, and ends in the same bits."""

import dataclasses
import functools
import io
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import NETWORKS, eighths, relu

import snnjax
from snnjax.calibrators import correct_potential, max_threshold
from snnjax.conversion.resume import digest
from snnjax.surrogate import dspike

NET = NETWORKS["projection"]
RECIPES = {
    "best": snnjax.best(),
    "advanced": snnjax.advanced(iterations=5, learning_rate=1e-2),
}


def convert(**options):
    options = {"steps": 4, "recipe": RECIPES["best"]} | options
    x = options.pop("x", NET.x)
    fn, params = options.pop("fn", NET.fn), options.pop("params", NET.params)
    return snnjax.convert(fn, params, x, **options)


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def interrupted(count):
    """Progress that stops the conversion before site ``count``."""

    def progress(sites):
        for i, site in enumerate(sites):
            if i == count:
                raise KeyboardInterrupt
            yield site

    return progress


class Counting:
    """A calibrator that knows at which sites it was asked."""

    sites = []  # of the class: what an instance holds would make it another one

    def __call__(self, view, fit):
        self.sites.append(view.site.name)
        return fit


class Fixed(NamedTuple):
    """A calibrator that is an object: a constant threshold."""

    threshold: float

    def __call__(self, view, fit):
        return threshold(self.threshold)(view, fit)

    def calibrator(self, view, fit):
        return self(view, fit)


class Options:
    """Something that holds a number and does not show it."""

    def __init__(self, value):
        self.value = value

    def calibrator(self, view, fit):
        return threshold(self.value)(view, fit)


@dataclasses.dataclass(frozen=True, slots=True)
class Slotted:
    value: float

    def __call__(self, view, fit):
        return threshold(self.value)(view, fit)


def held(options):
    return lambda view, fit: options.calibrator(view, fit)


def of_class(value):
    """A calibrator whose class, not what it holds, makes the difference."""

    class Calibrator(NamedTuple):
        nothing: None = None

        def __call__(self, view, fit):
            return threshold(value)(view, fit)

    return Calibrator()


def threshold(value):
    def calibrate(view, fit):
        return fit._replace(neurons=fit.neurons._replace(threshold=jnp.float32(value)))

    return calibrate


def by_default(value):
    def calibrate(view, fit, value=value):
        return threshold(value)(view, fit)

    return calibrate


def decorated(value):
    plain = threshold(1.0)

    @functools.wraps(plain)
    def calibrate(view, fit):
        return threshold(value)(view, plain(view, fit))

    return calibrate


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("count", [0, 1, 2])
def test_what_was_interrupted_ends_in_the_same_bits(recipe, count, tmp_path):
    options = {"recipe": RECIPES[recipe], "folder": tmp_path / "fits"}
    with pytest.raises(KeyboardInterrupt):
        convert(progress=interrupted(count), **options)
    assert_equal(convert(**options), convert(recipe=RECIPES[recipe]))


def test_no_site_is_fitted_twice(tmp_path):
    counting = Counting()
    counting.sites.clear()
    recipe = snnjax.Recipe(((max_threshold(), counting),))
    with pytest.raises(KeyboardInterrupt):
        convert(recipe=recipe, folder=tmp_path, progress=interrupted(1))
    assert len(counting.sites) == 1
    convert(recipe=recipe, folder=tmp_path)
    assert len(set(counting.sites)) == len(counting.sites) == NET.sites


def test_a_folder_inside_jit_is_refused(tmp_path):
    with pytest.raises(ValueError, match="folder= cannot be used inside jit"):
        jax.jit(lambda x: convert(x=x, folder=tmp_path))(NET.x)


@pytest.mark.slow
def test_fits_of_eight_devices_serve_one(tmp_path):
    x = jax.random.normal(jax.random.key(0), (16, *NET.x.shape[1:]))
    mesh = jax.make_mesh((8,), ("data",))
    found = convert(x=x, folder=tmp_path, mesh=mesh)
    assert_equal(convert(x=x, folder=tmp_path).neurons, found.neurons)


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"steps": 5}, "other steps"),
        ({"fn": snnjax.in_dtype(NET.fn, jnp.bfloat16)}, "other network"),
        ({"wait": 1}, "other wait"),
        ({"micro_batch": 2}, "other micro_batch"),
        ({"x": NET.x + 1}, "other images"),
        ({"params": jax.tree.map(lambda p: p + 1, NET.params)}, "other parameters"),
        ({"recipe": snnjax.light()}, "other recipe"),
        (
            {
                "recipe": snnjax.Recipe(
                    (
                        (
                            *snnjax.best().sweeps[0][:-1],
                            correct_potential(2),
                        ),
                    ),
                )
            },
            "other recipe",
        ),
    ],
)
def test_fits_of_another_conversion_are_refused(changes, named, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        convert(folder=tmp_path, progress=interrupted(1))
    with pytest.raises(ValueError, match=f"fits of another conversion: {named}"):
        convert(folder=tmp_path, **changes)


@pytest.mark.parametrize(
    "calibrators",
    [
        (threshold(1.0), threshold(7.0)),
        (by_default(1.0), by_default(7.0)),
        (Fixed(1.0), Fixed(7.0)),
        (Fixed(1.0).calibrator, Fixed(7.0).calibrator),
        (decorated(1.0), decorated(7.0)),
        (Options(1.0).calibrator, Options(7.0).calibrator),
        (held(Options(1.0)), held(Options(7.0))),
        (Slotted(1.0), Slotted(7.0)),
        (of_class(1.0), of_class(7.0)),
        (
            lambda view, fit: threshold(1.0)(view, fit),
            lambda view, fit: threshold(7.0)(view, fit),
        ),
        (
            lambda view, fit: threshold(jnp.max(view.activation))(view, fit),
            lambda view, fit: threshold(jnp.min(view.activation))(view, fit),
        ),
    ],
)
def test_a_calibrator_of_ones_own_is_known_by_its_options(calibrators, tmp_path):
    one, seven = (snnjax.Recipe(((calibrator,),)) for calibrator in calibrators)
    convert(recipe=one, folder=tmp_path)
    with pytest.raises(ValueError, match="another conversion: other recipe"):
        convert(recipe=seven, folder=tmp_path)


def scaled(factor):
    return lambda params, x: relu(factor * (x @ params["w"])) @ params["w"]


def closing_over(factor):
    kernel = factor * np.eye(4, dtype=np.float32)
    return lambda params, x: relu(x @ params["w"] @ kernel) @ params["w"]


def dilated(dilation):
    def fn(params, x):
        image = x[:, None, :, None]
        kernel = params["w"][:1, :3, None, None]
        axes = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(
            image, kernel, (1, 1), "SAME", None, (1, dilation), axes
        )
        return relu(y[:, 0, :, 0]) @ params["w"]

    return fn


@pytest.mark.parametrize("make", [scaled, closing_over, dilated])
def test_a_network_is_known_by_all_its_numbers(make, tmp_path):
    params, x = {"w": eighths(0, (4, 4))}, eighths(1, (8, 4))
    run = functools.partial(snnjax.convert, steps=4, folder=tmp_path)
    first = run(make(1), params, x)
    assert_equal(run(make(1), params, x), first)
    with pytest.raises(ValueError, match="another conversion: other network"):
        run(make(2), params, x)


def test_a_call_that_was_refused_claims_nothing(tmp_path):
    with pytest.raises(ValueError, match="NaN"):
        convert(x=NET.x.at[0].set(jnp.nan), folder=tmp_path)
    convert(folder=tmp_path)


def test_keys_among_the_parameters_do_not_stand_in_the_way(tmp_path):
    params = {"net": NET.params, "key": jax.random.key(0)}

    def fn(params, x):
        return NET.fn(params["net"], x)

    first = snnjax.convert(fn, params, NET.x, steps=4, folder=tmp_path)
    again = snnjax.convert(fn, params, NET.x, steps=4, folder=tmp_path)
    assert_equal(again.neurons, first.neurons)


def test_weights_in_bfloat16_come_back_as_they_were(tmp_path):
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), NET.params)
    options = {"params": params, "recipe": RECIPES["advanced"], "folder": tmp_path}
    first = convert(x=NET.x.astype(jnp.bfloat16), **options)
    again = convert(x=NET.x.astype(jnp.bfloat16), **options)
    assert_equal(again, first)
    assert {p.dtype for p in jax.tree.leaves(again.params)} == {jnp.dtype("bfloat16")}


def as_npz(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def test_damaged_files_are_told(tmp_path):
    first = convert(folder=tmp_path)
    fit, *_ = sorted(tmp_path.glob("*.npz"))
    whole = fit.read_bytes()
    one = io.BytesIO()
    np.save(one, np.ones(3))
    with np.load(fit) as found:
        arrays = dict(found)
    damaged = [
        b"",
        whole[:100],
        whole.replace(b"PK\x01\x02", b"PK\x01\x03"),
        one.getvalue(),
        as_npz(**arrays | {"threshold": np.ones(17)}),
        as_npz(**arrays | {"changed": np.array(["0"])}),
    ]
    for content in damaged:
        fit.write_bytes(content)
        with pytest.warns(UserWarning, match=f"{fit.name} cannot be read"):
            assert_equal(convert(folder=tmp_path), first)
    (tmp_path / "conversion.json").write_text("[1]")
    with pytest.raises(ValueError, match="conversion.json is damaged"):
        convert(folder=tmp_path)


@pytest.mark.parametrize("folder", ["", True, 3])
def test_no_folder_at_all_is_refused(folder):
    with pytest.raises(ValueError, match="allowed: the path of a folder, or None"):
        convert(folder=folder)


def test_the_same_recipe_made_anew_is_the_same(tmp_path):
    first = convert(folder=tmp_path)
    assert_equal(convert(folder=tmp_path, recipe=snnjax.best()), first)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("two years of work")
    with pytest.raises(ValueError, match="no folder of fits: it holds 'thesis.txt'"):
        convert(folder=tmp_path)


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        convert(folder=tmp_path / "file" / "fits")


WORK = """
import sys, jax, snnjax
from networks import NETWORKS
net = NETWORKS["projection"]
snnjax.convert(*net[:3], steps=4, recipe=snnjax.best(), folder=sys.argv[1])
"""


@pytest.mark.slow
def test_a_kill_at_any_moment_costs_the_site_that_was_fitted(tmp_path):
    fits, expected = tmp_path / "fits", convert()
    generator = np.random.default_rng(0)
    for _ in range(10):
        before = set(fits.glob("*.npz"))
        worker = subprocess.Popen(
            [sys.executable, "-c", WORK, str(fits)],
            cwd=Path(__file__).parent,
            # As here; other optimizations may round otherwise.
            env=os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "true"},
        )
        time.sleep(generator.uniform(2, 10))
        worker.kill()
        worker.wait()
        after = set(fits.glob("*.npz"))
        assert before <= after
        for file in after:
            with np.load(file) as found:  # never half of one
                numbers = [found[name] for name in found.files if name != "changed"]
                assert all(np.isfinite(array).all() for array in numbers)
    assert_equal(convert(folder=fits), expected)


def test_descriptions_are_of_values_and_not_of_addresses():
    def recipe(rate):
        return lambda view, fit: (rate, jnp.zeros(2))

    assert digest.digest(recipe(1.0)) == digest.digest(recipe(1.0))
    assert digest.digest(recipe(1.0)) != digest.digest(recipe(2.0))
    assert digest.digest(jnp.ones(3)) != digest.digest(jnp.ones((3, 1)))
    assert "0x" not in repr(digest._describe([object(), dspike]))


DIGESTS = """
import snnjax
from networks import NETWORKS
from snnjax.conversion.resume import digest
from snnjax.network.capture import capture
for net in NETWORKS.values():
    print(digest.digest(digest.outline(capture(*net[:3]))))
here = lambda view, fit: fit if view.site.name in {"a", "b", "c"} else None
for recipe in (snnjax.light(), snnjax.advanced(), snnjax.best(), here):
    print(digest.digest(recipe))
"""


def test_another_process_describes_the_same():
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", DIGESTS],
            cwd=Path(__file__).parent,
            env={**os.environ, "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    first, second = (worker.communicate()[0].splitlines() for worker in workers)
    assert len(first) == len(NETWORKS) + 4
    assert first == second


def test_a_description_ends():
    def calibrate(view, fit):
        return calibrate

    assert digest.digest(calibrate)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="folder is .*file, a file; give a folder"):
        convert(folder=tmp_path / "file")


def test_a_folder_in_the_place_of_a_fit_is_refused(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        convert(folder=tmp_path, progress=interrupted(1))
    (tmp_path / "sweep_0_site_001.npz").mkdir()
    with pytest.raises(ValueError, match="site_001.npz is a folder, where the fit"):
        convert(folder=tmp_path)


def test_what_a_kill_during_a_write_leaves_is_removed(tmp_path):
    (tmp_path / ".0123abcd_0123abcd.unfinished").write_text("half")
    convert(folder=tmp_path)
    assert not list(tmp_path.glob("*.unfinished"))
    assert not list(tmp_path.glob(".*.unfinished"))


def test_offsets_come_back_with_the_other_parameters(tmp_path):
    def fn(p, x):
        x = jax.nn.gelu(relu(x @ p["in"]) @ p["up"])
        return jax.nn.gelu(x @ p["down"]) @ p["out"]

    draw = np.random.default_rng(0).normal
    shapes = {"in": (6, 8), "up": (8, 12), "down": (12, 8), "out": (8, 3)}
    params = {name: jnp.asarray(draw(size=s) / 3, "f4") for name, s in shapes.items()}
    x = jnp.asarray(draw(size=(32, 6)), jnp.float32)
    options = {"fn": fn, "params": params, "x": x, "folder": tmp_path / "fits"}
    whole = convert(**options | {"folder": None})
    with pytest.raises(KeyboardInterrupt):
        convert(**options, progress=interrupted(2))
    for _ in range(2):  # the second time all fits are read
        again = convert(**options)
        assert again.neurons["down/encoder"].offset is not None
        assert_equal(again, whole)
