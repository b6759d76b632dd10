"""The contract of all methods once more, on SDXL's pipeline at tiny width: two text encoders, size ids, deeper transformers."""

import pytest
from conftest import at_home, fit_olss
from diffusers import DDIMScheduler
from folders import make
from test_contract import *  # noqa: F401, F403  its tests and their fixtures, with the pipeline below


@pytest.fixture(scope="module")
def tiny_pipe():
    pipe = make("sdxl", layers_per_block=1)  # half of the real one's blocks: every stack runs hundreds of times here
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)  # as the table has it
    return pipe


@pytest.fixture(scope="module")
def tiny_home(tiny_pipe, tmp_path_factory):
    files = fit_olss(tiny_pipe, tmp_path_factory.mktemp("assets") / "stickers" / "model")
    with at_home(tiny_pipe, files.parent / "model") as folder:
        yield folder
