"""A comparison on disk, in an archive, in a PNG and in a link: what was asked, what came out, how to ask it again."""

import csv
import hashlib
import io
import json
import re
import urllib.parse
import zipfile
from pathlib import Path

from PIL import Image, PngImagePlugin

from . import given
from .request import BadRequest, Request, methods_text, read_number

CHUNK = "fastviz"  # the keyword of the text chunk in a PNG
VERSION = 1
EQUAL = "infinite: the pictures are equal"  # in place of a number that JSON and CSV do not have
NUMBERS = ("seed", "steps", "guidance", "size", "repeats")
FIELDS = ("prompt", *NUMBERS, "model", "methods")
COLUMNS = ("index", "stack", "title", "steps", "repeats", "seconds", "fastest", "slowest", "text", "denoising", "decoder",
           "speedup", "flops", "flops_share", "peak_bytes", "lpips", "lpips_name", "psnr", "ssim", "match", "applied",
           "acted", "error")


def recipe(request):
    """The request as plain values: what a PNG and a JSON file carry. Of pictures that came with it the sketch as text, which
    is small; the start picture as its hash alone."""
    told = {CHUNK: VERSION, **{name: getattr(request, name) for name in FIELDS}, "methods": methods_text(request.methods)}
    if request.sketch:
        told["sketch"] = given.text(request.sketch)
    if request.start:
        told |= {"start": fingerprint(request.start), "strength": request.strength}
    return told


def fingerprint(data):
    """What a picture that is not carried is told apart by."""
    return f"sha256:{hashlib.sha256(data).hexdigest()[:16]}"


def lacking(told):
    """"" or the sentences that say which pictures a recipe or a link only names."""
    hashes = {name for name in ("sketch", "start") if str(told.get(name) or "").startswith("sha256:")}
    drawing = "The drawing is not in it, only its hash: draw it again, or open a PNG that was saved with it." * ("sketch" in hashes)
    start = "The start picture is not in it, only its hash: choose it again for the same pictures." * ("start" in hashes)
    return " ".join(filter(None, (drawing, start)))


def read_recipe(told):
    """The Request that a recipe describes. BadRequest with a sentence when it is none or asks for what cannot be."""
    if not isinstance(told, dict) or told.get(CHUNK) != VERSION or type(told[CHUNK]) is not int:
        raise BadRequest("recipe", "This is not a recipe that this version reads.")
    if missing := [name for name in FIELDS if name not in told]:
        raise BadRequest("recipe", f"The recipe is incomplete: it lacks {', '.join(missing)}.")
    if not isinstance(told["methods"], str):
        raise BadRequest("methods", "The methods of a recipe must be text such as full,tome.")
    return Request(**{name: told[name] for name in FIELDS}, sketch=drawing(told.get("sketch")))


def drawing(told):
    """The bytes of the sketch in a recipe; None without one, or where there is only its hash."""
    if told is None or isinstance(told, str) and told.startswith("sha256:"):
        return None
    try:
        return given.from_text(told, "sketch")
    except ValueError as refusal:
        raise BadRequest("sketch", str(refusal)) from None


def query(request):
    """The request as the query string of a permalink, the pictures that came with it as hashes."""
    told = recipe(request)
    pictures = {name: fingerprint(data) for name in ("sketch", "start") if (data := getattr(request, name))}
    return urllib.parse.urlencode({name: told[name] for name in FIELDS} | pictures)


def from_query(told):
    """The Request of a permalink: `told` maps names to texts, as a server parses them. Names that are not ours are left
    alone, missing ones have their defaults. BadRequest with a sentence."""
    values = {name: told[name] for name in FIELDS if name in told}
    for name in NUMBERS:
        if isinstance(values.get(name), str):
            number = read_number(values[name])
            values[name] = values[name] if number is None else number
    if not isinstance(values.get("methods", ""), str):
        raise BadRequest("methods", "The methods of a link must be text such as full,tome.")
    return Request(**{"prompt": ""} | values)


def save_png(image, file, told):
    """Writes a PIL picture as PNG to a path or an open file, with the recipe `told` inside as ASCII JSON."""
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text(CHUNK, json.dumps(told))
    image.save(file, format="PNG", pnginfo=chunks)


def read_png(file):
    """The Request in a PNG that save_png wrote. BadRequest when there is none."""
    try:
        with Image.open(file, formats=["PNG"]) as image:
            told = json.loads(image.text.get(CHUNK, "null"))
    except (OSError, ValueError, SyntaxError, RecursionError, Image.DecompressionBombError):  # no PNG, no JSON, or too much
        told = None
    return read_recipe(told)


