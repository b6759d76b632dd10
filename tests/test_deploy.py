"""Profiles, turns, the worker's boundary, and what a Space is made of."""

import dataclasses
import io
import multiprocessing
import os
import pickle
import random
import re
import shutil
import subprocess
import sys
import threading
from types import SimpleNamespace

import folders
import gradio as gr
import pytest
import torch
import yaml

from fastviz import checkpoints, compare, deploy, models, profile, reading, verified
from fastviz.__main__ import main
from fastviz.verified import BadModel
from fastviz.request import BadRequest, Request
from fastviz.ui import page, parts, worker
from fastviz.ui.ask import CHOSEN, OWN, Ask
from fastviz.ui.job import Job
from fastviz.ui.page import Page
from fastviz.ui.turns import Turns

NAMES = ("local", "classroom", "cpu-basic", "zerogpu")
QUICK = dict(size=128, steps=2, repeats=2, guidance=3.0)


# Profiles

@pytest.mark.parametrize("name", NAMES)
def test_every_profile_is_sound_and_its_page_can_be_built(name):
    found = profile.load(name)
    assert Ask(found).profile is found and found.check(Request(**found.example))
    assert found.max_size >= models.MODELS[found.models[0]].size and "full" in found.methods
    Page(found)


@pytest.mark.parametrize("change, sentence", [
    ({"max_steps": 101}, "max_steps must be a whole number from 1 to 100"), ({"queue": True}, "queue must be a whole number"),
    ({"models": []}, "models must be a list of stickers"), ({"models": ["../x"]}, "models must be a list"),
    ({"methods": ["magic"]}, "methods must be a list of full"), ({"methods": "tome"}, "methods must be a list"),
    ({"address": 5}, "address must be text"), ({"max_size": 128}, "its example cannot run here: 256 pixels are too many"),
    ({"example": {"prompt": ""}}, "Type a prompt first"), ({"extra": 1}, "has the unknown extra"), ({"queue": None}, "queue must be"),
    ({"language": "xx"}, "language must be one of de, en, es, zh"), ({"language": None}, "language must be one of")])
def test_a_wrong_profile_is_one_clear_sentence(tmp_path, change, sentence):
    told = yaml.safe_load(profile.PATH.read_text())["local"] | change
    (tmp_path / "p.yaml").write_text(yaml.safe_dump({"local": told}))
    with pytest.raises(ValueError, match=sentence):
        profile.load("local", tmp_path / "p.yaml")
    del told["queue"]
    (tmp_path / "p.yaml").write_text(yaml.safe_dump({"local": told}))
    with pytest.raises(ValueError, match="lacks queue"):
        profile.load("local", tmp_path / "p.yaml")


@pytest.mark.parametrize("text, sentence", [
    ("local: {models: [stickers}\n", "cannot be read as YAML, mend it: .* line 1"), ("local:\n\tqueue: 3\n", "cannot be read as YAML"),
    ("- local\n", "must be a list of names and values"), ("", "must be a list of names and values"),
    ("local: 5\n7: {}\n", "Profile local must be a list"), ("7: {}\n", "has no profile 'local': choose from 7")])
def test_a_file_of_profiles_with_a_typo_is_one_clear_sentence(tmp_path, text, sentence):
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(ValueError, match=sentence) as told:
        profile.load("local", tmp_path / "p.yaml")
    assert "\n" not in str(told.value) and type(told.value) is ValueError


def test_a_profile_bounds_size_and_methods():
    tight = dataclasses.replace(profile.load(), max_size=128, methods=("full", "tome"))
    for field, request in (("size", Request("a cat", methods="tome")), ("methods", Request("a cat", size=128, methods="few_step"))):
        with pytest.raises(BadRequest) as told:
            tight.check(request)
        assert told.value.field == field


def test_which_profile_is_served_where_nobody_names_one(monkeypatch):
    for name in ("FASTVIZ_PROFILE", "SPACE_ID", "SPACES_ZERO_GPU"):
        monkeypatch.delenv(name, raising=False)
    assert profile.default() == "local"
    monkeypatch.setenv("SPACE_ID", "me/fastviz")
    assert profile.default() == "cpu-basic"
    monkeypatch.setenv("SPACES_ZERO_GPU", "true")
    assert profile.default() == "zerogpu"
    monkeypatch.setenv("FASTVIZ_PROFILE", "classroom")
    assert profile.default() == "classroom"


