"""Cautions of networks whose neurons hardly fire or hardly stop, or with NaN.

Images of another scale than those of the conversion are the usual one. Currents that
are too small do not reach the thresholds, and the outputs are those of the biases. Of
currents that are too large no neuron sends more than a spike at every step.
"""

import collections
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from snnjax._checks import count, warn
from snnjax._text import has_numbers
from snnjax.measures.errors import SiteMeasures
from snnjax.neurons.protocol import field, levels_of
from snnjax.snn import SNN

# A site is silent if at least this share of its channels never fires, and its error is
# at least this share of the ANN's activation. The share of channels alone does not
# suffice: channels of a sparse ANN may be silent without an error.
_SILENT = 0.9
# A site is saturated if the ANN's activation is larger than this many times the value
# of a neuron that fires at every step; both are root mean squares. How many neurons
# fire at every step tells less. At T = 1 all that fire do, and of images that are too
# large about half of the currents are negative, so that neurons never fire. Thresholds
# that suit a network make the activation about as large as that value or smaller. In
# six dense networks, over all recipes and codes at T = 1, 2, 4 and 16, and in the other
# networks of the tests over four recipes and two codes at T = 1 and 2, it is at most
# 1.4 times as large. With images times 255 it is at least 18 times as large, unless the
# ANN itself clips its activations.
_SATURATED = 3
# Images of a silent network have another scale if the activation of the first site is
# smaller than this part of that value. With images of the right scale it is at least
# .08 of it in the same networks, and neurons are silent if there are too few steps.
_SMALL = 0.03
# If at least this share of the images has the same outputs, a warning says so.
_EQUAL = 0.9

_SAME_SCALE = "Give images of the same scale as those of the conversion"


def caution_of_sites(
    sites: Mapping[str, SiteMeasures], snn: SNN, steps: int
) -> str | None:
    """What is wrong if most sites are silent, or saturated; None if they are not.

    Args:
        sites: measures by the name of the site, in the order of execution.
        snn: its neurons.
        steps: T.
    """
    # All on the host: JAX would compile a program for each comparison.
    silent_names = list(_silent_sites(sites))
    if 2 * len(silent_names) > len(sites):
        return _silence(silent_names, sites, snn, steps)
    saturated_names = list(_saturated_sites(sites, snn, steps))
    if 2 * len(saturated_names) > len(sites):
        return _saturation(saturated_names, sites, snn, steps)
    return None


def _silent_sites(sites: Mapping[str, SiteMeasures]) -> Iterator[str]:
    """Names of the sites at which hardly any neuron fires, as far as is known."""
    for name, site in sites.items():
        if not has_numbers(site.silent):
            continue
        is_lost = float(site.error) >= _SILENT * float(site.activation)
        hardly_fires = float(site.silent) >= _SILENT and is_lost
        if hardly_fires or float(site.firing_rate) == 0:
            yield name


def _saturated_sites(
    sites: Mapping[str, SiteMeasures], snn: SNN, steps: int
) -> Iterator[str]:
    """Names of the sites whose neurons cannot send the activations of the ANN."""
    for name, site in sites.items():
        value = _value_of_all_spikes(name, snn, steps)
        if value is None or not has_numbers(site.activation):
            continue
        if float(site.activation) > _SATURATED * value:
            yield name


def _value_of_all_spikes(name: str, snn: SNN, steps: int) -> float | None:
    """What neurons of a site send by a spike at every step; None: unknown.

    It is the root mean square over neurons, of the lowest or the highest level.
    """
    params = snn.neurons[name]
    threshold = field(params, "threshold")
    levels = levels_of(snn.model_of(name))
    if levels is None or not has_numbers(threshold):
        return None
    offset = field(params, "offset")
    if offset is None:
        offset = 0.0
    if not has_numbers(offset):
        return None
    values = []
    for level in levels:
        spikes = level * snn.code.reach(steps) * np.asarray(threshold, np.float64)
        sent = spikes + np.asarray(offset, np.float64)
        values.append(np.sqrt(np.square(sent).mean()))
    return float(max(values))


def _silence(
    silent_names: list[str], sites: Mapping[str, SiteMeasures], snn: SNN, steps: int
) -> str:
    """That most sites are silent, and why."""
    first_name = next(iter(sites))
    remedy = "Convert with more steps, with snnjax.best(), or under a radix code"
    if first_name in silent_names:
        activation = float(sites[first_name].activation)
        threshold = field(snn.neurons[first_name], "threshold")
        cause = (
            f"the activations of the first site, {first_name!r}, are {activation:.2g} "
            "(root mean square)"
        )
        if has_numbers(threshold):
            cause += f" and its threshold is {np.mean(np.asarray(threshold)):.2g}"
        value = _value_of_all_spikes(first_name, snn, steps)
        if value is None or activation < _SMALL * value:
            remedy = _SAME_SCALE
    else:
        cause = f"too few spikes reach site {silent_names[0]!r} and those behind it"
    return (
        f"the network is silent: hardly any neuron fires at {len(silent_names)} of "
        f"{len(sites)} sites with T = {steps} for these images, because {cause}. "
        f"{remedy}"
    )


def _saturation(
    saturated_names: list[str], sites: Mapping[str, SiteMeasures], snn: SNN, steps: int
) -> str:
    """That most sites are saturated, and by how much the first of them is."""
    name = saturated_names[0]
    activation = float(sites[name].activation)
    value = _value_of_all_spikes(name, snn, steps)
    return (
        f"the network is saturated: at {len(saturated_names)} of {len(sites)} sites "
        "the activations of these images are much larger than what neurons can send. "
        f"At site {name!r} they are {activation:.2g}, and a neuron that fires at every "
        f"step sends {value:.2g} (root mean squares). {_SAME_SCALE}"
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
