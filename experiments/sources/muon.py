"""Muon: steps along the nearest orthogonal matrix of the momentum.

    m := beta m + g,   w := sqrt(outputs) w / |w| - rate U V^T,
    U S V^T the singular value decomposition of g + beta m.

A kernel is a matrix [outputs, inputs * height * width]. Jordan et al. (2024,
https://kellerjordan.github.io/posts/muon); the norm of the weights stays constant, as
in Jordan's training of CIFAR-10. `torch.optim.Muon` takes matrices only.
"""

import torch


class Muon(torch.optim.Optimizer):
    """Muon, only for kernels with a norm behind them, since it changes their scale."""

    def __init__(self, kernels, lr: float, beta: float = 0.85):
        super().__init__(kernels, {"lr": lr, "beta": beta})

    @torch.no_grad()
    def step(self, closure=None):
        if closure is not None:
            raise ValueError("Muon takes no closure; call backward before the step")
        for group in self.param_groups:
            for kernel in group["params"]:
                if kernel.grad is not None:
                    self._step_of(kernel, group["lr"], group["beta"])

    def _step_of(self, kernel: torch.Tensor, rate: float, beta: float) -> None:
        """Change one kernel, and its momentum."""
        state = self.state[kernel]
        if not state:
            state["momentum"] = torch.zeros_like(kernel)
        momentum = state["momentum"].mul_(beta).add_(kernel.grad)
        direction = kernel.grad.add(momentum, alpha=beta)
        step = orthogonal(direction.flatten(1)).view(direction.shape)
        kernel.mul_(len(kernel) ** 0.5 / kernel.norm()).add_(step, alpha=-rate)


def orthogonal(matrix: torch.Tensor, iterations: int = 3) -> torch.Tensor:
    """U V^T of U S V^T, roughly.

    Iterations of Newton and Schulz, x := a x + (b y + c y y) x with y = x x^T, in
    bfloat16. The coefficients are Jordan's: each iteration enlarges small singular
    values by a = 3.4, and those that are large enough end between 0.6 and 1.3.
    """
    if len(matrix) > matrix.shape[1]:
        return orthogonal(matrix.T, iterations).T
    x = matrix.bfloat16()
    x = x / (x.norm() + 1e-7)
    for _ in range(iterations):
        y = x @ x.T
        x = 3.4445 * x + (-4.7750 * y + 2.0315 * y @ y) @ x
    return x.float()