def test_beyond_this_machine_only_with_a_password(monkeypatch):
    monkeypatch.delenv("FASTVIZ_PASSWORD", raising=False)
    monkeypatch.delenv("SPACE_ID", raising=False)
    for near in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        profile.may_listen(near)
    for far in ("0.0.0.0", "192.168.1.5", "::", "8.8.8.8"):
        with pytest.raises(ValueError, match="set FASTVIZ_PASSWORD"):
            profile.may_listen(far)
    with pytest.raises(ValueError, match="no address to listen on"):
        profile.may_listen("everywhere")
    monkeypatch.setenv("FASTVIZ_PASSWORD", "open sesame")
    profile.may_listen("0.0.0.0")


def front_and_needs():
    return (deploy.front_matter((checkpoints.ROOT / "README.md").read_text()),
            deploy.requirements((checkpoints.ROOT / "requirements.txt").read_text()))


def test_the_front_matter_of_readme_agrees_with_the_profile_and_the_requirements():
    front, needs = front_and_needs()
    assert front["suggested_hardware"] == profile.load("cpu-basic").hardware and needs["torch"]
    deploy.check(front, needs)


@pytest.mark.parametrize("change, sentence", [
    ({"sdk": "docker"}, "must say sdk: gradio"), ({"app_file": "main.py"}, "name the app_file"), ({"sdk_version": "3.50.2"}, "asks for gradio 3.50.2"),
    ({"python_version": "3.x"}, "asks for Python 3.x"), ({"python_version": "3.9"}, "asks for Python 3.9: 3.11 at least"), ({"short_description": "x" * 61}, "more than 60 characters"),
    ({"suggested_hardware": None}, "must name its suggested_hardware")])
def test_front_matter_that_the_hub_would_not_take_is_one_sentence(change, sentence):
    front, needs = front_and_needs()
    with pytest.raises(ValueError, match=sentence):
        deploy.check(front | change, needs)


@pytest.mark.parametrize("readme, sentence", [
    ("# fastviz\n", "must begin with the front matter"), ("---\ntitle: [fastviz\n---\n", "front matter cannot be read as YAML, mend it: while"),
    ("---\n- fastviz\n---\n", "front matter must be a list of names and values"), ("---\ntitle: fastviz\n---\n", "must say sdk: gradio"),
    ("---\nsdk: gradio\napp_file: app.py\n---\n", "must name its suggested_hardware")])
def test_a_readme_that_makes_no_space_is_one_sentence(tmp_path, monkeypatch, capsys, readme, sentence):
    for name in ("app.py", "requirements.txt"):
        (tmp_path / name).write_text((checkpoints.ROOT / name).read_text())
    (tmp_path / "README.md").write_text(readme)
    monkeypatch.setattr(deploy.plan, "__defaults__", (tmp_path,))
    monkeypatch.setattr(deploy, "names", lambda root: ["app.py", "requirements.txt"])
    assert main(["deploy", "--space", "x", "--dry-run"]) == 2
    assert re.search(sentence, told := capsys.readouterr().err) and told.count("\n") == 1


def test_files_that_need_large_file_storage_are_refused_by_name(tmp_path, monkeypatch):
    for name in deploy.FILES:
        shutil.copy(checkpoints.ROOT / name, tmp_path)
    (tmp_path / "assets").mkdir()
    for name, size in (("small", deploy.LARGEST - 1), ("large", deploy.LARGEST)):
        with open(tmp_path / "assets" / f"{name}.safetensors", "wb") as file:
            file.truncate(size)  # takes no room
    with pytest.raises(ValueError, match="^assets/large.safetensors: a Space's plain files are below 10 MB. Make them smaller.$"):
        deploy.plan(profile.load("cpu-basic"), "cpu-basic", tmp_path)
    (tmp_path / "assets/large.safetensors").unlink()
    assert deploy.plan(profile.load("cpu-basic"), "cpu-basic", tmp_path).sizes["assets/small.safetensors"] == 9_999_999


def test_requirements_that_are_none_are_one_sentence():
    with pytest.raises(ValueError, match="holds what is no requirement"):
        deploy.requirements("torch>=2\n== nothing\n")
    assert list(deploy.requirements("# ours\ntorch>=2  # any\n\n")) == ["torch"]
    with pytest.raises(ValueError, match="requirements.txt for none"):
        deploy.check(front_and_needs()[0], {})


