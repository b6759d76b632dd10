"""A look inside a comparison: traced runs of its rows, overlays that are asked for, and what is refused."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from fastviz import models, views
from fastviz.methods import olss
from fastviz.patch import transformer_blocks
from fastviz.request import BadRequest, Request
from fastviz.trace import load
from fastviz.ui import figures, inside
from fastviz.ui.inside import Inside, block_label, checked, words_of
from fastviz.ui.job import Job


@pytest.fixture
def finished(tiny_pipe, monkeypatch, tmp_path):
    """A comparison that is done, on the tiny pipeline in the place of the embedded model."""
    monkeypatch.setitem(models._loaded, "stickers", tiny_pipe)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    job = Job(Request("a cat and a dog.", size=128, steps=4, repeats=1, methods="full,tome,attention_reuse,few_step(steps=2)"))
    job.work()
    assert job.state == "finished"
    return job


@pytest.fixture
def look(finished):
    look = Inside(finished)
    look.work()
    assert look.state == "finished", look.sentence
    return look


def picture(source):
    return Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2])))


def wanted(look, show, **more):
    return {"key": "k", "block": look.blocks[0][0], "show": show, "kinds": {}, **more}


def test_every_row_is_recorded_and_shown(look, finished):
    told = look.board()
    assert [row["title"] for row in told["rows"]] == ["Full model", "Token merging", "Attention reuse", "Fewer steps"]
    assert told["steps"] == 4 and [row["steps"] for row in told["rows"]] == [4, 4, 4, 2]
    assert [list(row["kinds"])[:1] for row in told["rows"]] == [[], ["groups"], ["moved.self"], []]
    for row in told["rows"]:
        assert np.array_equal(np.asarray(picture(row["picture"])), np.asarray(finished.rows[row["index"]].image))
        assert picture(row["estimates"]).size == (128 * row["steps"], 128)
        assert all(picture(strip["picture"]).size == (row["steps"], len(told["blocks"])) for strip in row["strips"].values())
        assert picture(row["work"]).width == len(row["flops"]) == row["steps"]
        assert list(row["strips"]) == ["computed", *["age", "stale.self", "stale.cross"] * (row["title"] == "Attention reuse")]
        assert "estimate" in load(look.traces[row["index"]]).channels
    assert look.status()["state"] == "finished"


def test_rows_with_a_scheme_of_their_own_show_it(tiny_pipe, tiny_home, monkeypatch, tmp_path):
    monkeypatch.setitem(models._loaded, "stickers", tiny_pipe)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    measured = {name: {"gaps": [0.4, 0.3, 0.2, 0.1], "rmse": 0.1, "timesteps": [999, 749, 499, 249]} for name in ("DDIM", "OLSS")}
    path = olss.path_of(tiny_home, "olss", 4, 3.0)
    told = json.loads(path.read_text())
    look = Inside(Job(Request("a cat", size=128, steps=4, repeats=1, methods="full,olss(steps=4),sdxs,sdxs(unet=false)")))
    assert figures.of_row(tiny_pipe, look.job.request, look.job.request.methods[1]) == []  # nothing was measured
    path.write_text(json.dumps(told | {"fitted": told["fitted"] | {"measured": measured}}))
    found = [figures.of_row(tiny_pipe, look.job.request, stack) for stack in look.job.request.methods]
    path.write_text(json.dumps(told))
    assert [[each["title"] for each in row] for row in found] == [[], list(figures.TITLES.values())[:3], ["What was taken out of the network"], []]
    for each in (*found[1], *found[2]):
        light, dark = (np.asarray(picture(each[name]).convert("L")) for name in ("light", "dark"))
        assert light.shape == dark.shape and light[0, 0] > 200 and dark[0, 0] < 60


def test_a_student_shows_its_own_attention_in_the_teachers_blocks_and_what_was_removed(tiny_pipe, tiny_home, monkeypatch, tmp_path):
    monkeypatch.setitem(models._loaded, "stickers", tiny_pipe)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    job = Job(Request("a cat", size=128, steps=4, repeats=1, methods="full,sdxs"))
    job.work()
    look = Inside(job)
    look.work()
    assert [row["error"] for row in look.views] == [None, None] and look.views[1]["timesteps"] == [999]
    token, black = look.words[-1][0], ~np.asarray(picture(look.views[1]["strips"]["computed"]["picture"]).convert("RGB")).any((1, 2))
    removed = []
    for name, _ in look.blocks:
        (full,), student = (list(look.overlay(wanted(look, token, block=name))["rows"][row]) for row in "01")
        removed.append(student == ["removed"])
        assert full == "now" and student in (["removed"], ["now"])
        assert removed[-1] or np.asarray(picture(look.overlay(wanted(look, token, block=name))["rows"]["1"]["now"]["sheet"])).any()
        assert len(look.animations(wanted(look, token, block=name))) == 2 - removed[-1]
    kept = [name for (name, _), each in zip(look.blocks, removed) if not each]
    assert black.tolist() == removed and {name.partition("_")[0] for name in kept} == {"down", "up"} and any(removed)
    told = look.overlay(wanted(look, "skipped", block=look.blocks[removed.index(True)][0]))["rows"]["1"]["removed"]
    assert "removed" in told["sentence"] + told["captions"][0] and told["legend"]


def test_before_anything_is_recorded_there_is_nothing_to_choose(finished):
    told = Inside(finished).board()
    assert told["blocks"] == told["words"] == told["rows"] == []


def test_the_words_are_there_before_the_blocks_with_which_the_page_begins(finished, monkeypatch):
    look, boards = Inside(finished), []
    monkeypatch.setattr(inside, "words_of", lambda model, prompt: boards.append(look.board()) or [(1, "cat")])
    monkeypatch.setattr(look, "traced", lambda *told: boards.append(look.board()) or {})
    look.compute()
    assert boards[0]["blocks"] == [] and boards[1]["words"] == [{"token": 1, "text": "cat"}] and boards[1]["blocks"]


def mean_apart(overlay, below):
    """How far the mean colour of merged squares (8 pixels) is from that of the same places of the picture below, of 255."""
    corners = np.asarray(overlay)[::8, ::8]  # beside lines and dots
    where, colours = corners[..., 3] > 0, np.asarray(below.convert("RGB").resize(corners.shape[1::-1], Image.Resampling.BOX))
    return np.abs(corners[where][:, :3].mean(0) - colours[where].mean(0)).max()


def test_overlays_are_those_of_the_rows_that_skipped_something(look, finished):
    found = look.overlay(wanted(look, "skipped"))
    assert found["key"] == "k" and [list(row) for row in found["rows"].values()] == [[], ["groups"], ["moved.self"], []]
    merged = found["rows"]["1"]["groups"]
    assert len(merged["captions"]) == 4 and merged["sentence"] and merged["legend"]
    early = look.overlay(wanted(look, "skipped", base="estimates"))["rows"]["1"]["groups"]
    for told, below in ((merged, [finished.rows[1].image] * 4), (early, inside.cut(look.views[1]["estimates"], 4))):
        assert all(mean_apart(one, other) < 2 for one, other in zip(inside.cut(told["sheet"], 4), below))
    assert early["sheet"] != merged["sheet"]
    side = transformer_blocks(models.load("stickers").unet, (16, 16))[0][2][0]
    assert picture(merged["sheet"]).size == (4 * side * 8, side * 8)
    other = look.overlay(wanted(look, "skipped", kinds={"1": "labels"}))["rows"]["1"]
    assert list(other) == ["labels"] and other["labels"]["sheet"] != merged["sheet"]
    for unknown in ("no", []):
        assert look.overlay(wanted(look, "skipped", kinds={"1": unknown}))["rows"]["1"] == {"groups": merged}


def test_words_and_points_are_shown_for_every_row(look):
    token = dict((text, token) for token, text in look.words)["dog"]
    word, point = look.overlay(wanted(look, token)), look.overlay(wanted(look, [0.2, 0.7]))
    for found in (word, point):
        assert len({row["now"]["sheet"] for row in found["rows"].values()}) == 4
    assert len({str(row["now"]["legend"]) for row in word["rows"].values()}) == 1  # one scale for all rows
    point = {index: row["now"]["captions"] for index, row in point["rows"].items()}
    assert "merged" in " ".join(point["1"]) and "used instead" in point["2"][3]


def test_attention_that_was_used_again_can_be_compared_with_what_would_be_computed(look):
    assert [list(row["looks"]) for row in look.board()["rows"]] == [[], [], ["now", "used", "change"], []]
    shown = look.overlay(wanted(look, [0.2, 0.7]))["rows"]
    assert [list(row) for row in shown.values()] == [["now"], ["now"], ["now", "used", "change"], ["now"]]
    assert len({each["sheet"] for each in shown["2"].values()}) == 3
    moving = [look.animations(wanted(look, [0.2, 0.7], kinds={"2": kind}))[2].read_bytes() for kind in ("now", "change", "no")]
    assert moving[0] == moving[2] != moving[1]


def test_animations_have_a_frame_for_every_step(look):
    paths = look.animations(wanted(look, "skipped"))
    assert [path.suffix for path in paths] == [".webp"] * 2 and all(path.is_file() for path in paths)
    for base in ("picture", "estimates"):
        with Image.open(look.animations(wanted(look, "skipped", base=base))[0]) as moving:
            assert moving.size == (128, 128) and (moving.n_frames == 4 if base == "estimates" else moving.n_frames > 1)


@pytest.mark.parametrize("told", (None, [], {}, {"show": "other"}, {"block": "no"}, {"show": 99}, {"show": True}, {"show": [0.5]},
                                  {"show": [0.5, 2]}, {"show": [float("nan"), 0]}, {"show": ["0", "0"]}, {"kinds": []}, {"block": "b", "show": "skipped"}), ids=str)
def test_what_does_not_exist_is_refused(told):
    if isinstance(told, dict) and told and "block" not in told or told == {"block": "no"}:
        told = {"key": 0, "block": "b", "show": "skipped", "kinds": {}} | told
    with pytest.raises(BadRequest, match="does not exist"):
        checked(told, ["b"], [0, 1])


@pytest.mark.parametrize("steps", (3, inside.COLUMNS, 2 * inside.COLUMNS + 3))
def test_pictures_on_a_sheet_are_found_again(steps):
    frames = np.stack([np.full((16, 32, 4), (10 * step, 100, 255 - 10 * step, 255), np.uint8) for step in range(steps)])
    again = [np.asarray(each.convert("RGB"), float) for each in inside.cut(inside.webp(views.sheet(frames, inside.COLUMNS)), steps)]
    assert [each.shape for each in again] == [(16, 32, 3)] * steps
    assert all(np.abs(each - frame[..., :3]).mean() < 8 for each, frame in zip(again, frames))  # the sheet is lossy


def test_words_are_those_that_the_model_read():
    assert words_of("stickers", "a cat, and ... a dog!") == [(0, "a"), (1, "cat"), (3, "and"), (7, "a"), (8, "dog")]


def test_blocks_have_names_for_people():
    assert block_label("down_blocks.0.attentions.1.transformer_blocks.2", (32, 32)) == "Down 1, 32 x 32, transformer 2, layer 3"
    assert block_label("mid_block.attentions.0.transformer_blocks.0", (8, 8)) == "Mid, 8 x 8, transformer 1, layer 1"


def test_a_row_that_fails_says_so_and_the_others_are_shown(finished, monkeypatch):
    from fastviz import lens

    attach, begun = lens.attach, []

    def failing(pipe, request, context):
        begun.append(request)
        if len(begun) == 2:
            raise MemoryError
        return attach(pipe, request, context)

    monkeypatch.setattr(lens, "attach", failing)
    look = Inside(finished)
    look.work()
    assert look.state == "finished"
    assert "Out of memory" in look.views[1]["error"] and [row["error"] is None for row in look.views] == [True, False, True, True]
    assert list(look.overlay(wanted(look, "skipped"))["rows"]) == ["0", "2", "3"]


def test_a_look_that_is_stopped_while_it_decodes_shows_the_rows_before(finished, monkeypatch):
    look = Inside(finished)
    estimates = inside.estimates
    monkeypatch.setattr(inside, "estimates", lambda *told: (look.views and look.stop.set(), estimates(*told))[1])
    look.work()
    assert look.state == "stopped" and list(look.traces) == [0] and list(look.overlay(wanted(look, "skipped"))["rows"]) == ["0"]


def test_records_that_were_cleared_are_told(look):
    look.traces[1].unlink()
    assert [path.endswith(".npz") for path in look.files()] == [True] * 3
    with pytest.raises(BadRequest, match="look inside again"):
        look.overlay(wanted(look, "skipped"))


def test_a_look_that_is_stopped_keeps_what_it_has(finished):
    look = Inside(finished)
    look.watch = lambda i, title, step, steps: look.stop.set() if i == 1 else None
    look.work()
    assert look.state == "stopped" and len(look.views) == 1 and list(look.traces) == [0]


def test_progress_is_the_share_of_the_steps_of_all_rows(finished):
    look = Inside(finished)
    assert look.status()["share"] == 0
    look.watch(1, "Token merging", 2, 4)
    assert look.status()["share"] == (1 + 2 / 4) / 4
