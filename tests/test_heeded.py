"""Which words the embedded model heeds, and captions that tell a side."""

import json
import random

import pytest
import torch

from fastviz.stickers import heeded, parts, teacher, world
from fastviz.stickers.words import caption


def test_a_caption_that_tells_a_side_is_true_of_its_scene():
    rng = random.Random(3)
    scenes = [world.sample(rng, "train", 1, aside=1.0) for _ in range(60)]
    for scene in [*scenes, *(world.again(rng, scene) for scene in scenes)]:
        sticker, = scene.stickers
        middle = {"left": sticker.x, "right": sticker.x, "above": sticker.y, "below": sticker.y}[scene.relation] + sticker.full / 2
        assert world.said(scene) and (middle < world.SIZE / 2 - 10) == (scene.relation in ("left", "above")) and abs(middle - world.SIZE / 2) > 10
        assert any(word in scene.caption.split() for word in (scene.relation, "over", "under"))
    assert {scene.relation for scene in scenes} == set(heeded.OPPOSITE)
    assert not any(world.said(world.sample(rng, "train", 1)) for _ in range(20))


def test_told_sides_are_trained_with_told_pairs(tiny_pipe):
    scenes = [world.sample(random.Random(i), "train", 1, aside=float(i % 2)) for i in range(8)]
    _, _, boxes = teacher.painted(scenes, tiny_pipe.tokenizer)
    assert boxes[:, 3].tolist() == [0, 1] * 4 and boxes[:, 2].min() > 0
    store = teacher.Scenes(lambda pictures: torch.zeros(len(pictures), 4, 32, 32), teacher.tokens_of(tiny_pipe.tokenizer, [""]), room=8)
    store.add(torch.zeros(8, 3, 1, 1), torch.zeros(8, parts.LENGTH, dtype=torch.long), boxes)
    rows, _, _ = store.places(200, teacher.WINDOW)
    assert set(rows.tolist()) == {0, 2, 4, 6}  # a window can stand anywhere: nothing may tell where its sticker is


@pytest.mark.parametrize("word", heeded.WORDS)
def test_one_word_is_exchanged(word):
    rng = random.Random(word)
    for _ in range(30):
        true = heeded.told(rng, word)
        false = heeded.exchanged(word, *true)
        changed = [i for i, pair in enumerate(zip(true, false)) if pair[0] != pair[1]]
        assert changed == [{"object": 0, "size": 1, "background": 3}.get(word, 2)] and len(set(false[0])) == len(true[0])
        ours, theirs = (caption(random.Random(7), *each).split() for each in (true, false))
        if word == "object":
            assert set(ours) - set(theirs) - {"a", "an"} == {true[0][0]} and set(theirs) - set(ours) - {"a", "an"} == {false[0][0]}


def test_the_distance_of_means_is_free_of_chance():
    rng = torch.Generator().manual_seed(0)
    draws = [heeded.moved(torch.randn(12, 400, generator=rng), torch.randn(12, 400, generator=rng) + 0.5) for _ in range(40)]
    assert sum(draws) / 40 == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("t", (999, 600))
def test_a_rise_is_told_as_an_error_of_the_clean_latents(t):
    latents, a = torch.randn(5, 4, 8, 8), parts.scheduler().alphas_cumprod[t]

    def model(noisy, at, shift):  # believes that the clean latents are shifted by so much
        return (noisy - a.sqrt() * (latents + shift[:, None, None, None])) / (1 - a).sqrt()

    found = heeded.rises(model, latents, torch.zeros(5), torch.full((5,), 0.3), t, 0)
    torch.testing.assert_close(found, torch.full((5,), 0.09), rtol=1e-3, atol=1e-4)


def test_what_the_teacher_heeds_is_written_down(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(heeded, "FILE", tmp_path / "heeded.json")
    monkeypatch.setattr(heeded, "TIMESTEPS", (999,))
    monkeypatch.setattr(heeded, "MEAN", 3)
    heeded.main(3)
    told = json.loads((tmp_path / "heeded.json").read_text())
    assert [row["word"] for row in told["words"]] == list(heeded.WORDS) and len(capsys.readouterr().out.splitlines()) == 6
    background = told["words"][1]  # the word that a trained model heeds most
    assert 0.2 < background["heeded"] < 1.5 and background["rise"]["999"][0] > 3 * background["rise"]["999"][1]


def test_the_unet_is_taught_where_it_is_by_scenes_that_tell_places_alone():
    torch.manual_seed(0)
    model = teacher.Teacher()
    seen = teacher.watched(model.unet)
    loss = teacher.noise_loss(parts.scheduler().alphas_cumprod, 1.0, seen)
    tokens = teacher.tokens_of(model.tokenizer, ["a cat on the left"] * 2)
    latents = torch.zeros(2, 4, teacher.WHOLE, teacher.WHOLE)
    _, without = loss(model, (latents, tokens))
    assert without["place"] == 0 and len(seen) == len(model.unet.up_blocks[1].resnets)
    _, numbers = loss(model, (latents, tokens, teacher.LAYOUT))
    assert float(numbers["place"].detach()) == pytest.approx(float(sum(map(teacher.misplaced, seen)).detach()))
    height, channels = 16, 128
    reads = torch.randn(2, channels, generator=torch.Generator().manual_seed(1)) / channels ** 0.5
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, height), indexing="ij")
    right = torch.einsum("khw,ck->chw", torch.stack((x, y)), torch.linalg.pinv(reads))[None]  # features from which both are read
    assert teacher.misplaced(right) < 1e-8 < 0.5 < teacher.misplaced(right.flip(-1))
