"""How well pictures say what was asked for: all figures of the evaluation, from scenes and the pictures drawn for them."""

import functools
import math
import random
from itertools import combinations

import torch

from .. import judge, metrics
from . import world
from .autoencoder import pixels
from .judge import relation
from .words import OBJECTS, SCENERY, SIZES


def share(values):
    """Mean of booleans, 4 digits; None of none."""
    return round(sum(values) / len(values), 4) if values else None


def named(seen, count):
    """The `count` objects that the judge sees most of in the first picture that it read, without those it hardly sees."""
    top = seen["mass"][0].topk(max(1, count))
    return [OBJECTS[i] for i, mass in zip(top.indices.tolist(), top.values.tolist()) if mass >= judge.MINIMUM]


def recall(scenes, pictures, reader=None):
    """Shares in 0..1 of scenes whose objects (all among the top n by the judge), background, relation (where the caption tells
    it, given both objects) and size words (given the object) are found in the pictures, and the names of the objects that were
    missed."""
    reader = reader or judge.load()
    hits, missed = {"objects": [], "background": [], "relation": [], "size": []}, []
    for scene, picture in zip(scenes, pictures):
        seen = reader.read(pixels(picture)[None])
        asked = [sticker.name for sticker in scene.stickers]
        names = named(seen, len(asked))
        hits["objects"].append(set(asked) <= set(names))
        missed += [name for name in asked if name not in names]
        hits["background"].append(SCENERY[int(seen["background"][0].argmax())] == scene.background)
        if len(asked) == 2 and hits["objects"][-1] and world.said(scene):
            hits["relation"].append(relation(seen["where"][0], *asked) == scene.relation)
        hits["size"] += [size_of(seen["mass"][0], s.name) == s.size for s in scene.stickers if s.name in names and s.size != "medium"]
    return {key: share(values) for key, values in hits.items() if values}, sorted(missed)


@functools.cache
def filled(name, count=4):
    """How many of the judge's cells an object fills in real scenes, as means: {size: cells}. Each object has its own: a pencil
    covers less than a pizza of the same length."""
    rng, found = random.Random(name), {}
    for size in SIZES:
        scenes = [world.Scene("", rng.choice(SCENERY), (world.place_alone(rng, name, size),), None, rng.getrandbits(32))
                  for _ in range(count)]
        seen = judge.load().read(torch.stack([pixels(world.render(scene)) for scene in scenes]))
        found[size] = float(seen["mass"][:, OBJECTS.index(name)].mean())
    return found


def size_of(mass, name):
    """The size whose ordinary area is nearest to what `name` fills, by ratio. mass: (64,) cells."""
    seen, real = max(1e-3, float(mass[OBJECTS.index(name)])), filled(name)
    return min(SIZES, key=lambda size: abs(math.log(seen / real[size])))


@torch.no_grad()
def features(pictures):
    """The judge's last features, averaged over the picture: (N, 512), double precision."""
    reader = judge.load()
    return torch.cat([reader.body(pixels(picture)[None]).mean((2, 3)) for picture in pictures]).double()


def frechet(a, b):
    """Frechet distance of two sets of features (N, C) under the normal assumption (Heusel et al., arXiv 1706.08500, eq. 6)."""
    (mean_a, cov_a), (mean_b, cov_b) = ((x.mean(0), x.T.cov()) for x in (a, b))
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    return float((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross)


def diversity(groups):
    """Mean pairwise LPIPS within groups of pictures of the same prompt, averaged over the groups."""
    means = [[metrics.lpips_score(a, b)[0] for a, b in combinations(group, 2)] for group in groups]
    return sum(sum(each) / len(each) for each in means) / len(means)
