"""Muon: steps along the nearest orthogonal matrix of the momentum.

    m := momentum m + g,   w := sqrt(outputs) w / |w| - rate U V^T,
    U S V^T the singular value decomposition of g + momentum m as [outputs, the rest].

Jordan et al. (2024, https://kellerjordan.github.io/posts/muon); norms of the weights
are kept as in Jordan's training of CIFAR-10. `torch.optim.Muon` takes matrices only.
"""

import torch


class Muon(torch.optim.Optimizer):
    """For kernels of convolutions with a norm behind them, whose scale says nothing."""

    def __init__(self, weights, lr: float, momentum: float = 0.85):
        super().__init__(weights, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for weights in group["params"]:
                self.step_of(weights, group["lr"], group["momentum"])

    def step_of(self, weights: torch.Tensor, rate: float, decay: float) -> None:
        state = self.state[weights]
        if not state:
            state["momentum"] = torch.zeros_like(weights)
        momentum = state["momentum"].mul_(decay).add_(weights.grad)
        direction = weights.grad.add(momentum, alpha=decay)
        step = orthogonal(direction.flatten(1)).view(direction.shape)
        weights.mul_(len(weights) ** 0.5 / weights.norm()).add_(step, alpha=-rate)


def orthogonal(matrix: torch.Tensor, iterations: int = 3) -> torch.Tensor:
    """U V^T of U S V^T, roughly: singular values end between 0.7 and 1.2.

    Iterations of Newton and Schulz, x := a x + (b y + c y y) x with y = x x^T; the
    coefficients are Jordan's, steep at 0. In bfloat16.
    """
    if len(matrix) > matrix.shape[1]:
        return orthogonal(matrix.T, iterations).T
    x = matrix.bfloat16()
    x = x / (x.norm() + 1e-7)
    for _ in range(iterations):
        y = x @ x.T
        x = 3.4445 * x + (-4.7750 * y + 2.0315 * y @ y) @ x
    return x.float()
