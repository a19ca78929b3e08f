"""The commands do their job, at toy size: convert, restore, the Colab notebook."""

import dataclasses
import json
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from networks import compiled, weights

import snnjax
from experiments import ablation, conversions, convert, report, results
from experiments.data import load
from experiments.models import load_snn, load_source
from experiments.presets import PRESETS_CONVERT, SOURCES
from experiments.report import choice, drawing
from experiments.running import Convert, TrainANN, devices, parse
from experiments.sources import __main__ as sources
from experiments.train_ann import train

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def converted(small_network, tmp_path_factory):
    """A small conversion: its configuration, its results, its data."""
    folder = tmp_path_factory.mktemp("runs")
    data, out = load("digits"), str(folder / "source")
    training = {"dataset": "digits", "flip": False, "padding": 1, "epochs": 4}
    ann = TrainANN(model="events", out=out, batch_size=64, warmup=0.1, **training)
    train(ann, data=data.first(720))
    config = Convert(
        checkpoint=out,
        steps=(4,),
        recipes=("max_activation", "light"),
        waits=("T", "0"),
        calibration_images=64,
        test_images=100,
        out=str(folder / "out"),
        weight_bits=(8, 2),
        chip="spinnaker2",
    )
    return config, convert.run(config, data=data), data


def facts_of(config):
    return json.loads((Path(config.out) / "metrics.json").read_text())


@pytest.mark.thorough
def test_rows_are_near_the_ann_and_those_that_wait_are_later(converted):
    config, results, _ = converted
    ann = facts_of(config)["ann_accuracy"]
    finals = {(row.recipe, row.wait): row.final for row in results}
    assert min(finals["light", wait] for wait in (0, 4)) > ann - 0.1
    assert finals["light", 0] > finals["max_activation", 0] + 0.1
    assert {(r.wait, r.latency) for r in results} == {(0, 4), (4, 12)}
    # Rows are chosen by images that no table reports, of both seeds.
    assert {row.held_out[1] for row in results} == {2 * 100}
    for row in results:
        # Where both are right they agree, so answers agree as often at least.
        (equal,), (error,) = row.equal_answers[:1], row.output_errors[:1]
        assert len(row.equal_answers) == len(row.output_errors) == 2
        assert row.accuracies[0][-1] + ann - 1 <= equal <= 1
        assert 0 < error < 2
    by_name = {(row.recipe, row.wait): row for row in results}
    better, worse = by_name["light", 0], by_name["max_activation", 0]
    assert better.equal_answers[0] > worse.equal_answers[0]
    assert better.output_errors[0] < worse.output_errors[0]
    names = list(results[0].measures.sites)  # in order of execution
    assert names == ["Plain/relu", "Plain/relu_1"]


