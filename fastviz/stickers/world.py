"""Captioned scenes without end: a painted background and up to two stickers with size and relation, from a seed.

Stickers stand on a grid of 8 px, one cell of the autoencoder's latent, so a sticker of one size has one latent
pattern: a small model learns sixty-four of them in hours instead of days.
"""

import functools
import random
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageFilter

from .paint import SIZE, background
from .words import NOUNS, OBJECTS, RELATIONS, SCENERY, SIZES, caption, held_out, noun_phrase

ATLAS = Path(__file__).parents[2] / "assets/stickers/atlas.webp"
CELL = 136  # px, one glyph of the atlas with its transparent margin
GRID = 8  # px, the step of a sticker's position
SIDES = {"small": 56, "medium": 88, "big": 120}  # px, a glyph's longer side; with its rim 8, 12 and 16 cells
SAID = {"train": (3, 4, 3), "heldout": (2, 6, 2), "seen": (2, 6, 2)}  # how often each size is drawn: what captions say is practised more than it is asked
RIM = 4  # px, the white cut-out rim around a glyph


@dataclass(frozen=True)
class Sticker:
    """One object of a scene. side: px without the rim; x, y: px of the top-left corner, rim included."""
    name: str
    size: str
    side: int
    x: int
    y: int

    @property
    def full(self):
        return self.side + 2 * RIM


@dataclass(frozen=True)
class Scene:
    """What is to be seen, and how it is said. relation: of the first sticker to the second, or the side
    that an only one's caption tells; else None."""
    caption: str
    background: str
    stickers: tuple
    relation: str | None
    paint_seed: int


