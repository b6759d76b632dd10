"""What all overlays share: the Frames, the records of one block, tokens as squares of pixels, heat, short texts.

Times are stacked in front: S recorded steps, h x w tokens, k x k pixels of each token. Steps count from 1 in texts, as
everywhere on the page.
"""

from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex, to_rgb
from PIL import Image, ImageDraw, ImageFont

QUIET = "not active here"
IDLE = "Nothing to see: the method leaves this part of the network as it is."
HEAT = np.round(255 * colormaps["magma"](np.linspace(0, 1, 256))[:, :3]).astype(np.uint8)
LESS, MORE = "#56b4e9", "#ffa600"  # of a change
ALPHA = (150, 240)  # of the weakest and of the strongest heat


@dataclass(frozen=True)
class Frames:
    """Overlays of one block, one per sampling step.

    images: (steps, h, w, 4) uint8 RGBA, transparent where the picture should show through; legend: [("#rrggbb", text)],
    at most 5; sentence: what to see here; captions: one short text per step.
    """
    images: np.ndarray
    legend: list
    sentence: str
    captions: list


# Records

def recorded(channels, channel, block, part=""):
    """{step: array} that `channel` holds for a transformer block: under the name of the block, of its attention `part`
    (".attn1" or ".attn2"), or of the transformer that it is a layer of."""
    names = {block + part, block.partition(".transformer_blocks.")[0]}
    return {step: array for (step, name), array in sorted(channels.get(channel, {}).items()) if name in names}


def stacked(cells):
    """(S, h, w, ...), in the order of the steps; a single false token where there is no record."""
    return np.stack(list(cells.values())) if cells else np.zeros((1, 1, 1), bool)


def changed(cells):
    """{step: the step at which what is recorded at it was new}: a choice that serves several steps is told at each."""
    found, before = {}, None
    for step, array in cells.items():
        old = before is not None and np.array_equal(array, cells[before], equal_nan=array.dtype.kind == "f")
        found[step] = found[before] if old else step
        before = step
    return found


def framed(drawn, cells, steps, legend, sentence, captions):
    """Frames from the pictures (S, H, W, 4) of the recorded steps {step: record} and captions {step: text}. The other
    steps show nothing and, without a caption, say so."""
    size = drawn.shape[1:] if cells else (8, 8, 4)
    images = np.zeros((steps, *size), np.uint8)
    if cells:
        images[list(cells)] = drawn
    texts = [captions.get(step, QUIET) for step in range(steps)]
    return Frames(images, legend, sentence if captions else IDLE, texts)


# Pixels

def side(size):
    """Pixels along a token of a grid of (h, w)."""
    return 8 if max(size) <= 16 else 4


def packed(rgba):
    """(..., 4) uint8 -> (...) uint32, one number a pixel."""
    return np.ascontiguousarray(rgba, np.uint8).view(np.uint32)[..., 0]


def squares(pixels, k=None):
    """Each token's pixel (S, h, w) uint32 as a square: (S, h, k, w, k), to be drawn upon. See `pictures`."""
    steps, h, w = pixels.shape
    k = k or side((h, w))
    return np.broadcast_to(pixels[:, :, None, :, None], (steps, h, k, w, k)).copy()


def pictures(canvas):
    """(S, h, k, w, k) uint32 -> (S, h * k, w * k, 4) uint8."""
    steps, h, k, w, _ = canvas.shape
    return canvas.reshape(steps, h * k, w * k, 1).view(np.uint8)


def enlarged(rgba):
    """(S, h, w, 4) -> (S, h * k, w * k, 4), plain squares."""
    return pictures(squares(packed(rgba)))


def put(view, where, pixels):
    """Sets the pixels of `view` (S, h, w, ...), some of each token's, where `where` (S, h, w) says so, to the token's
    own of `pixels` (S, h, w)."""
    axes = (slice(None),) * 3 + (None,) * (view.ndim - 3)
    np.copyto(view, pixels[axes], where=where[axes])


def lines(canvas, group, drawn, pixels):
    """Draws a line between neighbouring tokens of different `group` (S, h, w) of which one is `drawn` at least, in the
    `pixels` of the token above or on the left of it."""
    right, below = np.zeros_like(drawn), np.zeros_like(drawn)
    right[:, :, :-1] = (group[:, :, :-1] != group[:, :, 1:]) & (drawn[:, :, :-1] | drawn[:, :, 1:])
    below[:, :-1] = (group[:, :-1] != group[:, 1:]) & (drawn[:, :-1] | drawn[:, 1:])
    put(canvas[..., -1].swapaxes(2, 3), right, pixels)
    put(canvas[:, :, -1], below, pixels)


def dots(canvas, where, pixels):
    """Marks tokens in their middle."""
    k = canvas.shape[-1]
    middle = slice(k // 2 - 1, k // 2 + 1)
    put(canvas[:, :, middle, :, middle].swapaxes(2, 3), where, pixels)


def stamp(picture, text):
    """Writes a short text, white on black, into the lower left corner of one picture (h, w, 4)."""
    font = ImageFont.load_default(10)
    label = Image.new("RGBA", tuple(round(side) + 4 for side in font.getbbox(text)[2:]), "black")
    ImageDraw.Draw(label).text((2, 1), text, "white", font)
    drawn = np.asarray(label)[:len(picture), :picture.shape[1]]
    picture[len(picture) - len(drawn):, :drawn.shape[1]] = drawn


def contrast(rgb, strength):
    """Colours (..., 3) moved towards black where they are bright and towards white where they are dark."""
    rgb = np.asarray(rgb, float)
    bright = rgb @ (0.299, 0.587, 0.114) > 110
    return rgb + strength * (np.where(bright, 0, 255)[..., None] - rgb)


def opaque(rgb):
    """Colours (..., 3) in 0..255 as RGBA of full alpha."""
    rgb = np.round(rgb).astype(np.uint8)
    return np.concatenate([rgb, np.full((*rgb.shape[:-1], 1), 255, np.uint8)], -1)


# Heat

def heat(values):
    """Values in 0..1, beyond it cut off, as RGBA (..., 4): the higher, the brighter and the less of the picture is seen.
    NaN is transparent."""
    known = ~np.isnan(values)
    level = np.clip(np.where(known, values, 0).astype(np.float32), 0, 1)
    rgba = np.empty((*level.shape, 4), np.uint8)
    rgba[..., :3] = HEAT[np.round(255 * level).astype(np.uint8)]
    rgba[..., 3] = np.round(ALPHA[0] + (ALPHA[1] - ALPHA[0]) * level)
    rgba[~known] = 0
    return rgba


def change(values):
    """Values in -1..1 as RGBA (..., 4): black at 0, towards blue below and orange above it, with little of the picture."""
    level = np.sqrt(np.abs(np.clip(values, -1, 1)))[..., None]
    colours = np.array([to_rgb(LESS), to_rgb(MORE)])[(values > 0).astype(int)] * 255
    return np.concatenate([level * colours, np.broadcast_to(ALPHA[1] - 30 * (1 - level), level.shape)], -1).round().astype(np.uint8)


def scale(low, middle, high):
    """The legend of a heat: the colours of 0, 1/2 and 1 with their texts."""
    return [(to_hex(HEAT[at] / 255), text) for at, text in ((0, low), (128, middle), (255, high))]


# Texts

def told(step):
    return f"step {step + 1}"


def aged(text, step, made, how="chosen"):
    """`text`, and at which step that was made, where it was an earlier one."""
    return text if made == step else f"{text}, {how} at {told(made)}"