def figure_or_text(value):
    """A metric as JSON and CSV can hold it: infinity in words."""
    return EQUAL if value == float("inf") else value


def told_row(row):
    """A Row as plain values for run.json, without pictures. Times in s."""
    plain = ("index", "stack", "title", "steps", "error", "repeats", "seconds", "spread", "parts", "per_step", "speedup",
             "flops", "flops_per_step", "flops_share", "peak_bytes", "kept_bytes", "lpips_name", "found", "acted", "applied")
    metrics = {name: figure_or_text(value) for name, value in row.metrics.items()}
    picture = picture_name(row) if row.image else None
    return {name: getattr(row, name) for name in plain} | {"metrics": metrics, "picture": picture}


def picture_name(row):
    """`02-tome-ratio-0.4.png`: safe as a file name whatever the settings say."""
    slug = re.sub(r"[^a-z0-9_.+-]+", "-", row.stack.lower()).strip("-.")[:60]
    return f"{row.index:02d}-{slug}.png"


def report(request, rows, environment):
    """Everything about a comparison but the pictures, as plain values that json writes."""
    return {"recipe": recipe(request), "environment": environment, "rows": [told_row(row) for row in rows]}


def table(rows):
    """One line per row as CSV text, columns as in COLUMNS; times in s, memory in bytes."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        told = told_row(row)
        fastest, slowest = row.spread or (None, None)
        acted = " ".join(f"{key}:{blocks}x{steps}" for key, (blocks, steps) in row.acted.items())
        writer.writerow(told | told["parts"] | told["metrics"] | {"fastest": fastest, "slowest": slowest, "acted": acted})
    return text.getvalue()


def files(request, rows, environment):
    """{file name: bytes} of a comparison: the pictures, their maps, run.json and table.csv."""
    found, told = {}, recipe(request)
    for row in rows:
        for suffix, image in (("", row.image), ("-lpips", row.lpips_map), ("-difference", row.difference_map)):
            if image is not None:
                png = io.BytesIO()
                save_png(image, png, told)
                found[picture_name(row).removesuffix(".png") + suffix + ".png"] = png.getvalue()
    found["run.json"] = (json.dumps(report(request, rows, environment), indent=1, allow_nan=False) + "\n").encode()
    found["table.csv"] = table(rows).encode()
    return found


def figure(request, rows, environment):
    """{"figure.png": bytes}: the rows in one picture, for whoever takes the files away; what is kept is drawn anew."""
    from . import views  # matplotlib takes seconds: links and recipes must not wait for it

    return {"figure.png": views.png(views.summary(request, rows, environment))}


def save(folder, request, rows, environment=None):
    """Writes all files of a comparison into `folder`, which is made if need be. environment: compare.environment() by
    default. Returns the folder's path."""
    if environment is None:
        from . import compare, models

        environment = compare.environment(models.load(request.model))
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in (files(request, rows, environment) | figure(request, rows, environment)).items():
        (folder / name).write_bytes(data)
    return folder


def load(folder):
    """(Request, Rows, environment) that `save` wrote into `folder`; the Rows have no Run. OSError where files are missing,
    ValueError (BadRequest is one) where they are none of ours."""
    told = json.loads(Path(folder, "run.json").read_text())
    try:
        rows = [read_row(row, Path(folder)) for row in told["rows"]]
        return read_recipe(told["recipe"]), rows, dict(told["environment"])
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder} holds no run that this version reads") from error


def read_row(told, folder):
    """The Row that told_row described, with its pictures from `folder`."""
    from .compare import Row

    pairs = ("spread", "per_step", "flops_per_step")  # JSON knows lists only
    plain = {name: tuple(value) if name in pairs else value for name, value in told.items() if name not in ("metrics", "picture")}
    row = Row(**plain, done=True)
    row.metrics = {name: float("inf") if value == EQUAL else value for name, value in told["metrics"].items()}
    row.acted = {key: tuple(counts) for key, counts in row.acted.items()}
    if told["picture"]:
        name = picture_name(row).removesuffix(".png")
        row.image, row.lpips_map, row.difference_map = (picture_at(folder / f"{name}{suffix}.png")
                                                       for suffix in ("", "-lpips", "-difference"))
    return row


def picture_at(path):
    """PIL RGB, or None where there is no such file."""
    if not path.is_file():
        return None
    with Image.open(path, formats=["PNG"]) as image:
        return image.convert("RGB")


def archive(found):
    """What `files` gave as the bytes of a zip archive."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as zipped:
        for name, content in found.items():
            zipped.writestr(f"fastviz/{name}", content)
    return data.getvalue()
