"""Stage 3d: which words of a caption the teacher heeds. How much worse it estimates held-out scenes when one word of their
captions is exchanged for another, beside how far that word moves the mean of all scenes that fit the caption: what a perfect
estimate would lose in pure noise, where it knows nothing but the caption.

Errors are those of the clean latents, a / (1 - a) of whose square shows in the noise's (a: cumulative alpha): where the layout
of a picture is decided, the noise's own error hardly depends on it.
"""

import json
import random

import torch

from . import autoencoder, parts, teacher, world
from .evaluate import FOLDER
from .words import OBJECTS, SCENERY, caption

FILE = FOLDER / "heeded.json"
TIMESTEPS = (999, 950, 900, 800, 600, 400)
MEAN = 12  # scenes that the mean of a caption is taken over
WORDS = {"object": 1, "background": 1, "size": 1, "side": 1, "axis": 2, "order": 2}  # what is exchanged -> objects in the scene
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
ACROSS = {"left": "above", "right": "below", "above": "left", "below": "right"}


def exchanged(word, names, sizes, relation, background):
    """What a caption tells, with one word of it exchanged. word: a key of WORDS."""
    if word == "object":
        names = [next(name for name in (*OBJECTS[OBJECTS.index(names[0]) + 7:], *OBJECTS) if name not in names), *names[1:]]
    elif word == "background":
        background = SCENERY[(SCENERY.index(background) + 3) % len(SCENERY)]
    elif word == "size":
        sizes = ["small" if sizes[0] == "big" else "big", *sizes[1:]]
    else:
        relation = (ACROSS if word == "axis" else OPPOSITE)[relation]
    return names, sizes, relation, background


def told(rng, word):
    """What the caption of a random held-out scene tells, where it holds such a word: names, sizes, relation, background."""
    while True:
        scene = world.sample(rng, "heldout", WORDS[word], aside=float(word == "side"))
        names, sizes = [s.name for s in scene.stickers], [s.size for s in scene.stickers]
        if word != "size" or sizes[0] != "medium":
            return names, sizes, scene.relation, scene.background


@torch.no_grad()
def latents(rng, encoder, caption_tells, count):
    """(count, 4, 32, 32) of random scenes of which this is true."""
    names, sizes, relation, background = caption_tells
    scenes = [world.Scene("", background, world.placed(rng, names, sizes, relation), relation, rng.getrandbits(32)) for _ in range(count)]
    return encoder(torch.stack([autoencoder.pixels(world.render(scene)) for scene in scenes]))


def moved(one, other):
    """Mean square distance of the means of two sets of latents (N, ...), without what chance adds to it."""
    return float(((one.mean(0) - other.mean(0)).square() - (one.var(0) + other.var(0)) / len(one)).mean())


@torch.no_grad()
def rises(model, latents, tokens, others, t, seed):
    """By how much the mean square error of the clean latents (N,) rises at timestep t with tokens `others` instead of `tokens`."""
    a = parts.scheduler().alphas_cumprod[t]
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed))
    noisy, at = a.sqrt() * latents + (1 - a).sqrt() * noise, torch.full((len(latents),), t)
    right, wrong = ((model(noisy, at, each) - noise).square().mean((1, 2, 3)) for each in (tokens, others))
    return (wrong - right) * (1 - a) / a


def measured(model, word, count, seed=70_000_021):
    """{"word", "pure": what a perfect estimate loses in pure noise, "rise": {timestep: [mean, its standard error]}, "heeded":
    the first rise as a share of `pure`}. Squares of latents, over `count` scenes."""
    rng, encoder = random.Random(f"{seed} {word}"), autoencoder.trained().encoder
    clean, tokens, others, pure = [], [], [], []
    for _ in range(count):
        true = told(rng, word)
        false, phrasing = exchanged(word, *true), rng.getrandbits(32)  # the same phrasing: one word differs, not the form
        ours, theirs = (latents(rng, encoder, each, MEAN) for each in (true, false))
        pure.append(moved(ours, theirs))
        clean.append(ours[0])
        for kept, each in ((tokens, true), (others, false)):
            kept.append(teacher.tokens_of(model.tokenizer, [caption(random.Random(phrasing), *each)])[0])
    clean, tokens, others = map(torch.stack, (clean, tokens, others))
    found = {t: torch.cat([rises(model, *parts, t, seed + i) for i, parts in enumerate(zip(*(x.split(16) for x in (clean, tokens, others))))])
             for t in TIMESTEPS}
    rise = {t: [round(float(x.mean()), 5), round(float(x.std() / len(x) ** 0.5), 5)] for t, x in found.items()}
    pure = sum(pure) / len(pure)
    return {"word": word, "pure": round(pure, 5), "heeded": round(rise[TIMESTEPS[0]][0] / pure, 3), "rise": rise}


def main(count, network="small"):
    """Writes heeded.json and prints a line per word. network: a key of parts.SIZES."""
    model, card = teacher.trained(network)
    rows = []
    for word in WORDS:
        rows.append(measured(model, word, count))
        print(json.dumps(rows[-1]), flush=True)
    FILE.write_text(json.dumps({"step": card["step"], "network": network, "scenes": count, "words": rows}, indent=1) + "\n")
