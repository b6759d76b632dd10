"""Loading: only what was shipped is loaded, byte for byte, without a network; and what is told of a prompt."""

import copy
import pickle
import random
import shutil
import socket
import subprocess
import sys
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastviz import models, reading, verified
from fastviz.models import Model
from fastviz.verified import BadModel
from fastviz.stickers import words


@pytest.fixture(scope="module")
def shipped(tiny_pipe, tmp_path_factory):
    """assets/tiny with a model in half-precision shards and a judge's folder beside it, hashed."""
    parent = tmp_path_factory.mktemp("assets")
    parts = {**tiny_pipe.components, "unet": copy.deepcopy(tiny_pipe.unet).half()}
    pipe = type(tiny_pipe)(**parts, requires_safety_checker=False)
    pipe.save_pretrained(parent / "model", max_shard_size="300KB")
    (parent / "judge").mkdir()
    (parent / "judge" / "config.json").write_text("{}")
    (parent / "atlas.webp").write_bytes(b"not part of any model")
    verified.write_hashes(parent)
    return parent


@pytest.fixture
def model(shipped, tmp_path, monkeypatch):
    """A copy of the shipped model that a test may damage, in the table as `tiny`."""
    parent = tmp_path / "assets"
    shutil.copytree(shipped, parent)
    monkeypatch.setattr(models, "_loaded", {})
    entry = Model("tiny", "Tiny", str(parent / "model"), 128, (128,), 4, 3.0, "Apache-2.0", closed=True)
    monkeypatch.setitem(models.MODELS, "tiny", entry)
    return entry


def test_load_gives_float32_on_the_cpu_from_half_precision_shards(model, tiny_pipe):
    assert len(list(model.folder.glob("unet/*.safetensors"))) > 1
    pipe = models.load("tiny")
    for name, weight in tiny_pipe.unet.state_dict().items():
        found = pipe.unet.state_dict()[name]
        assert found.dtype == models.precision(models.device())
        assert torch.equal(found.cpu(), weight.half().to(found.dtype)), name
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        assert not part.training and not any(p.requires_grad for p in part.parameters())


def test_load_reads_once_from_many_threads(model, monkeypatch):
    reads, read = [], models.read
    monkeypatch.setattr(models, "read", lambda model: reads.append(model) or read(model))
    found = []
    threads = [threading.Thread(target=lambda: found.append(models.load("tiny"))) for _ in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(reads) == 1 and len(found) == 8 and len(set(map(id, found))) == 1


def test_load_needs_no_network_and_leaves_logging_as_it_was(model, monkeypatch, caplog, capfd):
    import logging

    import diffusers.utils.logging as library

    def refuse(*args, **keywords):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    filters = list(logging.getLogger("diffusers.configuration_utils").filters)
    models.load("tiny")
    assert library.is_progress_bar_enabled()
    assert logging.getLogger("diffusers.configuration_utils").filters == filters
    assert "Loading" not in capfd.readouterr().err and not caplog.records


@pytest.mark.parametrize("name", ["unet/model.bin", "x.pt", "vae/a.ckpt", "b.pkl", "c.pth", "unet/evil.py"])
def test_a_planted_pickle_is_refused_before_anything_is_loaded(model, monkeypatch, name):
    import diffusers

    opened = []
    monkeypatch.setattr(diffusers.DiffusionPipeline, "from_pretrained", lambda *a, **k: opened.append(a))
    (model.folder / name).write_bytes(pickle.dumps("harmless here"))
    (model.folder.parent / verified.HASHES).unlink()  # its kind is enough: no list of files is needed
    with pytest.raises(BadModel, match="is no file for a model .* remove it"):
        models.load("tiny")
    assert not opened


def test_a_pickle_under_another_name_is_refused(model):
    (model.folder / "unet/diffusion_pytorch_model.safetensors").write_bytes(pickle.dumps([1, 2, 3]))
    with pytest.raises(BadModel, match="is not a file of this model"):
        models.load("tiny")


def test_one_flipped_byte_in_any_file_is_caught(model):
    for name in verified.contents(model.folder):
        path = model.folder / name
        whole = path.read_bytes()
        at = random.Random(name).randrange(len(whole))
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1:])
        with pytest.raises(BadModel, match="was changed or damaged"):
            verified.check(model.folder)
        path.write_bytes(whole)
    assert verified.check(model.folder) == ""


