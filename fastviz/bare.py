"""A pipeline's networks without weights: on the meta device, where an operation costs nothing and only shapes are known."""

import copy
from contextlib import contextmanager

import torch

from .models import quiet
from .patch import replaced

networks = {}  # configurations of a pipeline -> its networks on the meta device


@contextmanager
def on_meta(pipe):
    """A copy of the pipeline object with the networks of its configurations, but no weights."""
    key = configuration(pipe)
    if key not in networks:
        with quiet(), torch.device("meta"):
            parts = dict(unet=type(pipe.unet).from_config(pipe.unet.config),
                         vae=type(pipe.vae).from_config(pipe.vae.config),
                         text_encoder=type(pipe.text_encoder)(pipe.text_encoder.config))
        networks[key] = {name: part.eval().requires_grad_(False) for name, part in parts.items()}
    with replaced(copy.copy(pipe), **networks[key]) as bare:
        yield bare


def configuration(pipe):
    return pipe.unet.to_json_string(), pipe.vae.to_json_string(), pipe.text_encoder.config.to_json_string()
