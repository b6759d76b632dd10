"""Where the time of each row goes, as stacked bars, and the share that its methods can touch as the picture grows."""

import textwrap

from . import theme as t

COLOURS = ("#0072B2", "#56B4E9", "#E69F00", "#009E73", "#9AA5B1", "#D9DEE3", "#D55E00", "#505050", "#F0E442", "#8A1FEE")


def breakdown(told, classes, dark=False):
    """Breakdowns of one request's rows (see explore.explain) and {class: title} -> matplotlib Figure."""
    theme = t.DARK if dark else t.LIGHT
    told = [each for each in told if not each.error]
    figure = t.blank(12, 2.2 + 0.62 * len(told) + 0.9, theme)
    left, right = figure.subplots(1, 2, width_ratios=(2, 1))
    bars(left, told, classes, theme)
    growth(right, told, theme)
    return figure


def bars(axes, told, classes, theme):
    t.plain_axes(axes, theme)
    axes.grid(False, axis="y")
    start = [0.0] * len(told)
    for (kind, title), colour in zip(classes.items(), COLOURS, strict=True):
        widths = [each.seconds[kind] for each in told]
        if any(widths):
            axes.barh(range(len(told)), widths, left=start, height=0.6, color=colour, label=title, edgecolor=theme.paper)
        start = [a + b for a, b in zip(start, widths)]
    axes.set_yticks(range(len(told)), [textwrap.fill(name, 26) for name in t.names(told)], color=theme.ink, parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel("Seconds per picture; shares from a profiled run", color=theme.ink, fontsize=9)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False, fontsize=8, labelcolor=theme.ink)


def growth(axes, told, theme):
    """Line per row: what it can touch, as a share of the full model's FLOPs."""
    t.plain_axes(axes, theme)
    for each, name in zip(told, t.names(told)):
        if each.growth:
            colour, mark = t.look(each)
            axes.plot(list(each.growth), [100 * share for share in each.growth.values()], color=colour, marker=mark,
                      markeredgecolor=theme.paper, label=textwrap.shorten(name, 40))
    sizes = next((list(each.growth) for each in told if each.growth), [])
    axes.set_xticks(sizes)
    axes.set_ylim(0, 100)
    axes.set_xlabel("Picture size, px", color=theme.ink, fontsize=9)
    axes.set_ylabel("% of the full model's FLOPs that it can touch", color=theme.ink, fontsize=9)
    if sizes:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False, fontsize=8, labelcolor=theme.ink)
