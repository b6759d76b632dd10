"""Stage 4b: what the shipped model does at other steps and guidance than its own: a table, and a curve of each.

Every cell is kept as soon as it is measured; the same command goes on with those that are missing.
"""

import json

from .. import fitted, models, views
from ..views import theme as t
from . import card, measures
from .card import GUIDANCE, STEPS
from .evaluate import FOLDER, draw, prompts
from .loop import autocast

MODEL = models.MODELS["stickers"]
FILE = FOLDER / "behaviour.json"
LINES = {"one": "object found, one asked", "two": "both found, two asked", "background": "background found"}


def known(count):
    """What was measured of these weights on `count` prompts."""
    told = json.loads(FILE.read_text()) if FILE.exists() else {}
    asked = {"weights": fitted.weights(MODEL.folder), "prompts": count}
    return told if asked.items() <= told.items() else asked | {"cells": []}


def cell(pipe, count, steps, guidance):
    """Shares in 0..1 of `count` held-out prompts with one object, and as many with two, whose objects and backgrounds are
    found: {"steps", "guidance", "one", "two", "background"}."""
    found = []
    for number in (1, 2):
        scenes = prompts(count, objects=number)
        with autocast():
            pictures = draw(pipe, [scene.caption for scene in scenes], steps, guidance)
        found.append(measures.recall(scenes, pictures)[0])
    one, two = found
    return {"steps": steps, "guidance": guidance, "one": one["objects"], "two": two["objects"],
            "background": round((one["background"] + two["background"]) / 2, 4)}


def main(count):
    """Measures what is missing and writes behaviour.json, behaviour.png and the model card. Prints one JSON line last."""
    told, pipe = known(count), models.load(MODEL.key)
    done = {(row["steps"], row["guidance"]) for row in told["cells"]}
    for steps, guidance in ((s, g) for s in STEPS for g in GUIDANCE if (s, g) not in done):
        told["cells"].append(cell(pipe, count, steps, guidance))
        FILE.write_text(json.dumps(told, indent=1) + "\n")
        print(f"behaviour: {told['cells'][-1]}", flush=True)
    FILE.with_suffix(".png").write_bytes(views.png(curves(told), dpi=110))
    card.write()
    print(json.dumps(told))


def curves(told):
    """Shares found against steps, at the model's own guidance, and against guidance, at its own steps: a Figure."""
    figure = t.blank(8, 3.2, t.LIGHT)
    own = {"steps": MODEL.steps, "guidance": MODEL.guidance}
    for axes, name, other in zip(figure.subplots(1, 2, sharey=True), own, reversed(own)):
        row = sorted((cell for cell in told["cells"] if cell[other] == own[other]), key=lambda cell: cell[name])
        t.plain_axes(axes, t.LIGHT)
        for (key, label), colour, mark in zip(LINES.items(), t.COLOURS, t.MARKS):
            axes.plot([cell[name] for cell in row], [100 * cell[key] for cell in row], color=colour, marker=mark, label=label)
        axes.set_title(f"{name.capitalize()}, at {other} {own[other]:g}", loc="left", color=t.LIGHT.ink, fontsize=10)
        axes.set_xticks([cell[name] for cell in row], [f"{cell[name]:g}" for cell in row])
        axes.set_ylim(0, 104)
    figure.axes[0].set_ylabel("% of the prompts", color=t.LIGHT.ink, fontsize=9)
    figure.axes[1].legend(frameon=False, fontsize=8, labelcolor=t.LIGHT.ink)
    return figure
