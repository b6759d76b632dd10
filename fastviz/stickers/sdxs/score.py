"""Segmented score distillation: one step learns to draw from the teacher's distribution, not to repeat its pictures.

Diff-Instruct, Luo et al., arXiv 2305.18455, equation 3.6: the gradient of the integrated KL divergence is the difference of
two scores on noised pictures, of what the student draws (an online network that follows it) and of the teacher. SDXS,
arXiv 2403.16627, uses it at the lower timesteps only, up to alpha T, where the scores of a student that is still poor can
be trusted, and feature matching for the rest; alpha grows and the weight of feature matching falls as training goes on.
The gradient is scaled per picture as in DMD, Yin et al., arXiv 2311.18828, equation 8. Scores need no pairs: half of what
they judge is drawn from fresh noise and fresh captions.
"""

import copy
import time
from functools import partial
from itertools import islice

import torch
from torch import nn

from ..loop import DEVICE, autocast, checkpoint, compiled, quick, start_seed, train, update, write
from ..muon import optimizers
from . import chain, network, warmup
from .pairs import Pairs, empty_like, guided

ONLINE = 5  # updates of the online network for each of the student
ALPHA, LAM = (0.7, 0.98), (1.0, 0.25)  # from begin to end: share of the timesteps, weight of matching
FRESH = 4_000_000_007  # seeds of fresh captions begin here
LOWEST = 0.02  # share of the timesteps, from the clean end, that are left out: there the noise tells nothing
HEAD, MOST = 300, 0.25  # updates of the online network, which begins as the teacher, before the student's first; their share of the time at most
TOLD = 50  # updates between two of them that are printed
PACE = 2.5  # learning rate of the online network, as a multiple of the student's


class Pair(nn.Module):
    """The student, the online network that follows it, and the share of the way from the first mixture of losses to the last."""

    def __init__(self, student, online):
        super().__init__()
        self.student, self.online = student, online
        self.register_buffer("share", torch.tensor(0.0))


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
    return ends[0] + (ends[1] - ends[0]) * share


def follow(pair, updates, noise, text, alphas, teacher=None):
    """One update of the online network by its optimizers: plain noise prediction on what the student draws now from `noise`. -> {"online": its
    loss}, and, with teacher (a U-Net), {"teacher"}: that one's on the same; an online network that is no better lags behind."""
    with torch.no_grad():
        drawn = network.one_step(pair.student, noise, text, alphas)
    t = timesteps(len(drawn), 1.0, len(alphas), drawn.device)
    noise = torch.randn_like(drawn)
    noisy = network.noised(drawn, noise, alphas[t])
    errors = {"online": (pair.online(noisy, t, text).sample.float() - noise).pow(2).mean()}
    errors["online"].backward()
    update(pair.online.parameters(), updates)
    if teacher:
        with torch.no_grad():
            errors["teacher"] = (teacher(noisy, t, text).sample.float() - noise).pow(2).mean()
    return {name: error.detach() for name, error in errors.items()}


def loss_of(guide, alphas, updates, guidance, downwards=network.downwards):
    """loss(pair, (noise, tokens, latents, fresh tokens)) for loop.train: the online network's updates, then the student's
    loss. There are ONLINE + 1 times as many fresh tokens as pairs. updates: the online network's optimizers; downwards: see
    warmup.matching. Both estimates are made in what training computes in: in bfloat16 the gradient errs by 4 to 20 %, more where
    there is more noise; in single precision an update takes a quarter longer."""
    def loss(pair, batch):
        noise, tokens, latents, fresh = batch
        *followed, last, fresh = fresh.split(len(tokens))
        for some in followed:
            follow(pair, updates, torch.randn_like(noise), chain.embedded(guide, some), alphas)
        errors = follow(pair, updates, torch.randn_like(noise), chain.embedded(guide, last), alphas, guide.unet.forward)
        share = float(pair.share)
        text = chain.embedded(guide, torch.cat([tokens, fresh]))
        drawn = network.one_step(pair.student, torch.cat([noise, torch.randn_like(noise)]), text, alphas)
        t = timesteps(len(drawn), between(ALPHA, share), len(alphas), noise.device)
        empty = empty_like(guide, text)

        def online(noisy, t):
            return network.denoised(noisy, pair.online(noisy, t, text).sample, alphas[t])

        def teacher(noisy, t):
            return network.denoised(noisy, guided(guide.unet, noisy, t, text, empty, guidance), alphas[t])

        score = distillation(drawn, t, alphas, online, teacher)
        value, told = warmup.paired(guide.unet, drawn[:len(noise)], latents, text[:len(noise)], alphas, downwards)
        return score + between(LAM, share) * value, {
            "score": score, **told, **errors, "mean": drawn.mean(), "std": drawn.std(), "wanted": latents.std(), "share": share}

    return loss


