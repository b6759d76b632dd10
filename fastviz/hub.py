"""Brings a model of the table onto this disk, on the operator's word, and records what came: commit and every file's hash.

The table pins the commit. What was fetched first is what is trusted: `verified.check` compares every file with the record from
then on.
"""

import dataclasses
import errno
import json
import re
import shutil
import sys

from . import fitted, sketch
from .models import device, free_memory
from .verified import HASHES, BadModel, contents, sha256, write_hashes

ORIGIN = "origin.json"  # beside hashes.json: where the files came from
NETWORKS = ("unet", "vae", "text_encoder", "text_encoder_2")
PARTS = (*NETWORKS, "scheduler", "tokenizer", "tokenizer_2")
MARGIN = 2**28  # bytes of disk that stay free
ARRIVING = ".arriving"  # folder of what has come of large files that are not complete, by their sha256
CONTROL, PICKLE = ("config.json", "diffusion_pytorch_model.safetensors"), "diffusion_pytorch_model.bin"


def wanted(names, variant):
    """Those of a repository's files that are loaded: configurations, vocabularies, and one set of safetensors per network.
    BadModel where a network has none."""
    dot = f".{variant}" if variant else ""
    weights = re.compile(rf"(diffusion_pytorch_model|model){re.escape(dot)}(-\d+-of-\d+)?\.safetensors(\.index{re.escape(dot)}\.json)?")
    plain = re.compile(r"(config|scheduler_config|tokenizer_config|tokenizer|special_tokens_map|added_tokens|vocab)\.json|merges\.txt")
    found = ["model_index.json"]
    for name in names:
        part, _, file = name.partition("/")
        if part in PARTS and (weights if part in NETWORKS and ".safetensors" in file else plain).fullmatch(file):
            found.append(name)
    for part in NETWORKS:
        own = [name for name in names if name.startswith(f"{part}/")]
        if own and not any(name.startswith(f"{part}/") and name.endswith(".safetensors") for name in found):
            raise BadModel(f"{part} is not published as safetensors{f' ({variant})' if variant else ''}, and nothing else is "
                           "loaded here.")
    if "model_index.json" not in names or "unet/config.json" not in found:
        raise BadModel("This is no repository of a diffusers pipeline.")
    return found


def sentence(error, model):
    """What people read about an error of the hub or the disk."""
    from huggingface_hub import errors

    page = f"https://huggingface.co/{model.hub}"
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"The disk takes no more: make room in {model.folder.parent}, or set FASTVIZ_MODELS to a folder elsewhere."
    if isinstance(error, errors.GatedRepoError):
        return (f"{model.title} is given to those who accepted its licence: open {page}, sign in and accept it, then run `hf "
                "auth login` here and the same command again.")
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{page} no longer has the commit {model.revision}: this version of fastviz cannot fetch it."
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"There is no {page}, or it is shown to members only: run `hf auth login` if you are one."
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "The network is switched off by HF_HUB_OFFLINE: unset it and run the same command again."
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return (f"{page} could not be read ({reason}): connect to the network and run the same command again, what has come "
            "is kept.")


def check_room(model, sizes, folder):
    """BadModel when the files that are still to come do not fit onto the disk; says so when the model will not fit into
    memory."""
    place = model.folder.parent
    place.mkdir(parents=True, exist_ok=True)
    missing = sum(size for name, size in sizes.items() if not (folder / name).is_file())
    missing -= sum(part.stat().st_size for part in (folder / ARRIVING).glob("*"))
    free = shutil.disk_usage(place).free
    if missing + MARGIN > free:
        raise BadModel(f"{model.title} needs {missing / 1e9:.2f} GB on disk and {free / 1e9:.2f} GB are free in {place}: make "
                       "room, or set FASTVIZ_MODELS to a folder elsewhere.")
    need, memory = model.memory(device().type), free_memory(device())
    if need > memory:
        print(f"It will take about {need / 2**30:.1f} GiB of memory to run, and {memory / 2**30:.1f} GiB are free here now.",
              file=sys.stderr)


def fetch(model):
    """Downloads what is missing of `model` and of its network for sketches, checks it and writes the record -> the model's
    folder. BadModel with a sentence; what had come by then stays, and the next fetch goes on from there."""
    revision, names = bring(model, model.folder, lambda names: wanted(names, model.variant))
    record(model, revision)
    if model.control:
        fetch_control(model)
    return model.folder


