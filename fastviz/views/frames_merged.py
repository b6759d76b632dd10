"""Merged tokens over the picture: which went through the network as one, and how alike they were.

Source of the measure of likeness: Bolya and Hoffman, arXiv 2303.17604, section 3, the cosine of a block's input tokens.
"""

import numpy as np
from matplotlib.colors import to_hex, to_rgb
from PIL import Image, ImageDraw, ImageFont

from . import frames_paint as p
from .theme import COLOURS

SHADES = [(hue, shade) for shade in (0.0, 0.45, -0.4) for hue in COLOURS[:6]]  # towards white or black; no grey
DOT = "dot, dark or bright: the token that the others of its group are merged into"
BINS = 25  # of the histogram
STRIDE = 7  # in SHADES, from one destination to the next: neighbours along and across rows differ


def palette():
    """Colours (18, 3) in 0..255 that are told apart by hue or, without colour vision, by brightness."""
    base = np.array([to_rgb(hue) for hue, _ in SHADES])
    shade = np.array([shade for _, shade in SHADES])[:, None]
    return 255 * np.where(shade < 0, base * (1 + shade), base + (1 - base) * shade)


PALETTE = palette()


def records(channels, layer):
    """Of a block: {step: labels}, the same labels (S, h, w), and the destinations' positions (S, D)."""
    places = p.recorded(channels, "tome.destinations", layer)
    cells = {step: each for step, each in p.recorded(channels, "tome.labels", layer).items() if step in places}
    if not cells:
        return cells, np.zeros((1, 1, 1), int), np.zeros((1, 1), int)
    return cells, p.stacked(cells).astype(int), np.stack([places[step] for step in cells]).astype(int)


def captions(channels, layer):
    """{step: `1024 -> 512 tokens`}"""
    found = p.recorded(channels, "tome.labels", layer)
    new, left = p.changed(found), {step: each.max() + 1 for step, each in found.items()}
    return {step: p.aged(f"{each.size} -> {left[step]} tokens", step, new[step]) if left[step] < each.size
            else "nothing merged" for step, each in found.items()}


def means(pictures, cells, size):
    """The mean colour of each token's pixels at the steps of `cells`: (S, h, w, 3). pictures: PIL, one for each step of the run,
    or one for all."""
    made = {}
    for step in cells if len(pictures) > 1 else [0]:
        bands = pictures[step].convert("RGB").split()
        made[step] = np.stack([np.asarray(band.convert("F").resize(size[::-1], Image.Resampling.BOX)) for band in bands], -1)
    return np.broadcast_to(p.stacked(made), (max(1, len(cells)), *size, 3))


def apart(labels):
    """The same labels (S, h, w), with different ones at every step, and how many they can be."""
    return labels + labels[0].size * np.arange(len(labels))[:, None, None], labels.size


def mosaic(labels, colours):
    """The mean of the colours (S, h, w, 3) of each token's group: (S, h, w) -> (S, h, w, 3)."""
    group, most = apart(labels)
    sums = [np.bincount(group.ravel(), band, most)[group] for band in colours.reshape(-1, 3).T]
    return np.stack(sums, -1) / np.bincount(group.ravel(), minlength=most)[group][..., None]


def distinct(labels, count):
    """A colour for each group by the rank of its destination, of which there are `count`: the same at all steps,
    wherever in its cell it lies. (S, h, w) -> (S, h, w, 3). Groups' labels are the last, in the order of destinations."""
    first = labels.max((1, 2)) + 1 - count
    return PALETTE[STRIDE * (labels - first[:, None, None]) % len(PALETTE)]


def painted(labels, places, colours):
    """Squares in the colours (S, h, w, 3) of their groups, with lines between groups and a dot on destinations."""
    group, most = apart(labels)
    joined = np.bincount(group.ravel(), minlength=most)[group] > 1
    marked = np.zeros((len(labels), labels[0].size), bool)
    np.put_along_axis(marked, places, True, 1)
    canvas = p.squares(np.where(joined, p.packed(p.opaque(colours)), 0))
    p.lines(canvas, labels, joined, p.packed(p.opaque(p.contrast(colours, 0.25))))
    p.dots(canvas, marked.reshape(labels.shape) & joined, p.packed(p.opaque(p.contrast(colours, 0.75))))
    return p.pictures(canvas)


