"""The contract of all methods once more, on SDXL's pipeline at tiny width: two text encoders, size ids, deeper transformers."""

import pytest
import test_contract
from conftest import at_home, fit_olss, make_student
from diffusers import DDIMScheduler
from folders import make, tiny_decoder

globals().update({name: value for name, value in vars(test_contract).items() if name.startswith("test_")})
pytestmark, alone = test_contract.pytestmark, test_contract.alone  # both with the pipeline below


@pytest.fixture(scope="module")
def tiny_pipe():
    pipe = make("sdxl", layers_per_block=1)  # half of the real one's blocks: every stack runs hundreds of times here
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)  # as the table has it
    return pipe


@pytest.fixture(scope="module")
def tiny_home(tiny_pipe, tmp_path_factory):
    home = tmp_path_factory.mktemp("assets") / "stickers" / "model"
    fit_olss(tiny_pipe, home)
    make_student(tiny_pipe, home, tiny_decoder())
    with at_home(tiny_pipe, home) as folder:
        yield folder
