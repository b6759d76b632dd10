"""Every metric against an independent computation, and a reason instead of a number wherever there is no ground."""

import http.server
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import lpips
import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image, ImageFilter
from safetensors.torch import save_file
from torch import nn

from fastviz import judge, metrics, models, verified
from fastviz.stickers import words, world

ROOT = Path(__file__).parents[1]


def scene(seed, prompt_too=False):
    drawn = world.sample(random.Random(seed), count=2)
    picture = world.render(drawn)
    return (picture, drawn) if prompt_too else picture


def small(seed):
    return scene(seed).resize((64, 64))


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch):
    """An empty hub folder, so that what lies in the real one changes no test; nothing cached before or after."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    metrics.perceptual.cache_clear()
    judge.load.cache_clear()
    yield tmp_path / "hub/hub/checkpoints"
    metrics.perceptual.cache_clear()
    judge.load.cache_clear()


@pytest.fixture
def seeded_judge(tmp_path, monkeypatch):
    """A judge with fixed weights, hashed like the shipped one, in place of it."""
    folder = tmp_path / "assets/judge"
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    save_file(judge.Judge(words.OBJECTS, words.BACKGROUNDS).state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"objects": words.OBJECTS, "backgrounds": words.BACKGROUNDS}))
    verified.write_hashes(folder.parent)
    monkeypatch.setattr(judge, "FOLDER", folder)
    return folder


def plant_backbone(hub, monkeypatch, net="alex"):
    """A backbone with seeded random weights under a name that carries its own hash; the torchvision network itself."""
    from torchvision import models as zoo

    torch.manual_seed(1)
    network = {"alex": zoo.alexnet, "squeeze": zoo.squeezenet1_1}[net](weights=None).eval()
    hub.mkdir(parents=True)
    torch.save(network.state_dict(), hub / "draft")
    path = hub / f"net-{verified.sha256(hub / 'draft')[:8]}.pth"
    (hub / "draft").rename(path)
    monkeypatch.setitem(metrics.BACKBONES, net, path.name)
    return network


# LPIPS written down once more, in numpy and from the layers' definitions

def windows(x, size, stride):
    """(C, H, W) -> (C, h, w, size, size)."""
    return sliding_window_view(x, (size, size), axis=(1, 2))[:, ::stride, ::stride]


def run_layer(layer, x):
    if isinstance(layer, nn.Conv2d):
        pad = layer.padding[0]
        x = np.pad(x, ((0, 0), (pad, pad), (pad, pad)))
        weight, bias = layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()
        near = windows(x, layer.kernel_size[0], layer.stride[0])
        return np.einsum("chwij,ocij->ohw", near, weight, optimize=True) + bias[:, None, None]
    if isinstance(layer, nn.ReLU):
        return np.maximum(x, 0)
    if isinstance(layer, nn.MaxPool2d):
        if layer.ceil_mode:
            fill = [(-(side - layer.kernel_size)) % layer.stride for side in x.shape[1:]]
            x = np.pad(x, ((0, 0), (0, fill[0]), (0, fill[1])), constant_values=-np.inf)
        return windows(x, layer.kernel_size, layer.stride).max((3, 4))
    squeezed = np.maximum(run_layer(layer.squeeze, x), 0)  # SqueezeNet's Fire
    return np.maximum(np.concatenate([run_layer(part, squeezed) for part in (layer.expand1x1, layer.expand3x3)]), 0)


def oracle(layers, taps, pair, heads=None):
    """Sum over the layers in `taps` of the spatial mean of the (weighted) squared difference of unit feature vectors."""
    total, maps = 0.0, [np.asarray(x, np.float64) for x in pair]
    for i, layer in enumerate(layers):
        maps = [run_layer(layer, x) for x in maps]
        if i in taps:
            unit = [x / (np.sqrt((x**2).sum(0, keepdims=True)) + 1e-10) for x in maps]
            weight = np.ones(len(unit[0])) if heads is None else heads[taps.index(i)]
            total += np.einsum("chw,c->hw", (unit[0] - unit[1])**2, weight).mean()
    return total


def plain(picture):
    return np.asarray(picture, np.float64).transpose(2, 0, 1) / 127.5 - 1


def test_stickers_lpips_equals_numpy(seeded_judge):
    pair = small(1), small(2)
    value, picture, name = metrics.lpips_score(*pair)
    body = judge.load(judge.FOLDER).body
    expected = oracle(body, [end - 1 for _, end in judge.SLICES], [plain(p) for p in pair])
    assert name == "LPIPS (stickers backbone)" and picture.size == (64, 64)
    assert value == pytest.approx(expected, rel=1e-4) and value > 0.01


@pytest.mark.parametrize("net, taps", [("alex", [1, 4, 7, 9, 11]), ("squeeze", [1, 4, 7, 9, 10, 11, 12])])
def test_imagenet_lpips_equals_numpy(hub, monkeypatch, capsys, net, taps):
    network = plant_backbone(hub, monkeypatch, net)
    pair = small(3), small(4)
    value, _, name = metrics.lpips_score(*pair)
    saved = torch.load(Path(lpips.__file__).parent / f"weights/v0.1/{net}.pth", map_location="cpu", weights_only=True)
    heads = [saved[f"lin{i}.model.1.weight"].flatten().double().numpy() for i in range(len(taps))]
    shift, scale = np.array([[-.030], [-.088], [-.188]])[..., None], np.array([[.458], [.448], [.450]])[..., None]
    expected = oracle(network.features, taps, [(plain(p) - shift) / scale for p in pair], heads)
    assert name == f"LPIPS ({net})" and value == pytest.approx(expected, rel=1e-4) and value > 0
    assert capsys.readouterr().out == ""  # the command line prints one JSON line last, and the log is JSON


def ordering(measure):
    """Distances of one scene to itself, to itself one pixel aside, blurred, and to another scene."""
    picture = scene(5)
    aside = Image.fromarray(np.roll(np.asarray(picture), 1, axis=1))
    return [measure(picture, p) for p in (picture, aside, picture.filter(ImageFilter.GaussianBlur(6)), scene(6))]


def test_lpips_orders_a_known_set_of_pictures(seeded_judge):
    found = ordering(lambda *pair: metrics.lpips_score(*pair)[0])
    assert found[0] == 0 and found == sorted(set(found))


@pytest.mark.skipif(not (ROOT / "assets/stickers/hashes.json").is_file(), reason="the trained judge is not here")
def test_the_shipped_judge():
    """Ordering by the trained features, and the prompt match on scenes of which the truth is known."""
    found = ordering(lambda *pair: metrics.lpips_score(*pair)[0])
    assert found[0] == 0 and found == sorted(set(found)) and found[1] < found[3] / 2
    right, wrong = [], []
    for seed in range(40):
        picture, drawn = scene(seed, prompt_too=True)
        names = [sticker.name for sticker in drawn.stickers]
        other = [name for name in words.OBJECTS if name not in names][seed]
        elsewhere = [place for place in words.SCENERY if place != drawn.background][seed % 9]
        truth = f"a {names[0]} and a {names[1]} {words.BACKGROUNDS[drawn.background][0]}"
        right.append(metrics.stickers_match(picture, truth)[0])
        wrong.append(metrics.stickers_match(picture, f"a {other} {words.BACKGROUNDS[elsewhere][0]}")[0])
    assert np.mean(right) > 0.85 and np.mean(wrong) < 0.1


# A reason, never a number

def test_lpips_without_any_backbone_is_a_reason(monkeypatch, tmp_path):
    monkeypatch.setattr(judge, "FOLDER", tmp_path / "nothing")
    found = metrics.score(scene(1), scene(2), "a cat", "stickers")
    for key in ("lpips", "match"):
        assert isinstance(found[key], str) and "nothing" in found[key]
    assert "fetch lpips" in found["lpips"] and found["lpips_map"] is None and found["found"] == {}
    assert 0 < found["psnr"] < 40 and 0 < found["ssim"] < 1


@pytest.mark.parametrize("damage", ["truncated", "random", "missing", "empty"])
def test_a_judge_that_is_not_the_shipped_one_gives_a_reason(seeded_judge, damage):
    path = seeded_judge / "model.safetensors"
    if damage == "random":
        torch.manual_seed(7)
        save_file(judge.Judge(words.OBJECTS, words.BACKGROUNDS).state_dict(), path)
    elif damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:10_000] if damage == "truncated" else b"")
    found = metrics.score(scene(1), scene(2), "a cat", "stickers")
    assert isinstance(found["lpips"], str) and isinstance(found["match"], str) and str(path) in found["lpips"]


@pytest.mark.parametrize("damage", ["truncated", "random"])
def test_a_damaged_backbone_is_never_used(hub, monkeypatch, seeded_judge, damage):
    network = plant_backbone(hub, monkeypatch)
    path = metrics.backbone_path("alex")
    assert metrics.backbone_fault("alex") == ""
    if damage == "random":
        torch.save({name: torch.randn_like(value) for name, value in network.state_dict().items()}, path)
    else:
        path.write_bytes(path.read_bytes()[:-100])
    assert "is damaged" in metrics.backbone_fault("alex")
    assert metrics.lpips_score(scene(1), scene(2))[2] == metrics.STICKERS_LPIPS
    metrics.perceptual.cache_clear()
    shutil.rmtree(seeded_judge)
    assert "is damaged" in metrics.score(scene(1), scene(2), "a cat", "stickers")["lpips"]


def test_the_first_choice_stays_for_the_process_but_a_reason_does_not(hub, monkeypatch, seeded_judge, tmp_path):
    monkeypatch.setattr(judge, "FOLDER", tmp_path / "nothing")
    with pytest.raises(metrics.Unavailable):
        metrics.perceptual()
    monkeypatch.setattr(judge, "FOLDER", seeded_judge)
    assert metrics.perceptual()[1] == metrics.STICKERS_LPIPS
    plant_backbone(hub, monkeypatch)
    assert metrics.perceptual()[1] == metrics.STICKERS_LPIPS


def test_scoring_never_asks_the_network(seeded_judge, monkeypatch):
    def refuse(*args, **keywords):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert isinstance(metrics.score(scene(1), scene(2), "a cat", "stickers")["lpips"], float)
    assert isinstance(metrics.score(scene(1), scene(2), "a cat", "another")["match"], str)


def test_broken_torchvision_costs_lpips_and_nothing_else(tmp_path, tiny_pipe):
    """A torchvision built for another torch raises on import; the model still loads and draws."""
    broken = tmp_path / "broken/torchvision/__init__.py"
    broken.parent.mkdir(parents=True)
    broken.write_text('raise RuntimeError("operator torchvision::nms does not exist")')
    tiny_pipe.save_pretrained(tmp_path / "assets/model")
    code = f"""
