"""Networks (``zoo.py``), and trained ones on disk.

``trained_ann.py`` reads a source network, also from PyTorch (``torch_files.py``,
``torch_names.py``); ``saved_snn.py`` reads and writes a spiking one.
"""

from experiments.models.saved_snn import SNN_FILE, load_snn
from experiments.models.torch_files import read_weights
from experiments.models.torch_names import to_flax
from experiments.models.trained_ann import (
    Source,
    load_source,
    save_source,
    source_function,
)
from experiments.models.zoo import NAMES, build, parameters_of
