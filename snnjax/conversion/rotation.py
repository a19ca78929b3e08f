"""Rotation of encoders before a conversion, where it lowers error and spikes in sum.

    J = error of the outputs + price x spikes per neuron

The curves of ``snnjax.calibrators.spending`` give the least J that thresholds reach at
an encoder, without and with a rotation (``network/capture/rotation.py``). The smaller J
is chosen. A rotated encoder has lower thresholds, so it sends more spikes and makes a
smaller error. Source of the choice: ours.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import chex

from snnjax._arrays import on_host
from snnjax._checks import (
    called_as,
    check_function,
    check_numbers,
    check_on_host,
    check_wait,
)
from snnjax._ranges import NOT_NEGATIVE
from snnjax._text import Table, shown_as_table
from snnjax._trees import shapes_of
from snnjax.calibrators.spending import total
from snnjax.codes import Code, check_code, rate
from snnjax.conversion.engine.site_view import SiteView
from snnjax.conversion.engine.start import start
from snnjax.conversion.engine.sweep import views
from snnjax.conversion.images import CalibrationImages, place_images
from snnjax.network.capture.capture import capture
from snnjax.network.capture.rotation import (
    SiteRotation,
    rotated_params,
    site_rotations,
    with_rotations,
)
from snnjax.network.equations import Network
from snnjax.neurons.models import IntegrateAndFire
from snnjax.snn import SNN, models_of_sites

# J does not count the additions of x H. So a rotation must lower J by a tenth at least.
_LEAST_GAIN = 0.1


@shown_as_table
@dataclasses.dataclass(frozen=True)
class Rotation:
    """A transformation (fn, params) -> (fn, params), see `rotation`.

    ``print`` shows a row for each firing site: the block of H, J before and after, and
    whether it is rotated or why it cannot be.

    Attributes:
        sites: name of each rotated site -> its rotation.
        costs: name of each firing site -> J without a rotation.
        rotated_costs: name of each site that can be rotated -> J with its rotation.
        reasons: name of each site that cannot be rotated -> the reason.
    """

    sites: Mapping[str, SiteRotation]
    costs: Mapping[str, float]
    rotated_costs: Mapping[str, float]
    reasons: Mapping[str, str]

    def __call__(
        self, fn: Callable, params: chex.ArrayTree
    ) -> tuple[Callable, chex.ArrayTree]:
        """The rotated network: encoders send x H, and kernels behind them are H W.

        Args:
            fn: the network, or another function with the same sites, such as one that
                takes a token at a time.
            params: its parameters. Those of the result have the same shapes.

        Raises:
            ValueError: params without a kernel that is rotated, or with one of other
                channels. The function of the result raises one if fn lacks a site.
        """
        check_function(fn)
        if not self.sites:
            return fn, params
        return with_rotations(fn, self.sites), rotated_params(params, self.sites)

    def __repr__(self) -> str:
        return f"Rotation({len(self.sites)} of {len(self.costs)} sites are rotated)"

    def _table(self) -> Table:
        rows = [("site", "block", "J", "J rotated", "")]
        for name, cost in self.costs.items():
            block = rotated_cost = ""
            note = self.reasons.get(name, "")
            if name in self.rotated_costs:
                rotated_cost = f"{self.rotated_costs[name]:.2g}"
            if name in self.sites:
                block = str(self.sites[name].block)
                note = "rotated"
            rows.append((name, block, f"{cost:.2g}", rotated_cost, note))
        count = f"{len(self.sites)} of {len(self.costs)} sites are rotated"
        return Table(rows, below=count)


@called_as("snnjax.rotation(fn, params, x, steps=..., ...)")
def rotation(
    fn: Callable,
    params: chex.ArrayTree,
    x: chex.ArrayTree,
    *,
    steps: int,
    code: Code | None = None,
    price: float | None = None,
) -> Rotation:
    """Choose the encoders of a network that are rotated before its conversion.

        (x H) (H W) = x W,    H H = 1

    Some encoders have channels with rare large values, such as the products of a gated
    perceptron. A threshold then either clips these or rounds all others coarsely. x H
    mixes m channels, where m is the largest power of two that divides their number, and
    H is Hadamard's matrix over sqrt(m). The values of x H are near a normal
    distribution, so that few steps encode them with a smaller error than x. Fewer of
    them are near zero, so neurons send more spikes: a rotation saves steps, not spikes.

    J is the error of the outputs that an encoder causes, plus price times its spikes
    per neuron, as the curves of `snnjax.calibrators.priced_threshold` predict them. An
    encoder is rotated if the rotation lowers J by a tenth at least. The outputs of the
    network stay the same, to rounding. x H costs log2 m additions per channel and
    inference, which `snnjax.measure` does not count.

    Only encoders can be rotated, and only those whose spikes go to kernels that sum
    over the channels and have no other input. A ReLU rectifies each channel by itself.

    Args:
        fn, params, x: as in `snnjax.convert`.
        steps: T, for which the network will be converted.
        code: as in `snnjax.convert`.
        price: >= 0, of a spike; `snnjax.codes.Code.default_price` by default.

    Returns:
        A `Rotation`, a transformation of functions and parameters. Give its results to
        `snnjax.convert` and to all that follows, always both together: rotated
        parameters have the same shapes, so nothing notices them beside the function
        before the rotation, whose outputs they change.

    Raises:
        snnjax.ConversionError, ValueError: as `snnjax.convert`.

    Source: Ashkboos et al., QuaRot, NeurIPS 2024, for quantized activations.

    >>> import jax, numpy as np, snnjax
    >>> def fn(params, x):
    ...     gated = jax.nn.silu(x @ params["gate"]) * (x @ params["up"])
    ...     return gated @ params["down"]
    >>> draw = np.random.default_rng(2).normal
    >>> shapes = {"gate": (8, 16), "up": (8, 16), "down": (16, 4)}
    >>> params = {name: np.float32(draw(size=shape)) for name, shape in shapes.items()}
    >>> x = np.float32(draw(size=(64, 8)))
    >>> rotate = rotation(fn, params, x, steps=6, code=snnjax.codes.radix())
    >>> print(rotate)
    site          block  J       J rotated
    down/encoder  16     0.0025  0.0021     rotated
    1 of 1 sites are rotated
    >>> rotated_fn, rotated_params = rotate(fn, params)
    >>> difference = fn(params, x) - rotated_fn(rotated_params, x)
    >>> bool(abs(difference).max() < 1e-4)
    True
    """
    check_wait(steps, 0)
    steps = int(steps)
    code = code or rate()
    check_code(code)
    if price is None:
        price = code.default_price(steps)
    NOT_NEGATIVE.check("price", price)
    check_on_host("snnjax.rotation", params=params, x=x)
    images = place_images(x)
    params = images.place_params(params)
    network = capture(fn, params, shapes_of(images.arrays), inline_all=True)
    # The curves read activations, and so would not notice NaN in the last kernels.
    check_numbers(params, "params", cause="the training")
    candidates = {}
    reasons = {}
    for name, candidate in site_rotations(network).items():
        if isinstance(candidate, SiteRotation):
            candidates[name] = candidate
        else:
            reasons[name] = candidate
    costs = _costs(network, params, images, steps=steps, code=code, price=price)
    rotated_costs = {}
    if candidates:
        # J of a site is that of the ANN's activations, which no rotation of another
        # site changes. So one network with all rotations serves for all sites.
        rotated_fn = with_rotations(fn, candidates)
        params = rotated_params(params, candidates)
        network = capture(rotated_fn, params, shapes_of(images.arrays), inline_all=True)
        all_costs = _costs(network, params, images, steps=steps, code=code, price=price)
        rotated_costs = {name: all_costs[name] for name in candidates}
    chosen = {}
    for name, candidate in candidates.items():
        if rotated_costs[name] < (1 - _LEAST_GAIN) * costs[name]:
            chosen[name] = candidate
    return Rotation(
        sites=chosen,
        costs=costs,
        rotated_costs=rotated_costs,
        reasons=reasons,
    )


def _costs(
    network: Network,
    params: chex.ArrayTree,
    images: CalibrationImages,
    *,
    steps: int,
    code: Code,
    price: float,
) -> dict[str, float]:
    """Name of each firing site -> the least J that thresholds per channel reach."""
    model = IntegrateAndFire(levels=code.levels, dead_zone=code.dead_zone(code.levels))
    sites = [site for site in network.sites if site.fires]
    # The curves hold for neurons that know all of their input before they fire.
    wait = code.full_wait(steps)
    snn = SNN(
        params=params,
        neurons={site.name: on_host(model.init(site.shape)) for site in sites},
        steps=steps,
        wait=wait,
        model=models_of_sites(None, network.sites, model),
        code=code,
    )
    calibration = start(
        network=network,
        snn=snn,
        images=images,
        sites=sites,
        wait=wait,
        weigh_errors=True,
        keep_unseen=False,
    )
    costs = {}
    for view in views(calibration, snn.neurons):
        costs[view.site.name] = _cost(view, price)
    return costs


def _cost(view: SiteView, price: float) -> float:
    """The least J that thresholds per channel reach at a site."""
    curves = view.curves((view.model.last_zone,))
    error, spikes = total(curves, price)
    return error + price * spikes
