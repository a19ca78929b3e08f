"""The report says what the results say, in a page that a browser can show alone."""

import dataclasses
import re
from xml.etree import ElementTree

import jax.numpy as jnp
import numpy as np
import pytest
from networks import NETWORKS

import snnjax
from experiments.report import Result, choice, figures, page
from experiments.report.figures import PARTS
from experiments.running import Convert
from snnjax.measures import Measures, SiteMeasures
from snnjax.network import connections

NET = NETWORKS["zero padding"]
SITES = snnjax.sites(NET.fn, NET.params, NET.x)
PICTURES = {name: name.encode() for name in page.FIGURES}


def results(seeds=2):
    """Results such as a conversion gives, with numbers drawn at random."""
    uniform = np.random.default_rng(0).uniform
    rows = []
    for recipe, wait, steps in (
        *(("light", 0, steps) for steps in (2, 4)),
        *(("a<b", wait, steps) for wait in (0, 1) for steps in (2, 4)),
        ("a<b", 4, 4),
    ):
        of_sites = {
            site.name: SiteMeasures(*uniform(0.01, 1, len(SiteMeasures._fields)))
            for site in SITES
            if site.fires
        }
        operations = uniform(1e3, 1e6)
        counts = operations, 3 * operations, 2e3, 0, 5e5, 9, 99, steps, wait, steps, 2
        measures = Measures(of_sites, 0.1, *counts)
        latency = snnjax.latency(SITES, steps=steps, wait=wait)
        curves = uniform(0, 1, (seeds, steps)).tolist()
        costs = latency, uniform(0, 1), operations, uniform(0, 9), measures
        rows.append(Result(recipe, wait, steps, curves, *costs, [7, 9][:seeds]))
    return rows


def page_of(rows, *, dataset="<b>", model="a & b", **more):
    facts = {
        "config": dataclasses.asdict(Convert(dataset=dataset, seeds=(3,))),
        "command": "python -m experiments.convert --seeds 3",
        "versions": {"snnjax": "1.2", "jax": "3.4"},
        "device": "cpu <0>",
        "source": {"model": model, "dataset": dataset, "mean": [0.5], "clip": None},
        "ann_accuracy": 0.987,
        "test_images": 123,
        "measured_images": 100,
        "evaluated_on": "test images",
        "chosen_on": "other images",
    }
    sources = connections(NET.fn, NET.params, NET.x)
    return page.page(rows, facts | more, SITES, sources, PICTURES)


def tables(text):
    """The tables of a page, as lists of rows of cells."""
    return [
        [["".join(cell.itertext()) for cell in row] for row in table.iter("tr")]
        for table in ElementTree.fromstring(text).iter("table")
    ]


@pytest.fixture(scope="module")
def made():
    rows = results()
    text = page_of(rows)
    return rows, text, tables(text)


def test_the_first_sentences_say_what_was_reached(made):
    best, lead = choice(made[0]), re.search('class="lead">(.*?)</p>', made[1])[1]
    assert (
        "<code>a &amp; b</code> classifies 98.7 % of 123 test images of &lt;b" in lead
    )
    deviation = 100 * np.std([curve[-1] for curve in best.accuracies], ddof=1)
    assert f"{100 * best.final:.1f} ± {deviation:.1f} % after {best.latency} st" in lead


def test_the_tables_have_the_numbers_of_the_results(made):
    rows, _, (accuracies, costs, sites, *_) = made
    assert accuracies[0] == ["recipe", "wait", "T = 2", "T = 4"]
    assert [line[:2] for line in accuracies[1:]] == [
        *(["light", "0"], ["a<b", "0"], ["a<b", "1"], ["a<b", "T"], ["ANN", ""])
    ]
    assert accuracies[-2][2] == "" and accuracies[-1][2:] == ["98.7", "98.7"]
    for result, line in zip(rows, costs[1:], strict=True):
        final = [100 * curve[-1] for curve in result.accuracies]
        percent = f"{np.mean(final):.1f} ± {np.std(final, ddof=1):.1f}"
        assert any(percent in cells for cells in accuracies)
        wait = "T" if result.wait == 4 else str(result.wait)
        operations = result.synaptic_operations / 1e6
        assert line == [
            *(result.recipe, wait, str(result.steps), str(result.latency), percent),
            f"{result.measures.bits:.3g}",
            f"{result.spikes:.2f}",
            f"{operations:.2f} ({3 * operations:.2f})",
            *(f"{100 * s / ann:.0f}" for s, ann in snnjax.energy(result.measures)),
            f"{result.seconds:.1f}",
        ]


