"""Every command ends errors and Ctrl-C with one message, and leaves whole files."""

import dataclasses
import io
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

import snnjax
from experiments import conversions, convert, models, published, results
from experiments.presets import (
    PRESETS_ANN,
    PRESETS_CONVERT,
    PRESETS_FINETUNE,
    PRESETS_SNN,
)
from experiments.running import Convert, command, command_line, parse, run, write
from snnjax import __main__

ROOT = Path(__file__).parents[1]


def test_an_error_of_the_user_ends_with_its_message():
    for kind in command_line.USER_ERRORS:

        def work(kind=kind):
            raise kind("wrong")

        with pytest.raises(SystemExit, match="^error: wrong$"):
            run(work)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_an_error_has_lines_that_fit_on_a_terminal_and_one_in_a_file(monkeypatch):
    def work():
        raise ValueError("a sentence of many words " * 5)

    with pytest.raises(SystemExit) as in_file:
        run(work, compiles=False)
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("COLUMNS", "60")
    with pytest.raises(SystemExit) as on_terminal:
        run(work, compiles=False)
    assert len(in_file.value.code.splitlines()) == 1
    lines = on_terminal.value.code.splitlines()
    assert max(map(len, lines)) <= 59 and len(lines) == 3
    assert on_terminal.value.code.split() == in_file.value.code.split()
    with pytest.raises(SystemExit):
        parse(Convert, {}, ["--recipes", "bset", "--steps", "4"])
    assert max(map(len, sys.stderr.getvalue().splitlines())) <= 59


def test_without_a_terminal_what_the_library_logs_is_on_stderr(capsys):
    logger = logging.getLogger("snnjax")
    for _ in range(2):
        run(lambda: logger.info("site 1 of 9: relu"), compiles=False)
        assert capsys.readouterr().err == "  site 1 of 9: relu\n"
    logger.info("after the command")
    assert not capsys.readouterr().err


def test_compiled_programs_are_kept_and_a_line_says_where(
    tmp_path, monkeypatch, capsys
):
    saved = {
        "jax_compilation_cache_dir": jax.config.jax_compilation_cache_dir,
        "jax_persistent_cache_min_compile_time_secs": (
            jax.config.jax_persistent_cache_min_compile_time_secs
        ),
    }
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        run(lambda: None, compiles=False)
        assert not capsys.readouterr().out
        run(lambda: None)
        folder = str(tmp_path / "snnjax")
        assert capsys.readouterr().out == f"compiled programs are kept in {folder}\n"
        assert jax.config.jax_compilation_cache_dir == folder
        # A folder of the user's stays.
        folder = str(tmp_path / "of the user")
        jax.config.update("jax_compilation_cache_dir", folder)
        run(lambda: None)
        assert capsys.readouterr().out == f"compiled programs are kept in {folder}\n"
        assert jax.config.jax_compilation_cache_dir == folder
    finally:
        for name, value in saved.items():
            jax.config.update(name, value)


def test_what_a_kill_leaves_is_replaced_by_the_next_write(tmp_path):
    file = tmp_path / "metrics.json"
    write(file, "before")
    (tmp_path / ".metrics.json.tmp").write_text("half")  # of a killed process
    write(file, "after")
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]
    assert file.read_text() == "after"


# A shell that starts pytest in the background lets its children ignore Ctrl-C.
AT_WORK = """
import runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
words, sys.argv = sys.argv[1:], ["-m"]  # as Python has it at first
import experiments
sys.argv = words
runpy.run_module(f"experiments.{sys.argv[0]}", run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize("module", ["convert", "train_ann", "train_snn", "comparison"])
def test_ctrl_c_at_work_prints_no_traceback(module, tmp_path):
    command = [sys.executable, "-c", AT_WORK, module, "--out", str(tmp_path)]
    command += ["--preset", "digits_resnet"] if module == "train_ann" else []
    worker = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert worker.stdout.readline()  # it is at work
    time.sleep(2)
    worker.send_signal(signal.SIGINT)
    _, errors = worker.communicate(timeout=120)
    assert (worker.returncode, errors.endswith("\ninterrupted\n")) == (130, True)
    assert "Traceback" not in errors


IMPORTING = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv = ["-m"]  # as Python has it while it imports the package of a command
import experiments
os.kill(os.getpid(), signal.SIGINT)
"""


def test_ctrl_c_during_imports_prints_no_traceback():
    command = [sys.executable, "-c", IMPORTING]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "\ninterrupted\n")


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (
            "experiments.integers",
            "integers is no command; .* ablation, codes, ",
        ),
        ("experiments.convret", "convret is no command; .*; closest: convert$"),
        ("benchmarks.torchvison", "is no command; .*; closest: torchvision$"),
    ],
)
def test_a_module_that_is_no_command_says_which_ones_are(module, message):
    command = [sys.executable, "-m", module, "--chip", "spek"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.search(message, done.stderr.strip()), done.stderr


@pytest.mark.parametrize(
    ("table", "arguments", "message"),
    [
        (
            published,
            "--dataset cifar",
            "cifar; allowed: .*; closest: cifar10, ",
        ),
        (results, "f.json --against spike", "allowed: 'T', .*; closest: spikes"),
    ],
)
def test_an_unknown_name_of_a_list_is_answered_by_the_closest_ones(
    table, arguments, message, capsys
):
    with pytest.raises(SystemExit, match="2"):
        table.table_of(arguments.split())
    assert re.search(message, capsys.readouterr().err)


def test_the_library_as_a_module_says_what_a_report_needs(monkeypatch):
    text = __main__.report()
    assert text.startswith(f"snnjax {snnjax.__version__}, Python 3.")
    assert f"jax                  {jax.__version__}" in text
    assert "backend cpu: 8 x cpu" in text
    assert not re.search("flax +missing", text)

    def no_devices():
        raise RuntimeError("no backend foo")

    # Without packages and devices it says so, and the rest all the same.
    monkeypatch.setattr(__main__, "version_of", lambda package: None)
    monkeypatch.setattr(jax, "devices", no_devices)
    text = __main__.report()
    assert 'missing: save and load; pip install "snnjax[share]"' in text
    assert "JAX finds no devices: no backend foo" in text and "jaxlib" in text


def test_help_says_what_the_command_does_and_what_names_there_are(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "__main__", convert)  # as by python -m
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        convert.main(["--help"])
    text = capsys.readouterr().out
    assert text.startswith("usage: python -m experiments.convert ")
    assert "Converts a trained network by several recipes" in text
    assert "['config']" not in text and "(default: (4, 8))" in text
    words = set(text.replace(",", " ").split())
    assert {"recipes:", *conversions.RECIPES, "models:", *models.NAMES} <= words
    assert max(map(len, text.splitlines())) <= 79


def test_a_command_gives_its_configuration_again():
    configs = [
        Convert(dataset="my set", waits=("1", "T"), levels=(-1, 1), last_zone=0.7)
    ]
    for presets in (PRESETS_ANN, PRESETS_CONVERT, PRESETS_FINETUNE, PRESETS_SNN):
        configs.append([*presets.values()][-1])
    for config in configs:
        line = command("experiments.module", config)
        python, m, module, *options = shlex.split(line)
        assert (python, m, module) == ("python", "-m", "experiments.module")
        parsed = parse(type(config), {}, options)
        assert parsed == dataclasses.replace(config, out=parsed.out)
