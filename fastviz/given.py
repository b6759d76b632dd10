"""Pictures that come from outside, checked and brought to one form: a drawing, and a picture to start from.

What is refused raises ValueError with a sentence. Sizes are read from a file's head, so that nothing large is ever decoded.
"""

import base64
import io
import warnings

from PIL import Image

SIDE = 256  # px of a drawing
SKETCH_BYTES, START_BYTES = 200_000, 2_000_000  # that are read of a file
SIDES = (64, 1024)  # px of a picture to start from
SKETCH = f"The sketch must be a PNG of {SIDE} x {SIDE} px, black on white"
START = "The start picture must be a PNG, JPEG or WebP file"


def opened(data, formats, most, sentence):
    """The picture in `data`, bytes, not decoded yet. ValueError for anything else, or more than `most` bytes."""
    if not isinstance(data, bytes):
        raise ValueError(f"{sentence}.")
    if len(data) > most:
        raise ValueError(f"{sentence}, {most // 1000} KB at most.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(io.BytesIO(data), formats=formats)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(f"{sentence}.") from None


def decoded(image, mode, sentence):
    """The picture in `mode`, on white where it is transparent. ValueError when the file is damaged."""
    try:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert(mode)
    except (OSError, ValueError, SyntaxError, EOFError):
        raise ValueError(f"{sentence}: this file is damaged.") from None


def png(image):
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


def sketch(data):
    """A drawing as the bytes of a PNG of one bit per px, 8.5 KB at most: equal for equal drawings. None for an empty sheet."""
    image = opened(data, ["PNG"], SKETCH_BYTES, SKETCH)
    if image.size != (SIDE, SIDE):
        raise ValueError(f"{SKETCH}; this one has {image.width} x {image.height}.")
    image = decoded(image, "L", SKETCH).point(lambda light: 255 * (light >= 128)).convert("1")
    return png(image) if image.getextrema()[0] == 0 else None


def start(data):
    """A square picture as the bytes of an RGB PNG: equal for equal pictures."""
    image = opened(data, ["PNG", "JPEG", "WEBP"], START_BYTES, START)
    if image.width != image.height or not SIDES[0] <= image.width <= SIDES[1]:
        raise ValueError(f"{START} and square, of {SIDES[0]} to {SIDES[1]} px; this one has {image.width} x {image.height}.")
    return png(decoded(image, "RGB", START))


def picture(data):
    """The PIL picture of what `sketch` or `start` gave."""
    image = Image.open(io.BytesIO(data), formats=["PNG"])
    image.load()
    return image


def text(data):
    """Bytes as ASCII text, for JSON. None stays None."""
    return data and base64.b64encode(data).decode()


def from_text(told, field):
    """The bytes that `text` wrote. ValueError when it is none of it."""
    try:
        if not isinstance(told, str) or len(told) > 2 * START_BYTES:
            raise ValueError
        return base64.b64decode(told.partition("base64,")[2] or told, validate=True)  # a data URI is fine too
    except ValueError:
        raise ValueError(f"The {field} is not readable: draw or choose it again.") from None