def groups(channels, layer, steps, pictures):
    """Each group in the mean colour of its pixels."""
    cells, labels, places = records(channels, layer)
    legend = [("#808080", "squares (tokens) of one group, in the mean colour of its pixels"), ("#000000", DOT)]
    sentence = ("Where the picture turns into a mosaic, squares (tokens) of one colour are worked on as one; where it stays "
                "sharp, each is worked on alone.")
    drawn = painted(labels, places, mosaic(labels, means(pictures, cells, labels.shape[1:])))
    return p.framed(drawn, cells, steps, legend, sentence, captions(channels, layer))


def distinct_groups(channels, layer, steps, pictures):
    """Each group in a colour of its own."""
    cells, labels, places = records(channels, layer)
    texts = ("each group of squares (tokens) has a colour", f"of {len(PALETTE)}, so groups far apart may share one")
    legend = [*zip((to_hex(colour / 255) for colour in PALETTE), texts), ("#000000", DOT)]
    sentence = ("Squares (tokens) of one colour are worked on as one, and where the picture shows through, each is worked "
                "on alone.")
    drawn = painted(labels, places, distinct(labels, places.shape[1]))
    return p.framed(drawn, cells, steps, legend, sentence, captions(channels, layer))


def likeness(channels, layer):
    """{step: cosines of merged tokens}, the same stacked (S, h, w), NaN for tokens that did not merge, and the lowest."""
    cells = p.recorded(channels, "tome.similarity", layer)
    cosines = p.stacked(cells).astype(np.float32)
    return cells, cosines, float(np.where(np.isnan(cosines), 1, cosines).min())


def similarity(channels, layer, steps, pictures):
    """How unlike each merged token was to the one that it merged into, on a scale that all steps of the block share."""
    cells, cosines, lowest = likeness(channels, layer)
    drawn = p.enlarged(p.heat((1 - cosines) / max(1 - lowest, 1e-6)))
    legend = p.scale("merged with one just like it", f"{50 + 50 * lowest:.3g} % alike (cosine)", f"{100 * lowest:.3g} % alike")
    sentence = ("Bright squares (tokens) were merged with one that is less like them, so here merging is likeliest to "
                "change the picture.")
    return p.framed(drawn, cells, steps, legend, sentence, captions(channels, layer))


def histogram(channels, layer, steps, pictures):
    """How many tokens merged at which cosine; all steps of the block share both axes."""
    cells, cosines, lowest = likeness(channels, layer)
    edges = np.linspace(min(lowest, 1 - 1e-3), 1, BINS + 1)
    counts = np.stack([np.histogram(each[~np.isnan(each)].clip(edges[0], 1), edges)[0] for each in cosines])
    highest = max(1, counts.max())
    texts = f"{highest} tokens", f"{100 * lowest:.3g} % alike"
    drawn = np.stack([bars(each / highest, *texts) * np.uint8(each.any()) for each in counts])
    legend = [("#f0e442", "height: how many squares (tokens) merged"), ("#14171c", "from left to right: ever more alike (cosine)")]
    sentence = ("The further right the bars stand, the more alike are the squares (tokens) that were merged, and the less "
                "merging can change.")
    middle = {step: f"half of them more than {100 * np.nanmedian(each.astype(np.float32)):.3g} % alike"
              for step, each in cells.items() if not np.isnan(each).all()}
    told = {step: "; ".join(filter(None, (text, middle.get(step)))) for step, text in captions(channels, layer).items()}
    return p.framed(drawn, cells, steps, legend, sentence, told)


def bars(heights, most, least, size=256, margin=28):
    """Heights in 0..1 as bars over a dark ground (size, size, 4), with what the axes reach."""
    found = Image.new("RGBA", (size, size), (0x14, 0x17, 0x1C, 235))
    draw, font = ImageDraw.Draw(found), ImageFont.load_default(13)
    width, floor = (size - 2 * margin) / len(heights), size - margin
    for i, height in enumerate(heights):
        left, top = margin + i * width, floor - height * (size - 2 * margin)
        draw.rectangle((left, top, left + width - 2, floor), fill="#f0e442")
    draw.line((margin, floor + 1, size - margin, floor + 1), fill="#e8eaed")
    draw.text((margin, margin - 6), most, "#e8eaed", font, anchor="ls")
    draw.text((margin, floor + 5), least, "#e8eaed", font)
    draw.text((size - margin, floor + 5), "just alike", "#e8eaed", font, anchor="ra")
    return np.asarray(found)
