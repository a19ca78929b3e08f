"""Every table of the pages is what its command prints now, or what its file holds."""

import json
import re
from pathlib import Path

import pytest

from experiments import pages, prices, report
from experiments.models import load_source
from experiments.presets import PRESETS_CONVERT

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
HEAD = re.compile(r"^(.*)\n\n\| (?:network|composition) \|", re.MULTILINE)
PUBLISHED = [*RESULTS.glob("convert_cifar10_*.json"), *RESULTS.glob("finetune_*.json")]
COMMENT = "<!-- python -m experiments.results --costs\nconvert_cifar10_vgg8_radix -->\n"


@pytest.mark.thorough
def test_the_tables_of_the_pages_are_those_of_their_commands():
    for page in PAGES:
        text = page.read_text()
        assert pages.with_new_tables(text) == text, page
        above = HEAD.findall(text)  # a table of networks has its command above it
        assert [line for line in above if not line.endswith("-->")] == [], page


def test_every_public_name_has_a_user():
    """Outside of the tests; one that nobody uses is made private, or goes."""
    assert prices.unused() == []


def test_the_table_of_prices_has_no_options(capsys):
    with pytest.raises(SystemExit):
        prices.table_of(["--bogus"])
    assert "unrecognized arguments: --bogus" in capsys.readouterr().err


def test_a_table_is_made_anew_and_the_rest_of_the_page_is_left():
    stale = f"# A\n\n{COMMENT}\n| network |\n|---|\n| old |\n\ntext\n| other |\n"
    new = pages.with_new_tables(stale)
    assert "old" not in new and "| `vgg8` | `best, radix signed` | 1 | 4 |" in new
    assert new.startswith(f"# A\n\n{COMMENT}\n| network | recipe |")
    assert new.endswith(" |\n\ntext\n| other |\n")
    for first in (f"# A\n\n{COMMENT}\ntext\n| other |\n", f"# A\n\n{COMMENT}", new):
        once = pages.with_new_tables(first)
        assert pages.with_new_tables(once) == once == new[: len(once)]


def test_spaces_do_not_matter():
    for comment in (
        "<!--python -m experiments.results --costs convert_cifar10_vgg8_radix-->",
        "  <!-- python  -m experiments.results\nconvert_cifar10_vgg8_radix -->\n",
        "<!-- python -m experiments.results convert_cifar10_vgg8 --costs --> \n\n",
    ):
        for rows in ("| old |", "| old |\n", "  | old |\n|---|\n"):
            new = pages.with_new_tables(f"# A\n\n{comment}\n{rows}")
            assert "old" not in new and new.count("| network |") == 1
            assert new.endswith(" |\n") and pages.with_new_tables(new) == new


def test_a_file_gives_its_first_table():
    rows = pages.rows_of("benchmarks/results/torchvision.md")
    assert rows.count("\n") > 20
    assert all(line.startswith("|") for line in rows.splitlines())


def test_a_comment_that_names_no_table_is_refused_and_no_page_changes(tmp_path):
    good, bad = tmp_path / "good.md", tmp_path / "bad.md"
    good.write_text(f"{COMMENT}\n| old |\n")
    for source, message in (
        ("a <!-- comment", "a comment has no end, or no beginning"),
        ("python -m experiments.results --help", "--help' give no table"),
        ("python -m experiments.results", "results' give no table"),
        ("a remark", "'a remark' names no table; allowed: python -m experiments.res"),
        ("python -m experiments.resultsx", "allowed: python -m experiments.results, "),
        ("python3 -m experiments.results", "allowed: python -m experiments.results, "),
        ("python -m experiments.results none", "no file none; give"),
        ("python -m experiments.results 'none", "No closing quotation"),
        ("benchmarks/results/none.md", "none.md is not a file with a table"),
        (
            "benchmarks/results/torchvision.json",
            "torchvision.json is not a file with a table",
        ),
        ("CONTRIBUTING.md", "or benchmarks/results/NAME.md"),
    ):
        bad.write_text(f"# Title\n\n<!-- {source} -->\n\n| old |\n")
        with pytest.raises(SystemExit, match=f"{bad}: .*{re.escape(message)}"):
            pages.main([str(good), str(bad)])
        assert "old" in good.read_text() and "old" in bad.read_text()


def test_the_command_names_the_pages_that_change(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text(f"{COMMENT}\n| old |\n")
    for output in (f"{page}: new tables\n", ""):
        pages.main([str(page)])
        assert capsys.readouterr().out == output
    assert "`vgg8`" in page.read_text()


@pytest.mark.thorough
def test_published_results_are_of_published_networks_and_of_no_machine():
    cards = {}
    for file in PUBLISHED:
        facts = json.loads(file.read_text())
        config = facts["config"]
        name = report.network_name(facts["source"])
        preset = PRESETS_CONVERT[f"cifar10_{name}"]
        assert (config["out"] or preset.out).startswith(("runs/", preset.out)), file
        assert config["data_dir"] is None, file
        checkpoint = config["checkpoint"]
        if checkpoint not in cards:  # weights that others trained are not here
            published = not checkpoint.startswith("runs/")
            card = load_source(ROOT / checkpoint).card if published else facts["source"]
            cards[checkpoint] = card
        assert facts["source"]["sha256"] == cards[checkpoint]["sha256"], file
        if curve := facts.get("accuracy_after_epochs"):
            assert curve[-1] == facts["results"][-1]["accuracies"][0][-1], file


def test_every_published_network_and_fine_tuning_is_in_a_table():
    shown = []  # the words of all comments that name a table
    for page in PAGES:
        for source in pages.sources_of(page.read_text()):
            shown += source.split()
    networks = {
        report.network_name(json.loads(file.read_text())["source"])
        for file in PUBLISHED
        if file.stem in shown
    }
    assert {f"cifar10_{name}" for name in networks} == {*PRESETS_CONVERT} - {"digits"}
    sources = pages.sources_of((ROOT / "docs" / "accuracy.md").read_text())
    [epochs] = [source.split() for source in sources if "--epochs" in source]
    files = {file.stem for file in PUBLISHED if file.stem.startswith("finetune")}
    assert files == set(epochs[epochs.index("--epochs") + 1 :])
