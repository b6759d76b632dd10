"""A one-step student beside its teacher: what was taken out of the U-Net, what the small decoder loses.

Figures of plain numbers and pictures, each with the sentences that one needs who has never seen a U-Net from inside.
"""

import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.patches import FancyBboxPatch

from . import theme as t
from .schedule import explain

PLACES = {"down": 0.0, "middle": 1.1, "up": 2.2}  # of a stage's left edge
WIDTH, HEIGHT = 1.0, 0.62


# The U-Nets

def networks(teacher, student, dark=False):
    """Two U-Nets stage by stage -> matplotlib Figure. teacher, student: [{"side": "down", "middle" or "up", "level": 0 for
    the highest resolution, "transformers": blocks, "parameters", "flops"}], with one of side "all" for the whole."""
    theme = t.DARK if dark else t.LIGHT
    figure = t.blank(12, 5.6, theme)
    most = max(stage["flops"] for stage in teacher if stage["side"] != "all")
    kept = {(stage["side"], stage["level"]): stage for stage in student}
    for axis, title, mine in zip(figure.subplots(1, 2), ("Teacher", "Student"), ({(s["side"], s["level"]): s for s in teacher}, kept)):
        axis.set_title(f"{title}: {size(mine['all', 0])}", color=theme.ink, fontsize=11, loc="left")
        for stage in (stage for stage in teacher if stage["side"] != "all"):
            box(axis, stage, mine.get((stage["side"], stage["level"])), most, theme)
        lines(axis, [key for key in mine if key[0] != "all"], theme)
        axis.set_xlim(-0.1, 3.3)
        axis.set_ylim(-max(stage["level"] for stage in teacher) - 1.1, HEIGHT + 0.1)
        axis.set_axis_off()
    whole = next(stage for stage in teacher if stage["side"] == "all")
    explain(figure, "What was taken out of the network", f"A U-Net looks at the picture in ever smaller sizes on the way down, "
            f"and puts it together again on the way up; dotted is what is handed straight across. The deeper the colour, the more it calculates in one call. The student "
            f"does without the dashed stages and keeps {kept['all', 0]['parameters'] / whole['parameters']:.0%} of the parameters and "
            f"{kept['all', 0]['flops'] / whole['flops']:.0%} of the work. What is left began with the teacher's own weights.", theme, 150)
    return figure


def size(stage):
    """`8.26 M parameters, 4.92 GFLOP`."""
    return f"{stage['parameters'] / 1e6:.2f} M parameters, {stage['flops'] / 1e9:.2f} GFLOP"


def place(side, level):
    """The lower left corner of a stage."""
    return PLACES[side], -level - (0.75 if side == "middle" else 0)


def lines(axis, order, theme):
    """The way through the stages that are there, in `order`, and dotted what goes straight across, under the boxes."""
    centres = {key: (x + WIDTH / 2, y + HEIGHT / 2) for key in order for x, y in [place(*key)]}
    across = [(key, ("up", key[1])) for key in order if key[0] == "down" and ("up", key[1]) in centres]
    for pairs, style, width in ((zip(order, order[1:]), "-", 2.0), (across, ":", 1.5)):
        for pair in pairs:
            axis.plot(*zip(*(centres[key] for key in pair)), style, color=theme.faint, linewidth=width, zorder=0.5)


def box(axis, stage, mine, most, theme):
    """One stage of the teacher's, as `mine` has it, None where it is gone."""
    x, y = place(stage["side"], stage["level"])
    share = mine["flops"] / most if mine else 0.0
    fill = blend(t.COLOURS[0], theme.paper, 0.15 + 0.75 * share) if mine else theme.paper
    axis.add_patch(FancyBboxPatch((x, y), WIDTH, HEIGHT, boxstyle="round,pad=0,rounding_size=0.08", facecolor=fill, linewidth=1.2,
                                  edgecolor=theme.faint, linestyle="-" if mine else "--"))
    name = stage["side"] if stage["side"] == "middle" else f"{stage['side']} {stage['level'] + 1}"
    words = [f"{name}: removed"] if mine is None else [
        name, f"{mine['parameters'] / 1e6:.2f} M, {mine['flops'] / 1e9:.2f} GFLOP", attention(stage["transformers"], mine["transformers"])]
    dark_fill = sum(to_rgb(fill)) < 1.5
    axis.text(x + WIDTH / 2, y + HEIGHT / 2, "\n".join(filter(None, words)), ha="center", va="center", fontsize=8, linespacing=1.4,
              color=("#ffffff" if dark_fill else "#1b1f24") if mine else theme.faint)


def attention(before, now):
    """`4 transformer blocks`, `2 of 4 transformer blocks`, `attention removed` or nothing."""
    if not before:
        return ""
    if not now:
        return "attention removed"
    return f"{now} of {before} transformer blocks" if now < before else f"{now} transformer blocks"


def blend(colour, paper, share):
    return tuple(share * a + (1 - share) * b for a, b in zip(to_rgb(colour), to_rgb(paper)))


# The decoders

def decoders(teacher, student, dark=False, top=0.5):
    """Pictures (PIL, of equal size) that two decoders make of the same latents, and their difference -> matplotlib Figure.
    top: absolute difference, mean of the colours in 0..1, at which its map is brightest."""
    theme = t.DARK if dark else t.LIGHT
    figure = t.blank(11, 4.7, theme)
    gap = np.abs(np.asarray(teacher, np.float32) - np.asarray(student, np.float32)).mean(2) / 255
    axes = figure.subplots(1, 3)
    for axis, title, picture in zip(axes, ("The teacher's decoder", "The small decoder", f"Difference, {gap.mean():.3f} on average"),
                                    (teacher, student, gap)):
        shown = axis.imshow(picture, cmap="viridis", vmin=0, vmax=top, interpolation="antialiased")
        axis.set_title(title, color=theme.ink, fontsize=11, loc="left")
        axis.set_axis_off()
    bar = figure.colorbar(shown, ax=axes[2], fraction=0.046, pad=0.02)
    bar.ax.tick_params(colors=theme.faint, labelsize=8)
    bar.outline.set_visible(False)
    explain(figure, "What the small decoder loses", "The network draws in latents, a picture eight times smaller; the decoder "
            "turns them into pixels. Both pictures were made from the same latents. On the right, dark is equal, and 1 would be "
            "black against white.", theme, 140)
    return figure
