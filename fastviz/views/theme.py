"""Colours, marks and numbers that all figures share. Colours are Okabe and Ito's and one of Tol's, told apart without red-green vision;
marks differ too, so nothing hangs on colour alone."""

import functools
import io
import warnings
from dataclasses import dataclass

from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#882255", "#8A1FEE")
MARKS = "oD^sPX*v"
CJK = ("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC", "PingFang SC", "Hiragino Sans GB", "Microsoft YaHei",
       "SimHei", "WenQuanYi Zen Hei", "Arial Unicode MS")
warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # it would spell a prompt in the log


@dataclass(frozen=True)
class Theme:
    """paper: background; ink: text; faint: second text; line: axes and grids."""
    paper: str
    ink: str
    faint: str
    line: str


LIGHT = Theme("#ffffff", "#1b1f24", "#57606a", "#d0d7de")
DARK = Theme("#14171c", "#e8eaed", "#a3abb5", "#3a414b")


@functools.cache
def fonts():
    """Families for words of any script: matplotlib's own, then the first of this machine's that holds Chinese and Japanese."""
    here = {each.name for each in font_manager.fontManager.ttflist}
    return ["DejaVu Sans", *[name for name in CJK if name in here][:1]]


def blank(width, height, theme):
    """An empty figure of width x height inches that belongs to no window."""
    figure = Figure((width, height), facecolor=theme.paper, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plain_axes(axes, theme):
    """Only the lines that are read: two spines and a faint grid."""
    axes.set_facecolor(theme.paper)
    axes.tick_params(colors=theme.faint, labelsize=8)
    axes.grid(color=theme.line, linewidth=0.6, alpha=0.7)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(theme.line)


def look(row):
    """Colour and mark of a row, by its methods: rows of the same methods look the same."""
    keys = [part.partition("(")[0] for part in row.stack.split("+")]
    order = ("full", "few_step", "attention_reuse", "tome", "atedm", "olss", "sdxs")
    i = len(order) if len(keys) > 1 or keys[0] not in order else order.index(keys[0])
    return COLOURS[i], MARKS[i]


def names(rows):
    """One name per row: its title; with the settings where titles repeat, and the number of steps for fewer steps."""
    titles = [row.title for row in rows]
    return [few(row) if row.stack.startswith("few_step") and "+" not in row.title
            else row.title if titles.count(row.title) == 1 else settled(row) for row in rows]


def few(row):
    solver = next((f" {name.upper()}" for name in ("ddim", "unipc") if f"solver={name}" in row.stack), "")
    return f"{row.title}:{solver} {row.steps}"


def settled(row):
    """`Token merging (ratio=0.4)`; a stack's whole text for a stack."""
    if "+" in row.title:
        return row.stack
    settings = row.stack.partition("(")[2]
    return f"{row.title} ({settings}" if settings else row.title


def png(figure, dpi=150):
    """The figure as the bytes of a PNG."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dpi)
    return file.getvalue()
