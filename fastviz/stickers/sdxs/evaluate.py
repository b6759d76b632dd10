"""What the student's recipe gives: the teacher in many steps, in one, and the student after each stage, at equal seeds.

Pictures are kept in training/, one folder for each row, so that an interrupted evaluation goes on where it was.
"""

import hashlib
import json
from statistics import mean, median

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from ... import cost, metrics, run, stages, views
from ...compare import environment
from ...methods import full
from ...methods.sdxs import path_of as beside
from ...request import Request
from .. import autoencoder, card, evaluate, loop, measures
from ..loop import DEVICE
from . import chain, decoder, export, network

FULL, FEW = 50, 25  # steps of the teacher
SEEDS = 4  # pictures of one prompt, for diversity
SPREAD = 24  # prompts for diversity
SHOWN = 4  # prompts in the picture of rows
EXPORTED = "-shipped"  # ends the folder of the row whose weights are the exported ones
NAMES = {"distil": "Student, distilled only", "warmup": "Student, warm-up only", "refine": "Student, refined", "score": "Student, full recipe"}
FIRST = {1: 0, 2: 100_000, None: 500_000}  # seeds of the pictures of one object, of two, and for diversity begin here
BARS = {"recall lost": 0.05, "speed": 25, "diversity kept": 0.7, "parameters kept": 0.4}  # the first and the last at most


def rows(guide):
    """{name: (folder, pipeline, steps, guidance)}: the teacher, and the student after each stage that has run; that of the stage that
    was exported with its weights as they are shipped, in half precision."""
    small, guidance = decoder.trained(), chain.MODEL.guidance
    whole = ready(evaluate.pipeline(guide, chain.own_autoencoder()))
    found = {teachers(steps): (f"teacher-{steps}", whole, steps, guidance) for steps in (FULL, FEW, 1)}
    for stage, name in NAMES.items():
        if saved := chain.checkpoint(stage):
            folder, there = beside(chain.MODEL.folder), shipped(stage)
            pipe = StableDiffusionPipeline.from_pretrained(folder) if there else export.pipeline(guide, chain.student(guide, stage), small, stage)
            pipe.set_progress_bar_config(disable=True)
            steps = f"{saved['step']}-{chain.checkpoint('decoder')['step']}"
            found[name] = f"{stage}-{steps}{EXPORTED if there else ''}", ready(pipe), 1, 1.0
    return found


def teachers(steps):
    return f"Teacher, {steps} step{'s' * (steps > 1)}"


def order():
    return [*map(teachers, (FULL, FEW, 1)), *NAMES.values()]


def measured(weights, prompts):
    """Rows that were kept of the same weights and prompts: of stages whose checkpoints lay on another machine."""
    kept = card.found(card.STUDENTS) or {}
    return kept["rows"] if (kept.get("weights"), kept.get("prompts")) == (weights, prompts) else {}


def shipped(stage):
    """Whether the student beside the model was exported of this stage, of the checkpoints that are here."""
    (_, told), own = chain.committed((chain.SHIPPED,)), export.about(stage)
    return all(told.get(key) == own[key] for key in ("teacher", "stage", "stages"))


def ready(pipe):
    """On the training device, both networks in the layout that convolutions like: the rows are timed alike."""
    for part in (pipe.unet, pipe.vae):
        part.eval().to(DEVICE, memory_format=torch.channels_last)
    return pipe.to(DEVICE)


def path_of(row, text, seed):
    name = hashlib.sha256(f"{seed} {text}".encode()).hexdigest()[:16]
    return loop.WORK / f"student-drawn-{chain.digest()[:8]}" / row[0] / f"{name}.png"


def drawn(row, texts, first):
    """Pictures of `texts`, from the noise of seeds first, first + 1, ...; those that are there are not drawn again."""
    _, pipe, steps, guidance = row
    found = []
    for seed, text in enumerate(texts, first):
        path = path_of(row, text, seed)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            evaluate.draw(pipe, [text], steps, guidance, side(pipe), seed=seed)[0].save(part, "PNG")
            part.replace(path)
        found.append(Image.open(path).convert("RGB"))
    return found


def side(pipe):
    """px of the pictures that the pipeline was trained for."""
    return pipe.unet.config.sample_size * pipe.vae_scale_factor


def times(rows, repeats):
    """{name: median seconds of the whole pipeline}, measured by turns after a warm-up."""
    spent = {name: [] for name in rows}
    for _ in range(repeats + 1):
        for name, (_, pipe, steps, guidance) in rows.items():
            asked = Request("a cat on the beach", methods="full", size=side(pipe), guidance=guidance)
            spent[name].append(run.generate(pipe, asked, (full.Knobs(),), steps).seconds)
    return {name: median(seconds[1:]) for name, seconds in spent.items()}


def work(row):
    """({"unet", "decoder"}: parameters, FLOP of one picture)."""
    _, pipe, steps, guidance = row
    asked = Request("a cat on the beach", methods="full", size=side(pipe), guidance=guidance)
    flops = cost.total(cost.flops(pipe, asked, (full.Knobs(),), steps))
    return {"unet": network.parameters(pipe.unet), "decoder": network.parameters(pipe.vae.decoder)}, flops


