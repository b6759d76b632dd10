"""A network that reads latents: which objects they show. What the student draws is held against its caption by it. The judge, which
reads pictures and tells how good the student is, stays in no loss.

It learns from real scenes, more or less noised.
"""

import random

import torch
import torch.nn.functional as F
from torch import nn

from .. import loop, teacher, world
from ..loop import DEVICE, start_seed, train
from ..muon import optimizers
from ..words import OBJECTS
from . import chain, distil, network

WIDTHS = (64, 128, 192)  # channels on the latents' grid, and on each of half as many cells a side
NOISY = 300  # latents are read under the noise of timesteps below
HELD_OUT = 256  # scenes that reports are about


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layers = nn.Sequential(nn.GroupNorm(16, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
                                    nn.GroupNorm(16, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1))

    def forward(self, x):
        return x + self.layers(x)


class Reader(nn.Module):
    """Latents (B, 4, h, w) -> logits (B, 64), one for each object: whether it is there, anywhere. channels, questions: instead of 4
    and 64."""

    def __init__(self, channels=4, questions=len(OBJECTS)):
        super().__init__()
        self.scales, before = nn.ModuleList(), channels
        for width in WIDTHS:
            first = nn.Conv2d(before, width, 3, padding=1, stride=2 if len(self.scales) else 1)
            self.scales.append(nn.Sequential(first, Block(width), Block(width)))
            before = width
        self.head = nn.Sequential(nn.GroupNorm(16, before), nn.SiLU(), nn.Conv2d(before, questions, 1))
        nn.init.constant_(self.head[-1].bias, -8)  # most objects are nowhere

    def features(self, latents):
        """What each of the scales makes of latents: [(B, 64, h, w), (B, 128, h/2, w/2), (B, 192, h/4, w/4)]."""
        found = []
        for scale in self.scales:
            latents = scale(latents)
            found.append(latents)
        return found

    def places(self, latents):
        """Logits (B, 64, places)."""
        return self.head(self.features(latents)[-1]).float().flatten(2)

    def forward(self, latents):
        return self.places(latents).logsumexp(2)


def named(guide, tokens):
    """The objects that captions, tokens (B, 24), name: (B, 64) of 0 and 1."""
    words = guide.tokenizer(list(OBJECTS), add_special_tokens=False).input_ids
    return (tokens[:, :, None] == torch.tensor([word for word, in words], device=tokens.device)).any(1).float()


def loss_of(guide, alphas):
    """loss(reader, (latents, tokens)) for loop.train: cross-entropy of every object being there or not, summed over the objects. Empty
    captions say nothing of what is there, and are passed over."""
    empty = chain.tokens_of(guide, [""])

    def loss(reader, batch):
        told = (batch[1] != empty).any(1)
        latents, tokens = (each[told] for each in batch)
        t = torch.randint(0, NOISY, (len(latents),), device=latents.device)
        logits = reader(network.noised(latents, torch.randn_like(latents), alphas[t]))
        return F.binary_cross_entropy_with_logits(logits, named(guide, tokens), reduction="none").sum(1).mean(), {}

    return loss


def distance(reader, ours, wanted):
    """How differently the reader sees two sets of latents (B, 4, h, w), without noise: squared distance of its features, of unit length in
    every place (as LPIPS has it, Zhang et al., arXiv 1801.03924, equation 1, with equal weights), mean over places and scales."""
    pairs = [[F.normalize(each.float(), dim=1) for each in pair] for pair in zip(reader.features(ours), reader.features(wanted))]
    return sum((a - b).square().sum(1).mean() for a, b in pairs) / len(pairs)


def right(logits, asked):
    """Share of the pictures whose likeliest objects are those that were asked, as many of them. logits, asked: (B, 64)."""
    found = [set(row.topk(int(some.sum())).indices.tolist()) == set(some.nonzero()[:, 0].tolist()) for row, some in zip(logits, asked)]
    return sum(found) / len(found)


def heldout(guide, encoder):
    """report(reader) for loop.train: shares of held-out scenes with one and with two objects that are read right, without noise."""
    rng, asked = random.Random(20_000_003), []
    for number in (1, 2):
        pictures, tokens, _ = teacher.painted([world.sample(rng, "heldout", number) for _ in range(HELD_OUT // 2)], guide.tokenizer)
        with torch.no_grad():
            asked.append((encoder(pictures.to(DEVICE) / 127.5 - 1), named(guide, tokens)))

    @torch.no_grad()
    def report(reader):
        return {name: round(right(reader(latents), wanted), 4) for name, (latents, wanted) in zip(("one", "two"), asked)}

    return report


def trained():
    """The moving average of the checkpoint, frozen, on the training device. NotYet without one."""
    if (saved := loop.checkpoint(chain.name("reader"))) is None:
        raise chain.NotYet("There is no network yet that reads latents: run `python -m fastviz.stickers reader` first.")
    reader = Reader()
    reader.load_state_dict(saved["average"])
    return chain.frozen(reader).to(memory_format=torch.channels_last)


def fit(minutes, size, lr, decay=0.5, fresh=4.0, room=12_000):
    """Goes on from the checkpoint. fresh: new scenes per batch; decay: see loop.train."""
    seed, guide, reader = start_seed(chain.name("reader"), 16), chain.committed_teacher(), Reader()
    encoder = chain.small_autoencoder().encoder
    scenes = distil.scenes(guide, encoder, size, fresh, room, seed)
    return train(chain.name("reader"), reader, scenes, loss_of(guide, chain.alphas()), minutes, lr, optimizers=optimizers(reader, lr), decay=decay,
                 report=heldout(guide, encoder), report_every=120, recipe={"batch": size})