def batches(pairs, size, tokens):
    """Endless (noise, tokens, latents) of `size` pairs with fresh captions for every online update and for the score. tokens:
    texts -> token ids."""
    seed = FRESH + int(torch.randint(10 ** 9, ()))
    while True:
        yield *pairs.draw(size), tokens(chain.captions(range(seed, seed + (ONLINE + 1) * size)))
        seed += (ONLINE + 1) * size


def head(pair, updates, guide, drawn, alphas, minutes):
    """HEAD updates of the online network alone, or as many as fit into `minutes`; the time of the first, which may compile, is not
    counted. Prints the last of every TOLD. Returns (how many, minutes)."""
    start, count = None, 0
    for noise, tokens, *_ in islice(drawn, HEAD):
        teacher = guide.unet.forward if count % TOLD == TOLD - 1 else None
        with autocast():
            errors = follow(pair, updates, torch.randn_like(noise), chain.embedded(guide, tokens), alphas, teacher)
        count, start = count + 1, start or time.time()
        if teacher:
            print(f"{chain.name('score')}: online network alone, {count} updates: {({k: round(float(e), 5) for k, e in errors.items()})}", flush=True)
        if time.time() - start > 60 * minutes:
            break
    return count, (time.time() - start) / 60


def fit(minutes, size, lr, decay=0.25):
    """Goes on from the checkpoint or, without one of the refined student as it is now, from that; the online network begins as
    the teacher and follows the student for a while before that moves. The mixture of the losses goes what is left of its way
    within `minutes`: an interrupted sitting is gone on with by telling the minutes that are left; a committed student has gone it.
    decay: see loop.train."""
    parent, name, start = chain.parent("score"), chain.name("score"), chain.checkpoint("score")
    start_seed(name, 13, start)
    guide, alphas = chain.committed_teacher(minutes), chain.alphas()
    pair = Pair(quick(chain.student(guide, "score" if start else "refine"), minutes), quick(copy.deepcopy(guide.unet).requires_grad_(True), minutes)).to(DEVICE)
    own, online = optimizers(pair.student, lr), optimizers(pair.online, PACE * lr)
    pairs, tokens, report = Pairs(guide), partial(chain.tokens_of, guide), warmup.recalled(guide)
    drawn, recipe = batches(pairs, size, tokens), {"batch": size, "parent": parent, "online": ONLINE}
    if (saved := checkpoint(name)) is None:
        begun = start or {"step": 0, "hours": 0.0, "log": [], "sittings": []}
        pair.share.fill_(1 if start else 0)
        count, spent = head(pair, online, guide, drawn, alphas, MOST * minutes)
        sitting = {"minutes": round(spent, 2), "steps": 0, "head": count, **recipe}
        saved = dict(model=pair.state_dict(), average=pair.state_dict(), step=begun["step"], hours=begun["hours"] + spent / 60, log=begun["log"],
                     sittings=[*begun["sittings"], sitting], optimizers=[o.state_dict() for o in own + online])
        write(name, saved)
        minutes -= min(spent, MOST * minutes)
    begun = float(saved["model"]["share"])
    loss = loss_of(guide, alphas, online, pairs.guidance, compiled(network.downwards, minutes))
    return train(name, pair, drawn, loss, minutes, lr, optimizers=own + online, horizon=100, decay=decay, recipe=recipe,
                 report=lambda average: report(average.student), report_every=300, passed=lambda share: pair.share.fill_(begun + (1 - begun) * share))
