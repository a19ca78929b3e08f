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
from snnjax._checks import all_are_finite, check_wait, count
from snnjax._ranges import Range, ranges_of
from snnjax._text import Table, counted, numbers, shown_as_table, sites_in_words
from snnjax._trees import is_floating, is_kernel, name_of, paths_of
from snnjax.codes import Code, check_code, rate
from snnjax.conformance import check_protocol
from snnjax.network.sites import Site, Sites
from snnjax.neurons.by_site import by_name, model_of, models_in, resolve_models
from snnjax.neurons.models import IntegrateAndFire, NeuronParams, as_encoder, is_plain
from snnjax.neurons.protocol import chain, check_model
from snnjax.neurons.wrappers import off_grid

# Labels of leaves in training, beside the names of neurons' parameters.
WEIGHTS = "weights"
FROZEN = "frozen"


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
            value with the model of each site. `model_of` returns that of one site.
        code: what a spike is worth at each step, see `snnjax.codes`.
        fit: what `snnjax.convert` measured and kept, for people; files, and what
            changes an SNN, drop it.
        fitted_to: the steps, the wait and the code that thresholds and biases are for:
            those that the SNN was made with. ``dataclasses.replace(snn, steps=...)``
            keeps them, and IF neurons run with no others.

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
    fitted_to: tuple[int, int, Code] | None = None

    def __post_init__(self):
        is_known = self.steps is not None and self.wait is not None
        if self.fitted_to is None and is_known:
            # The class is frozen, so that an assignment would raise.
            fitted_to = (self.steps, self.wait, self.code)
            object.__setattr__(self, "fitted_to", fitted_to)

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
        names = []
        if isinstance(self.neurons, Mapping):
            names = list(self.neurons)
        parts = [f"steps={self.steps}", f"wait={self.wait}"]
        if self.code != rate():
            parts.append(f"code={self.code!r}")
        parts.append(f"{counted(self._size(), 'number')} in params")
        parts.append(sites_in_words(names))
        return f"SNN({', '.join(parts)})"

    def _size(self) -> int:
        """How many numbers the params hold."""
        size = 0
        for leaf in jax.tree.leaves(self.params):
            shape = getattr(leaf, "shape", ())  # a Python number has none
            size += math.prod(shape)
        return size

    def _table(self) -> Table:
        title = ["SNN"]
        if self.steps is not None:
            title.append(f"T = {self.steps}")
        if self.wait is not None:
            title.append(f"wait {self.wait}")
        if self.code != rate():
            title.append(repr(self.code))
        title.append(f"{counted(self._size(), 'number')} in params")

        texts_of_sites = {}  # name of a site -> field -> text
        fields: dict[str, None] = {}  # of all sites, each once, in order
        for name, params in self.neurons.items():
            texts_of_sites[name] = _parameter_texts(params)
            fields |= dict.fromkeys(texts_of_sites[name])
        field_titles = [field.replace("_", " ") for field in fields]
        rows = [["site", "levels", *field_titles]]
        models = dict(getattr(self.model, "models", ()))
        for name, texts in texts_of_sites.items():
            # A table must not fail for neurons whose sites were renamed.
            model = models.get(name, self.model)
            levels = getattr(model, "levels", None)
            if levels is None:
                levels_text = "-"
            else:
                lowest_level, highest_level = levels
                levels_text = f"{lowest_level}:{highest_level}"
            cells = [texts.get(field, "-") for field in fields]
            rows.append([name, levels_text, *cells])
        return Table(rows, above=", ".join(title), below=self.fit)


def _parameter_texts(params: Any) -> dict[str, str]:
    """Name of a parameter of a site -> its numbers as text, see `numbers`.

    The parameters of a model within another one are among them.
    """
    texts = {}
    for field, value in params._asdict().items():
        if hasattr(value, "_asdict"):
            for name, text in _parameter_texts(value).items():
                # The model within may have a field of the same name.
                title = f"{field} {name}" if name in params._fields else name
                texts[title] = text
        elif value is not None:
            texts[field] = numbers(value)
    return texts


