"""Measures the lessons and writes what the page ships: assets/lessons/*.json, and the pictures beside them."""

import json
import sys
import time

from .. import store
from ..compare import compare, environment, final
from ..models import load
from . import MODEL, shipped
from .closing import CLOSINGS

REPEATS = 3
DROPPED = ("index", "stack", "title", "picture", "kept_bytes", "acted")  # of store.told_row: nothing shows it


def save(image, name):
    """Writes a PIL picture as WebP -> the file's name."""
    shipped.FOLDER.mkdir(parents=True, exist_ok=True)
    image.save(shipped.FOLDER / f"{name}.webp", "WEBP", quality=82, method=6)
    return f"{name}.webp"


def told(row):
    """A Row as plain values, with four digits of what was measured."""
    values = {name: value for name, value in store.told_row(row).items() if name not in DROPPED}
    return json.loads(json.dumps(values), parse_float=lambda text: float(f"{float(text):.4g}"))


def measure(lesson, repeats=REPEATS):
    """Runs one lesson and writes its files. RuntimeError when a row fails: half a result teaches nothing."""
    request = lesson.request(repeats)
    rows = dict(zip(lesson.names, final(compare(request)), strict=True))
    if failed := {name: row.error for name, row in rows.items() if row.error}:
        raise RuntimeError(f"Lesson {lesson.key}: {failed}")
    closing = CLOSINGS[lesson.closing](request, rows)
    for i, item in enumerate(closing.get("items", ())):
        item["picture"] = save(item["picture"], f"{lesson.key}-closing-{i + 1}")
    found = {"recipe": store.recipe(request), "environment": environment(load(MODEL)), "measured": time.strftime("%Y-%m-%d"),
             "weights": shipped.weights(), "closing": closing,
             "rows": {name: told(row) | {"picture": save(row.image, f"{lesson.key}-{name}")} for name, row in rows.items()}}
    (shipped.FOLDER / f"{lesson.key}.json").write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
    print(f"{lesson.key}: {', '.join(f'{name} {row.seconds:.2f} s' for name, row in rows.items())}", file=sys.stderr, flush=True)
