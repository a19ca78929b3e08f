"""Calibrators of calibrators: how errors count for them, and where they apply.

`by_effect` gives its calibrators a view in which each error has the weight of its
effect on the outputs. `streaming_only` calls its calibrator with rate coding alone.
"""

from snnjax._text import named
from snnjax.calibrators.view import Calibrator, Fit, View, check_calibrator


@named
def by_effect(*calibrators: Calibrator) -> Calibrator:
    """A calibrator that applies these, with errors weighted by effect on the outputs.

    A position that does not affect the outputs, such as a padded token, then has weight
    0. `View.with_effects` has the equation. Second-order weights follow Li et al.,
    arXiv 2205.10121; this estimator of them is ours.

    Raises:
        ValueError: there is no calibrator, or one does not take (view, fit).

    Below, position 0 of the images holds the numbers 0 to 15. Position 1 holds 100 and
    does not reach the output.

    >>> import jax, jax.numpy as jnp, snnjax
    >>> max_threshold = snnjax.calibrators.max_threshold()
    >>> images = jnp.stack([jnp.arange(16.0), jnp.full(16, 100.0)], 1)[..., None]
    >>> fn = lambda w, x: jax.nn.relu(w * x)[:, 0]
    >>> for calibrator in (max_threshold, by_effect(max_threshold)):
    ...     recipe = snnjax.Recipe([calibrator])
    ...     snn = snnjax.convert(fn, jnp.ones(1), images, steps=4, recipe=recipe)
    ...     print(snn.neurons["relu"].threshold)
    100.0
    15.0
    """
    if not calibrators:
        raise ValueError("by_effect has no calibrator; allowed: one or more")
    for calibrator in calibrators:
        check_calibrator(calibrator)

    def calibrate(view: View, fit: Fit) -> Fit:
        weighted = view.with_effects()
        for calibrator in calibrators:
            fit = calibrator(weighted, fit)
        return fit

    return calibrate


@named
def streaming_only(calibrator: Calibrator) -> Calibrator:
    """A calibrator that applies this one only with rate coding and a wait of 0.

    Otherwise it returns the fit unchanged.

    Raises:
        ValueError: the calibrator does not take (view, fit).

    >>> import jax, jax.numpy as jnp, snnjax
    >>> from snnjax.calibrators import half_charge, max_threshold
    >>> fn, images = lambda w, x: jax.nn.relu(w * x), jnp.arange(16.0)[:, None]
    >>> recipe = snnjax.Recipe([max_threshold(), streaming_only(half_charge())])
    >>> for wait in (0, 1):
    ...     snn = snnjax.convert(
    ...         fn, jnp.ones(1), images, steps=4, recipe=recipe, wait=wait)
    ...     print(snn.neurons["relu"].initial_potential)
    7.5
    0.0
    """
    check_calibrator(calibrator)

    def calibrate(view: View, fit: Fit) -> Fit:
        if view.code.is_streaming(view.wait):
            return calibrator(view, fit)
        return fit

    return calibrate
