"""What the student's recipe gives: the teacher in many steps, in one, and the student after each stage, at equal seeds.

Pictures are kept in training/, one folder for each row, so that an interrupted evaluation goes on where it was.
"""

import json
from dataclasses import replace
from statistics import mean, median

import torch
from PIL import Image

from ... import cost, metrics, run, views
from ...methods import full
from ...request import Request
from .. import autoencoder, evaluate, loop, measures
from ..loop import DEVICE, checkpoint
from . import chain, decoder, export, network, stages

FULL, FEW = 50, 25  # steps of the teacher
SEEDS = 4  # pictures of one prompt, for diversity
SHOWN = 4  # prompts in the picture of rows
FAR = 500_000  # seeds of the pictures for diversity begin here


def rows(guide):
    """{name: (folder, pipeline, steps, guidance)}: the teacher, and the student after each stage that has run."""
    small, guidance = decoder.trained(), chain.MODEL.guidance
    whole = ready(evaluate.pipeline(guide, chain.decoder_teacher()))
    found = {f"Teacher, {steps} steps" if steps > 1 else "Teacher, 1 step": (f"teacher-{steps}", whole, steps, guidance)
             for steps in (FULL, FEW, 1)}
    names = {"distil": "Student, distilled only", "warmup": "Student, warm-up only", "score": "Student, full recipe"}
    for stage, name in names.items():
        if saved := checkpoint(chain.name(stage)):
            pipe = ready(export.pipeline(guide, chain.student(guide, stage), small))
            found[name] = f"{stage}-{saved['step']}", pipe, 1, 1.0
    return found


def ready(pipe):
    """On the training device, both networks in the layout that convolutions like: the rows are timed alike."""
    for part in (pipe.unet, pipe.vae):
        part.eval().to(DEVICE, memory_format=torch.channels_last)
    return pipe.to(DEVICE)


def drawn(row, texts, first=0):
    """Pictures of `texts`, from the noise of seeds first, first + 1, ...; those that are there are not drawn again."""
    tag, pipe, steps, guidance = row
    folder, found = loop.WORK / f"student-drawn-{chain.digest()[:8]}" / tag, []
    folder.mkdir(parents=True, exist_ok=True)
    for i, text in enumerate(texts, first):
        path = folder / f"{i}.png"
        if not path.exists():
            part = path.with_suffix(".part")
            evaluate.draw(pipe, [text], steps, guidance, side(pipe), seed=i)[0].save(part, "PNG")
            part.replace(path)
        found.append(Image.open(path).convert("RGB"))
    return found


def side(pipe):
    """px of the pictures that the pipeline was trained for."""
    return pipe.unet.config.sample_size * pipe.vae_scale_factor


def times(one, other, repeats):
    """Median seconds of the whole pipeline of two rows, measured by turns after a warm-up: [one's, other's]."""
    asked = Request("a cat on the beach", methods="full", size=side(one[1]))
    spent = ([], [])
    for i in range(repeats + 1):
        for (_, pipe, steps, guidance), seconds in zip((one, other), spent):
            seconds.append(run.generate(pipe, replace(asked, guidance=guidance), (full.Knobs(),), steps).seconds)
    return [median(seconds[1:]) for seconds in spent]


def work(row):
    """(parameters of U-Net and decoder, FLOP of one picture)."""
    _, pipe, steps, guidance = row
    asked = Request("a cat on the beach", methods="full", size=side(pipe), guidance=guidance)
    flops = cost.total(cost.flops(pipe, asked, (full.Knobs(),), steps))
    return network.parameters(pipe.unet) + network.parameters(pipe.vae.decoder), flops


def told(row, reference, scenes, count):
    """The figures of one row. scenes: of one object, then of two; reference: the teacher's pictures of them."""
    texts = [scene.caption for scene in scenes]
    pictures = drawn(row, texts)
    recall = measures.recall(scenes, pictures)[0]
    distances = [metrics.lpips_score(a, b)[0] for a, b in zip(reference, pictures)]
    spread = evaluate.prompts(max(2, count // 16), 60_000_011, None)
    groups = [drawn(row, [scene.caption] * SEEDS, FAR + SEEDS * i) for i, scene in enumerate(spread)]
    parameters, flops = work(row)
    return {"parameters": parameters, "gflop": round(flops / 1e9, 1), "steps": row[2], "objects": recall["objects"],
            "background": recall["background"], "lpips": round(mean(distances), 4), "diversity": round(measures.diversity(groups), 4)}


def main(count, repeats):
    """Prints a table of `count` held-out prompts with one object and as many with two, and one JSON line last; writes it and
    the figures to training/. NotYet before the small decoder was trained."""
    guide = chain.committed_teacher()
    ways = rows(guide)
    scenes = [scene for number in (1, 2) for scene in evaluate.prompts(count, objects=number)]
    reference = drawn(next(iter(ways.values())), [scene.caption for scene in scenes])
    answer = {}
    for name, row in ways.items():
        answer[name] = told(row, reference, scenes, count)
        print(f"{name:<26} {answer[name]}", flush=True)
    *_, last = ways.values()
    if last[2:] == (1, 1.0):  # a student: by turns with the teacher it replaces
        teacher, student = times(next(iter(ways.values())), last, repeats)
        answer["seconds"] = {"teacher": round(teacher, 4), "student": round(student, 4), "ratio": round(teacher / student, 1)}
    (loop.WORK / "student-evaluation.json").write_text(json.dumps(answer, indent=1) + "\n")
    figures(guide, ways, scenes)
    print(json.dumps(answer))


def figures(guide, ways, scenes):
    """training/student-*.png: the two U-Nets, the two decoders, and what each way draws of some prompts."""
    some = [*scenes[:SHOWN // 2], *scenes[len(scenes) // 2:][:SHOWN - SHOWN // 2]]
    places = [scenes.index(scene) for scene in some]
    pictures = {name: [Image.open(loop.WORK / f"student-drawn-{chain.digest()[:8]}" / row[0] / f"{i}.png") for i in places]
                for name, row in ways.items()}
    whole = next(iter(ways.values()))
    latents = whole[1].vae.encode(autoencoder.pixels(pictures[next(iter(ways))][0])[None].to(DEVICE)).latents
    pair = [run.pictures(ready(export.pipeline(guide, guide.unet, vae)), latents)[0] for vae in (whole[1].vae, decoder.trained())]
    found = {"networks": views.networks(stages.stages(guide.unet), stages.stages(network.small_unet(guide.unet))),
             "decoders": views.decoders(*pair), "rows": views.one_step(pictures, [scene.caption for scene in some])}
    for name, figure in found.items():
        (loop.WORK / f"student-{name}.png").write_bytes(views.png(figure))

