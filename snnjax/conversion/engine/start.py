"""What sweeps begin with: the network in stages, and the images in micro-batches."""

import functools
import math
from collections.abc import Sequence

import numpy as np

from snnjax.conversion.engine.ann import AnnPass, Effects, pass_ann
from snnjax.conversion.engine.calibration import Calibration, Parts
from snnjax.conversion.engine.segments import Results
from snnjax.conversion.images import CalibrationImages
from snnjax.network.equations import Network, shape_of
from snnjax.network.sites import Site
from snnjax.network.stages import Stage, stages
from snnjax.neurons.by_site import models_in
from snnjax.neurons.unroll import needs_no_time
from snnjax.snn import SNN

# The largest site or output in one micro-batch, over all T steps.
_MICRO_BATCH_BYTES = 2**24
# All sites in one micro-batch of the ANN, which a backward pass keeps for the effects.
_BACKWARD_BYTES = 2**28
# The values between the stages of the ANN, for all images.
_ANN_BYTES = 2**30
# Sites, outputs and the values between stages are float32.
_FLOAT32_BYTES = 4


def start(
    *,
    network: Network,
    snn: SNN,
    images: CalibrationImages,
    sites: Sequence[Site],
    wait: int,
    weigh_errors: bool,
    keep_unseen: bool,
) -> Calibration:
    """What sweeps begin with: the network in stages, and the images in micro-batches.

    Args:
        snn: the trained parameters, with fresh neurons.
        sites: those that fire.
        weigh_errors: whether a recipe is known to ask for the effects of errors.
        keep_unseen: whether some images have no effect, so that no fit uses them.
    """
    assert snn.steps is not None
    steps = snn.steps
    code = snn.code
    sums_suffice = needs_no_time(code, steps, wait, models_in(snn.model))
    steps_at_once = 1 if sums_suffice else steps
    sizes = [math.prod(site.shape) for site in sites]
    # Outputs may be larger than all sites, as the logits of a language model are. They
    # are computed once in the ANN, and with a time axis in the SNN.
    for output in network.outputs:
        sizes.append(math.prod(shape_of(network.avals, output)))
    micro_batch_size = _micro_batch_size(max(sizes), sum(sizes), steps_at_once)
    batches = images.micro_batches(micro_batch_size)
    unseen_numbers = images.unseen_numbers() if keep_unseen else range(0)
    unseen = []
    for batch in batches:
        are_unseen = [number in unseen_numbers for number in batch.numbers]
        unseen.append(np.asarray(are_unseen))
    network_stages = stages(network)
    # Where devices share the images, stages are computed one by one (`segments.run`),
    # each device its own images. `pass_ann` does not say where its results lie.
    keep_results = images.batch_sharding is None and _fits_in_memory(
        network, network_stages, images.count
    )

    @functools.cache
    def ann_pass(with_effects: bool) -> AnnPass:
        return pass_ann(
            network,
            network_stages,
            snn.params,
            batches,
            unseen,
            keep_results=keep_results,
            with_effects=with_effects,
        )

    batches_of_inputs: Parts = {variable: [] for variable in network.x}
    for batch in batches:
        for variable, array in network.inputs(batch.images).items():
            batches_of_inputs[variable].append(array)

    def effects() -> dict[str, Effects]:
        return ann_pass(True).effects

    # If a recipe asks for effects, both functions call `ann_pass` with True, and the
    # cache computes one pass for both. Otherwise a pass without effects is cheaper.
    def ann_results() -> list[list[Results]]:
        return ann_pass(weigh_errors).results

    return Calibration(
        network=network,
        stages=network_stages,
        ann_params=network.arguments(snn.params),
        snn=snn,
        steps=steps,
        wait=wait,
        batch_sharding=images.batch_sharding,
        images=batches_of_inputs,
        batch_sizes=tuple(len(batch.numbers) for batch in batches),
        unseen=tuple(unseen),
        effects=effects,
        ann_results=ann_results if keep_results else None,
        curves={},
    )


def _fits_in_memory(
    network: Network, network_stages: Sequence[Stage], image_count: int
) -> bool:
    """Whether memory holds what all stages of the ANN compute for these images."""
    variables = set()
    for stage in network_stages[:-1]:
        variables.update((stage.output, *stage.carried))
    size_of_one = sum(
        math.prod(network.avals[variable].shape) for variable in variables
    )
    return _FLOAT32_BYTES * image_count * size_of_one <= _ANN_BYTES


def _micro_batch_size(largest_size: int, total_size: int, steps_at_once: int) -> int:
    """Images at a time on each device; see `_MICRO_BATCH_BYTES`, `_BACKWARD_BYTES`.

    Args:
        largest_size: numbers of an image in the largest site or output.
        total_size: numbers of an image in all of them.
        steps_at_once: T, or 1 where sums over time suffice.
    """
    largest_bytes = _FLOAT32_BYTES * steps_at_once * largest_size
    largest_count = _MICRO_BATCH_BYTES // largest_bytes
    total_count = _BACKWARD_BYTES // (_FLOAT32_BYTES * total_size)
    return max(1, min(largest_count, total_count))
