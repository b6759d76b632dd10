"""Results of the lessons that were measured beforehand: where they lie, and whether they belong to the weights in use."""

import base64
import functools
import json
from pathlib import Path

from .. import fitted
from ..methods import sdxs
from ..models import MODELS, ROOT
from ..store import recipe
from . import MODEL

FOLDER = ROOT / "assets/lessons"
COMMAND = "python -m fastviz.lessons"


def weights():
    """{part: sha256} of everything that the results depend on: the model, the judge beside it, its student; "" for none."""
    model = MODELS[MODEL].folder
    folders = {"model": model, "judge": model.parent / "judge", "student": sdxs.path_of(model)}
    return {part: fitted.weights(folder) if folder.is_dir() else "" for part, folder in folders.items()}


def read(lesson):
    """What was measured for a lesson, or None: {"recipe", "environment", "measured": day, "weights", "rows": {name: a row as
    store.told_row tells it}, "closing"}. Pictures are names of files in the same folder."""
    path = FOLDER / f"{lesson.key}.json"
    return json.loads(path.read_text()) if path.is_file() else None


def stale(lesson, told):
    """Whether a result was made with other weights than those in use, or for another request than the lesson's."""
    asked = recipe(lesson.request())
    return told["weights"] != weights() or any(told["recipe"].get(name) != asked[name] for name in asked if name != "repeats")


@functools.cache
def picture(name):
    """A shipped picture as a data URI."""
    return "data:image/webp;base64," + base64.b64encode(Path(FOLDER, name).read_bytes()).decode()