def test_an_upload_is_one_commit_and_a_refusal_one_sentence(monkeypatch):
    """huggingface_hub's own calls, up to the wire."""
    import huggingface_hub

    plan, sent = deploy.plan(profile.load("cpu-basic"), "cpu-basic"), []

    class Api:
        def create_repo(self, space, **told):
            sent.append((space, told))
            return huggingface_hub.RepoUrl(f"https://huggingface.co/spaces/someone/{space}")

        def add_space_variable(self, *told):
            sent.append(told)

        def create_commit(self, space, operations, **told):
            sent.append((space, {each.path_in_repo: each for each in operations}))

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert "https://huggingface.co/spaces/someone/fast. Its hardware is chosen there: cpu-basic" in deploy.upload("fast", plan)
    (_, made), variable, (space, files) = sent
    assert made["space_sdk"] == "gradio" and variable == ("someone/fast", "FASTVIZ_PROFILE", "cpu-basic") and space == "someone/fast"
    assert files.keys() == plan.files.keys() and files["app.py"].upload_info.size == (checkpoints.ROOT / "app.py").stat().st_size

    def refused(self, space, **told):
        raise OSError("You are not allowed to.")

    monkeypatch.setattr(Api, "create_repo", refused)
    with pytest.raises(BadModel, match="The hub did not take it .You are not allowed to..: run `hf auth login`"):
        deploy.upload("fast", plan)


# The page and the models

def test_another_model_brings_its_own_values_and_switches_off_what_does_nothing_on_it():
    ask = Page(profile.load()).ask
    steps, few, guidance, size, *boxes = ask.own("sdxs")
    assert len(ask.own("sdxs")) == len(OWN) + len(CHOSEN)
    assert (steps.value, guidance.value, size.value) == (1, 1.0, 512) and not guidance.interactive
    on = [method.KEY for method, box in zip(CHOSEN, boxes[-len(CHOSEN):]) if box.interactive]
    assert on == ["tome"] and [choice[1] for choice in ask.own("sdxl")[3].choices] == [512, 768, 1024]
    assert [(few.value, few.maximum) for few in (ask.own(key)[1] for key in ("sdxs", "sd-turbo", "sdxl"))] == [(1, 1), (1, 4), (15, 100)]


def test_sizes_that_the_embedded_model_was_not_trained_on_are_offered_for_timing():
    ask = Page(profile.load()).ask
    told = ["128 x 128, timing only", "256 x 256", "384 x 384, timing only", "512 x 512, timing only"]
    assert [choice[0] for choice in ask.controls["size"].choices] == [choice[0] for choice in ask.own("stickers")[3].choices] == told
    assert ask.own("sd15")[3].choices[0][0] == "256 x 256"


@pytest.mark.parametrize("key", [key for key in models.MODELS if key != "stickers"])
def test_every_box_that_another_model_leaves_open_can_be_pressed_and_run(key):
    """With the values that the page brings when the model is chosen, and when a link to it is opened."""
    ask = Page(profile.load()).ask
    names, whole = list(ask.controls), Request("a cat", model=key, methods="full")
    began = dict(zip(names, ask.values(Request("a cat", methods="full"))))
    chosen = began | {name: each["value"] if isinstance(each, dict) else each.value for name, each in zip(OWN, ask.own(key))} | {"model": key}
    opened = {name: getattr(each, "value", each) for name, each in zip(names, ask.settings(whole))}
    for told in (chosen, opened):
        for method in (method for method in CHOSEN if method.KEY in models.MODELS[key].methods):
            assert ask.request(list((told | {method.KEY: True}).values())).model == key


def test_only_models_on_this_disk_are_offered_and_a_distilled_one_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTVIZ_MODELS", str(tmp_path))
    assert [key for _, key in Page(profile.load()).ask.controls["model"].choices] == ["stickers"]
    (tmp_path / "sdxs-dreamshaper/model").mkdir(parents=True)
    page = Page(profile.load())
    assert [key for _, key in page.ask.controls["model"].choices] == ["stickers", "sdxs-dreamshaper"]
    monkeypatch.setattr("fastviz.ui.page.prompt_cut", lambda model, prompt: "")
    assert "Its full model is DreamShaper 8" in page.notices("sdxs-dreamshaper", "a cat")[0]
    assert page.notices("sdxl", "a cat") == []


# Turns

def order(turns, tickets):
    """Who runs after whom, when each leaves as soon as it had its turn."""
    found, left = [], list(tickets)
    while left:
        visitor, ticket = next(each for each in left if turns.place(*each) == 0)
        assert all(turns.place(*other) > 0 for other in left if other[1] is not ticket)
        found.append(visitor)
        turns.leave(visitor, ticket)
        left.remove((visitor, ticket))
    return found


