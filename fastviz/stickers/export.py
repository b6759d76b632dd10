"""Stage 5: the shipped folder, half-precision safetensors in shards below 10 MB, with hashes and a model card."""

import json
from pathlib import Path

import torch

from ..models import write_hashes
from . import autoencoder, teacher
from .evaluate import pipeline

FOLDER = Path(__file__).parents[2] / "assets/stickers"


def export(teacher, vae, scale, card, folder=FOLDER):
    """Writes folder/model, folder/hashes.json (of the model and the judge) and folder/training.json (`card`: how it was trained)."""
    pipe = pipeline(teacher, vae, scale)
    pipe.to(dtype=torch.half)
    pipe.save_pretrained(folder / "model", max_shard_size="9MB")
    pipe.to(dtype=torch.float32)
    config = folder / "model/text_encoder/config.json"  # transformers runs in the precision named there, diffusers in float32
    config.write_text(config.read_text().replace('"float16"', '"float32"'))
    write_hashes(folder)
    (folder / "training.json").write_text(json.dumps(card, indent=1) + "\n")
