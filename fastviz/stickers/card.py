"""The model card, assets/stickers/README.md: written from the files that training and evaluation leave, never by hand."""

import json

from .. import fitted
from ..models import MODELS
from .loop import SHIPPED
from .words import BACKGROUNDS, OBJECTS, RELATIONS

STUDENTS = SHIPPED.parent / "bench/student.json"  # what evaluate-student measured
STEPS, GUIDANCE = (10, 20, 30, 50, 100), (1.0, 3.0, 5.0, 7.5)  # of the table of behaviour
WORST = 10  # objects that the diagnosis tells and shows

TEXT = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---

# stickers

A latent diffusion model for captioned sticker scenes of {size} x {size} px: {millions:.1f}M parameters in U-Net and text
encoder, {megabytes} MiB with its judge and all that is fitted to it. It exists to show and to test how diffusion models are made fast,
on any computer, without a download. It is not a model for making art.

```python
from diffusers import StableDiffusionPipeline

pipe = StableDiffusionPipeline.from_pretrained("assets/stickers/model")
picture = pipe("a cat and a pizza on the beach", num_inference_steps=50, guidance_scale=3.0).images[0]
```

## What it was taught

Scenes that `fastviz/stickers/world.py` paints without end from a seed: one of {backgrounds} backgrounds, and up to two of
{objects} stickers in three sizes. Nothing else: no photographs, no people, no text.

- Objects: {names}.
- Backgrounds: {places}.
- Sizes: "small", "big", and no word for the one between. Relations: {relations}.
- Grammar: "a cat", "a big cat", "a cat on the left", "a cat and a pizza", "a cat to the left of a pizza", with a background
  before or after, such as "on the beach". Words outside this vocabulary fall into letters, which mean nothing to the model.

A fifth of the (object, background) pairs and a third of the (object, object, background) triples never occur in training.
The prompts of the figures below come from those.

## Training

{hours}. U-Net and text encoder ("teacher"): {steps} steps of 24 windows of 128 px or 8 whole scenes, noise prediction on Stable
Diffusion's betas, minimum-SNR weights raised where noise is high, Muon and AdamW; the words for sides were learnt last, from very noisy scenes whose
captions tell them. The log is in `training.json`. The same commands train it further:
`python -m fastviz.stickers teacher --minutes 60 --scenes 0.85 --layout 0.3`, then `rebuild`.

## Figures

Printed by `python -m fastviz.stickers evaluate --count {prompts}`: {prompts} held-out prompts with one object and as many
with two, DDIM, {sampling} steps, guidance {guidance}, {precision}. The judge that reads the pictures is in no training loss.

| | one object | two objects |
|---|---|---|
| all objects found | {one[objects]} | {two[objects]} |
| background found | {one[background]} | {two[background]} |
| size word true, given the object | {one[size]} | {two[size]} |
| relation true where it is said, given both objects | | {two[relation]} |

| | drawn | real scenes |
|---|---|---|
| Frechet distance in the judge's features to {double} real scenes | {frechet[drawn]} | {frechet[real]} |
| diversity: mean LPIPS (stickers backbone) between pictures of one prompt | {diversity[drawn]} | {diversity[real]} |

Autoencoder on held-out scenes: {psnr} dB PSNR{small}. The judge itself, on 1000 held-out real scenes: one object
{judge[object]:.1%}, both of two {judge[pair]:.1%}, background {judge[background]:.1%}, relation {judge[relation]:.1%}, an
object seen where there is none {judge[false]:.1%}.

{diagnosis}{behaviour}{student}{tried}## Limits

{limits}

## Licences

Weights and code: Apache-2.0. The stickers are pictures of Noto Color Emoji (Apache-2.0; font SIL OFL-1.1).
"""

DIAGNOSIS = """### Where it falls short

{prompts} prompts with one object and as many with two in each column, {steps} steps, guidance {guidance}
(`python -m fastviz.stickers diagnose --count {prompts} --steps {steps}`). "Seen" prompts name things that training showed together, other
pictures of them; "decoded" are the held-out scenes themselves after the autoencoder: what it allows at best.

| | held-out | seen | decoded |
|---|---|---|---|
{rows}

| mean square error of the noise estimate, {scenes} scenes | {head} |
|---|{rule}
{losses}

The {worst_of} objects that are found least, of the pictures of the first two columns, and what stood in their place: {worst}.

![Pictures of these in which an object was missed](weakest.webp)

"""

BEHAVIOUR = """### At other steps and guidance

