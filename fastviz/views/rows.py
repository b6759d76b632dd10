"""Pictures in rows: one for each prompt, a column for each way to draw it."""

import textwrap

from . import theme as t
from .schedule import explain


def grid(pictures, prompts, title, text, dark=False):
    """pictures: {name: [PIL, one for each prompt]} -> matplotlib Figure with `title` and the explaining `text`."""
    theme = t.DARK if dark else t.LIGHT
    figure = t.blank(2.3 * len(pictures) + 0.3, 2.45 * len(prompts) + 1.3, theme)
    cells = figure.subplots(len(prompts), len(pictures), squeeze=False)
    for column, (name, drawn) in zip(cells.T, pictures.items()):
        column[0].set_title(textwrap.fill(name, 26), color=theme.ink, fontsize=10)
        for axis, picture in zip(column, drawn, strict=True):
            axis.imshow(picture, cmap="gray", interpolation="antialiased")
    for axis in cells.flat:
        axis.set_axis_off()
    for axis, prompt in zip(cells[:, 0], prompts):
        axis.text(0, -0.03, textwrap.fill(prompt, 36), transform=axis.transAxes, va="top", color=theme.faint, fontsize=8, parse_math=False)
    explain(figure, title, text, theme, 32 * len(pictures))
    return figure


def one_step(pictures, prompts, dark=False):
    """What a teacher and its student draw in one step."""
    return grid(pictures, prompts, "What one step draws", "The same noise and prompt in every row. A teacher that is asked only "
                "once answers with the mean of all that could be there, which is a blur. A student is trained to answer with one "
                "picture.", dark)


def equal_steps(pictures, prompts, steps, dark=False):
    """What schedules draw with the same number of calls of the network; the full run comes first."""
    return grid(pictures, prompts, f"The same network, asked {steps} times", "The same noise and prompt in every row. The full run "
                "is what all others try to reach; they differ only in when they ask the network and how they add up its answers.",
                dark)


def followed(drawings, pictures, prompts, dark=False):
    """Sketches and what was drawn after them. drawings: [PIL L, black on white]; pictures: {name: [PIL]}, the first of them
    made with the sketch: it is shown once more with the sketch's lines on it."""
    first = next(iter(pictures.values()))
    return grid({"The sketch": drawings, **pictures, "The lines on it": list(map(traced, drawings, first))}, prompts,
                "Pictures that follow a sketch", "The same noise and prompt in every row. A second, small network reads the sketch and "
                "tells the first one at every step where lines are. What stands inside them is left to the prompt.", dark)


def traced(drawing, picture):
    """The picture with the drawing's lines on it."""
    lines = drawing.convert("L").resize(picture.size).point(lambda light: 255 - light)
    found = picture.convert("RGB").copy()
    found.paste((230, 30, 120), mask=lines)
    return found