def models_of_sites(neuron: Any, sites: Sites, default: Any) -> Any:
    """The models of all sites that fire, as `SNN.model` holds them.

    Encoders get levels of both signs.

    Args:
        neuron: a model, or name or pattern of sites -> model, see `resolve_models`.
        sites: of the network.
        default: model of sites that no pattern matches.
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
    """The steps and the wait of a run, two whole numbers.

    Args:
        snn: the network.
        steps: T; None: that of the SNN.
        wait: None: that of the SNN, or 0 if it has none.

    Raises:
        ValueError: this is not an SNN; steps or wait are out of range; steps, wait or
            code differ from those that its IF neurons were fitted to; or the
            number of steps is unknown.
    """
    check_snn(snn)
    check_code(snn.code)
    if steps is None:
        steps = snn.steps
    if steps is None:
        raise ValueError(
            "this SNN is from snnjax.init and was fitted to no number of steps: give "
            "steps=T"
        )
    if wait is None:
        wait = snn.wait or 0
    check_wait(steps, wait)
    fitted_to = snn.fitted_to or (snn.steps, snn.wait, snn.code)
    fitted_steps, fitted_wait, fitted_code = fitted_to
    if is_fitted(snn) and snn.code != fitted_code:
        raise ValueError(
            f"this SNN was fitted to the code {fitted_code!r} and cannot run with "
            f"{snn.code!r}: its thresholds and biases depend on it. Convert again with "
            "code=..., or, if they suit the new code already, take "
            "dataclasses.replace(snn, code=..., fitted_to=None)"
        )
    if is_fitted(snn) and (fitted_steps, fitted_wait) != (steps, wait):
        raise ValueError(
            f"this SNN was fitted to steps={fitted_steps}, wait={fitted_wait} and "
            f"cannot run with steps={steps}, wait={wait}: its thresholds and biases "
            "depend on both. Leave steps and wait out, convert again with others, or "
            "read an early answer of a longer run, snn.code.answers(outputs)[t - 1]"
        )
    return steps, wait


def is_fitted(snn: SNN) -> bool:
    """Whether an SNN has IF neurons that are fitted to its T, its wait and its code.

    They count over all steps. Leaky neurons forget, and are fitted to no T.
    """
    if snn.steps is None:
        return False
    for name, params in snn.neurons.items():
        model = off_grid(snn.model_of(name))
        if is_plain(model) and params.leak is None:
            return True
    return False


def check_params(snn: SNN, params: chex.ArrayTree) -> None:
    """Raise unless these parameters have the names and shapes of the SNN's own."""
    snn_shapes = _shapes_by_path(snn.params)
    params_shapes = _shapes_by_path(params)
    snn_paths = snn_shapes.keys()
    params_paths = params_shapes.keys()
    unknown = sorted(params_paths - snn_paths)
    missing = sorted(snn_paths - params_paths)
    if unknown or missing:
        raise ValueError(
            "params are not those that this SNN was converted from. Unknown to it: "
            f"{unknown or 'none'}; missing: {missing or 'none'}"
        )
    for path, shape in params_shapes.items():
        if shape != snn_shapes[path]:
            raise ValueError(
                "params are not those that this SNN was converted from: "
                f"{path or 'the array'} has shape {shape}, and {snn_shapes[path]} in "
                "the SNN; allowed: the params that snnjax.convert or snnjax.init got"
            )


def _shapes_by_path(params: chex.ArrayTree) -> dict[str, tuple[int, ...]]:
    """Path -> shape of all leaves, with the paths of `paths_of`."""
    shapes = map(jnp.shape, jax.tree.leaves(params))
    return dict(zip(paths_of(params), shapes, strict=True))


