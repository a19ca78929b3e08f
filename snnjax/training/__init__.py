"""Direct training by surrogate gradients.

``losses.py``: losses and readouts; ``leaves.py``: which leaves of an SNN train;
``optimizers.py``: descent that keeps neurons within their ranges;
``temperature.py``: Dspike's b, by the finite differences of ``differences.py``.
"""

from snnjax.training.differences import (
    Directions,
    finite_differences,
    random_differences,
)
from snnjax.training.leaves import (
    check_gradients,
    differentiable,
    kernels,
    param_labels,
)
from snnjax.training.losses import (
    distillation,
    mean_cross_entropy,
    membrane_readout,
    tet,
)
from snnjax.training.optimizers import Descent, descent, optimizer, within_ranges
from snnjax.training.temperature import (
    Alignment,
    Choice,
    alignment,
    choose_temperature,
    relaxed_gradient,
    temperatures,
    with_temperatures,
)

__all__ = [
    "Alignment",
    "Choice",
    "Descent",
    "Directions",
    "alignment",
    "check_gradients",
    "choose_temperature",
    "descent",
    "differentiable",
    "distillation",
    "finite_differences",
    "kernels",
    "mean_cross_entropy",
    "membrane_readout",
    "optimizer",
    "param_labels",
    "random_differences",
    "relaxed_gradient",
    "temperatures",
    "tet",
    "with_temperatures",
    "within_ranges",
]
