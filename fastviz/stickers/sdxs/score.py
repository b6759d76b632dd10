"""Segmented score distillation: one step learns to draw from the teacher's distribution, not to repeat its pictures.

Diff-Instruct, Luo et al., arXiv 2305.18455, equation 3.6: the gradient of the integrated KL divergence is the difference of
two scores on noised pictures, of what the student draws (an online network that follows it) and of the teacher. SDXS,
arXiv 2403.16627, uses it at the lower timesteps only, up to alpha T, where the scores of a student that is still poor can
be trusted, and feature matching for the rest; alpha grows and the weight of feature matching falls as training goes on.
The gradient is scaled per picture as in DMD, Yin et al., arXiv 2311.18828, equation 8. Scores need no pairs: half of what
they judge is drawn from fresh noise and fresh captions.
"""

import copy
from functools import partial

import torch
from torch import nn

from ..loop import DEVICE, autocast, checkpoint, compiled, quick, start_seed, train
from . import chain, network, warmup
from .pairs import Pairs, empty_like, guided

ONLINE = 5  # updates of the online network for each of the student
ALPHA, LAM = (0.7, 0.98), (1.0, 0.25)  # from the first to the last update: share of the timesteps, weight of matching
FRESH = 4_000_000_007  # seeds of fresh captions begin here
LOWEST = 0.02  # share of the timesteps, from the clean end, that are left out: there the noise tells nothing
HEAD = 100  # updates of the online network before the first of the student: it begins as the teacher
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


def loss_of(guide, alphas, optimizer, guidance, updates, downwards=network.downwards):
    """loss(pair, (noise, tokens, latents, fresh tokens)) for loop.train: the online network's updates, then the student's
    loss. There are ONLINE + 1 times as many fresh tokens as pairs. optimizer: the online network's; updates: over which alpha
    and lam move; downwards: see warmup.matching."""
    def loss(pair, batch):
        noise, tokens, latents, fresh = batch
        *followed, fresh = fresh.split(len(tokens))
        errors = [follow(pair, optimizer, torch.randn_like(noise), chain.embedded(guide, some), alphas) for some in followed]
        share = float(pair.updates) / updates
        text = chain.embedded(guide, torch.cat([tokens, fresh]))
        drawn = network.one_step(pair.student, torch.cat([noise, torch.randn_like(noise)]), text, alphas)
        t = timesteps(len(drawn), between(ALPHA, share), len(alphas), noise.device)
        empty = empty_like(guide, text)

        def online(noisy, t):
            return network.denoised(noisy, pair.online(noisy, t, text).sample, alphas[t])

        def teacher(noisy, t):
            return network.denoised(noisy, guided(guide.unet, noisy, t, text, empty, guidance), alphas[t])

        score = distillation(drawn, t, alphas, online, teacher)
        match = warmup.matching(guide.unet, drawn[:len(noise)], latents, text[:len(noise)], alphas, downwards)
        pair.updates += 1
        return score + between(LAM, share) * match, {
            "score": score, "match": match, "online": sum(errors) / len(errors), "mean": drawn.mean(), "std": drawn.std(),
            "wanted": latents.std()}

    return loss


def batches(pairs, size, tokens):
    """Endless (noise, tokens, latents) of `size` pairs with fresh captions for every online update and for the score. tokens:
    texts -> token ids."""
    seed = FRESH + int(torch.randint(10 ** 9, ()))
    while True:
        yield *pairs.draw(size), tokens(chain.captions(range(seed, seed + (ONLINE + 1) * size)))
        seed += (ONLINE + 1) * size


def fit(minutes, size, lr, updates, decay=0.25):
    """Goes on from the checkpoint or, without one, from the warmed-up student; the online network begins as the teacher and
    follows the student for a while before that moves. decay: see loop.train."""
    start_seed(chain.name("score"), 13)
    guide, alphas = chain.committed_teacher(minutes), chain.alphas()
    pair = Pair(quick(chain.student(guide, "warmup"), minutes), quick(copy.deepcopy(guide.unet).requires_grad_(True), minutes))
    optimizers = [torch.optim.AdamW(part.parameters(), lr=rate, betas=(0.0, 0.99), weight_decay=1e-3)
                  for part, rate in ((pair.student, lr), (pair.online, PACE * lr))]
    pairs, tokens, report = Pairs(guide), partial(chain.tokens_of, guide), warmup.recalled(guide)
    drawn = batches(pairs, size, tokens)
    if checkpoint(chain.name("score")) is None:
        pair.to(DEVICE)
        for _, batch in zip(range(HEAD), drawn):
            with autocast():
                follow(pair, optimizers[1], torch.randn_like(batch[0]), chain.embedded(guide, batch[1]), alphas)
    loss = loss_of(guide, alphas, optimizers[1], pairs.guidance, updates, compiled(network.downwards, minutes))
    return train(chain.name("score"), pair, drawn, loss, minutes, lr, optimizers=optimizers, horizon=100, decay=decay,
                 report=lambda average: report(average.student), report_every=180)
