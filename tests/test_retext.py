"""A fresh text encoder in place of the teacher's."""


import torch

from fastviz.stickers import loop, parts, retext, teacher, world
from fastviz.stickers.words import OBJECTS


def test_what_stands_in_each_cell_is_told():
    scene = world.Scene("", "beach", (world.Sticker("cat", "big", 112, 0, 8), world.Sticker("owl", "small", 56, 160, 160)), "left", 0)
    cells = retext.standing(scene).view(4, 4)
    cat, owl, nothing = OBJECTS.index("cat"), OBJECTS.index("owl"), len(OBJECTS)
    for y in range(4):
        for x in range(4):
            middle = 64 * x + 32, 64 * y + 32
            inside = [s.name for s in scene.stickers if s.x <= middle[0] < s.x + s.full and s.y <= middle[1] < s.y + s.full]
            assert cells[y, x] == (OBJECTS.index(inside[0]) if inside else nothing)
    assert {cat, owl, nothing} == set(cells.flatten().tolist())


def test_batches_hold_captions_and_their_scenes():
    tokens, where = next(retext.captions(3, 5))
    assert tokens.shape == (5, parts.LENGTH) and where.shape == (5, 16) and where.max() <= len(OBJECTS)


def test_a_fresh_text_encoder_learns_the_old_ones_answers_and_takes_its_place(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(loop, "WORK", tmp_path)
    old = teacher.Teacher()
    saved = {kind: {name: value.clone() for name, value in old.state_dict().items()} for kind in ("model", "average")}
    loop.write("teacher", saved | {"step": 7, "hours": 1.5, "log": [{"step": 7}], "optimizers": [{"state": 1}]})
    retext.fit(0.15, 4, 1e-3)
    new = loop.checkpoint("teacher")
    assert (new["step"], new["hours"], new["log"], new["optimizers"]) == (7, 1.5, [{"step": 7}], ())
    for kind in ("model", "average"):
        assert all(torch.equal(value, saved[kind][name]) for name, value in new[kind].items() if name.startswith("unet."))
        assert not any(torch.equal(value, saved[kind][name]) for name, value in new[kind].items() if name.startswith("text.") and value.ndim == 2)
    teacher.built(new["average"])  # fits


def test_the_loss_is_least_for_the_same_answers():
    torch.manual_seed(0)
    model, other = retext.Taught(), retext.Taught()
    batch = next(retext.captions(1, 6))
    same, numbers = retext.follows(model.text.eval())(model, batch)
    different, _ = retext.follows(model.text)(other, batch)
    assert numbers["apart"] < 1e-6 and different - same > 0.5