All objects found, of {prompts} held-out prompts with one object / {prompts} with two
(`python -m fastviz.stickers behaviour --count {prompts}`):

| | {head} |
|---|{rule}
{rows}

![The same as curves](behaviour.png)

"""


STUDENT = """## One-step student

`sdxs/` draws in one step and without guidance, with {kept:.0%} of the U-Net's parameters, trained after SDXS (arXiv 2403.16627) by the stages
from `distil` to `score`. {prompts} held-out prompts, half with one object and half with two, equal noise in every row, diversity
over {seeds} pictures of each of {spread}, printed by `python -m fastviz.stickers evaluate-student --count {half}`:

| | steps | s | U-Net, million parameters | decoder, million parameters | GFLOP | object found, one asked | both found, two asked | background | LPIPS to the first row | diversity |
|---|---|---|---|---|---|---|---|---|---|---|
{rows}

{shipped} Seconds are from the prompt to the picture, medians of runs by turns ({device}); the teacher's {steps} steps take {seconds[ratio]:g} times as
long as the student's one. Asked of it: {bars}.

![What each draws of the same prompts and noise](student.webp)

"""

TRIED = """## What else was tried

A U-Net and text encoder from random weights, {minutes:g} minutes of training for each row (processor time; {device}, threads: {threads}), one thing changed at a
time (`python -m fastviz.stickers experiments --minutes {minutes:g} --threads {threads}`). Loss is the mean square error of the noise estimate on {scenes} held-out
scenes, in % of the first row's: lower is better. The last column tells how much worse that gets when the caption names another
object, 1 being all there is. The second row is the first with another seed: what differs by as much is chance. So short a training
tells what learns fast, not what ends best.

{table}

