"""What print shows of an SNN, of measures and of a recipe."""

import dataclasses
from xml.etree import ElementTree

import jax
import jax.numpy as jnp
from networks import NETWORKS, halves

import snnjax
from snnjax import calibrators, neurons
from snnjax._text import Table


def line_of(text, start):
    (line,) = (line for line in text.splitlines() if line.startswith(start))
    return line.split()


def test_an_snn_is_a_table_of_its_neurons():
    net = NETWORKS["dense"]
    snn = halves(net)
    text = str(snn)
    sizes = sum(leaf.size for leaf in jax.tree.leaves(snn.params))
    assert text.splitlines()[0].startswith("SNN")
    assert f"{sizes} numbers in params" in text
    assert max(map(len, text.splitlines())) <= 120
    for name, params in snn.neurons.items():
        low, high = params.threshold.min(), params.threshold.max()
        shown = f"{low:.3g}" if low == high else f"{low:.3g}..{high:.3g}"
        assert line_of(text, f"{name} ")[1:3] == ["0:1", shown]


def test_while_tracing_an_snn_shows_its_types():
    net, texts = NETWORKS["dense"], []

    @jax.jit
    def traced(snn):
        texts.append(str(snn))
        return snn

    traced(halves(net))
    assert "float32 [" in texts[0] and ".." not in texts[0]


def test_parameters_of_a_model_within_a_model_have_columns_of_their_own():
    net = NETWORKS["dense"]
    neuron = neurons.synaptic(snnjax.lif(leak=0.75))
    snn = snnjax.init(net.fn, net.params, net.x, model=neuron)
    head, first = str(snn).splitlines()[1:3]
    assert "synaptic leak" in head and "threshold" in head
    assert "0.75" in first


def test_measures_are_a_table_of_the_sites():
    net = NETWORKS["dense"]
    snn = snnjax.convert(net.fn, net.params, net.x, steps=4)
    measures = snnjax.measure(net.fn, net.params, snn, net.x)
    text = str(measures)
    for name, site in measures.sites.items():
        assert line_of(text, f"{name} ")[1] == f"{100 * site.firing_rate:.3g}"
        assert line_of(text, f"{name} ")[5] == f"{site.error:.3g}"
    assert f"MACs of the ANN {float(measures.macs):.4g}" in text


def test_a_recipe_is_a_list_of_its_calibrators():
    def mine(view, fit):
        return fit

    chain = calibrators.percentile_threshold(99.5), calibrators.half_charge(), mine
    assert str(snnjax.Recipe((chain,))).splitlines() == [
        "sweep 1 of 1, at every site:",
        "  percentile_threshold(99.5)",
        "  half_charge()",
        "  mine",
    ]
    assert "streaming_only(postpone_charge())" in str(snnjax.best())


def shown_values():
    net = NETWORKS["dense"]
    snn = snnjax.init(net.fn, net.params, net.x)
    measures = snnjax.measure(net.fn, net.params, snn, net.x, steps=2)
    return snn, measures, snnjax.sites(net.fn, net.params, net.x), snnjax.light()


def test_consoles_show_the_same_text():
    class Printer:
        def text(self, text):
            self.shown = text

    for value in shown_values():
        printer = Printer()
        value._repr_pretty_(printer, cycle=False)
        assert printer.shown == str(value)


def test_notebooks_show_the_same_cells_as_a_table():
    for value in shown_values()[:3]:
        page = ElementTree.fromstring(f"<div>{value._repr_html_()}</div>")
        lines = str(value).splitlines()
        for row in page.iter("tr"):
            cells = "  ".join(cell.text or "" for cell in row)
            assert cells.split() in [line.split() for line in lines]
        assert len(list(page.iter("tr"))) + len(page.findall("div")) == len(lines)


def test_what_notebooks_show_is_escaped():
    table = Table([("a<b", "&")], above="<x>")
    assert table._repr_html_() == (
        "<div>&lt;x&gt;</div><table><tr><th>a&lt;b</th><th>&amp;</th></tr></table>"
    )


def test_models_within_models_hide_no_parameter():
    net = NETWORKS["dense"]
    outer = neurons.synaptic(neurons.synaptic(snnjax.lif(), synaptic_leak=0.25))
    head, first = str(snnjax.init(net.fn, net.params, net.x, model=outer)).splitlines()[
        1:3
    ]
    assert head.count("synaptic leak") == 2 and {"0.25", "0.5"} <= set(first.split())


def test_shapes_of_measures_are_shown_without_numbers():
    net = NETWORKS["dense"]
    snn = snnjax.init(net.fn, net.params, net.x)
    shapes = jax.eval_shape(
        lambda x: snnjax.measure(net.fn, net.params, snn, x, steps=2), net.x
    )
    assert "float32 []" in str(shapes)


def test_a_calibrator_need_not_have_a_name():
    class Mine:
        def __call__(self, view, fit):
            return fit

        def __repr__(self):
            return "Mine()"

    assert "  Mine()" in str(snnjax.Recipe(((Mine(),),)))


def test_an_empty_array_and_keys_have_no_range():
    from snnjax._text import numbers

    assert numbers(jnp.zeros((0, 3))) == "none [0x3]"
    assert numbers(jax.random.key(0)) == "key<fry> []"


def test_labels_of_parameters_are_shown():
    net = NETWORKS["dense"]
    labels = snnjax.training.param_labels(snnjax.init(net.fn, net.params, net.x))
    assert "threshold" in line_of(str(labels), next(iter(labels.neurons)) + " ")


def test_neurons_under_new_names_are_shown():
    net = NETWORKS["dense"]
    first, *_ = snnjax.sites(net.fn, net.params, net.x)
    models = {first.name: snnjax.lif(leak=0.9), "*": snnjax.lif()}
    snn = snnjax.init(net.fn, net.params, net.x, model=models)
    renamed = {f"new/{name}": params for name, params in snn.neurons.items()}
    text = str(dataclasses.replace(snn, neurons=renamed))
    assert line_of(text, f"new/{first.name} ")[1] == "-"
