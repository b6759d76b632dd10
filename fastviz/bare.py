"""A pipeline's networks without weights: on the meta device, where an operation costs nothing and only shapes are known."""

import copy
import functools
import json
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
            parts = {name: type(part).from_config(part.config) for name, part in (("unet", pipe.unet), ("vae", pipe.vae))}
            parts |= {name: type(part)(part.config) for name, part in text_encoders(pipe).items()}
        networks[key] = {name: part.eval().requires_grad_(False) for name, part in parts.items()}
    with replaced(copy.copy(pipe), **networks[key]) as bare:
        yield bare


def bare_module(module):
    """One of diffusers' models of the same configuration, without weights."""
    return made(type(module), module.to_json_string())


@functools.cache
def made(kind, told):
    with quiet(), torch.device("meta"):
        return kind.from_config(json.loads(told)).eval().requires_grad_(False)


def configuration(pipe):
    texts = (part.config.to_json_string() for part in text_encoders(pipe).values())
    return pipe.unet.to_json_string(), pipe.vae.to_json_string(), *texts


def text_encoders(pipe):
    """{name: text encoder} of a pipeline: one, with SDXL two."""
    return {name: part for name in ("text_encoder", "text_encoder_2") if (part := getattr(pipe, name, None)) is not None}
