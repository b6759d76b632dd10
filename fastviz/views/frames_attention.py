"""Attention over the picture: where a word is looked for, where a place looks, and where a reused map is out of date."""

from dataclasses import replace

import numpy as np
from matplotlib.colors import to_rgb

from . import frames_paint as p

RELATED = "#00e5ff"  # of a place's relatives: in no heat map
COMPUTED = "computed"
LOOKS = {"now": "Attention, computed now", "used": "Attention that was used", "change": "How far the two differ"}


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


def moved_self(channels, layer, steps, pictures):
    return moved(channels, layer, steps, ".attn1")


def moved_cross(channels, layer, steps, pictures):
    return moved(channels, layer, steps, ".attn2")


# Attention maps

def looks(channels):
    """{key: label} of what can be shown of attention where some was used again; {} where none was."""
    reused = any(int(age) for age in channels.get("attention_reuse.age", {}).values())
    return dict(LOOKS) if reused else {}


def nearest(cells, steps):
    """{step: the recorded step nearest to it, the earlier of two}; {} where nothing was recorded."""
    return {step: min(cells, key=lambda made: (abs(made - step), made)) for step in range(steps if cells else 0)}


def looked(cells, found, steps, look):
    """{step: (h, w) values} of a look: the map recorded nearest, the one that was used, or that one minus the one that would be
    computed. cells: {recorded step: map}; found: {step: age of what was used}. Nothing stands in for a map that was not
    recorded, unless it is shown as that of the step nearest to it."""
    maps = {step: map.astype(np.float32) for step, map in cells.items()}
    if look == "now":
        return {step: maps[made] for step, made in nearest(cells, steps).items()}
    source = {step: step - int(found.get(step, 0)) for step in range(steps)}
    if look == "used":
        return {step: maps[j] for step, j in source.items() if j in maps}
    return {step: maps[j] - maps[step] for step, j in source.items() if j in maps and step in maps}


def spread(drawn, values, cells, steps, legend, sentence, told, found, look):
    """Frames of `drawn`, a picture of each of `values`, see looked. told: {recorded step: caption}."""
    captions = dict.fromkeys(range(steps), "not recorded at this step")
    if look == "now":
        near = nearest(cells, steps)
        captions |= {step: p.aged(told[made], step, made, "recorded") for step, made in near.items()}
        for picture, (step, made) in zip(drawn, near.items()):
            if made != step:
                p.stamp(picture, p.told(made))
    else:
        captions |= {step: used(step, int(found.get(step, 0))) for step in values}
    sentence = sentence if cells else "Attention was not recorded in this part of the network."
    return p.framed(drawn, values, steps, legend, sentence, captions)


def painted(values, highest, look):
    """Values (S, h, w) as squares: heat, or for a change two colours."""
    return p.enlarged((p.change if look == "change" else p.heat)(values / highest))


def told_change():
    return [(p.LESS, "the attention that was used looks here less than attention computed now would"),
            (p.MORE, "it looks here more"), ("#000000", "no difference")]


