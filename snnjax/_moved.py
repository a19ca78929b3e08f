"""Names of snnjax 0.1 at the top level, and where they are now."""

import sys

_MODULES = {
    "calibrators": """
        Calibrator Fit View calibrate_weights correct_bias correct_potential half_charge
        least_squares_threshold least_squares_weights max_threshold percentile_threshold
        postpone_charge scale_threshold shift_bias streaming_only""",
    "capture": "Problem with_activation",
    "measures": "Energy Joules Measures neurobench spike_trains",
    "network": "Site Sites identity",
    "neurons": "NeuronParams",
    "storage": "Stored",
    "surrogate": "dspike relaxed_dspike",
    "training": """
        Alignment Choice Directions alignment check_gradients choose_temperature
        finite_differences mean_cross_entropy membrane_readout param_labels
        random_differences relaxed_gradient temperatures tet with_temperatures""",
}
MOVED = {
    name: f"snnjax.{module}.{name}"
    for module, names in _MODULES.items()
    for name in names.split()
} | {
    "Neuron": "snnjax.neurons.Neuron",
    "fits": "snnjax.calibrators.formulas",
}


def missing(name: str) -> AttributeError:
    """The error for a name that the top level lacks."""
    message = f"module 'snnjax' has no attribute {name!r}"
    if name in MOVED:
        message = f"snnjax.{name} of snnjax 0.1 is now {MOVED[name]}"
    # With name and obj, Python adds the nearest name that there is.
    return AttributeError(message, name=name, obj=sys.modules["snnjax"])
