"""One comparison on one sheet: the pictures with their numbers, where the time went, and latency against LPIPS."""

import textwrap

from . import theme as t
from .scatter import draw

COLUMNS = 4
PARTS = (("text", "Text encoder", 2), ("denoising", "Denoising", 0), ("decoder", "Decoder", 1))


def summary(request, rows, environment=None, dark=False):
    """Request, its Rows and compare.environment() -> matplotlib Figure."""
    theme = t.DARK if dark else t.LIGHT
    lines = -(-len(rows) // COLUMNS)
    figure = t.blank(11, 3.15 * lines + 4.3, theme)
    above, below = figure.subfigures(2, 1, height_ratios=[3.15 * lines, 3.8], facecolor=theme.paper)
    pictures(above, rows, theme, lines)
    left, right = below.subplots(1, 2)
    bars(left, rows, theme)
    draw(right, rows, theme)
    figure.suptitle(textwrap.fill(request.prompt, 100), color=theme.ink, fontsize=13, fontfamily=t.fonts(), parse_math=False)
    measured = ", ".join(f"{name} {value}" for name, value in (environment or {}).items() if name != "system")
    figure.supxlabel(f"seed {request.seed}, {request.steps} steps, guidance {request.guidance:g}, {request.size} px, "
                     f"median of {request.repeats}\n{measured}", color=theme.faint, fontsize=8, parse_math=False)
    return figure


def pictures(figure, rows, theme, lines):
    cells = figure.subplots(lines, COLUMNS, squeeze=False).flatten()
    for cell in cells:
        cell.set_axis_off()
    for cell, row, name in zip(cells, rows, t.names(rows)):
        cell.set_title(textwrap.fill(name, 34), color=theme.ink, fontsize=10, parse_math=False)
        if row.image is None:
            cell.text(0.5, 0.5, textwrap.fill(row.error or "not run yet", 32), ha="center", va="center", color=theme.ink,
                      fontsize=9, parse_math=False)
            continue
        cell.imshow(row.image, interpolation="antialiased")
        cell.text(0.5, -0.03, numbers(row), transform=cell.transAxes, ha="center", va="top", color=theme.faint, fontsize=9)


def numbers(row):
    """A row's caption: time, speed-up, LPIPS."""
    speedup = "reference" if row.index == 0 else f"{row.speedup:.2f}x" if row.speedup else "not applied"
    lpips = row.metrics["lpips"]
    return f"{row.seconds:.2f} s, {speedup}" + (f"\nLPIPS {lpips:.3f}" if isinstance(lpips, float) and row.index else "\n")


def bars(axes, rows, theme):
    """Seconds of each row, split into text encoder, denoising and decoder; the whisker spans its runs."""
    t.plain_axes(axes, theme)
    axes.grid(False, axis="y")
    timed = [(row, name) for row, name in zip(rows, t.names(rows)) if row.parts]
    start = [0.0] * len(timed)
    for key, title, colour in PARTS:
        widths = [row.parts[key] for row, _ in timed]
        axes.barh(range(len(timed)), widths, left=start, height=0.6, color=t.COLOURS[colour], label=title,
                  edgecolor=theme.paper)
        start = [a + b for a, b in zip(start, widths)]
    for i, (row, _) in enumerate(timed):
        axes.plot(row.spread, [i, i], color=theme.ink, linewidth=1.2, marker="|", markersize=6)
    axes.set_yticks(range(len(timed)), [textwrap.fill(name, 26) for _, name in timed], color=theme.ink, parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel("Seconds per picture", color=theme.ink, fontsize=9)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False, fontsize=8, labelcolor=theme.ink)
