"""The spiking network as data: parameters, neurons and their model, a plain pytree.

`snnjax.convert` and `snnjax.init` make it, `snnjax.spiking` runs it, optax trains it.
Every part that takes an SNN uses the checks in this file.
"""

import dataclasses
import functools
import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from snnjax._arrays import broadcasts
from snnjax._checks import check_wait, count
from snnjax._ranges import Range, ranges_of
from snnjax._text import Table, numbers, shown_as_table
from snnjax._trees import is_floating, name_of, paths_of
from snnjax.codes import Code, check_code, rate
from snnjax.conformance import check_protocol
from snnjax.network.sites import Site, Sites
from snnjax.neurons.by_site import by_name, model_of, models_in, resolve_models
from snnjax.neurons.models import IntegrateAndFire, NeuronParams, as_encoder, is_plain
from snnjax.neurons.protocol import chain, check_model
from snnjax.neurons.wrappers import off_grid

# Labels of leaves in training, beside the names of neurons' parameters.
WEIGHTS, FROZEN = "weights", "frozen"


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("params", "neurons"),
    meta_fields=("steps", "wait", "model", "code", "fitted_to"),
)
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
@shown_as_table
class SNN:
    """A spiking network: a plain pytree, to jit, differentiate, shard and save.

    ``print`` shows a table of its neurons, ``repr`` a line.

    Attributes:
        params: parameters of the network; the calibration may have changed weights.
        neurons: site name -> parameters of its neurons, a `snnjax.neurons.NeuronParams`
            or another NamedTuple of arrays.
        steps: the T that the SNN was fitted to; None (from `snnjax.init`): any T.
        wait: the wait that the SNN was fitted to; None (from `snnjax.init`): any wait.
        model: the neuron model of all sites (see `snnjax.integrate_and_fire`), or a
            `snnjax.neurons.BySite`. `model_of` returns the model of one site.
        code: what a spike is worth at each step, see `snnjax.codes`.
        fit: what `snnjax.convert` measured and kept, for people; files, and what
            changes an SNN, drop it.
        fitted_to: the steps and the wait that thresholds and biases are for: those that
            the SNN was made with. ``dataclasses.replace(snn, steps=...)`` keeps them,
            and IF neurons run with no others.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> snn = snnjax.init(lambda w, x: jax.nn.relu(x @ w), jnp.eye(2), jnp.eye(2))
    >>> snn
    SNN(steps=None, wait=None, 4 numbers in params, 1 site: relu)
    >>> print(snn)
    SNN, 4 numbers in params
    site  levels  threshold  bias  initial potential  leak
    relu  0:1     1          0     0                  0.5
    """

    params: Any
    neurons: dict[str, Any]
    steps: int | None = None
    wait: int | None = None
    model: Any = IntegrateAndFire()
    code: Code = rate()
    fit: str = dataclasses.field(default="", init=False)
    fitted_to: tuple[int, int] | None = None

    def __post_init__(self):
        is_known = self.steps is not None and self.wait is not None
        if self.fitted_to is None and is_known:
            # The class is frozen, so that an assignment would raise.
            object.__setattr__(self, "fitted_to", (self.steps, self.wait))

    def model_of(self, site_name: str) -> Any:
        """The neuron model of a site."""
        return model_of(self.model, site_name)

    def with_fit(self, fit: str) -> "SNN":
        """The same with this text as its `fit`."""
        snn = dataclasses.replace(self)
        object.__setattr__(snn, "fit", fit)
        return snn

    def __repr__(self) -> str:
        # The neurons of a pytree without leaves may be anything.
        names = list(self.neurons) if isinstance(self.neurons, Mapping) else []
        parts = [f"steps={self.steps}", f"wait={self.wait}"]
        if self.code != rate():
            parts.append(f"code={self.code!r}")
        parts.append(f"{self._size()} numbers in params")
        sites = "1 site" if len(names) == 1 else f"{len(names)} sites"
        if names:
            sites += ": " + ", ".join(map(str, names[:2]))
        if len(names) > 2:
            sites += ", ..."
        parts.append(sites)
        return f"SNN({', '.join(parts)})"

    def _size(self) -> int:
        """How many numbers the params hold."""
        leaves = jax.tree.leaves(self.params)
        return sum(math.prod(getattr(leaf, "shape", ())) for leaf in leaves)

    def _table(self) -> Table:
        title = ["SNN"]
        if self.steps is not None:
            title.append(f"T = {self.steps}")
        if self.wait is not None:
            title.append(f"wait {self.wait}")
        if self.code != rate():
            title.append(repr(self.code))
        title.append(f"{self._size()} numbers in params")

        cells_of_sites = {name: _cells(p) for name, p in self.neurons.items()}
        fields: dict[str, None] = {}  # of all sites, each once, in order
        for cells in cells_of_sites.values():
            fields |= dict.fromkeys(cells)
        models = dict(getattr(self.model, "models", ()))
        rows = [("site", "levels", *(field.replace("_", " ") for field in fields))]
        for name, cells in cells_of_sites.items():
            # A table must not fail for neurons whose sites were renamed.
            model = models.get(name, self.model)
            levels = getattr(model, "levels", None)
            levels_text = "-" if levels is None else f"{levels[0]}:{levels[1]}"
            numbers_of_site = [cells.get(field, "-") for field in fields]
            rows.append((name, levels_text, *numbers_of_site))
        return Table(rows, above=", ".join(title), below=self.fit)