def test_turns_go_round_the_visitors():
    turns = Turns(3)
    tickets = [(visitor, turns.enter(visitor)) for visitor in ("a", "a", "a", "b", "c", "c")]
    assert [turns.place(*each) for each in tickets] == [0, 3, 5, 1, 2, 4]
    assert order(turns, tickets) == ["a", "b", "c", "a", "c", "a"]
    assert not turns.lines and not turns.ring and turns.running is None


def test_how_long_a_turn_takes_is_learnt_from_the_last_ones(monkeypatch):
    clock = iter((0.0, 4.0, 10.0, 12.0))
    monkeypatch.setattr("fastviz.ui.turns.time.time", lambda: next(clock))
    turns = Turns(1)
    assert turns.each is None and parts.waiting(3)["left"] == ""
    for _ in range(2):
        with turns.held("a") as ticket:
            assert turns.place("a", ticket) == 0
    assert turns.each == 3.0 and parts.waiting(3, turns.each)["left"] == "about 9 s left"


def test_two_who_typed_the_same_name_are_two_visitors():
    def asked(host, name, tab="t"):
        return page.visitor(SimpleNamespace(client=SimpleNamespace(host=host), username=name, session_hash=tab))

    assert asked("10.0.0.1", "anna") != asked("10.0.0.2", "anna") == asked("10.0.0.2", "anna", "another tab")
    assert asked("10.0.0.1", None, "one") != asked("10.0.0.1", None, "two")


def test_a_visitor_has_only_so_many_and_whoever_leaves_makes_room():
    turns = Turns(1)
    ticket = turns.enter("a")
    with pytest.raises(BadRequest, match="a comparison waiting or running already"):
        turns.enter("a")
    turns.enter("b")
    turns.leave("a", ticket)
    turns.enter("a")


def test_one_at_a_time_and_nobody_waits_for_ever():
    """40 threads of 8 visitors; some give up while they wait."""
    turns, running, most, done = Turns(5), [], [], []

    def work(number):
        give_up = random.Random(number).randrange(4) == 0
        with turns.held(number % 8) as ticket:
            while turns.place(number % 8, ticket):
                if give_up:
                    return
            running.append(number)
            most.append(len(running))
            running.remove(number)
        done.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(40)]
    [thread.start() for thread in threads]
    [thread.join(60) for thread in threads]
    assert max(most) == 1 and len(done) >= 20 and not turns.lines and turns.running is None


# The worker's boundary

@pytest.fixture
def tiny(tiny_pipe, monkeypatch):
    monkeypatch.setitem(models._loaded, "stickers", tiny_pipe)
    return tiny_pipe


class Plain(pickle.Pickler):
    """A pickler that takes no tensor, module or generator."""

    def persistent_id(self, found):
        assert not isinstance(found, (torch.Tensor, torch.nn.Module, torch.Generator, torch.Event)), type(found)


def crossed(value):
    """What arrives on the other side."""
    file = io.BytesIO()
    Plain(file).dump(value)
    return pickle.loads(file.getvalue())


def send(pipe, function, arguments):
    torch.set_num_threads(1)
    try:
        made = getattr(worker, function)(*pickle.loads(arguments))
        for each in made if function == "rows" else [made]:
            file = io.BytesIO()
            Plain(file).dump(each)
            pipe.send_bytes(file.getvalue())
    finally:
        pipe.close()


def in_a_worker(function, *arguments):
    """`function` of ui.worker in a forked process; arguments and answers are pickled, as ZeroGPU does it."""
    here, there = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=send, args=(there, function, pickle.dumps(arguments)))
    process.start()
    there.close()
    try:
        while True:
            yield pickle.loads(here.recv_bytes())
    except EOFError:
        process.join(60)
        assert process.exitcode == 0


def test_rows_and_records_cross_a_forked_process_as_plain_data(tiny):
    request = Request("a cat on the beach", seed=4, methods="full,tome,few_step(steps=1)", **QUICK)
    told, *rows = in_a_worker("rows", request)
    assert told["device"] and told["torch"] == torch.__version__
    assert len(rows) == 6 and all(row.run.latents is None and row.run.seconds > 0 and row.error is None for row in rows)
    final = compare.final(rows)
    for ours, theirs in zip(compare.final(compare(request)), final, strict=True):
        assert ours.image.tobytes() == theirs.image.tobytes() and ours.metrics == theirs.metrics and ours.flops == theirs.flops
    (trace, frames), = in_a_worker("look", request, final[1], 1)
    assert "tome.labels" in trace.channels and trace.nbytes <= 2**20 and frames.shape == (2, 128, 128, 4)


