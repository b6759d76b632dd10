"""Stage 4: what the teacher draws, read by the judge, and contact sheets for people."""

import json
import random
import textwrap
from statistics import median

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw

from .. import judge, models, run
from ..methods import full
from ..request import Request
from . import autoencoder, card, measures, parts, world
from .loop import DEVICE, PRECISION, autocast
from .teacher import ONWARD

FOLDER = judge.FOLDER.parent
SIX = ["a cat on the beach", "a big pizza under the night sky", "a small robot in a meadow", "a house and a tree in the snow",
       "a rocket above a penguin in the desert", "an octopus in the ocean"]


def pipeline(teacher, vae):
    """The diffusers pipeline of a teacher and an autoencoder."""
    pipe = StableDiffusionPipeline(
        vae=vae, text_encoder=teacher.text, tokenizer=teacher.tokenizer, unet=teacher.unet, scheduler=parts.scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def prompts(count, seed=30_000_001, objects=1, split="heldout"):
    """Scenes with a said background, as prompts to draw and read. split: of world.sample, but train."""
    rng = random.Random(seed)
    return [world.sample(rng, split, objects) for _ in range(count)]


def noise(seed, side=32):
    """The latents (1, 4, side, side) that a picture starts from."""
    return torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(seed))


def draw(pipe, texts, steps=50, guidance=3.0, size=256, batch=8, seed=0):
    """Pictures (PIL) of `texts`; picture i starts from the noise of seed + i."""
    pictures = []
    for start in range(0, len(texts), batch):
        chunk = texts[start:start + batch]
        latents = torch.cat([noise(seed + start + i, size // 8) for i in range(len(chunk))]).to(pipe.unet.dtype)
        pictures += pipe(chunk, num_inference_steps=steps, guidance_scale=guidance, height=size, width=size,
                         latents=latents).images
    return pictures


def sheet(pictures, captions, columns=8, side=160):
    """A contact sheet with its captions under the pictures."""
    lines = [textwrap.wrap(text, side // 6) for text in captions]
    rows, below = -(-len(pictures) // columns), 2 + 12 * max(map(len, lines), default=0)
    image = Image.new("RGB", (columns * side, rows * (side + below)), "white")
    pen = ImageDraw.Draw(image)
    for i, (picture, text) in enumerate(zip(pictures, lines)):
        x, y = i % columns * side, i // columns * (side + below)
        image.paste(picture.resize((side, side), Image.LANCZOS), (x, y))
        pen.text((x + 2, y + side + 1), "\n".join(text), fill="black", font_size=10, spacing=2)
    return image


def drawn(pipe):
    """What the model draws of SIX prompts from fixed noise, side by side: a test compares it with what it drew when it was
    evaluated."""
    strip = Image.new("RGB", (6 * 256, 256))
    for i, picture in enumerate(draw(pipe, SIX, steps=10, batch=1)):
        strip.paste(picture, (256 * i, 0))
    return strip


def spread(pipe, count, seeds=4, **options):
    """{"drawn", "real"}: diversity of `seeds` pictures for each of `count` prompts, and of as many scenes that the same
    captions describe."""
    rng, scenes = random.Random(60_000_011), prompts(count, 60_000_011, None)
    with autocast():
        drawn = [draw(pipe, [scene.caption] * seeds, **options) for scene in scenes]
    real = [[world.render(world.again(rng, scene)) for _ in range(seeds)] for scene in scenes]
    return {"drawn": round(measures.diversity(drawn), 4), "real": round(measures.diversity(real), 4)}


def distances(pictures):
    """{"drawn", "real"}: Frechet distance in the judge's features from real held-out scenes to `pictures`, and to as many
    other real ones."""
    real = [measures.features([world.render(scene) for scene in prompts(len(pictures), seed, None)])
            for seed in (70_000_027, 80_000_023)]
    return {"drawn": round(measures.frechet(real[0], measures.features(pictures)), 2), "real": round(measures.frechet(*real), 2)}


def main(count, steps, guidance):
    """Figures of the shipped model on `count` held-out prompts with one object, as many with two: one JSON line last, also
    in evaluation.json; contact sheets and the model card beside it. What the judge reads is drawn in what training computes in."""
    pipe, everything = models.load("stickers"), []
    told = {"prompts": count, "steps": steps, "guidance": guidance, "precision": str(PRECISION).removeprefix("torch.")}
    for number in (1, 2):
        scenes = prompts(count, objects=number)
        texts = [scene.caption for scene in scenes]
        with autocast():
            pictures = draw(pipe, texts, steps, guidance)
        sheet(pictures[:32], texts).save(FOLDER / f"samples-{number}.webp", quality=85)
        told[f"objects: {number}"], told[f"missed of {number}"] = measures.recall(scenes, pictures)
        print(f"{number}: {told[f'objects: {number}']}, missed {', '.join(told[f'missed of {number}'])}", flush=True)
        everything += pictures
    drawn(pipe).save(FOLDER / "drawn.webp", lossless=True)
    told["frechet"] = distances(everything)
    told["diversity"] = spread(pipe, max(2, count // 16), steps=steps, guidance=guidance)
    told["psnr"] = {name: autoencoder.psnr(lambda x: encoded(vae, x), lambda z: vae.decode(z).sample.float())
                    for name, vae in [("model", pipe.vae)] + [("tiny", autoencoder.trained().to(DEVICE))] * (FOLDER / "tiny").is_dir()}
    told["megabytes"] = round(sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file() and not path.relative_to(FOLDER).as_posix().startswith(ONWARD)) / 2**20, 1)
    told["parameters"] = sum(p.numel() for part in (pipe.unet, pipe.text_encoder) for p in part.parameters())
    told["seconds"] = seconds(pipe)
    (FOLDER / "evaluation.json").write_text(json.dumps(told, indent=1) + "\n")
    card.write()
    print(table(bars(told)))
    print(json.dumps(told))


def seconds(pipe, repeats=3):
    """Median seconds of 50 guided steps, from prompt to picture, after a run that warms up."""
    asked = Request("a cat on the beach", methods="full")
    _, *counted = [run.generate(pipe, asked, (full.Knobs(),), 50).seconds for _ in range(repeats + 1)]
    return round(median(counted), 2)


def bars(told):
    """[(figure, value or None, bar, whether it is reached)] of an evaluation, the judge's own figures first."""
    judge, one, two = (json.loads((FOLDER / "judge/config.json").read_text())["heldout"]["clean"], told["objects: 1"], told["objects: 2"])
    small, diverse = told["psnr"].get("tiny", told["psnr"]["model"]), told["diversity"]["drawn"] / told["diversity"]["real"]
    least = [("judge: both of two objects", judge["pair"], 0.98), ("judge: background", judge["background"], 0.99),
             ("judge: relation", judge["relation"], 0.95), ("one object", one["objects"], 0.95), ("two objects", two["objects"], 0.90),
             ("background", (one["background"] + two["background"]) / 2, 0.97), ("relation", two.get("relation"), 0.85),
             ("size words, one object", one.get("size"), 0.90), ("size words, two objects", two.get("size"), 0.90),
             ("PSNR of AutoencoderKL, dB", told["psnr"]["model"] if "tiny" in told["psnr"] else None, 32),
             ("PSNR of the tiny decoder, dB", small, 30), ("diversity of that of real scenes", round(diverse, 4), 0.8)]
    most = [("MiB on disk", told["megabytes"], 50), ("s for 50 guided steps", told.get("seconds"), 6)]
    return ([(name, value, bar, value is not None and value >= bar) for name, value, bar in least]
            + [(name, value, bar, value is not None and value <= bar) for name, value, bar in most])


def table(found):
    """Bars as text."""
    return "\n".join(f"{name:<34}{'-' if value is None else f'{value:g}':>10}  bar {bar:g}: {'reached' if good else 'not reached'}"
                     for name, value, bar, good in found)


def encoded(vae, pictures):
    """Latents of either kind of autoencoder."""
    out = vae.encode(pictures.to(vae.dtype))
    return out.latents if hasattr(out, "latents") else out.latent_dist.mean
