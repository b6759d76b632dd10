"""Whether the files of a model are those that were published or trained: hashes of all of them, and no pickle among them."""

import hashlib
import json
from pathlib import Path

HASHES = "hashes.json"  # beside the folders that it speaks of: {"model/unet/config.json": sha256, ...}
SAFE = {".safetensors", ".json", ".txt"}  # everything else in a model's folder is refused; in an operator's own it is passed over


class BadModel(RuntimeError):
    """Weights that are missing or must not be loaded. The text names the file and tells what to do."""


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def contents(folder):
    """Paths of the files below `folder`, relative to it, in order; names that begin with a dot are left out."""
    files = (path.relative_to(folder) for path in Path(folder).rglob("*") if path.is_file())
    return sorted(path.as_posix() for path in files if not any(part.startswith(".") for part in path.parts))


def hashes(folder, part=""):
    """{path relative to `folder`: sha256 of the file}, of those that begin with `part`."""
    return {name: sha256(Path(folder, name)) for name in contents(folder) if name.startswith(part)}


def write_hashes(parent):
    """Writes hashes.json for the files in all folders below `parent` that hold weights, to be compared by `check` ever after.
    Schedules that were fitted lie in others, and tell themselves which weights they belong to."""
    table = hashes(parent)
    weighty = {name.partition("/")[0] for name in table if name.endswith(".safetensors")}
    table = {name: value for name, value in table.items() if "/" in name and name.partition("/")[0] in weighty}
    Path(parent, HASHES).write_text(json.dumps(table, indent=1) + "\n")


def rewrite_hashes(folder):
    """Replaces the lines of one folder in the hashes.json beside it."""
    folder = Path(folder)
    table = folder.parent / HASHES
    others = json.loads(table.read_text()) if table.exists() else {}
    others = {name: value for name, value in others.items() if not name.startswith(f"{folder.name}/")}
    ours = {f"{folder.name}/{name}": value for name, value in hashes(folder).items()}
    table.write_text(json.dumps(dict(sorted((others | ours).items())), indent=1) + "\n")


def check(folder, recorded=False, part="", own=False):
    """Raises BadModel unless `folder` holds exactly the files of the hashes.json beside it, unchanged, and no pickle.

    recorded: without a hashes.json it is refused; part: looks only at the files whose names begin with it; own: it is an
    operator's own, which may hold more, and is compared only where its files are told of. Returns "" when all is verified,
    or the sentence that says why hashes could not be compared.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise BadModel(f"There is no folder {folder}: {again(folder, own=own)}.")
    for name in [] if own else contents(folder):
        if Path(name).suffix not in SAFE:
            raise BadModel(f"{folder / name} is no file for a model ({', '.join(sorted(SAFE))}): remove it.")
    table = folder.parent / HASHES
    if not table.is_file():
        if recorded:
            raise BadModel(f"There is no {table}, so nobody knows what was fetched: `python -m fastviz fetch "
                           f"{folder.parent.name}` writes it when all is complete.")
        return f"There is no {table}: the files of {folder.name} were not verified."
    prefix, told = f"{folder.name}/{part}", json.loads(table.read_text())
    told = {name.removeprefix(f"{folder.name}/"): value for name, value in told.items() if name.startswith(prefix)}
    if own and not told:
        return f"{table} tells nothing of {folder.name}: its files were not verified."
    found = {name: value for name, value in hashes(folder, part).items() if name in told} if own else hashes(folder, part)
    for name in sorted(told.keys() | found.keys()):
        if name not in found:
            raise BadModel(f"{folder / name} is missing: {again(folder, recorded, own)}.")
        if name not in told:
            raise BadModel(f"{folder / name} is not a file of this model: remove it.")
        if told[name] != found[name]:
            raise BadModel(f"{folder / name} was changed or damaged: {again(folder, recorded, own)}.")
    return ""


def again(folder, fetched=False, own=False):
    """What to do about files that are missing or damaged, the end of a sentence."""
    if own:
        return "bring this folder here again from where you have it"
    return f"delete it and run `python -m fastviz fetch {folder.parent.name}`" if fetched else "get the complete project again"
