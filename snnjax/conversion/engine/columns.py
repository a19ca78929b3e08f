"""The size of each column of an output: errors are measured in it.

    s[k]^2 = (sum over n of y[n, k]^2 + mean over k of y[k]^2) / (N + 1)

y[n, k]^2 is the mean over positions of the square of column k, an entry of the last
axis, for image n of N. So the small half of an array that holds two heads, as the boxes
and the logits of a detector, counts like the large half. The mean stands for one more
image of all columns: a column that is nearly always 0 gets no weight without limit.
"""

from typing import Any

from snnjax._arrays import namespace


def column_squares(output: Any) -> Any:
    """Mean over positions of the square of each column, [B, K].

    Args:
        output: [B, ..., K], or [B] with a single column, of a float type whose squares
            it holds.

    >>> import numpy as np
    >>> print(column_squares(np.array([[[1.0, 0.0], [3.0, 2.0]]])))
    [[5. 2.]]
    """
    if output.ndim == 1:
        output = output[:, None]
    return (output**2).mean(tuple(range(1, output.ndim - 1)))


def column_sizes(total: Any, count: int) -> Any:
    """s^2 of each column, [K]; 1 where it would be 0.

    Args:
        total: sum of `column_squares` over the images, [K].
        count: N.

    >>> import numpy as np
    >>> print(column_sizes(np.array([8.0, 0.0]), count=1))
    [6. 2.]
    """
    xp = namespace(total)
    sizes = (total + total.mean() / count) / (count + 1)
    return xp.where(sizes > 0, sizes, 1)
