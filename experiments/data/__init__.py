"""Data sets: values (``dataset.py``), read by the other files."""

from experiments.data.dataset import (
    Dataset,
    MissingDataError,
    augment,
    augment_sequences,
    normalize,
    normalized_as,
    split,
)
from experiments.data.events import load_events, prepare, prepare_nmnist
from experiments.data.images import load
from experiments.data.sequences import in_parts, load_cochlea, load_keywords
