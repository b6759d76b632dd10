"""Tokens that were left out over the picture: which, how important each was, and what was copied in their place."""

import numpy as np

from . import frames_paint as p
from .frames_merged import means

DARK = np.array((0, 0, 0, 178), np.uint8)  # over a token that is left out


def captions(channels, layer):
    """{step: `379 of 1024 tokens kept`}"""
    masks = p.recorded(channels, "atedm.kept", layer)
    new = p.changed(masks)
    return {step: "all tokens kept" if mask.all() else
            p.aged(f"{mask.sum()} of {mask.size} tokens kept", step, new[step]) for step, mask in masks.items()}


def kept(channels, layer, steps, pictures):
    """Left out tokens dimmed."""
    cells = p.recorded(channels, "atedm.kept", layer)
    drawn = p.enlarged(np.where(p.stacked(cells)[..., None], np.uint8(0), DARK))
    legend = [("#4d4d4d", "darkened: left out"), ("#ffffff", "clear: worked on to the end")]
    sentence = ("The later layers of this part of the network leave out the darkened squares (tokens), which are filled in "
                "after the last one.")
    return p.framed(drawn, cells, steps, legend, sentence, captions(channels, layer))


def importance(channels, layer, steps, pictures):
    """How each token ranked, on a fixed scale."""
    cells = p.recorded(channels, "atedm.importance", layer)
    values = np.maximum(p.stacked(cells).astype(np.float32), 1e-3)
    drawn = p.enlarged(p.heat((np.log2(values) + 2) / 4))
    legend = p.scale("a quarter of the average or less", "average", "4 times the average or more")
    sentence = "Bright squares (tokens) rank highest, and the darkest ones are left out."
    return p.framed(drawn, cells, steps, legend, sentence, captions(channels, layer))


def copies(found):
    """Which tokens get the value of another one, from sources (S, h, w): places in the grid, -1 for none."""
    return (found >= 0) & (found != np.arange(found[0].size).reshape(found.shape[1:]))


def source(channels, layer, steps, pictures):
    """Each left out token in the mean colour of the one that it is filled in from, with lines between those of different ones
    and a dot on what they are filled in from; dimmed where there is none."""
    cells = p.recorded(channels, "atedm.source", layer)
    found = p.stacked(cells).astype(np.int64)
    copied, alone = copies(found), found < 0
    flat = found.reshape(len(found), -1)
    own = means(pictures, cells, found.shape[1:])
    colours = np.take_along_axis(own.reshape(*flat.shape, 3), np.maximum(flat, 0)[..., None], 1).reshape(*found.shape, 3)
    stands = np.zeros(flat.shape, bool)
    stands[np.nonzero(copied)[0], found[copied]] = True
    canvas = p.squares(np.where(copied, p.packed(p.opaque(colours)), np.where(alone, p.packed(DARK), 0)))
    p.lines(canvas, found, copied, p.packed(p.opaque(p.contrast(colours, 0.45))))
    p.dots(canvas, stands.reshape(found.shape), p.packed(p.opaque(p.contrast(own, 0.75))))
    legend = [("#808080", "flat colour: left out, in the mean colour of the square that it is filled in from"),
              ("#404040", "lines: between squares that are filled in from different ones"),
              ("#000000", "dot, dark or bright: a square that others are filled in from"), ("#ffffff", "picture: worked on to the end")]
    legend += [("#4d4d4d", "darkened: left out, and filled in from no other square")] if alone.any() else []
    sentence = ("Each square (token) that was left out is filled in from one that was kept, and is painted here in that "
                "one's colour.")
    return p.framed(p.pictures(canvas), cells, steps, legend, sentence, captions(channels, layer))
