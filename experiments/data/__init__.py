"""Data sets: values (``dataset.py``), read by ``images.py`` and ``events.py``.

As in every package here, ``__init__`` exports the names that other packages use.
"""

from experiments.data.dataset import (
    Dataset,
    MissingDataError,
    augment,
    normalize,
    normalized_as,
)
from experiments.data.events import load_events, prepare, prepare_nmnist
from experiments.data.images import load