def place_of(drawn, at, size):
    """The pixels of the token `at` (y, x) of a grid of `size` (h, w) in pictures (..., H, W, 4)."""
    sides = [slice(i * length // n, (i + 1) * length // n) for i, length, n in zip(at, drawn.shape[-3:], size)]
    return drawn[..., *sides, :]


def frame(drawn, at, size):
    """Frames the token `at` of a grid of `size` in all pictures (S, H, W, 4): white, black around it."""
    cell = place_of(drawn, at, size)
    inside = cell[:, 2:-2, 2:-2].copy()
    cell[:] = (0, 0, 0, 255)
    cell[:, 1:-1, 1:-1] = 255
    cell[:, 2:-2, 2:-2] = inside


def ring(picture, at, size):
    """A thin frame in the colour of RELATED around the token `at` of a grid of `size` in one picture (H, W, 4)."""
    cell, colour = place_of(picture, at, size), (*(round(255 * part) for part in to_rgb(RELATED)), 255)
    for edge in (cell[0], cell[-1], cell[:, 0], cell[:, -1]):
        edge[:] = colour


def percent(share):
    return f"{100 * share:.0f} %" if share >= 0.1 else f"{100 * share:.2g} %"


def highest(channels, layer, token):
    """The largest share of any place's attention, at any step, that goes to the prompt's token number `token`."""
    return max((float(maps[token].max()) for maps in p.recorded(channels, "attention.cross", layer, ".attn2").values()), default=0.0)


def words(channels, layer, steps, token, look="now", most=None):
    """Cross-attention of the prompt's token number `token`, on a scale that all steps of the block share.
    look: one of LOOKS; most: where the scale ends, so that runs can be compared; by default at `highest`."""
    cells = {step: maps[token] for step, maps in p.recorded(channels, "attention.cross", layer, ".attn2").items()}
    found = p.recorded(channels, "attention_reuse.age", layer, ".attn2")
    values = looked(cells, found, steps, look)
    most = max(most or highest(channels, layer, token), 1e-6)
    legend = p.scale("none", *(f"{percent(share)} of a square's attention" for share in (most / 2, most)))
    sentence = "Bright squares (tokens) look at this word most while the network decides what to draw there."
    if look == "change":
        legend, sentence = told_change(), "Coloured squares (tokens) were drawn with attention to this word that is out of date."
    told = {step: f"at most {percent(float(each.max()))}" for step, each in cells.items()}
    return spread(painted(p.stacked(values), most, look), values, cells, steps, legend, sentence, told, found, look)


def point(channels, layer, steps, place, look="now"):
    """Self-attention of the token at `place`, (y, x) in 0..1 of the picture, which is framed, as are the tokens that it merged
    with or was filled in from. look: one of LOOKS."""
    maps = p.recorded(channels, "attention.self", layer, ".attn1")
    found = p.recorded(channels, "attention_reuse.age", layer, ".attn1")
    size = next(iter(maps.values())).shape[:2] if maps else (1, 1)
    at = cell(place, size)
    cells = {step: decoded(each[at]) for step, each in maps.items()}
    most, values = max((each.max() for each in cells.values()), default=1.0), looked(cells, found, steps, look)
    if look != "change":  # a change is drawn by its root as it is
        values, most = {step: np.sqrt(each) for step, each in values.items()}, most ** 0.5
    drawn, kin = painted(p.stacked(values), most, look), related(channels, layer, place)
    for picture, step in zip(drawn, values):
        for token, grid in kin.get(step, ()):
            ring(picture, token, grid)
    frame(drawn, at, size)
    legend = told_change() if look == "change" else p.scale("hardly looked at", "a quarter of the most", "looked at most, at any step")
    legend += [("#ffffff", "frame: the place that looks")] + [(RELATED, "thin frames: merged with it, or what it was filled in from")] * bool(kin)
    sentence = ("From the framed place, coloured squares (tokens) are looked at too much or too little, because its attention "
                "is out of date." if look == "change" else
                "The framed place looks at the bright squares (tokens) while the network decides what to draw there.")
    shown = spread(drawn, values, cells, steps, legend, sentence, dict.fromkeys(cells, "attention"), found, look)
    fates = fate(channels, layer, steps, place)
    return replace(shown, captions=["; ".join(filter(None, pair)) for pair in zip(shown.captions, fates)])


def decoded(map):
    """Shares (h, w) that sum to 1 from a record of "attention.self", see trace.CHANNELS: its own largest share is left out."""
    shares = (map.astype(np.float32) / 255) ** 2
    return shares / shares.sum()


def related(channels, layer, place):
    """{step: [(token (y, x), grid (h, w))]} of the tokens that the one at `place` merged with or was filled in from."""
    found = {}
    for step, labels in p.recorded(channels, "tome.labels", layer).items():
        own = cell(place, labels.shape)
        same = [tuple(map(int, each)) for each in np.argwhere(labels == labels[own])]
        found.setdefault(step, []).extend((each, labels.shape) for each in same if each != own)
    for step, source in p.recorded(channels, "atedm.source", layer).items():
        own, stands = cell(place, source.shape), int(source[cell(place, source.shape)])
        if stands >= 0 and divmod(stands, source.shape[1]) != own:
            found.setdefault(step, []).append((divmod(stands, source.shape[1]), source.shape))
    return {step: each for step, each in found.items() if each}


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
