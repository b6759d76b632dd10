"""The closing picture of each lesson, measured: what is drawn of it, as plain values, and its pictures."""

from collections import defaultdict

import numpy as np

from ..compare import compare, final, traced
from ..models import load
from ..patch import transformer_blocks
from ..request import Request
from ..run import pictures
from . import MODEL, PROMPT, SEED

FILM = (1, 4, 8, 15, 25, 50)  # steps whose estimate is shown
FEW = (5, 10, 20)  # numbers of steps at which the solvers are compared
DRAWN = ((PROMPT, SEED), ("an owl at night", 3), ("a big lemon in the ocean", 15))
SEEDS = (1, 2, 3)


def item(label, image, **values):
    """One picture with what its caption says: the name of a text, and the values that are filled into it."""
    return {"label": label, "values": values, "picture": image}


def estimates(trace, steps):
    """The picture as the network estimated it at some steps, counted from 1: list of PIL."""
    import torch

    latents = torch.stack([torch.from_numpy(trace.channels["estimate"][step - 1, ""]) for step in steps])
    return pictures(load(MODEL), latents)


def film(request, rows):
    """What the full model believed the picture to be, from the first step to the last."""
    found = estimates(traced(request, rows["full"]), FILM)
    return {"kind": "pictures", "items": [item("step", image, step=step) for step, image in zip(FILM, found, strict=True)]}


def solvers(request, rows):
    """LPIPS over the number of steps for each solver, mean of several prompts and seeds."""
    ways = {"ddim": "few_step(solver=ddim,steps=%d)", "dpm": "few_step(steps=%d)", "olss": "olss(steps=%d)"}
    stacks = [(name, n, text % n) for name, text in ways.items() for n in FEW]
    found = defaultdict(list)
    for prompt, seed in DRAWN:
        asked = Request(prompt, seed=seed, model=MODEL, methods=",".join(text for *_, text in stacks), repeats=1)
        for (name, n, _), row in zip(stacks, final(compare(asked))[1:], strict=True):
            if row.error:
                raise RuntimeError(f"{row.title}: {row.error}")
            found[name, n].append(row.metrics["lpips"])
    series = {name: [[n, float(np.mean(found[name, n]))] for n in FEW] for name in ways}
    return {"kind": "lines", "series": series, "count": len(DRAWN)}


def change(request, rows):
    """How far self-attention has moved from the map that was used, mean over the layers: maps one step old, and older ones."""
    series = {}
    for name, row in (("fresh", rows["even"]), ("old", rows["late"])):
        cells = defaultdict(list)
        for (step, layer), moved in traced(request, row).channels["attention_reuse.staleness"].items():
            if layer.endswith("attn1"):
                cells[step + 1].append(float(moved))
        series[name] = [[step, float(np.mean(values))] for step, values in sorted(cells.items())]
    return {"kind": "lines", "series": series}


def finest(request):
    """The name of the last transformer block on the finest grid, where most tokens are."""
    pipe = load(MODEL)
    side = request.size // pipe.vae_scale_factor
    blocks = transformer_blocks(pipe.unet, (side, side))
    most = max(h * w for _, _, (h, w) in blocks)
    return [name for name, _, (h, w) in blocks if h * w == most][-1]


def laid(request, row, trace, kind, steps):
    """The overlay of a kind over what the picture was at some steps, counted from 1: list of PIL."""
    from ..views import frames
    from ..views.frames import laid as over

    drawn = frames(trace.channels, kind, finest(request), row.steps, [row.image]).images
    return [over(image, drawn[step - 1]) for step, image in zip(steps, estimates(trace, steps), strict=True)]


def merged(request, rows):
    """Which tokens merged, each group in its own colour, early and late."""
    steps, row = (2, 15, 30), rows["half"]
    found = laid(request, row, traced(request, row), "groups", steps)
    return {"kind": "pictures", "items": [item("step", image, step=step) for step, image in zip(steps, found, strict=True)]}


def pruned(request, rows):
    """How important each token is, which are left out, and what they get in their place."""
    row = rows["copy"]
    trace = traced(request, row)
    found = {kind: laid(request, row, trace, kind, (15,))[0] for kind in ("importance", "kept", "source")}
    return {"kind": "pictures", "items": [item(kind, image, step=15) for kind, image in found.items()]}


def seeds(request, rows):
    """The picture of one step and that of all steps, for several seeds."""
    found = []
    for seed in SEEDS:
        asked = Request(PROMPT, seed=seed, model=MODEL, methods="full,few_step(solver=ddim,steps=1)", repeats=1)
        found.append([row.image for row in final(compare(asked))])
    full, one = zip(*found)
    return {"kind": "pictures", "items": [item(label, image, seed=seed) for label, images in (("one", one), ("full", full))
                                          for seed, image in zip(SEEDS, images, strict=True)]}


def fronts(request, rows):
    """Nothing of its own: the rows are drawn twice, over time and over operations."""
    return {"kind": "fronts"}


CLOSINGS = {each.__name__: each for each in (film, solvers, change, merged, pruned, seeds, fronts)}
