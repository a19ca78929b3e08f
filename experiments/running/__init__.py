"""How a command runs: its options, its devices, its output folder, its training loop.

As in every package here, ``__init__`` exports the names that other packages use.
"""

from experiments.running import devices
from experiments.running.command_line import (
    OF_A_MACHINE,
    command,
    options_of_results,
    parse,
    run,
)
from experiments.running.options import (
    CHIPS,
    CODES,
    FROM_0_TO_1,
    MOST_LEVELS,
    NOT_NEGATIVE,
    POSITIVE,
    RECIPES,
    Conversion,
    Convert,
    FineTune,
    Rule,
    TrainANN,
    TrainSNN,
    at_most,
    check,
    check_range,
    one_of,
)
from experiments.running.output_folder import check_writable, digest, writable, write
from experiments.running.training_loop import (
    batches_of,
    fit,
    print_line,
    read_log,
    report,
    schedule,
    state_folder,
    steps_per_epoch,
    write_log,
)
