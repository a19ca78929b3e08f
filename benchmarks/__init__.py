"""Benchmarks: each file answers one question, with the peers timed in the same run."""

import sys

from experiments import check_command, require

# A worker runs in the interpreter of its peer, which has other packages.
if sys.argv[:1] == ["-m"] and not any(word.startswith("--side") for word in sys.argv):
    check_command(__path__[0])
    require("the benchmarks", "flax", "matplotlib", "optax")
