"""The sketch that belongs to a scene: outlines of its objects, drawn as a person with a pen would draw them.

A pure function of the scene. The hand is simulated: it rounds corners off, wavers, presses harder and softer, leaves gaps,
and sometimes also draws what it sees inside an object.
"""

import functools
import math
import random

import numpy as np
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter1d
from skimage.measure import find_contours

from .. import world

LARGE = 2  # strokes are drawn so many times larger, then reduced, which smooths their edges
STEP = 2.0  # px between two points of a stroke
SHORT = 14  # px, contours shorter than this are specks
INSIDE = 0.5  # share of the objects that get lines inside their outline
ROUND, WAVER, WIDTH, GAP = (0.3, 3.5), (0.2, 1.6), (2.0, 6.5), 0.08  # px, px, px, share of a contour


def even(line):
    """A contour (N, 2) as points that stand STEP px apart, the last one next to the first."""
    gaps = np.linalg.norm(np.diff(line, axis=0), axis=1)
    along = np.concatenate([[0], np.cumsum(gaps)])
    at = np.linspace(0, along[-1], max(4, round(along[-1] / STEP)), endpoint=False)
    return np.stack([np.interp(at, along, line[:, axis]) for axis in (0, 1)], 1)


def closed(field):
    """Contours of a field (h, w) where it crosses one half: closed lines of (x, y), longest first."""
    lines = [line[:, ::-1] - 2 for line in find_contours(np.pad(field, 2), 0.5)]
    lines = [even(line) for line in lines if np.allclose(line[0], line[-1])]
    return sorted((line for line in lines if len(line) * STEP >= SHORT), key=len, reverse=True)


@functools.cache
def contours(name, side):
    """(outer contours, lines inside) of an object whose longer side is `side` px, in px from the sticker's corner."""
    ink = world.shape(name, side)
    alpha = np.asarray(ink.getchannel("A"), float) / 255
    light = np.asarray(ink.convert("L"), float) / 255
    return closed(alpha), closed(np.where(alpha > 0.5, light < np.median(light[alpha > 0.5]), 0.0))[:4]


def stroke(rng, line):
    """A contour as a hand draws it: points (N, 2) and the pen's width at each of them, px."""
    count = len(line)
    line = gaussian_filter1d(line, rng.uniform(*ROUND) / STEP, axis=0, mode="wrap")
    turns = np.arange(count) * STEP / 60  # the hand wavers over some 60 px
    for axis in (0, 1):
        for speed in (0.5, 1.0, 2.0):
            line[:, axis] += rng.uniform(*WAVER) / 3 * np.sin(2 * math.pi * (speed * turns + rng.random()))
    width = rng.uniform(*WIDTH) * (1 + 0.3 * np.sin(2 * math.pi * (turns / 2 + rng.random())))
    first, drawn = rng.randrange(count), max(3, round(count * (1 - rng.uniform(-GAP, GAP))))  # too long: ends that overlap
    order = np.arange(first, first + drawn) % count
    return line[order], width[order]


def ink(pen, line, width):
    """Draws one stroke with round ends on an ImageDraw of LARGE times the size."""
    for (x, y), w in zip(line * LARGE, width * LARGE / 2):
        pen.ellipse((x - w, y - w, x + w, y + w), fill=0)
    for a, b, w in zip(line * LARGE, line[1:] * LARGE, width):
        pen.line((*a, *b), fill=0, width=round(w * LARGE))


def draw(scene):
    """The sketch of a scene: black on white, mode L, as large as the scene's picture. The same scene gives the same one."""
    rng = random.Random(~scene.paint_seed & 2**64 - 1)
    paper = Image.new("L", (world.SIZE * LARGE,) * 2, 255)
    pen = ImageDraw.Draw(paper)
    for sticker in scene.stickers:
        outer, inside = contours(sticker.name, sticker.side)
        corner = np.array([sticker.x, sticker.y]) + [rng.uniform(-1.5, 1.5) for _ in range(2)]
        for line in outer + (inside if rng.random() < INSIDE else []):
            ink(pen, *stroke(rng, line + corner))
    return paper.reduce(LARGE)