def test_a_comparison_and_a_look_inside_run_in_the_worker(tiny, monkeypatch, tmp_path):
    from fastviz.ui.inside import Inside

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setitem(worker.LENT, "rows", lambda *told: in_a_worker("rows", *told))
    monkeypatch.setitem(worker.LENT, "look", lambda *told: next(in_a_worker("look", *told)))
    job = Job(Request("a cat", seed=4, methods="full,tome", **QUICK))
    list(job.changes())
    assert job.state == "finished" and [row.repeats for row in job.rows.values()] == [2, 2] and job.environment["device"]
    path, fault = job.pack()
    assert path and not fault
    look = Inside(job, 64)
    list(look.changes())
    assert look.state == "finished" and [view["error"] for view in look.views] == [None, None]


def test_every_error_of_ours_survives_the_boundary():
    from fastviz.patch import Refused
    from fastviz.run import Failed, Lost, Stopped

    request = Request("a cat")
    for error in (BadRequest("prompt", "Type one."), BadModel("No."), Refused("No."), Failed("No."), Stopped()):
        again = crossed(worker.given_back(error, "A row", request))
        assert type(again) is type(error) and str(again) == str(error) and vars(again) == vars(error)
        with pytest.raises(type(error)):
            worker.received(again)
    other = crossed(worker.given_back(KeyError("secret"), "A row", request))
    assert type(other) is Failed and "A row could not be run (KeyError)" in str(other)
    with pytest.raises(gr.Error, match="Another one is lent"):
        worker.given_back(Lost("Start the program again."), "A row", request)
    assert worker.received([1]) == [1]


def test_the_time_that_is_asked_for_grows_with_the_request(tiny, monkeypatch):
    monkeypatch.setattr(worker, "RATE", 1e9)
    asked = [worker.duration(Request("a cat", size=128, steps=steps, repeats=repeats, methods=methods, guidance=3.0))
             for steps, repeats, methods in ((2, 1, "full"), (30, 1, "full"), (30, 3, "full"), (30, 3, "full,tome"))]
    assert asked == sorted(set(asked)) and worker.SHORTEST <= asked[0] and asked[-1] <= worker.LONGEST
    monkeypatch.setattr(worker, "RATE", 1.0)
    long = Request("a cat", size=128, steps=2, methods="full,few_step(match=full)")
    assert worker.duration(long) == worker.LONGEST
    worker.check(long)  # a faster GPU than is expected would do it
    monkeypatch.setattr(worker, "FASTEST", 10.0)
    with pytest.raises(BadRequest, match="ask for fewer rows, steps or repeats"):
        worker.check(long)
    monkeypatch.setattr(worker, "LENT", {"rows": lambda *told: pytest.fail("it would be ended in the middle")})
    job = Job(long)
    job.work()
    assert job.state == "failed" and "lent for 120 s" in job.sentence


