"""The prompts of a search or a fit, and others that it never sees."""

import random
from pathlib import Path

from ..models import MODELS
from ..request import BadRequest

SEED = 40_000_001  # of the scenes; noise has seeds of its own


def captions(split, count, seed=SEED):
    """`count` different captions of scenes with one or two stickers. split: train, or heldout for what training never
    showed."""
    from ..stickers import world

    rng, found = random.Random(f"{seed}/{split}"), {}
    while len(found) < count:
        found[world.sample(rng, split, rng.choice((1, 2))).caption] = None
    return list(found)


def read(model, count, held_out, file=None, seed=SEED):
    """(`count` prompts to work on, `held_out` others): from a text file, one a line, or scenes of the embedded model's
    world, of which training showed the first ones and never the others. Another `seed`, other scenes."""
    if file is None:
        if not MODELS[model].closed:
            raise BadRequest("prompts", f"There are no prompts for {model}: give --prompts-file, one prompt a line.")
        return captions("train", count, seed), captions("heldout", held_out, seed)
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise BadRequest("prompts", f"{file} is not text in UTF-8.") from None
    lines = list(dict.fromkeys(filter(None, map(str.strip, lines))))
    if len(lines) < count + held_out:
        raise BadRequest("prompts", f"{file} has {len(lines)} different prompts, and {count + held_out} are needed: add "
                                    "some, or ask for fewer.")
    return lines[:count], lines[count:count + held_out]
