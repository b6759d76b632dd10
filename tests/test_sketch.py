"""How the network that reads sketches is made: its drawings, its training at tiny size, its export and its figures."""

import copy
import json
import random
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel
from PIL import Image
from safetensors.torch import save_file
from scipy.ndimage import distance_transform_edt

from fastviz import fitted, models, sketch, verified
from fastviz.methods import sdxs
from fastviz.stickers import loop, parts, teacher, world
from fastviz.stickers.sdxs import chain, pairs
from fastviz.stickers.sdxs import network as students
from fastviz.stickers.sketch import evaluate, export, fit, network, outline, student

SCENES = [world.sample(random.Random(seed), "train", count) for seed, count in ((1, 1), (2, 2), (3, 2), (4, 0))]


@pytest.fixture
def workshop(tiny_pipe, tmp_path, monkeypatch):
    """An empty folder to train in, with the tiny pipeline as what is committed."""
    guide = SimpleNamespace(unet=tiny_pipe.unet, text=tiny_pipe.text_encoder, tokenizer=tiny_pipe.tokenizer)
    monkeypatch.setattr(loop, "WORK", tmp_path / "training")
    monkeypatch.setattr(chain, "committed_teacher", lambda minutes=None: copy.deepcopy(guide))
    monkeypatch.setattr(chain, "small_autoencoder", lambda: copy.deepcopy(tiny_pipe.vae))
    monkeypatch.setattr(chain, "digest", lambda: "0123456789abcdef")
    return guide


def test_training_begins_with_what_is_committed_where_it_fits(workshop, monkeypatch):
    def made(function):
        torch.manual_seed(0)
        return function(workshop.unet).state_dict()

    plain = made(network.untrained)
    for kept, added in (({name: weight + 1 for name, weight in plain.items()}, 1), (None, 0), ({"another.weight": torch.zeros(2)}, 0)):
        monkeypatch.setattr(fit, "shipped", lambda folder: kept)
        assert all(torch.equal(weight, plain[name] + added) for name, weight in made(fit.begun).items())


def test_what_lies_beside_the_committed_weights_belongs_to_them():
    folder = models.MODELS["stickers"].folder
    assert sketch.missing(folder) == ""
    assert not sdxs.path_of(folder).exists() or sdxs.missing(folder) == ""


# The drawings

def ink(scene):
    return np.asarray(outline.draw(scene)) < 128


def test_a_drawing_is_a_pure_function_of_the_scene():
    for scene in SCENES:
        drawing = outline.draw(scene)
        assert drawing.mode == "L" and drawing.size == (world.SIZE,) * 2 and drawing.tobytes() == outline.draw(scene).tobytes()
    other = replace(SCENES[0], paint_seed=SCENES[0].paint_seed + 1)
    assert outline.draw(other).tobytes() != outline.draw(SCENES[0]).tobytes()


def test_an_empty_scene_is_an_empty_sheet_and_backgrounds_are_not_drawn():
    assert not ink(SCENES[3]).any()
    scenery = replace(SCENES[1], background="forest")
    assert outline.draw(scenery).tobytes() == outline.draw(replace(scenery, background="ocean")).tobytes()


def test_lines_follow_the_objects_edges():
    """Without lines inside, nothing is drawn farther from an edge than a wide pen and an unsteady hand reach, and nearly all
    of the edge has a line."""
    for scene in SCENES[:3]:
        scene = next(each for i in range(200) if not inside_drawn(each := replace(scene, paint_seed=i)))
        there = np.zeros((world.SIZE,) * 2, bool)
        for each in scene.stickers:
            alpha = np.asarray(world.shape(each.name, each.side).getchannel("A")) > 128
            there[each.y:each.y + each.full, each.x:each.x + each.full] |= alpha
        edge = there & (distance_transform_edt(there) <= 1)
        assert distance_transform_edt(~edge)[ink(scene)].max() < 11
        assert (distance_transform_edt(~ink(scene))[edge] <= 8).mean() > 0.85


def inside_drawn(scene):
    """Whether the hand also draws inside any of the objects."""
    share, outline.INSIDE = outline.INSIDE, 0.0
    try:
        without = outline.draw(scene)
    finally:
        outline.INSIDE = share
    return without.tobytes() != outline.draw(scene).tobytes()


def test_pens_differ_in_width():
    inks = [ink(replace(SCENES[0], paint_seed=i)).sum() for i in range(12)]
    assert max(inks) > 1.5 * min(inks)


# The network

