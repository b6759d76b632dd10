"""Attention over the picture: where a word is looked for, where a place looks, and where a reused map is out of date."""

from dataclasses import replace

import numpy as np

from . import frames_paint as p

COMPUTED = "computed"


# What attention reuse records

def ages(channels, layer, part):
    """{step: caption} of what an attention used."""
    found = p.recorded(channels, "attention_reuse.age", layer, part)
    return {step: used(step, int(age)) for step, age in found.items()}


def used(step, age):
    return f"attention of {p.told(step - age)}, {age} step{'s' * (age > 1)} old" if age else COMPUTED


def moved(channels, layer, steps, part):
    """How far the attention that was used again is from what it would be by now, on a fixed scale."""
    cells = p.recorded(channels, "attention_reuse.moved", layer, part)
    captions = {step: text if step in cells or text == COMPUTED else f"{text}, not recorded by place"
                for step, text in ages(channels, layer, part).items()}
    legend = p.scale("still what would be computed now", "half of it is out of date", "all of it is out of date")
    sentence = ("Bright squares (tokens) use attention that is out of date, so here saving the work is likeliest to change "
                "the picture.")
    if not cells:
        sentence = "Nothing to see: how out of date attention is here was not recorded by place."
    return p.framed(p.enlarged(p.heat(p.stacked(cells).astype(np.float32))), cells, steps, legend, sentence, captions)


def moved_self(channels, layer, steps, picture):
    return moved(channels, layer, steps, ".attn1")


def moved_cross(channels, layer, steps, picture):
    return moved(channels, layer, steps, ".attn2")


# Attention maps

def latest(cells, steps):
    """{step: the latest recorded step up to it}, from the first recorded one on."""
    made, found = None, {}
    for step in range(steps):
        made = step if step in cells else made
        if made is not None:
            found[step] = made
    return found


def spread(drawn, cells, steps, legend, sentence, told):
    """Frames in which a recorded picture stays until the next one. told: {recorded step: caption}."""
    at, order = latest(cells, steps), {step: i for i, step in enumerate(cells)}
    captions = dict.fromkeys(range(steps), "not recorded")
    captions |= {step: p.aged(told[made], step, made, "recorded") for step, made in at.items()}
    sentence = sentence if cells else "Attention was not recorded in this part of the network."
    return p.framed(drawn[[order[made] for made in at.values()]], at, steps, legend, sentence, captions)


def frame(drawn, at, size):
    """Frames the token `at` (y, x) of a grid of `size` (h, w) in all pictures (S, H, W, 4): white, black around it."""
    sides = [slice(i * length // n, (i + 1) * length // n) for i, length, n in zip(at, drawn.shape[1:], size)]
    cell = drawn[:, *sides]
    inside = cell[:, 2:-2, 2:-2].copy()
    cell[:] = (0, 0, 0, 255)
    cell[:, 1:-1, 1:-1] = 255
    cell[:, 2:-2, 2:-2] = inside


def percent(share):
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


def words(channels, layer, steps, token):
    """Cross-attention of the prompt's token number `token`, on a scale that all steps of the block share."""
    cells = {step: maps[token] for step, maps in p.recorded(channels, "attention.cross", layer, ".attn2").items()}
    values = p.stacked(cells).astype(np.float32)
    highest = max(float(values.max()), 1e-6)
    legend = p.scale("none", *(f"{percent(share)} of a square's attention" for share in (highest / 2, highest)))
    sentence = "Bright squares (tokens) look at this word most while the network decides what to draw there."
    told = {step: f"at most {percent(float(each.max()))}" for step, each in cells.items()}
    return spread(p.enlarged(p.heat(values / highest)), cells, steps, legend, sentence, told)


def point(channels, layer, steps, place):
    """Self-attention of the token at `place`, (y, x) in 0..1 of the picture, which is framed."""
    maps = p.recorded(channels, "attention.self", layer, ".attn1")
    size = next(iter(maps.values())).shape[:2] if maps else (1, 1)
    at = cell(place, size)
    cells = {step: each[at] for step, each in maps.items()}
    drawn = p.enlarged(p.heat(p.stacked(cells).astype(np.float32) / 255))
    frame(drawn, at, size)
    legend = [*p.scale("hardly looked at", "a quarter of the most", "looked at most"), ("#ffffff", "frame: the place that looks")]
    sentence = "The framed place looks at the bright squares (tokens) while the network decides what to draw there."
    found = spread(drawn, cells, steps, legend, sentence, dict.fromkeys(cells, "attention"))
    fates = fate(channels, layer, steps, place)
    return replace(found, captions=["; ".join(filter(None, pair)) for pair in zip(found.captions, fates)])


def fate(channels, layer, steps, place):
    """What methods did with the token at `place`, (y, x) in 0..1 of the picture: one text per step, "" where nothing."""
    found = [[] for _ in range(steps)]
    for step, labels in p.recorded(channels, "tome.labels", layer).items():
        alike = int((labels == labels[cell(place, labels.shape)]).sum()) - 1
        found[step].append(f"merged with {alike} other{'s' * (alike > 1)}" if alike else "not merged")
    stands_in = p.recorded(channels, "atedm.source", layer)
    for step, kept in p.recorded(channels, "atedm.kept", layer).items():
        at = cell(place, kept.shape)
        source = int(stands_in[step][at]) if step in stands_in else -1
        where = "" if source < 0 else ", filled in from row {}, column {} of {} x {}".format(
            source // kept.shape[1] + 1, source % kept.shape[1] + 1, *kept.shape)
        found[step].append("kept" if kept[at] else f"left out{where}")
    for step, age in p.recorded(channels, "attention_reuse.age", layer, ".attn1").items():
        if age:
            found[step].append(f"used instead: attention of {p.told(step - int(age))}")
    return ["; ".join(texts) for texts in found]


def cell(place, size):
    """The token of a grid (h, w) at (y, x) in 0..1."""
    return tuple(int(np.clip(share * side, 0, side - 1)) for share, side in zip(place, size))
