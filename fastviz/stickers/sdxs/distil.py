"""Knowledge distillation: the small U-Net learns to answer as the teacher does, at every noise level.

SDXS, arXiv 2403.16627, section on the U-Net, after BK-SDM, arXiv 2305.15798: squared error of the output and of the
features after each stage that is left, no denoising loss. Each error is divided by the teacher's mean square, so that
every stage counts alike whatever its scale. One step will be asked of the student where noise is highest: there the
output's error counts more, as in the teacher's own loss, and timesteps are drawn more often. Scenes are real ones.
"""

import random
from functools import partial

import torch

from .. import teacher, world
from ..loop import DEVICE, compiled, feed, quick, start_seed, train
from ..muon import optimizers
from . import chain, network

MOST = 8  # times that an error at the noisiest timestep counts
HELD_OUT, NOISY = 32, 800  # scenes that reports measure on; the timestep from which on noise hides nearly all


def relative(ours, theirs, weight=1):
    """Squared error, weighted by picture, over the mean square of `theirs`: 0 is equal, 1 is as good as nothing."""
    theirs = theirs.float()
    return (weight * (ours.float() - theirs).pow(2).reshape(len(ours), -1).mean(1)).mean() / theirs.pow(2).mean()


def distillation(ours, theirs, weight=1):
    """(output error, weighted by picture, mean feature error) from what `network.inside` gives of student and teacher. The
    teacher's first up stage and what it computes below the student's lowest stage have no counterpart."""
    pairs = [*zip(ours[1], theirs[1]), *zip(ours[2], theirs[2][1:])]
    return relative(ours[0], theirs[0], weight), sum(relative(*pair) for pair in pairs) / len(pairs)


def loss_of(guide, alphas, inside=network.inside):
    """loss(student, (latents, tokens)) for loop.train. inside: network.inside, or that compiled."""
    weight = (0.3 * (1 - alphas) / alphas).sqrt().clamp(1, MOST)

    def loss(student, batch):
        latents, tokens = batch
        even = (torch.arange(len(latents), device=latents.device) + torch.rand(1, device=latents.device)) / len(latents)
        t = (even ** 0.6 * len(alphas)).long().clamp(max=len(alphas) - 1)  # rounding reaches 1
        noisy = network.noised(latents, torch.randn_like(latents), alphas[t]).contiguous(memory_format=torch.channels_last)
        text = chain.embedded(guide, tokens)
        with torch.no_grad():
            wanted = inside(guide.unet, noisy, t, text)
        output, features = distillation(inside(student, noisy, t, text), wanted, weight[t])
        return output + features, {"output": output, "features": features}

    return loss


def scenes(guide, encoder, size, fresh, room, seed):
    """Endless (latents (size, 4, 32, 32), tokens): whole training scenes from a growing store."""
    store = teacher.Scenes(encoder, teacher.tokens_of(guide.tokenizer, [""]), room)
    painted = feed(partial(teacher.paint, alone=False), seed)
    while store.count < min(room, 20 * size):
        store.add(*next(painted))
    yield from teacher.stream(store, painted, 3 * size, 1.0, fresh, seed)  # it draws a third as many scenes as windows


def heldout(guide, encoder):
    """report(student) for loop.train: {"output, all", "output, noisy"}, the relative error of the output on held-out scenes, at
    timesteps from 0 and from NOISY on."""
    rng = random.Random(20_000_003)
    pictures, tokens, _ = teacher.painted([world.sample(rng, "heldout", 1 + i % 2) for i in range(HELD_OUT)], guide.tokenizer)
    alphas, plain = chain.alphas(), guide.unet.forward  # what is compiled would be compiled again for this batch
    with torch.no_grad():
        latents, text = encoder(pictures.to(DEVICE) / 127.5 - 1), chain.embedded(guide, tokens)
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
        asked = {}
        for name, first in (("output, all", 0), ("output, noisy", NOISY)):
            t = torch.linspace(first, len(alphas) - 1, HELD_OUT, device=DEVICE).long()
            given = [*zip(network.noised(latents, noise, alphas[t]).split(8), t.split(8), text.split(8))]
            asked[name] = given, torch.cat([plain(*some).sample for some in given])

    @torch.no_grad()
    def report(student):
        return {name: round(float(relative(torch.cat([student(*some).sample for some in given]), wanted)), 5)
                for name, (given, wanted) in asked.items()}

    return report


def fit(minutes, size, lr, decay=0.25, fresh=2.0, room=12_000):
    """Goes on from the checkpoint; without one, from the student of an earlier teacher or else from this teacher's own blocks.
    fresh: new scenes per batch; decay: see loop.train."""
    seed, guide = start_seed(chain.name("distil"), 11), chain.committed_teacher(minutes)
    student = network.student_of(guide.unet)
    if (earlier := chain.earlier("distil", student)) is not None:
        student.load_state_dict(earlier)
    student = quick(student, minutes)
    encoder = chain.small_autoencoder().encoder
    batches = scenes(guide, encoder, size, fresh, room, seed)
    return train(chain.name("distil"), student, batches, loss_of(guide, chain.alphas(), compiled(network.inside, minutes)), minutes, lr,
                 optimizers=optimizers(student, lr), decay=decay, report=heldout(guide, encoder), report_every=120, recipe={"batch": size})
