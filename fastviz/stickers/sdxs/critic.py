"""Networks that tell the student's drawings from what they should be: by two pictures of one caption, and by each thing in one.

A Critic is shown two pictures of one caption, and tells whether they are real scenes or drawings. One picture by itself can be told
from a real one by its blots and grain. Two of them tell more: real scenes of a caption have their things in different places, and a
student that draws one picture for each caption, whatever the noise, is found out (Lin et al., PacGAN, arXiv 1712.04086). Pictures are
latents, both under the same little noise, which hides what no eye would see. The losses are those of Goodfellow et al., arXiv
1406.2661, in their non-saturating form, in every place; in the place of a gradient penalty, the answer may not change much with a
small change of the latents (the approximated R1 of Lin et al., arXiv 2501.08316).

A Comparer is shown a drawing and its target, under the same noise, and tells by every thing that the caption names which is which. The
two show the same in the same place: what differs is what the drawing lacks, the seeds of a watermelon, the rays of a sun. It begins as
the network that reads latents, and its loss is relative (Jolicoeur-Martineau, arXiv 1807.00734): only the difference of its two answers
counts. Of the things in 96 held-out drawings it was right about 86 % after 80 updates. Asked of every picture by itself, under other
noise, whether it is real, it had to unlearn first that all of them are, and was right about 53 % after 120.
"""

import random
from collections import deque
from copy import deepcopy

import torch
import torch.nn.functional as F

from .. import parts, teacher, world
from ..loop import DEVICE, feed, update
from ..muon import optimizers
from . import chain, network
from .reader import NOISY, Reader

STEADY, NEAR = 100.0, 0.05  # weight of how much the answer changes with a change of the latents by so much
HEAD = 50  # updates before the student hears of it
CLEAR = 100  # timesteps whose noise a Comparer's pictures are under, at most: more hides seeds
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


class Comparer:
    """Begins anew with every sitting of the student, as the network `reads`, see reader.Reader. alphas: by timestep."""

    def __init__(self, reads, alphas):
        self.network, self.alphas, self.updates = deepcopy(reads).requires_grad_(True), alphas, 0
        self.optimizers = optimizers(self.network, RATE)

    def noisy(self, drawn, wanted):
        """Both under the same little noise."""
        t, noise = torch.randint(0, CLEAR, (len(drawn),), device=drawn.device), torch.randn_like(drawn)
        return [network.noised(latents, noise, self.alphas[t]) for latents in (drawn, wanted)]

    def answers(self, latents, asked):
        """Of each of the things that are `asked`, (B, 64): how much it is as it should be."""
        return self.network(latents)[asked > 0]

    def learn(self, drawn, wanted, asked):
        """One update. -> how wrong it was: 0.69 where it cannot tell."""
        theirs = self.answers(wanted, asked)
        wrong = F.softplus(self.answers(drawn, asked) - theirs).mean()
        steady = (theirs - self.answers(wanted + NEAR * torch.randn_like(wanted), asked)).square().mean()
        (wrong + STEADY * steady).backward()
        update(self.network.parameters(), self.optimizers)
        self.updates += 1
        return wrong.detach()

    def loss(self, drawn, wanted, asked):
        """Latents (B, 4, h, w) of drawings and of their targets, and what is asked for, see reader.named -> (how clearly things in the drawings
        are told from those in the targets, what `learn` gives, which goes before, with half of them: it is most of a step's work)."""
        drawn, wanted = self.noisy(drawn, wanted)
        some = torch.randperm(len(drawn))[:-(-len(drawn) // 2)]
        wrong = self.learn(drawn[some].detach(), wanted[some], asked[some])
        self.network.requires_grad_(False)
        lacks = F.softplus(self.answers(wanted, asked) - self.answers(drawn, asked)).mean()
        self.network.requires_grad_(True)
        return lacks * (self.updates > HEAD), wrong
