"""Which site feeds which, as a graph over the names of the sites."""

from collections.abc import Callable, Iterable

import chex

from snnjax.capture.capture import capture

INPUT, OUTPUT = "input", "output"


def connections(
    fn: Callable, params: chex.ArrayTree, x: chex.Array
) -> dict[str, tuple[str, ...]]:
    """For every site, and the output, what its current comes from.

    Args:
        fn, params, x: as for `snnjax.sites`.

    Returns:
        Site name -> the names of the sites from which its current can be reached
        without crossing another one, in order of execution, with "input" for the
        network's input. The last entry, "output", is of all outputs together.

    Raises:
        snnjax.ConversionError: as `snnjax.sites`.

    >>> import jax, jax.numpy as jnp
    >>> def residual(w, x):
    ...     x = jax.nn.relu(w * x)
    ...     return jax.nn.relu(w * jax.nn.relu(w * x) + x)
    >>> for target, sources in connections(residual, 2.0, jnp.ones((1, 3))).items():
    ...     print(", ".join(sources), "->", target)
    input -> relu
    relu -> relu_1
    relu, relu_1 -> relu_2
    relu_2 -> output
    """
    network = capture(fn, params, x)
    # variable -> the sites that it is affine in
    origins = {v: {INPUT} for v in network.x}
    order = [INPUT, *(site.name for site in network.sites)]
    sources_of: dict[str, tuple[str, ...]] = {}

    def sources(variables: Iterable[int]) -> set[str]:
        return {name for v in variables for name in origins.get(v, ())}

    for equation in network.equations:
        names = sources(equation.variables)
        if equation.site is not None:
            sources_of[equation.site.name] = tuple(sorted(names, key=order.index))
            names = {equation.site.name}
        origins.update(dict.fromkeys(equation.outputs, names))
    ends = sources(v for v in network.outputs if isinstance(v, int))
    return {**sources_of, OUTPUT: tuple(sorted(ends, key=order.index))}
