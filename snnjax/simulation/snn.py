"""The spiking network as data: parameters and neurons, a plain pytree.

`snnjax.convert` and `snnjax.init` make it, `snnjax.spiking` runs it, optax trains it.
"""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp

from snnjax._checks import check_delay
from snnjax._trees import is_floating, name_of
from snnjax.network.equations import Sites
from snnjax.neurons import NeuronParams


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("params", "neurons", "readout_correction"),
    meta_fields=("steps", "delay", "reset"),
)
@dataclasses.dataclass(frozen=True, eq=False)
class SNN:
    """A spiking network: a plain pytree, to jit, differentiate, shard and save.

    Attributes:
        params: as the user gave them; weights perhaps calibrated.
        neurons: site name -> `NeuronParams`.
        readout_correction: added to the outputs at every step, a pytree like one
            step's outputs; None adds nothing.
        steps: T that it was fitted to; None (from `init`): any.
        delay: that it was fitted to; None (from `init`): any.
        reset: of its neurons, "subtract" or "zero"; what leaks has ``leak``.
    """

    params: chex.ArrayTree
    neurons: dict[str, NeuronParams]
    readout_correction: Any = None
    steps: int | None = None
    delay: int | None = None
    reset: str = "subtract"


def check_snn(snn: SNN) -> None:
    """Raise unless this is an SNN."""
    if not isinstance(snn, SNN):
        raise ValueError(
            f"found a {type(snn).__name__} where an SNN is needed: that of "
            "snnjax.convert or snnjax.init, which holds the parameters too"
        )


def check_fit(snn: SNN, steps: int, delay: int) -> None:
    """Raise unless this is an SNN, fitted to this steps and delay (or to none)."""
    check_snn(snn)
    found, wanted = (snn.steps, snn.delay), (steps, delay)
    if snn.steps is not None and found != wanted:
        raise ValueError(
            f"this SNN was fitted to steps={snn.steps}, delay={snn.delay} and cannot "
            f"run with steps={steps}, delay={delay}: its thresholds and biases depend "
            "on both. Convert again with these, or read the first t outputs of a "
            "longer run"
        )


def checked_fit(snn: SNN, steps: int | None, delay: int | None) -> tuple[int, int]:
    """These steps and delay; where they are None, those that the SNN was fitted to.

    Raises:
        ValueError: they are out of range, or not those that the SNN was fitted to; or
            it was fitted to none, and there are no steps.
    """
    check_snn(snn)
    steps = snn.steps if steps is None else steps
    if steps is None:
        raise ValueError(
            "this SNN was fitted to no number of steps (it is from snnjax.init): give "
            "steps=T"
        )
    delay = (snn.delay or 0) if delay is None else delay
    check_delay(steps, delay)
    check_fit(snn, steps, delay)
    return steps, delay


def check_params(snn: SNN, params: chex.ArrayTree) -> None:
    """Raise unless these could be the ANN's parameters: named as the SNN's own are."""
    own, given = (
        {name_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (snn.params, params)
    )
    if own != given:
        raise ValueError(
            "params are not those that this SNN was converted from. Unknown to it: "
            f"{sorted(given - own) or 'none'}; missing: {sorted(own - given) or 'none'}"
        )


def check_neurons(neurons: Mapping[str, Any], found: Sites) -> None:
    """Raise unless there are parameters for exactly the sites that fire."""
    names = {site.name for site in found if site.fires}
    missing, unknown = names - set(neurons), set(neurons) - names
    if missing or unknown:
        renamed = (
            ". A site is named after the parameters that reach it, which may be others "
            "in training mode: keep a layer's statistics beside its weights, or rename "
            "the neurons by dataclasses.replace(snn, neurons=...)"
        )
        raise ValueError(
            f"the neurons do not fit the network's sites. No such site: "
            f"{sorted(unknown) or 'none'}; sites without neurons: "
            f"{sorted(missing) or 'none'}; sites: {sorted(names)}"
            f"{renamed if len(missing) == len(unknown) else ''}"
        )
    for site in found:
        if not site.fires:
            continue
        for name, leaf in neurons[site.name]._asdict().items():
            shape = jnp.shape(leaf) if leaf is not None else ()
            widths = zip(reversed(shape), reversed(site.shape), strict=False)
            if len(shape) > len(site.shape) or any(a not in (1, b) for a, b in widths):
                raise ValueError(
                    f"the neurons of site {site.name!r} do not fit its shape "
                    f"{site.shape}: {name} has shape {shape}. An SNN runs on examples "
                    "of the shape that it was fitted to"
                )


def corrected(outputs: Any, snn: SNN) -> Any:
    """Outputs + the SNN's correction, in their types; what is no float stays.

    Raises:
        ValueError: the correction belongs to outputs of another structure.
    """
    if snn.readout_correction is None:
        return outputs
    named = jax.tree_util.tree_leaves_with_path(outputs)
    corrections = corrections_of(snn, [name_of(path) for path, _ in named])

    def add(path, output: jax.Array) -> jax.Array:
        if not is_floating(output):
            return output
        return (output + corrections[name_of(path)]).astype(output.dtype)

    return jax.tree_util.tree_map_with_path(add, outputs)


def corrections_of(snn: SNN, names: Sequence[str]) -> dict[str, Any]:
    """The correction of each output; 0 if the SNN has none.

    By name, since a file gives the fields of a NamedTuple back as a dict, which JAX
    puts into another order.

    Raises:
        ValueError: the SNN corrects other outputs.
    """
    if snn.readout_correction is None:
        return dict.fromkeys(names, 0.0)
    found = jax.tree_util.tree_leaves_with_path(snn.readout_correction)
    corrections = {name_of(path): leaf for path, leaf in found}
    if corrections.keys() != set(names):
        raise ValueError(
            f"this SNN corrects the outputs {_list(corrections)}, and fn gives "
            f"{_list(names)}. Convert that function, or drop the correction: "
            "dataclasses.replace(snn, readout_correction=None)"
        )
    return corrections


def _list(names: Iterable[str]) -> str:
    return ", ".join(repr(name) if name else "(a single array)" for name in names)
