"""Stage 4a: where the shipped model falls short, to find out what keeps it from being better: beside scenes whose things
training showed together, beside what its autoencoder keeps of real scenes, object by object, and by timestep.
"""

import json
from collections import Counter

import torch

from .. import fitted, judge, models, run
from . import card, experiments, measures, world
from .autoencoder import pixels
from .evaluate import FOLDER, draw, encoded, prompts, sheet
from .loop import DEVICE, autocast
from .teacher import Teacher
from .words import OBJECTS

FILE = FOLDER / "diagnosis.json"
SPLITS = ("heldout", "seen")
TIMESTEPS = (20, 100, 200, 400, 600, 800, 950)


@torch.no_grad()
def decoded(pipe, scenes):
    """What the autoencoder leaves of real scenes (PIL)."""
    latents = (encoded(pipe.vae, pixels(world.render(scene))[None].to(DEVICE)) for scene in scenes)
    return [run.pictures(pipe, each * pipe.vae.config.scaling_factor)[0] for each in latents]


def by_object(scenes, pictures):
    """[{"name", "asked", "found": pictures, "read": {what stood in its place: pictures}}], the least found first."""
    asked, found, read = Counter(), Counter(), {name: Counter() for name in OBJECTS}
    for scene, picture in zip(scenes, pictures):
        wanted = [sticker.name for sticker in scene.stickers]
        names = measures.named(judge.load().read(pixels(picture)[None]), len(wanted))
        others = [name for name in names if name not in wanted] or ["nothing"]
        for name in wanted:
            asked[name] += 1
            if name in names:
                found[name] += 1
            else:
                read[name].update(others)
    rows = [{"name": name, "asked": asked[name], "found": found[name], "read": dict(read[name])} for name in asked]
    return sorted(rows, key=lambda row: (row["found"] / row["asked"], -row["asked"], row["name"]))


def main(count, steps, guidance):
    """Figures on `count` prompts of one object and as many of two, of each split: diagnosis.json, the missed pictures of the
    worst objects in weakest.webp, the model card. One JSON line last."""
    pipe, everything = models.load("stickers"), []
    told = {"weights": fitted.weights(models.MODELS["stickers"].folder), "prompts": count, "steps": steps, "guidance": guidance, "recall": {}}
    for split in SPLITS:
        told["recall"][split] = []
        for number in (1, 2):
            scenes = prompts(count, 90_000_049, number, split)
            with autocast():
                pictures = draw(pipe, [scene.caption for scene in scenes], steps, guidance)
            told["recall"][split].append(measures.recall(scenes, pictures)[0])
            everything += zip(scenes, pictures)
            print(f"{split}, {number}: {told['recall'][split][-1]}", flush=True)
    real = [prompts(count, 90_000_049, number) for number in (1, 2)]
    told["recall"]["decoded"] = [measures.recall(scenes, decoded(pipe, scenes))[0] for scenes in real]
    told["objects"] = by_object(*zip(*everything))
    model = Teacher()
    model.unet, model.text = pipe.unet, pipe.text_encoder
    told["losses"] = {split: experiments.losses(model, split, TIMESTEPS, count) for split in SPLITS}
    FILE.write_text(json.dumps(told, indent=1) + "\n")
    worst = {row["name"] for row in told["objects"][:card.WORST]}
    missed = [(scene, picture) for scene, picture in everything if worst & set(measures.recall([scene], [picture])[1])]
    sheet([picture for _, picture in missed[:32]], [scene.caption for scene, _ in missed[:32]]).save(FOLDER / "weakest.webp", quality=85)
    card.write()
    print(json.dumps(told))
