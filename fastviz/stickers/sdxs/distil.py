"""Knowledge distillation: the small U-Net learns to answer as the teacher does, at every noise level.

SDXS, arXiv 2403.16627, section on the U-Net, after BK-SDM, arXiv 2305.15798: squared error of the output and of the
features after each stage that is left, no denoising loss. Each error is divided by the teacher's mean square, so that
every stage counts alike whatever its scale.
"""

from functools import partial

import torch

from .. import teacher
from ..loop import feed, quick, start_seed, train
from . import chain, network


def relative(ours, theirs):
    """Squared error over the mean square of `theirs`: 0 is equal, 1 is as good as nothing."""
    theirs = theirs.float()
    return (ours.float() - theirs).pow(2).mean() / theirs.pow(2).mean()


def distillation(ours, theirs):
    """(output error, mean feature error) from what `network.inside` gives of student and teacher. The teacher's first up
    stage and what it computes below the student's lowest stage have no counterpart."""
    pairs = [*zip(ours[1], theirs[1]), *zip(ours[2], theirs[2][1:])]
    return relative(ours[0], theirs[0]), sum(relative(*pair) for pair in pairs) / len(pairs)


def loss_of(guide, alphas):
    """loss(student, (latents, tokens)) for loop.train."""
    def loss(student, batch):
        latents, tokens = batch
        even = (torch.arange(len(latents), device=latents.device) + torch.rand(1, device=latents.device)) / len(latents)
        t = (even * len(alphas)).long()
        noisy = network.noised(latents, torch.randn_like(latents), alphas[t]).contiguous(memory_format=torch.channels_last)
        text = chain.embedded(guide, tokens)
        with torch.no_grad():
            wanted = network.inside(guide.unet, noisy, t, text)
        output, features = distillation(network.inside(student, noisy, t, text), wanted)
        return output + features, {"output": output, "features": features}

    return loss


def scenes(guide, encoder, size, fresh, room, seed):
    """Endless (latents (size, 4, 32, 32), tokens): whole training scenes from a growing store."""
    store = teacher.Scenes(encoder, teacher.tokens_of(guide.tokenizer, [""]), room)
    painted = feed(partial(teacher.paint, alone=False), seed)
    while store.count < 4 * size:
        store.add(*next(painted))
    yield from teacher.stream(store, painted, 3 * size, 1.0, fresh, seed)  # it draws a third as many scenes as windows


def fit(minutes, size, lr, fresh=2.0, room=12_000):
    """Trains the student from the teacher's own blocks, or goes on from the checkpoint. fresh: new scenes per batch."""
    seed, guide = start_seed(chain.name("distil"), 11), chain.committed_teacher(minutes)
    student = quick(network.student_of(guide.unet), minutes)
    batches = scenes(guide, chain.decoder_teacher().encoder, size, fresh, room, seed)
    return train(chain.name("distil"), student, batches, loss_of(guide, chain.alphas()), minutes, lr, report_every=60)