def test_the_real_decorator_changes_nothing_away_from_a_space():
    """In a process of its own, because `import spaces` must come before torch."""
    code = """
import spaces, sys
assert "torch" not in sys.modules
from fastviz.ui import worker
worker.rent()
assert set(worker.LENT) == {"rows", "look"}
from fastviz import compare
from fastviz.request import Request
told, *rows = worker.LENT["rows"](Request("a cat", size=128, steps=1, methods="full,tome", repeats=1))
assert [row.error for row in rows] == [None, None] and rows[1].metrics and told["device"], rows
trace, frames = worker.LENT["look"](Request("a cat", size=128, steps=1, methods="full,tome", repeats=1), rows[1], 8)
assert len(frames) == 1 and trace.channels
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=models.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1500:]


def test_what_is_asked_for_of_a_large_model_leaves_a_visitor_the_day(monkeypatch):
    """An SDXL of 6.76 TFLOP a pass, as if every step of every row did all of the work."""
    monkeypatch.setattr(worker, "counted", lambda request, stack, steps: {"text": 1e11, "steps": (2 * 6.76e12,) * steps, "decoder": 5e12})
    request = Request("a cat", model="sdxl", repeats=1)
    assert len(request.methods) == 4 and 40 < worker.duration(request) < 75
    again = worker.needed(dataclasses.replace(request, repeats=2), worker.RATE) - worker.needed(request, worker.RATE)
    looks = [worker.looking(request, SimpleNamespace(index=0, steps=steps), 64, "path") for steps in (2, 10, 50)]
    assert looks == sorted(looks) and looks[0] == worker.SHORTEST and looks[-1] < worker.duration(request)
    assert worker.needed(request, worker.RATE) - again < worker.START + 4 * worker.ROW + 4  # two steps warm up each row


def test_a_row_that_is_refused_is_told_by_its_card_and_not_before(tiny):
    worker.check(asked := Request("a cat", methods="full,sdxs", **QUICK))
    found = compare.final(row for row in worker.rows(asked) if isinstance(row, compare.Row))
    assert found[0].error is None and "this model has none" in found[1].error


def test_a_look_in_a_worker_can_be_stopped_between_two_rows(tiny, monkeypatch, tmp_path):
    from fastviz.ui.inside import Inside

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    job = Job(Request("a cat", seed=4, methods="full,tome", **QUICK))
    job.work()
    look, asked = Inside(job, 64), []
    monkeypatch.setitem(worker.LENT, "look", lambda *told: (asked.append(told), look.stop.set(), worker.look(*told[:3]))[-1])
    look.work()
    assert look.state == "stopped" and len(asked) == len(look.traces) == 1 and not list(tmp_path.glob("under-way*"))


# Results that are shown again

def test_the_same_request_is_computed_once_and_labelled_when_it_is_shown_again(tiny):
    page = Page(dataclasses.replace(profile.load(), remembered=2))
    requests = [Request("a cat", seed=seed, methods="full,tome", **QUICK) for seed in range(3)]
    for request in requests:
        job = page.job(request)
        list(job.changes())
        page.remember(job)
    assert list(page.known) == requests[1:]  # the oldest makes room
    again = page.job(requests[2])
    assert list(again.changes()) == [] and again.state == "finished"
    assert "measured at" in again.status()["sentence"] and "not timed anew" in again.status()["sentence"]
    assert "for an earlier visitor" in again.board()["environment"]["measured"]
    assert "measured" not in page.known[requests[2]].board()["environment"]
    assert again.board()["rows"] == page.known[requests[2]].board()["rows"]
    other = page.job(requests[0])
    assert other.state == "running" and not other.environment
    nothing = Page(profile.load())
    nothing.remember(again)
    assert not nothing.known


# A Space

def test_a_dry_run_tells_files_front_matter_and_requirements(capsys):
    assert main(["deploy", "--space", "me/fastviz", "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert "Space me/fastviz, profile cpu-basic" in told and "suggested_hardware: cpu-basic" in told and "torch>=" in told
    plan = deploy.plan(profile.load("zerogpu"), "zerogpu")
    assert plan.front["suggested_hardware"] == "zero-a10g" and b"spaces" in plan.files["requirements.txt"]
    assert b"suggested_hardware: zero-a10g" in plan.files["README.md"]
    assert not [path for path in plan.files if path.startswith(("tests", ".", "training", "runs")) or "__pycache__" in path]
    assert {"app.py", "fastviz/ui/web/page.js", "assets/stickers/model/model_index.json"} <= plan.files.keys()


@pytest.mark.parametrize("name, fetched", (("cpu-basic", ["lpips"]), ("zerogpu", ["sd15", "lpips", "sdxs"])))
def test_only_what_a_profile_offers_is_fetched_at_the_start_and_the_log_says_so(name, fetched):
    code = """
