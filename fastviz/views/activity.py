"""How much each step really computed, as small pictures: attention by block, a pixel per cell, and all of its work."""

import numpy as np
from matplotlib import colormaps
from PIL import Image

PARTS = ("attn1", "attn2")
REUSED = {  # key: (channel of attention reuse, its parts, label, what the brightest says)
    "age": ("attention_reuse.age", PARTS, "How old reused attention is", "brightest: {:.0f} steps old"),
    "stale.self": ("attention_reuse.staleness", PARTS[:1], "How far reused attention to the picture is out of date", "brightest: off by {:.0%} of itself"),
    "stale.cross": ("attention_reuse.staleness", PARTS[1:], "How far reused attention to the words is out of date", "brightest: off by {:.0%} of itself"),
}
NONE, FULL = np.array([0xE6, 0x9F, 0x00]), np.array([0x9A, 0xA5, 0xB1])  # orange: all was saved; grey: nothing was
GONE = np.zeros(3)  # black: the network has no such block


def activity(channels, blocks, steps):
    """(blocks, steps) float in 0..1: the share of the tokens for which attention was computed, mean of a block's two
    attentions; none where an attention was used again. 1 where no method recorded anything, NaN for a block that is None: the
    network does without it. A transformer's first block sees the tokens that are pruned after it; where they are pruned in
    several places, the blocks between count as the last."""
    found = np.ones((len(blocks), steps))
    ages, merged, parts = (channels.get(name, {}) for name in ("attention_reuse.age", "tome.tokens", "tome.parts"))
    for i, block in enumerate(blocks):
        if block is None:
            found[i] = np.nan
            continue
        transformer, _, layer = block.rpartition(".transformer_blocks.")
        pruned = channels.get("atedm.tokens", {}) if layer != "0" else {}
        for step in range(steps):
            kept, left = (after / before for before, after in (pruned.get((step, transformer), (1, 1)), merged.get((step, block), (1, 1))))
            seen = [left if merges else 1.0 for merges in parts.get((step, block), (False, False))[:2]]
            now = [ages.get((step, f"{block}.{part}"), 0) == 0 for part in PARTS]
            found[i, step] = kept * np.mean(np.multiply(seen, now))
    return found


def strip(shares):
    """`activity` as a PIL picture, (blocks, steps) pixels: grey where all was computed, towards orange the less was, black
    where there is nothing that could be."""
    cells = np.where(np.isnan(shares)[..., None], GONE, NONE + shares[..., None] * (FULL - NONE))
    return Image.fromarray(cells.round().astype(np.uint8))


def strips(channels, blocks, steps):
    """{key: (label, PIL picture like `strip`, what its colours say)}: what was computed and, where attention was used again, how
    old that was and how far it was out of date; grey where nothing was, black for blocks that are None, see activity."""
    gone = np.array([block is None for block in blocks], bool)
    black = "; black where this row's network has no such block, because it was removed" if gone.any() else ""
    found = {"computed": ("For how many tokens attention was computed", strip(activity(channels, blocks, steps)),
                          "grey where attention was computed for all tokens; the more orange, the fewer" + black)}
    for key, (channel, parts, label, brightest) in REUSED.items():
        values = reused(channels, channel, blocks, steps, parts)
        if np.isfinite(values).any():
            highest = np.nanmax(values)
            colours = 255 * colormaps["cividis"](0.15 + 0.85 * np.nan_to_num(values) / highest)[..., :3]
            cells = np.where(np.isnan(values)[..., None], FULL, colours)
            cells[gone] = GONE
            found[key] = label, Image.fromarray(cells.round().astype(np.uint8)), f"grey where nothing was reused; {brightest.format(highest)}{black}"
    return found


def reused(channels, channel, blocks, steps, parts):
    """(blocks, steps): what attention reuse recorded of `parts` of a block where they used again, mean of them; NaN elsewhere."""
    found = np.full((len(blocks), steps), np.nan)
    ages, values = channels.get("attention_reuse.age", {}), channels.get(channel, {})
    for i, block in enumerate(blocks):
        for step in range(steps):  # of a block that is None nothing was recorded
            places = [(step, f"{block}.{part}") for part in parts]
            told = [float(values[place]) for place in places if place in values and ages.get(place, 0) > 0]
            if told:
                found[i, step] = np.mean(told)
    return found


def work(flops, full, height=24):
    """FLOPs of each step beside those of a step of the full model, as a PIL picture, (height, steps) pixels: grey from
    below as far as there was work, orange above it for what was saved."""
    level = np.clip(np.asarray(flops) / full, 0, 1)
    rows = (height - np.arange(height)[:, None] - 0.5) / height
    return strip((rows <= level).astype(float))