from PIL import Image
from fastviz import metrics, models, reading
models.MODELS["tiny"] = models.Model("tiny", "Tiny", {str(tmp_path / "assets/model")!r}, 128, (128,), 2, 3.0, "")
reading.prompt_cut("tiny", "a cat")  # which is what transformers is first imported for
picture = models.load("tiny")("a cat", num_inference_steps=2, height=128, width=128).images[0]
found = metrics.score(picture, Image.new("RGB", picture.size), "a cat", "stickers")
assert "nms" in found["lpips"] and "nms" in found["match"] and found["lpips_map"] is None, found
assert found["psnr"] > 0 and picture.size == (128, 128)
print("survived")
"""
    env = {**os.environ, "PYTHONPATH": f"{tmp_path / 'broken'}{os.pathsep}{ROOT}"}
    answer = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)
    assert answer.stdout.strip() == "survived", answer.stderr[-2000:]


def test_two_threads_that_meet_a_broken_torchvision_both_hide_it(tmp_path):
    broken = tmp_path / "torchvision/__init__.py"
    broken.parent.mkdir()
    broken.write_text("import time\ntime.sleep(0.5)\nraise RuntimeError('no')")
    code = """
import sys
from concurrent.futures import ThreadPoolExecutor
from fastviz import models
def look():
    fault = models.torchvision_fault()
    return fault[:4], sys.modules["torchvision"]
