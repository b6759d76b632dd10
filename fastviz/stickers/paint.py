"""Ten painted backgrounds, each with variation: colours, horizon, and where things stand."""

import numpy as np
from PIL import Image, ImageDraw

SIZE = 256  # px, the side of every scene


def jitter(rng, color, amount=10):
    return tuple(int(np.clip(c + rng.uniform(-amount, amount), 0, 255)) for c in color)


def gradient(rng, *stops):
    """A vertical gradient through (height in 0..1, colour) stops, each colour varied a little. (2 SIZE) px square."""
    heights = [h * (2 * SIZE - 1) for h, _ in stops]
    colors = np.array([jitter(rng, c) for _, c in stops], float)
    rows = np.arange(2 * SIZE)
    column = np.stack([np.interp(rows, heights, colors[:, i]) for i in range(3)], 1).round().astype(np.uint8)
    return Image.fromarray(np.repeat(column[:, None], 2 * SIZE, 1))


def hills(rng, draw, height, color, waves=2.0, depth=0.05):
    """A rolling silhouette from `height` (0..1 of the picture) down to the ground."""
    phase, wave = rng.uniform(0, 6.28), waves * rng.uniform(0.8, 1.25)
    xs = np.linspace(0, 1, 33)
    ys = height + depth * np.sin(phase + wave * 6.28 * xs)
    top = [(x * 2 * SIZE, y * 2 * SIZE) for x, y in zip(xs, ys)]
    draw.polygon([*top, (2 * SIZE, 2 * SIZE), (0, 2 * SIZE)], fill=jitter(rng, color))


def cloud(rng, draw, x, y, scale, color):
    for dx, dy, r in ((-1, 0.15, 0.5), (-0.35, -0.2, 0.65), (0.4, -0.05, 0.6), (1, 0.2, 0.45)):
        cx, cy, r = x + dx * scale, y + dy * scale, r * scale
        draw.ellipse((cx - r, cy - r, cx + r, cy + r), fill=color)


def scatter(rng, count, low=0.0, high=1.0):
    """`count` random points, x over the whole width, y in the band low..high."""
    return [(rng.uniform(0, 2 * SIZE), rng.uniform(low, high) * 2 * SIZE) for _ in range(count)]


def blue_sky(rng):
    image = gradient(rng, (0, (64, 150, 235)), (1, (190, 228, 252)))
    draw = ImageDraw.Draw(image)
    for x, y in scatter(rng, rng.randint(2, 4)):
        cloud(rng, draw, x, y, rng.uniform(30, 55), (248, 251, 255))
    return image


def night_sky(rng):
    image = gradient(rng, (0, (10, 14, 48)), (1, (46, 48, 108)))
    draw = ImageDraw.Draw(image)
    for x, y in scatter(rng, 26):
        r = rng.uniform(2, 4.5)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(240, 238, 200))
    return image


def beach(rng):
    horizon, shore = rng.uniform(0.30, 0.40), rng.uniform(0.58, 0.66)
    image = gradient(rng, (0, (120, 200, 245)), (horizon, (205, 238, 250)), (1, (205, 238, 250)))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, horizon * 2 * SIZE, 2 * SIZE, 2 * SIZE), fill=jitter(rng, (38, 150, 190)))
    hills(rng, draw, shore - 0.02, (235, 248, 250), waves=1.0, depth=0.015)
    hills(rng, draw, shore + 0.02, (240, 214, 150), waves=1.0, depth=0.015)
    return image


def meadow(rng):
    image = gradient(rng, (0, (135, 206, 250)), (0.6, (220, 242, 250)), (1, (220, 242, 250)))
    draw = ImageDraw.Draw(image)
    hills(rng, draw, rng.uniform(0.42, 0.50), (120, 190, 90), waves=1.0)
    hills(rng, draw, rng.uniform(0.58, 0.66), (90, 168, 66), waves=0.7)
    for x, y in scatter(rng, 14, 0.75, 1.0):
        color = rng.choice([(255, 255, 255), (252, 220, 80), (240, 130, 170)])
        draw.ellipse((x - 5, y - 5, x + 5, y + 5), fill=color)
    return image


