"""The report says what the results say, in a page that a browser can show alone."""

import dataclasses
import json
import re
import shutil
import statistics
import subprocess
from html.parser import HTMLParser

import jax.numpy as jnp
import numpy as np
import pytest
from networks import NETWORKS

import snnjax
from experiments.report import Result, choice, page, site_graph
from experiments.report.figures import PARTS, short_names
from experiments.report.rasters import raster
from experiments.report.results import waits
from experiments.report.site_graph import draw
from experiments.running import Convert
from snnjax.measures import Measures, SiteMeasures

NET = NETWORKS["zero padding"]
FIELDS = ("error", *PARTS)
VOID = {"meta", "link", "wbr", "br", "hr", "img", "input"}


def results_of(sites, seeds=2):
    """Results such as a conversion gives, with numbers drawn at random."""
    draw_one = np.random.default_rng(0).uniform

    def site():
        numbers = draw_one(0.01, 1, len(SiteMeasures._fields))
        return SiteMeasures(*numbers.astype(np.float32))

    found = []
    for recipe, names in (("light", ("0",)), ("a<b", ("0", "1", "T"))):
        for name in names:
            for steps in (2, 4):
                wait = steps if name == "T" else int(name)
                seen = {s.name: site() for s in sites if s.fires}
                operations, macs = draw_one(1e3, 1e6), 5e5
                counts = (
                    operations,
                    operations,
                    2e3,
                    0,
                    macs,
                    99,
                    9,
                    steps,
                    wait,
                    steps,
                    1,
                )
                measures = Measures(seen, {}, 0.1, *counts)
                counted = draw_one(0, 123, (seeds, steps)).round()
                latency = snnjax.latency(sites, steps=steps, wait=wait)
                costs = (latency, draw_one(0, 1), operations, draw_one(0, 9), measures)
                curves = (counted / 123).tolist()
                hits = [round(x) for x in counted[:, -1]]
                found.append(Result(recipe, wait, steps, curves, *costs, hits))
    return found


def page_of(
    net,
    *,
    seeds=2,
    dataset="<b>",
    model="a & b",
    change=lambda results: None,
    more=None,
):
    sites = snnjax.sites(net.fn, net.params, net.x)
    results = results_of(sites, seeds)
    change(results)
    best = choice(results)
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
        **(more or {}),
    }
    trains = {
        s.name: np.random.default_rng(1).random((best.steps, *s.shape)) < 0.3
        for s in sites
        if s.fires
    }
    graph = site_graph(net.fn, net.params, net.x)
    return results, page.page(results, facts, graph, trains)


class Reader(HTMLParser):
    """Elements, tables and text of a page; unbalanced elements are an error."""

    def __init__(self, page):
        super().__init__()
        self.open, self.elements, self.tables, self.text = [], [], [], ""
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.text += data
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data


@pytest.fixture(scope="module")
def made():
    results, page = page_of(NET)
    return results, page, Reader(page)


def test_of_a_fine_tuning_it_says_so_and_has_the_curve():
    more = {"accuracy_after_epochs": [0.25, 0.5, 0.625], "chosen_on": None}
    _, converted = page_of(NET)
    _, trained = page_of(NET, more=more)
    for fact in (
        "fine-tuning report",
        "Against epochs",
        "25.0 to 62.5 %",
        "Distilling",
        "experiments.finetune --report",
    ):
        assert fact in trained and fact not in converted
    for fact in ("Each entry is a conversion", "experiments.convert --report"):
        assert fact in converted and fact not in trained


# --------------------------------------------------------------------------- graph


def currents(net, outputs, x):
    """Current of every site (and the result), where sites send fixed outputs."""
    seen = {}

    def rule(site, current, *operands):
        seen[site.name] = np.asarray(current)
        return outputs[site.name]

    result = snnjax.capture.with_activation(net.fn, rule)(net.params, x)
    leaves = result.values() if isinstance(result, dict) else [result]
    flat = [v for leaf in leaves for v in (leaf if isinstance(leaf, tuple) else [leaf])]
    seen["output"] = np.concatenate([np.ravel(v) for v in flat])
    return seen


