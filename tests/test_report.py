"""Tables and figures say what the results say."""

import numpy as np
import pytest
from networks import NETWORKS

import snnjax
from experiments.report import (
    Result,
    choice,
    conclusion,
    console_table,
    figures,
    write_results,
)
from experiments.report.networks import (
    NetworkResults,
    costs_of_networks,
    latencies_of_networks,
    summary_of_networks,
)
from experiments.report.results import PARTS, site_table, tables_of
from snnjax.measures import Measures, SiteMeasures

NET = NETWORKS["zero padding"]
SITES = snnjax.sites(NET.fn, NET.params, NET.x)


def results(seeds=2):
    """Results such as a conversion gives, with numbers drawn at random."""
    uniform = np.random.default_rng(0).uniform
    rows = []
    for recipe, wait, steps in (
        *(("light", 0, steps) for steps in (2, 4)),
        *(("a<b", wait, steps) for wait in (0, 1) for steps in (2, 4)),
        ("a<b", 4, 4),
    ):
        site_measures = {}
        for site in SITES:
            if site.fires:
                numbers = uniform(0.01, 1, len(SiteMeasures._fields))
                site_measures[site.name] = SiteMeasures(*numbers)
        operations = uniform(1e3, 1e6)
        measures = Measures(
            site_measures,
            0.1,
            operations,
            3 * operations,
            2e3,
            0,
            5e5,
            9,
            99,
            steps,
            wait,
            steps,
            2,
        )
        rows.append(
            Result(
                recipe=recipe,
                wait=wait,
                steps=steps,
                accuracies=uniform(0, 1, (seeds, steps)).tolist(),
                latency=snnjax.latency(SITES, steps=steps, wait=wait),
                firing_rate=uniform(0, 1),
                synaptic_operations=operations,
                seconds=uniform(0, 9),
                measures=measures,
                equal_answers=uniform(0, 1, seeds).tolist(),
                output_errors=uniform(1e-5, 1, seeds).tolist(),
            )
        )
    return rows


FACTS = {
    "ann_accuracy": 0.987,
    "measured_images": 100,
    "evaluated_on": "test images",
}


def tables(text):
    """The tables of a page in Markdown, as lists of rows of cells."""
    result = []
    for block in text.split("\n\n"):
        if block.startswith("|"):
            head, _, *lines = block.splitlines()
            result.append([_cells(line) for line in (head, *lines)])
    return result


