"""Attention reuse in pictures: what was reused where and how old, how stale, and what one reuse does to the end.

Cells are {(step, layer): value}, as a Trace's channels hold them.
"""

import re
import textwrap
from statistics import mean

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from . import theme as t

AGE, STALE = "attention_reuse.age", "attention_reuse.staleness"
HEIGHT = 0.11  # inches of one layer


def short(layer):
    """`down_blocks.0.attentions.1.transformer_blocks.2.attn1` -> `down 0.1.2 self`."""
    part = re.sub(r"_?blocks?", "", layer.partition(".")[0])
    numbers = ".".join(re.findall(r"[.](\d+)", layer))
    kind = {"attn1": "self", "attn2": "cross"}.get(layer.rpartition(".")[2], "")
    return " ".join(filter(None, (part, numbers, kind)))


def matrix(cells, layers, steps):
    """Values as (layers, steps), NaN where there is none."""
    found = np.full((len(layers), steps), np.nan)
    for (step, layer), value in cells.items():
        found[layers.index(layer), step] = value
    return found


def layers_of(cells):
    """Layers in the order in which they were recorded."""
    return list(dict.fromkeys(layer for _, layer in cells))


def heat(axes, values, layers, theme, title, **told):
    """One cell a layer and step. NaN shows the background."""
    axes.set_facecolor(theme.line)
    image = axes.pcolormesh(values, edgecolors=theme.paper, linewidth=0.15, rasterized=True, **told)
    axes.invert_yaxis()
    axes.set_yticks(np.arange(len(layers)) + 0.5, [short(layer) for layer in layers], fontsize=5.5)
    axes.tick_params(colors=theme.faint, length=0)
    axes.tick_params(axis="x", labelsize=8)
    ticks = np.unique(np.linspace(0, values.shape[1] - 1, 6).astype(int))
    axes.set_xticks(ticks + 0.5, ticks + 1)
    axes.set_title(title, loc="left", color=theme.ink, fontsize=9, parse_math=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return image


def bar(figure, image, axes, theme, label, **told):
    found = figure.colorbar(image, ax=axes, fraction=0.03, pad=0.01, **told)
    found.set_label(label, color=theme.faint, fontsize=8)
    found.ax.tick_params(colors=theme.faint, labelsize=7)
    found.ax.minorticks_off()
    found.outline.set_visible(False)


def schedules(runs, dark=False):
    """{title: channels of a traced run} -> Figure: for each, the strip of what was computed or reused, by the age of what
    was used, and the staleness of what was reused. All runs share their colour scales."""
    theme, steps = t.DARK if dark else t.LIGHT, 1 + max(step for run in runs.values() for step, _ in run[AGE])
    names = [layers_of(run[AGE]) for run in runs.values()]
    oldest = max(1, max(int(age) for run in runs.values() for age in run[AGE].values()))
    stalest = max((float(value) for run in runs.values() for value in run[STALE].values()), default=1.0)
    heights = [0.75 + HEIGHT * len(layers) for layers in names]
    figure = t.blank(11, sum(heights) + 0.7, theme)
    cells = figure.subplots(len(runs), 2, squeeze=False, height_ratios=heights)
    for (left, right), layers, (title, run) in zip(cells, names, runs.items()):
        share = np.mean([age == 0 for age in run[AGE].values()])
        title = title[:1].upper() + title[1:]
        ages = heat(left, matrix(run[AGE], layers, steps), layers, theme,
                    f"{title}: {share:.0%} of the attention is computed",
                    cmap=age_colours(oldest, theme), norm=BoundaryNorm(np.arange(oldest + 2) - 0.5, oldest + 1))
        stale = heat(right, matrix(run[STALE], layers, steps), layers, theme, f"{title}: how stale what was reused is",
                     cmap="viridis", vmin=0, vmax=stalest)
        right.set_yticks([])
        for axes in (left, right):
            axes.set_xlabel("Step", color=theme.faint, fontsize=8)
        marks = np.unique(np.linspace(0, oldest, min(oldest, 6) + 1).astype(int))
        bar(figure, ages, left, theme, "Age of what is used in steps, 0: computed", ticks=marks)
        bar(figure, stale, right, theme, "|used - computed| / |computed|")
    figure.suptitle(compared(runs), color=theme.ink, fontsize=11, parse_math=False)
    return figure


def age_colours(oldest, theme):
    """Age 0 in a shade apart, then cividis from dark, so that order survives every kind of colour vision."""
    return ListedColormap([theme.line, *colormaps["cividis"](np.linspace(0.15, 1, oldest))])


def compared(runs):
    """The sentence over `schedules`: which run reuses the least stale maps."""
    stale = {title: np.mean(list(run[STALE].values())) for title, run in runs.items() if run[STALE]}
    if len(stale) < 2:
        return "Grey: computed. Coloured: reused; the brighter, the older."
    least, most = min(stale, key=stale.get), max(stale, key=stale.get)
    return f"What {least} reuses is {stale[least]:.0%} off on average, what {most} reuses {stale[most]:.0%}."


def one_reuse(told, dark=False):
    """What `search one-reuse` found -> Figure: distortion against the step that reuses, and staleness by layer."""
    theme, at = t.DARK if dark else t.LIGHT, [step + 1 for step in told["reuse_at"]]
    layers = list(told["staleness"])
    figure = t.blank(11, max(7.2, 1.6 + HEIGHT * len(layers)), theme)
    left, right = figure.subfigures(1, 2, width_ratios=[1, 1.05], facecolor=theme.paper)
    seen = not any(isinstance(value, str) for values in told["lpips"] for value in values)
    first = ("lpips", told["lpips_name"]) if seen else ("psnr", "PSNR, dB")
    panels = [first, ("latent_rmse", "Latents at the end, RMS"), ("local_rmse", "Latents right after, RMS")]
    *others, axes = left.subplots(4, 1, sharex=True)
    for look, (each, (key, label)) in enumerate(zip(others, panels)):
        curve(each, at, told[key], label, look, theme)
    t.plain_axes(axes, theme)
    axes.plot(at, [np.nan if times is None else times for times in told["amplification"]], color=t.COLOURS[3], linewidth=1.8)
    axes.axhline(1, color=theme.faint, linewidth=0.8, linestyle="--")
    axes.set_ylabel("End / right after", color=theme.ink, fontsize=8)
    axes.set_xlabel("The one step that reuses", color=theme.ink, fontsize=9)
    cells = right.subplots()
    values = np.array([told["staleness"][layer] for layer in layers])
    image = heat(cells, values, layers, theme, "How stale the attention of the step before is", cmap="viridis", vmin=0)
    ticks = np.unique(np.linspace(0, len(at) - 1, 6).astype(int))
    cells.set_xticks(ticks + 0.5, [at[tick] for tick in ticks])
    cells.set_xlabel("Step", color=theme.ink, fontsize=9)
    bar(right, image, cells, theme, "|before - now| / |now|")
    figure.suptitle(textwrap.fill(sentence(at, told["latent_rmse"]), 110), color=theme.ink, fontsize=11, parse_math=False)
    return figure


def curve(axes, at, values, label, look, theme):
    """The mean over the prompts as a line, each prompt as a faint mark. A logarithmic scale where all are above 0."""
    t.plain_axes(axes, theme)
    colour, mark = t.COLOURS[look], t.MARKS[look]
    for prompt in zip(*values):
        axes.plot(at, prompt, linestyle="", marker=mark, markersize=3, color=colour, alpha=0.3, markeredgewidth=0)
    axes.plot(at, [mean(each) for each in values], color=colour, linewidth=1.8)
    if min(min(each) for each in values) > 0 and label != "PSNR, dB":
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.set_ylabel(label, color=theme.ink, fontsize=8)


def sentence(at, values):
    """What to see, from the figures: the first third of the steps against the last."""
    third = max(1, len(at) // 3)
    early, late = (mean(mean(each) for each in part) for part in (values[:third], values[-third:]))
    if not early or not late:
        return "Where the curve is zero, reusing changed nothing."
    ratio = early / late
    if 0.8 < ratio < 1.25:
        return "It matters little when attention is reused once: early and late reuse move the result about equally far."
    safe, far, near, times = ("late", "first", "last", ratio) if ratio > 1 else ("early", "last", "first", 1 / ratio)
    return (f"Reuse {safe}: at one of the {far} {third} of these steps it moves the result {times:.1f} times as far as "
            f"at one of the {near} {third}.")


SEARCHED = {"found": "found by the search", "HURRY": "HURRY: reuse late", "even": "spread evenly", "ddim": "fewer steps, DDIM",
            "dpm": "fewer steps, DPM-Solver++ 2M"}


def reused(summaries, dark=False):
    """What searched schedules are worth beside others of as much work -> Figure, a panel for each number of steps. summaries: as
    search.report makes them. A point is the mean of all held-out prompts."""
    theme = t.DARK if dark else t.LIGHT
    counts = sorted({told["steps"] for told in summaries})
    figure = t.blank(4.6 * len(counts), 4.4, theme)
    for axes, steps in zip(figure.subplots(1, len(counts), sharey=True, squeeze=False)[0], counts):
        t.plain_axes(axes, theme)
        here = [told for told in summaries if told["steps"] == steps]
        kinds = sorted({(told["maps"], told["keep"]) for told in here})  # what is kept of which maps: a line of its own for each
        for (name, label), colour, mark in zip(SEARCHED.items(), t.COLOURS, t.MARKS):
            for kind in kinds:
                rows = [row for told in here if (told["maps"], told["keep"]) == kind for key, row in told["rows"].items()
                        if key.split()[0] == name and not isinstance(row["lpips"], str)]
                rows.sort(key=lambda row: row["share"])
                axes.plot([100 * row["share"] for row in rows], [row["lpips"] for row in rows], color=colour, marker=mark,
                          linewidth=1.2, label=label if kind == kinds[0] else None)
        axes.set_title(f"{steps} steps", loc="left", color=theme.ink, fontsize=10)
        axes.set_xlabel("Time, % of the full run's", color=theme.ink, fontsize=9)
        axes.set_ylim(bottom=0)
    figure.axes[0].set_ylabel(f"{summaries[0]['lpips_name']} to the full model", color=theme.ink, fontsize=9)
    figure.axes[0].legend(frameon=False, fontsize=8, labelcolor=theme.ink)
    figure.suptitle("Lower left is better. The points of a line reuse more and more steps, or leave more of them out.",
                    color=theme.faint, fontsize=9)
    return figure