import sys, app
from fastviz import profile
app.subprocess.run = lambda command, **told: print(command[-1])
app.bring(profile.load(sys.argv[1]))
"""
    done = subprocess.run([sys.executable, "-c", code, name], cwd=models.ROOT, capture_output=True, text=True, check=True,
                          env={**os.environ, "FASTVIZ_FETCH": "sd15, lpips,sdxs,", "GRADIO_SERVER_PORT": "7999"})
    assert done.stdout.split() == fetched
    for key in ("sd15", "sdxs"):
        assert (f"FASTVIZ_FETCH names {key}, which this profile does not offer" in done.stderr) == (key not in fetched)


@pytest.mark.parametrize("name", NAMES)
def test_the_full_model_of_a_distilled_one_is_offered_beside_it(name):
    offered, table = profile.load(name).models, {model.title: model.key for model in models.MODELS.values()}
    assert {table[models.MODELS[key].reference] for key in offered if models.MODELS[key].reference in table} <= set(offered)


def test_what_cannot_be_deployed_is_one_sentence(capsys):
    for arguments, sentence in (([], "names no hardware of a Space"), (["--profile", "nowhere"], "has no profile")):
        assert main(["deploy", "--space", "x", "--dry-run", *(arguments or ["--profile", "local"])]) == 2
        assert sentence in capsys.readouterr().err


def test_a_space_is_made_of_all_that_the_page_needs(tmp_path):
    """The plan's files alone, in a bare folder: the page's parts can be imported and built there."""
    plan = deploy.plan(profile.load("cpu-basic"), "cpu-basic")
    for path, data in plan.files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(data if isinstance(data, bytes) else data.read_bytes())
    code = ("import fastviz; assert fastviz.__file__.startswith(%r); from fastviz import profile, models; "
            "from fastviz.ui.page import Page; Page(profile.load('cpu-basic')); models.verify(models.MODELS['stickers'])" % str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-800:]


# Folders of the operator's own

@pytest.fixture
def table(monkeypatch):
    """The table of models, which forgets afterwards what a test enters."""
    monkeypatch.setattr(models, "_loaded", {})
    known = dict(models.MODELS)
    yield models.MODELS
    models.MODELS.clear()
    models.MODELS.update(known)


def counted(*parts):
    """Millions of parameters."""
    return sum(parameter.numel() for part in parts for parameter in part.parameters()) / 1e6


@pytest.fixture(scope="module")
def cloned(tmp_path_factory):
    """A folder as it comes from `git clone`: beside what is loaded, words, pictures, pickles and another set of weights."""
    folder, pipe = tmp_path_factory.mktemp("cloned") / "Dreamy", folders.make("sd15")
    pipe.save_pretrained(folder)
    for name in ("README.md", "LICENSE.md", "sample.png", "v1-5.ckpt", "unet/diffusion_pytorch_model.bin", "vae/diffusion_pytorch_model.bin",
                 "text_encoder/pytorch_model.bin"):
        (folder / name).write_bytes(pickle.dumps("whoever reads this runs it"))
    shutil.copy(folder / "unet/diffusion_pytorch_model.safetensors", folder / "unet/diffusion_pytorch_model.non_ema.safetensors")
    return folder


def test_a_folder_as_it_comes_from_the_hub_is_loaded_and_no_pickle_of_it_is_read(cloned, table, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *told, **named: pytest.fail("a pickle was read"))
    key, pipe = checkpoints.add_folder(cloned), folders.make("sd15")
    found = models.load(key)
    assert key == "dreamy" and table[key].parameters == pytest.approx(counted(pipe.unet, pipe.vae, pipe.text_encoder))
    for name, weight in pipe.unet.state_dict().items():
        assert torch.equal(found.unet.state_dict()[name].cpu(), weight.to(found.unet.dtype)), name
    assert reading.prompt_cut(key, "a cat") == "" and "not verified" in models.verify(table[key])


@pytest.mark.parametrize("part", ("unet", "vae", "text_encoder"))
def test_a_folder_with_weights_in_pickles_alone_is_refused_at_once(cloned, table, tmp_path, capsys, part):
    shutil.copytree(cloned, tmp_path / "own")
    for path in (tmp_path / "own" / part).glob("*.safetensors"):
        path.unlink()
    assert main(["compare", "a cat", "--model-folder", str(tmp_path / "own")]) == 2 and "own" not in table
    told = capsys.readouterr().err
    assert f"{tmp_path / 'own' / part} holds no safetensors, and nothing else is loaded here: get" in told and told.count("\n") == 1


def test_half_precision_files_alone_are_loaded_and_a_pointer_in_their_place_is_told(table, tmp_path, capsys):
    pipe = folders.make("sd15").to(torch.float16)
    pipe.save_pretrained(tmp_path / "own", variant="fp16")
    pipe.vae.save_pretrained(tmp_path / "own/vae")  # both kinds
    key = checkpoints.add_folder(tmp_path / "own")
    assert models.load(key).unet.dtype == models.precision(models.device())
    assert table[key].parameters == pytest.approx(counted(pipe.unet, pipe.vae, pipe.text_encoder))
    (tmp_path / "own/unet/diffusion_pytorch_model.fp16.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    capsys.readouterr()
    assert main(["doctor", "--model-folder", str(tmp_path / "own")]) == 2
    assert "`git lfs pull` does it" in (told := capsys.readouterr().err) and told.count("\n") == 1


def test_what_is_wrong_with_an_own_folder_is_told_as_of_an_own_folder(cloned, table, tmp_path):
    shutil.copytree(cloned, tmp_path / "own")
    key = checkpoints.add_folder(tmp_path / "own")
    weights = tmp_path / "own/vae/diffusion_pytorch_model.safetensors"
    whole, said = weights.read_bytes(), []
    (tmp_path / verified.HASHES).write_text("{}")
    assert "tells nothing of own" in models.verify(table[key])
    verified.write_hashes(tmp_path)
    (tmp_path / "own/new.md").write_text("more is no fault")
    assert models.verify(table[key]) == ""
    weights.write_bytes(whole[:-1])
    for step in (lambda: (tmp_path / verified.HASHES).unlink(), weights.unlink, lambda: shutil.rmtree(tmp_path / "own")):
        with pytest.raises(BadModel) as told:
            models.load(key)
        said.append(str(told.value))
        step()
    with pytest.raises(BadModel) as told:
        models.load(key)
    said.append(str(told.value))
    assert [("changed or damaged" in said[0]), "could not be read" in said[1], "could not be read" in said[2], "no folder" in said[3]] == [True] * 4
    assert all("bring" in one and "here again" in one and "complete project" not in one for one in said)


def test_what_is_fitted_to_a_model_can_be_made_for_an_own_folder(cloned, table, tmp_path, capsys):
    """The rows name the command that makes what they lack; what the command makes, the rows find."""
    shutil.copytree(cloned, tmp_path / "own", ignore=lambda *_: ["v1-5.ckpt"])
    (tmp_path / "prompts.txt").write_text("a cat\na dog\na tent\nan owl\n")
    own, quick = ["--model-folder", str(tmp_path / "own")], ["--prompts", "1", "--prompts-file", str(tmp_path / "prompts.txt")]
    rows = ["compare", "a cat", "--steps", "4", "--repeats", "1", "--methods", "olss(steps=2),attention_reuse(schedule=phast)", *own]
    assert main(rows) == 1
    told = capsys.readouterr().out
    commands = ["fit olss", f"--model-folder {tmp_path / 'own'} --steps 2 --guidance 7.5`"], ["search reuse", f"--model-folder {tmp_path / 'own'} --steps 4"]
    assert all(f"python -m fastviz {command} {arguments}" in told for command, arguments in commands)
    for arguments in (["fit", "olss", "--steps", "2", "--search", "olss", "--reference", "4", "--held-out", "2"],
                      ["search", "reuse", "--steps", "4", "--reuse", "2", "--held-out", "2", "--rejects", "1", "--restarts", "0", "--equal", "flops"]):
        table.pop("own")
        assert main([*arguments, *own, *quick]) == 0, capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"own", "own-olss", "own-reuse"}  # another folder beside it has its own
    for arguments in (["search", "one-reuse", "--steps", "2", *quick, "--out", str(tmp_path / "one.json")], ["search", "report"],
                      ["sweep", "a cat", "--rows", "tome", "--steps", "2"]):
        table.pop("own")
        assert main([*arguments, *own]) == 0, capsys.readouterr().err
    table.pop("own")
    assert main(rows) == 0, capsys.readouterr().err
    table.pop("own")
    assert main(["fastest", "a cat", "--lpips", "0.1", *own]) == 2 and "4 prompts" in capsys.readouterr().err and "own" in table
    table.pop("own")
    assert main(["sweep", "a cat", "--rows", "tome", "--ray", *own]) == 2 and "leave --ray out" in capsys.readouterr().err


def test_an_operators_folder_is_one_more_model(table, tmp_path, capsys):
    pipe = folders.make("sdxl")
    pipe.save_pretrained(tmp_path / "My Model")
    found = main(["compare", "a cat", "--model-folder", str(tmp_path / "My Model"), "--steps", "2", "--repeats", "1",
                  "--methods", "full,tome,atedm"])
    assert found == 0, capsys.readouterr().err
    model = models.MODELS["my-model"]
    assert (model.size, model.sizes) == (128, (64, 128)) and "atedm" in model.methods
    assert model.parameters == pytest.approx(counted(pipe.unet, pipe.vae, pipe.text_encoder, pipe.text_encoder_2))
    assert main(["compare", "a cat", "--model-folder", str(tmp_path)]) == 2
    assert "give the one that holds model_index.json" in capsys.readouterr().err
