"""How a command runs: its options, its devices, its output folder, its training loop.

As in every package here, ``__init__`` exports the names that other packages use.
"""

from experiments.running import devices
from experiments.running.checkpoints import check_resumable, claim, digest
from experiments.running.command_line import OF_A_MACHINE, command, parse, run
from experiments.running.options import (
    CHIPS,
    CODES,
    MOST_LEVELS,
    NOT_NEGATIVE,
    Conversion,
    Convert,
    FineTune,
    TrainANN,
    TrainSNN,
    check_range,
    check_several,
    one_of,
)
from experiments.running.output_folder import check_writable, space, writable, write
from experiments.running.training_loop import (
    batches_of,
    fit,
    print_line,
    read_log,
    report,
    schedule,
    steps_per_epoch,
    write_log,
)

__all__ = [
    "CHIPS",
    "CODES",
    "Conversion",
    "Convert",
    "FineTune",
    "MOST_LEVELS",
    "NOT_NEGATIVE",
    "OF_A_MACHINE",
    "TrainANN",
    "TrainSNN",
    "batches_of",
    "check_range",
    "check_resumable",
    "check_several",
    "check_writable",
    "claim",
    "command",
    "devices",
    "digest",
    "fit",
    "one_of",
    "parse",
    "print_line",
    "read_log",
    "report",
    "run",
    "schedule",
    "space",
    "steps_per_epoch",
    "writable",
    "write",
    "write_log",
]
