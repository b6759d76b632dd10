"""Noise and the real scene that it is drawn as: of many that a caption allows, the one whose things stand where the noise is most like them.

The teacher finds its scene in many small steps, which one step can't foretell: a student that is trained on what the teacher makes of
its noise draws everything where it stands most often, in the middle. Noise that is paired with what it is near to, as optimal
transport would pair them (Pooladian et al., arXiv 2304.14772), tells in one step what stands where. It is drawn first, so that it stays
as normal as what the student is asked to draw from.
"""

import random
from collections import deque

import torch
import torch.nn.functional as F
from PIL import Image

from .. import parts, teacher, world
from ..autoencoder import CELL, pixels
from ..loop import DEVICE, feed
from ..words import OBJECTS
from . import chain

CHOICES = 256, 256, 4096  # scenes of a caption with no, one or two things that noise is held against
ROOM, AGAIN = 48, 3  # captions that are kept, the newest; how often each is learnt on average
MARGIN = 32  # px of paper around a sticker, for the encoder to see
SIDE = world.SIZE // CELL  # cells of the latents


@torch.no_grad()
def templates(encoder):
    """{(name, size): (4, side, side)}: what a sticker adds to the latents of grey paper, at length 1, on the CPU."""
    found = {}
    for size, side in world.SIDES.items():
        paper = Image.new("RGB", [side + 2 * (world.RIM + MARGIN)] * 2, "gray")
        empty = encoder(pixels(paper)[None].to(DEVICE))
        for name in OBJECTS:
            picture, cutout = paper.copy(), world.cutout(name, side)
            picture.paste(cutout, (MARGIN, MARGIN), cutout)
            added = covered((encoder(pixels(picture)[None].to(DEVICE)) - empty)[0].float().cpu(), world.Sticker(name, size, side, MARGIN, MARGIN))
            found[name, size] = added / added.norm()
    return found


def covered(latents, sticker):
    """Where a sticker stands in latents (4, h, w): (4, side, side)."""
    x, y, side = (at // CELL for at in (sticker.x, sticker.y, sticker.full))
    return latents[:, y:y + side, x:x + side]


def likeness(noise, scene, templates):
    """f(scene): how like its things noise (4, h, w) is where they stand: of one thing, normally distributed over the noise. For scenes with
    the things of `scene`."""
    found = [F.conv2d(noise[None], templates[each.name, each.size][None])[0, 0].tolist() for each in scene.stickers]
    return lambda scene: sum(places[each.y // CELL][each.x // CELL] for places, each in zip(found, scene.stickers))


def nearest(rng, noise, scene, templates):
    """Of CHOICES scenes with the caption of `scene` the one that noise is most like."""
    return max((world.again(rng, scene) for _ in range(CHOICES[len(scene.stickers)])), key=likeness(noise, scene, templates))


def painted(seed, templates):
    """Endless (noise (2, 4, h, w), pictures of the nearest scenes, tokens), one caption each."""
    rng, tokenizer, drawn = random.Random(seed), parts.tokenizer(), torch.Generator().manual_seed(seed)
    while True:
        scene, = chain.scenes([rng.getrandbits(40)])
        noise = torch.randn(2, 4, SIDE, SIDE, generator=drawn)
        yield noise, *teacher.painted([nearest(rng, each, scene, templates) for each in noise], tokenizer)[:2]


def batches(encoder, captions, seed):
    """Endless (noise, tokens, latents) of so many captions, twice each: neighbours share one."""
    marks, kept = templates(encoder), deque(maxlen=max(ROOM, captions))
    made = feed(lambda seed: painted(seed, marks), seed)
    while True:
        for _ in range(max(1, round(captions / AGAIN)) if kept else kept.maxlen):
            noise, pictures, tokens = (each.to(DEVICE) for each in next(made))
            with torch.no_grad():
                kept.append((noise, tokens, encoder(pictures / 127.5 - 1).float()))
        yield tuple(map(torch.cat, zip(*(kept[i] for i in torch.randperm(len(kept))[:captions].tolist()))))
