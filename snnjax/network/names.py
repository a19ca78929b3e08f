"""Names of parameters and sites, for people and as keys.

A site is called after its module, e.g. ``Net/hidden/relu``; in plain JAX, where there
is no module, after the parameters that reach it. A second one of a name is numbered.
"""

from collections.abc import Sequence

import chex
import jax

from snnjax._trees import common_path, is_kernel, name_of
from snnjax.network.axes import Avals
from snnjax.network.equations import Equation


def paths_of(params: chex.ArrayTree) -> list[str]:
    """Of all leaves in their order, as `Site.parameters` has them."""
    return [
        _clean(name_of(path))
        for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]
    ]


class SiteNames:
    """Equation with a site -> its name, called in order of execution.

    Args:
        equations: of the network.
        direct: for each the parameters that reach it without passing a neuron.
        parameters: variable -> path.
        avals: variable -> shape and dtype.
    """

    def __init__(
        self,
        equations: Sequence[Equation],
        direct: Sequence[frozenset[int]],
        parameters: dict[int, str],
        avals: Avals,
    ):
        self.equations, self.direct = equations, direct
        self.parameters, self.avals = parameters, avals
        self.uses: dict[str, int] = {}
        self.first_use: dict[int, int] = {}
        for i, eq in enumerate(equations):
            for v in eq.variables:
                self.first_use.setdefault(v, i)

    def of(self, i: int) -> str:
        """The name of the site of equation ``i``."""
        eq = self.equations[i]
        scope, kinds = eq.path, {"max-pool": "max_pool", "clipped relu": "relu"}
        if not scope.strip("/0123456789"):  # no module, but perhaps turns of a scan
            inner = self.above(self.direct[i])
            if not inner and eq.place.signed:
                inner = self.reader_of(i)
            scope = "/".join(part for part in (scope, inner) if part)
        kind = kinds.get(eq.place.kind, eq.place.kind)
        name = f"{scope}/{kind}" if scope else kind
        self.uses[name] = self.uses.get(name, -1) + 1
        return f"{name}_{self.uses[name]}" if self.uses[name] else name

    def above(self, variables: frozenset[int]) -> str:
        """The path above these parameters, or of the kernel that is used last."""
        shared = common_path([self.parameters[v] for v in sorted(variables)])
        kernels = [v for v in variables if is_kernel(self.avals[v])]
        if shared or not kernels:
            return shared
        last = max(kernels, key=lambda v: self.first_use[v])
        return self.parameters[last].rpartition("/")[0]

    def reader_of(self, i: int) -> str:
        """The parameter by which the output of equation ``i`` is multiplied first."""
        reached = set(self.equations[i].outputs)
        following = zip(self.equations[i + 1 :], self.direct[i + 1 :], strict=True)
        for eq, weights in following:
            if reached.intersection(eq.variables):
                if weights:
                    return common_path([self.parameters[w] for w in sorted(weights)])
                reached.update(eq.outputs)
        return ""


def _clean(path: str) -> str:
    # nnx states end every path in the attribute that holds the array.
    return path.removesuffix("/value").replace("/~/", "/")
