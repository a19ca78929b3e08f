"""Networks (``zoo.py``), and trained ones on disk.

``trained_ann.py`` reads a source network, whose weights ``weights.py`` reads;
``saved_snn.py`` reads a spiking one.
"""

from experiments.models.saved_snn import SNN_FILE, load_snn
from experiments.models.trained_ann import (
    Source,
    load_source,
    save_source,
    source_function,
)
from experiments.models.weights import read_weights
from experiments.models.zoo import NAMES, build, parameters_of