def told(row, reference, scenes):
    """The figures of one row. scenes: {number of objects: scenes}; reference: the row that is compared to."""
    found = {}
    for number, name in ((1, "one"), (2, "two")):
        texts = [scene.caption for scene in scenes[number]]
        pictures, theirs = (drawn(each, texts, FIRST[number]) for each in (row, reference))
        recall = measures.recall(scenes[number], pictures)[0]
        distances = [metrics.lpips_score(a, b)[0] for a, b in zip(theirs, pictures)]
        found |= {name: recall["objects"], f"background, {name}": recall["background"], f"lpips, {name}": round(mean(distances), 4)}
    spread = evaluate.prompts(SPREAD, 60_000_011, None)
    groups = [drawn(row, [scene.caption] * SEEDS, FIRST[None] + SEEDS * i) for i, scene in enumerate(spread)]
    parameters, flops = work(row)
    return {"parameters": parameters, "shipped": row[0].endswith(EXPORTED), "gflop": round(flops / 1e9, 1), "steps": row[2], **found,
            "diversity": round(measures.diversity(groups), 4)}


def accepted(teacher, student, ratio):
    """{what: (value, bar, whether it is reached)} of the student; parameters are the U-Net's. ratio: how many times as fast its whole
    pipeline is."""
    lost = mean(teacher[name] - student[name] for name in ("one", "two"))
    values = dict(zip(BARS, (lost, ratio, student["diversity"] / teacher["diversity"],
                             student["parameters"]["unet"] / teacher["parameters"]["unet"])))
    return {name: (round(value, 4), BARS[name], value <= BARS[name] if name in ("recall lost", "parameters kept") else value >= BARS[name])
            for name, value in values.items()}


def main(count, repeats):
    """Prints a table of `count` held-out prompts with one object and as many with two, what the student (the exported one, else
    the last) has to reach, and one JSON line last, which is kept as assets/bench/student.json, as are rows of it whose weights are
    not here, and written into the model card; figures go to training/, that of the rows beside the card, too. NotYet before the small
    decoder was trained."""
    guide = chain.committed_teacher()
    ways = rows(guide)
    scenes = {number: evaluate.prompts(count, objects=number) for number in (1, 2)}
    first, *_, last = ways
    last = next((name for name, row in ways.items() if row[0].endswith(EXPORTED)), last)
    answer = {"bench": "student", "environment": environment(), "weights": chain.digest(), "prompts": 2 * count, "seeds": SEEDS, "spread": SPREAD, "rows": {}}
    gone, seconds = measured(answer["weights"], answer["prompts"]), times(ways, repeats)
    for name in order():
        if name in ways or name in gone:
            answer["rows"][name] = {**told(ways[name], ways[first], scenes), "seconds": round(seconds[name], 4)} if name in ways else gone[name]
            print(f"{name:<26} {answer['rows'][name]}", flush=True)
    if ways[last][2:] == (1, 1.0):  # a student
        teacher, student = seconds[first], seconds[last]
        answer["seconds"] = {"teacher": round(teacher, 4), "student": round(student, 4), "ratio": round(teacher / student, 1)}
        both = answer["rows"][first], answer["rows"][last]
        answer["accepted"] = accepted(*both, teacher / student)
        for name, (value, bar, good) in answer["accepted"].items():
            print(f"{name}: {value} ({'' if good else 'not '}reached: {bar})")
        whole, kept = (sum(row["parameters"].values()) for row in both)
        print(f"parameters kept, with the decoder: {kept / whole:.4f}")
    figures(guide, ways, scenes)
    card.STUDENTS.parent.mkdir(parents=True, exist_ok=True)
    card.STUDENTS.write_text(json.dumps(answer, indent=1) + "\n")
    card.write()
    print(json.dumps(answer))


def figures(guide, ways, scenes):
    """training/student-*.png: the two U-Nets, the two decoders, and what each way draws of some prompts."""
    some = [(scene.caption, FIRST[number] + i) for number in (1, 2) for i, scene in enumerate(scenes[number][:SHOWN // 2])]
    pictures = {name: [drawn(row, [text], seed)[0] for text, seed in some] for name, row in ways.items()}
    whole = next(iter(ways.values()))
    latents = whole[1].vae.encode(autoencoder.pixels(pictures[next(iter(ways))][0])[None].to(DEVICE)).latents
    pair = [run.pictures(ready(export.pipeline(guide, guide.unet, vae)), latents)[0] for vae in (whole[1].vae, decoder.trained())]
    found = {"networks": views.networks(stages.stages(guide.unet), stages.stages(network.small_unet(guide.unet))),
             "decoders": views.decoders(*pair), "rows": views.one_step(pictures, [text for text, _ in some])}
    for name, figure in found.items():
        (loop.WORK / f"student-{name}.png").write_bytes(views.png(figure))
    Image.open(loop.WORK / "student-rows.png").convert("RGB").save(loop.SHIPPED / "student.webp", quality=85, method=6)