def snow(rng):
    image = gradient(rng, (0, (150, 172, 200)), (0.7, (214, 226, 238)), (1, (214, 226, 238)))
    draw = ImageDraw.Draw(image)
    hills(rng, draw, rng.uniform(0.55, 0.62), (228, 236, 246), waves=1.0)
    hills(rng, draw, rng.uniform(0.70, 0.76), (244, 248, 253), waves=0.7)
    for x, y in scatter(rng, 30, 0, 0.9):
        draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=(255, 255, 255))
    return image


def desert(rng):
    image = gradient(rng, (0, (244, 196, 120)), (0.5, (252, 232, 190)), (1, (252, 232, 190)))
    draw = ImageDraw.Draw(image)
    hills(rng, draw, rng.uniform(0.46, 0.54), (224, 160, 88), waves=0.9, depth=0.06)
    hills(rng, draw, rng.uniform(0.64, 0.70), (206, 134, 66), waves=0.6, depth=0.06)
    return image


def sunset(rng):
    image = gradient(rng, (0, (84, 48, 128)), (0.35, (224, 90, 110)), (0.65, (255, 178, 80)), (1, (255, 220, 130)))
    draw = ImageDraw.Draw(image)
    hills(rng, draw, rng.uniform(0.74, 0.80), (60, 34, 72), waves=1.2, depth=0.04)
    return image


def ocean(rng):
    image = gradient(rng, (0, (40, 170, 200)), (1, (8, 48, 104)))
    draw = ImageDraw.Draw(image)
    for x, y in scatter(rng, 12):
        r = rng.uniform(5, 14)
        draw.ellipse((x - r, y - r, x + r, y + r), outline=(170, 225, 240), width=3)
    return image


def city_street(rng):
    image = gradient(rng, (0, (176, 196, 216)), (0.7, (226, 226, 226)), (1, (226, 226, 226)))
    draw = ImageDraw.Draw(image)
    x, road = 0.0, rng.uniform(0.72, 0.78) * 2 * SIZE
    while x < 2 * SIZE:
        width, top = rng.uniform(80, 120), rng.uniform(0.15, 0.42) * 2 * SIZE
        draw.rectangle((x, top, x + width, road), fill=jitter(rng, rng.choice([(150, 108, 96), (120, 128, 146), (176, 152, 120)])))
        for wy in np.arange(top + 20, road - 34, 46):
            for wx in np.arange(x + 16, x + width - 20, 34):
                draw.rectangle((wx, wy, wx + 16, wy + 24), fill=(246, 232, 176))
        x += width
    draw.rectangle((0, road, 2 * SIZE, 2 * SIZE), fill=jitter(rng, (82, 84, 90)))
    for wx in np.arange(rng.uniform(-80, 0), 2 * SIZE, 96):
        draw.rectangle((wx, road + 58, wx + 48, road + 66), fill=(240, 240, 230))
    return image


def forest(rng):
    image = gradient(rng, (0, (150, 200, 170)), (0.7, (206, 228, 190)), (1, (206, 228, 190)))
    draw = ImageDraw.Draw(image)
    ground = rng.uniform(0.70, 0.78) * 2 * SIZE
    draw.rectangle((0, ground, 2 * SIZE, 2 * SIZE), fill=jitter(rng, (92, 112, 60)))
    for x in np.arange(rng.uniform(-30, 20), 2 * SIZE + 40, 74) + rng.uniform(-8, 8):
        base, tall, half = ground + rng.uniform(0, 36), rng.uniform(230, 330), rng.uniform(44, 60)
        draw.rectangle((x - 9, base - 50, x + 9, base), fill=(96, 68, 44))
        green = jitter(rng, (34, 98, 58), 14)
        for level in range(3):
            low = base - 40 - level * tall * 0.24
            spread = half * (1 - 0.22 * level)
            draw.polygon([(x - spread, low), (x + spread, low), (x, low - tall * 0.42)], fill=green)
    return image


PAINTERS = {
    "blue sky": blue_sky, "night sky": night_sky, "beach": beach, "meadow": meadow, "snow": snow,
    "desert": desert, "sunset": sunset, "ocean": ocean, "city street": city_street, "forest": forest,
}


def background(rng, name):
    """The background `name`, varied by `rng` (random.Random), as an RGB image of 256 x 256 px.

    It is drawn twice as large and halved, which smooths every edge.
    """
    return PAINTERS[name](rng).reduce(2)
