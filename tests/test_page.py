"""The page: controls and requests, what is shown of a row, the temp folder, profiles, and journeys over its API."""

import base64
import io
import os
import time

import pytest
import yaml
from gradio_client import Client
from PIL import Image

from fastviz import models, profile, store
from fastviz.compare import Progress
from fastviz.methods import BY_KEY, tome
from fastviz.models import MODELS
from fastviz.request import BadRequest, Request, methods_text
from fastviz.ui import temp
from fastviz.ui.ask import CHOSEN, OWN, Ask, curve
from fastviz.ui.board import measured, span
from fastviz.ui.job import Job
from fastviz.ui.page import Page
from fastviz.ui.restore import parse

LOCAL = profile.load()


@pytest.fixture(scope="module")
def ask():
    return Page(LOCAL).ask


REQUESTS = (
    Request("a cat"),
    Request("a cat", methods="full"),
    Request("a dog in the snow", seed=2**32 - 1, steps=7, guidance=1.0, size=128, repeats=5, methods="full,tome(ratio=0.25,random=false)"),
    Request("ä <b>cat</b> {0} ${1}", methods="full,few_step(solver=unipc,steps=9),few_step(steps=5),tome+attention_reuse(maps=self)"),
    Request("a cat", methods="full,tome,few_step(solver=ddim,match=tome)"),
)


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: methods_text(request.methods))
def test_controls_hold_every_request(ask, request_):
    back = ask.request(ask.values(request_))
    assert set(back.methods) == set(request_.methods) and back.methods[0] == request_.methods[0]
    for name in ("prompt", "seed", "steps", "guidance", "size", "model", "repeats"):
        assert getattr(back, name) == getattr(request_, name)


def changed(ask, **values):
    told = dict(zip(ask.controls, ask.values(Request("a cat", methods="full")))) | values
    return list(told.values())


def test_every_knob_has_a_control(ask):
    for method in CHOSEN:
        for name in method.Knobs.__dataclass_fields__:
            assert f"{method.KEY}.{name}" in ask.controls


def test_settings_begin_as_the_model_needs_them(ask):
    names = [*OWN, *(method.KEY for method in CHOSEN)]
    here, there = (dict(zip(names, ask.own(key), strict=True)) for key in ("stickers", "sdxl"))
    begun = dict(zip(ask.controls, ask.values(Request("a cat"))))
    assert methods_text(ask.request(changed(ask, atedm=True)).methods) == f"full,{MODELS['stickers'].begins}"
    for name in ("atedm.ratio", "atedm.recover", "atedm.finest"):
        paper = getattr(BY_KEY["atedm"].Knobs(), name.partition(".")[2])
        assert begun[name] == here[name]["value"] != there[name]["value"] == paper
    assert dict(zip(ask.controls, ask.values(Request("a cat", methods="full,atedm"))))["atedm.ratio"] == BY_KEY["atedm"].Knobs().ratio


def test_combine_uses_the_settings_of_each_method(ask):
    asked = ask.request(changed(ask, combine=["tome", "attention_reuse"], **{"tome.ratio": 0.25}))
    assert methods_text(asked.methods) == "full,tome(ratio=0.25)+attention_reuse"


def test_the_curve_adds_four_rows_and_none_twice(ask):
    asked = ask.request(changed(ask, curve=True, few_step=True, steps=50, **{"few_step.steps": 20}))
    assert [stack[0].steps for stack in asked.methods[1:]] == [20, 30, 10, 5]
    assert [stack[0].steps for stack in ask.request(changed(ask, curve=True, steps=4)).methods[1:]] == [2, 1]
    assert [stack[0].steps for stack in ask.request(changed(ask, curve=True, steps=1)).methods[1:]] == [1]
    assert [curve({"steps": steps, "few_step.solver": "dpm"}) != [] for steps in (0, 1, 1000, 1001)] == [False, True, True, False]
    for steps in (True, "20", {}, 0, 10**400, float("nan")):
        with pytest.raises(BadRequest) as refusal:
            ask.request(changed(ask, curve=True, steps=steps))
        assert refusal.value.field == "steps"


