"""Fine-tuning: a training that begins with a converted network.

L = (1 - c) loss(O, y) + c KL(softmax(teacher(x)) || softmax(mean_t O(t)))
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from snnjax import sharding
from snnjax._checks import check_positive, check_share, is_number
from snnjax._folders import parts_of
from snnjax._trees import paths_of
from snnjax.simulation.choice import has_closed_form
from snnjax.simulation.simulate import spiking
from snnjax.snn import SNN, checked_fit
from snnjax.training.differences import with_leaves
from snnjax.training.leaves import differentiable
from snnjax.training.loop import train
from snnjax.training.losses import distillation, mean_cross_entropy
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


_State = tuple[SNN, optax.OptState]  # what a step changes


def finetune(
    fn: Callable,
    snn: SNN,
    examples: Iterable | Callable[[int], Iterable],
    *,
    epochs: int,
    rules: optax.ScalarOrSchedule | Rules = 1e-3,
    loss: Callable[[Any, Any], jax.Array] = mean_cross_entropy,
    teacher: Callable[[Any], jax.Array] | None = None,
    share: float | None = None,
    measure: Callable[[SNN, dict[str, Any]], Any] | None = None,
    folder: Any = None,
    depends_on: Mapping[str, Any] | None = None,
    has_aux: bool = False,
    **options: Any,
) -> Finetuned:
    """Train a converted network further, by surrogate gradients.

        L = (1 - c) loss(O, y) + c KL(softmax(teacher(x)) || softmax(mean_t O(t)))

    On a terminal, a bar on stderr shows the epoch, the step and its loss. Where each
    layer waits for all of its input, the closed form is trained: a step then costs one
    of the ANN, whatever T. `descent` keeps neurons in their ranges.

    Args:
        fn: network, ``fn(params, x) -> outputs``, with has_aux in training mode.
        snn: from `snnjax.convert`.
        examples: pairs (x, labels), one for each step, or a function: epoch -> its
            pairs; see `train`. Pairs of equal shapes need one program. If x is sharded
            over a mesh, its devices share the work.
        epochs: >= 1.
        rules: learning rate or schedule (step -> rate) of Adam, or an optimizer or
            several, as for `descent`.
        loss: (outputs [T, B, ...], labels) -> number.
        teacher: x -> logits [B, classes], e.g. ``lambda x: fn(params, x)``, the ANN in
            inference mode.
        share: c in [0, 1]; by default 0.5 with a teacher and 0 without.
        measure: called after each epoch with the SNN and its line of the log; the
            entries that it returns, or None, are added to the line. They must be
            numbers, texts, or lists of them.
        folder: from which the same call resumes, as in `train`. It is of another call
            if SNN, options or versions differ. Examples, teacher and the functions of
            an optimizer cannot be compared: keep them the same.
        depends_on: what else must be the same, by name, such as a seed; see `train`.
        has_aux: fn is in training mode, ``fn(params, x) -> (outputs, averages)``, see
            `snnjax.spiking`. The averages, such as a BatchNorm's, are a pytree like a
            part of the params, and replace that part after each step.
        options: of `snnjax.spiking`, such as surrogate and execution.

    Raises:
        ValueError: an argument is out of range; no examples in an epoch, or not in
            pairs; the SNN is of another function, or labels have the wrong shape; a
            folder of another call.
        FloatingPointError: the loss is not finite, or a weight is NaN. Inside ``jit``,
            labels that are no classes have such a loss.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> def fn(params, x):
    ...     return jax.nn.relu(x @ params["hidden"]) @ params["readout"]
    >>> keys = jax.random.split(jax.random.key(0), 3)
    >>> params = {"hidden": jax.random.normal(keys[0], (8, 32)) / 3,
    ...           "readout": jax.random.normal(keys[1], (32, 3)) / 3}
    >>> x = jax.random.normal(keys[2], (64, 8))
    >>> labels = fn(params, x).argmax(-1)
    >>> snn = snnjax.convert(fn, params, x, steps=2)
    >>> batches = [(x[:32], labels[:32]), (x[32:], labels[32:])]
    >>> tuned, log = finetune(fn, snn, batches, epochs=10, rules=1e-2,
    ...                       teacher=lambda x: fn(params, x))
    >>> log[-1]["loss"] < 0.8 * log[0]["loss"]
    True
    >>> snnjax.spiking(fn)(tuned, x).shape
    (2, 64, 3)
    """
    share = _share(teacher, share)
    fit = checked_fit(snn, options.get("steps"), options.get("wait"))
    own_gradient = options.keys() & {"surrogate", "detach_reset"}
    if has_closed_form(snn, *fit) and not own_gradient:
        options = {"execution": "closed_form", **options}
    simulate = spiking(fn, has_aux=has_aux, **options)
    optimizer = _optimizer(rules)
    objective = _objective(simulate, loss, teacher, share, has_aux)
    init, descend = descent(objective, optimizer, has_aux=True)

    @jax.jit
    def step_on_devices(state: _State, x: chex.ArrayTree, labels: Any):
        snn, opt_state, (value, (averages, report)) = descend(*state, x, labels)
        snn = _with_averages(snn, averages)
        weights = jax.tree.leaves(differentiable(snn)[0])
        nan = jnp.stack([jnp.isnan(leaf).any() for leaf in weights]).any()
        report |= {"loss": value, "finite": jnp.isfinite(value) & ~nan}
        return (snn, opt_state), report

    def step(state: _State, batch: Any):
        x, labels, *on_devices = sharding.automatic(*_pair(batch), *state)
        return step_on_devices(tuple(on_devices), x, labels)

    def measure_snn(state: _State, log: list[dict[str, Any]]) -> Any:
        return None if measure is None else measure(state[0], log[-1])

    call = {"SNN": snn, "rules": rules, "loss": loss, "share": share}
    call |= {"options": (has_aux, options)}
    more = parts_of(depends_on)
    if names := sorted(call.keys() & more.keys()):
        raise ValueError(
            f"depends_on names {', '.join(names)}, which are compared anyway; give "
            "them other names, or leave them out"
        )
    (snn, _), log = train(
        step,
        (snn, init(snn)),
        examples,
        epochs=epochs,
        measure=measure_snn,
        folder=folder,
        depends_on=call | more,
    )
    return Finetuned(snn, log)


def _objective(
    simulate: Callable,
    loss: Callable,
    teacher: Callable | None,
    share: float,
    has_aux: bool,
) -> Callable:
    """(snn, x, labels) -> (loss, (new averages, report of the step))."""

    def objective(snn: SNN, x: chex.ArrayTree, labels: Any):
        outputs, averages = simulate(snn, x) if has_aux else (simulate(snn, x), {})
        value = loss(outputs, labels) if share < 1 else 0.0
        if teacher is not None and share > 0:
            distance = distillation(outputs, teacher(x))
            value = (1 - share) * value + share * distance
        return value, (averages, _accuracy(outputs, labels))

    return objective


def _accuracy(outputs: Any, labels: Any) -> dict[str, jax.Array]:
    """That of the mean output, where labels are classes."""
    arrays = isinstance(outputs, jax.Array) and isinstance(labels, jax.Array)
    if not arrays or not jnp.issubdtype(labels.dtype, jnp.integer):
        return {}
    if labels.shape != outputs.shape[1:-1]:
        return {}
    answers = outputs.mean(0).argmax(-1).astype(labels.dtype)
    return {"accuracy": (answers == labels).mean()}


def _with_averages(snn: SNN, averages: chex.ArrayTree) -> SNN:
    """The SNN with new averages in the place of the params with the same names."""
    names = paths_of(snn.params)
    new = dict(zip(paths_of(averages), jax.tree.leaves(averages), strict=True))
    if unknown := sorted(new.keys() - set(names)):
        raise ValueError(
            f"fn returns {unknown} beside its outputs, which the params do not hold; "
            f"allowed: a pytree like a part of the params, such as {names[:5]}"
        )
    return with_leaves(snn, {i: new[n] for i, n in enumerate(names) if n in new})


def _pair(batch: Any) -> tuple[Any, Any]:
    """A batch as JAX arrays."""
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise ValueError(
            f"a batch of examples is {type(batch).__name__}; allowed: a pair "
            "(x, labels)"
        )
    x, labels = jax.tree.map(jnp.asarray, tuple(batch))
    return x, labels


def _optimizer(rules: Any) -> Any:
    """Adam with a learning rate or a schedule; optimizers as they are."""
    if is_number(rules):
        check_positive("rules", rules)
        return optax.adam(rules)
    if not callable(rules):
        return rules
    schedule: Any = rules
    if not is_number(rate := schedule(0)):
        raise ValueError(
            f"rules(0) is {type(rate).__name__}; allowed: a learning rate, a schedule "
            "(step -> rate), or an optimizer, e.g. optax.adam(1e-3) (called)"
        )
    return optax.adam(schedule)


def _share(teacher: Callable | None, share: float | None) -> float:
    """c of the loss."""
    if share is None:
        return 0.0 if teacher is None else 0.5
    check_share("share", share)
    if share > 0 and teacher is None:
        raise ValueError(
            f"share is {share} without a teacher; give one, e.g. "
            "teacher=lambda x: fn(params, x), or leave share out"
        )
    return float(share)