def check_models(code: Code, models: Iterable[Any]) -> None:
    """Raise unless neurons of these models can send this code."""
    check_code(code)
    for model in map(off_grid, models):
        keeps_charge = (
            is_plain(model)
            and model.reset == "subtract"
            and model.leak is None
            and model.lowest is None
        )
        if code.keeps_charge and not keeps_charge:
            raise ValueError(
                f"the code {code!r} needs IF neurons with reset by subtraction, no "
                f"leak and no lower bound, which keep what is missing; found {model!r}."
                " Take model=snnjax.integrate_and_fire(levels=(-1, 1)), or the code "
                "snnjax.codes.rate()"
            )
        # Of the model itself, and of each one within it.
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
        if not site.fires:
            continue
        model = snn.model_of(site.name)
        params = snn.neurons[site.name]
        has_leak = getattr(params, "leak", None) is not None
        if snn.code.keeps_charge and has_leak:
            raise ValueError(
                f"the neurons of site {site.name!r} have a leak, and those of the "
                f"code {snn.code!r} must keep what is missing; allowed: leak None"
            )
        _check_site(model, params, site)
        if not is_plain(model):
            check_protocol(model, params, site)


def check_values(snn: SNN) -> None:
    """Raise if values are out of range; traced ones are not known and not checked.

    Weights must be neither NaN nor plus infinity (minus infinity may be a mask).
    Parameters of neurons are finite, thresholds and temperatures > 0, leaks in (0, 1].
    """
    for name, params in snn.neurons.items():
        ranges = ranges_in(params)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params):
            is_number = jnp.issubdtype(jnp.result_type(leaf), jnp.number)
            if is_number and _readable(leaf):
                field = name_of(path)
                what = f"{field} of site {name!r}"
                limits = ranges.get(field)
                _check_range(what, limits, np.asarray(leaf))
    check_weights(snn.params)


def check_weights(params: chex.ArrayTree) -> None:
    """Raise if weights are NaN or, in kernels, plus infinity.

    Other parameters may be infinite, as the maximum of a clipped ReLU. Traced ones are
    not known and not checked.
    """
    # What is not allowed -> the paths of the weights that hold it.
    paths: dict[str, list[str]] = {"NaN": [], "infinity": []}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        is_weight = hasattr(leaf, "dtype") and is_floating(leaf)
        if not is_weight or not _readable(leaf) or all_are_finite(leaf):
            continue
        if int(count("isnan", leaf)) > 0:
            paths["NaN"].append(name_of(path))
        elif is_kernel(leaf) and int(count("isposinf", leaf)) > 0:
            paths["infinity"].append(name_of(path))
    for word, paths_with_it in paths.items():
        if not paths_with_it:
            continue
        names = ", ".join(map(repr, paths_with_it[:3]))
        if len(paths_with_it) > 3:
            names += " and others"
        raise ValueError(
            f"{word} in the weights {names}; allowed: numbers. Perhaps a training "
            "diverged: go back to an earlier state, with a smaller step"
        )


def _check_names(neurons: Mapping[str, Any], sites: Sites) -> None:
    """Raise unless there are parameters for exactly the sites that fire."""
    names = {site.name for site in sites if site.fires}
    missing = names - set(neurons)
    unknown = set(neurons) - names
    if missing or unknown:
        advice = ""
        # The last part of a name says what the site is: "relu", or "encoder_2".
        kinds = [name.split("/")[-1] for name in missing | unknown]
        if any(kind.startswith("encoder") for kind in kinds):
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
            f"{_listed_names(unknown)}; sites without neurons: "
            f"{_listed_names(missing)}; sites: {_listed_names(names)}{advice}"
        )


def _listed_names(names: Collection[str]) -> str:
    """The first eight of these names, and how many more there are."""
    if not names:
        return "none"
    text = str(sorted(names)[:8])
    if len(names) > 8:
        text += f" and {len(names) - 8} more"
    return text