def test_an_untrained_network_changes_nothing_and_is_small(tiny_pipe):
    control = network.untrained(tiny_pipe.unet)
    x, t, text = torch.randn(2, 4, 16, 16), torch.tensor([5, 900]), torch.randn(2, 24, 32)
    sheets = torch.randint(0, 256, (2, 128, 128), dtype=torch.uint8)
    with torch.no_grad():
        with_it, without = (network.estimate(tiny_pipe.unet, control, x, t, text, given) for given in (sheets, None))
    assert torch.equal(with_it, without)
    given = tiny_pipe.unet.state_dict()
    assert all(torch.equal(control.state_dict()[name], given[name]) for name in
               ("conv_in.weight", "time_embedding.linear_1.weight", "down_blocks.1.resnets.0.conv1.weight", "mid_block.resnets.0.conv1.weight"))
    own = parts.unet()
    assert students.parameters(network.untrained(own)) < 0.25 * students.parameters(own)


def test_the_network_sees_strokes_as_ones():
    sheet = torch.full((1, 8, 8), 255, dtype=torch.uint8)
    sheet[0, 2, 3] = 0
    seen = network.condition(sheet)
    assert seen.shape == (1, 3, 8, 8) and seen.sum() == 3 and (seen[0, :, 2, 3] == 1).all()


# Its training

def test_a_window_of_latents_comes_with_the_same_window_of_its_sketch():
    encoder = lambda pictures: torch.nn.functional.avg_pool2d(pictures, 8)[:, [0, 1, 2, 0]]  # noqa: E731
    store = fit.Drawn(encoder, torch.zeros(1, parts.LENGTH, dtype=torch.long), 8)
    grey = torch.arange(world.SIZE, dtype=torch.uint8).expand(world.SIZE, -1)  # brighter to the right
    pictures = grey.expand(8, 3, -1, -1)
    store.add(pictures, torch.ones(8, parts.LENGTH, dtype=torch.long), torch.tensor([[8, 12, 8, 0]] * 8), grey.expand(8, -1, -1))
    for cells in (teacher.WINDOW, teacher.WHOLE):
        latents, (tokens, sheets) = store.draw(6, cells)
        assert tokens.shape == (6, parts.LENGTH) and sheets.shape == (6, 8 * cells, 8 * cells) and sheets.dtype == torch.uint8
        pooled = torch.nn.functional.avg_pool2d(sheets[:, None].float(), 8)[:, 0] / 127.5 - 1
        assert torch.allclose(pooled, latents[:, 0], atol=0.01)


