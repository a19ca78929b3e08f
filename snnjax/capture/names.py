"""Names of sites, for people and as keys.

A site has the name of its module, e.g. ``Net/hidden/relu``. Without a module, it has
that of the parameters that reach it. Equal names are numbered.
"""

from collections.abc import Mapping, Sequence

from snnjax._trees import common_path, distinct, is_kernel
from snnjax.capture.axes import Avals
from snnjax.network.equations import Equation

_KINDS = {"max-pool": "max_pool", "clipped relu": "relu"}


def site_names(
    equations: Sequence[Equation],
    direct: Sequence[frozenset[int]],
    parameters: Mapping[int, str],
    avals: Avals,
) -> dict[int, str]:
    """Number of each equation with a site -> its name.

    ``direct`` has for each equation the parameters that reach it without passing a
    neuron.
    """
    first_use: dict[int, int] = {}
    for i, eq in enumerate(equations):
        for v in eq.variables:
            first_use.setdefault(v, i)

    def above(variables: frozenset[int]) -> str:
        """The path above these parameters, or of the kernel that is used last."""
        common = common_path([parameters[v] for v in sorted(variables)])
        kernels = [v for v in variables if is_kernel(avals[v])]
        if common or not kernels:
            return common
        path = parameters[max(kernels, key=lambda v: first_use[v])]
        return path.rpartition("/")[0] or path

    def reader_of(i: int) -> str:
        """The parameter by which the output of equation ``i`` is multiplied first."""
        reached_values = set(equations[i].outputs)
        for eq, weights in zip(equations[i + 1 :], direct[i + 1 :], strict=True):
            if reached_values.intersection(eq.variables):
                if weights:
                    return common_path([parameters[w] for w in sorted(weights)])
                reached_values.update(eq.outputs)
        return ""

    def name(i: int, eq: Equation) -> str:
        # Equinox gives the names of its own classes.
        parts = eq.path.split("/")
        scope = [part for part in parts if part and not part.startswith("eqx.")]
        if all(part.startswith("[") for part in scope):  # no module, turns of a scan
            inner = above(direct[i])
            if not inner and eq.place.is_encoder:
                inner = reader_of(i)
            scope += [inner] if inner else []
        scope = [part[1:-1] if part.startswith("[") else part for part in scope]
        return "/".join([*scope, _KINDS.get(eq.place.kind, eq.place.kind)])

    places = {i: name(i, eq) for i, eq in enumerate(equations) if eq.site is not None}
    return dict(zip(places, distinct(list(places.values())), strict=True))