def _check_site(model: Any, params: Any, site: Site) -> None:
    """Raise unless these are parameters of the model, of the shape of the site.

    A parameter broadcasts to the site's shape, or has the shape that ``init`` gives it,
    as a recurrent kernel does.
    """
    # The parameters that the model makes itself, or their shapes.
    if is_plain(model):
        # Those of IF and LIF all broadcast, so that their names are enough.
        no_arrays = [None] * len(NeuronParams._fields)
        fresh = NeuronParams._make(no_arrays)
    else:
        key = jax.random.key(0)
        fresh = jax.eval_shape(lambda: model.init(site.shape, key))
        _check_fresh(fresh, f"{model!r} at site {site.name!r}")
    if _fields(params) != _fields(fresh):
        raise ValueError(
            f"the neurons of site {site.name!r} have the parameters "
            f"{_fields_text(params)}, and its model {model!r} has "
            f"{_fields_text(fresh)}. Begin with those of the model, by snnjax.init"
        )
    fresh_shapes = _shapes(fresh)
    for name, shape in _shapes(params).items():
        has_fresh_shape = shape == fresh_shapes.get(name)
        if not has_fresh_shape and not broadcasts(shape, site.shape):
            raise ValueError(
                f"the neurons of site {site.name!r} do not fit its shape "
                f"{site.shape}: {name} has shape {shape}. An SNN runs on examples "
                "of the shape that it was fitted to (of a sequence x, snnjax.init "
                "takes one step, x[0]), and on others if each channel has "
                "one number, as snnjax.best() fits them under snnjax.codes.radix()"
            )


def _check_fresh(fresh: Any, where: str) -> None:
    """Raise unless a model makes NamedTuples of arrays, with names that may be used.

    Args:
        fresh: the parameters that the model makes, or their shapes.
        where: the model and its site, for messages.
    """
    if () in _fields(fresh):
        raise ValueError(
            f"the params of {where} are a {type(fresh).__name__}; allowed: a "
            "NamedTuple of arrays"
        )
    fields = []
    for part in chain(fresh):
        fields += part._asdict().items()
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
    """Names of parameters: of a model, then of the one within it, and so on.

    What is no NamedTuple has no names: ().
    """
    fields = []
    for part in chain(params):
        fields.append(getattr(part, "_fields", ()))
    return fields


def _fields_text(params: Any) -> str:
    """Names of parameters as text; those of a model inside follow after a semicolon."""
    texts = []
    for names in _fields(params):
        texts.append(", ".join(names) or "none")
    return "; ".join(texts)


def _shapes(params: Any) -> dict[str, tuple[int, ...]]:
    """Path -> shape of all parameters."""
    shapes = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        shapes[name_of(path)] = jnp.shape(leaf)
    return shapes


def ranges_in(params: Any) -> dict[str, Range]:
    """Path -> range of the parameters of one site, as their classes declare them.

    >>> from snnjax.neurons import Synaptic, lif
    >>> limits = ranges_in(Synaptic(lif()).init())
    >>> limits["synaptic_leak"].most, limits["neuron/threshold"].most
    (1, inf)
    """
    ranges = {}
    prefix = ""
    for part in chain(params):
        for name, limits in ranges_of(type(part)).items():
            ranges[prefix + name] = limits
        prefix += "neuron/"  # the next part lies in the field `neuron` of this one
    return ranges


def _check_range(what: str, limits: Range | None, numbers: np.ndarray) -> None:
    """Raise unless all numbers are in a range.

    Args:
        what: the numbers, for messages; its first word is the name of a parameter.
        limits: the range; None: all finite numbers are allowed.
        numbers: of any shape.
    """
    numbers = numbers.astype(np.float64)
    if limits is None:
        within = np.isfinite(numbers)
        allowed = "finite"
        remedy = "Perhaps a training diverged: go back to an earlier state"
    else:
        within = limits.holds(numbers)
        allowed = limits.describe(what.split()[0])
        remedy = "In training, snnjax.training.descent keeps it there"
    if not within.all():
        first_outside = numbers[~within].flat[0]
        raise ValueError(f"the {what} is {first_outside}; allowed: {allowed}. {remedy}")


def _readable(leaf: Any) -> bool:
    """Whether the numbers of a leaf are concrete, and this process has all of them."""
    is_known = not isinstance(leaf, Tracer | jax.ShapeDtypeStruct)
    return is_known and getattr(leaf, "is_fully_addressable", True)