def _cells(params: Any) -> dict[str, str]:
    """Field -> numbers, of the parameters of a site; those of a model within it too."""
    cells = {}
    for field, value in params._asdict().items():
        if hasattr(value, "_asdict"):
            for name, text in _cells(value).items():
                cells[f"{field} {name}" if name in params._fields else name] = text
        elif value is not None:
            cells[field] = numbers(value)
    return cells


def models_of_sites(neuron: Any, sites: Sites, default: Any) -> Any:
    """A model for all sites, or a `BySite`, see `resolve_models`.

    Encoders get levels of both signs.
    """
    firing_sites = [site for site in sites if site.fires]
    names = [site.name for site in firing_sites]
    resolved = resolve_models(neuron, names, default)
    pairs = []
    for site in firing_sites:
        model = model_of(resolved, site.name)
        if site.is_encoder:
            model = as_encoder(model)
        pairs.append((site.name, model))
    return by_name(pairs)


def check_snn(snn: SNN) -> None:
    """Raise unless this is an SNN."""
    if isinstance(snn, SNN):
        return
    allowed = "an SNN of snnjax.convert or snnjax.init, which holds the parameters too"
    if isinstance(getattr(snn, "snn", None), SNN):  # what `load` returns
        allowed = "its field snn"
    raise ValueError(f"snn is {type(snn).__name__}; allowed: {allowed}")


def checked_fit(snn: SNN, steps: int | None, wait: int | None) -> tuple[int, int]:
    """Steps and wait of a run; None means the value that the SNN was fitted to.

    Raises:
        ValueError: this is not an SNN; steps or wait are out of range; or differ from
            those that the SNN was fitted to, and IF neurons count over them; or the
            number of steps is unknown.
    """
    check_snn(snn)
    check_code(snn.code)
    steps = snn.steps if steps is None else steps
    if steps is None:
        raise ValueError(
            "this SNN is from snnjax.init and was fitted to no number of steps: give "
            "steps=T"
        )
    wait = (snn.wait or 0) if wait is None else wait
    check_wait(steps, wait)
    counts = any(
        is_plain(off_grid(snn.model_of(name))) and params.leak is None
        for name, params in snn.neurons.items()
    )
    fitted_to = snn.fitted_to or (snn.steps, snn.wait)
    if counts and snn.steps is not None and fitted_to != (steps, wait):
        fitted_steps, fitted_wait = fitted_to
        raise ValueError(
            f"this SNN was fitted to steps={fitted_steps}, wait={fitted_wait} and "
            f"cannot run with steps={steps}, wait={wait}: its thresholds and biases "
            "depend on both. Leave steps and wait out, convert again with others, or "
            "read an early answer of a longer run, snn.code.answers(outputs)[t - 1]"
        )
    return steps, wait


def check_params(snn: SNN, params: chex.ArrayTree) -> None:
    """Raise unless these parameters have the same names as the SNN's own."""
    # Shapes and numbers may differ: those of the SNN are what it runs with.
    snn_paths, given_paths = set(paths_of(snn.params)), set(paths_of(params))
    unknown = sorted(given_paths - snn_paths)
    missing = sorted(snn_paths - given_paths)
    if unknown or missing:
        raise ValueError(
            "params are not those that this SNN was converted from. Unknown to it: "
            f"{unknown or 'none'}; missing: {missing or 'none'}"
        )


