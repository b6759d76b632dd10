"""The page for a class: a password at the door, turns, and nothing computed twice; through the real server."""

import errno
import json
import re
import threading

import httpx
import pytest
import torch
from serving import PATIENCE, serve

from fastviz import compare, models, profile
from fastviz.methods import tome
from fastviz.request import Request
from fastviz.ui.page import Page

SAME = {"prompt": "a cat", "seed": 3, "steps": 2, "size": 128, "methods": "full,tome", "repeats": 1}


@pytest.fixture(scope="module")
def classroom(tmp_path_factory):
    with serve(tmp_path_factory.mktemp("tmp"), FASTVIZ_PROFILE="classroom", FASTVIZ_PASSWORD="open sesame") as running:
        yield running


def enter(server, name, password="open sesame"):
    visitor = httpx.Client(base_url=server.address.replace("0.0.0.0", "127.0.0.1"), timeout=PATIENCE)
    return visitor, visitor.post("/login", data={"username": name, "password": password})


def test_nobody_comes_in_without_the_password(classroom):
    stranger = httpx.Client(base_url=classroom.address, timeout=PATIENCE)
    assert stranger.get("/config").status_code == 401
    assert stranger.post("/gradio_api/queue/join", json={"fn_index": 0, "data": [], "session_hash": "x"}).status_code == 401
    assert enter(classroom, "mary", "guess")[1].status_code == 400
    assert enter(classroom, "", "")[1].status_code >= 400
    visitor, answer = enter(classroom, "mary")
    assert answer.status_code == 200 and visitor.get("/config").status_code == 200


def ask(visitor, session, told):
    """Every answer of the API to one request."""
    numbers = {each["api_name"]: each["id"] for each in visitor.get("/config").json()["dependencies"]}
    data = [told.get(name) for name in ("prompt", "seed", "steps", "guidance", "size")] + ["stickers", told["methods"], told["repeats"]]
    joined = visitor.post("/gradio_api/queue/join", json={"fn_index": numbers["compare"], "data": data, "session_hash": session})
    assert joined.status_code == 200, joined.text
    found = []
    with visitor.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as stream:
        for line in stream.iter_lines():
            if line.startswith("data:"):
                message = json.loads(line[5:])
                if message["msg"] in ("process_generating", "process_completed") and message["output"].get("data"):
                    found.append(message["output"]["data"][0])
                if message["msg"] in ("process_completed", "close_stream"):
                    return found


def test_the_second_one_who_asks_the_same_sees_the_first_ones_result_and_is_told_so(classroom):
    visitor, _ = enter(classroom, "mary")
    first = str(ask(visitor, "one", SAME))
    assert "finished" in first and "not timed anew" not in first
    again = ask(enter(classroom, "john")[0], "two", SAME)
    text = str(again)
    assert "not timed anew" in text and "measured at" in text


def no_memory(patch):
    patch.setattr(models, "free_memory", lambda where: 0)


def failing(error):
    """What lets every row but the full model's fail with `error`."""
    def put(patch):
        def attached(pipe, knobs, context):
            raise error

        patch.setattr(tome, "attach", attached)
        patch.setattr("fastviz.run.alive", lambda: True)
    return put


@pytest.mark.parametrize("rows, put, shared", [
    ("olss(steps=7)", None, True), ("attention_reuse(schedule=phast)", None, True), ("sdxs", None, True), ("attention_reuse", no_memory, False),
    ("tome", failing(MemoryError()), False), ("tome", failing(OSError(errno.ENOSPC, "full")), False), ("tome", failing(KeyError("secret")), False),
    ("tome", failing(torch.AcceleratorError("misaligned address")), False), ("few_step(match=tome),tome", failing(MemoryError()), False)])
def test_what_is_refused_to_everybody_is_shared_and_what_the_machine_could_not_do_is_not(tiny_pipe, monkeypatch, rows, put, shared):
    monkeypatch.setitem(models._loaded, "stickers", tiny_pipe)
    monkeypatch.setattr(compare, "warmed", {})
    page, asked = Page(profile.load("classroom")), Request("a cat", steps=2, size=128, repeats=1, methods=f"full,{rows}")
    job = page.job(asked)
    with monkeypatch.context() as patch:
        if put:
            put(patch)
        list(job.changes())
    page.remember(job)
    assert job.state == "finished", job.sentence
    assert any(row.error for row in job.rows.values())
    again = page.job(asked)
    assert (again.state == "finished") == (asked in page.known) == shared
    assert not shared or "not anew" in again.board()["environment"]["measured"]


PUPILS, TASKS = 30, 5


def test_a_class_of_thirty_is_served_whole_in_turns_and_computes_nothing_twice(classroom):
    """Every pupil presses Run at once, each of five tasks for six of them: nobody is refused, all see their place, and of
    these six one is timed and five are told that they see his result."""
    door, _ = enter(classroom, "teacher")
    config = door.get("/config").json()
    places = {each["id"]: each["props"] for each in config["components"]}
    run = next(each for each in config["dependencies"] if each["api_name"] == "run")
    names = [places[id].get("elem_id") for id in run["inputs"]]
    small = {"ask-prompt": "a cat", "ask-steps": 2, "ask-size": 128, "ask-repeats": 1}
    values = [small.get(name, places[id].get("value")) for id, name in zip(run["inputs"], names)]
    status = [places[id].get("elem_id") for id in run["outputs"]].index("status")
    begin, seen, estimates = threading.Barrier(PUPILS), {}, []

    def pupil(number):
        visitor, _ = enter(classroom, f"pupil {number}")
        asked = [1000 + number % TASKS if name == "ask-seed" else value for name, value in zip(names, values)]
        begin.wait(PATIENCE)
        session = f"pupil{number}"
        joined = visitor.post("/gradio_api/queue/join", json={"fn_index": run["id"], "data": asked, "session_hash": session})
        seen[number] = told = [joined.status_code]
        with visitor.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as stream:
            for line in stream.iter_lines():
                estimates.extend(re.findall(r"(?:about|less than)[^\"]* left", line))  # what has changed may travel alone
                message = json.loads(line[5:]) if line.startswith("data:") else {"msg": ""}
                output = message.get("output", {}).get("data")
                if output and isinstance(output[status], dict) and "sentence" in output[status]:
                    told.append(output[status])
                if message["msg"] in ("process_completed", "close_stream"):
                    return

    threads = [threading.Thread(target=pupil, args=(number,)) for number in range(PUPILS)]
    [thread.start() for thread in threads]
    [thread.join(PATIENCE) for thread in threads]
    assert sorted(seen) == list(range(PUPILS)) and all(told[0] == 200 for told in seen.values())
    last = [told[-1] for told in seen.values()]
    assert {each["state"] for each in last} == {"finished"}, [each for each in last if each["state"] != "finished"]
    waited = [each for told in seen.values() for each in told[1:] if each["state"] == "waiting"]
    ahead = {int(each["sentence"].split()[1]) for each in waited}
    assert 10 <= max(ahead) < PUPILS and estimates
    again = [each for each in last if "not timed anew" in each["sentence"]]
    assert len(again) == PUPILS - TASKS
