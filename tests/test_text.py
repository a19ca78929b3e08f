"""What print shows of an SNN, of measures and of a recipe."""

import copy
import dataclasses
import importlib
import inspect
import re
from types import SimpleNamespace
from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from networks import NETWORKS, halves

import snnjax
from snnjax import calibrators, neurons
from snnjax._text import Table, numbers
from snnjax.training.identity import digest

NET = NETWORKS["dense"]


def line_of(text, start):
    (line,) = (line for line in text.splitlines() if line.startswith(start))
    return line.split()


@pytest.fixture(scope="module")
def shown():
    """An SNN, its measures, the sites of its network."""
    snn = snnjax.init(NET.fn, NET.params, NET.x)
    measures = snnjax.measure(NET.fn, snn, NET.x, params=NET.params, steps=2)
    sites = snnjax.sites(NET.fn, NET.params, NET.x)
    return SimpleNamespace(snn=snn, measures=measures, sites=sites)


def test_an_snn_is_a_table_of_its_neurons():
    snn = halves(NET)
    text = str(snn)
    sizes = sum(leaf.size for leaf in jax.tree.leaves(snn.params))
    assert text.splitlines()[0].startswith("SNN")
    assert f"{sizes} numbers in params" in text
    assert max(map(len, text.splitlines())) <= 120
    for name, params in snn.neurons.items():
        thresholds = np.asarray(params.threshold)
        low = thresholds.min()
        high = thresholds.max()
        cell = f"{low:.3g}" if low == high else f"{low:.3g}..{high:.3g}"
        assert line_of(text, f"{name} ")[1:3] == ["0:1", cell]


def test_what_has_no_numbers_is_shown_by_its_types(shown):
    texts = []
    jax.eval_shape(lambda snn: texts.append(str(snn)), shown.snn)
    assert "float32 [" in texts[0] and ".." not in texts[0]
    shapes = jax.eval_shape(lambda: shown.measures)
    assert "float32 []" in str(shapes)
    assert numbers(jnp.zeros((0, 3))) == "none [0x3]"
    assert numbers(jax.random.key(0)) == "key<fry> []"
    labels = snnjax.training.param_labels(shown.snn)
    assert "threshold" in line_of(str(labels), next(iter(labels.neurons)) + " ")


def test_parameters_of_a_model_within_a_model_have_columns_of_their_own():
    inner = neurons.Synaptic(snnjax.lif(leak=0.75))
    outer = neurons.Synaptic(inner, synaptic_leak=0.25)
    for neuron, columns, leaks in (
        (inner, 1, {"0.75", "0.5"}),
        (outer, 2, {"0.75", "0.5", "0.25"}),
    ):
        snn = snnjax.init(NET.fn, NET.params, NET.x, model=neuron)
        head, first = str(snn).splitlines()[1:3]
        assert head.count("synaptic leak") == columns and "threshold" in head
        assert leaks <= set(first.split())


def test_measures_are_a_table_of_the_sites(shown):
    text = str(shown.measures)
    for name, site in shown.measures.sites.items():
        cells = line_of(text, f"{name} ")
        assert cells[1] == f"{100 * site.firing_rate:.3g}"
        assert cells[5] == f"{site.error:.3g}"
    assert f"the ANN has {float(shown.measures.macs):.4g} multiply-adds." in text
    assert f"send {float(shown.measures.spikes):.3g} spikes each, in T = " in text


def test_a_recipe_is_a_list_of_its_calibrators():
    def mine(view, fit):
        return fit

    class Yours:  # has no name
        def __call__(self, view, fit):
            return fit

        def __repr__(self):
            return "Yours()"

    chain = calibrators.percentile_threshold(99.5), mine, Yours()
    assert str(snnjax.Recipe(chain)).splitlines() == [
        "sweep 1 of 1, at every site:",
        "  percentile_threshold(99.5)",
        "  mine",
        "  Yours()",
    ]
    assert "streaming_only(postpone_charge())" in str(snnjax.best())
    rate_lines, other_lines = str(snnjax.best()).split("with other codes:\n")
    sweep = "  sweep 1 of 1, at every site:\n    by_effect("
    assert rate_lines.startswith(f"with rate coding:\n{sweep}")
    assert other_lines.startswith(sweep)


def test_a_repr_is_a_line_without_addresses(shown):
    sweep = importlib.import_module("snnjax.sweep").Sweep(0.9, ())
    arctan = snnjax.surrogate.arctan
    layers = snnjax.deploy.layers(NET.fn, shown.snn, NET.x)
    lines = {
        repr(shown.sites): "Sites(2 sites: w1/relu, w2/relu)",
        repr(shown.measures): "Measures(steps=2, wait=0, firing_rate=",
        repr(shown.measures.sites): "{'w1/relu': SiteMeasures(firing_rate=",
        repr(sweep): "Sweep(ann=0.9, ",
        repr(snnjax.light()): "Recipe([least_squares_threshold('layer'), shift_bias()",
        repr(snnjax.best()): "Priced(price=None, ",
        repr(snnjax.spiking(NET.fn)): "spiking(dense)",
        repr(snnjax.spiking(NET.fn, steps=2, surrogate=arctan, state=True)): (
            "spiking(dense, steps=2, surrogate=arctan, state=True)"
        ),
        repr(
            jax.jit(snnjax.spiking(NET.fn, wait=1))
        ): "<PjitFunction of spiking(dense, wa",
        repr(snnjax.training.descent(jnp.mean, optax.sgd(0.1))): (
            "(descent(mean).init, descent(mean).step)"
        ),
        repr(snnjax.deploy.as_function(layers)[0]): "as_function(Layers(78 weights, ",
    }
    for line, start in lines.items():
        assert line.startswith(start), line
        assert "0x" not in line and "Array(" not in line and "\n" not in line