@pytest.mark.parametrize("field, values", (
    ("prompt", {"prompt": " "}), ("prompt", {"prompt": None}), ("prompt", {"prompt": ["a"]}), ("seed", {"seed": True}),
    ("seed", {"seed": 1.5}), ("steps", {"steps": "50"}), ("steps", {"steps": None, "curve": True}), ("guidance", {"guidance": float("nan")}),
    ("size", {"size": 100}), ("repeats", {"repeats": 0}), ("model", {"model": "../etc"}), ("methods", {"combine": ["tome"]}),
    ("methods", {"combine": "tome"}), ("methods", {"combine": [["tome"], {}]}), ("more", {"more": "nonsense"}), ("more", {"more": {}}),
    ("methods", {"tome": True, "tome.ratio": 5}), ("methods", {"few_step": True, "few_step.solver": []}),
))
def test_bad_values_name_their_field(ask, field, values):
    with pytest.raises(BadRequest) as refusal:
        ask.request(changed(ask, **values))
    assert refusal.value.field == field and str(refusal.value).endswith((".", "?"))


def test_every_field_that_can_be_refused_has_its_place(ask):
    shown = {each.elem_id for each in Page(LOCAL).blocks.blocks.values() if getattr(each, "elem_id", None)}
    assert {f"ask-{name}" for name in ("prompt", "seed", "steps", "guidance", "size", "model", "repeats", "methods", "more")} <= shown


@pytest.mark.parametrize("text", ("", "[]", "null", "{", "[" * 100_000, "1" * 20_001, None, 3, ["a"]))
def test_what_is_no_recipe_is_refused(text):
    with pytest.raises(BadRequest):
        parse(text)


def test_numbers_for_people():
    assert measured(float("inf"))["why"] == "the pictures are identical" and measured("no backbone") == {"value": None, "why": "no backbone"}
    assert measured(0.25) == {"value": 0.25, "why": ""}
    assert [span(s) for s in (0.2, 41.4, 89, 120)] == ["less than a second", "about 41 s", "about 89 s", "about 2 min"]


def test_the_temp_folder_is_emptied_and_private(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "mine/deep").mkdir(parents=True)
    (tmp_path / "mine/deep/left.zip").write_bytes(b"left behind")
    (tmp_path / "other").write_bytes(b"somebody else's")
    (tmp_path / "mine/link").symlink_to(tmp_path / "other")
    folder = temp.fresh("mine")
    assert list(folder.iterdir()) == [] and (tmp_path / "other").exists() and folder.stat().st_mode & 0o077 == 0
    (tmp_path / "trap").symlink_to(tmp_path)
    with pytest.raises(PermissionError):
        temp.fresh("trap")


def test_sweeping_bounds_age_and_bytes(tmp_path):
    now = time.time()
    for age, name in ((500, "old"), (30, "a"), (20, "b"), (10, "c")):
        (tmp_path / name).write_bytes(bytes(2**20))
        os.utime(tmp_path / name, (now - age, now - age))
    assert temp.sweep(tmp_path, now, 100, 2) == 2 * 2**20
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "c"]


def test_the_janitor_sweeps_again_and_again(tmp_path):
    known = {str(tmp_path / "first"), "/dev/null"}
    temp.keep(tmp_path, 3600, 1, [known], every=0.02)
    for name in ("first", "second"):
        (tmp_path / name).write_bytes(bytes(2**21))
        end = time.time() + 20
        while (tmp_path / name).exists():
            assert time.time() < end
            time.sleep(0.01)
    while known != {"/dev/null"}:
        assert time.time() < end
        time.sleep(0.01)


def test_a_profile_bounds_requests():
    tight = profile.Profile(**{**vars(LOCAL), "max_steps": 10, "max_rows": 2, "max_repeats": 1})
    assert tight.check(Request("a cat", steps=10, methods="full,tome", repeats=1))
    for field, request in (("steps", Request("a cat", steps=11, methods="full", repeats=1)), ("repeats", Request("a cat", steps=5, methods="full")),
                           ("methods", Request("a cat", steps=5, repeats=1))):
        with pytest.raises(BadRequest) as refusal:
            tight.check(request)
        assert refusal.value.field == field


