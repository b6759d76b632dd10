"""Fixtures shared by all tests. The tiny pipeline is made of real classes at tiny size with seeded random weights."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models gain nothing from threads, and lose all where cores are shared

import pytest
import torch


def make_tiny():
    from diffusers import AutoencoderTiny, StableDiffusionPipeline

    from fastviz.stickers import parts

    torch.manual_seed(0)
    words = parts.tokenizer()
    unet = parts.unet(widths=(32, 32, 32), depths=(2, 3, 1), heads=(2, 2, 2), context=32)
    vae = AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4,
                          num_encoder_blocks=(1, 1, 1, 1), num_decoder_blocks=(1, 1, 1, 1))
    pipe = StableDiffusionPipeline(
        vae=vae, text_encoder=parts.text_encoder(words, width=32, layers=1), tokenizer=words, unet=unet,
        scheduler=parts.scheduler(), safety_checker=None, feature_extractor=None, image_encoder=None, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    for part in (pipe.vae, pipe.text_encoder, pipe.unet):
        part.eval().requires_grad_(False)
    return pipe


@pytest.fixture(scope="session")
def tiny_pipe():
    """A StableDiffusionPipeline of 32 channels for latents of 16 x 16 or more (128 px), eight parts in a second."""
    return make_tiny()


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """The page as a process of its own, as `make app` starts it: its address, and the folder that it calls /tmp."""
    from serving import serve

    with serve(tmp_path_factory.mktemp("tmp")) as running:
        yield running
