"""Fixtures shared by all tests. The tiny pipeline is made of real classes at tiny size with seeded random weights."""

import fcntl
import json
import os
import runpy
import tempfile
from contextlib import contextmanager
from pathlib import Path

OFFLINE = Path(__file__).parent / "offline"
os.environ["OFFLINE_LOG"] = tempfile.mkstemp(prefix="fastviz-offline-")[1]
os.environ["PYTHONPATH"] = os.pathsep.join([str(OFFLINE), *filter(None, [os.environ.get("PYTHONPATH")])])
runpy.run_path(str(OFFLINE / "sitecustomize.py"))  # this process; those that it starts find it themselves
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny models gain nothing from threads, and lose all where cores are shared

HISTORY = tempfile.TemporaryDirectory(prefix="fastviz-history-")
os.environ["FASTVIZ_HISTORY"] = HISTORY.name  # not the user's own

import pytest
import torch
from ledger import LEDGER

RELIABILITY = ("test_reliability.py", "test_load.py", "test_faults.py")


def pytest_runtest_logreport(report):
    if report.failed and not hasattr(report, "node") and report.nodeid.partition("::")[0].endswith(RELIABILITY):  # once, where it ran
        LEDGER.unexpected += 1


def pytest_sessionfinish(session):
    """A process of pytest-xdist hands its ledger over."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["ledger"] = LEDGER.plain()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    LEDGER.add(node.workeroutput["ledger"])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.failed and call.when == "call":
        report.sections += [("Page", tab.witness()) for tab in getattr(item.funcargs.get("visit"), "tabs", ())]
    return report


def pytest_unconfigure(config):
    """The ledger is the very last line."""
    if LEDGER.submitted and (terminal := config.pluginmanager.get_plugin("terminalreporter")):
        terminal.write_line(LEDGER.line())


@pytest.fixture(autouse=True)
def turn(request):
    """Processes test side by side, but while one runs a test that must be `alone`, which measures time, the others wait."""
    with open(Path(tempfile.gettempdir(), "fastviz-tests.lock"), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX if request.node.get_closest_marker("alone") else fcntl.LOCK_SH)
        yield


@pytest.fixture(scope="session", autouse=True)
def offline():
    """Nothing that any test starts asks another machine for anything."""
    yield
    with open(os.environ["OFFLINE_LOG"]) as file:
        assert file.read() == "", "a machine outside was asked for"

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # kernels are then run on the processor; read when triton is imported


def make_tiny():
    from diffusers import AutoencoderTiny, StableDiffusionPipeline

    from fastviz.stickers import parts

    torch.manual_seed(0)
    words = parts.tokenizer()
    unet = parts.unet(widths=(32, 32, 32), depths=(2, 3, 1), heads=(2, 2, 2), context=32)
    vae = AutoencoderTiny(encoder_block_out_channels=(8,) * 4, decoder_block_out_channels=(16,) * 4,  # a student's is half as wide
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
    return fit_olss(tiny_pipe, tmp_path_factory.mktemp("assets") / "stickers" / "model")


def fit_olss(tiny_pipe, folder):
    from fastviz import fitted
    from fastviz.fit import calibrate, olss, solvers, subspace
    from fastviz.request import Request
    from fastviz.search.network import Network

    config = dict(tiny_pipe.scheduler.config)
    known = calibrate.study(config, 20, [Network(tiny_pipe, [Request("a cat", seed=1, size=128, methods="full")])], [], [])
    with at_home(tiny_pipe, folder):
        belongs = {"guidance": 3.0, "weights": fitted.weights(folder)}
    (folder.parent / "olss").mkdir()
    for n in (4, 10):
        nodes = subspace.search(known.R, n)
        timesteps = known.full.timesteps[nodes].tolist()
        prior = solvers.combination(solvers.at(config, "unipc", timesteps))
        found = solvers.linear(config, timesteps, subspace.coefficients(known.R, nodes, prior, 1e-3), belongs)
        olss.save(found, folder.parent / "olss" / f"olss-{n}-guidance-3.json")
    return folder.parent / "olss"


@pytest.fixture(scope="session")
def student_files(tiny_pipe, olss_files):
    """The folder of an untrained student of the tiny pipeline, beside it."""
    return make_student(tiny_pipe, olss_files.parent / "model")


def make_student(tiny_pipe, home, vae=None):
    from types import SimpleNamespace

    from fastviz import fitted
    from fastviz.methods import sdxs
    from fastviz.stickers.sdxs import export, network

    torch.manual_seed(1)
    guide = SimpleNamespace(text=tiny_pipe.text_encoder, tokenizer=tiny_pipe.tokenizer)
    student = export.pipeline(guide, network.student_of(tiny_pipe.unet), vae or network.small_vae(tiny_pipe.vae))
    student.save_pretrained(sdxs.path_of(home))
    with at_home(tiny_pipe, home):
        (sdxs.path_of(home) / sdxs.ABOUT).write_text(json.dumps({"teacher": fitted.weights(home)}))
    return sdxs.path_of(home)


@pytest.fixture(scope="module")
def tiny_home(tiny_pipe, olss_files, student_files):
    """The tiny pipeline in a folder, with the coefficients and the student beside it."""
    with at_home(tiny_pipe, olss_files.parent / "model") as folder:
        yield folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """The tiny pipeline as a model is shipped: a folder of safetensors with the hashes beside it."""
    from fastviz import verified

    parent = tmp_path_factory.mktemp("shipped")
    make_tiny().save_pretrained(parent / "model")
    verified.write_hashes(parent)
    return parent / "model"


@pytest.fixture(scope="session")
def reference(tiny_folder):
    """reference(seed, steps): the digest of the full model's picture as it is made here, without any server."""
    import dataclasses
    import functools

    from serving import pixels

    from fastviz import models, run
    from fastviz.request import Request

    pipe = models.read(dataclasses.replace(models.MODELS["stickers"], source=str(tiny_folder)))

    @functools.cache
    def digest(seed, steps=2):
        request = Request("a cat", seed=seed, steps=steps, size=128, methods="full")
        return pixels(run.generate(pipe, request, request.methods[0], steps).image)

    return digest


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """The page as a process of its own, as `make app` starts it: its address, and the folder that it calls /tmp."""
    from serving import serve

    with serve(tmp_path_factory.mktemp("tmp")) as running:
        yield running


@pytest.fixture(scope="session")
def tiny_server(tmp_path_factory, tiny_folder):
    """The page with the tiny model."""
    from serving import serve

    with serve(tmp_path_factory.mktemp("tiny"), ("tests/tiny_app.py",), TINY=str(tiny_folder), GRADIO_ANALYTICS_MAX_EVENTS="8") as running:
        yield running


@pytest.fixture(scope="session")
def faulty_server(tmp_path_factory, tiny_folder):
    """The same under its supervisor, on a machine that fails where the seed says: see faulty_app.py."""
    from serving import serve

    code = "import sys, pathlib; from fastviz import supervise; supervise.APP = pathlib.Path('tests/faulty_app.py'); sys.exit(supervise.main())"
    with serve(tmp_path_factory.mktemp("faulty"), ("-c", code), TINY=str(tiny_folder)) as running:
        yield running
