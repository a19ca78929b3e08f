"""A model for every site: one for all of them, or one by the names of the sites.

    {"readout/*": lif(leak=0.9), "*": lif()}      the first pattern that matches counts

The exact name of a site counts before all patterns. Patterns are those of a shell
(`fnmatch`): * matches any text, / included, and ? one letter.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from snnjax.neurons.protocol import Neuron, check_model


@dataclasses.dataclass(frozen=True)
class BySite:
    """Models by the names of the sites; a value, as each of the models is.

    Attributes:
        models: pairs (site name, model), in the order of the sites.

    An SNN has one where its sites have different models:

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn = lambda p, x: jax.nn.relu(jax.nn.relu(x @ p["first"]) @ p["second"])
    >>> params = {"first": jnp.eye(2), "second": jnp.eye(2)}
    >>> neuron = {"second/*": snnjax.lif(leak=0.9), "*": snnjax.lif(leak=0.5)}
    >>> snn = snnjax.init(fn, params, jnp.eye(2), model=neuron)
    >>> [name for name, _ in snn.model.models], snn.model_of("second/relu").leak
    (['first/relu', 'second/relu'], 0.9)
    """

    models: tuple[tuple[str, Neuron], ...]


def model_of(neuron: Any, site_name: str) -> Any:
    """The model of a site: its own, or the one for all."""
    if not isinstance(neuron, BySite):
        return neuron
    models = dict(neuron.models)
    if site_name not in models:
        raise ValueError(
            f"no model for site {site_name!r}; this SNN has models for "
            f"{', '.join(models)}. Where sites are renamed, rename those of its model "
            "too"
        )
    return models[site_name]


def models_in(neuron: Any) -> tuple[Any, ...]:
    """All different models, in the order of the sites."""
    if not isinstance(neuron, BySite):
        return (neuron,)
    return tuple(dict.fromkeys(model for _, model in neuron.models))


def resolve_models(models: Any, site_names: Sequence[str], default: Neuron) -> Any:
    """A model for all sites, or a `BySite` where they differ.

    Args:
        models: a model; or pattern -> model, where the exact name of a site counts, or
            else the first pattern that matches it; or None, the default.
        site_names: of all sites that fire.
        default: for sites that no pattern matches.

    Raises:
        ValueError: this is no model, or a pattern matches no site.

    >>> from snnjax.neurons import lif
    >>> names = ["hidden", "out"]
    >>> resolve_models({"out*": lif(leak=0.9)}, names, lif()).models[1][1].leak
    0.9
    """
    if isinstance(models, BySite):
        if {name for name, _ in models.models} != set(site_names):
            raise ValueError(
                f"model has models for the sites "
                f"{', '.join(name for name, _ in models.models)}, and this network has "
                f"{', '.join(site_names)}; allowed: one for each, or patterns"
            )
        models = dict(models.models)
    if not isinstance(models, Mapping):
        model = default if models is None else models
        check_model(model)
        return model
    if not models:
        raise ValueError(
            "model is empty; allowed: a model, or name or pattern of sites -> model, "
            "or None for the default"
        )
    for pattern, model in models.items():
        if not isinstance(pattern, str):
            raise ValueError(
                f"model has the key {pattern!r}; allowed: patterns of site names, "
                "e.g. {'readout/*': snnjax.lif()}"
            )
        check_model(model, f"model[{pattern!r}]")
    pattern_of_site = {name: _first_match(models, name) for name in site_names}
    unused_patterns = [p for p in models if p not in pattern_of_site.values()]
    if unused_patterns:
        raise ValueError(
            f"the patterns {', '.join(map(repr, unused_patterns))} of model decide "
            "for no site: they match none, or a name or an earlier pattern does; "
            f"sites: {', '.join(site_names)}"
        )
    return by_name(
        (name, default if pattern is None else models[pattern])
        for name, pattern in pattern_of_site.items()
    )


def by_name(pairs: Iterable[tuple[str, Any]]) -> Any:
    """The model of all these sites if they have the same, otherwise a `BySite`."""
    models = BySite(tuple(pairs))
    distinct_models = models_in(models)
    return distinct_models[0] if len(distinct_models) == 1 else models


def _first_match(patterns: Mapping[str, Any], name: str) -> str | None:
    """The name itself, or the first pattern that matches it."""
    if name in patterns:
        return name
    return next((p for p in patterns if fnmatchcase(name, p)), None)
