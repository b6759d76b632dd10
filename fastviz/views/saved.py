"""Where and when work was saved: attention by block and step, and the FLOPs of every step beside the full model's."""

from statistics import median

import numpy as np

from . import theme as t
from .activity import strip
from .reuse import HEIGHT, short


def saved(runs, full, dark=False):
    """runs: {title: (blocks, shares (blocks, steps) as `activity` gives them, FLOPs of each step)}; full: the full
    model's FLOPs of each step -> Figure, a line per run: the strip on the left, its FLOPs on the right."""
    theme, whole = t.DARK if dark else t.LIGHT, median(full) / 1e9
    heights = [0.9 + HEIGHT * len(blocks) for blocks, _, _ in runs.values()]
    figure = t.blank(11, sum(heights) + 0.8, theme)
    cells = figure.subplots(len(runs), 2, squeeze=False, height_ratios=heights)
    for (left, right), (title, (blocks, shares, flops)) in zip(cells, runs.items()):
        attention(left, blocks, shares, title, theme)
        work(right, np.array(flops) / 1e9, whole, theme)
    figure.suptitle("Orange: attention that was left out or used again, and the work that this saved.", color=theme.ink,
                    fontsize=11)
    return figure


def attention(axes, blocks, shares, title, theme):
    axes.imshow(strip(shares), aspect="auto", interpolation="nearest", extent=(0.5, shares.shape[1] + 0.5, len(blocks), 0))
    axes.set_yticks(np.arange(len(blocks)) + 0.5, [short(block) for block in blocks], fontsize=5.5)
    axes.tick_params(colors=theme.faint, length=0, labelsize=8, axis="x")
    axes.tick_params(colors=theme.faint, length=0, axis="y")
    axes.set_title(f"{title}: attention computed for {shares.mean():.0%} of the tokens", loc="left", color=theme.ink, fontsize=9,
                   parse_math=False)
    axes.set_xlabel("Step", color=theme.faint, fontsize=8)
    for spine in axes.spines.values():
        spine.set_visible(False)


def work(axes, flops, whole, theme):
    """GFLOP of each step as a stair under the full model's level, with what lies between filled."""
    t.plain_axes(axes, theme)
    edges = np.arange(len(flops) + 1) + 0.5
    axes.stairs(np.full(len(flops), whole), edges, baseline=flops, fill=True, color=t.COLOURS[1], alpha=0.6)
    axes.stairs(flops, edges, baseline=None, color=theme.ink, linewidth=1.4)
    axes.axhline(whole, color=theme.faint, linewidth=1)
    axes.set_ylim(0, 1.15 * max(whole, *flops))
    axes.set_xlim(edges[0], edges[-1])
    axes.set_title(told(flops, whole), loc="left", color=theme.ink, fontsize=9)
    axes.set_ylabel("GFLOP per step", color=theme.faint, fontsize=8)
    axes.set_xlabel("Step", color=theme.faint, fontsize=8)


def told(flops, whole):
    """What a step takes, in words: one number, or the least and the most."""
    low, high = (100 * each / whole for each in (min(flops), max(flops)))
    span = f"{high:.0f} %" if high - low < 0.5 else f"{low:.0f} to {high:.0f} %"
    return f"A step takes {span} of the full model's {whole:.3g} GFLOP"