@pytest.mark.parametrize("name", list(NETWORKS))
def test_a_site_feeds_those_that_change_with_its_output_alone(name):
    net = NETWORKS[name]
    sites = snnjax.sites(net.fn, net.params, net.x)
    draw_one = np.random.default_rng(0).uniform
    outputs = {
        s.name: jnp.asarray(draw_one(0, 1, (len(net.x), *s.shape)), s.dtype)
        for s in sites
    }
    before, fed = currents(net, outputs, net.x), set()
    for source in ("input", *outputs):
        x = net.x + 0.3 if source == "input" else net.x
        one = outputs.get(source)
        changed = outputs if one is None else outputs | {source: one + 0.3}
        after = currents(net, changed, x)
        moved = {v for v in after if not np.allclose(before[v], after[v], atol=1e-5)}
        fed |= {(source, target) for target in moved}
    graph = site_graph(net.fn, net.params, net.x)
    assert {(edge.source, edge.target) for edge in graph.edges} == fed


@pytest.mark.parametrize(
    "name, skips",
    [
        ("dense", set()),
        ("batch norm", set()),
        ("projection", {("w1/relu", "shortcut/relu")}),
        ("zero padding", {("w1/relu", "w3/relu")}),
        ("input skip", {("input", "w2/relu"), ("input", "output")}),
    ],
)
def test_residual_connections_are_skips(name, skips):
    net = NETWORKS[name]
    graph = site_graph(net.fn, net.params, net.x)
    assert {(e.source, e.target) for e in graph.edges if e.skip} == skips


@pytest.mark.parametrize("name", list(NETWORKS))
def test_nodes_are_arranged_by_depth_and_every_edge_is_drawn(name):
    net = NETWORKS[name]
    sites = snnjax.sites(net.fn, net.params, net.x)
    graph = site_graph(net.fn, net.params, net.x)
    rank = {node.name: node.rank for node in graph.nodes}
    assert all(rank[e.source] < rank[e.target] for e in graph.edges)
    assert sorted(rank.values()) == list(rank.values())
    depths = {node.name: node.depth for node in graph.nodes}
    assert {s.name: depths[s.name] for s in sites} == {s.name: s.depth for s in sites}
    assert sum(node.neurons > 0 for node in graph.nodes) == net.sites
    drawn = draw(graph, {name: name for name in rank})
    assert drawn.count('class="edge') == len(graph.edges)
    assert drawn.count('class="node') == len(graph.nodes)


# ---------------------------------------------------------------------------- page


def test_the_first_sentence_says_what_was_reached(made):
    results, _, reader = made
    best = choice(results)
    spread = statistics.stdev(100 * reached[-1] for reached in best.accuracies)
    assert "a & b on <b>" in reader.text
    assert "98.7 % of 123 test images of <b>" in reader.text
    assert f"{100 * best.final:.1f} ± {spread:.1f} %" in reader.text


def test_the_table_of_accuracies_equals_the_results(made):
    results, _, reader = made
    head, *rows, ann = reader.tables[0]
    assert head == ["recipe", "wait", "T = 2", "T = 4"]
    assert [row[:2] for row in rows] == [
        ["light", "0"],
        ["a<b", "0"],
        ["a<b", "1"],
        ["a<b", "T"],
    ]
    shown = {(*row[:2], t): row[2 + i] for row in rows for i, t in enumerate((2, 4))}
    for result in results:
        final = [100 * reached[-1] for reached in result.accuracies]
        expected = f"{statistics.mean(final):.1f} ± {statistics.stdev(final):.1f}"
        assert shown[result.recipe, waits(result), result.steps] == expected
    assert ann == ["ANN", "", "98.7", "98.7"]


def test_the_table_of_costs_equals_the_results(made):
    results, _, reader = made
    head, *rows, ann = reader.tables[1]
    units = dict(zip(head, range(len(head)), strict=True))
    joules = next(title for title in head if title.startswith("energy"))
    scale = {"pJ": 1e-12, "nJ": 1e-9, "µJ": 1e-6}[joules.split()[1]]
    thousand = {"SynOps thousand": 1e3}[head[units["firing rate %"] + 1]]
    assert len(rows) == len(results)
    for row, result in zip(rows, results, strict=True):
        spiking, multiplying = snnjax.energy(result.measures).operations
        whole = result.wait, result.steps, result.latency, result.measures.bits
        assert row[:5] == [result.recipe, *map(str, whole)]
        numbers = [float(text.split()[0]) for text in row[5:]]
        assert numbers == pytest.approx(
            [
                100 * result.final,
                98.7 - 100 * result.final,
                100 * result.firing_rate,
                result.synaptic_operations / thousand,
                spiking / scale,
                100 * spiking / multiplying,
                result.seconds,
            ],
            abs=0.051,
        )
    assert float(ann[units[joules]]) == pytest.approx(multiplying / scale, abs=0.051)


