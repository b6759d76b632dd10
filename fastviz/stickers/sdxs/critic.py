"""A network that is shown two pictures of one caption, and tells whether they are real scenes or the student's drawings.

One picture by itself can be told from a real one by its blots and grain. Two of them tell more: real scenes of a caption have their
things in different places, and a student that draws one picture for each caption, whatever the noise, is found out (Lin et al.,
PacGAN, arXiv 1712.04086). Pictures are latents, both under the same little noise, which hides what no eye would see. The losses are
those of Goodfellow et al., arXiv 1406.2661, in their non-saturating form, in every place; in the place of a gradient penalty, the
answer may not change much with a small change of the latents (the approximated R1 of Lin et al., arXiv 2501.08316).
"""

import random
from collections import deque

import torch
import torch.nn.functional as F

from .. import parts, teacher, world
from ..loop import DEVICE, feed, update
from ..muon import optimizers
from . import chain, network
from .reader import NOISY, Reader

STEADY, NEAR = 100.0, 0.05  # weight of how much the answer changes with a change of the latents by so much
HEAD = 100  # updates before the student hears of it
ROOM = 96  # real pairs that are kept, the newest; one is new at every update
RATE = 2e-3  # of Muon; AdamW had not told two equal pictures from two different ones after 60 updates, Muon had after 20


def painted(seed):
    """Endless pictures (2, ...) of two scenes of one caption."""
    rng, tokenizer = random.Random(seed), parts.tokenizer()
    while True:
        scene, = chain.scenes([rng.getrandbits(40)])
        yield teacher.painted([world.again(rng, scene), scene], tokenizer)[0]


def scenes(encoder, count, seed):
    """Endless latents (count, 2, 4, h, w): so many pairs of real scenes, each pair of one caption."""
    made, kept = feed(painted, seed), deque(maxlen=max(ROOM, count))
    while True:
        for _ in range(1 if kept else kept.maxlen):
            with torch.no_grad():
                kept.append(encoder(next(made).to(DEVICE) / 127.5 - 1).float())
        yield torch.stack([kept[i] for i in torch.randperm(len(kept))[:count].tolist()])


class Critic:
    """Begins anew with every sitting of the student, and learns from what the student draws. alphas: by timestep."""

    def __init__(self, alphas):
        self.network, self.alphas, self.updates = Reader(channels=8, questions=1).to(DEVICE, memory_format=torch.channels_last), alphas, 0
        torch.nn.init.zeros_(self.network.head[-1].bias)
        self.optimizers = optimizers(self.network, RATE)

    def noisy(self, pairs):
        """Pairs of latents (B, 2, 4, h, w) under little noise, as the network takes them: (B, 8, h, w)."""
        t = torch.randint(0, NOISY, (len(pairs), 1), device=pairs.device).expand(-1, 2).flatten()
        latents = pairs.flatten(0, 1)
        return network.noised(latents, torch.randn_like(latents), self.alphas[t]).unflatten(0, (-1, 2)).flatten(1, 2)

    def learn(self, drawn, real):
        """One update. -> how wrong it was: 0.69 where it cannot tell."""
        wrong = steady = 0
        for pairs, sign in ((drawn.detach(), 1), (real, -1)):
            noisy = self.noisy(pairs)
            answers, others = self.network.places(noisy), self.network.places(noisy + NEAR * torch.randn_like(noisy))
            wrong, steady = wrong + F.softplus(sign * answers).mean() / 2, steady + (answers - others).square().mean() / 2
        (wrong + STEADY * steady).backward()
        update(self.network.parameters(), self.optimizers)
        self.updates += 1
        return wrong.detach()

    def loss(self, drawn, real):
        """drawn, real: pairs of latents (B, 2, 4, h, w), numbers of which may differ -> (how clearly the drawings are told from real
        scenes, what `learn` gives, which goes before)."""
        wrong = self.learn(drawn, real)
        self.network.requires_grad_(False)
        told = F.softplus(-self.network.places(self.noisy(drawn))).mean()
        self.network.requires_grad_(True)
        return told * (self.updates > HEAD), wrong
