"""Stage 2: the judge, trained on real scenes that are blurred, noisy and shifted in colour as generated pictures are.

Every cell of the judge's grid is told what covers it, so one scene gives hundreds of examples. Batch normalisation
speeds training up and is folded into the convolutions at export, which leaves plain SqueezeNet 1.1.
"""

import json
import random
from functools import partial

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from torchvision.models.squeezenet import Fire

from .. import judge
from . import world
from .autoencoder import pixels
from .loop import DEVICE, feed, start_seed, train
from .words import BACKGROUNDS, OBJECTS, SCENERY

STRIDE, FIRST = 16, 15  # px: the middle of cell i of the last grid is px 16 i + 15


def with_norm(body):
    """Puts a batch norm after every convolution of SqueezeNet's features."""
    for i, layer in enumerate(body):
        if isinstance(layer, nn.Conv2d):
            body[i] = nn.Sequential(layer, nn.BatchNorm2d(layer.out_channels))
        elif isinstance(layer, Fire):
            for name in ("squeeze", "expand1x1", "expand3x3"):
                conv = getattr(layer, name)
                setattr(layer, name, nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels)))
    return body


def fold(pair):
    """One convolution equal to a convolution followed by a batch norm in eval mode."""
    conv, norm = pair
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    conv.weight.data *= scale[:, None, None, None]
    conv.bias.data = (conv.bias - norm.running_mean) * scale + norm.bias
    return conv


def without_norm(body):
    for i, layer in enumerate(body):
        if isinstance(layer, nn.Sequential):
            body[i] = fold(layer)
        elif isinstance(layer, Fire):
            for name in ("squeeze", "expand1x1", "expand3x3"):
                setattr(layer, name, fold(getattr(layer, name)))
    return body


def build():
    model = judge.Judge(OBJECTS, BACKGROUNDS)
    with_norm(model.body)
    for m in model.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, nonlinearity="relu")
    return model


