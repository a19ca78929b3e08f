"""Checks of a captured network, and the error that lists all obstacles.

Obstacles are operations that mix examples, loops, random and whole numbers, and
sorting. Each is reported with its path and a remedy.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax

from snnjax._checks import AS_FLOATING, MAP_EXAMPLES
from snnjax._text import counted
from snnjax._trees import batch_of
from snnjax.network.capture.facts import FLOATING, Facts
from snnjax.network.capture.jaxprs import MAX_TURNS
from snnjax.network.capture.primitives import OPERATOR
from snnjax.network.capture.recognize import hides_relu
from snnjax.network.equations import Equation, Network, spread_out


class Problem(NamedTuple):
    """An obstacle to a conversion.

    Attributes:
        path: its place in the network, such as ``Net/LayerNorm_0``.
        operations: names of the operations there.
        reason: why it cannot be converted.
        remedy: how to change the network.
    """

    path: str
    operations: tuple[str, ...]
    reason: str
    remedy: str


class ConversionError(ValueError):
    """The network cannot be converted; ``problems`` lists all obstacles.

    Attributes:
        problems: a `snnjax.network.Problem` for each place in the network.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn = lambda w, x: jax.nn.relu(x @ w).argmax(-1)
    >>> try:
    ...     snnjax.sites(fn, jnp.eye(2), jnp.eye(2))
    ... except snnjax.ConversionError as error:
    ...     print(error)
    this network cannot be converted (1 place):
      (top level): argmax
        a sort order (argmax, sort, top_k) cannot be averaged over steps
        remedy: return the logits from fn and decide on the mean output
    """

    __module__ = "snnjax"  # where users find it

    def __init__(
        self,
        problems: Sequence[Problem],
        headline: str = "this network cannot be converted",
    ):
        self.problems = tuple(problems)
        lines = [f"{headline} ({counted(len(problems), 'place')}):"]
        for problem in self.problems:
            line = f"  {problem.path or '(top level)'}"
            if problem.operations:
                line += f": {', '.join(problem.operations)}"
            lines.append(line)
            lines.append(f"    {problem.reason}")
            lines.append(f"    remedy: {problem.remedy}")
        super().__init__("\n".join(lines))


_WHOLE_NUMBERS = "iu"  # kinds of NumPy's types
_USE_RELU = (
    "train or fine-tune the ANN with jax.nn.relu, snnjax.clipped_relu or "
    "snnjax.quantized_relu"
)
_FIXED_LENGTH = (
    "use a loop of fixed length (scan, fori_loop from 0 to a number), or an if on a "
    "static value"
)
# Kind of an obstacle -> (why it is one, the remedy).
_EXPLANATIONS = {
    "window": (
        "this reduction over windows is not affine. JAX knows a max-pool only if it "
        "starts from the number -inf, not from 0 or an array",
        "write jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, ...), with the literal "
        "-jnp.inf",
    ),
    "maximum": (
        "the maximum of a clipped or quantized ReLU depends on the input, but a "
        "threshold is constant",
        "make it a constant or a parameter",
    ),
    "maxima": (
        "the maximum of a clipped or quantized ReLU differs within a channel, but a "
        "threshold is one number per channel",
        "give it one number, or one for each channel",
    ),
    "batch": (
        "one example would reach another: this works along the batch axis, the first "
        "of x",
        "keep the examples of a batch apart in fn (put statistics into params; use "
        f"h[:, i], not h[jnp.arange(B), i]); {MAP_EXAMPLES}",
    ),
    "statistics": (
        "one example would reach another: this sums over the batch axis, the first of "
        "x, as a BatchNorm in training mode does",
        "keep the examples of a batch apart in fn; of a BatchNorm take the running "
        "averages (use_running_average=True in flax.linen, model.eval() in nnx); "
        f"{MAP_EXAMPLES}",
    ),
    "size": (
        "fn computes with the number of examples, len(x), or with the place of one in "
        "the batch; allowed: the same numbers for an example in every batch",
        "use len(x) for shapes only, as in h.reshape(len(x), -1), and no loop over "
        f"examples (jax.vmap has none); {MAP_EXAMPLES}",
    ),
    "recurrence": (
        f"a scan along an axis of the input is unrolled up to {MAX_TURNS} turns, and "
        "this one has more",
        'pass that axis as the steps, by inputs="sequence", or use a for loop over it',
    ),
    "loop": (
        "snnjax cannot look into a branch, shard_map, a kernel, or a loop whose length "
        "may depend on values",
        _FIXED_LENGTH,
    ),
    "hidden": (
        "a ReLU inside a branch, or inside a loop that is not unrolled, would not "
        "spike, because snnjax cannot look into it",
        _FIXED_LENGTH,
    ),
    "random": (
        "random numbers enter the activations",
        "switch dropout off (deterministic=True in flax.linen, model.eval() in nnx, "
        "inference=True in equinox) and take augmentation out of fn",
    ),
    "order": (
        "a sort order (argmax, sort, top_k) cannot be averaged over steps",
        "return the logits from fn and decide on the mean output",
    ),
    "choice": (
        "the places that are read or written depend on activations, and a choice "
        "cannot be averaged over steps",
        "take indices from x, params or constants, or weigh all places by a softmax in "
        "place of a choice, as in a mixture of experts",
    ),
    "decision": (
        "a comparison of activations leaves the operator that it belongs to; a truth "
        "value cannot be averaged over steps",
        "use the comparison before the next ReLU or product with weights, which "
        "separates operators, or return the logits and decide on the mean output",
    ),
    "integer": (
        "activations are converted to a type that is not floating point",
        "keep activations in float32 or bfloat16; quantize outside fn",
    ),
    "complex": (
        "its values are complex, and spikes carry real numbers, though a Fourier "
        "transform is affine (of x alone it is allowed)",
        "multiply by its real matrices, the cosines and the sines, in place of "
        "jnp.fft: jnp.fft.fft(jnp.eye(n)).real and .imag, with rfft for jnp.fft.rfft",
    ),
    "unknown": (
        "this operation is neither affine in the activations nor a known function",
        "compute it outside fn, or write it with other operations",
    ),
}


def check(
    network: Network,
    facts: Facts,
    x: Any,
    mixing: Sequence[tuple[Equation | None, str]],
    wrong_outputs: Iterable[str],
    *,
    affine: bool,
) -> None:
    """Raise `ConversionError` unless every activation can be converted.

    Args:
        network: with every call inlined.
        facts: of the network.
        x: what it was captured for.
        mixing: equations by which one example would reach another, or None for the
            function as a whole, and the kind of the obstacle.
        wrong_outputs: shapes of answers whose first axis is not the batch, as text.
        affine: whether everything between the sites must be affine or part of an
            operator. If not, anything is allowed that does not hide a site.
    """
    obstacles: list[tuple[Equation | None, str]] = []
    for eq in spread_out(network.equations):
        if affine:
            kind = _obstacle(eq, network, facts)
        else:
            kind = "hidden" if hides_relu(eq) else None
        if kind is not None:
            obstacles.append((eq, kind))
    problems = _problems([*obstacles, *mixing])
    shape_problems = list(_shape_problems(network, wrong_outputs))
    if shape_problems or mixing:
        check_has_batch(x)
    problems += shape_problems
    if not problems and not any(site.fires for site in network.sites):
        reason = (
            "there is no ReLU, and no product with weights behind another activation, "
            "so nothing would spike"
        )
        problems = [Problem("", (), reason, _USE_RELU)]
    if problems:
        raise ConversionError(problems)


def _problems(obstacles: Sequence[tuple[Equation | None, str]]) -> list[Problem]:
    """A problem for each path and kind of obstacle, with all operations there.

    Args:
        obstacles: equations, or None for the function as a whole, and the kind.
    """
    operations: dict[tuple[str, str], list[str]] = {}  # (path, kind) -> names
    for eq, kind in obstacles:
        path = "" if eq is None else eq.path
        names = operations.setdefault((path, kind), [])
        if eq is not None and eq.name and eq.name not in names:
            names.append(eq.name)
    problems = []
    for (path, kind), names in operations.items():
        reason, remedy = _EXPLANATIONS[kind]
        problems.append(Problem(path, tuple(names), reason, remedy))
    return problems


def check_streams(network: Network) -> None:
    """Raise if x cannot change over time, since some values have no running mean."""
    problems = []
    for equation in network.equations:
        body = equation.body
        if body is None or _all_floating(equation.outputs, network):
            continue
        names = dict.fromkeys(inner.name for inner in body.equations)
        problem = Problem(
            path=equation.path,
            operations=tuple(names),
            reason="truth values, whole and complex numbers of an input that changes "
            "in time have no running mean",
            remedy="compute them outside fn and pass them as numbers, or use "
            "inputs='constant'",
        )
        problems.append(problem)
    if problems:
        raise ConversionError(problems, "this network takes a constant input only")


def _all_floating(variables: Iterable[int], network: Network) -> bool:
    """Whether all variables are of floating point."""
    return all(network.avals[v].dtype.kind in FLOATING for v in variables)


def _obstacle(equation: Equation, network: Network, facts: Facts) -> str | None:
    """The kind of obstacle that an equation is, a key of `_EXPLANATIONS`; or None."""
    kind = facts.why_not_affine[equation.outputs[0]]
    if kind != OPERATOR:
        return kind
    # Inside of an operator truth values are allowed, but it must not return any.
    results = facts.leaving.intersection(equation.outputs) & facts.spike_dependent
    return None if _all_floating(results, network) else "decision"


def _shape_problems(
    network: Network, wrong_outputs: Iterable[str]
) -> Iterator[Problem]:
    """Problems of sites without features, and of outputs without the batch first."""
    for eq in network.equations:
        if eq.fires and not eq.place.shape:
            reason = "a site has a batch of single numbers"
            remedy = "give it an axis of features: x[:, None], or keepdims=True"
            yield Problem(eq.path, (), reason, remedy)
    for shape in wrong_outputs:
        reason = f"an output has shape {shape}, but its first axis must be the batch"
        remedy = "return only what depends on x, with the batch first"
        yield Problem("", (), reason, remedy)


def check_images(network: Network, facts: Facts, x: Any) -> None:
    """Raise if whole numbers of x are multiplied by weights, as pixels would be.

    Whole numbers may choose: tokens read rows of a table, masks and positions are
    compared. Pixels from 0 to 255 would be multiplied instead, by weights that were
    trained for images from 0 to 1.
    """
    # Variable -> path and type of the array of x that it is an affine function of.
    whole_numbers: dict[int, tuple[Any, Any]] = {}
    leaves = jax.tree_util.tree_leaves_with_path(x)
    for v, (path, leaf) in zip(network.x, leaves, strict=True):
        if leaf.dtype.kind in _WHOLE_NUMBERS:
            whole_numbers[v] = path, leaf.dtype
    for eq in network.equations:
        inputs = facts.dependent.intersection(eq.variables)
        # Several variables are compared or combined: the result is no array of x.
        if len(inputs) != 1 or whole_numbers.keys().isdisjoint(inputs):
            continue
        (v,) = inputs
        if facts.is_product(eq):
            path, dtype = whole_numbers[v]
            raise ValueError(
                f"x{jax.tree_util.keystr(path)} has dtype {dtype} and is "
                "multiplied by weights; allowed: floating point. Whole numbers may "
                f"only choose, as tokens and masks do. {AS_FLOATING}"
            )
        if eq.site is None and facts.why_not_affine[eq.outputs[0]] is None:
            whole_numbers.update(dict.fromkeys(eq.outputs, whole_numbers[v]))


def check_has_batch(x: Any) -> None:
    """Raise if each example of x would be a single number of floating point."""
    leaves = jax.tree.leaves(x)
    # Whole numbers may be tokens, one for each example.
    if all(len(leaf.shape) == 1 and leaf.dtype.kind in FLOATING for leaf in leaves):
        reason = (
            f"x has shape {tuple(leaves[0].shape)}, but its first axis must be the "
            "batch: every example is then a single number"
        )
        remedy = (
            "pass a single example as x[None], and single numbers as x[:, None]; "
            f"{MAP_EXAMPLES}"
        )
        raise ConversionError([Problem("", (), reason, remedy)])


def hard_coded(x: Any, size: int, error: Exception) -> ConversionError:
    """The error of a function that takes x, but not ``size`` examples.

    Args:
        error: what fn raised for ``size`` examples.
    """
    reason = (
        f"fn takes {counted(batch_of(x), 'example')} and not {size}, so it holds their "
        f"number ({str(error).splitlines()[0]}); allowed: any number"
    )
    remedy = (
        "take it from x, as in h.reshape(len(x), -1), or leave it to -1; "
        f"{MAP_EXAMPLES}"
    )
    return ConversionError([Problem("", (), reason, remedy)])
