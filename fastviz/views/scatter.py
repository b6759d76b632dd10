"""Latency against LPIPS: what a method costs in closeness for what it saves in time, beside simply taking fewer steps."""

import textwrap
from itertools import groupby

from matplotlib.transforms import Bbox

from . import theme as t

PLACES = [(side, shift) for shift in (0, 12, -12, 24, 36, 48, 60, 72) for side in (1, -1)]  # left or right, points up


def scatter(rows, dark=False, size=(6.4, 4.2)):
    """Rows of one comparison -> matplotlib Figure. Lower left is better. See `draw`."""
    theme = t.DARK if dark else t.LIGHT
    figure = t.blank(*size, theme)
    draw(figure.add_subplot(), rows, theme)
    return figure


def shown(row):
    """Whether a row has a point: it was measured, did something and has an LPIPS."""
    return row.error is None and row.applied and isinstance(row.metrics.get("lpips"), float)


def draw(axes, rows, theme):
    """One point per row, whiskers from its fastest to its slowest run; rows of fewer steps are joined, one line per
    solver. Rows without a point are named under the plot with the reason."""
    t.plain_axes(axes, theme)
    points = [(row, name) for row, name in zip(rows, t.names(rows)) if shown(row)]
    for row, _ in points:
        colour, mark = t.look(row)
        whiskers = [[row.seconds - row.spread[0]], [row.spread[1] - row.seconds]]
        axes.errorbar(row.seconds, row.metrics["lpips"], xerr=whiskers, color=colour, marker=mark, markersize=8,
                      elinewidth=1.2, markeredgecolor=theme.paper, zorder=3)
    curves(axes, [row for row, _ in points])
    axes.set_xlabel("Seconds per picture", color=theme.ink, fontsize=9)
    axes.set_ylabel(next((row.lpips_name for row, _ in points), "LPIPS") + " to the full model", color=theme.ink, fontsize=9)
    axes.margins(x=0.2, y=0.12)
    axes.set_xlim(left=0)
    axes.set_title("Lower left is better", loc="left", color=theme.faint, fontsize=9)
    label(axes, points, theme)
    if missing := [f"{name}: {why_not(row)}" for row, name in zip(rows, t.names(rows)) if not shown(row)]:
        note = "\n".join(["Not drawn", *(textwrap.fill(text, 80) for text in missing)])
        axes.text(0, -0.2, note, transform=axes.transAxes, va="top", color=theme.faint, fontsize=7.5, parse_math=False)


def why_not(row):
    return row.error or ("not applied" if row.repeats and not row.applied else row.metrics.get("lpips", "not run yet"))


def solver(row):
    """The solver of a row of fewer steps, "" for others. The default solver is not named in the stack's text."""
    if not row.stack.startswith("few_step") or "+" in row.title:
        return ""
    return next((name for name in ("ddim", "unipc") if f"solver={name}" in row.stack), "dpm")


def curves(axes, rows):
    rows = sorted((row for row in rows if solver(row)), key=lambda row: (solver(row), row.seconds))
    for _, group in groupby(rows, solver):
        group = list(group)
        axes.plot([row.seconds for row in group], [row.metrics["lpips"] for row in group], color=t.look(group[0])[0],
                  linewidth=1.4, alpha=0.7, zorder=2)


def label(axes, points, theme):
    """Names beside the points, at the first of some places where they cover neither a point nor another name."""
    axes.figure.canvas.draw()  # fixes the axes' places, which the boxes of the texts depend on
    at = [axes.transData.transform((row.seconds, row.metrics["lpips"])) for row, _ in points]
    reach = axes.figure.dpi / 14
    taken = [Bbox([point - reach, point + reach]) for point in at]
    for row, name in sorted(points, key=lambda point: point[0].metrics["lpips"]):
        text = axes.annotate(name, (row.seconds, row.metrics["lpips"]), xytext=(8, 0), textcoords="offset points", va="center",
                             color=theme.ink, fontsize=8, parse_math=False)
        for side, shift in PLACES:
            text.set(position=(8 * side, shift), horizontalalignment="left" if side > 0 else "right")
            box = text.get_window_extent()
            inside = axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1
            if inside and not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)
