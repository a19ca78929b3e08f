"""How a command runs: options, devices, output folder, training loop."""

from experiments.running import devices, options, temperature, training_loop
from experiments.running.command_line import (
    OF_A_MACHINE,
    command,
    options_of_results,
    parse,
    run,
    warn,
    wrapped,
)
from experiments.running.options import (
    CHIPS,
    CODES,
    QUANTIZED_ANN,
    RECIPES,
    Conversion,
    Convert,
    FineTune,
    TrainANN,
    TrainSNN,
    name_among,
)
from experiments.running.output_folder import check_writable, digest, writable, write
