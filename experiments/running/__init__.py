"""How a command runs: its options, its devices, its output folder, its training loop.

Like every package here, this one hands on the names that the others use.
"""

from experiments.running import devices
from experiments.running.command_line import OF_A_MACHINE, command, parse, run
from experiments.running.options import (
    MOST_LEVELS,
    Convert,
    FineTune,
    TrainANN,
    Training,
    TrainSNN,
    check_positive,
    check_several,
)
from experiments.running.output_folder import (
    reading,
    remove_unfinished,
    space,
    writable,
    write,
)
from experiments.running.resuming import check_resumable, digest, read_log
from experiments.running.training_loop import (
    cache_sized,
    fit,
    schedule,
    steps_per_epoch,
)

__all__ = [
    "Convert",
    "FineTune",
    "MOST_LEVELS",
    "OF_A_MACHINE",
    "TrainANN",
    "TrainSNN",
    "Training",
    "cache_sized",
    "check_positive",
    "check_resumable",
    "check_several",
    "command",
    "devices",
    "digest",
    "fit",
    "parse",
    "read_log",
    "reading",
    "remove_unfinished",
    "run",
    "schedule",
    "space",
    "steps_per_epoch",
    "writable",
    "write",
]
