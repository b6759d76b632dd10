"""What was fitted to one set of weights: where its files lie, and how the weights are told apart."""

import functools
import hashlib
import json
from pathlib import Path

from .checkpoints import published


def folder(pipe):
    """The folder that a pipeline was loaded from, or None."""
    name = getattr(pipe, "name_or_path", None)
    return Path(name) if name and Path(name).is_dir() else None


def beside(folder, name):
    """The folder of what was fitted to the model in `folder`. One that is not called "model" may have others of its kind beside it,
    and what is fitted to it carries its name."""
    return folder.with_name(name if folder.name == "model" else f"{folder.name}-{name}")


def student(folder):
    """Where the one-step student of the model in `folder` lies, a folder that diffusers reads as a pipeline: the published one that
    the table of models names, else one that was trained for these weights."""
    model = published(folder)
    return model.folder if model else beside(folder, "sdxs")


def weights(folder):
    """The sha256 of a model's weights: of the names and sha256 of all safetensors files below its folder."""
    lines = []
    for path in sorted(Path(folder).rglob("*.safetensors")):
        told = path.stat()
        lines.append(f"{path.relative_to(folder).as_posix()} {sha256(path, told.st_size, told.st_mtime_ns)}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def fault(about, folder):
    """Why what `about` tells of does not serve the model in `folder`: a clause without its end, "" when it does. about: the
    JSON file of something that lies beside a model and was trained for its weights, whose sha256 it holds as "teacher"."""
    name = about.parent.relative_to(folder.parents[1]).as_posix()
    if not about.is_file():
        return f"there is no {name}"
    try:
        teacher = json.loads(about.read_text())["teacher"]
    except (ValueError, TypeError, LookupError) as error:
        return f"{name}/{about.name} cannot be read ({error})"
    return "" if teacher == weights(folder) else f"{name} was made for other weights"


@functools.cache
def sha256(path, size, changed):
    """Of a file, read once for as long as neither its size nor its time of change does."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
