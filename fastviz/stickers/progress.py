"""Stage 3c: how far the teacher has come. What it draws now is read by the judge and entered into learning.json, beside the
loss of its whole training; learning.png shows both, and how far the recall reaches if it goes on as it does.

The line is a logistic function of the logarithm of the steps, by least squares through all milestones: an extrapolation, and
no promise.
"""

import json
import math

import numpy as np

from .. import views
from ..views import theme as t
from . import autoencoder, measures, teacher
from .evaluate import FOLDER, draw, pipeline, prompts, sheet
from .loop import WORK, autocast

FILE = FOLDER / "learning.json"
BARS = {"one": 0.95, "two": 0.90}  # of the recall that training is to reach
NAMES = {"one": "one object asked, found", "two": "two asked, both found"}
FAR = 20  # logarithm of a number of steps that nobody will reach
WINDOW = 15  # reports of the log, of a minute or two each, that a point of the drawn loss is the median of


def milestone(count, steps, guidance, network="small"):
    """({"step", "hours", "network", "prompts", "sampling", "one", "two", "background"}, shares in 0..1, the training's log) of what the
    teacher draws now: the moving average of its checkpoint, `count` held-out prompts with one object and as many with two. Contact sheets lie in
    training/."""
    model, card = teacher.trained(network)
    pipe = pipeline(model, autoencoder.trained_reference() or autoencoder.trained())
    told = {"step": card["step"], "hours": round(card["hours"], 2), "network": network, "prompts": count, "sampling": steps}
    WORK.mkdir(exist_ok=True)
    backgrounds = []
    for number, name in enumerate(NAMES, 1):
        scenes = prompts(count, objects=number)
        with autocast():
            pictures = draw(pipe, [scene.caption for scene in scenes], steps, guidance)
        sheet(pictures, [scene.caption for scene in scenes]).save(WORK / f"milestone-{card['step']}-{number}.webp", quality=85)
        found = measures.recall(scenes, pictures)[0]
        told[name] = found["objects"]
        backgrounds.append(found["background"])
    return {**told, "background": round(sum(backgrounds) / 2, 4)}, card["log"]


def logit(share, count):
    """Of a share that was counted on `count`, kept finite at 0 and 1 by half a count."""
    share = min(max(share, 0.5 / count), 1 - 0.5 / count)
    return math.log(share / (1 - share))


def line(found, name):
    """(slope, offset) of logit(recall) over log(step); None of fewer than three milestones."""
    if len(found) < 3:
        return None
    x, y = [math.log(each["step"]) for each in found], [logit(each[name], each["prompts"]) for each in found]
    return tuple(float(value) for value in np.polyfit(x, y, 1))


def reached(found, name):
    """The step at which the line reaches the bar; None without a rising line."""
    fitted, bar = line(found, name), BARS[name]
    if fitted is None or fitted[0] <= 0:
        return None
    steps = (math.log(bar / (1 - bar)) - fitted[1]) / fitted[0]  # their logarithm
    return round(math.exp(steps)) if steps < FAR else None


def main(count, steps, guidance, network="small"):
    """network: a key of parts.SIZES. Enters a milestone, draws the curves and prints one JSON line."""
    told, log = milestone(count, steps, guidance, network)
    before = json.loads(FILE.read_text()) if FILE.exists() else []
    others = [each for each in before if (each["network"], each["step"]) != (network, told["step"])]
    every = sorted([*others, told], key=lambda each: (each["network"], each["step"]))
    FILE.write_text("[\n " + ",\n ".join(map(json.dumps, every)) + "\n]\n")
    found = [each for each in every if each["network"] == network]
    FILE.with_suffix(".png").write_bytes(views.png(curves(found, log), dpi=110))
    print(json.dumps({**told, "bars at step": {name: reached(found, name) for name in NAMES}}))


def curves(found, log):
    """The loss over the steps, and the recall with its extrapolation to twice the steps: a Figure."""
    figure = t.blank(8, 3.2, t.LIGHT)
    losses, recalls = figure.subplots(1, 2)
    for axes, title in ((losses, "Loss, median of some minutes"), (recalls, "% of the prompts")):
        t.plain_axes(axes, t.LIGHT)
        axes.set_xlabel("Steps", color=t.LIGHT.ink, fontsize=9)
        axes.set_title(title, loc="left", color=t.LIGHT.ink, fontsize=10)
    steps, values = zip(*((row["step"], row["loss"]) for row in log if "loss" in row))
    windows = [slice(max(0, i - WINDOW), i + WINDOW + 1) for i in range(0, len(steps), WINDOW)]
    losses.plot([np.median(steps[w]) for w in windows], [np.median(values[w]) for w in windows], color=t.COLOURS[0])
    losses.set_yscale("log")
    losses.tick_params(which="minor", colors=t.LIGHT.faint, labelsize=8)
    far = np.geomspace(found[0]["step"], 2 * found[-1]["step"], 60)
    for (name, label), colour, mark in zip(NAMES.items(), t.COLOURS, t.MARKS):
        recalls.plot([each["step"] for each in found], [100 * each[name] for each in found], color=colour, marker=mark, linestyle="", label=label)
        recalls.axhline(100 * BARS[name], color=colour, linewidth=0.8, linestyle=":")
        if fitted := line(found, name):
            recalls.plot(far, 100 / (1 + np.exp(-fitted[0] * np.log(far) - fitted[1])), color=colour, linewidth=1, linestyle="--")
    recalls.set_ylim(0, 104)
    recalls.legend(frameon=False, fontsize=8, labelcolor=t.LIGHT.ink, loc="lower right")
    return figure