def labels(scene, left=0, top=0, side=world.SIZE):
    """Per cell of the window the object that covers its middle, 64 for none, -100 (not counted) near a sticker's rim.
    256 px give (15, 15) int, 128 px (7, 7)."""
    count = side // STRIDE - 1
    grid = torch.full((count, count), len(OBJECTS))
    centres = torch.arange(count) * STRIDE + FIRST
    for s in scene.stickers:
        inside = [(centres >= at + m) & (centres < at + s.full - m)
                  for m in (0, s.full // 6) for at in (s.x - left, s.y - top)]
        grid[inside[1][:, None] & inside[0][None]] = -100
        grid[inside[3][:, None] & inside[2][None]] = OBJECTS.index(s.name)
    return grid


def worn(rng, picture):
    """The picture as a small generator might give it: blurred, noisy, shifted in colour. picture: (3, H, W)."""
    if rng.random() < 0.6:
        factor = rng.choice((1.5, 2, 2, 3))
        small = F.interpolate(picture[None], scale_factor=1 / factor, mode="area")
        picture = F.interpolate(small, size=picture.shape[1:], mode="bilinear")[0]
    if rng.random() < 0.6:
        coarse = torch.randn(1, 3, *(rng.choice([(256, 256), (64, 64), (32, 32)])))
        picture = picture + rng.uniform(0, 0.15) * F.interpolate(coarse, size=picture.shape[1:], mode="bilinear")[0]
    shift = torch.tensor([rng.uniform(-0.1, 0.1) for _ in range(3)])[:, None, None]
    return (picture * rng.uniform(0.8, 1.15) + shift).clamp(-1, 1)


def window(rng, scene, side):
    """Corner (left, top) of a window of `side` px, most often one that touches a sticker."""
    room = world.SIZE - side
    if not scene.stickers or rng.random() < 0.2:
        return rng.randint(0, room), rng.randint(0, room)
    s = rng.choice(scene.stickers)
    return tuple(min(max(0, at + s.full // 2 - side // 2 + rng.randint(-48, 48)), room) for at in (s.x, s.y))


def batches(seed, size):
    """Endless (pictures (B, 3, S, S), cell labels, background labels (B,)): four of five batches are windows of 128 px,
    which cost a quarter, the others a quarter as many whole scenes."""
    rng = random.Random(seed)
    while True:
        side, number = (128, size) if rng.random() < 0.8 else (world.SIZE, size // 4)
        scenes = [world.sample(rng, "train") for _ in range(number)]
        corners = [window(rng, scene, side) for scene in scenes]
        pictures = [worn(rng, pixels(world.render(scene))[:, y:y + side, x:x + side]) for scene, (x, y) in zip(scenes, corners)]
        yield (torch.stack(pictures), torch.stack([labels(s, *corner, side) for s, corner in zip(scenes, corners)]),
               torch.tensor([SCENERY.index(s.background) for s in scenes]))


def loss(model, batch):
    pictures, cells, places = (part.to(DEVICE) for part in batch)
    out, background = model(pictures)
    objects = F.cross_entropy(out, cells)
    return objects + 0.3 * F.cross_entropy(background, places), {
        "cells": ((out.argmax(1) == cells) & (cells >= 0) & (cells < len(OBJECTS))).sum()
        / ((cells >= 0) & (cells < len(OBJECTS))).sum().clamp(min=1),
        "places": (background.argmax(1) == places).float().mean()}


@torch.no_grad()
def accuracy(model, count=256, seed=20_000_003, wear=False, device=DEVICE):
    """On held-out real scenes, shares in 0..1: object (top 1 for one object), pair (both in the top 2), background,
    relation, and false: scenes without objects in which one is seen."""
    rng, hits = random.Random(seed), {"object": [], "pair": [], "background": [], "relation": [], "false": []}
    for i in range(count):
        number = (1, 2, 1, 2, 0)[i % 5]
        scene = world.sample(rng, "heldout", number)
        picture = pixels(world.render(scene))
        seen = model.read((worn(rng, picture) if wear else picture)[None].to(device))
        names = {OBJECTS[i] for i in seen["mass"][0].topk(max(1, number)).indices.tolist()}
        hits["background"].append(SCENERY[int(seen["background"][0].argmax())] == scene.background)
        if number == 0:
            hits["false"].append(bool(seen["mass"][0].max() >= judge.MINIMUM))
        else:
            hits["object" if number == 1 else "pair"].append({s.name for s in scene.stickers} <= names)
        if number == 2:
            hits["relation"].append(relation(seen["where"][0], scene.stickers[0].name, scene.stickers[1].name) == scene.relation)
    return {key: round(sum(values) / len(values), 4) for key, values in hits.items()}


def relation(where, first, second):
    """left, right, above or below: where the first object's centre lies seen from the second's. where: (64, 2)."""
    dx, dy = (where[OBJECTS.index(first)] - where[OBJECTS.index(second)]).tolist()
    if abs(dx) > abs(dy):
        return "left" if dx < 0 else "right"
    return "above" if dy < 0 else "below"


def fit(minutes, batch, lr):
    seed = start_seed("judge", 1)
    model, log = train("judge", build(), feed(partial(batches, size=batch), seed), loss, minutes, lr, horizon=100,
                       report=lambda m: accuracy(m, 100), report_every=120)
    model.cpu()
    without_norm(model.body)
    figures = {"clean": accuracy(model, 1000, device="cpu"), "worn": accuracy(model, 500, wear=True, device="cpu")}
    print(f"judge: {figures}")
    judge.FOLDER.mkdir(parents=True, exist_ok=True)
    save_file({k: v.half().contiguous() for k, v in model.state_dict().items()}, judge.FOLDER / "model.safetensors")
    told = {"objects": OBJECTS, "backgrounds": BACKGROUNDS, "heldout": figures, "log": log}
    (judge.FOLDER / "config.json").write_text(json.dumps(told, indent=1) + "\n")
    return model
