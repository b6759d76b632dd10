"""Stage 4: what the teacher draws, read by the judge, and contact sheets for people."""

import json
import random

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw

from .. import judge, models
from . import parts, world
from .autoencoder import pixels
from .judge import relation
from .words import OBJECTS, SCENERY

FOLDER = judge.FOLDER.parent


def pipeline(teacher, vae):
    """The diffusers pipeline of a teacher and an autoencoder."""
    pipe = StableDiffusionPipeline(
        vae=vae, text_encoder=teacher.text, tokenizer=teacher.tokenizer, unet=teacher.unet, scheduler=parts.scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def prompts(count, seed=30_000_001, objects=1):
    """Held-out scenes with a said background, as prompts to draw and read."""
    rng = random.Random(seed)
    return [world.sample(rng, "heldout", objects) for _ in range(count)]


def draw(pipe, texts, steps=50, guidance=3.0, size=256, batch=8, seed=0):
    """Pictures (PIL) of `texts`; picture i starts from the noise of seed + i."""
    pictures = []
    for start in range(0, len(texts), batch):
        chunk = texts[start:start + batch]
        latents = torch.cat([torch.randn(1, 4, size // 8, size // 8, generator=torch.Generator().manual_seed(seed + start + i))
                             for i in range(len(chunk))])
        pictures += pipe(chunk, num_inference_steps=steps, guidance_scale=guidance, height=size, width=size,
                         latents=latents).images
    return pictures


def recall(scenes, pictures, reader=None):
    """Shares in 0..1 of scenes whose objects (top n by the judge), background, relation (given both objects) and size
    word are found in the pictures, with the names of the objects that were missed."""
    reader = reader or judge.load()
    hits, missed = {"objects": [], "background": [], "relation": []}, []
    for scene, picture in zip(scenes, pictures):
        seen = reader.read(pixels(picture)[None])
        n = max(1, len(scene.stickers))
        top = seen["mass"][0].topk(n)
        names = {OBJECTS[i] for i, m in zip(top.indices.tolist(), top.values.tolist()) if m >= judge.MINIMUM}
        asked = [s.name for s in scene.stickers]
        hits["objects"].append(set(asked) <= names)
        missed += [name for name in asked if name not in names]
        hits["background"].append(SCENERY[int(seen["background"][0].argmax())] == scene.background)
        if len(asked) == 2 and hits["objects"][-1]:
            hits["relation"].append(relation(seen["where"][0], *asked) == scene.relation)
    return {k: round(sum(v) / len(v), 4) for k, v in hits.items() if v}, sorted(missed)


def sheet(pictures, captions, columns=8, side=160):
    """A contact sheet with its captions under the pictures."""
    rows = -(-len(pictures) // columns)
    image = Image.new("RGB", (columns * side, rows * (side + 26)), "white")
    pen = ImageDraw.Draw(image)
    for i, (picture, text) in enumerate(zip(pictures, captions)):
        x, y = i % columns * side, i // columns * (side + 26)
        image.paste(picture.resize((side, side), Image.LANCZOS), (x, y))
        cut = text.find(" ", 20)
        pen.text((x + 2, y + side + 1), text if cut < 0 else text[:cut] + "\n" + text[cut + 1:], fill="black", font_size=10)
    return image


def main(count, steps, guidance, objects=(1, 2)):
    """Figures of the shipped model on `count` held-out prompts with one object, as many with two, one JSON line last; and
    the contact sheet beside it."""
    pipe, figures = models.load("stickers"), {"prompts": count, "steps": steps, "guidance": guidance}
    for number in objects:
        scenes = prompts(count, objects=number)
        texts = [scene.caption for scene in scenes]
        pictures = draw(pipe, texts, steps, guidance)
        sheet(pictures[:32], texts).save(FOLDER / f"samples-{number}.webp", quality=85)
        figures[f"objects: {number}"], figures[f"missed of {number}"] = recall(scenes, pictures)
    print(json.dumps(figures))
