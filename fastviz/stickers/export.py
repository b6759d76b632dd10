"""Stage 5: the shipped folder, half-precision safetensors in shards below 10 MB, with hashes and how it was trained."""

import json
import shutil

import torch
from huggingface_hub import save_torch_state_dict

from .. import judge
from ..verified import rewrite_hashes, write_hashes
from . import autoencoder, parts, teacher
from .evaluate import pipeline
from .loop import checkpoint

FOLDER = judge.FOLDER.parent


def export(folder=FOLDER, network="small"):
    """network: the teacher's, a key of parts.SIZES. Writes folder/model, folder/tiny (the small autoencoder, when the
    reference is the model's own), folder/training.json (step, hours and log of the teacher, hours and devices of all stages) and folder/hashes.json."""
    model, card = teacher.trained(network)
    reference, tiny = autoencoder.trained_reference(), autoencoder.trained()
    save(pipeline(model, reference or tiny), folder / "model")
    if reference:
        tiny.half().save_pretrained(folder / "tiny")
    told = folder / "training.json"
    before = json.loads(told.read_text()).get("stages", {}) if told.exists() else {}
    told.write_text(json.dumps({**card, "stages": stages(before)}, indent=1) + "\n")
    shutil.rmtree(folder / teacher.ONWARD, ignore_errors=True)
    write_hashes(folder)


def keep(folder=FOLDER, network="small"):
    """network: as of export. Writes folder/onward: the teacher's weights and training.json (step, hours,
    log). What is shipped stays as it is."""
    model, card = teacher.trained(network)
    onward = folder / teacher.ONWARD
    shutil.rmtree(onward, ignore_errors=True)
    onward.mkdir()
    save_torch_state_dict({name: value.half() for name, value in model.state_dict().items()}, onward, max_shard_size="9MB")
    (onward / "training.json").write_text(json.dumps(card, indent=1) + "\n")
    rewrite_hashes(onward)


def stages(before):
    """{stage: {"hours", "device"}}, of the checkpoints here; the others stay as they were told before."""
    found = {name: checkpoint(name) for name in ("autoencoder", "decoder", "reference", "judge", *map(teacher.stage, parts.SIZES))}
    return before | {name: {"hours": round(saved["hours"], 2), "device": ", ".join(sorted({row["device"] for row in saved["log"]}))}
                     for name, saved in found.items() if saved}


def save(pipe, folder):
    pipe.to(dtype=torch.half)
    pipe.save_pretrained(folder, max_shard_size="9MB")
    config = folder / "text_encoder/config.json"  # transformers runs in the precision named there, diffusers in float32
    config.write_text(config.read_text().replace('"float16"', '"float32"'))