with ThreadPoolExecutor() as pool:
    first = [pool.submit(look) for _ in range(3)]
    print({each.result() for each in first})
"""
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    answer = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)
    assert answer.stdout.strip() == "{('torc', None)}", answer.stderr[-2000:]


# PSNR, SSIM, maps

def test_psnr():
    grey, dark = (Image.new("RGB", (32, 32), (v,) * 3) for v in (120, 110))
    assert metrics.psnr(grey, grey) == float("inf")
    assert metrics.psnr(grey, dark) == pytest.approx(20 * np.log10(255 / 10))


def test_ssim_equals_the_formula():
    a, b = (np.asarray(small(seed), np.float64) for seed in (1, 2))
    line = np.exp(-0.5 * (np.arange(-5, 6) / 1.5)**2)
    weight = np.outer(line, line) / line.sum()**2
    near = [np.moveaxis(sliding_window_view(x, (11, 11), axis=(0, 1)), 2, 0) for x in (a, b)]
    mean = [np.einsum("chwij,ij->chw", x, weight) for x in near]
    var = [np.einsum("chwij,ij->chw", x**2, weight) - m**2 for x, m in zip(near, mean)]
    cov = np.einsum("chwij,ij->chw", near[0] * near[1], weight) - mean[0] * mean[1]
    c1, c2 = (0.01 * 255)**2, (0.03 * 255)**2
    above = (2 * mean[0] * mean[1] + c1) * (2 * cov + c2)
    below = (mean[0]**2 + mean[1]**2 + c1) * (var[0] + var[1] + c2)
    assert metrics.ssim(small(1), small(2)) == pytest.approx((above / below).mean(), rel=1e-6)
    assert metrics.ssim(small(1), small(1)) == 1


def test_maps_are_bright_where_the_pictures_differ(seeded_judge):
    picture = scene(1)
    other = picture.copy()
    other.paste((255, 0, 255), (160, 32, 224, 96))
    found = metrics.score(picture, other, "a cat", "stickers")
    for key in ("lpips_map", "difference_map"):
        light = np.asarray(found[key].convert("L"), float)
        assert found[key].size == picture.size and light[48:80, 176:208].mean() > 2 * light[160:, :96].mean(), key
    still = metrics.score(picture, picture, "a cat", "stickers")
    for key in ("lpips_map", "difference_map"):
        assert len(still[key].getcolors()) == 1, key
    assert still["lpips"] == 0 and still["psnr"] == float("inf") and still["ssim"] == 1


def test_pictures_of_two_sizes_are_an_error():
    with pytest.raises(ValueError, match="two sizes"):
        metrics.score(scene(1), small(1), "a cat", "stickers")


# Prompt match

def test_match_reads_the_prompt(seeded_judge):
    found = metrics.score(scene(1), scene(1), "a cat and a pizza on the beach", "stickers")
    assert set(found["found"]) == {"cat", "pizza", "beach"} and found["match"] == sum(found["found"].values()) / 3
    assert "names nothing" in metrics.score(scene(1), scene(1), "an empty scene", "stickers")["match"]


@pytest.fixture
def local_clip(tmp_path, monkeypatch):
    """A tiny CLIP of real classes where the hub's cache would have the real one."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

    from fastviz.stickers import parts

    tokens = parts.tokenizer()
    width = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2)
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(
        text_config=dict(vocab_size=len(tokens), max_position_embeddings=24, eos_token_id=tokens.eos_token_id,
                         bos_token_id=tokens.bos_token_id, pad_token_id=tokens.pad_token_id, **width),
        vision_config=dict(image_size=32, patch_size=8, **width), projection_dim=16))
    folder = tmp_path / "cache/models--tiny--clip/snapshots/abc"
    model.save_pretrained(folder)
    size = {"height": 32, "width": 32}
    CLIPProcessor(CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size), tokens).save_pretrained(folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(models, "CLIP", ("tiny/clip", "abc", verified.sha256(folder / "model.safetensors")))
    metrics.load_clip.cache_clear()
    yield folder
    metrics.load_clip.cache_clear()


def test_clip_score_is_the_cosine_of_the_embeddings(local_clip):
    model, processor = models.load_clip()
    pixels = processor(images=scene(1), return_tensors="pt").pixel_values
    ids = processor(text=["a cat"], return_tensors="pt").input_ids
    with torch.no_grad():
        image = model.visual_projection(model.vision_model(pixels).pooler_output)[0]
        text = model.text_projection(model.text_model(ids).pooler_output)[0]
    expected = max(0.0, float(image @ text / image.norm() / text.norm()))
    assert metrics.clip_match(scene(1), "a cat")[0] == pytest.approx(expected, abs=1e-5)
    assert metrics.clip_match(scene(1), "a cat " * 40)[0] >= 0  # longer than its text encoder


def test_clip_that_was_changed_is_a_reason(local_clip):
    path = local_clip / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert "damaged" in metrics.score(scene(1), scene(1), "a cat", "another")["match"]


# Fetching a backbone

@pytest.fixture
def server(tmp_path, monkeypatch):
    """A file server on this machine in place of the real source; yields its folder."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=folder)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as listening:
        thread = threading.Thread(target=listening.serve_forever)
        thread.start()
        monkeypatch.setattr(metrics, "SOURCE", f"http://127.0.0.1:{listening.server_port}/")
        yield folder
        listening.shutdown()
        thread.join()


def serve(folder, data, monkeypatch):
    (folder / "draft").write_bytes(data)
    name = f"alexnet-owt-{verified.sha256(folder / 'draft')[:8]}.pth"
    (folder / "draft").rename(folder / name)
    monkeypatch.setitem(metrics.BACKBONES, "alex", name)
    return folder / name


def test_fetch_brings_the_file_with_progress_and_only_once(server, hub, monkeypatch):
    data, told = os.urandom(700_000), []
    source = serve(server, data, monkeypatch)
    path = metrics.fetch_backbone("alex", lambda *numbers: told.append(numbers))
    assert path.parent == hub and path.read_bytes() == data
    assert told[-1] == (700_000, 700_000) and len(told) > 2 and told == sorted(told)
    source.unlink()
    assert metrics.fetch_backbone("alex") == path
    path.write_bytes(data[:-1])
    with pytest.raises(metrics.Unavailable, match="could not be downloaded"):
        metrics.fetch_backbone("alex")


def test_fetch_refuses_a_file_with_the_wrong_hash_and_leaves_nothing(server, hub, monkeypatch):
    source = serve(server, b"right" * 1000, monkeypatch)
    source.write_bytes(b"wrong" * 1000)
    with pytest.raises(metrics.Unavailable, match="arrived damaged"):
        metrics.fetch_backbone("alex")
    assert list(hub.iterdir()) == []


def test_fetch_without_a_network_says_what_to_do(hub, monkeypatch):
    def refuse(*args, **keywords):
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(socket, "create_connection", refuse)
    with pytest.raises(metrics.Unavailable, match="connect to the network, or copy"):
        metrics.fetch_backbone("alex")
    assert list(hub.iterdir()) == []
