"""Training of SNNs by surrogate gradients.

* ``finetuning.py``: a whole training of an SNN.
* ``loop.py``: the epochs of any training, and how it resumes.
* ``identity.py``: what tells one training from another.
* ``losses.py``: losses and a readout.
* ``leaves.py``: which leaves of an SNN are trained.
* ``optimizers.py``: gradient descent that keeps neurons in their ranges.
"""

from snnjax.training.finetuning import Finetuned, finetune
from snnjax.training.leaves import check_gradients, kernels, param_labels
from snnjax.training.loop import train
from snnjax.training.losses import mean_cross_entropy, membrane_readout
from snnjax.training.optimizers import descent, optimizer

__all__ = [
    "Finetuned",
    "check_gradients",
    "descent",
    "finetune",
    "kernels",
    "mean_cross_entropy",
    "membrane_readout",
    "optimizer",
    "param_labels",
    "train",
]