@pytest.mark.parametrize("damage", ["missing", "truncated", "empty"])
def test_incomplete_weights_are_caught(model, damage):
    path = next(model.folder.glob("unet/*.safetensors"))
    whole = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(whole[:len(whole) // 2] if damage == "truncated" else b"")
    with pytest.raises(BadModel, match=path.name):
        models.load("tiny")


def test_without_hashes_it_says_so_and_damage_is_still_a_sentence(model, caplog):
    (model.folder.parent / verified.HASHES).unlink()
    assert "not verified" in verified.check(model.folder)
    models.load("tiny")
    assert "not verified" in caplog.text
    models._loaded.clear()
    path = next(model.folder.glob("unet/*.safetensors"))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(BadModel, match="could not be read"):
        models.load("tiny")


def test_a_model_that_is_not_there(model, monkeypatch):
    shutil.rmtree(model.folder)
    with pytest.raises(BadModel, match="no folder"):
        models.load("tiny")
    with pytest.raises(KeyError):
        models.load("../../etc")


@pytest.mark.parametrize("prompt, unknown", [
    ("a cat and a pizza on the beach!", []),
    ("An owl, a Cat.", []),
    ("an astronaut on the beach", ["astronaut"]),
    ("a cat x 3", ["x", "3"]),
    ("a 🐱 café", ["🐱", "café"]),
    ("medium-size star, star, stars", ["medium", "size", "stars"]),
    ("astronaut and astronaut", ["astronaut"]),
])
def test_unknown_words(model, prompt, unknown):
    assert reading.unknown_words("tiny", prompt) == unknown


def test_an_open_vocabulary_has_no_unknown_words(model, monkeypatch):
    entry = Model("open", "Open", model.source, 128, (128,), 4, 3.0, "Apache-2.0")
    monkeypatch.setitem(models.MODELS, "open", entry)
    assert reading.unknown_words("open", "an astronaut") == []


def test_every_caption_of_the_world_is_known_and_fits(model):
    rng = random.Random(0)
    for _ in range(300):
        names = rng.sample(words.OBJECTS, rng.randrange(3))
        sizes = [rng.choice(words.SIZES) for _ in names]
        relation = rng.choice([None, *words.RELATIONS])
        text = words.caption(rng, names, sizes, relation, rng.choice([None, *words.SCENERY]))
        assert reading.unknown_words("tiny", text) == [] and reading.prompt_cut("tiny", text) == "", text


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=120))
def test_what_is_cut_is_what_the_encoder_never_sees(shipped, text):
    tokens = models.tokenizer(shipped / "model")
    key = "cut"
    models.MODELS[key] = Model(key, "Tiny", str(shipped / "model"), 128, (128,), 4, 3.0, "Apache-2.0", closed=True)
    try:
        cut = reading.prompt_cut(key, text)
        reading.unknown_words(key, text)
    finally:
        del models.MODELS[key]
    assert text.endswith(cut)
    seen = tokens.backend_tokenizer.encode(text).ids[1:-1][:tokens.model_max_length - 2]
    kept = tokens.backend_tokenizer.encode(text[:len(text) - len(cut)]).ids[1:-1]
    assert bool(cut) == (len(tokens.backend_tokenizer.encode(text).ids) > tokens.model_max_length)
    if not cut or cut[0].isspace() or text[:len(text) - len(cut)].endswith(" "):  # cut between two words
        assert kept == seen[:len(kept)] and len(seen) - len(kept) < 4  # of a letter of four bytes three may be seen


def test_words_are_looked_up_while_the_model_is_being_loaded():
    """In a new process, where both import transformers for the first time: its lazy modules fail when two threads do."""
    code = """
import threading
from fastviz import models, reading

faults, together = [], threading.Barrier(5)

def at_once(work):
    together.wait()
    try:
        work()
    except Exception as error:
        faults.append(repr(error))

works = [lambda: models.load("stickers")] + [lambda: reading.unknown_words("stickers", "an astronaut")] * 4
threads = [threading.Thread(target=at_once, args=(work,)) for work in works]
[thread.start() for thread in threads], [thread.join() for thread in threads]
assert not faults, faults
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=models.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-600:]


# Devices that are not here

@pytest.mark.parametrize("works, kind, dtype", [
    (("cuda", "xpu", "mps"), "cuda", torch.float16), (("xpu", "mps"), "xpu", torch.float32), (("mps",), "mps", torch.float32),
    ((), "cpu", torch.float32)])
def test_the_first_device_that_works_is_taken(monkeypatch, works, kind, dtype):
    for name, backend in (("cuda", torch.cuda), ("xpu", torch.xpu), ("mps", torch.backends.mps)):
        monkeypatch.setattr(backend, "is_available", lambda name=name: name in works)
    assert models.device().type == kind and models.precision(models.device()) == dtype


def test_free_memory_is_the_devices_own(monkeypatch):
    for name in ("cuda", "xpu"):
        for told, value in (("mem_get_info", (12345, 99999)), ("memory_reserved", 700), ("memory_allocated", 500)):
            monkeypatch.setattr(getattr(torch, name), told, lambda where, value=value: value)
        assert models.free_memory(torch.device(name)) == 12545  # 200 lie in torch's cache
    assert 2**28 < models.free_memory(torch.device("mps")) < 2**50 and 2**28 < models.free_memory(torch.device("cpu")) < 2**50
    assert models.free_memory(torch.device("meta")) == float("inf")


def test_a_model_makes_room_and_refuses_what_does_not_fit(monkeypatch):
    room = iter((2**30, 2**33, 2**30, 2**30))
    monkeypatch.setattr(models, "free_memory", lambda where: next(room))
    monkeypatch.setattr(models, "_loaded", {"other": object()})
    monkeypatch.setattr(models, "_beside", {"its student": object()})
    models.make_room(models.MODELS["sd15"], torch.device("cpu"))  # enough when the other one has gone
    assert not models._loaded and not models._beside
    with pytest.raises(BadModel, match="takes about 6.0 GiB of memory and 1.0 GiB are free: close other programs"):
        models.make_room(models.MODELS["sd15"], torch.device("cpu"))
