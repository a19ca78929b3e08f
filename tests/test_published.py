"""Published conversions: every number has a source, and rows are sorted fairly."""

import json
import re

import pytest

from experiments import published

ENTRIES = json.loads(published.PAPERS.read_text())
SOURCE = re.compile(r"arXiv:\d{4}\.\d{5}|doi:10\.|ojs\.aaai\.org")
PAPER = {
    "method": "paper",
    "network": "Net",
    "dataset": "cifar10",
    "source": "A, arXiv:0000.00000",
    "ann": 95.0,
    "ann_trained_for_it": True,
    "epochs_after_conversion": 30,
    "accuracies": {"2": 90.5, "4": 94.25},
}


def test_every_entry_has_a_source_and_a_place_in_the_table():
    fields = ("method", "network", "dataset", "source")
    names = [tuple(entry[field] for field in fields) for entry in ENTRIES]
    assert len(set(names)) == len(names)
    for entry in ENTRIES:
        assert SOURCE.search(entry["source"]), entry
        assert entry.get("values_per_step", 2) >= 2, entry
        assert entry["epochs_after_conversion"] >= 0, entry
        assert entry["ann"] is None or 60 < entry["ann"] < 100, entry
        # The table of benchmarks.imagenet has T = 64, too.
        assert {*map(int, entry["accuracies"])} <= {*published.STEPS, 64}, entry
        assert all(0 < percent < 100 for percent in entry["accuracies"].values()), entry


def rows_of(table):
    """A dictionary of cells by title for each row of a table in Markdown."""
    lines = []
    for line in table.splitlines():
        lines.append([cell.strip() for cell in line[2:-2].split(" |")])
    titles, _, *rows = lines
    return [dict(zip(titles, cells, strict=True)) for cells in rows]


def test_rows_of_papers_and_ours_are_sorted_by_the_points_lost(tmp_path, monkeypatch):
    papers = tmp_path / "papers.json"
    unknown = {"method": "abstract", "network": None, "ann": None}
    waits = {"steps_before": 8, "values_per_step": 3, "parameters_million": 11.7}
    better = {"method": "waits", "accuracies": {"1": 60.0, "4": 94.9}}
    entries = [PAPER | unknown, PAPER, PAPER | better | waits]
    papers.write_text(json.dumps([*entries, PAPER | {"dataset": "imagenet"}]))
    monkeypatch.setattr(published, "PAPERS", papers)
    files = ["convert_cifar10_whitened_vgg8", "finetune_cifar10_whitened_vgg8_1"]
    table = rows_of(published.table_of(files))
    assert [row["method"] for row in table] == [
        "waits",
        "paper",
        "`best, binary, wait T`",
        "`best, binary`",
        "`best, 5 epochs, binary`",  # without T = 4: by T = 1
        "`best, binary, wait 1`",
        "abstract",  # without an ANN
    ]
    waits, paper, wait_T, best, trained, _, abstract = table
    assert paper | {"T = 4": "94.2", "for it": "yes", "epochs": "30"} == paper
    assert (paper["lost, T = 2"], paper["lost, T = 4"]) == ("4.5", "0.8")
    assert (waits["network"], waits["values"]) == ("Net, 11.7 M", "3")
    assert (waits["latency"], waits["spikes"]) == ("12", "")
    assert abstract["network"] == abstract["ANN %"] == abstract["lost, T = 4"] == ""
    assert best["network"] == "`whitened_vgg8`, 2.6 M"
    assert (best["T = 4"], best["lost, T = 4"], best["latency"]) == ("89.8", "2.1", "4")
    assert (best["for it"], best["epochs"], trained["epochs"]) == ("no", "0", "5")
    assert wait_T["latency"] == "32" and float(trained["spikes"]) > 0
    quantized = published.table_of(["convert_cifar10_resnet20_quantized"])
    assert re.search(
        r"`quantized, binary` \| `resnet20_quantized`, 0.27 M \| 88.6 \| yes", quantized
    )
    assert len(rows_of(published.table_of(["--dataset", "imagenet"]))) == 1
    assert "| waits | A, arXiv:0000.00000 |" in published.table_of(["--sources"])


def test_results_that_have_no_place_in_the_table_are_refused(monkeypatch):
    file = "convert_cifar10_whitened_vgg8"
    with pytest.raises(ValueError, match="10000 test images of cifar10, not of imagen"):
        published.table_of([file, "--dataset", "imagenet"])
    monkeypatch.setattr(published, "COMPARED_STEPS", (64,))
    with pytest.raises(ValueError, match=r"QCFS has T = \[2, 4, 8, 16, 32\], but none"):
        published.table_of([])