def bring(model, folder, choose):
    """Downloads into `folder` those files of model.hub that `choose` picks of all their names, and removes all others
    -> (commit, names)."""
    from huggingface_hub import HfApi, errors, hf_hub_download

    try:
        told = HfApi().model_info(model.hub, revision=model.revision, files_metadata=True)
        files = {each.rfilename: each for each in told.siblings}
        names = choose(list(files))
        sizes = {name: files[name].size or 0 for name in names}
        print(f"{model.title}: https://huggingface.co/{model.hub}, commit {told.sha}\nLicence: {model.licence}. Read it on "
              f"that page; by using the model you accept it.\n{len(names)} files, {sum(sizes.values()) / 1e9:.2f} GB, into "
              f"{folder}", file=sys.stderr)
        check_room(model, sizes, folder)
        for name in names:
            if files[name].lfs:
                download(model.hub, files[name], told.sha, folder)
            else:
                hf_hub_download(model.hub, name, revision=told.sha, local_dir=folder)
        shutil.rmtree(folder / ARRIVING, ignore_errors=True)
    except KeyboardInterrupt:
        print(f"\n{model.title} is not complete: the same command goes on where it was.", file=sys.stderr)
        raise
    except (OSError, errors.HTTPError) as error:
        raise BadModel(sentence(error, model)) from error
    compare(folder, names, {name: files[name].lfs.sha256 for name in names if files[name].lfs})
    return told.sha, names


def download(hub, file, commit, folder):
    """One large file into `folder`, from where an earlier command left off: hf_hub_download begins anew with every command."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import WeakFileLock, build_hf_headers

    path, part = folder / file.rfilename, folder / ARRIVING / file.lfs.sha256
    part.parent.mkdir(parents=True, exist_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(f"{part}.lock"):
        if path.is_file() and path.stat().st_size == file.size:
            return
        with open(part, "ab") as arriving:
            http_get(hf_hub_url(hub, file.rfilename, revision=commit), arriving, resume_size=arriving.tell(), headers=build_hf_headers(),
                     expected_size=file.size, displayed_filename=file.rfilename)
        part.replace(path)


def compare(folder, names, told):
    """Compares files with the hashes `told` by the hub, and removes what is none of `names`."""
    for name in contents(folder):
        path = folder / name
        if name not in names:
            path.unlink()
        elif name in told and sha256(path) != told[name]:
            path.unlink()
            raise BadModel(f"{path} arrived damaged and was removed: run the same command again.")


def fetch_control(model):
    """The same for the network that reads sketches. Where it is published as a pickle alone, tensors are read of that, no
    code is run, and what stays are safetensors."""
    folder, known = sketch.path_of(model.folder), model.control
    if not sketch.missing(model.folder) and all((folder / name).is_file() for name in CONTROL):
        return  # converted before: the hub does not have these files
    whole = dataclasses.replace(model, title=f"{model.title}, network for sketches", hub=known.hub, revision=known.revision)
    _, names = bring(whole, folder, wanted_control)
    if PICKLE in names:
        convert(folder / PICKLE, folder / CONTROL[1])
    about = {"teacher": fitted.weights(model.folder), "scale": known.scale, "hub": known.hub, "revision": known.revision}
    (folder / sketch.ABOUT).write_text(json.dumps(about, indent=1) + "\n")
    write_hashes(model.folder.parent)


def wanted_control(names):
    """Those of the repository's files that are needed. BadModel where it holds no such network."""
    weights = [name for name in (CONTROL[1], PICKLE) if name in names]
    if "config.json" not in names or not weights:
        raise BadModel("This is no repository of a network that reads sketches.")
    return ["config.json", weights[0]]


def convert(pickled, path):
    """Writes the tensors of a state dict in a pickle as safetensors to `path`, and removes the pickle. BadModel when it holds
    anything else."""
    import pickle

    import torch
    from safetensors.torch import save_file

    try:
        weights = torch.load(pickled, map_location="cpu", weights_only=True)
        save_file({name: weight.clone(memory_format=torch.contiguous_format) for name, weight in weights.items()}, path)
    except (pickle.UnpicklingError, RuntimeError, AttributeError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise BadModel(f"{pickled} holds something else than tensors, was not read and is removed ({reason}).") from error
    finally:
        pickled.unlink()


def record(model, revision):
    """Writes what `verified.check` compares with, and refuses files that are not those of the first fetch."""
    known = model.folder.parent / HASHES
    before = json.loads(known.read_text()) if known.is_file() else {}
    write_hashes(model.folder.parent)
    after = json.loads(known.read_text())
    if changed := sorted(name for name in before.keys() & after.keys() if before[name] != after[name]):
        known.write_text(json.dumps(before, indent=1) + "\n")
        raise BadModel(f"{changed[0]} is not what was fetched first, although the commit is the same: delete "
                       f"{model.folder.parent} if you trust it none the less.")
    origin = {"hub": model.hub, "revision": revision, "licence": model.licence}
    (model.folder.parent / ORIGIN).write_text(json.dumps(origin, indent=1) + "\n")
