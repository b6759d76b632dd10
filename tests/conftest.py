"""Fixtures shared by all tests. The tiny pipeline is made of real classes at tiny size with seeded random weights."""

import os
import tempfile
from contextlib import contextmanager

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models gain nothing from threads, and lose all where cores are shared

HISTORY = tempfile.TemporaryDirectory(prefix="fastviz-history-")
os.environ["FASTVIZ_HISTORY"] = HISTORY.name  # not the user's own

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


@contextmanager
def at_home(pipe, folder):
    """Lets a pipeline that was made here believe that it was loaded from `folder`, where its U-Net's weights then lie."""
    from diffusers.configuration_utils import FrozenDict

    from fastviz.patch import replaced

    pipe.unet.save_pretrained(folder / "unet")
    with replaced(pipe, _internal_dict=FrozenDict({**pipe.config, "_name_or_path": str(folder)})):
        yield folder


@pytest.fixture(scope="session")
def olss_files(tiny_pipe, tmp_path_factory):
    """A folder of OLSS coefficients fitted to the tiny pipeline as the model `stickers`: 4 and 10 steps, guidance 3."""
    from fastviz import fitted
    from fastviz.fit import calibrate, olss, solvers, subspace
    from fastviz.request import Request
    from fastviz.search.network import Network

    folder, config = tmp_path_factory.mktemp("assets") / "stickers" / "model", dict(tiny_pipe.scheduler.config)
    known = calibrate.study(config, 20, [Network(tiny_pipe, [Request("a cat", seed=1, size=128, methods="full")])], [], [])
    with at_home(tiny_pipe, folder):
        belongs = {"guidance": 3.0, "weights": fitted.weights(folder)}
    (folder.parent / "olss").mkdir()
    for n in (4, 10):
        nodes = calibrate.nodes_of(known, "olss", n)
        timesteps = known.full.timesteps[nodes].tolist()
        prior = solvers.combination(solvers.at(config, "unipc", timesteps))
        found = solvers.linear(config, timesteps, subspace.coefficients(known.R, nodes, prior, 1e-3), belongs)
        olss.save(found, folder.parent / "olss" / f"olss-{n}-guidance-3.json")
    return folder.parent / "olss"


@pytest.fixture(scope="module")
def tiny_home(tiny_pipe, olss_files):
    """The tiny pipeline in a folder, with the coefficients beside it."""
    with at_home(tiny_pipe, olss_files.parent / "model") as folder:
        yield folder


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """The page as a process of its own, as `make app` starts it: its address, and the folder that it calls /tmp."""
    from serving import serve

    with serve(tmp_path_factory.mktemp("tmp")) as running:
        yield running
