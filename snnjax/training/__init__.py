"""Training of SNNs by surrogate gradients.

* ``finetuning.py``: a training after a conversion.
* ``loop.py``: the epochs of any training, and how it resumes.
* ``losses.py``: losses and a readout.
* ``leaves.py``: which leaves of an SNN are trained.
* ``optimizers.py``: gradient descent that keeps neurons in their ranges.
* ``temperature.py``: the temperature of Dspike, by finite differences of the loss.
"""

from typing import Any

from snnjax.training.finetuning import Finetuned, finetune
from snnjax.training.leaves import check_gradients, kernels, param_labels
from snnjax.training.loop import train
from snnjax.training.losses import mean_cross_entropy, membrane_readout, tet
from snnjax.training.optimizers import descent, optimizer
from snnjax.training.temperature import (
    choose_temperature,
    finite_differences,
    temperatures,
)

__all__ = [
    "Finetuned",
    "check_gradients",
    "choose_temperature",
    "descent",
    "finetune",
    "finite_differences",
    "kernels",
    "mean_cross_entropy",
    "membrane_readout",
    "optimizer",
    "param_labels",
    "temperatures",
    "tet",
    "train",
]

_REMOVED = {
    "Descent": "descent returns a pair, init and step",
    "differentiable": "descent trains SNNs with integers and random keys",
    "distillation": "it is optax.losses.kl_divergence_with_log_targets of two "
    "jax.nn.log_softmax; finetune takes teacher=",
    "with_temperatures": "give init(..., model=snnjax.lif(temperature=...))",
    "Choice": "choose_temperature returns the SNN and the cosines",
}


def __getattr__(name: str) -> Any:
    """Until the next release, a removed name says what takes its place."""
    reason = f": {_REMOVED[name]}" if name in _REMOVED else ""
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{reason}")
