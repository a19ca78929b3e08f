"""A whole training of an SNN, from `snnjax.init` or from `snnjax.convert`."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from snnjax import sharding
from snnjax._arrays import wide
from snnjax._checks import called_as, check_labels, check_on_host, takes
from snnjax._ranges import SHARE
from snnjax._text import closest, name_of_value
from snnjax.simulation.choice import has_closed_form
from snnjax.simulation.simulate import spiking
from snnjax.snn import SNN, checked_fit
from snnjax.training.leaves import differentiable, named_params, with_params
from snnjax.training.loop import train
from snnjax.training.losses import mean_cross_entropy
from snnjax.training.optimizers import Rules, descent


class Finetuned(NamedTuple):
    """Result of `finetune`.

    Attributes:
        snn: the trained network.
        log: for each epoch its number (``epoch``), the means of ``loss`` and
            ``accuracy`` over its steps, its ``seconds``, and what ``measure`` returned.
    """

    snn: SNN
    log: list[dict[str, Any]]


# What a step changes: the network, and the state of its optimizers.
_State = tuple[SNN, optax.OptState]


@called_as("snnjax.training.finetune(fn, snn, examples, epochs=..., ...)")
def finetune(
    fn: Callable,
    snn: SNN,
    examples: Iterable | Callable[[int], Iterable],
    *,
    epochs: int,
    rules: Rules | None = None,
    loss: Callable[[Any, Any], jax.Array] = mean_cross_entropy,
    teacher: Callable[[Any], jax.Array] | None = None,
    share: float | None = None,
    measure: Callable[[SNN, dict[str, Any]], Any] | None = None,
    folder: Any = None,
    depends_on: Mapping[str, Any] | None = None,
    has_aux: bool = False,
    **options: Any,
) -> Finetuned:
    """Train an SNN of `snnjax.init` or of `snnjax.convert`, by surrogate gradients.

        L = (1 - c) loss(O, y) + c KL(softmax(teacher(x)) || softmax(mean_t O(t)))

    On a terminal, a bar on stderr shows the epoch, the step and its loss. Where each
    layer waits for all of its input, the closed form is trained: a step then costs one
    of the ANN, whatever T. `descent` keeps neurons in their ranges.

    Args:
        fn: network, ``fn(params, x) -> outputs``, with has_aux in training mode.
        snn: the network; one of `snnjax.init` needs ``steps`` among the options. The
            result has the steps and the wait that it was trained with.
        examples: pairs (x, labels), one for each step, or a function: epoch -> its
            pairs; see `train`. Pairs of equal shapes need one program. If x is sharded
            over a mesh, its devices share the work.
        epochs: >= 1.
        rules: optimizers, as for `descent`; by default ``optax.adam(1e-3)``.
        loss: (outputs [T, B, ...], labels) -> number.
        teacher: x -> logits [B, classes], e.g. ``lambda x: fn(params, x)``, the ANN in
            inference mode.
        share: c in [0, 1]; by default 0.5 with a teacher and 0 without.
        measure: called after each epoch with the SNN and its line of the log; returns
            entries that are added to the line, or None, see `train`.
        folder: from which the same call resumes, as in `train`. The folder of a call
            with another fn, SNN, examples, optimizer, loss, teacher, share or options
            is refused. Lists of batches are compared by their numbers, and functions by
            their code and the values that they enclose. A loader is compared by its
            ``repr`` alone, so name what it reads in ``depends_on``.
        depends_on: what else must be the same, by name, such as a seed; see `train`.
        has_aux: fn is in training mode, ``fn(params, x) -> (outputs, averages)``, see
            `snnjax.spiking`. The averages, such as a BatchNorm's, are a pytree like a
            part of the params, and replace that part after each step.
        options: of `snnjax.spiking`, such as surrogate and execution.

    Raises:
        ValueError: an argument is out of range; examples are not in pairs, or labels
            have the wrong shape or, with `mean_cross_entropy`, are no classes, which
            is checked before each step; the SNN is of another function; and as `train`.
        FloatingPointError: the loss is not finite, or a weight is NaN. With a loss of
            your own, labels that are no classes may cause it.

    >>> import jax, jax.numpy as jnp, optax, snnjax
    >>> def fn(params, x):
    ...     return jax.nn.relu(x @ params["hidden"]) @ params["readout"]
    >>> keys = jax.random.split(jax.random.key(0), 3)
    >>> params = {"hidden": jax.random.normal(keys[0], (8, 32)) / 3,
    ...           "readout": jax.random.normal(keys[1], (32, 3)) / 3}
    >>> x = jax.random.normal(keys[2], (64, 8))
    >>> labels = fn(params, x).argmax(-1)
    >>> snn = snnjax.convert(fn, params, x, steps=2)
    >>> batches = [(x[:32], labels[:32]), (x[32:], labels[32:])]
    >>> tuned, log = finetune(fn, snn, batches, epochs=10, rules=optax.adam(1e-2),
    ...                       teacher=lambda x: fn(params, x))
    >>> log[-1]["loss"] < 0.8 * log[0]["loss"]
    True
    """
    check_on_host("snnjax.training.finetune", snn=snn)
    share = _checked_share(share, teacher)
    _check_functions(loss, teacher, measure)
    _check_options(options)
    steps, wait = checked_fit(
        snn,
        steps=options.get("steps"),
        wait=options.get("wait"),
    )
    if options.get("state"):
        raise ValueError(
            "finetune learns from whole examples; leave state out, or write a step of "
            "your own for training.train"
        )
    # The closed form has a straight-through gradient, and no surrogate.
    asks_for_surrogate = "surrogate" in options or "detach_reset" in options
    if has_closed_form(snn, steps, wait) and not asks_for_surrogate:
        options.setdefault("execution", "closed_form")
    if rules is None:
        rules = optax.adam(1e-3)

    simulate = spiking(fn, has_aux=has_aux, **options)
    objective = _objective(simulate, loss, teacher, share, has_aux)
    init, descend = descent(objective, rules, has_aux=True)
    check = None
    if loss is mean_cross_entropy and share < 1:
        check = _check_of_labels(simulate, has_aux)

    def measure_snn(state: _State, log: list[dict[str, Any]]) -> Any:
        if measure is None:
            return None
        snn, _ = state
        return measure(snn, log[-1])

    # What tells this call from another one that would resume from the same folder.
    identity = {
        "fn": fn,
        "examples": examples,
        "rules": rules,
        "loss": loss,
        "teacher": teacher,
        "share": share,
        "options": (has_aux, options),
    }
    if depends_on is not None:
        identity = dict(**identity, **depends_on)  # refuses a name that is taken
    (trained, _), log = train(
        _training_step(descend, check),
        (snn, init(snn)),
        examples,
        epochs=epochs,
        measure=measure_snn,
        folder=folder,
        depends_on=identity,
    )
    # It is fitted to the steps and the wait that it was trained with.
    tuned = dataclasses.replace(trained, steps=steps, wait=wait, fitted_to=None)
    return Finetuned(tuned, log)


def _objective(
    simulate: Callable,
    loss: Callable[[Any, Any], jax.Array],
    teacher: Callable[[Any], jax.Array] | None,
    share: float,
    has_aux: bool,
) -> Callable[[SNN, Any, Any], tuple[Any, Any]]:
    """The loss L of `finetune` as a function of the network and a batch.

    Returns:
        A function (snn, x, labels) -> (L, (averages, report)). The averages are those
        that fn returns in training mode, otherwise {}. The report holds the accuracy if
        the labels are classes.
    """

    def objective(snn: SNN, x: chex.ArrayTree, labels: Any):
        if has_aux:
            outputs, averages = simulate(snn, x)
        else:
            outputs = simulate(snn, x)
            averages = {}
        # A part without weight is not computed: 0 times an infinite loss is NaN.
        value = 0.0
        if share < 1:
            value = loss(outputs, labels)
        if teacher is not None and share > 0:
            distance = _distance(outputs, teacher(x))
            value = (1 - share) * value + share * distance
        report = _accuracy(outputs, labels)
        return value, (averages, report)

    return objective


def _training_step(
    descend: Callable, check: Callable[[SNN, Any, Any], None] | None
) -> Callable[[_State, Any], tuple[_State, Any]]:
    """A step for `train`: (state, (x, labels)) -> (new state, report).

    The report has the loss, whether it is finite and the SNN has no NaN, and the
    accuracy if the labels are classes.

    Args:
        descend: the step that `descent` returns for the function of `_objective`.
        check: (snn, x, labels) -> None, which raises for a batch that is refused.
    """

    @jax.jit
    def step_on_devices(state: _State, x: chex.ArrayTree, labels: Any):
        snn, opt_state = state
        snn, opt_state, objective_result = descend(snn, opt_state, x, labels)
        loss_value, (averages, report) = objective_result
        snn = _with_averages(snn, averages)
        finite = jnp.isfinite(loss_value) & ~_has_nan(snn)
        report |= {"loss": loss_value, "finite": finite}
        return (snn, opt_state), report

    def step(state: _State, batch: Any):
        _check_batch(batch)
        x, labels = jax.tree.map(jnp.asarray, tuple(batch))
        snn, opt_state = state
        # If x is sharded over a mesh, everything else has to lie on it, too.
        x, labels, snn, opt_state = sharding.automatic(x, labels, snn, opt_state)
        if check is not None:
            check(snn, x, labels)
        return step_on_devices((snn, opt_state), x, labels)

    return step


def _check_of_labels(
    simulate: Callable, has_aux: bool
) -> Callable[[SNN, Any, Any], None]:
    """A function (snn, x, labels) that raises unless labels are classes of the outputs.

    Within a step labels are traced, so that nobody knows their numbers.

    Args:
        simulate: (snn, x) -> outputs, or with has_aux (outputs, averages).
        has_aux: see `finetune`.
    """

    def check(snn: SNN, x: chex.ArrayTree, labels: Any) -> None:
        # JAX traces once for each shape of x, and remembers the outputs' shapes.
        outputs = jax.eval_shape(simulate, snn, x)
        if has_aux:
            outputs, _ = outputs
        check_labels(outputs, labels)

    return check


def _check_functions(loss: Any, teacher: Any, measure: Any) -> None:
    """Raise unless these can be called, each with what `finetune` gives it."""
    functions = [
        ("loss", loss, 2, "a function (outputs [T, B, ...], labels) -> number"),
        ("teacher", teacher, 1, "a function x -> logits, e.g. lambda x: fn(params, x)"),
        ("measure", measure, 2, "a function (snn, line of the log) -> dict or None"),
    ]
    for name, function, argument_count, allowed in functions:
        if function is None and name != "loss":
            continue
        if not callable(function):
            raise ValueError(
                f"{name} is a {type(function).__name__}; allowed: {allowed}"
            )
        if not takes(function, *[None] * argument_count):
            raise ValueError(
                f"{name} is {name_of_value(function)}{inspect.signature(function)}; "
                f"allowed: {allowed}"
            )


def _check_options(options: Mapping[str, Any]) -> None:
    """Raise unless these are options of `snnjax.spiking`."""
    allowed = list(inspect.signature(spiking).parameters)
    for name in options:
        if name not in allowed:
            names = [*allowed, *inspect.signature(finetune).parameters]
            raise TypeError(
                f"finetune() got an unexpected option {name!r}{closest(name, names)}; "
                f"allowed: its own arguments, and {', '.join(allowed[1:])} of "
                "snnjax.spiking. A learning rate is one of the rules, "
                "rules=optax.adam(1e-3)"
            )


def _checked_share(share: float | None, teacher: Callable | None) -> float:
    """The share c of the teacher in the loss: 0.5 by default, 0 without a teacher."""
    if teacher is None and share is not None:
        raise ValueError(
            f"share is {share} without a teacher; give one, e.g. "
            "teacher=lambda x: fn(params, x), or leave share out"
        )
    if share is None:
        share = 0.0 if teacher is None else 0.5
    SHARE.check("share", share)
    return share


def _check_batch(batch: Any) -> None:
    """Raise unless a batch is a pair."""
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise ValueError(
            f"a batch of examples is {type(batch).__name__}; allowed: a pair "
            "(x, labels)"
        )


def _has_nan(snn: SNN) -> jax.Array:
    """Whether a floating leaf of an SNN holds NaN, a bool [], which may be traced."""
    floats, _ = differentiable(snn)
    has_nan = [jnp.isnan(leaf).any() for leaf in jax.tree.leaves(floats)]
    return jnp.stack(has_nan).any()


def _distance(outputs: jax.Array, logits: jax.Array) -> jax.Array:
    """KL(softmax(logits) || softmax(mean_t O(t))), averaged over images.

    Args:
        outputs: O, the readout of the SNN at each step, [T, B, classes].
        logits: those of the teacher, [B, classes].
    """
    if len(outputs.shape) != 3 or logits.shape != outputs.shape[1:]:
        raise ValueError(
            f"outputs have shape {outputs.shape}, the teacher's {logits.shape}; "
            "allowed: the readout at each step [T, B, classes], and logits [B, classes]"
        )
    mean_outputs = wide(outputs).mean(0)  # [B, classes]
    divergences = optax.losses.kl_divergence_with_log_targets(
        jax.nn.log_softmax(mean_outputs),
        jax.nn.log_softmax(wide(logits)),
    )
    return divergences.mean()


def _accuracy(outputs: Any, labels: Any) -> dict[str, jax.Array]:
    """The accuracy of the mean output; {} unless labels are classes of the outputs.

    Args:
        outputs: the readout at each step, [T, B, classes]; a loss may take others.
        labels: whole numbers [B], or whatever the loss takes.
    """
    if not isinstance(outputs, jax.Array) or not isinstance(labels, jax.Array):
        return {}
    are_whole = jnp.issubdtype(labels.dtype, jnp.integer)
    if not are_whole or labels.shape != outputs.shape[1:-1]:
        return {}
    answers = outputs.mean(0).argmax(-1)
    is_right = answers.astype(labels.dtype) == labels
    return {"accuracy": is_right.mean()}


def _with_averages(snn: SNN, averages: chex.ArrayTree) -> SNN:
    """The SNN with new averages in place of the params of the same paths."""
    params = named_params(snn.params)
    new_params = named_params(averages)
    unknown = sorted(new_params.keys() - params.keys())
    if unknown:
        first_paths = list(params)[:5]
        raise ValueError(
            f"fn returns {unknown} beside its outputs, which the params do not hold; "
            f"allowed: a pytree like a part of the params, such as {first_paths}"
        )
    return with_params(snn, new_params)
