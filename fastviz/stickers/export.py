"""Stage 5: the shipped folder, half-precision safetensors in shards below 10 MB, with hashes and how it was trained."""

import json

import torch

from .. import judge
from ..models import write_hashes
from . import autoencoder, teacher
from .evaluate import pipeline

FOLDER = judge.FOLDER.parent


def export(folder=FOLDER):
    """Writes folder/model, folder/tiny (the small autoencoder, when the reference is the model's own), folder/training.json
    (step, hours and log of the teacher) and folder/hashes.json."""
    model, card = teacher.trained()
    reference, tiny = autoencoder.trained_reference(), autoencoder.trained()
    save(pipeline(model, reference or tiny), folder / "model")
    if reference:
        tiny.half().save_pretrained(folder / "tiny")
    (folder / "training.json").write_text(json.dumps(card, indent=1) + "\n")
    write_hashes(folder)


def save(pipe, folder):
    pipe.to(dtype=torch.half)
    pipe.save_pretrained(folder, max_shard_size="9MB")
    config = folder / "text_encoder/config.json"  # transformers runs in the precision named there, diffusers in float32
    config.write_text(config.read_text().replace('"float16"', '"float32"'))
