"""Muon: momentum whose matrices are made orthogonal by Newton-Schulz iterations.

Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024). torch.optim.Muon takes matrices only
and iterates in bfloat16, which a processor without it emulates slowly; here it iterates in the precision that training
computes in (loop.PRECISION), convolutions count as matrices (outputs, inputs x kernel) and equal shapes are iterated
together.
"""

from collections import defaultdict

import torch

from .loop import PRECISION

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonal(matrices, rounds=4):
    """Nearest semi-orthogonal matrices, roughly: singular values end in 0.7..1.2. matrices: (K, m, n)."""
    a, b, c = COEFFICIENTS
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.mT
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(rounds):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.mT


class Muon(torch.optim.Optimizer):
    """For weights of two or more dimensions. lr: the change's root mean square per entry is about 0.2 lr."""

    def __init__(self, parameters, lr=2e-3, momentum=0.95, weight_decay=0.01):
        super().__init__(parameters, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            shapes = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    shapes[p.shape[0], p[0].numel()].append(p)
            for (m, n), weights in shapes.items():
                rises = [self._momentum(p, group["momentum"]).reshape(m, n) for p in weights]
                scale = group["lr"] * 0.2 * max(m, n) ** 0.5
                for p, change in zip(weights, orthogonal(torch.stack(rises).to(PRECISION))):
                    p.mul_(1 - group["lr"] * group["weight_decay"]).add_(change.reshape(p.shape), alpha=-scale)

    def _momentum(self, p, factor):
        state = self.state[p]
        if not state:
            state["momentum"] = torch.zeros_like(p)
        state["momentum"].lerp_(p.grad, 1 - factor)
        return p.grad.lerp(state["momentum"], factor)  # Nesterov


def optimizers(model, lr):
    """Muon for the matrices inside a network; AdamW for its norms, biases, first and last convolution (those with a side of four
    channels or fewer) and, slower and with decay, for a text encoder: Muon's changes never get smaller, and under them attention
    over words ended up blind, see retext."""
    inner, outer, text = [], [], []
    for name, p in model.named_parameters():
        edge = p.ndim < 2 or min(p.shape[:2]) <= 4
        (text if name.startswith("text.") else outer if edge else inner).append(p)
    groups = [dict(params=outer)] + [dict(params=text, lr=lr / 5, weight_decay=0.05)] * bool(text)
    return [Muon(inner, lr=lr), torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.99), weight_decay=0.0)]