def check_models(code: Code, models: Iterable[Any]) -> None:
    """Raise unless neurons of these models can send this code."""
    check_code(code)
    for model in map(off_grid, models):
        fields = is_plain(model) and (model.reset, model.leak, model.lowest)
        if code.keeps_charge and fields != ("subtract", None, None):
            raise ValueError(
                f"the code {code!r} needs IF neurons with reset by subtraction, no "
                f"leak and no lower bound, which keep what is missing; found {model!r}."
                " Take model=snnjax.integrate_and_fire(levels=(-1, 1)), or the code "
                "snnjax.codes.rate()"
            )
        has_zones = any(getattr(part, "has_zones", False) for part in chain(model))
        if has_zones and not is_plain(model):
            raise ValueError(
                f"a dead zone is for snnjax.integrate_and_fire alone; found {model!r}. "
                "Leave dead_zone out"
            )


def check_neurons(snn: SNN, sites: Sites) -> None:
    """Raise unless all sites that fire have neurons of the right shape."""
    _check_names(snn.neurons, sites)
    check_models(snn.code, models_in(snn.model))
    for model in models_in(snn.model):
        check_model(model, "the SNN's model")
    for site in sites:
        if site.fires:
            model, params = snn.model_of(site.name), snn.neurons[site.name]
            if snn.code.keeps_charge and getattr(params, "leak", None) is not None:
                raise ValueError(
                    f"the neurons of site {site.name!r} have a leak, and those of the "
                    f"code {snn.code!r} must keep what is missing; allowed: leak None"
                )
            _check_site(model, params, site)
            if not is_plain(model):
                check_protocol(model, params, site)


