"""Stage 5: the shipped folder, half-precision safetensors in shards below 10 MB, with hashes and how it was trained."""

import json

import torch

from .. import judge
from ..models import write_hashes
from . import autoencoder, teacher
from .evaluate import pipeline
from .loop import checkpoint

FOLDER = judge.FOLDER.parent


def export(folder=FOLDER):
    """Writes folder/model, folder/tiny (the small autoencoder, when the reference is the model's own), folder/training.json
    (step, hours and log of the teacher, hours and devices of all stages) and folder/hashes.json."""
    model, card = teacher.trained()
    reference, tiny = autoencoder.trained_reference(), autoencoder.trained()
    save(pipeline(model, reference or tiny), folder / "model")
    if reference:
        tiny.half().save_pretrained(folder / "tiny")
    told = folder / "training.json"
    before = json.loads(told.read_text()).get("stages", {}) if told.exists() else {}
    told.write_text(json.dumps({**card, "stages": stages(before)}, indent=1) + "\n")
    write_hashes(folder)


def stages(before):
    """{stage: {"hours", "device"}}, of the checkpoints here; the others stay as they were told before."""
    found = {name: checkpoint(name) for name in ("autoencoder", "decoder", "reference", "judge", "teacher")}
    return before | {name: {"hours": round(saved["hours"], 2), "device": ", ".join(sorted({row["device"] for row in saved["log"]}))}
                     for name, saved in found.items() if saved}


def save(pipe, folder):
    pipe.to(dtype=torch.half)
    pipe.save_pretrained(folder, max_shard_size="9MB")
    config = folder / "text_encoder/config.json"  # transformers runs in the precision named there, diffusers in float32
    config.write_text(config.read_text().replace('"float16"', '"float32"'))
