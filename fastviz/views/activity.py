"""How much of the attention each step and block really computed, as one small picture: a pixel per cell."""

import numpy as np
from PIL import Image

NONE, FULL = np.array([0xE6, 0x9F, 0x00]), np.array([0x9A, 0xA5, 0xB1])  # orange: all was saved; grey: nothing was


def activity(channels, blocks, steps):
    """(blocks, steps) float in 0..1: the share of the tokens that a block's attention saw, times the share of its maps
    that were computed. 1 where no method recorded anything."""
    found = np.ones((len(blocks), steps))
    for channel in ("tome.tokens", "atedm.tokens"):
        for (step, layer), (before, after) in channels.get(channel, {}).items():
            for i, block in enumerate(blocks):
                if layer == block or f"{block}.".startswith(f"{layer}."):
                    found[i, step] *= after / before
    ages = channels.get("attention_reuse.age", {})
    for i, block in enumerate(blocks):
        for step in range(steps):
            parts = [ages[step, f"{block}.{part}"] == 0 for part in ("attn1", "attn2") if (step, f"{block}.{part}") in ages]
            if parts:
                found[i, step] *= np.mean(parts)
    return found


def strip(shares):
    """`activity` as a PIL picture, (blocks, steps) pixels: grey where all was computed, towards orange the less was."""
    cells = NONE + shares[..., None] * (FULL - NONE)
    return Image.fromarray(cells.round().astype(np.uint8))