def test_the_table_of_energies_equals_the_results(made):
    results, _, reader = made
    head, *rows = reader.tables[2]
    assert head[3:] == ["operations", "memory", "quantized"]
    for row, result in zip(rows, results, strict=True):
        found = snnjax.energy(result.measures)
        expected = [100 * float(e.spiking / e.ann) for e in found]
        assert row[:3] == [result.recipe, str(result.wait), str(result.steps)]
        assert [float(text) for text in row[3:]] == pytest.approx(expected, abs=0.051)


def test_the_tables_of_sites_equal_the_measures(made):
    results, _, reader = made
    best = choice(results)

    def expected(result):
        for name, seen in result.measures.sites.items():
            shares = [seen.firing_rate, seen.silent, seen.saturated]
            shares += [getattr(seen, field) / seen.activation for field in FIELDS]
            yield [name, *[f"{100 * float(share):.1f}" for share in shares]]

    assert reader.tables[3][1:] == list(expected(best))
    rows = [
        [row[0], result.recipe, str(result.wait), str(result.steps), *row[1:]]
        for result in results
        for row in expected(result)
    ]
    assert reader.tables[4][1:] == rows


def test_a_site_that_the_ann_never_uses_has_no_relative_error():
    def silence(results):
        for i, result in enumerate(results):
            sites = dict(result.measures.sites)
            name = next(iter(sites))
            sites[name] = sites[name]._replace(activation=np.float32(0))
            results[i] = result._replace(measures=result.measures._replace(sites=sites))

    _, page = page_of(NET, change=silence)
    assert Reader(page).tables[3][1][4:] == ["–"] * len(FIELDS)
    assert ">nan" not in page and '"nan' not in page and "nan %" not in page


def test_all_of_the_best_are_bold():
    def draw_level(results):
        for i, result in enumerate(results):
            if result.steps == 2:  # equal sums, whatever their rounding
                curves = [[0.1, 40 / 123 + 1e-9 * i], [0.1, 60 / 123]]
                results[i] = result._replace(accuracies=curves)

    _, text = page_of(NET, change=draw_level)
    table = re.search(r"<table.*?</table>", text, re.S)[0]
    columns = [
        re.findall(r"<td>.*?</td>", line)[1] for line in table.split("<tr>")[2:-1]
    ]
    assert len(columns) == 4 and all("<b>" in cell for cell in columns)


def test_figures_take_the_colours_of_the_page_and_are_the_same_every_time(made):
    charts = re.findall(r'<svg class="chart".*?</svg>', made[1], re.S)
    assert len(charts) >= 5
    for chart in charts:
        assert not re.search(r"#[0-9a-f]{6}\b", chart)
        assert "<style" not in chart and "<text" in chart
    assert page_of(NET)[1] == made[1]


def test_one_seed_has_no_deviation():
    _, page = page_of(NET, seeds=1)
    assert "±" not in page


def test_the_page_loads_nothing(made):
    _, page, reader = made
    for tag, attributes in reader.elements:
        assert "src" not in attributes and "srcset" not in attributes, tag
        for name in ("href", "xlink:href", "data", "action", "poster"):
            where = attributes.get(name, "#")
            outside = tag == "a" and where.startswith("https://")
            assert outside or where.startswith("#") or where == "data:,", (tag, where)
    style = re.search(r"<style>(.*?)</style>", page, re.S)[1]
    assert "url(" not in style and "@import" not in style
    assert len(page) < 1e6


def test_all_text_is_escaped():
    name = "<b>'\"&</script><script>alert(1)</script>"
    _, page = page_of(NET, dataset=name, model=name)
    assert "<b>'" not in page and "alert(1)</script>" not in page
    assert [tag for tag, _ in Reader(page).elements].count("script") == 1
    assert f"{name} on {name}" in Reader(page).text


def test_names_for_those_who_do_not_see(made):
    _, _, reader = made
    identities = [a["id"] for _, a in reader.elements if "id" in a]
    assert len(identities) == len(set(identities))
    for tag, attributes in reader.elements:
        if tag == "svg":
            assert attributes.get("aria-label") or attributes.get("aria-hidden")
        if "aria-labelledby" in attributes:
            assert attributes["aria-labelledby"] in identities
        if attributes.get("href", "").startswith("#"):
            assert attributes["href"][1:] in identities
    tags = [tag for tag, _ in reader.elements]
    assert tags.count("h1") == 1 and tags.count("caption") == tags.count("table")


