"""The boundary, over HTTP: whatever is sent is completed, or refused with a sentence; nothing is lost and nothing leaks."""

import hashlib
import json
import os
import signal
import threading
import time

import httpx
import pytest
from serving import PATIENCE, ROOT, serve, wait

from fastviz import profile
from fastviz.request import Request
from fastviz.ui.ask import CHOSEN
from fastviz.ui.page import Page

GOOD = ["a cat", 1, 1, None, 128, "stickers", "full", 1]
FIELDS = ("prompt", "seed", "steps", "guidance", "size", "model", "methods", "repeats")

PROMPTS = ("", "   ", "x" * 301, "x" * 100_000, "a\u0000b", "a\u202eb", "a\nb", {"a": 1}, ["a"], None, True, 7, {"path": "/etc/passwd"})
NUMBERS = (-1, 1.5, 2**32, 10**400, "1", "１", True, None, [], {})
HARMLESS = ("<script>alert(1)</script>", "{{7*7}}", "../../etc/passwd", "http://127.0.0.1/x", "%s%n{0}", "a" + "\u0301" * 50, "👩‍👩‍👧‍👦 cat")


def bad():
    for field in FIELDS:
        values = {"prompt": PROMPTS, "model": ("", "../etc", "a/b", None, 3, ["stickers"], {}),
                  "methods": ("nonsense", "tome(ratio=9)", "tome,tome", "full+tome", "tome(", "few_step(match=nothing)", 3, None, {}, "tome," * 900)}
        for value in values.get(field, NUMBERS):
            if not (field in ("guidance", "size") and value is None) and not (field == "guidance" and value == 1.5):
                yield field, json.dumps(value)
    for field in ("seed", "steps", "guidance", "size", "repeats"):
        for text in ("NaN", "Infinity", "-Infinity", "1e400"):
            yield field, text
    yield "prompt", '"\\ud800"'


def data(field, text):
    """The JSON of a call whose `field` is `text`."""
    return "[" + ", ".join(text if name == field else json.dumps(value) for name, value in zip(FIELDS, GOOD)) + "]"


def test_every_bad_input_is_refused_with_a_sentence(server):
    """Over the wire: the handler's own refusal, which names the field, or the server's before it."""
    tried = 0
    for field, text in bad():
        status, told, last = server.call("compare", None, raw=data(field, text))
        if status == 200:
            assert told is not None, (field, text[:60], last)
            assert told["state"] == "refused" and told["field"] == field and told["sentence"].endswith("."), (field, text[:60], told)
        else:
            assert 400 <= status < 500, (field, text[:60], status)
        tried += 1
    assert tried > 80


@pytest.mark.parametrize("prompt", HARMLESS)
def test_odd_but_good_prompts_complete(server, prompt):
    status, _, last = server.call("compare", [prompt, *GOOD[1:]])
    assert status == 200 and last["success"]


def test_the_page_s_own_handler_refuses_too(server):
    page = Page(profile.load())
    methods = [method.KEY for method in CHOSEN]
    names, good = list(page.ask.controls), page.ask.values(Request("a cat", methods="full", steps=1, size=128, repeats=1))
    for name in names:
        for value in ({"a": [1]}, [["x"]], "\u0000"):
            if isinstance(value, str) and page.ask.controls[name].get_block_name() == "checkbox":
                continue
            owner = name.partition(".")[0]  # the settings of a method count when it is chosen
            told = dict(zip(names, good)) | ({owner: True} if owner in methods else {}) | {name: value}
            status, first, last = server.call("run", list(told.values()))
            if name in methods or name == "curve":  # what is not true is off
                assert status == 200 and last["success"], name
            else:
                assert status == 200 and first["state"] == "refused" and first["sentence"].endswith("."), (name, value, first)


def test_the_wrong_number_of_values_is_no_crash(server):
    for count in (0, 3, 40):
        status, told, last = server.call("compare", ["a cat"] * count)
        assert status != 200 or told is None or told["state"] == "refused", (count, told, last)
    assert server.call("compare", GOOD)[2]["success"]


def test_nobody_gets_around_the_queue(server):
    for route in ("run/compare", "api/compare", "run/run", "run/predict"):
        answer = httpx.post(f"{server.address}/gradio_api/{route}", json={"data": GOOD, "fn_index": server.number("compare")}, timeout=PATIENCE)
        assert answer.status_code >= 400, (route, answer.text[:200])


def test_files_outside_are_not_served(server):
    secret = b"Serves the page: python app.py"
    assert secret in (ROOT / "app.py").read_bytes()
    paths = ("app.py", "fastviz/request.py", "/etc/passwd", "../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/etc/passwd",
             str(ROOT / "app.py"), str(ROOT / "assets/stickers/judge/config.json"), str(server.log))
    for path in paths:
        for route in ("/gradio_api/file=", "/file=", "/gradio_api/file/", "/static/", "/assets/", "/gradio_api/proxy="):
            answer = httpx.get(f"{server.address}{route}{path}", timeout=PATIENCE)
            assert answer.status_code >= 400, (route, path, answer.status_code)
            assert b"root:" not in answer.content and secret not in answer.content