@pytest.mark.thorough
def test_a_conversion_writes_all_of_its_files(converted):
    config, results, _ = converted
    out, facts = Path(config.out), facts_of(config)
    assert facts["config"]["steps"] == [4]
    assert len(facts["results"]) == len(results)
    assert len(facts["results"][0]["measures"]["sites"]) == 2
    assert {"jax", "flax", "snnjax"} <= set(facts["versions"])
    text = (out / "results.md").read_text()
    assert "| `light, binary` | T |" in text
    assert "| `light, binary` | T | 4 | 12 |" in text.split("energy, % of ANN")[1]
    for name in ("accuracy.png", "layers.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
        assert f"]({name})" in text
    rate = choice(results).measures.sites["Plain/relu_1"].firing_rate
    row = rf"`Plain/relu_1` \| relu \| [×\d]+ \| 2 \| {100 * rate:.1f} \|"
    assert re.search(row, text)


@pytest.mark.thorough
def test_the_saved_snn_is_tested_in_whole_numbers(converted):
    config, results, _ = converted
    out = Path(config.out)
    ann, floats, eight, two = json.loads((out / "integers.json").read_text())["rows"]
    assert abs(ann["accuracy"] - facts_of(config)["ann_accuracy"]) <= 0.02
    # An activation takes a byte, a potential two.
    assert eight["memory"]["potentials"] == 2 * ann["memory"]["potentials"]
    assert floats["accuracy"] == choice(results).accuracies[0][-1]
    assert abs(eight["accuracy"] - floats["accuracy"]) <= 0.03
    assert two["accuracy"] <= eight["accuracy"]
    ratio = floats["memory"]["weights"] / eight["memory"]["weights"]
    assert 4 <= ratio < 4.5  # a map whose potentials are too large has fewer bits
    assert (eight["overflows"], eight["scale"]) == (0, "chip")
    assert 2 < eight["used_bits"] <= 16
    table = (out / "integers.md").read_text()
    assert "| 2 bits | chip |" in table
    assert table.split("```text\n")[1].startswith("SpiNNaker 2: ")


@pytest.mark.thorough
def test_the_checkpoint_restores_without_the_ann(converted):
    config, results, data = converted
    restored = load_snn(config.out)
    saved = choice(results)
    assert (restored.snn.steps, restored.snn.wait) == (4, saved.wait)
    assert restored.card["recipe"] == saved.recipe
    assert restored.card["accuracy"] == saved.accuracies[0][-1]  # of this very SNN
    again = Convert(restore=config.out, test_images=100)
    assert convert.restore(again, data=data) == saved.accuracies[0][-1]
    file = Path(config.out) / "snn.safetensors"
    assert load_snn(file).card["calibration"]["shape"] == [64, 8, 8, 1]


@pytest.mark.thorough
def test_a_checkpoint_takes_no_more_and_no_larger_images_than_there_are(converted):
    config, _, data = converted
    many_images = Convert(restore=config.out, test_images=600)
    with pytest.raises(ValueError, match="test_images 600 exceeds the 500 images of"):
        convert.restore(many_images, data=data)
    larger = data._replace(train_images=np.zeros((200, 9, 9, 1), np.uint8))
    with pytest.raises(ValueError, match="takes images of"):
        convert.run(config, data=larger)


def test_every_published_source_has_a_preset_a_card_and_a_figure():
    folder = ROOT / "experiments" / "sources"
    published = sorted(file.stem for file in folder.glob("*.safetensors"))
    assert sorted(SOURCES) == published
    gallery = (ROOT / "docs" / "gallery.md").read_text()
    for name in SOURCES:
        assert f"(gallery/{name}.png)" in gallery
        assert (ROOT / "docs" / "gallery" / f"{name}.png").stat().st_size > 10_000
        preset = PRESETS_CONVERT[f"cifar10_{name}"]
        card = json.loads((ROOT / preset.checkpoint).with_suffix(".json").read_text())
        assert report.network_name(card) == name
        assert card["test_accuracy"] > 0.82
        module = "train_ann" if card.get("levels") else f"sources.train {name}"
        assert card["command"].startswith(f"python -m experiments.{module} ")
        # Those that were trained in PyTorch name the version that has this command.
        assert ("torch" in card["versions"]) == ("snnjax" in card["versions"])


@pytest.mark.thorough
def test_the_command_of_the_gallery_draws_every_figure():
    gallery = (ROOT / "docs" / "gallery.md").read_text()
    _, _, command = gallery.partition("python -m experiments.results")
    words = command.partition("```")[0].replace("\\\n", " ")
    shell = ["bash", "-c", f"echo {words}"]  # expands the braces
    _, folder, *names = subprocess.run(
        shell, capture_output=True, text=True, check=True
    ).stdout.split()
    files = [results.PUBLISHED / f"{name}.json" for name in names]
    networks = report.networks.merged([*map(report.read_results, files)])
    figures = {network.name for network in networks}
    figures |= {f"{network.name}_epochs" for network in networks if network.epochs}
    # The fine-tuning of vgg8 has other test images than its conversions.
    figures |= {"vgg8_epochs"}
    assert figures == {file.stem for file in (ROOT / folder).glob("*.png")}
    radix = {file.stem for file in results.PUBLISHED.glob("convert_*_radix*.json")}
    assert radix <= set(names)


@pytest.mark.thorough
def test_a_legend_of_two_parts_has_one_in_each_half(tmp_path):
    file = tmp_path / "figure.png"
    with drawing.new_figure(file, 600, 300, legend=2, legend_parts=2, ncols=2) as (
        figure,
        axes,
    ):
        for name in "abc":
            axes[0].plot([0, 1], label=name)
    [part] = figure.subfigs
    texts = [[text.get_text() for text in legend.texts] for legend in part.legends]
    assert texts == [["a", "b"], ["c"]]
    middle = figure.bbox.width / 2
    left, right = (legend.get_window_extent() for legend in part.legends)
    assert left.x1 < middle < right.x0


@pytest.mark.thorough
def test_source_networks_are_one_table(converted, capsys):
    trained = Path(converted[0].checkpoint)
    sources.main([str(trained)])  # tests/test_pages.py compares that of the published
    *_, row = capsys.readouterr().out.splitlines()
    numbers = sum(a.size for a in jax.tree.leaves(load_source(trained).variables))
    size = f"{numbers / 1e6:.2f} M"
    assert re.fullmatch(rf"\| `events` \| {size} \|.*\| 4 \| \d+ \| JAX \|", row)


def test_a_folder_without_a_source_network_has_no_table(tmp_path):
    (tmp_path / "config.json").write_text("{}")  # of a training, and no card
    for folder, message in (
        (tmp_path, "has no source networks"),
        (tmp_path / "none", "no folder"),
    ):
        with pytest.raises(SystemExit, match=message):
            sources.main([str(folder)])
    (tmp_path / "a.safetensors").write_bytes(b"cut")
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(SystemExit, match="a.safetensors cannot be read"):
        sources.main([str(tmp_path)])


def published(name: str) -> Path:
    command = "" if name.startswith("finetune") else "convert_cifar10_"
    return ROOT / "benchmarks" / "results" / f"{command}{name}.json"


@pytest.fixture
def table(capsys):
    """What experiments.results prints."""

    def printed(*words):
        results.main(list(map(str, words)))
        return capsys.readouterr().out

    return printed


TUNED = published("finetune_cifar10_resnet20_2_averages_kept")
BEST = "convert_cifar10_resnet20_best"
TUNED_AT_1 = "finetune_cifar10_resnet20_1"
VGG = "convert_cifar10_vgg8_radix"


def percents_of_the_best_resnet20():
    """T -> the accuracy as a table shows it."""
    rows = report.read_results(published("resnet20_best")).results
    return {row.steps: report.results.percent(row) for row in rows}


def test_the_table_of_a_fine_tuning_has_its_last_accuracy(table):
    facts = json.loads(TUNED.read_text())
    accuracy = f"{100 * facts['accuracy_after_epochs'][-1]:.1f}"
    text = table(TUNED)
    name = "`best, 5 epochs, averages kept, binary`"
    assert f"| `resnet20` | {name} | 0 | {accuracy} |" in text
    assert len(text.splitlines()) == 4  # head, line, the row, the ANN


def test_a_row_of_two_files_is_in_their_table_once(table):
    text = table(published("resnet20_best"), TUNED)
    accuracy = percents_of_the_best_resnet20()[1]
    assert text.count(f"`best, binary` | 0 | {accuracy} |") == 1


def test_a_table_has_the_steps_that_were_asked_for(table):
    lines = table(BEST, "--steps", "2", "8", "--costs").splitlines()[2:]
    assert [line.split("|")[4].strip() for line in lines] == ["2", "8"]
    text = table(BEST, TUNED_AT_1, "--steps", "1", "8")
    assert "| | `best, 5 epochs, binary` | 0 | 78.4 | |" in text
    text = table(TUNED_AT_1, "--epochs", "--steps", "1")
    assert "`best, 5 epochs, binary, T = 1`" in text


def test_a_summary_ends_with_the_best_row(table):
    *_, best = table(BEST, "--summary", "--steps", "2", "8").splitlines()
    accuracy = percents_of_the_best_resnet20()[8]
    name, recipe, steps, latency, percents, *_, ann, spikes, _, _, _ = cells(best)
    assert (name, recipe) == ("`resnet20`", "`best, binary`")
    assert (steps, latency, percents, ann) == ("8", "8", accuracy, "90.8")
    assert spikes == f"{float(spikes):.2f}"


def cells(line):
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def test_a_brief_table_has_ann_snn_and_spikes(table):
    head, _, row = table(BEST, "--brief", "--steps", "8").splitlines()
    accuracy = percents_of_the_best_resnet20()[8]
    assert head == "| network | ANN % | SNN %, T = 8 | spikes |"
    assert re.fullmatch(rf"\| `resnet20` \| 90.8 \| {accuracy} \| \d\.\d\d \|", row)


def test_a_table_that_the_files_do_not_have_is_refused():
    steps_2 = [BEST, TUNED_AT_1, "--steps", "2"]
    for words, message in (
        (steps_2, "resnet20 have rows of T = 1 only; ask for one of"),
        ([BEST, "--epochs"], "none of these files is of a fine-tuning"),
        ([BEST, "--epochs", "--costs"], "2"),  # one table at a time
        ([BEST, VGG, "--brief"], r"at one T; found T in \[4, 16\]. Add"),
    ):
        with pytest.raises(SystemExit, match=message):
            results.main(words)


def write_part(file, **changes):
    """The published results of vgg8 with other fields."""
    facts = json.loads(published("vgg8").read_text())
    file.write_text(json.dumps(facts | changes))


def test_files_of_one_network_share_a_table(table, tmp_path):
    file = published("vgg8")
    costs = table(file, "--costs")
    assert table(file, file, "--costs") == costs  # a file twice has one row
    rows = json.loads(file.read_text())["results"]
    write_part(tmp_path / "metrics.json", results=rows[::2])
    second = tmp_path / "other.json"
    write_part(second, results=rows[1::2])
    # A folder stands for its metrics.json.
    whole = table(file)
    assert sorted(table(tmp_path, second).split()) == sorted(whole.split())
    interrupted = [row | {"seconds": None} for row in rows]
    write_part(second, results=interrupted)
    assert table(second) == whole


def test_files_that_contradict_each_other_share_no_table(tmp_path, capsys):
    rows = json.loads(published("vgg8").read_text())["results"]
    parts = [tmp_path / "metrics.json", tmp_path / "other.json"]
    write_part(parts[0], results=rows[::2])
    four_steps = [row for row in rows[::2] if row["steps"] == 4]
    less_accurate = [row | {"accuracies": [[0.5] * 4]} for row in four_steps]
    later = [row | {"latency": 99} for row in four_steps]
    numbers = "1000 test images of cifar10 and 100 test images of cifar10"
    for changes, message in (
        ({"results": less_accurate}, "table of their own"),
        ({"results": later}, "table of their own"),
        ({"ann_accuracy": 0.5}, "ANN vgg8 differs .*: 91.000 % and 50.000 %"),
        ({"test_images": 100}, f"images of vgg8 differs .*: {numbers}"),
    ):
        write_part(parts[1], **changes)
        for option in ([], ["--costs"], ["--figures", str(tmp_path / "figures")]):
            with pytest.raises(SystemExit, match=message):
                results.main([*map(str, parts), *option])
    assert not capsys.readouterr().out and not (tmp_path / "figures").exists()


def test_a_damaged_file_of_results_is_refused_whole(tmp_path):
    file = published("finetune_cifar10_resnet20_2_averages_kept")
    damaged = tmp_path / "metrics.json"
    facts = json.loads(file.read_text())
    broken = json.loads(published("vgg8").read_text())
    broken["results"][0]["steps"] = "4"
    changes = {
        "accuracy_after_epochs": ([0.6, None], [0.6, "x"], [0.6, 0.7]),
        "source": ({"model": "../../escape"}, {"model": None}),
        "ann_accuracy": ("high", None),
        "results": ([],),
    }
    texts = ["", "{}", "[]", '{"results": []}', json.dumps(broken)]
    for name, values in changes.items():
        texts += [json.dumps(facts | {name: value}) for value in values]
    for text in texts:
        damaged.write_text(text)
        with pytest.raises(SystemExit, match=f"{damaged} was not written by experim"):
            results.main([str(published("vgg8")), str(damaged)])
    with pytest.raises(SystemExit, match="no file .*; give the metrics.json of a run"):
        results.main([str(tmp_path / "nothing.json")])


@pytest.mark.thorough
def test_the_tables_beside_published_results_are_of_their_numbers():
    files = [*(ROOT / "benchmarks" / "results").glob("convert_cifar10_*.json")]
    files += (ROOT / "benchmarks" / "results").glob("finetune_*.json")
    assert len(files) > 40
    for file in files:
        facts = json.loads(file.read_text())
        rows = [*map(report.networks.read_row, facts["results"])]
        tables = report.results.tables_of(facts, rows)
        assert tables == file.with_suffix(".md").read_text()


@pytest.mark.thorough
def test_figures_of_networks_are_drawn(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    files = [str(published(name)) for name in ("vgg8", "vgg8_radix", "vit")]
    folder = tmp_path / "new" / "figures"
    lost = ["--points_lost", str(folder)]
    results.main([*files, "--figures", "~/new/figures", *lost])
    assert "`vit`" in capsys.readouterr().out
    drawn_files = {file.name for file in folder.iterdir()}
    drawn = {"points_lost_spikes.png", "points_lost_latency.png"}
    assert drawn_files == {"vgg8.png", "vit.png", *drawn}
    assert all((folder / name).stat().st_size > 20_000 for name in drawn)
    tuned = str(published("finetune_cifar10_resnet20_2_averages_kept"))
    results.main([tuned, "--figures", str(folder)])
    assert (folder / "resnet20_epochs.png").stat().st_size > 5_000
    capsys.readouterr()
    with pytest.raises(SystemExit, match="--figures .* cannot be written to"):
        results.main([str(published("vit")), "--figures", str(folder / "vit.png")])
    assert not capsys.readouterr().out


def test_a_frontier_has_no_row_that_loses_more_for_more_spikes():
    _, rows, ann, *_ = report.read_results(published("resnet20_radix_graded"))
    points = report.figures.frontier(rows, ann)
    lost_by_spikes = {row.spikes: 100 * (ann - row.final) for row in rows}
    for spikes, lost in points:
        assert lost == lost_by_spikes[spikes]
    for spikes, lost in lost_by_spikes.items():
        # A point that sends no more spikes loses no more.
        cheaper = [point_lost for paid, point_lost in points if paid <= spikes]
        assert min(cheaper) <= max(lost, 0.1)
    silent = rows[0]._replace(firing_rate=0.0)
    assert report.figures.frontier([*rows, silent], ann) == points
    early = report.figures.frontier(rows, ann, "latency")
    assert [latency for latency, _ in early] == sorted({r.latency for r in rows})


def test_a_table_has_the_best_accuracy_within_so_many_steps(table):
    text = table(
        "convert_cifar10_resnet20_waits",
        "convert_cifar10_resnet20_radix_graded",
        "--latency",
    )
    _, _, rate, radix, ann = text.splitlines()
    assert rate.startswith("| `resnet20` | rate, binary | | | | | | 89.4 | 89.4 |")
    assert radix == "| | radix, graded | | 89.0 | 90.5 | 90.5 | 90.5 | 90.5 | 90.5 |"
    assert ann.count("90.8") == len(report.networks.LIMITS)


def test_a_figure_has_the_accuracy_of_each_conversion_against_its_cost():
    from matplotlib.figure import Figure

    _, rows, ann, *_ = report.read_results(published("resnet20_waits"))
    waiting = [row for row in rows if row.wait > 1]
    for cost, expected in (
        ("T", [2, 4, 8]),
        ("latency", [40, 80, 160]),  # 19 layers of neurons wait
        ("spikes", [row.firing_rate * row.steps for row in waiting]),
    ):
        axis = Figure().subplots()
        report.figures.against(rows, ann, cost).draw(axis)
        named = {line.get_label(): line for line in axis.lines}
        line = named["best, binary, wait T"]
        np.testing.assert_allclose(line.get_xdata(), expected)
        accuracies = [100 * row.final for row in waiting]
        np.testing.assert_allclose(line.get_ydata(), accuracies)
    # A silent conversion has no place on the axis of spikes.
    silent = [row._replace(firing_rate=0.0) for row in waiting]
    early = [row for row in rows if row.wait <= 1]
    panel = report.figures.against([*silent, *early], ann, "spikes")
    assert panel.series["best, binary, wait T"] == ([], [])
    assert len(panel.series["best, binary, wait 1"][0]) == 3
    report.figures.against(silent, ann, "spikes").draw(Figure().subplots())


def test_a_panel_has_no_more_lines_than_colors():
    rows = report.read_results(published("resnet20_best")).results
    colors = report.figures.COLORS
    binary = [rows[0]._replace(recipe=str(i)) for i in range(colors)]
    assert report.figures.groups_of(binary) == [binary]
    digits = rows[0]._replace(code="radix", levels=(-1, 1))
    signed = [row._replace(levels=(-1, 1)) for row in binary]
    groups = report.figures.groups_of([*binary, digits, *signed, digits])
    assert groups == [binary, [digits, digits], signed]
    groups = report.figures.groups_of([*binary, binary[0]._replace(recipe="more")])
    assert [len(group) for group in groups] == [colors, 1]


def test_right_answers_are_counted_in_whole_numbers(monkeypatch):
    """Of 7 images in batches of 5, the last one filled up; 5 are right."""
    labels = np.array([0, 1, 2, 0, 1, 2, 0])
    answers = np.array([0, 1, 2, 0, 1, 3, 1])
    images = np.eye(4, dtype=np.float32)[answers]
    snn = snnjax.init(lambda _, x: jax.nn.relu(x), {}, images)
    snn = dataclasses.replace(snn, steps=2, wait=0)
    monkeypatch.setattr(devices, "images_at_once", lambda: 5)
    test = conversions.LabeledImages(images, labels)
    count = conversions.counter(lambda _, x: jax.nn.relu(x))
    hits = conversions.count_hits(count, snn, test, None)
    assert hits == [5, 5] and all(type(hit) is int for hit in hits)


def test_answers_are_compared_with_those_of_the_ann(monkeypatch):
    """Of 7 images in batches of 5, the last one filled by copies; 5 answers are right,
    and 4 are those of the ANN."""
    labels = np.array([0, 1, 2, 0, 1, 2, 0])
    snn_answers = np.array([0, 1, 2, 0, 1, 3, 1])
    ann_answers = np.array([0, 1, 3, 0, 2, 3, 0])
    images = np.eye(4, dtype=np.float32)[snn_answers]
    ann_outputs = 2 * np.eye(4, dtype=np.float32)[ann_answers]
    fn = lambda _, x: jax.nn.relu(x)  # noqa: E731
    snn = dataclasses.replace(snnjax.init(fn, {}, images), steps=2, wait=0)
    monkeypatch.setattr(devices, "images_at_once", lambda: 5)
    task = SimpleNamespace(
        compare=conversions.comparison(fn),
        test=conversions.LabeledImages(images, labels, ann_outputs),
        mesh=None,
    )
    answers = conversions.measured_answers(task, snn)
    assert answers["hits"] == [5, 5]
    assert all(type(hit) is int for hit in answers["hits"])  # for JSON
    assert answers["equal_answers"] == 4 / 7
    # An image of equal answers has the error (2 - 1)^2, another one 2^2 + 1^2.
    variance = np.square(ann_outputs - ann_outputs.mean(0)).sum()
    np.testing.assert_allclose(answers["output_error"], (4 * 1 + 3 * 5) / variance)
    np.testing.assert_array_equal(devices.outputs(fn, {}, images), images)


def test_widened_parameters_follow_the_channels_wherever_they_are():
    def fn(kernel, x):  # channels first
        y = jax.nn.relu(jax.lax.conv(x, kernel, (1, 1), "SAME"))
        return y.sum((2, 3))

    kernel, x = weights(kernel=(4, 2, 3, 3), x=(8, 2, 4, 5)).values()
    sites = snnjax.sites(fn, kernel, x)
    assert (sites[0].shape, sites[0].channel) == ((4, 4, 5), -3)
    snn = snnjax.init(fn, kernel, x, model=snnjax.integrate_and_fire())
    wide = conversions.widen_all(snn, sites)
    (neuron,) = wide.neurons.values()
    assert neuron.threshold.shape == neuron.bias.shape == (4, 1, 1)
    assert neuron.initial_potential.shape == (4, 4, 5)
    run = compiled(fn, steps=4)
    np.testing.assert_allclose(run(wide, x), run(snn, x), rtol=1e-5, atol=1e-5)
    assert np.any(run(snn, x))


@pytest.mark.thorough
def test_an_interrupted_conversion_goes_on_with_its_own_draws(
    converted, tmp_path, monkeypatch, capsys
):
    config, results, data = converted
    changes = {"recipes": ("max_activation",), "waits": ("0",)}
    changes |= {"weight_bits": None, "chip": None}  # which convert the ANN as well
    config = dataclasses.replace(config, **changes, out=str(tmp_path))
    task = convert.prepare(config, data)
    convert_it, counts = snnjax.convert, []

    def interrupted(*arguments, **options):
        counts.append(None)
        if len(counts) == 2:
            raise KeyboardInterrupt
        return convert_it(*arguments, **options)

    monkeypatch.setattr(snnjax, "convert", interrupted)
    with pytest.raises(KeyboardInterrupt):
        conversions.carry_out(task)
    unfinished = conversions.unfinished(config)
    assert len(list(unfinished.iterdir())) == 1
    capsys.readouterr()
    (row,), _ = conversions.carry_out(task)
    # Where stderr is no terminal, a line says which conversion begins.
    assert capsys.readouterr().err.splitlines() == [
        "conversion 1 of 2: max_activation, binary, T = 4, seed 0",
        "conversion 2 of 2: max_activation, binary, T = 4, seed 1",
    ]
    assert len(counts) == 3  # one in each run, and the one that was interrupted
    (whole,) = (r for r in results if (r.recipe, r.wait) == ("max_activation", 0))
    assert row.accuracies == whole.accuracies
    # A draw of another network is made again.
    doubled = jax.tree.map(lambda a: 2 * a, task.params)
    _, (snn,) = conversions.carry_out(task._replace(params=doubled))
    kernel = snn.params["params"]["Dense_0"]["kernel"]
    np.testing.assert_array_equal(kernel, doubled["params"]["Dense_0"]["kernel"])
    # Measuring runs within jit, and a network that it says little about is told.
    capsys.readouterr()
    large = task.test._replace(images=255 * task.test.images)
    conversions.evaluated(task._replace(test=large), "large images", snn, seconds=0)
    message = " ".join(capsys.readouterr().err.split())
    assert message.startswith("large images, rate, T = 4: the network is saturated: at")
    conversions.forget(config)
    assert not unfinished.exists()


def test_restore_says_what_a_folder_is_not(tmp_path):
    with pytest.raises(FileNotFoundError, match="python -m experiments.convert"):
        load_snn(tmp_path / "nowhere")
    file = tmp_path / "snn.safetensors"
    for write, message in (
        (lambda: None, "is no spiking network"),
        (lambda: file.write_text("half a file"), "damaged or cut short"),
        (
            lambda: snnjax.save(file, snnjax.SNN({}, {})),
            "names no network of .*KeyError\\('model'\\)",
        ),
    ):
        write()
        with pytest.raises(ValueError, match=message):
            load_snn(tmp_path)


def test_a_wrong_run_ends_with_one_message(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # for the default --out
    for line, message in (
        ("--dataset /nowhere", "nowhere"),
        ("--restore /nowhere", "no folder /nowhere"),
        ("--dataset events.npz", "events.npz .*which experiments.train_snn reads"),
        ("--test_images 501", "test_images 501 exceeds the 500 images of digits"),
        ("--calibration_images 1298", "calibration_images 1298 exceeds the 1297"),
        ("--mesh 3", "calibration_images 256 cannot be shared evenly by 3 devices"),
    ):
        with pytest.raises(SystemExit, match=message):
            convert.main(line.split())


PLANS = {  # options -> rows (T, levels, wait)
    "": [(4, (0, 1), 0), (4, (-1, 1), None)],
    "--codes rate": [(4, (0, 1), 0), (4, (0, 1), 4)],
    "--codes rate --steps 1 2 --waits 0 1 T": [
        (1, (0, 1), 0),
        (2, (0, 1), 0),
        (1, (0, 1), 1),
        (2, (0, 1), 1),
        (2, (0, 1), 2),
    ],
    "--recipes light --levels 0 1 -1 1": [(4, (0, 1), 0), (4, (-1, 1), 0)],
    "--codes radix3 --steps 2": [(2, (-1, 1), None)],
    "--codes radix4": [(4, (-3, 3), None)],
    "--codes radix --spikes 0.4 0.6 --waits 3": [(4, (-1, 1), 3)] * 2,
    "--codes radix --levels 0 1 -3 3": [(4, (0, 1), None), (4, (-3, 3), None)],
    "--codes radix --levels -3 3 --waits 2": [(4, (-3, 3), 2)],
}


def test_a_code_brings_its_levels_its_wait_and_its_dead_zone():
    for line, rows in PLANS.items():
        words = f"--recipes best --steps 4 {line}".split()
        config = parse(Convert, PRESETS_CONVERT, words)
        plan = conversions.plan(config)
        assert [(row.steps, row.levels, row.wait) for row in plan] == rows, line
        for row in plan:  # the neuron that snnjax.convert takes
            neuron = conversions.neuron_of(row.levels, row.code, config)
            is_signed_digit = row.code != "rate" and row.levels[0] < 0
            zone = 1 / 2 if row.code == "radix3" else 2 / 3
            assert neuron.dead_zone == (zone if is_signed_digit else 0)
    for recipe in conversions.RECIPES.values():
        assert "at every site" in str(recipe(Convert(), 0))


@pytest.mark.slow
@pytest.mark.thorough
def test_the_ablation_compares_every_composition_that_is_asked_for(converted, tmp_path):
    config = ablation.Ablation(
        checkpoint=converted[0].checkpoint,
        columns=(4, 8),
        rows=("light", "potential"),
        calibration_images=64,
        images=200,
        out=str(tmp_path),
    )
    rows = ablation.run(config)
    assert list(rows) == ["light", "potential correction"]
    for cells in rows.values():
        assert cells[8].divergence < cells[4].divergence
    facts = json.loads((tmp_path / "ablation.json").read_text())
    assert facts["rows"].keys() == rows.keys()
    assert "--columns 4 8" in facts["command"]
    assert len((tmp_path / "ablation.md").read_text().splitlines()) == 4
    with pytest.raises(ValueError, match="exceed the .* training images"):
        ablation.run(dataclasses.replace(config, images=10_000))


def test_rows_of_the_ablation_are_named_by_parts_of_their_names():
    assert ablation.rows_named(("best", "light")) == ["light", "best"]
    assert len(ablation.rows_named(("best,",))) > 3
    assert ablation.rows_named(("",)) == [*ablation.ROWS]


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    nbclient = pytest.importorskip("nbclient")
    import nbformat

    notebook = nbformat.read(ROOT / "experiments" / "colab.ipynb", as_version=4)
    resources = {"metadata": {"path": str(ROOT)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=resources).execute()
    printed = str(notebook)
    assert "best, wait 1" in printed and "% after 8 steps" in printed
    assert "x T times the ANN's time" in printed
    assert "image/png" in printed


def test_the_notebook_knows_the_oldest_jax():
    notebook = (ROOT / "experiments" / "colab.ipynb").read_text()
    oldest = re.search(r"OLDEST = \(([\d, ]+)\)", notebook)[1].replace(", ", ".")
    assert f"jax>={oldest}\n" in (ROOT / "setup.cfg").read_text()
