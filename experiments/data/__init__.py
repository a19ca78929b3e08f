"""Data sets: values (``dataset.py``), read by ``images.py`` and ``events.py``."""

from experiments.data.dataset import (
    Dataset,
    MissingDataError,
    augment,
    normalize,
    normalized_as,
)
from experiments.data.events import load_events, prepare, prepare_nmnist
from experiments.data.images import load