def luminance(color):
    """Relative luminance of #rrggbb, as WCAG 2 defines it."""
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_contrast_of_text_and_of_lines(made, scheme):
    blocks = re.findall(r":root \{(.*?)\}", made[1], re.S)
    assert len(blocks) == 2
    color = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", blocks[scheme]))

    def contrast(one, other):
        low, high = sorted((luminance(color[one]), luminance(color[other])))
        return (high + 0.05) / (low + 0.05)

    for behind in ("paper", "raised"):
        for text in ("ink", "muted", "accent"):
            assert contrast(text, behind) >= 4.5, (text, behind)
    for line in ("strong", *(f"c{i}" for i in range(8))):
        assert contrast(line, "paper") >= 3, line


# ------------------------------------------------------------------------- browser

EARLY = "<script>window.faults = []; onerror = (m) => { faults.push(m); };</script>"
LATE = """<script>
const table = document.querySelectorAll("table.sortable")[1];
const titles = [...table.tHead.rows[0].cells];
const column = titles.findIndex((t) => t.textContent === "accuracy %");
const read = () => [...table.tBodies[0].rows].map((r) => r.cells[column].textContent);
const button = titles[column].querySelector("button");
button.click();
const up = read(), said = titles[column].getAttribute("aria-sort");
button.click();
for (const d of document.querySelectorAll("details")) d.open = true;
parent.postMessage({
  inner: innerWidth, scroll: document.documentElement.scrollWidth,
  up, down: read(), said, faults,
}, "*");
</script></body>"""
FRAMES = """<!DOCTYPE html><meta charset="utf-8"><pre id="found"></pre><script>
const found = [];
onmessage = (event) => {
  found.push(event.data);
  document.getElementById("found").textContent = JSON.stringify(found);
};
</script>
<iframe src="page.html" style="border: 0; width: 1280px; height: 900px"></iframe>
<iframe src="page.html" style="border: 0; width: 390px; height: 844px"></iframe>"""


@pytest.fixture(scope="module")
def browsed(made, tmp_path_factory):
    """What the page does in a browser, in frames of a desktop's and a phone's width."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium here")
    folder = tmp_path_factory.mktemp("page")
    page = made[1].replace("<head>", f"<head>{EARLY}").replace("</body>", LATE)
    (folder / "page.html").write_text(page, encoding="utf-8")
    (folder / "frames.html").write_text(FRAMES, encoding="utf-8")
    options = (
        "headless no-sandbox disable-gpu disable-quic no-first-run disable-sync "
        "disable-background-networking disable-component-update disable-dev-shm-usage "
        "virtual-time-budget=5000 enable-logging=stderr dump-dom"
    )
    where = [f"--user-data-dir={folder / 'profile'}", (folder / "frames.html").as_uri()]
    browser = [chromium, *(f"--{option}" for option in options.split()), *where]
    done = subprocess.run(browser, capture_output=True, text=True, timeout=120)
    dumped = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.S)
    assert dumped, done.stderr
    told = json.loads(dumped[1].replace("&lt;", "<").replace("&amp;", "&"))
    assert {one["inner"] for one in told} == {1280, 390}
    return told, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_the_page_has_no_faults_in_a_browser(browsed):
    told, console = browsed
    assert console == [] and all(one["faults"] == [] for one in told)


def test_the_page_never_scrolls_sideways(browsed):
    assert all(one["scroll"] <= one["inner"] for one in browsed[0])


def test_a_click_on_a_title_sorts_and_a_second_one_turns_it_round(made, browsed):
    head, *rows, _ = made[2].tables[1]
    column = head.index("accuracy %")
    shown = sorted(float(row[column].split()[0]) for row in rows)
    for one in browsed[0]:
        assert one["said"] == "ascending"
        assert [float(text.split()[0]) for text in one["up"]] == shown
        assert one["down"] == one["up"][::-1]


def test_a_raster_counts_spikes_and_not_their_signs():
    spikes = np.array([[1, -1, 0, 0], [-1, 0, 0, -3]])
    assert raster("encoder", spikes, 1, 2).title == "encoder: 50.0 %, steps 1 to 2"


def test_names_of_sites_lose_what_all_share():
    assert short_names(["Net/a/encoder", "Net/b/c/encoder"]) == {
        "Net/a/encoder": "a",
        "Net/b/c/encoder": "b/c",
    }
    assert short_names(["relu", "Net/relu"]) == {
        "relu": "relu",
        "Net/relu": "Net/relu",
    }
