"""Segmented score distillation: one step learns to draw from the teacher's distribution, not to repeat its pictures.

Diff-Instruct, Luo et al., arXiv 2305.18455, equation 3.6: the gradient of the integrated KL divergence is the difference of
two scores on noised pictures, of what the student draws (an online network that follows it) and of the teacher. SDXS,
arXiv 2403.16627, uses it at the lower timesteps only, up to alpha T, where the scores of a student that is still poor can
be trusted, and feature matching for the rest; alpha grows and the weight of feature matching falls as training goes on.
The gradient is scaled per picture as in DMD, Yin et al., arXiv 2311.18828, equation 8.
"""

import copy

import torch
from torch import nn

from ..loop import quick, start_seed, train
from . import chain, network, warmup
from .pairs import Pairs, empty_like, guided

ONLINE = 5  # updates of the online network for each of the student
ALPHA, LAM = (0.7, 0.98), (1.0, 0.25)  # from the first to the last update: share of the timesteps, weight of matching
LOWEST = 0.02  # share of the timesteps, from the clean end, that are left out: there the noise tells nothing
PACE = 2.5  # learning rate of the online network, as a multiple of the student's


class Pair(nn.Module):
    """The student, the online network that follows it, and how many updates the student had."""

    def __init__(self, student, online):
        super().__init__()
        self.student, self.online = student, online
        self.register_buffer("updates", torch.tensor(0))


def direction(drawn, online, teacher):
    """Where the student's pictures have to go down: the difference of the two clean estimates over the teacher's mean
    distance from what was drawn, per picture. All (B, ...)."""
    scale = (drawn - teacher).abs().flatten(1).mean(1).clamp(min=1e-6)
    return (online - teacher) / scale.view(-1, *[1] * (drawn.ndim - 1))


def towards(drawn, gradient):
    """A scalar whose gradient with respect to `drawn` is `gradient` over the number of elements."""
    return 0.5 * (drawn - (drawn - gradient).detach()).pow(2).mean()


def distillation(drawn, t, alphas, online, teacher):
    """The scalar to minimise. drawn: (B, ...) with gradients; t: (B,); online, teacher: (noisy, t) -> clean estimate."""
    with torch.no_grad():
        noisy = network.noised(drawn, torch.randn_like(drawn), alphas[t])
        gradient = direction(drawn, online(noisy, t), teacher(noisy, t))
    return towards(drawn, gradient)


def timesteps(count, alpha, last, device):
    """(B,) even in LOWEST..alpha, shares of `last`."""
    return torch.randint(round(LOWEST * last), max(round(LOWEST * last) + 1, round(alpha * last)), (count,), device=device)


def between(ends, share):
    return ends[0] + (ends[1] - ends[0]) * min(1.0, share)


def follow(pair, optimizer, noise, text, alphas):
    """One update of the online network: plain noise prediction on what the student draws now from `noise`. -> its loss"""
    with torch.no_grad():
        drawn = network.one_step(pair.student, noise, text, alphas)
    t = timesteps(len(drawn), 1.0, len(alphas), drawn.device)
    noise = torch.randn_like(drawn)
    estimate = pair.online(network.noised(drawn, noise, alphas[t]), t, text).sample
    error = (estimate.float() - noise).pow(2).mean()
    error.backward()
    nn.utils.clip_grad_norm_(pair.online.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return error.detach()


def loss_of(guide, alphas, optimizer, guidance, updates):
    """loss(pair, (noise, tokens, latents, other tokens)) for loop.train: the online network's updates, then the student's
    loss. optimizer: the online network's; updates: over which alpha and lam move."""
    def loss(pair, batch):
        noise, tokens, latents, others = batch
        errors = [follow(pair, optimizer, torch.randn_like(noise), chain.embedded(guide, some), alphas)
                  for some in others.chunk(ONLINE)]
        share = float(pair.updates) / updates
        text, t = chain.embedded(guide, tokens), timesteps(len(noise), between(ALPHA, share), len(alphas), noise.device)
        drawn = network.one_step(pair.student, noise, text, alphas)
        empty = empty_like(guide, text)

        def online(noisy, t):
            return network.denoised(noisy, pair.online(noisy, t, text).sample, alphas[t])

        def teacher(noisy, t):
            return network.denoised(noisy, guided(guide.unet, noisy, t, text, empty, guidance), alphas[t])

        score = distillation(drawn, t, alphas, online, teacher)
        match = warmup.matching(guide.unet, drawn, latents, text, alphas)
        pair.updates += 1
        return score + between(LAM, share) * match, {
            "score": score, "match": match, "online": sum(errors) / len(errors), "mean": drawn.mean(), "std": drawn.std()}

    return loss


def batches(pairs, size):
    """Endless (noise, tokens, latents) of pairs with the tokens of as many captions for every online update."""
    while True:
        rows = torch.randint(len(pairs.tokens), (ONLINE * size,), device=pairs.tokens.device)
        yield *pairs.draw(size), pairs.tokens[rows]


def fit(minutes, size, lr, updates):
    """Goes on from the checkpoint or, without one, from the warmed-up student; the online network begins as the teacher."""
    start_seed(chain.name("score"), 13)
    guide = chain.committed_teacher(minutes)
    pair = Pair(quick(chain.student(guide, "warmup"), minutes), quick(copy.deepcopy(guide.unet).requires_grad_(True), minutes))
    optimizers = [torch.optim.AdamW(part.parameters(), lr=rate, betas=(0.0, 0.99), weight_decay=1e-3)
                  for part, rate in ((pair.student, lr), (pair.online, PACE * lr))]
    pairs = Pairs(guide)
    loss = loss_of(guide, chain.alphas(), optimizers[1], pairs.guidance, updates)
    return train(chain.name("score"), pair, batches(pairs, size), loss, minutes, lr, optimizers=optimizers, horizon=100,
                 report_every=60)
