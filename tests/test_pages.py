"""Every table of the pages is what its command prints now, or what its file holds."""

import json
import re
from pathlib import Path

import pytest

from experiments import pages, report
from experiments.models import load_source
from experiments.presets import PRESETS_CONVERT, SOURCES

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WITH_TABLES = [page for page in PAGES if pages.sources_of(page.read_text())]
PUBLISHED = [*RESULTS.glob("convert_cifar10_*.json"), *RESULTS.glob("finetune_*.json")]
COMMENT = "<!-- python -m experiments.results --costs\nconvert_cifar10_vgg8_best -->\n"


@pytest.mark.parametrize("page", WITH_TABLES, ids=lambda page: page.name)
def test_the_tables_of_a_page_are_those_of_their_commands(page):
    text = page.read_text()
    assert pages.renewed(text) == text
    assert text.count("<!-- python -m") == text.count("<!-- python -m experiments.")


def test_every_table_of_results_on_the_pages_has_its_command():
    for page in PAGES:
        text = page.read_text()
        heads = re.findall(r"^\| (?:network|composition) \|", text, re.MULTILINE)
        assert len(heads) <= len(pages.sources_of(text)), page.name


def test_a_table_is_made_anew_and_the_rest_of_the_page_is_left():
    stale = f"# A\n\n{COMMENT}\n| network |\n|---|\n| old |\n\ntext\n| other |\n"
    new = pages.renewed(stale)
    assert "old" not in new and "| `vgg8` | `best` | 0 | 4 |" in new
    assert new.startswith(f"# A\n\n{COMMENT}\n| network | recipe |")
    assert new.endswith(" |\n\ntext\n| other |\n")
    assert pages.renewed(new) == new
    for first in (f"# A\n\n{COMMENT}\ntext\n| other |\n", f"# A\n\n{COMMENT}"):
        assert pages.renewed(pages.renewed(first)) == pages.renewed(first)
        assert pages.renewed(first) == new[: len(pages.renewed(first))]


def test_a_file_gives_its_first_table():
    rows = pages.rows_of("benchmarks/results/tpu.md")
    assert rows.count("\n") > 20
    assert all(line.startswith("|") for line in rows.splitlines())


@pytest.mark.parametrize(
    "source, message",
    [
        ("python -m experiments.convert", "names 'python -m experiments.convert'; all"),
        ("python -m experiments.resultsx", "allowed: python -m experiments.results, "),
        ("python -m experiments.results none", "no file none; give"),
        ("benchmarks/results/none.md", "No such file"),
    ],
)
def test_a_comment_that_names_nothing_is_refused_and_no_page_changes(
    source, message, tmp_path
):
    good, bad = tmp_path / "good.md", tmp_path / "bad.md"
    good.write_text(f"{COMMENT}\n| old |\n")
    bad.write_text(f"<!-- {source} -->\n\n| old |\n")
    with pytest.raises(SystemExit, match=re.escape(message)):
        pages.main([str(good), str(bad)])
    assert "old" in good.read_text()


def test_the_command_names_the_pages_that_change(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text(f"{COMMENT}\n| old |\n")
    for output in (f"{page}: new tables\n", ""):
        pages.main([str(page)])
        assert capsys.readouterr().out == output
    assert "`vgg8`" in page.read_text()


@pytest.mark.parametrize("file", PUBLISHED, ids=lambda file: file.stem)
def test_published_results_are_of_published_networks_and_of_no_machine(file):
    facts = json.loads(file.read_text())
    preset = PRESETS_CONVERT[f"cifar10_{report.network_name(facts['source'])}"]
    out = facts["config"]["out"] or preset.out
    assert out.startswith(("runs/", preset.out))
    assert facts["config"]["data_dir"] is None
    card = load_source(ROOT / facts["config"]["checkpoint"]).card
    assert facts["source"]["sha256"] == card["sha256"]
    if curve := facts.get("accuracy_after_epochs"):
        assert curve[-1] == facts["results"][-1]["accuracies"][0][-1]


def test_every_published_source_has_results_on_a_page():
    shown = " ".join(s for p in PAGES for s in pages.sources_of(p.read_text()))
    networks = {
        report.network_name(json.loads(file.read_text())["source"])
        for file in PUBLISHED
        if file.stem in shown.split()
    }
    assert set(SOURCES) == networks


def test_every_published_fine_tuning_is_in_the_table_of_epochs():
    sources = pages.sources_of((ROOT / "docs" / "accuracy.md").read_text())
    [epochs] = [source.split() for source in sources if "--epochs" in source]
    files = {file.stem for file in PUBLISHED if file.stem.startswith("finetune")}
    assert files == set(epochs[epochs.index("--epochs") + 1 :])
