"""Training of SNNs by surrogate gradients.

* ``finetuning.py``: a training after a conversion.
* ``loop.py``: the epochs of any training, and how it resumes.
* ``losses.py``: losses and a readout.
* ``leaves.py``: which leaves of an SNN are trained.
* ``optimizers.py``: gradient descent that keeps neurons in their ranges.
* ``differences.py``: finite differences of the loss.
* ``temperature.py``: the temperature of Dspike, chosen by these differences.
"""

from snnjax.training.differences import finite_differences
from snnjax.training.finetuning import Finetuned, finetune
from snnjax.training.leaves import (
    check_gradients,
    differentiable,
    kernels,
    param_labels,
)
from snnjax.training.loop import check_folder, train
from snnjax.training.losses import (
    distillation,
    mean_cross_entropy,
    membrane_readout,
    tet,
)
from snnjax.training.optimizers import Descent, descent, optimizer
from snnjax.training.temperature import (
    Choice,
    choose_temperature,
    temperatures,
    with_temperatures,
)

__all__ = [
    "Choice",
    "Descent",
    "Finetuned",
    "check_folder",
    "check_gradients",
    "choose_temperature",
    "descent",
    "differentiable",
    "distillation",
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
    "with_temperatures",
]