def check_values(snn: SNN) -> None:
    """Raise if known values are out of range.

    Weights must not be NaN (an infinite one may be a mask); neurons are finite, with
    thresholds and temperatures > 0 and leaks in (0, 1].
    """
    for name, params in snn.neurons.items():
        ranges = ranges_in(params)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            is_number = jnp.issubdtype(jnp.result_type(leaf), jnp.number)
            if is_number and _readable(leaf):
                field = name_of(path)
                what = f"{field} of site {name!r}"
                _check_range(what, ranges.get(field), np.asarray(leaf))
    broken = [
        name_of(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(snn.params)
        if hasattr(leaf, "dtype") and is_floating(leaf) and _readable(leaf)
        if int(count("isnan", leaf))
    ]
    if broken:
        raise ValueError(
            f"NaN in the weights {', '.join(map(repr, broken[:3]))}"
            f"{' and others' if len(broken) > 3 else ''}; allowed: numbers. Perhaps a "
            "training diverged: go back to an earlier state, with a smaller step"
        )


def _check_names(neurons: Mapping[str, Any], sites: Sites) -> None:
    """Raise unless there are parameters for exactly the sites that fire."""
    names = {site.name for site in sites if site.fires}
    missing, unknown = names - set(neurons), set(neurons) - names
    if missing or unknown:
        advice = ""
        names_alone = [name.rpartition("/")[2] for name in missing | unknown]
        if any(name.startswith("encoder") for name in names_alone):
            advice = (
                ". Perhaps one of the two is in training mode (has_aux), where a "
                "network has no encoders. Train networks with operators in inference "
                "mode"
            )
        elif len(missing) == len(unknown):
            advice = (
                ". A site is named after the parameters that reach it, and training "
                "mode may read others. Keep a layer's statistics beside its weights, "
                "or rename the neurons by dataclasses.replace(snn, neurons=...)"
            )
        raise ValueError(
            f"the neurons do not fit the network's sites. No such site: "
            f"{_some(unknown)}; sites without neurons: {_some(missing)}; sites: "
            f"{_some(names)}{advice}"
        )


def _some(names: Collection[str], most: int = 8) -> str:
    """The first of these names, and how many more there are."""
    if not names:
        return "none"
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{sorted(names)[:most]}{more}"


def _check_site(model: Any, params: Any, site: Site) -> None:
    """Raise unless these are parameters of the model, of the shape of the site.

    Each broadcasts to it, or has the shape that ``init`` gives it, as a recurrent
    kernel does.
    """
    if is_plain(model):  # its parameters broadcast, so that their names are enough
        fresh = NeuronParams._make([None] * len(NeuronParams._fields))
    else:
        fresh = jax.eval_shape(lambda: model.init(site.shape, jax.random.key(0)))
        _check_fresh(fresh, f"{model!r} at site {site.name!r}")
    if _fields(params) != _fields(fresh):
        raise ValueError(
            f"the neurons of site {site.name!r} have the parameters "
            f"{_listed(params)}, and its model {model!r} has {_listed(fresh)}. "
            "Begin with those of the model, by snnjax.init"
        )
    fresh_shapes = _shapes(fresh)
    for name, shape in _shapes(params).items():
        if not broadcasts(shape, site.shape) and shape != fresh_shapes.get(name):
            raise ValueError(
                f"the neurons of site {site.name!r} do not fit its shape "
                f"{site.shape}: {name} has shape {shape}. An SNN runs on examples "
                "of the shape that it was fitted to (of a sequence x, snnjax.init "
                "takes one step, x[0]), and on others if each channel has "
                "one number, as snnjax.best() fits them under snnjax.codes.radix()"
            )


def _check_fresh(fresh: Any, where: str) -> None:
    """Raise unless a model makes NamedTuples of arrays, whose names mean no others."""
    if () in _fields(fresh):
        raise ValueError(
            f"the params of {where} are a {type(fresh).__name__}; allowed: a "
            "NamedTuple of arrays"
        )
    fields = [field for part in chain(fresh) for field in part._asdict().items()]
    for name, value in fields:
        structure = jax.tree.structure(value)
        # Only named arrays have a range.
        if name != "neuron" and not jax.tree_util.treedef_is_leaf(structure):
            raise ValueError(
                f"parameter {name} of {where} is a {type(value).__name__}; allowed: an "
                "array. Make each array a field of its own"
            )
        if name in (WEIGHTS, FROZEN):
            raise ValueError(
                f"{where} has a parameter called {name}; allowed: another name, since "
                "in snnjax.training.param_labels this one means other leaves"
            )


def _fields(params: Any) -> list[tuple[str, ...]]:
    """Names of parameters, and those of a model inside; () if there are no names."""
    return [getattr(part, "_fields", ()) for part in chain(params)]


def _listed(params: Any) -> str:
    """The same as text; those of a model inside follow after a semicolon."""
    return "; ".join(", ".join(names) or "none" for names in _fields(params))


def _shapes(params: Any) -> dict[str, tuple[int, ...]]:
    """Path -> shape of all parameters."""
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {name_of(path): jnp.shape(leaf) for path, leaf in leaves}


def ranges_in(params: Any) -> dict[str, Range]:
    """Path -> range of the parameters of one site, as their classes declare them.

    >>> from snnjax.neurons import Synaptic, lif
    >>> limits = ranges_in(Synaptic(lif()).init())
    >>> limits["synaptic_leak"].most, limits["neuron/threshold"].most
    (1, inf)
    """
    ranges, prefix = {}, ""
    for part in chain(params):
        for name, limits in ranges_of(type(part)).items():
            ranges[prefix + name] = limits
        prefix += "neuron/"  # the next part lies in the field `neuron` of this one
    return ranges


def _check_range(what: str, limits: Range | None, numbers: np.ndarray) -> None:
    numbers = numbers.astype(np.float64)
    within = np.isfinite(numbers) if limits is None else limits.holds(numbers)
    if not within.all():
        allowed = "finite" if limits is None else limits.describe(what.split()[0])
        remedy = "Perhaps a training diverged: go back to an earlier state"
        if limits is not None:
            remedy = "In training, snnjax.training.descent keeps it there"
        raise ValueError(
            f"the {what} is {numbers[~within].flat[0]}; allowed: {allowed}. {remedy}"
        )


def _readable(leaf: Any) -> bool:
    """Whether the numbers of a leaf are concrete, and all of them on this process."""
    is_known = not isinstance(leaf, Tracer | jax.ShapeDtypeStruct)
    return is_known and getattr(leaf, "is_fully_addressable", True)