def _cells(line):
    return [cell.strip(" `") for cell in line.split("|")[1:-1]]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Rows, and the page that a run writes of them."""
    rows = results()
    out = tmp_path_factory.mktemp("out")
    write_results(out, FACTS, rows, SITES)
    return rows, (out / "results.md").read_text()


def test_the_tables_have_the_numbers_of_the_results(written):
    rows, text = written
    accuracies, costs, _ = tables(text)
    assert accuracies[0] == ["recipe", "wait", "T = 2", "T = 4"]
    assert [line[:2] for line in accuracies[1:]] == [
        ["light, binary", "0"],
        ["a<b, binary", "0"],
        ["a<b, binary", "1"],
        ["a<b, binary", "T"],
        ["ANN", ""],
    ]
    assert accuracies[-2][2] == "" and accuracies[-1][2:] == ["98.7", "98.7"]
    for result, line in zip(rows, costs[1:], strict=True):
        final = [100 * curve[-1] for curve in result.accuracies]
        percent = f"{np.mean(final):.1f} ± {np.std(final, ddof=1):.1f}"
        assert any(percent in cells for cells in accuracies)
        wait = "T" if result.wait == 4 else str(result.wait)
        operations = result.synaptic_operations / 1e6
        energies = []  # in percent of the ANN's
        for spiking, ann in snnjax.energy(result.measures)[:3]:
            energies.append(f"{100 * spiking / ann:.0f}")
        assert line == [
            result.name,
            wait,
            str(result.steps),
            str(result.latency),
            percent,
            f"{100 * np.mean(result.equal_answers):.1f}",
            f"{np.mean(result.output_errors):.2g}",
            f"{result.measures.bits:.3g}",
            f"{result.spikes:.2f}",
            f"{operations:.2f} ({3 * operations:.2f})",
            *energies,
            f"{result.seconds:.1f}",
        ]


def test_the_table_of_sites_has_their_measures(written):
    rows, text = written
    _, _, (head, *lines) = tables(text)
    assert head[:4] == ["site", "kind", "shape", "depth"]
    measures = choice(rows).measures.sites
    assert [line[0] for line in lines] == [site.name for site in SITES]
    for line, site in zip(lines, measures.values(), strict=True):
        shares = [site.firing_rate, site.silent, site.saturated]
        parts = ("error", *PARTS)
        shares += [getattr(site, part) / site.activation for part in parts]
        assert line[4:] == [f"{100 * share:.1f}" for share in shares]


def test_columns_that_older_results_do_not_have_are_left_out():
    rows = results()
    unknown = {"equal_answers": None, "output_errors": None}
    older_rows = [row._replace(**unknown) for row in rows]
    for table in (costs_of_networks, summary_of_networks):
        for part, count in ((rows, 2), ([older_rows[0], rows[1]], 2), (older_rows, 0)):
            network = NetworkResults("net", part, 0.987, "images", {}, {})
            ((head, *lines),) = tables(table([network]))
            assert len({"equal %", "error"} & set(head)) == count
            assert {len(line) for line in lines} == {len(head)}
    mixed = [older_rows[0], rows[0]._replace(recipe="new")]
    _, (_, *lines) = tables(tables_of(FACTS, mixed))
    assert lines[0][5:7] == ["", ""] and all(lines[1][5:7])


def test_an_error_that_is_no_number_leaves_its_cell_empty():
    """It is None in a file; the outputs of the ANN are then the same for all images."""
    for error in (None, float("nan"), float("inf")):
        first, second, *_ = results(seeds=1)
        rows = [first._replace(output_errors=[error]), second]
        _, (_, line, _) = tables(tables_of(FACTS, rows))
        assert line[5:7] == [f"{100 * first.equal_answers[0]:.1f}", ""]


def test_rows_on_a_terminal_have_80_columns_at_most():
    rows = [row._replace(recipe="best", firing_rate=0.2) for row in results()]
    rows[0] = rows[0]._replace(output_errors=[1.2345e-5, 1.2e-5], seconds=999.9)
    head, *lines = console_table(rows).splitlines()
    assert head.split()[-5:] == ["%", "equal", "error", "spikes", "s"]
    assert {len(line) for line in (head, *lines)} == {79}
    equal = 100 * np.mean(rows[0].equal_answers)
    assert lines[0].split()[-4:-1] == [
        f"{equal:.2f}",
        "1.2e-05",
        f"{rows[0].spikes:.2f}",
    ]


def test_the_choice_is_the_earliest_of_the_rows_that_differ_by_chance():
    def row(recipe, steps, spikes, right, count=500):
        made, rate = results(seeds=1)[0], spikes / steps
        numbers = {"steps": steps, "latency": steps, "firing_rate": rate}
        return made._replace(recipe=recipe, held_out=(right, count), **numbers)

    # As in the demo: 99.4 % after 64 steps, 99.6 % after 8 steps, and a poor early one.
    best, early = row("best", 64, 2.0, 498), row("light", 8, 2.0, 497)
    poor, frugal = row("poor", 2, 0.1, 480), row("frugal", 8, 1.0, 496)
    more_images = [
        row("best", 64, 2.0, 49_800, 50_000),
        row("light", 8, 2.0, 49_700, 50_000),
    ]
    for rows, recipe in (
        ([best, early, poor], "light"),  # a hit of 500 less, but 56 steps earlier
        ([best, early, poor, frugal], "frugal"),  # as early, for fewer spikes
        ([best, poor], "best"),  # 18 hits are no chance
        ([row("all", 4, 1.0, 500), row("all but one", 1, 1.0, 499)], "all but one"),
        (more_images, "best"),  # of which the same share is no chance
        ([best, early._replace(held_out=None)], "best"),  # not judged, not chosen
    ):
        for order in (rows, rows[::-1]):
            assert choice(order).recipe == recipe
    assert choice([r._replace(held_out=None) for r in (best, early)]).recipe == "light"


def test_the_conclusion_says_what_was_found_and_what_to_try_next():
    early, exact = (results()[number] for number in (0, 1))
    early = early._replace(accuracies=[[0.6, 0.971]], held_out=(497, 500))
    exact = exact._replace(
        accuracies=[[0.5, 0.6, 0.7, 0.983]], held_out=(498, 500), steps=4
    )
    facts = FACTS | {"test_images": 500, "config": {"chip": None}}
    text = conclusion(facts, [early, exact], "out")
    assert max(map(len, text.splitlines())) <= 79
    found, next_steps = text.split("\n\n")
    assert "The ANN is right on 98.7 % of 500 test images." in found
    sentences = " ".join(found.split())
    assert "Most accurate: light, binary, T = 4: 98.3 % right, " in sentences
    assert "Saved: light, binary, T = 2: 97.1 % right, " in sentences
    assert f"{exact.spikes:.2f} spikes per neuron" in sentences
    assert "most accurate: 99.4 and 99.6 % right on the images of the" in sentences
    assert "out/results.md: " in next_steps and "--restore out: " in next_steps
    assert "--steps" not in next_steps  # there are rows of few steps already
    # Fewer steps are worth a try where the fewest were chosen.
    fewest, more = early._replace(steps=4), exact._replace(steps=8)
    fewest = fewest._replace(accuracies=[[0.6, 0.982]])
    assert "--steps 2 3: " in conclusion(facts, [fewest, more], "out")
    worse = fewest._replace(held_out=(400, 500))
    assert "--steps" not in conclusion(facts, [worse, more], "out")
    # A single row needs no choice, and one that loses accuracy needs more steps.
    text = conclusion(facts, [early], "out")
    assert "Most accurate, and saved: light, binary, T = 2: 97.1 % right" in text
    assert "--steps 4: more steps" in text
    # Without held-out images nothing was chosen; the last row is saved.
    text = conclusion(facts, [early._replace(held_out=None)], "out")
    assert "Too few training images" in text and "Most accurate" not in text
    chip = facts | {"config": {"chip": "speck"}}
    assert "--chip spinnaker2" in text and "--chip" not in conclusion(
        chip, [exact], "out"
    )


def test_a_site_that_the_ann_never_uses_has_no_relative_error():
    (row,) = results()[:1]
    sites = dict(row.measures.sites)
    sites["w1/relu"] = sites["w1/relu"]._replace(activation=np.float32(0))
    row = row._replace(measures=row.measures._replace(sites=sites))
    _, rows = site_table(row, SITES)
    assert rows[0][7:] == ["–"] * 5


def test_of_one_draw_there_is_no_deviation():
    for seeds in (1, 2):
        cells = str(tables(tables_of(FACTS, results(seeds))))
        assert ("±" in cells) == (seeds > 1)


def test_figures_have_the_accuracies_of_the_results():
    rows = results()
    early = figures.read_early(rows, 0.9)
    assert list(early.series) == [
        *("light, binary", "a<b, binary", "a<b, binary, wait 1 (t = 1 at step 4)"),
        f"a<b, binary, wait T (t = 1 at step {rows[-1].latency - 3})",
    ]
    for (x, y), row in zip(early.series.values(), rows[1::2], strict=False):
        assert list(x) == [1, 2, 3, 4]
        np.testing.assert_allclose(y, 100 * np.mean(row.accuracies, axis=0))
    epochs = figures.after_epochs({"a": [0.25, 0.5]}, 0.9)
    assert [list(values) for values in epochs.series["a"]] == [[0, 1], [25.0, 50.0]]


def test_figures_are_the_same_every_time(tmp_path):
    for _ in range(2):
        written_before = [file.read_bytes() for file in sorted(tmp_path.iterdir())]
        figures.write_figures(tmp_path, results(), 0.987, [0.25, 0.5])
    assert written_before == [file.read_bytes() for file in sorted(tmp_path.iterdir())]
    assert {file.name for file in tmp_path.iterdir()} == {"accuracy.png", "layers.png"}


def test_the_quantized_ann_is_a_column_of_the_rows_that_it_is_compared_with():
    """Where its row has the same code, levels and T; it is no row of its own."""
    rows = results()
    rounded = rows[1]._replace(
        recipe="quantized_ann", accuracies=[[0.1, 0.2, 0.3, 0.625]]
    )
    network = NetworkResults("net", [*rows, rounded], 0.987, "images", {}, {})
    for table, count in ((costs_of_networks, len(rows)), (summary_of_networks, 1)):
        ((head, *lines),) = tables(table([network]))
        column = head.index("quantized ANN %")
        assert len(lines) == count and "quantized_ann" not in str(lines)
        for line in lines:
            assert line[column] == {"2": "", "4": "62.5"}[line[head.index("T")]]
    assert "quantized_ann" not in latencies_of_networks([network])
