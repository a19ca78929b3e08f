"""Sites: the places of a network where neurons fire, or where an operator stands.

An operator is a function that is not affine and is computed at every step. What happens
at a site depends on its properties (fires, is_encoder, homogeneous), never on the name
of the activation that stood there.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from snnjax._text import Table, shown_as_table, sites_in_words
from snnjax._trees import common_path


class Site(NamedTuple):
    """A place in a network where a rule replaces an activation.

    Attributes:
        name: its path in the network, e.g. ``ResNet/Block_0/relu_1``.
        kind: what stands there, for people: "relu", "clipped relu", "max-pool".
        shape: of one example, without the batch axis.
        parameters: paths of the parameters that reach it without crossing
            another site, the largest first; weight calibration changes only these.
        depth: number of firing sites on the longest way from the input to here, this
            one included.
        dtype: of its input and output.
        channel: axis that counts channels, from the end: -1 is the last.
        fires: neurons fire here. Otherwise it is an operator: a function that is not
            affine is computed here at every step (`Operator`).
        is_encoder: a value itself becomes spikes here, and it may be negative.
        homogeneous: an operator with f(c x) = c f(x) for c > 0, as a max-pool. Running
            sums serve it as well as means: spikes then stay spikes.
        maximum_per_channel: a clipped ReLU has a maximum for each channel.
        near_relu: an operator that computes number by number, with comparisons and
            arithmetic only, such as a leaky ReLU or a hard swish.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: tuple[str, ...]
    depth: int
    dtype: Any
    channel: int = -1
    fires: bool = True
    is_encoder: bool = False
    homogeneous: bool = False
    maximum_per_channel: bool = False
    near_relu: bool = False


def new_site(kind: str, aval: Any, **capabilities: Any) -> Site:
    """A site whose output has the type and shape of ``aval``, [B, ...].

    Its name, parameters, depth and channel are filled in once the whole network is
    known (``capture/annotate.py``).

    Args:
        capabilities: further fields of `Site`.
    """
    return Site(
        name="",
        kind=kind,
        shape=tuple(aval.shape[1:]),
        parameters=(),
        depth=0,
        dtype=aval.dtype,
        **capabilities,
    )


@shown_as_table
class Sites(tuple[Site, ...]):
    """The sites of a network, in order of execution; ``print`` shows a table.

    ``repr`` shows a line.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> fn = lambda w, x: jax.nn.softmax(jax.nn.relu(x @ w))
    >>> sites = snnjax.sites(fn, jnp.eye(3), jnp.ones((1, 3)))
    >>> [site.name for site in sites if site.fires]
    ['relu']
    >>> [site.name for site in sites.operators], sites.grade
    (['softmax'], 'hybrid')
    >>> sites
    Sites(2 sites: relu, softmax)
    """

    @property
    def operators(self) -> "Sites":
        """The functions that are computed densely at every step, behind neurons.

        A max-pool is none, since it passes spikes on, nor is a function of x before any
        neuron, which is computed once.
        """
        return Sites(
            site
            for site in self
            if not site.fires and not site.homogeneous and site.depth > 0
        )

    @property
    def grade(self) -> str:
        """What the network asks of a chip.

        "hybrid" where `operators` are computed densely at every step, which runs on no
        neuron core; "signed" where there are encoders, whose spikes have both signs;
        otherwise "binary". The levels of neurons, which come later, are not part of it.
        """
        if self.operators:
            return "hybrid"
        return "signed" if any(site.is_encoder for site in self) else "binary"

    def __repr__(self) -> str:
        return f"Sites({sites_in_words(site.name for site in self)})"

    def _table(self) -> Table:
        """A row for each site, and notes on what is slow in spiking networks."""
        rows = [("site", "kind", "shape", "depth", "parameters")]
        for site in self:
            shape = "x".join(map(str, site.shape)) or "scalar"
            parameters = _shorten(site.parameters)
            rows.append((site.name, site.kind, shape, str(site.depth), parameters))
        notes = []
        if self.operators:
            count = len(self.operators)
            notes += [
                f"hybrid, operators computed densely at every step: {count};",
                "once with a wait of T - 1, or of T with rate coding",
            ]
        # Without weights before it there is no current that neurons could take.
        near_relus = [site.kind for site in self if site.near_relu and site.parameters]
        if near_relus:
            kinds = ", ".join(dict.fromkeys(near_relus))
            notes += [
                f"near a ReLU, but none: {kinds}. Each costs",
                "an operator, and an encoder before the next weights; jax.nn.relu and",
                "snnjax.clipped_relu need neither",
            ]
        return Table(rows, below="\n".join(notes))


def _shorten(paths: Sequence[str], limit: int = 40) -> str:
    """The paths, separated by commas, if they take at most ``limit`` characters.

    Otherwise the folder that they have in common, or the first path, and their number.
    """
    text = ", ".join(paths)
    if len(text) <= limit:
        return text
    folder = common_path(paths)
    if folder:
        return f"{folder}/* ({len(paths)})"
    return f"{paths[0]}, ... ({len(paths)})"