def test_training_goes_on_from_its_checkpoint_and_is_exported_for_diffusers(workshop, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(fit, "HELD_OUT", 2)
    monkeypatch.setattr(fit, "SHARE", 0.0)
    with pytest.raises(chain.NotYet, match="stickers sketch"):
        export.export(tmp_path)
    first = fit.fit(0.02, 3, 1e-3, fresh=0.1, room=40)[0]
    before = loop.checkpoint(fit.name())
    fit.fit(0.02, 3, 1e-3, fresh=0.1, room=40)
    after = loop.checkpoint(fit.name())
    assert after["step"] > before["step"] > 0 and "continuing at step" in capsys.readouterr().out
    changed = [name for name, value in after["average"].items() if not torch.equal(value, first.state_dict()[name])]
    assert any("controlnet_down_blocks" in name for name in changed)
    saved = loop.checkpoint(fit.name())
    saved["log"] = [{"device": "a CPU", "with": 0.1, "without": 0.2}]
    torch.save(saved, loop.WORK / f"{fit.name()}.pt")
    export.export(tmp_path)
    back = ControlNetModel.from_pretrained(tmp_path / "sketch")
    assert all(torch.equal(value, saved["average"][name].half()) for name, value in back.half().state_dict().items())
    assert json.loads((tmp_path / "sketch" / sketch.ABOUT).read_text()) == {
        "teacher": "0123456789abcdef", "step": saved["step"], "hours": round(saved["hours"], 2), "device": ["a CPU"], "with": 0.1, "without": 0.2}
    assert verified.check(tmp_path / "sketch") == ""
    assert all(path.stat().st_size < 10 * 2**20 for path in (tmp_path / "sketch").iterdir())


def test_the_report_measures_both_ways_on_the_same_noise(workshop, monkeypatch):
    monkeypatch.setattr(fit, "HELD_OUT", 2)
    control = network.untrained(workshop.unet)
    told = fit.report_of(workshop, chain.small_autoencoder().encoder)(control)
    assert told["with"] == told["without"] > 0
    torch.nn.init.normal_(control.controlnet_mid_block.weight, std=5.0)
    other = fit.report_of(workshop, chain.small_autoencoder().encoder)(control)
    assert other["without"] == told["without"] and other["with"] != told["with"]


def test_the_students_own_network_learns_from_drawn_pairs_and_is_exported_beside_it(workshop, tmp_path, monkeypatch, tiny_pipe):
    small, whole = students.student_of(workshop.unet), network.untrained(workshop.unet)
    torch.nn.init.normal_(whole.controlnet_cond_embedding.conv_out.weight)
    torch.nn.init.normal_(whole.controlnet_down_blocks[0].weight)
    (tmp_path / "sdxs").mkdir()
    save_file(small.state_dict(), tmp_path / "sdxs/unet.safetensors")
    weights = {"sketch": whole.state_dict(), "sdxs": small.state_dict()}
    for module in (fit, student):
        monkeypatch.setattr(module, "shipped", lambda folder, part="": weights[folder])
    monkeypatch.setattr(chain, "own_autoencoder", lambda: copy.deepcopy(tiny_pipe.vae))
    monkeypatch.setattr(student, "HELD_OUT", 2)
    monkeypatch.setattr(sdxs, "missing", lambda folder: "There is no student.")
    with pytest.raises(chain.NotYet, match="no student"):
        student.fit(0.02, 2, 1e-3)
    monkeypatch.setattr(sdxs, "missing", lambda folder: "")
    monkeypatch.setattr(student, "home", lambda: tmp_path / "sdxs")
    with pytest.raises(chain.NotYet, match="pairs --drawn"):
        student.fit(0.02, 2, 1e-3)

    pairs.make(1, 2, 2, 3.0, most=4, drawn=True)
    pairs.make(1, 2, 2, 3.0, most=4)
    followed, plain = (pairs.saved(drawn=drawn)["latents"] for drawn in (True, False))
    assert len(followed) == len(plain) == 4 and not torch.equal(followed, plain)
    *_, sketches = made = pairs.Pairs(workshop, drawn=True).sketched(3)
    row = next(i for i in range(4) if torch.equal(followed[i].float(), made[2][0]))
    assert torch.equal(sketches[0], network.drawings(chain.scenes([pairs.SEED + row]))[0])

    begun = student.begun(small).state_dict()
    same = [name for name in begun if name in weights["sketch"] and begun[name].shape == weights["sketch"][name].shape]
    assert "down_blocks.1.resnets.0.conv1.weight" in same and all(torch.equal(begun[name], weights["sketch"][name]) for name in same)
    student.fit(0.1, 2, 1e-3)  # long enough for a report
    saved = loop.checkpoint(student.name())
    assert saved["step"] > 0 and {"agreement", "gap", "objects"} <= set(saved["log"][-1])
    assert any(not torch.equal(saved["average"][name], begun[name]) for name in begun if "controlnet_down_blocks" in name)
    export.export(tmp_path)
    told = json.loads((tmp_path / "sdxs-sketch" / sketch.ABOUT).read_text())
    assert told["teacher"] == fitted.weights(tmp_path / "sdxs") and told["gap"] == saved["log"][-1]["gap"]
    assert verified.check(tmp_path / "sdxs-sketch") == "" and not (tmp_path / "sketch").exists()
    back = ControlNetModel.from_pretrained(tmp_path / "sdxs-sketch")
    assert all(torch.equal(value, saved["average"][name].half()) for name, value in back.half().state_dict().items())


# Its figures

def test_a_scene_agrees_with_its_own_sketch_and_a_blank_picture_with_none():
    for scene in SCENES[:3]:
        drawing, blank = outline.draw(scene), Image.new("RGB", (world.SIZE,) * 2, "white")
        assert evaluate.agreement(drawing, world.render(scene)) > 0.9 and evaluate.agreement(drawing, blank) == 0
        assert evaluate.gap(scene, world.render(scene)) < 16 and evaluate.gap(scene, blank) == world.SIZE / 2


def test_an_object_that_stands_elsewhere_agrees_less():
    scene = replace(SCENES[0], background="blue sky")

    def far(at, room):
        return room if at < room / 2 else 0

    moved = replace(scene, stickers=tuple(replace(s, x=far(s.x, world.SIZE - s.full), y=far(s.y, world.SIZE - s.full)) for s in scene.stickers))
    assert evaluate.agreement(outline.draw(scene), world.render(moved)) < 0.6
    assert evaluate.gap(scene, world.render(moved)) > 30


def test_the_figures_are_kept_with_the_weights_that_they_are_of(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluate, "RAW", tmp_path / "sketch.json")
    monkeypatch.setattr(loop, "WORK", tmp_path / "training")
    evaluate.main(2, 1, 3.0)
    *told, last = capsys.readouterr().out.splitlines()
    kept = json.loads((tmp_path / "sketch.json").read_text())
    assert kept == json.loads(last) and kept["weights"] == fitted.weights(models.MODELS["stickers"].folder) and kept["count"] == 2
    ways = [name for name in kept if isinstance(kept[name], dict) and name != "environment"]
    assert len(ways) == len(told) >= 3 and kept[evaluate.REAL]["agreement"] > 0.95 > kept["without"]["agreement"]
    assert max(Image.open(tmp_path / "training" / "sketch-samples.png").size) > 500
