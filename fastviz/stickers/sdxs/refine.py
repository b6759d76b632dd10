"""Refinement: the student learns to draw at once what the teacher makes of its drawing in a few more steps.

Not in SDXS, arXiv 2403.16627, where score distillation follows the warm-up at once. One step sees too few pairs, and where it
cannot tell from the noise what the teacher would draw, it draws a mean of what that might be. Here the student's own picture
is mixed with the very noise that it was drawn from, as a step of DDIM to timestep BACK would, and the teacher goes on from
there in STEPS guided steps. What comes of it shows the same things in the same places, finished. It is a function of the
noise, as the target of a consistency model is (Song et al., arXiv 2303.01469, algorithm 2, there from one small step), and
captions are endless. As the student gets better, so do its targets.

The less noise, the closer the targets lie to what the student draws, and the less of them is chance. Of a student with recall .75
of one object and .47 of two, on 32 prompts each: from timestep 650 in 3 steps targets of .97 and .84 at a mean square distance of
.148, from 200 in 2 steps 1.0 and .81 at .082; in one step from there .91 and .72.

Targets that follow the student leave it free to draw less and less different pictures of a caption. So every caption is drawn
from two noises, and the two may not lie closer together than the teacher's two, on average (after the mode seeking loss of Mao et
al., arXiv 1903.05628). This distance is met too cheaply: an hour and a half later it was the teacher's, but much of it lay in bright
blots in the corners, and LPIPS between the pictures of a caption was 0.98 where the teacher has 2.35.

A network that reads latents says whether what the caption names can be seen (see reader). It is content long before the judge: of 96
pictures with two objects it found both in 96 %, the judge in 78 %. So what it sees of the two pictures is compared as well, feature
by feature.
"""

from collections import deque

import torch

from ..loop import compiled, quick, start_seed, train
from ..muon import optimizers
from . import chain, distil, network, reader, warmup
from .pairs import finished

BACK, STEPS = 200, 2  # the timestep that the teacher goes on from, and in how many steps
ROOM, AGAIN = 32, 3  # captions that are kept at least, the newest; how often each is learnt on average
REAL = 0.25  # share of real scenes, noised as in the warm-up
FRESH = 5_000_000_029  # seeds of captions begin here
APART, SPREAD = 0.69, 0.5  # root mean square distance of two of the teacher's latents of a caption; weight of what lacks of it
READ, SEEN = 0.1, 1.0  # weights of what the reader misses, and of how differently it sees the two pictures where they differ


@torch.no_grad()
def refined(guide, student, noise, text, alphas, guidance):
    """The latents that the teacher makes of what the student draws from `noise` (B, 4, h, w)."""
    drawn = network.one_step(student, noise, text, alphas)
    begun = network.noised(drawn, noise, alphas[torch.full((len(noise),), BACK, device=noise.device)])
    return finished(guide, begun, text, STEPS, guidance, begin=BACK)


def batches(guide, student, scenes, size, guidance):
    """Endless batches of `size` for warmup.loss_of, in which each two neighbours of the first part share a caption; student: the moving
    average, which the targets are made of; scenes: endless (latents, tokens) of the real ones among them."""
    kept, alphas, seed = deque(maxlen=max(ROOM, size // 2)), chain.alphas(), FRESH + int(torch.randint(10 ** 9, ()))
    for latents, tokens in scenes:
        wanted = max(1, (size - len(latents)) // 2)
        few = max(1, round(wanted / AGAIN))
        for _ in range(1 if kept else -(-wanted // few)):
            asked = chain.tokens_of(guide, chain.captions(range(seed, seed + few))).repeat_interleave(2, 0)
            noise, seed = torch.randn(2 * few, *latents.shape[1:], device=latents.device), seed + few
            targets = refined(guide, student, noise, chain.embedded(guide, asked), alphas, guidance)
            kept.extend(zip(*(each.unflatten(0, (-1, 2)) for each in (noise, asked, targets))))
        yield *map(torch.cat, zip(*(kept[i] for i in torch.randperm(len(kept))[:wanted].tolist()))), tokens, latents


def closeness(drawn):
    """How much closer together than APART each two neighbours of latents (B, 4, h, w) lie on average, as a share, and their distance."""
    one, other = drawn.unflatten(0, (-1, 2)).unbind(1)
    apart = (one - other).square().flatten(1).mean(1).add(1e-4).sqrt().mean()  # equal ones would have no gradient
    return (1 - apart / APART).clamp(min=0), apart


def more_of(guide, reads, alphas):
    """What is added to the loss, see warmup.loss_of: the mistakes of the reader `reads`, how differently it sees what is drawn and what is
    wanted, and pictures of a caption that lie too close together."""
    mistakes = reader.loss_of(guide, alphas)

    def more(drawn, wanted, tokens, pairs):
        wrong, seen = mistakes(reads, (drawn, tokens))[0], reader.distance(reads, *warmup.windows(drawn, wanted))
        close, apart = closeness(drawn[:pairs])
        return READ * wrong + SEEN * seen + SPREAD * close, {"wrong": wrong, "seen": seen, "apart": apart}

    return more


def fit(minutes, size, lr, decay=0.25, fresh=1.0, room=12_000):
    """Goes on from the checkpoint or, without one, from the warmed-up student as it is now. fresh: new scenes per batch; decay: see
    loop.train."""
    parent, start = chain.parent("refine"), chain.checkpoint("refine")
    seed = start_seed(chain.name("refine"), 14, start)
    guide, alphas = chain.committed_teacher(minutes), chain.alphas()
    student = quick(chain.student(guide, "refine" if start else "warmup"), minutes)
    loss = warmup.loss_of(guide, alphas, compiled(network.downwards, minutes), more_of(guide, reader.trained(), alphas))
    scenes = distil.scenes(guide, chain.small_autoencoder().encoder, max(1, round(REAL * size)), fresh, room, seed)
    return train(chain.name("refine"), student, lambda average: batches(guide, average, scenes, size, chain.MODEL.guidance), loss, minutes, lr,
                 optimizers=optimizers(student, lr), horizon=100, decay=decay, report=warmup.recalled(guide), report_every=300, start=start,
                 recipe={"batch": size, "parent": parent})