def test_no_proxy_to_other_hosts(server):
    for url in ("http://127.0.0.1:22/", "https://example.org/", "file:///etc/passwd"):
        assert httpx.get(f"{server.address}/gradio_api/proxy={url}", timeout=PATIENCE).status_code >= 400


def test_an_upload_beyond_two_megabytes_is_refused(server):
    answer = httpx.post(f"{server.address}/gradio_api/upload", files={"files": ("a.png", bytes(3 * 2**20))}, timeout=PATIENCE)
    assert answer.status_code == 413


def test_another_site_s_page_may_not_call(server):
    frame = {"fn_index": server.number("compare"), "session_hash": "evil", "data": GOOD}
    answer = httpx.post(f"{server.address}/gradio_api/queue/join", json=frame, headers={"Origin": "https://evil.example"}, timeout=PATIENCE)
    assert answer.headers.get("access-control-allow-origin") in (None, "http://127.0.0.1") and "evil.example" not in str(answer.headers)


def test_the_monitoring_page_is_off(server):
    assert httpx.get(f"{server.address}/gradio_api/monitoring/summary", timeout=PATIENCE).status_code >= 400


def test_a_crowd_is_served_or_refused_at_once(server):
    """30 visitors at once, 16 places: each gets the right picture or a refusal within a second or so; none is lost."""
    reference = picture(server.call("compare", GOOD))
    results, lock = [], threading.Lock()

    def visit():
        begun = time.monotonic()
        answer, session = server.join("compare", GOOD)
        told = ("refused", time.monotonic() - begun)
        if answer.status_code == 200:
            told = ("completed", picture((200, None, list(server.messages(session))[-1])))
        with lock:
            results.append(told)

    visitors = [threading.Thread(target=visit) for _ in range(30)]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join(PATIENCE)
    completed = [value for kind, value in results if kind == "completed"]
    refused = [value for kind, value in results if kind == "refused"]
    assert len(completed) + len(refused) == 30 and len(completed) >= 16 and refused
    assert set(completed) == {reference}
    assert max(refused) < 20  # seconds, config included, on a machine that is busy computing
    assert server.call("compare", GOOD)[2]["success"]


def picture(call):
    """A digest of the first row's picture in the last message of a call."""
    output = call[2]["output"]["data"][0]
    assert output["state"] == "finished", output["sentence"]
    return hashlib.sha256(output["rows"][0]["picture"].encode()).hexdigest()


def test_a_visitor_in_the_queue_hears_its_place(server):
    _, first = server.join("compare", ["a cat", 1, 100, None, 256, "stickers", "full", 20])
    heard = server.messages(first)
    while next(heard)["msg"] != "process_generating":
        pass
    _, second = server.join("compare", GOOD)
    told = server.messages(second)
    place = next(message for message in told if message["msg"] == "estimation")
    assert place["rank"] >= 0 and place["queue_size"] >= 1
    heard.close()  # the first visitor vanishes: its work ends, and the second one's begins
    assert list(told)[-1]["success"]


FAULTS = """
import runpy, torch
from fastviz import run
from fastviz.methods import tome

def attach(pipe, knobs, context):
    raise RuntimeError("a fault that nobody foresaw")

def sample(pipe, request, *rest):
    if request.seed == 13:
        raise torch.AcceleratorError("CUDA error: unspecified launch failure", 719)
    return whole(pipe, request, *rest)

tome.attach, whole, run.sample = attach, run.sample, sample
runpy.run_path("app.py", run_name="__main__")
"""


def test_a_fault_stays_in_its_row_and_a_lost_device_ends_the_server_with_70(tmp_path):
    with serve(tmp_path, ("-c", FAULTS)) as server:
        def rows(seed):
            return server.call("compare", ["a cat", seed, 2, None, 128, "stickers", "full,tome,few_step(steps=1)", 1])[2]["output"]["data"][0]

        told = rows(7)
        assert told["state"] == "finished" and told["sentence"] == "Done, but 1 of 3 rows failed: their cards say why."
        assert [bool(row["picture"]) for row in told["rows"]] == [True, False, True]
        assert "Token merging could not be run (RuntimeError)" in json.dumps(told["rows"][1])
        assert "a fault that nobody foresaw" in server.log.read_text()
        told = rows(13)
        assert told["state"] == "failed" and told["sentence"].startswith("The device stopped answering. The server ends now")
        told = rows(7)
        assert told["state"] == "refused" and told["sentence"].startswith("The device stopped answering.")
        assert server.process.wait(60) == 70


def test_a_killed_server_starts_again_with_an_empty_folder(tmp_path):
    with serve(tmp_path) as first:
        _, session = first.join("compare", ["a cat", 1, 100, None, 128, "stickers", "full", 20])
        next(first.messages(session))
        port = first.address.rpartition(":")[2]
        folder = tmp_path / f"fastviz-{os.getuid()}-{port}"
        (folder / "left.zip").write_bytes(b"left behind")
        first.process.send_signal(signal.SIGKILL)
        first.process.wait(PATIENCE)
    with serve(tmp_path, GRADIO_SERVER_PORT=port) as second:
        wait(lambda: not (folder / "left.zip").exists())
        assert second.call("compare", GOOD)[2]["success"]
        second.process.send_signal(signal.SIGTERM)
        second.process.wait(PATIENCE)
