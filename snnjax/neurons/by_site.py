"""A model for every site: one for all of them, or one by the names of the sites.

    {"readout/*": lif(leak=0.9), "*": lif()}      the first pattern that matches counts

The exact name of a site counts before all patterns, which are those of ``fnmatch``.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from snnjax._patterns import matching
from snnjax.neurons.protocol import Neuron, check_model


@dataclasses.dataclass(frozen=True)
class BySite:
    """Models by the names of the sites; a value, as each of the models is.

    Attributes:
        models: pairs (site name, model), in the order of the sites.

    An SNN has one where its sites have different models, as ``init(model={...})`` does.

    >>> from snnjax.neurons import integrate_and_fire, lif
    >>> BySite((("hidden/relu", lif()), ("relu", integrate_and_fire()))).models[1][0]
    'relu'
    """

    models: tuple[tuple[str, Neuron], ...]


def model_of(neuron: Any, site_name: str) -> Any:
    """The model of a site.

    Args:
        neuron: a model for all sites, or a `BySite`.
        site_name: of one of them.
    """
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
    """The different models of a `BySite`, in order of the sites; or the only model."""
    if not isinstance(neuron, BySite):
        return (neuron,)
    return tuple(dict.fromkeys(model for _, model in neuron.models))


def resolve_models(models: Any, site_names: Sequence[str], default: Neuron) -> Any:
    """A model for all sites that fire, or a `BySite` where they differ.

    Args:
        models: a model; or a dict, pattern -> model; or a `BySite`; or None, the
            default.
        site_names: of the sites that fire.
        default: for sites that no pattern matches.

    Raises:
        ValueError: this is no model, or a pattern matches no site.
    """
    if isinstance(models, BySite):  # the names of its sites are patterns, too
        models = dict(models.models)
        if models.keys() != set(site_names):
            raise ValueError(
                f"model has models for the sites {', '.join(models)}, and this network "
                f"has {', '.join(site_names)}; allowed: one for each, or patterns"
            )
    if not isinstance(models, Mapping):
        model = default if models is None else models
        check_model(model)
        return model
    for pattern, model in models.items():
        check_model(model, f"model[{pattern!r}]")
    models_by_site = matching(models, site_names, "model", default)
    return by_name(models_by_site.items())


def by_name(pairs: Iterable[tuple[str, Any]]) -> Any:
    """The model of all sites if they have the same, otherwise a `BySite`.

    Args:
        pairs: (site name, model), in the order of the sites.
    """
    models = BySite(tuple(pairs))
    distinct_models = models_in(models)
    return distinct_models[0] if len(distinct_models) == 1 else models
