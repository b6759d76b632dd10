"""Fetching: the command as a process against a hub on this machine, over huggingface_hub's own protocol."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest
import torch
from folders import make, sdxs_control
from hub_server import COMMIT, serving
from safetensors.torch import save_file

from fastviz import checkpoints, hub, models, sketch, verified
from fastviz.models import MODELS
from fastviz.verified import BadModel


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """What a public repository holds: besides what is loaded, pickles, plain weights, pictures and other folders."""
    folder = tmp_path_factory.mktemp("repository")
    make("sd15").save_pretrained(folder, variant="fp16")
    for name in ("unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.safetensors", "v1-5-pruned.ckpt", "README.md",
                 "unet/diffusion_pytorch_model.non_ema.safetensors", "text_encoder/model.safetensors", "vae/config.py",
                 "safety_checker/model.fp16.safetensors", "feature_extractor/preprocessor_config.json", "vae_large/config.json",
                 "vae/diffusion_pytorch_model.safetensors"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"not for us")
    return folder


@pytest.fixture
def place(repository, tmp_path):
    with serving(repository) as (server, address):
        yield server, address, tmp_path / "models"


# `python -m fastviz fetch sdxs`, whose variant is the plain one: here it is given fp16
COMMAND = [sys.executable, "-c", "import dataclasses, sys; from fastviz.checkpoints import MODELS; from fastviz.__main__ import main\n"
           "MODELS['sdxs'] = dataclasses.replace(MODELS['sdxs'], variant='fp16')\nsys.exit(main(['fetch', 'sdxs']))"]


def surroundings(place):
    _, address, folder = place
    return {**os.environ, "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "FASTVIZ_MODELS": str(folder), "HF_HOME": str(folder / "hf"),
            "HF_HUB_ETAG_TIMEOUT": "3", "HF_HUB_DOWNLOAD_TIMEOUT": "3"}


def fetch(place, code=COMMAND[2], **environment):
    return subprocess.run([*COMMAND[:2], code], cwd=models.ROOT, capture_output=True, text=True, env=surroundings(place) | environment)


def wait_for(found, seconds=60):
    """What `found` gives as soon as that is something."""
    end = time.time() + seconds
    while not (told := found()) and time.time() < end:
        time.sleep(0.05)
    return told


def test_fetch_brings_what_is_loaded_and_nothing_else_and_records_it(place, repository, monkeypatch):
    server, _, folder = place
    done = fetch(place)
    assert done.returncode == 0, done.stderr[-800:]
    assert "CreativeML Open RAIL++-M" in done.stderr and COMMIT in done.stderr and "0.00 GB" in done.stderr
    monkeypatch.setenv("FASTVIZ_MODELS", str(folder))
    model = MODELS["sdxs"]
    found = verified.contents(model.folder)
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in found and "tokenizer/tokenizer_config.json" in found
    assert all(name.endswith((".json", ".txt", ".fp16.safetensors")) for name in found)
    assert not [name for name in found if "safety" in name or "vae_large" in name or "feature" in name]
    assert models.verify(model) == "" and models.index(model.folder)["_class_name"] == "StableDiffusionPipeline"
    origin = json.loads((folder / "sdxs" / hub.ORIGIN).read_text())
    assert origin == {"hub": "IDKiro/sdxs-512-0.9", "revision": COMMIT, "licence": model.licence}
    asked = len(server.asked)
    again = fetch(place)
    assert again.returncode == 0 and not [one for one in server.asked[asked:] if one[0] == "GET" and "safetensors" in one[1]]
    assert any(model.revision in path for _, path, _ in server.asked[asked:] if path.startswith("/api/"))


def test_an_interrupted_download_goes_on_and_keeps_what_is_complete(place):
    server, _, folder = place
    server.fault = "cut"
    broken = fetch(place, HF_HUB_DOWNLOAD_RETRIES="0")
    assert broken.returncode == 1 and "Traceback" not in broken.stderr
    assert broken.stderr.rstrip().endswith("what has come is kept.")
    assert not (folder / "sdxs" / verified.HASHES).exists()  # no record: it cannot be loaded
    server.fault = ""
    before = len(server.asked)
    done = fetch(place)
    assert done.returncode == 0, done.stderr[-500:]
    got = {path.partition("/resolve/")[2].partition("/")[2] for verb, path, _ in server.asked[before:] if verb == "GET"}
    earlier = {path.partition("/resolve/")[2].partition("/")[2] for verb, path, _ in server.asked[:before] if verb == "GET"}
    kept = {name for name in earlier if name.endswith((".json", ".txt"))}
    assert kept and not kept & got and [name for name in got if name.endswith(".safetensors")]


@pytest.fixture
def large(repository, tmp_path):
    """The same with a text encoder of 48 MB, which huggingface_hub writes in pieces of 10 MB."""
    shutil.copytree(repository, tmp_path / "large")
    save_file({"weight": torch.zeros(12_000_000)}, tmp_path / "large/text_encoder/model.fp16.safetensors")
    with serving(tmp_path / "large") as (server, address):
        yield server, address, tmp_path / "models"


def begins(server, first=0):
    """Where the parts of the large file begin that were asked for, after the first requests."""
    return [int((begin or "bytes=0-").removeprefix("bytes=").partition("-")[0]) for verb, path, begin in server.asked[first:]
            if verb == "GET" and path.endswith("text_encoder/model.fp16.safetensors")]


def test_a_large_file_goes_on_where_it_broke_off(large):
    large[0].fault = "cut once"
    done = fetch(large)
    assert done.returncode == 0 and not large[0].fault, done.stderr[-500:]
    assert begins(large[0])[0] == 0 and begins(large[0])[1] >= 10_000_000


@pytest.mark.parametrize("fault", ["stall", "full"])
def test_a_large_file_goes_on_after_the_command_was_killed_or_the_disk_was_full(large, fault):
    server, address, folder = large
    if fault == "stall":  # the second half never comes, and somebody pulls the plug
        server.fault = fault
        running = subprocess.Popen(COMMAND, cwd=models.ROOT, env=surroundings(large), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        assert server.stalled.wait(120)
        part, = wait_for(lambda: [path for path in (folder / "sdxs/model" / hub.ARRIVING).glob("*") if path.stat().st_size >= 20_000_000])
        running.kill()
        running.wait()
    else:  # a limit on the size of files, which is the same error to who writes
        limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (25_000_000,) * 2)\n"
        told = fetch(large, code=limit + COMMAND[2])
        assert told.returncode == 1 and "Traceback" not in told.stderr and "disk" in told.stderr, told.stderr[-500:]
    server.fault = ""
    before = len(server.asked)
    done = fetch(large)
    assert done.returncode == 0, done.stderr[-500:]
    assert len(begins(server, before)) == 1 and begins(server, before)[0] >= 20_000_000
    assert verified.sha256(folder / "sdxs/model/text_encoder/model.fp16.safetensors") == verified.sha256(
        server.folder / "text_encoder/model.fp16.safetensors")
    assert not (folder / "sdxs/model" / hub.ARRIVING).exists()


@pytest.mark.parametrize("fault, sentence", [
    ("gated", "given to those who accepted its licence: open https://huggingface.co/IDKiro/sdxs-512-0.9"),
    ("repo", "There is no https://huggingface.co/IDKiro/sdxs-512-0.9"),
    ("revision", "no longer has the commit")])
def test_what_the_hub_refuses_is_one_sentence(place, fault, sentence):
    place[0].fault = fault
    done = fetch(place)
    assert done.returncode == 1 and sentence in done.stderr and "Traceback" not in done.stderr


def test_no_network_is_one_sentence(place):
    server, _, folder = place
    nobody = (server, "http://127.0.0.1:9", folder)
    done = fetch(nobody)
    assert done.returncode == 1 and "connect to the network" in done.stderr and "Traceback" not in done.stderr
    done = fetch(place, HF_HUB_OFFLINE="1")
    assert done.returncode == 1 and "switched off by HF_HUB_OFFLINE" in done.stderr


class Evil:
    def __reduce__(self):
        return os.system, ("echo run",)


def test_the_network_for_sketches_comes_with_its_model_as_tensors(tmp_path, monkeypatch):
    """It is published as a pickle: what is read of it are tensors, and what stays are safetensors."""
    published, network = tmp_path / "control", sdxs_control()
    make("sdxs-dreamshaper").save_pretrained(tmp_path / "model")
    network.save_pretrained(published, safe_serialization=False)
    pickled = published / "diffusion_pytorch_model.bin"
    harmless, code = pickled.read_bytes(), "import sys; from fastviz.__main__ import main; sys.exit(main(['fetch', 'sdxs-dreamshaper']))"
    monkeypatch.setenv("FASTVIZ_MODELS", str(tmp_path / "models"))
    model = MODELS["sdxs-dreamshaper"]
    with serving(tmp_path / "model", sdxs_512_dreamshaper_sketch=published) as (server, address):
        place = server, address, tmp_path / "models"
        torch.save({"weight": Evil()}, pickled)
        done = fetch(place, code=code)
        assert done.returncode == 1 and "holds something else than tensors" in done.stderr and "Traceback" not in done.stderr
        assert not [line for line in done.stdout.splitlines() if line == "run"]
        assert models.verify(model) == "" and "fetch sdxs-dreamshaper" in sketch.missing(model.folder)  # the model itself is there
        pickled.write_bytes(harmless)
        done = fetch(place, code=code)
        assert done.returncode == 0, done.stderr[-800:]
        asked = len(server.asked)
        assert fetch(place, code=code).returncode == 0
        assert not [one for one in server.asked[asked:] if "sketch" in one[1]]
        assert any(path.endswith(f"{model.control.hub}/revision/{model.control.revision}") for _, path, _ in server.asked)
    folder = sketch.path_of(model.folder)
    assert sketch.missing(model.folder) == "" == verified.check(folder, recorded=True) and sketch.scale(folder) == 0.8
    assert verified.contents(folder) == ["config.json", "diffusion_pytorch_model.safetensors", "sketch.json"]
    back = models.load_control(folder).state_dict()
    assert all(torch.equal(value, back[name]) for name, value in network.state_dict().items())


def test_a_full_disk_is_told_before_anything_is_fetched(place, monkeypatch, tmp_path):
    monkeypatch.setenv("FASTVIZ_MODELS", str(tmp_path))
    with pytest.raises(BadModel, match=r"needs 900000\.00 GB on disk"):
        hub.check_room(MODELS["sdxs"], {"unet/model.safetensors": 900_000_000_000_000}, tmp_path / "sdxs")
    hub.check_room(MODELS["sdxs"], {"unet/model.safetensors": 10}, tmp_path / "sdxs")


def test_memory_is_told_with_a_sentence(capsys, monkeypatch, tmp_path):
    import dataclasses

    monkeypatch.setenv("FASTVIZ_MODELS", str(tmp_path))
    hub.check_room(dataclasses.replace(MODELS["sdxs"], parameters=9e6), {}, tmp_path)
    assert "GiB of memory to run" in capsys.readouterr().err


def test_only_safetensors_are_wanted(repository):
    names = [path.relative_to(repository).as_posix() for path in repository.rglob("*") if path.is_file()]
    pickled = [name for name in names if not (name.startswith("unet/") and name.endswith(".safetensors"))]
    with pytest.raises(BadModel, match="unet is not published as safetensors"):
        hub.wanted(pickled, "fp16")
    with pytest.raises(BadModel, match="no repository of a diffusers pipeline"):
        hub.wanted(["config.json", "diffusion_pytorch_model.bin"], "")
    sharded = [*names, *(f"unet/diffusion_pytorch_model.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)),
               "unet/diffusion_pytorch_model.fp16.safetensors.index.json",
               "unet/diffusion_pytorch_model.safetensors.index.fp16.json"]
    assert len([name for name in hub.wanted(sharded, "fp16") if "of-00002" in name]) == 2


def test_files_that_differ_from_the_first_fetch_are_refused(repository, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTVIZ_MODELS", str(tmp_path))
    model = MODELS["sdxs"]
    shutil.copytree(repository, model.folder)
    names = hub.wanted(verified.contents(model.folder), "fp16")
    hub.compare(model.folder, names, {})
    hub.record(model, COMMIT)
    assert verified.contents(model.folder) == sorted(names)
    path = model.folder / "unet/config.json"
    path.write_text(path.read_text() + " ")
    with pytest.raises(BadModel, match="not what was fetched first"):
        hub.record(model, COMMIT)
    with pytest.raises(BadModel, match="was changed or damaged.*fetch sdxs"):
        models.verify(model)
    with pytest.raises(BadModel, match="arrived damaged and was removed"):
        hub.compare(model.folder, names, {"unet/config.json": "0" * 64})
    assert not path.exists() and checkpoints.store() == tmp_path
