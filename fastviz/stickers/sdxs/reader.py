"""A network that reads latents: which objects the autoencoder would show. What the student draws is held against its caption
by it; the judge, which reads pictures and tells how good the student is, stays in no loss.

It learns from real scenes and from the teacher's pictures, half of each, more or less noised.
"""

import torch
import torch.nn.functional as F
from torch import nn

from ..loop import DEVICE, start_seed, train
from ..words import OBJECTS
from . import chain, distil, network
from .pairs import Pairs

NOISY = 300  # latents are read under the noise of timesteps below
WIDTHS = (64, 128, 192)
HELD_OUT = 256


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layers = nn.Sequential(nn.GroupNorm(16, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1),
                                    nn.GroupNorm(16, width), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1))

    def forward(self, x):
        return x + self.layers(x)


class Reader(nn.Module):
    """Latents (B, 4, h, w) -> logits (B, 64), one for every object that may be there. An object is as present as where it is most so,
    softly: places are summed as exponentials."""

    def __init__(self):
        super().__init__()
        layers, before = [], 4
        for i, width in enumerate(WIDTHS):
            layers += [nn.Conv2d(before, width, 3, padding=1, stride=1 if i == 0 else 2), Block(width), Block(width)]
            before = width
        self.body = nn.Sequential(*layers, nn.GroupNorm(16, before), nn.SiLU())
        self.head = nn.Conv2d(before, len(OBJECTS), 1)
        nn.init.constant_(self.head.bias, -8.0)  # few objects are there, and hardly anywhere

    def forward(self, latents):
        return self.head(self.body(latents)).float().flatten(2).logsumexp(2)


def named(guide, tokens):
    """Which of the objects the captions tokens (B, 24) name: (B, 64), 0 or 1."""
    words = guide.tokenizer(list(OBJECTS), add_special_tokens=False).input_ids
    ids = torch.tensor([word for word, in words], device=tokens.device)
    return (tokens[:, :, None] == ids).any(1).float()


def wrong(logits, asked):
    """Cross-entropy of what is there and what is not, (B, 64) each, summed over the objects, mean over pictures."""
    return F.binary_cross_entropy_with_logits(logits, asked, reduction="none").sum(1).mean()
