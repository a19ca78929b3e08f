"""Warnings of networks in which hardly any neuron fires, or with NaN, with the cause.

Images of another scale than those of the conversion are the usual one: their currents
do not reach the thresholds, and the outputs are those of the biases.
"""

import collections
from collections.abc import Mapping
from typing import Any

import numpy as np

from snnjax._checks import count, warn
from snnjax._text import has_numbers
from snnjax.measures.errors import SiteMeasures
from snnjax.neurons.protocol import field
from snnjax.snn import SNN

# A site is silent if at least this share of its channels never fires, and its error is
# at least this share of the ANN's activation. The share of channels alone does not
# suffice: channels of a sparse ANN may be silent without an error.
_SILENT = 0.9
# If at least this share of the images has the same outputs, a warning says so.
_EQUAL = 0.9


def warn_of_silent_sites(
    sites: Mapping[str, SiteMeasures], snn: SNN, steps: int, image_count: int
) -> None:
    """Warn if most sites are silent, where numbers are known, and say why.

    Args:
        sites: measures by the name of the site, in the order of execution.
        snn: its neurons.
        steps: T.
        image_count: how many images were measured.
    """
    silent_names = []
    for name, site in sites.items():
        if not has_numbers(site.silent):
            return
        # On the host: JAX would compile a program for each comparison.
        is_lost = float(site.error) >= _SILENT * float(site.activation)
        hardly_fires = float(site.silent) >= _SILENT and is_lost
        if hardly_fires or float(site.firing_rate) == 0:
            silent_names.append(name)
    if 2 * len(silent_names) <= len(sites):
        return
    first_name = next(iter(sites))
    if first_name in silent_names:
        activation = float(sites[first_name].activation)
        threshold = field(snn.neurons[first_name], "threshold")
        cause = (
            f"the activations of the first site, {first_name!r}, are {activation:.2g} "
            "(root mean square)"
        )
        if threshold is not None and has_numbers(threshold):
            cause += f" and its threshold is {np.mean(np.asarray(threshold)):.2g}"
        remedy = "Give images of the same scale as those of the conversion"
    else:
        cause = f"too few spikes reach site {silent_names[0]!r} and those behind it"
        remedy = "Convert with more steps, with snnjax.best(), or under a radix code"
    warn(
        f"the network is silent: hardly any neuron fires at {len(silent_names)} of "
        f"{len(sites)} sites within {steps} steps, for these {image_count} images, "
        f"because {cause}. {remedy}"
    )


def warn_of_broken_outputs(outputs: Any, labels: Any) -> None:
    """Warn of NaN, or if nearly all images, of several classes, have the same outputs.

    Args:
        outputs: [T, B, classes].
        labels: [B].
    """
    if not has_numbers(outputs) or not has_numbers(labels):  # traced
        return
    nan_count = int(count("isnan", outputs))
    if nan_count:
        warn(
            f"the outputs are not finite: {nan_count} of {np.size(outputs)} numbers "
            "are NaN, and count as wrong answers. Check the images and the params"
        )
        return
    labels = np.asarray(labels)
    if np.all(labels == labels[:1]):
        return
    totals = np.asarray(outputs).sum(0)  # over time, [B, classes]
    image_counts = collections.Counter(total.tobytes() for total in totals)
    ((_, most),) = image_counts.most_common(1)
    if most < _EQUAL * len(labels):
        return
    images = f"all {most}" if most == len(labels) else f"{most} of {len(labels)}"
    warn(
        f"{images} images have the same outputs, so perhaps no neuron fires: is their "
        "scale that of the images of the conversion? snnjax.measure shows the rates of "
        "all sites"
    )