def render_atlas(font="/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"):
    """Draws every glyph once from the colour emoji font into one transparent image, 8 glyphs a row."""
    from PIL import ImageDraw, ImageFont

    face = ImageFont.truetype(font, 109)  # the only size that the bitmap font holds
    atlas = Image.new("RGBA", (8 * CELL, 8 * CELL))
    for i, emoji in enumerate(NOUNS.values()):
        glyph = Image.new("RGBA", (160, 160))
        ImageDraw.Draw(glyph).text((8, 8), emoji, font=face, embedded_color=True)
        glyph = glyph.crop(glyph.getbbox())
        glyph.thumbnail((CELL - 2, CELL - 2), Image.LANCZOS)
        atlas.paste(glyph, (i % 8 * CELL + (CELL - glyph.width) // 2, i // 8 * CELL + (CELL - glyph.height) // 2))
    return atlas


@functools.cache
def glyph(name):
    """The sticker's picture, cropped to its ink, as an RGBA image."""
    i = OBJECTS.index(name)
    atlas = _atlas()
    cell = atlas.crop((i % 8 * CELL, i // 8 * CELL, (i % 8 + 1) * CELL, (i // 8 + 1) * CELL))
    return cell.crop(cell.getbbox())


@functools.cache
def _atlas():
    return Image.open(ATLAS).convert("RGBA")


@functools.cache
def shape(name, side):
    """The glyph scaled to `side` px on its longer side, centred on a transparent square of side + 8 px. RGBA."""
    ink = glyph(name)
    scale = side / max(ink.size)
    ink = ink.resize([max(1, round(s * scale)) for s in ink.size], Image.LANCZOS)
    full = side + 2 * RIM
    sticker = Image.new("RGBA", (full, full))
    sticker.paste(ink, ((full - ink.width) // 2, (full - ink.height) // 2))
    return sticker


@functools.cache
def cutout(name, side):
    """`shape` rimmed in white."""
    sticker = shape(name, side)
    rim = sticker.getchannel("A").filter(ImageFilter.MaxFilter(2 * RIM - 1)).filter(ImageFilter.GaussianBlur(1))
    paper = Image.new("RGBA", sticker.size, "white")
    paper.putalpha(rim)
    return Image.alpha_composite(paper, sticker)


def centred(rng, full, spread):
    """A position on the grid for a sticker of `full` px, most likely the middle, up to `spread` (0..1) of the way out."""
    room = (SIZE - full) // GRID / 2
    return round(room + rng.triangular(-spread, spread, 0) * room) * GRID


def place_alone(rng, name, size):
    side = SIDES[size]
    x, y = (centred(rng, side + 2 * RIM, 1.0) for _ in range(2))
    return Sticker(name, size, side, x, y)


def place_aside(rng, name, size, side):
    """A sticker at a side (left, right, above, below): within a third of the room towards it."""
    full = SIDES[size] + 2 * RIM
    room = (SIZE - full) // GRID
    out = rng.randint(0, room // 3)
    along, across = GRID * (out if side in ("left", "above") else room - out), centred(rng, full, 0.4)
    return Sticker(name, size, SIDES[size], *((along, across) if side in ("left", "right") else (across, along)))


def place_pair(rng, names, sizes, relation):
    """Two stickers that do not overlap, the first `relation` (left, right, above, below) of the second."""
    sides = [SIDES[size] for size in sizes]
    fulls = [side + 2 * RIM for side in sides]  # each a multiple of GRID
    slack = (SIZE - sum(fulls)) // GRID
    start = rng.randint(0, slack)
    gap = rng.randint(0, slack - start)
    first = 0 if relation in ("left", "above") else 1
    along = {first: start * GRID, 1 - first: (start + gap) * GRID + fulls[first]}
    stickers = []
    for i, (name, size, side) in enumerate(zip(names, sizes, sides)):
        across = centred(rng, fulls[i], 0.4)
        x, y = (along[i], across) if relation in ("left", "right") else (across, along[i])
        stickers.append(Sticker(name, size, side, x, y))
    return tuple(stickers)


def placed(rng, names, sizes, relation):
    """The stickers of a scene. relation: of two, the first's to the second; of one, the side it is at, or None for anywhere."""
    if len(names) == 2:
        return place_pair(rng, names, sizes, relation)
    return tuple(place_aside(rng, *each, relation) if relation else place_alone(rng, *each) for each in zip(names, sizes))


def sample(rng, split="train", count=None, aside=0.0):
    """A random scene with a caption. rng: random.Random; split: train, heldout for what training never shows, or seen for
    what it shows, said as heldout is; count: 0, 1 or 2 objects, drawn when None; aside: share of the scenes of one object whose caption tells its side. An unsaid
    background or relation still has a value in the scene."""
    if count is None:
        count = rng.choices((0, 1, 2), weights=(3, 60, 37))[0]
    while True:
        names = rng.sample(OBJECTS, count)
        scenery = rng.choice(SCENERY)
        if count == 0 or held_out(names, scenery) == (split == "heldout"):
            break
    said = None if split == "train" and rng.random() < 0.08 and count else scenery
    relation = spoken = None
    sizes = rng.choices(SIZES, weights=SAID[split], k=count)
    if count == 2:
        relation = rng.choices(("left", "right", "above", "below"), weights=(3, 3, 2, 2))[0]
        spoken = relation if rng.random() < 0.65 else None
    elif count and aside and rng.random() < aside:
        relation = spoken = rng.choice(tuple(RELATIONS))
    stickers = placed(rng, names, sizes, relation)
    text = caption(rng, names, sizes, spoken, said)
    return Scene(text, scenery, stickers, relation, rng.getrandbits(32))


def again(rng, scene):
    """Another scene that the same caption describes: same objects, sizes and background, and the relation where it is said."""
    names, sizes = [s.name for s in scene.stickers], [s.size for s in scene.stickers]
    relation = scene.relation if len(names) < 2 or said(scene) else rng.choice(tuple(RELATIONS))
    return Scene(scene.caption, scene.background, placed(rng, names, sizes, relation), relation, rng.getrandbits(32))


def said(scene):
    """Whether the caption tells where things stand: "a cat" and "a cat and a dog" do not."""
    phrases = [noun_phrase(s.name, s.size) for s in scene.stickers]
    return bool(scene.relation) and (len(phrases) == 1 or " and ".join(phrases) not in scene.caption)


def render(scene):
    """The scene's picture, RGB, 256 x 256 px. The same scene always gives the same picture."""
    image = background(random.Random(scene.paint_seed), scene.background)
    for sticker in scene.stickers:
        picture = cutout(sticker.name, sticker.side)
        image.paste(picture, (sticker.x, sticker.y), picture)
    return image