def test_the_table_of_sites_has_what_feeds_a_site_and_the_measures_of_the_choice(made):
    rows, _, (_, _, (head, *lines), *_) = made
    assert head[:5] == ["site", "kind", "shape", "depth", "fed by"]
    measures = choice(rows).measures.sites
    assert [line[0] for line in lines] == [site.name for site in SITES]
    fed_by = {line[0]: line[4] for line in lines}
    assert fed_by["w3/relu"] == "w1/relu, w2/relu"  # a residual connection
    for line, site in zip(lines, measures.values(), strict=True):
        shares = [site.firing_rate, site.silent, site.saturated]
        parts = ("error", *PARTS)
        shares += [getattr(site, part) / site.activation for part in parts]
        assert line[5:] == [f"{100 * share:.1f}" for share in shares]


def test_a_site_that_the_ann_never_uses_has_no_relative_error():
    (row,) = results()[:1]
    sites = dict(row.measures.sites)
    sites["w1/relu"] = sites["w1/relu"]._replace(activation=np.float32(0))
    row = row._replace(measures=row.measures._replace(sites=sites))
    text = page_of([row])
    assert tables(text)[2][1][8:] == ["–"] * 5 and ">nan" not in text


def test_of_one_draw_there_is_no_deviation():
    assert "±" not in page_of(results(seeds=1))


def test_a_fine_tuning_says_so_and_has_its_accuracies(made):
    curve = [0.25, 0.5, 0.625]
    text = page_of(made[0], accuracy_after_epochs=curve, chosen_on=None)
    for fact in ("Fine-tuning", "after each epoch: 25.0, 50.0, 62.5 %"):
        assert fact in text and fact not in made[1]
    assert "The chosen SNN answers best on other images." in made[1]


def test_the_page_has_its_figures_in_it_and_loads_nothing(made):
    elements = list(ElementTree.fromstring(made[1]).iter())
    images = [element.attrib for element in elements if element.tag == "img"]
    assert len(images) == 3 and all(image["alt"] for image in images)
    assert page.FIGURES.keys() == {"accuracy.png", "layers.png", "raster.png"}
    for element in elements:
        assert element.get("src", "data:").startswith("data:")
        assert element.tag == "a" or element.get("href", "data:,") == "data:,"
        assert element.tag not in ("script", "iframe", "object")
    assert "url(" not in made[1] and "@import" not in made[1]


def test_all_text_is_escaped():
    name = "<b>'\"&</script><script>alert(1)</script>"
    text = page_of(results(), dataset=name, model=name)
    assert "<script>" not in text
    assert f"{name} on {name}" in "".join(ElementTree.fromstring(text).itertext())


def test_figures_have_the_accuracies_of_the_results():
    rows = results()
    early = figures.read_early(rows, 0.9)
    assert list(early.series) == [
        *("light", "a<b", "a<b, wait 1 (t = 1 at step 4)"),
        f"a<b, wait T (t = 1 at step {rows[-1].latency - 3})",
    ]
    for (x, y), row in zip(early.series.values(), rows[1::2], strict=False):
        assert list(x) == [1, 2, 3, 4]
        np.testing.assert_allclose(y, 100 * np.mean(row.accuracies, axis=0))
    epochs = figures.after_epochs({"a": [0.25, 0.5]}, 0.9)
    assert [list(values) for values in epochs.series["a"]] == [[0, 1], [25.0, 50.0]]


def test_figures_are_the_same_every_time(tmp_path):
    rows = results()
    draw = np.random.default_rng(1)
    trains = {
        site.name: draw.integers(-1, 2, (choice(rows).steps, *site.shape))
        for site in SITES
        if site.fires
    }
    for _ in range(2):
        before = [file.read_bytes() for file in sorted(tmp_path.iterdir())]
        figures.write_figures(tmp_path, rows, 0.987, SITES, trains, [0.25, 0.5])
    assert before == [file.read_bytes() for file in sorted(tmp_path.iterdir())]
    assert {file.name for file in tmp_path.iterdir()} == page.FIGURES.keys()


def currents(net, outputs, x):
    """Current of every site (and the result), where sites send fixed outputs."""
    seen = {}

    def rule(site, current, *operands):
        seen[site.name] = np.asarray(current)
        return outputs[site.name]

    result = snnjax.network.with_activation(net.fn, rule)(net.params, x)
    return seen | {"output": np.ravel(result)}


@pytest.mark.parametrize("name", ["batch norm", "projection", "input skip"])
def test_a_site_feeds_those_that_change_with_its_output_alone(name):
    net = NETWORKS[name]
    uniform = np.random.default_rng(0).uniform
    outputs = {
        site.name: jnp.asarray(uniform(0, 1, (len(net.x), *site.shape)), site.dtype)
        for site in snnjax.sites(net.fn, net.params, net.x)
    }
    before = currents(net, outputs, net.x)
    pairs = set()
    for source in ("input", *outputs):
        others = outputs
        if source != "input":
            others = outputs | {source: outputs[source] + 0.3}
        after = currents(net, others, net.x + 0.3 * (source == "input"))
        for target, current in after.items():
            if not np.allclose(before[target], current, atol=1e-5):
                pairs.add((source, target))
    feeding = connections(net.fn, net.params, net.x)
    assert pairs == {(s, target) for target, names in feeding.items() for s in names}
