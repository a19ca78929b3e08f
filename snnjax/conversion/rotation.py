"""Rotation of a network before its conversion, where it costs less than it saves.

    J = error of the outputs + price x spikes per neuron

J of a site with the thresholds that make it least, by the curves of
``snnjax.calibrators.spending``, is compared for the activations as they are and for
the rotated ones (``snnjax.network.rotation``). A rotated encoder sends more spikes, of
smaller thresholds, with a smaller error. Source of the choice: ours.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex

from snnjax._arrays import on_host
from snnjax._checks import called_as, check_wait
from snnjax._ranges import NOT_NEGATIVE
from snnjax._text import Table
from snnjax._trees import shapes_of
from snnjax.calibrators.spending import total
from snnjax.codes import Code, check_code, rate
from snnjax.conversion.engine.start import start
from snnjax.conversion.engine.sweep import survey
from snnjax.conversion.images import CalibrationImages, place_images
from snnjax.network.capture.capture import capture
from snnjax.network.equations import Network
from snnjax.network.rotation import (
    Rotation,
    rotated_params,
    rotations,
    with_rotations,
)
from snnjax.neurons.models import IntegrateAndFire
from snnjax.snn import SNN, models_of_sites


class Rotated(NamedTuple):
    """The result of `rotate`.

    Attributes:
        fn: the network; its rotated encoders send x H.
        params: its parameters, of the same structure and shapes as before; kernels
            behind rotated encoders are H W.
        sites: a row for each firing site: the block of H, J before and after, and
            whether it is rotated, or why it cannot be; ``print`` shows it.
    """

    fn: Callable
    params: chex.ArrayTree
    sites: Table


@called_as("snnjax.rotate(fn, params, x, steps=..., ...)")
def rotate(
    fn: Callable,
    params: chex.ArrayTree,
    x: chex.ArrayTree,
    *,
    steps: int,
    code: Code | None = None,
    price: float | None = None,
) -> Rotated:
    """The same network, with encoders rotated where that pays.

        (x H) (H W) = x W,    H H = 1

    Some encoders have channels with rare large values, such as the products of a gated
    perceptron. A threshold then either clips these or rounds all others coarsely. x H
    mixes m channels, Hadamard's matrix H over sqrt(m) for each block of m, the largest
    power of two that divides their number. Its values are near a normal distribution,
    which few steps encode better. They are rarely near zero, so there are more spikes:
    a rotation buys steps, not spikes.

    An encoder is rotated if its error of the outputs plus price times its spikes per
    neuron is smaller with the rotation, by the curves of
    `snnjax.calibrators.priced_threshold`. Outputs stay the same to rounding. Kernels
    are changed once; x H costs log2 m additions per channel and inference, which no
    measure counts.

    Only encoders can be rotated, and only those whose spikes go to kernels of their own
    that sum over the channels: ReLUs rectify each channel by itself.

    Args:
        fn, params, x: as in `snnjax.convert`. Give the ``fn`` and ``params`` of the
            result to `snnjax.convert` and all that follows.
        steps: T, for which the network will be converted.
        code: as in `snnjax.convert`.
        price: >= 0, of a spike; `snnjax.codes.Code.default_price` by default.

    Returns:
        (fn, params, sites), a `Rotated`.

    Raises:
        snnjax.ConversionError, ValueError: as `snnjax.convert`.

    Source: Ashkboos et al., QuaRot, NeurIPS 2024, for quantized activations.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> def fn(params, x):
    ...     gated = jax.nn.silu(x @ params["gate"]) * (x @ params["up"])
    ...     return gated @ params["down"]
    >>> keys = jax.random.split(jax.random.key(0), 4)
    >>> shapes = {"gate": (8, 16), "up": (8, 16), "down": (16, 4)}
    >>> params = {}
    >>> for key, (name, shape) in zip(keys, shapes.items()):
    ...     params[name] = jax.random.normal(key, shape)
    >>> x = jax.random.normal(keys[3], (64, 8))
    >>> code = snnjax.codes.radix()
    >>> rotated_fn, rotated_params, sites = rotate(fn, params, x, steps=6, code=code)
    >>> print(sites)
    site          block  J       J rotated
    down/encoder  16     0.0031  0.0021     rotated
    1 of 1 sites are rotated
    >>> difference = fn(params, x) - rotated_fn(rotated_params, x)
    >>> bool(abs(difference).max() < 1e-4)
    True
    """
    check_wait(steps, 0)
    code = code or rate()
    check_code(code)
    if price is None:
        price = code.default_price(int(steps))
    NOT_NEGATIVE.check("price", price)
    images = place_images(x)
    params = images.place_params(params)
    network = capture(fn, params, shapes_of(images.arrays), inline_all=True)
    site_rotations = rotations(network)
    possible = _chosen(site_rotations, lambda name: True)
    costs = _costs(network, params, images, int(steps), code, price)
    rotated_costs: dict[str, float] = {}
    if possible:
        fn_with_all = with_rotations(fn, possible)
        params_with_all = rotated_params(params, possible)
        network_with_all = capture(
            fn_with_all, params_with_all, shapes_of(images.arrays), inline_all=True
        )
        all_costs = _costs(
            network_with_all, params_with_all, images, int(steps), code, price
        )
        # Names of operators may differ; firing sites are the same, in the same order.
        rotated_costs = dict(zip(costs, all_costs.values(), strict=True))
    chosen = _chosen(site_rotations, lambda name: rotated_costs[name] < costs[name])
    return Rotated(
        fn=with_rotations(fn, chosen) if chosen else fn,
        params=rotated_params(params, chosen),
        sites=_table(site_rotations, costs, rotated_costs, chosen),
    )


def _chosen(
    site_rotations: Mapping[str, Rotation | str], condition: Callable[[str], bool]
) -> dict[str, Rotation]:
    """The rotations of sites that have one, and of whose names a condition holds."""
    chosen = {}
    for name, rotation in site_rotations.items():
        if isinstance(rotation, Rotation) and condition(name):
            chosen[name] = rotation
    return chosen


def _costs(
    network: Network,
    params: chex.ArrayTree,
    images: CalibrationImages,
    steps: int,
    code: Code,
    price: float,
) -> dict[str, float]:
    """Name of each firing site -> J with its cheapest thresholds."""
    model = IntegrateAndFire(levels=code.levels, dead_zone=code.dead_zone(code.levels))
    models = models_of_sites(None, network.sites, model)
    sites = [site for site in network.sites if site.fires]
    snn = SNN(
        params=params,
        neurons={site.name: on_host(model.init(site.shape)) for site in sites},
        steps=steps,
        wait=code.full_wait(steps),
        model=models,
        code=code,
    )
    calibration = start(
        network=network,
        snn=snn,
        images=images,
        sites=sites,
        wait=code.full_wait(steps),
        weigh_errors=True,
    )
    per_site: dict[str, Any] = {site.name: "channel" for site in sites}
    (curves,) = survey(calibration, None, per_site)
    costs = {}
    for name, curve in curves.items():
        error, spikes = total([curve], price)
        costs[name] = error + price * spikes
    return costs


def _table(
    site_rotations: Mapping[str, Rotation | str],
    costs: Mapping[str, float],
    rotated_costs: Mapping[str, float],
    chosen: Mapping[str, Rotation],
) -> Table:
    """A row for each firing site."""
    rows = [("site", "block", "J", "J rotated", "")]
    for name, rotation in site_rotations.items():
        if isinstance(rotation, str):
            rows.append((name, "", f"{costs[name]:.2g}", "", rotation))
            continue
        rows.append(
            (
                name,
                str(rotation.block),
                f"{costs[name]:.2g}",
                f"{rotated_costs[name]:.2g}",
                "rotated" if name in chosen else "",
            )
        )
    return Table(rows, below=f"{len(chosen)} of {len(rows) - 1} sites are rotated")