def test_a_wrong_profile_is_refused(tmp_path):
    told = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(LOCAL).items()}
    for wrong in ({**told, "max_rows": 99}, {**told, "models": ["unheard-of"]}, {**told, "extra": 1}):
        (tmp_path / "c.yaml").write_text(yaml.safe_dump({"local": wrong}))
        with pytest.raises(ValueError):
            profile.load("local", tmp_path / "c.yaml")
    with pytest.raises(ValueError, match="no profile"):
        profile.load("nowhere", tmp_path / "c.yaml")


def test_the_first_page_shows_a_request_that_runs():
    assert Ask(LOCAL).profile.check(Request(**LOCAL.example))


# Journeys over the API

def picture(row):
    return io.BytesIO(base64.b64decode(row["picture"].partition(",")[2]))


def test_rows_arrive_one_by_one_with_their_recipe(server):
    client = Client(server.address, verbose=False)
    told = list(client.submit("a cat on the beach", seed=3, steps=3, size=128, methods="full,few_step(steps=2),tome", api_name="/compare"))
    last = told[-1]
    assert last["state"] == "finished" and [row["state"] for row in last["rows"]] == ["done"] * 3
    counts = [sum(row["state"] == "done" for row in each["rows"]) for each in told]
    assert counts == sorted(counts) and {0, 1, 2, 3} >= set(counts) and len(set(counts)) >= 3
    wanted = Request("a cat on the beach", seed=3, steps=3, size=128, methods="full,few_step(steps=2),tome", repeats=1)
    for row in last["rows"]:
        assert store.read_png(picture(row)) == wanted
        assert Image.open(picture(row)).size == (128, 128) and row["seconds"] > 0 and row["flops"] > 0
    assert last["rows"][1]["steps"] == 2 and last["rows"][1]["acted"] and last["rows"][0]["speedup"] == 1.0
    assert len({row["seconds"] for row in last["rows"]}) == 3


def test_the_same_request_gives_the_same_pictures(server):
    client = Client(server.address, verbose=False)
    ask = dict(prompt="a fox at night", seed=9, steps=2, size=128, methods="full,tome", api_name="/compare")
    first, second = ([row["picture"] for row in client.predict(**ask)["rows"]] for _ in range(2))
    assert first == second and first[0] != first[1]


def test_a_cancelled_run_leaves_the_place_free(server):
    client = Client(server.address, verbose=False)
    job = client.submit("a dog", steps=100, size=256, methods="full", repeats=20, api_name="/compare")
    while not any(told["state"] == "running" and told["step"] for told in job.outputs()):
        time.sleep(0.05)
    job.cancel()
    begun = time.time()
    told = Client(server.address, verbose=False).predict("a dog", steps=1, size=128, methods="full", api_name="/compare")
    assert told["state"] == "finished" and time.time() - begun < 180  # far less than the cancelled run had left


def test_rows_are_shown_by_their_controls_and_only_those_without_one_in_writing(ask):
    request = Request("a cat", methods="full,tome(ratio=0.3),tome(ratio=0.4),attention_reuse,tome+few_step")
    shown = dict(zip(ask.controls, ask.values(request), strict=True))
    assert shown["tome"] is True and shown["tome.ratio"] == 0.3 and shown["attention_reuse"] is True and shown["atedm"] is False
    assert shown["more"] == "tome(ratio=0.4), tome+few_step"


def test_a_comparison_with_failed_rows_says_how_many(tiny_pipe, monkeypatch):
    monkeypatch.setitem(models._loaded, "stickers", tiny_pipe)
    monkeypatch.setattr(tome, "cells_of", lambda *_: 1 / 0)
    job = Job(Request("a cat", steps=2, size=128, methods="full,tome,attention_reuse", repeats=1))
    job.work()
    assert job.status()["sentence"] == "Done, but 1 of 3 rows failed: their cards say why."


def test_a_running_comparison_tells_its_share_of_all_runs():
    job = Job(Request("a cat", methods="full,tome", repeats=2))
    job.watch(Progress(row=0, rows=2, title="Full model", repeat=0, repeats=2, step=25, steps=50, seconds_left=41.4))
    told = job.status()
    assert (told["share"], told["row"], told["step"], told["left"]) == (1 / 8, 0, 1 / 2, "about 41 s left") and "glimpse" not in told
    job.glimpse(0, Image.new("RGB", (8, 8)))
    assert job.status()["glimpse"].startswith("data:image/")
    job.watch(job.progress._replace(row=1))
    assert "glimpse" not in job.status()