def test_calibrators_and_what_they_see_have_a_repr_of_one_line(shown):
    seen = []

    def look(view, fit):
        seen.append(view)
        return fit

    threshold = calibrators.percentile_threshold(99.5, per="channel")
    recipe = snnjax.Recipe([threshold, look])
    snnjax.convert(NET.fn, NET.params, NET.x, steps=2, recipe=recipe)
    lines = {
        threshold: "percentile_threshold(99.5, per='channel')",
        calibrators.percentile(99): "percentile(99)",
        calibrators.by_effect(calibrators.half_charge()): "by_effect(half_charge())",
        seen[0]: f"View('w1/relu', steps=2, wait=0, code=rate(), {len(NET.x)} images)",
    }
    for value, line in lines.items():
        assert repr(value) == line
    joules = snnjax.energy(shown.measures)
    assert re.match(r"Energy\(operations=Joules\(spiking=[0-9.e-]+, ann=", repr(joules))


def test_a_calibrator_is_as_good_as_a_function():
    threshold = calibrators.max_threshold("channel")
    recipe = snnjax.Recipe([threshold, calibrators.half_charge()])
    assert copy.deepcopy(recipe) == recipe == copy.copy(recipe)
    assert threshold.__name__ == "max_threshold('channel')"
    assert list(inspect.signature(threshold).parameters) == ["view", "fit"]
    again = calibrators.max_threshold("channel")
    per_layer = calibrators.max_threshold("layer")
    assert digest(threshold) == digest(again) != digest(per_layer)


def test_help_names_types_and_does_not_expand_them():
    public = []
    for room in (snnjax, *vars(snnjax).values(), snnjax.deploy):
        if inspect.ismodule(room):
            public += [getattr(room, name) for name in getattr(room, "__all__", ())]
    with_help = [v for v in public if inspect.isfunction(v) or inspect.isclass(v)]
    assert len(with_help) > 140
    for value in with_help:
        for parameter in inspect.signature(value).parameters.values():
            text = inspect.formatannotation(parameter.annotation)
            assert len(text) < 110 and "~" not in text, (value, text)
            # Named tuples wrap each annotation that is a string.
            assert inspect.isclass(value) or "ForwardRef" not in text, (value, text)
    assert "params: 'chex.ArrayTree'" in str(inspect.signature(snnjax.convert))
    assert "leak: 'Numbers' = 0.5" in str(inspect.signature(snnjax.lif))


def test_a_file_is_a_table_of_its_card_and_its_neurons(shown):
    card = {"steps": 4, "recipe": None, "model": {"class": "M"}, "extras": {}}
    card["program"] = {"steps": 4, "wait": None, "inputs": "constant"}
    stored = snnjax.storage.Stored(shown.snn, card, lambda x: x)
    assert str(stored).splitlines()[:3] == [
        "card",
        "steps    4",
        "program  steps 4, inputs constant",
    ]
    assert str(stored).endswith(str(shown.snn))
    assert "steps, recipe, model, extras, program" in repr(stored)
    assert "<function" not in repr(stored)


def test_consoles_and_notebooks_show_the_same_text(shown):
    tables = list(vars(shown).values())
    for value in (*tables, snnjax.light()):
        texts = []
        printer = SimpleNamespace(text=texts.append)
        value._repr_pretty_(printer, cycle=False)
        assert texts == [str(value)]
    for value in tables:
        page = ElementTree.fromstring(f"<div>{value._repr_html_()}</div>")
        lines = [line.split() for line in str(value).splitlines()]
        rows = list(page.iter("tr"))
        for row in rows:
            assert "  ".join(cell.text or "" for cell in row).split() in lines
        assert len(rows) + len(page.findall("div")) == len(lines)


def test_what_notebooks_show_is_escaped():
    table = Table([("a<b", "&")], above="<x>")
    assert table._repr_html_() == (
        "<div>&lt;x&gt;</div><table><tr><th>a&lt;b</th><th>&amp;</th></tr></table>"
    )


def test_neurons_under_new_names_are_shown(shown):
    first, *_ = shown.sites
    models = {first.name: snnjax.lif(leak=0.9), "*": snnjax.lif()}
    snn = snnjax.init(NET.fn, NET.params, NET.x, model=models)
    renamed = {f"new/{name}": params for name, params in snn.neurons.items()}
    text = str(dataclasses.replace(snn, neurons=renamed))
    assert line_of(text, f"new/{first.name} ")[1] == "-"
