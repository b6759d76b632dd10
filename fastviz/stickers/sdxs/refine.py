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

A network that reads latents says whether what the caption names can be seen (see reader). It is content long before the judge: of 96
pictures with two objects it found both in 96 %, the judge in 78 %. So what it sees of the two pictures is compared as well, feature
by feature.

Targets that follow the student leave it free to draw one picture of a caption, whatever the noise: LPIPS between four of them, on 24
prompts, was 1.20 where the teacher's pictures have 2.58. To push the two that are drawn of every caption apart did not help: the
distance was met by what costs least, blots in the corners where latents were compared, grain where the reader's features were, and
things stood in the middle as before. A critic that is shown both (see critic) finds that out.

To prescribe where things stand did not help either. A third of the noise was paired with real scenes: those whose things it was most
like where they stood, or whose layout its means or its slopes told. After 1 000 to 2 500 steps things stood where they were meant to as
often as chance has it, and what could not be foretold was drawn as a mean of itself: twice, or as a blot. With such pairs and the critic
LPIPS rose from 1.20 to 2.25 in 2 500 steps; with the critic alone, 560 steps later, it was 2.13.
"""

from collections import deque

import torch

from ..loop import compiled, quick, start_seed, train
from ..muon import optimizers
from . import chain, critic, distil, network, reader, warmup
from .pairs import finished

BACK, STEPS = 200, 2  # the timestep that the teacher goes on from, and in how many steps
ROOM, AGAIN = 32, 6  # captions that are kept at least, the newest; how often each is learnt on average
REAL = 0.25  # share of real scenes, noised as in the warm-up
FRESH = 5_000_000_029  # seeds of captions begin here
READ, SEEN = 0.1, 1.0  # weights of what the reader misses, and of how differently it sees two pictures
TOLD, LACKS = 0.1, 0.02  # weights of what is told from real scenes by two pictures, and from the targets by each thing


@torch.no_grad()
def refined(guide, student, noise, text, alphas, guidance):
    """The latents that the teacher makes of what the student draws from `noise` (B, 4, h, w)."""
    drawn = network.one_step(student, noise, text, alphas)
    begun = network.noised(drawn, noise, alphas[torch.full((len(noise),), BACK, device=noise.device)])
    return finished(guide, begun, text, STEPS, guidance, begin=BACK)


def batches(guide, student, scenes, captions, guidance):
    """Endless batches for warmup.loss_of: so many captions, twice each, with what is refined of `student`, the moving average, and at last
    what `scenes` yields, endless (latents, tokens) of real scenes."""
    kept, alphas, seed = deque(maxlen=max(ROOM, captions)), chain.alphas(), FRESH + int(torch.randint(10 ** 9, ()))
    few = max(1, round(captions / AGAIN))
    for latents, tokens in scenes:
        for _ in range(1 if kept else -(-captions // few)):
            asked = chain.tokens_of(guide, chain.captions(range(seed, seed + few))).repeat_interleave(2, 0)
            noise, seed = torch.randn(2 * few, *latents.shape[1:], device=latents.device), seed + few
            targets = refined(guide, student, noise, chain.embedded(guide, asked), alphas, guidance)
            kept.extend(zip(*(each.unflatten(0, (-1, 2)) for each in (noise, asked, targets))))
        yield *map(torch.cat, zip(*(kept[i] for i in torch.randperm(len(kept))[:captions].tolist()))), tokens, latents


def more_of(guide, reads, tells, misses, pairs_of, alphas):
    """What is added to the loss, see warmup.loss_of: the mistakes of the reader `reads`, how differently it sees what is drawn and what is
    wanted, what the Critic `tells` the drawings by from what `pairs_of` yields, see critic.scenes, and what the Comparer `misses` in them."""
    mistakes = reader.loss_of(guide, alphas)

    def more(drawn, wanted, tokens, pairs):
        wrong, seen = mistakes(reads, (drawn, tokens))[0], reader.distance(reads, *warmup.windows(drawn, wanted))
        told, unsure = tells.loss(drawn[:pairs].unflatten(0, (-1, 2)), next(pairs_of))
        lacks, blind = misses.loss(drawn[:pairs], wanted[:pairs], reader.named(guide, tokens[:pairs]))
        parts = {"wrong": wrong, "seen": seen, "told": told, "critic": unsure, "lacks": lacks, "comparer": blind}
        return READ * wrong + SEEN * seen + TOLD * told + LACKS * lacks, parts

    return more


def fit(minutes, size, lr, decay=0.25, fresh=1.0, room=12_000):
    """Goes on from the checkpoint or, without one, from the warmed-up student as it is now. fresh: new scenes per batch; decay: see
    loop.train."""
    parent, start = chain.parent("refine"), chain.checkpoint("refine")
    seed = start_seed(chain.name("refine"), 14, start)
    guide, alphas, encoder = chain.committed_teacher(minutes), chain.alphas(), chain.small_autoencoder().encoder
    student = quick(chain.student(guide, "refine" if start else "warmup"), minutes)
    real = max(1, round(REAL * size))
    captions = max(1, (size - real) // 2)
    reads = reader.trained()
    more = more_of(guide, reads, critic.Critic(alphas), critic.Comparer(reads, alphas), critic.scenes(encoder, captions, seed), alphas)
    loss = warmup.loss_of(guide, alphas, compiled(network.downwards, minutes), more)
    scenes = distil.scenes(guide, encoder, real, fresh, room, seed)
    return train(chain.name("refine"), student, lambda average: batches(guide, average, scenes, captions, chain.MODEL.guidance), loss, minutes, lr,
                 optimizers=optimizers(student, lr), horizon=100, decay=decay, report=warmup.recalled(guide), report_every=1200, start=start,
                 recipe={"batch": size, "parent": parent})
