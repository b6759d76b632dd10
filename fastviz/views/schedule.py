"""What a fitted schedule is: when it asks the network, how it adds up the answers, and how far it strays from the full run.

Figures of plain numbers, each with the sentences that one needs who has never seen a scheduler from inside.
"""

import textwrap

import numpy as np
from matplotlib.colors import SymLogNorm, TwoSlopeNorm
from matplotlib.ticker import LogLocator, MaxNLocator

from . import theme as t

WRITTEN = 12  # steps up to which every coefficient is written into its cell
REVISION = 0.5  # relative change at which the colour of the third triangle is full


def scheme(told, dark=False):
    """{"timesteps", "coefficients", "distance"}: matplotlib Figures of what methods.olss.explained tells."""
    return {"timesteps": timesteps(told["timesteps"], told["alphas"], dark),
            "coefficients": triangle(told["fitted"], told["ddim"], dark), "distance": distance(told["gaps"], dark)}


def explain(figure, title, text, theme, width=112):
    """The title and, under the figure, the sentences that explain it."""
    figure.suptitle(title, color=theme.ink, fontsize=13, x=0.01, ha="left")
    figure.supxlabel(textwrap.fill(text, width), color=theme.faint, fontsize=9, x=0.01, ha="left")


# When the network is asked

def timesteps(schedules, alphas, dark=False):
    """One line of dots per schedule. schedules: {name: timesteps, 999 is pure noise}; alphas: cumulative alphas by timestep,
    for the share of noise -> matplotlib Figure."""
    theme = t.DARK if dark else t.LIGHT
    figure = t.blank(9, 1.9 + 0.42 * len(schedules), theme)
    axes = figure.add_subplot()
    t.plain_axes(axes, theme)
    axes.grid(False, axis="y")
    for i, (name, steps) in enumerate(schedules.items()):
        axes.plot((len(alphas), 0), (i, i), color=theme.line, linewidth=1, zorder=1)
        axes.plot(steps, [i] * len(steps), t.MARKS[i % len(t.MARKS)], color=t.COLOURS[i % len(t.COLOURS)], markersize=8,
                  markeredgecolor=theme.paper, zorder=2)
    axes.set_yticks(range(len(schedules)), schedules, color=theme.ink, fontsize=9)
    axes.set_ylim(len(schedules) - 0.4, -0.6)
    axes.set_xlim(len(alphas) * 1.02, -len(alphas) * 0.02)
    axes.set_xlabel("Timestep", color=theme.ink, fontsize=9)
    above = axes.secondary_xaxis("top")
    above.set_ticks(range(0, len(alphas) + 1, len(alphas) // 5),
                    [f"{1 - alphas[min(k, len(alphas) - 1)]:.0%}" for k in range(0, len(alphas) + 1, len(alphas) // 5)])
    above.set_xlabel("Noise in the picture, share of its variance", color=theme.faint, fontsize=9)
    above.tick_params(colors=theme.faint, labelsize=8)
    above.spines["top"].set_visible(False)
    explain(figure, "When the network is asked", "Every picture starts as pure noise on the left and is finished on the "
            "right. A dot is one call of the network, which is what takes time. Where dots are close, a schedule looks "
            "often; wide gaps are crossed in one stride. An even schedule does not ask where looking pays. A searched one "
            "was placed where a stride costs least.", theme)
    return figure


# How its answers are added up

def triangle(coefficients, ddim, dark=False):
    """Three triangles: fitted coefficients, DDIM's at the same timesteps, and their ratio.

    coefficients, ddim: (wx, we): wx[i] of the starting noise, we[i][j] of the network's answer j in the latent after step i.
    Rows are divided by DDIM's coefficient of the starting noise: units in which DDIM never changes its mind.
    """
    theme = t.DARK if dark else t.LIGHT
    fitted, plain = (table(each, ddim[0]) for each in (coefficients, ddim))
    steps = len(fitted)
    figure = t.blank(13, 3.0 + 0.36 * steps, theme)
    axes = figure.subplots(1, 3)
    top = max(np.nanmax(np.abs(fitted)), np.nanmax(np.abs(plain)))
    sums = SymLogNorm(0.02, vmin=-top, vmax=top)
    change = TwoSlopeNorm(1, 1 - REVISION, 1 + REVISION)
    for axis, title, values, norm in zip(axes, ("Fitted", "DDIM", "Fitted / DDIM"), (fitted, plain, fitted / plain),
                                         (sums, sums, change)):
        cells(axis, values, norm, theme)
        axis.set_title(title, color=theme.ink, fontsize=11, loc="left")
    axes[0].set_ylabel("Latent after step", color=theme.ink, fontsize=9)
    axes[1].set_xlabel("x: the starting noise. 0, 1, ...: the network's answers", color=theme.ink, fontsize=9)
    explain(figure, "How the network's answers are added up", "Each row is one step: the next picture is the starting noise "
            "and every answer of the network so far, each times its coefficient, added up. DDIM, in the middle, weighs an "
            "answer once and for all: its columns are constant. The fitted schedule may think again: on the right, 1 is DDIM's "
            "weight, blue is less and red is more. Where the newest answer counts for much more than 1 and for less in the "
            "row below, the stride overshoots on purpose, and the next answer corrects it.", theme, 165)
    return figure


def table(coefficients, unit):
    """(wx, we) -> (n, n + 1) with rows divided by `unit`, NaN above the diagonal."""
    wx, we = coefficients
    found = np.full((len(wx), len(wx) + 1), np.nan)
    for i, row in enumerate(we):
        found[i, :i + 2] = np.array([wx[i], *row]) / unit[i]
    return found


def cells(axis, values, norm, theme):
    """A heat map with its numbers, as long as there is room for them."""
    steps = len(values)
    axis.imshow(values, cmap="RdBu_r", norm=norm, aspect="auto")
    axis.set_facecolor(theme.paper)
    axis.set_xticks(range(steps + 1), ["x", *range(steps)])
    axis.set_yticks(range(steps), range(1, steps + 1))
    axis.tick_params(colors=theme.faint, labelsize=8, length=0)
    for spine in axis.spines.values():
        spine.set_visible(False)
    if steps > WRITTEN:
        return
    for (i, j), value in np.ndenumerate(values):
        if not np.isnan(value):
            strong = abs(float(norm(value)) - 0.5) > 0.33
            axis.text(j, i, number(value), ha="center", va="center", fontsize=7, color="white" if strong else "#1b1f24")


def number(value):
    """Two or three digits that fit into a cell."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


# How far it strays

def distance(schedules, dark=False):
    """Distance from the full run's path after every call of the network. schedules: {name: distances}, root mean squares
    of latents; the last one is that of the finished picture -> matplotlib Figure. Names with the same words before a comma
    share a colour."""
    theme = t.DARK if dark else t.LIGHT
    figure = t.blank(9, 5.2, theme)
    axes = figure.add_subplot()
    t.plain_axes(axes, theme)
    kinds = list(dict.fromkeys(name.partition(",")[0] for name in schedules))
    for name, gaps in sorted(schedules.items(), key=lambda each: -each[1][-1]):
        kind, _, rest = name.partition(",")
        i = kinds.index(kind) % len(t.COLOURS)
        axes.plot(range(1, len(gaps) + 1), gaps, color=t.COLOURS[i], marker=t.MARKS[i], markersize=6, linewidth=1.6,
                  linestyle="--" if rest else "-", label=f"{gaps[-1]:.3f}  {name}", markeredgecolor=theme.paper)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("Calls of the network", color=theme.ink, fontsize=9)
    axes.set_ylabel("Distance from the full run's path", color=theme.ink, fontsize=9)
    axes.legend(frameon=False, fontsize=9, labelcolor=theme.ink, title="At the end", title_fontsize=9, alignment="left",
                loc="center left", bbox_to_anchor=(1, 0.5)).get_title().set_color(theme.ink)
    explain(figure, "How far it strays from the full run", "The full run goes from noise to picture in many small steps. "
            "Every schedule tries to follow it with few. After each call: the mean distance between its latents and those that the "
            "full run had at the same noise level, over prompts and seeds that nothing was fitted to. Lower is closer; only "
            "the last point is seen in the picture.", theme)
    return figure
