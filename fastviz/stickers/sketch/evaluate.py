"""Whether pictures follow sketches: figures on held-out scenes, with the sketch, without it, and of the scenes themselves."""

import json
import random
from statistics import mean

import numpy as np
from diffusers import StableDiffusionControlNetPipeline
from scipy.ndimage import distance_transform_edt
from skimage.feature import canny
from skimage.morphology import skeletonize

from ... import given, judge, models, run, views
from ...compare import environment
from ...methods import sdxs
from ...request import Request
from .. import autoencoder, evaluate, loop, measures, world
from ..sdxs import chain
from ..words import OBJECTS
from . import fit, outline

NEAR = 6  # px: an edge that close to a stroke's middle is the stroke's; the white rim around a sticker is 4 px wide
SHOWN = 6  # scenes in the picture
REAL = "the scenes themselves"
RAW = loop.SHIPPED.parent / "bench/sketch.json"


def agreement(drawing, picture):
    """The share of a drawing's lines (PIL L, black on white) that have an edge of the picture next to them, 0..1."""
    lines = skeletonize(np.asarray(drawing) < 128)
    edges = canny(np.asarray(picture.convert("L"), float) / 255, 1.5, 0.03, 0.1)
    return float((distance_transform_edt(~edges)[lines] <= NEAR).mean()) if edges.any() else 0.0


def gap(scene, picture):
    """px between where the judge sees the scene's objects and where they stand, the mean; the picture's half where it sees
    none of one."""
    seen, found = judge.load().read(autoencoder.pixels(picture)[None]), []
    for sticker in scene.stickers:
        i, middle = OBJECTS.index(sticker.name), np.array([sticker.x, sticker.y]) + sticker.full / 2
        there = float(seen["mass"][0][i]) >= judge.MINIMUM
        found.append(np.linalg.norm(seen["where"][0][i].numpy() * world.SIZE - middle) if there else world.SIZE / 2)
    return float(np.mean(found))


def pipeline(pipe):
    """The same model with the committed network for sketches, as diffusers has it."""
    found = StableDiffusionControlNetPipeline(**pipe.components, controlnet=fit.committed(pipe.unet).to(pipe.device))
    found.set_progress_bar_config(disable=True)
    return found


def drawn(pipe, scenes, steps, guidance, drawings=None):
    """A picture of each scene's caption, from the noise of its number, with its drawing where there are some."""
    found = []
    for i, scene in enumerate(scenes):
        told = {"image": 1 - autoencoder.pixels(drawings[i].convert("RGB"))[None].add(1).div(2)} if drawings else {}
        found.append(pipe(scene.caption, num_inference_steps=steps, guidance_scale=guidance, height=world.SIZE, width=world.SIZE,
                          latents=evaluate.noise(i), **told).images[0])
    return found


def in_one_step(pipe, scenes, drawings):
    """The same by the model's student, as the page draws it."""
    asked = [Request(scene.caption, seed=i, methods="full", sketch=given.sketch(given.png(drawing)))
             for i, (scene, drawing) in enumerate(zip(scenes, drawings))]
    return [run.generate(pipe, each, (sdxs.Knobs(),), 1).image for each in asked]


def told(scenes, drawings, pictures):
    """The figures of one way to draw: agreement, gap in px, and what the judge finds of what was asked for."""
    return {"agreement": round(mean(map(agreement, drawings, pictures)), 3), "gap": round(mean(map(gap, scenes, pictures)), 1),
            "objects": measures.recall(scenes, pictures)[0]["objects"]}


def main(count, steps, guidance):
    """Prints the figures for `count` held-out scenes of one or two objects, one JSON line last, which is kept as
    assets/bench/sketch.json; a picture of the first ones (sketch, with it, without it) goes to training/."""
    pipe, rng = models.load("stickers"), random.Random(30_000_059)
    scenes = [world.sample(rng, "heldout", rng.choice((1, 1, 2))) for _ in range(count)]
    drawings = [outline.draw(scene) for scene in scenes]
    ways = {"with the sketch": drawn(pipeline(pipe), scenes, steps, guidance, drawings),
            "without": drawn(pipe, scenes, steps, guidance), REAL: [world.render(scene) for scene in scenes]}
    if not sdxs.missing(chain.MODEL.folder):
        ways["in one step, with the sketch"] = in_one_step(pipe, scenes, drawings)
    answer = {"bench": "sketch", "environment": environment(), "weights": chain.digest(), "count": count, "steps": steps, "guidance": guidance}
    for name, pictures in ways.items():
        answer[name] = told(scenes, drawings, pictures)
        print(f"{name:28} {answer[name]}", flush=True)
    shown = {name: pictures[:SHOWN] for name, pictures in ways.items() if name != REAL}
    figure = views.followed(drawings[:SHOWN], shown, [scene.caption for scene in scenes[:SHOWN]])
    loop.WORK.mkdir(parents=True, exist_ok=True)
    (loop.WORK / "sketch-samples.png").write_bytes(views.png(figure))
    RAW.write_text(json.dumps(answer, indent=1) + "\n")
    print(json.dumps(answer))