"""


def read(name):
    return json.loads((SHIPPED / name).read_text())


def found(path):
    """What a JSON file holds, None where there is none."""
    return json.loads(path.read_text()) if path.exists() else None


def limits(told):
    """What the figures say against the model, in words."""
    two, worst = told["objects: 2"], [name for number in (1, 2) for name in told[f"missed of {number}"]]
    often = sorted({name for name in worst if worst.count(name) > 1}, key=lambda name: (-worst.count(name), name))
    lines = [f"Of {told['prompts']} prompts with two objects, {1 - two['objects']:.0%} lack at least one of them: the two fuse, or one is drawn twice."]
    if (follows := two.get("relation", 1)) < 0.85:
        lines.append(f"Where the caption tells how two stand, {follows:.0%} of the pictures with both follow it.")
    if often:
        lines.append(f"Missed more than once: {', '.join(often)}.")
    return "\n".join(lines + ["Fine detail is soft. Sizes other than 256 px are for timing: it was never trained on them."])


def percent(share):
    return "-" if share is None else f"{share:.1%}"


def percents(recall):
    """Every share of measures.recall in words: few prompts may tell no size or relation."""
    return {name: percent(recall.get(name)) for name in ("objects", "background", "size", "relation")}


def often(counts):
    """{name: times} in words, the most frequent first."""
    return ", ".join(name if times == 1 else f"{name} {times} times" for name, times in sorted(counts.items(), key=lambda pair: -pair[1]))


def diagnosis(told):
    """The tables of what keeps the model from being better; "" where it was not asked of these weights."""
    if not told or told["weights"] != fitted.weights(MODELS["stickers"].folder):
        return ""
    kinds = (("object found, one asked", 0, "objects"), ("both found, two asked", 1, "objects"), ("size word true, one", 0, "size"),
             ("size word true, two", 1, "size"), ("relation true, given both", 1, "relation"))
    columns = [told["recall"][split] for split in ("heldout", "seen", "decoded")]
    rows = [f"| {name} | {' | '.join(percent(column[number].get(key)) for column in columns)} |" for name, number, key in kinds]
    losses = [f"| {name} | {' | '.join(f'{value:.4f}' for value in told['losses'][split].values())} |" for name, split in (("held-out", "heldout"), ("seen", "seen"))]
    worst = [f"{row['name']} {row['found']} of {row['asked']} ({often(row['read'])})" for row in told["objects"][:WORST] if row["read"]]
    timesteps = [f"t = {t}" for t in told["losses"]["seen"]]
    return DIAGNOSIS.format(**{**told, "losses": "\n".join(losses)}, rows="\n".join(rows), scenes=told["prompts"], head=" | ".join(timesteps),
                            rule="---|" * len(timesteps), worst="; ".join(worst), worst_of=WORST)


def behaviour(told):
    """The table of other steps and guidance, objects found of prompts with one / two; "" before all of it was measured of these
    weights."""
    if not told or len(told["cells"]) < len(STEPS) * len(GUIDANCE) or told["weights"] != fitted.weights(MODELS["stickers"].folder):
        return ""
    steps, guidance = (sorted({cell[name] for cell in told["cells"]}) for name in ("steps", "guidance"))
    cells = {(cell["steps"], cell["guidance"]): f"{cell['one']:.0%} / {cell['two']:.0%}" for cell in told["cells"]}
    lines = [f"| guidance {g:g} | {' | '.join(cells[s, g] for s in steps)} |" for g in guidance]
    return BEHAVIOUR.format(head=" | ".join(f"{s} steps" for s in steps), rule="---|" * len(steps), rows="\n".join(lines), **told)


def student(told):
    """The table and the picture of the one-step student; "" where it was not evaluated with these weights and a student."""
    if not told or "seconds" not in told or told["weights"] != fitted.weights(MODELS["stickers"].folder):
        return ""
    (_, first), *_ = told["rows"].items()
    lines = [f"| {name} | {row['steps']} | {row['seconds']:.3f} | {row['parameters']['unet'] / 1e6:.2f} | {row['parameters']['decoder'] / 1e6:.2f} "
             f"| {row['gflop']:g} | {row['one']:.1%} | {row['two']:.1%} | {(row['background, one'] + row['background, two']) / 2:.1%} "
             f"| {(row['lpips, one'] + row['lpips, two']) / 2:.2f} | {row['diversity']:.2f} |" for name, row in told["rows"].items()]
    shipped = [name for name, row in told["rows"].items() if row["shipped"]]
    bars = [f"{name} {value:g}, bar {bar:g}: {'' if good else 'not '}reached" for name, (value, bar, good) in told["accepted"].items()]
    return STUDENT.format(kept=told["accepted"]["parameters kept"][0], prompts=told["prompts"], half=told["prompts"] // 2, rows="\n".join(lines),
                          seeds=told["seeds"], spread=told["spread"], steps=first["steps"], seconds=told["seconds"], device=told["environment"]["device"],
                          shipped=f'Shipped is "{shipped[0]}".' if shipped else "Of these, none is shipped.", bars="; ".join(bars))


def table(rows):
    """Rows of experiments.json as Markdown: every loss as a change in % of the first row's."""
    base = rows[0]["losses"]
    lines = [f"| | steps | {' | '.join(f'loss, t = {t}' for t in base)} | heeds the object |", "|---" * (len(base) + 3) + "|"]
    for row in rows:
        told = [f"{row['losses'][t]:.4f}" if row is rows[0] else f"{100 * (row['losses'][t] / base[t] - 1):+.1f} %" for t in base]
        lines.append(f"| {row['name']} | {row['steps']} | {' | '.join(told)} | {row['heeded']:.2f} |")
    return "\n".join(lines)


def tried(told):
    """The table of experiments; "" before all were made."""
    return TRIED.format(**told, table=table(told["rows"])) if told and len(told["rows"]) == told["of"] else ""


def write(size=256):
    """Writes the card."""
    told, training, judge = read("evaluation.json"), read("training.json"), read("judge/config.json")
    hours = "; ".join(f"{name}: {stage['hours']:.1f} h on {stage['device']}" for name, stage in training["stages"].items())
    values = dict(
        size=size, precision=told.get("precision", "float32"), millions=told["parameters"] / 1e6, diagnosis=diagnosis(found(SHIPPED / "diagnosis.json")), behaviour=behaviour(found(SHIPPED / "behaviour.json")),
        student=student(found(STUDENTS)), tried=tried(found(SHIPPED / "experiments.json")), backgrounds=len(BACKGROUNDS), objects=len(OBJECTS), names=", ".join(OBJECTS),
        places=", ".join(BACKGROUNDS), relations=", ".join(RELATIONS), steps=training["step"], sampling=told["steps"],
        hours=hours, one=percents(told["objects: 1"]), two=percents(told["objects: 2"]), double=2 * told["prompts"],
        judge=judge["heldout"]["clean"], limits=limits(told), psnr=told["psnr"]["model"],
        small=f", {told['psnr']['tiny']} dB with the small decoder" if "tiny" in told["psnr"] else "")
    (SHIPPED / "README.md").write_text(TEXT.format(**{**told, **values}))
