"""What a type checker finds in a user's script: the mistakes, and nothing else."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "typed_script.py"


@pytest.mark.skipif(importlib.util.find_spec("pyright") is None, reason="needs pyright")
def test_pyright_finds_exactly_the_mistakes():
    lines = SCRIPT.read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.endswith("- mistakes"))
    mistakes = {i for i, line in enumerate(lines) if i > start and line}
    command = [sys.executable, "-m", "pyright", "--outputjson"]
    command += ["--pythonpath", sys.executable, str(SCRIPT)]
    output = subprocess.run(command, capture_output=True, text=True).stdout
    reports = json.loads(output)["generalDiagnostics"]
    errors = {r["range"]["start"]["line"] for r in reports if r["severity"] == "error"}
    assert {lines[i] for i in errors} == {lines[i] for i in mistakes}
