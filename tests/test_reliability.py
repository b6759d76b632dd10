"""The boundary, over HTTP: whatever is sent is completed, or refused with a sentence; nothing is lost and nothing leaks."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledger import LEDGER
from serving import HTTP, ROOT

from fastviz import profile
from fastviz.request import Request
from fastviz.ui.ask import CHOSEN
from fastviz.ui.page import Page

GOOD = ["a cat", 1, 1, None, 128, "stickers", "full", 1]
FIELDS = ("prompt", "seed", "steps", "guidance", "size", "model", "methods", "repeats")

PROMPTS = ("", "   ", "x" * 301, "x" * 100_000, "x" * 1_000_000, "a\u0000b", "a\u202eb", "a\nb", {"a": 1}, ["a"], None, True, 7, {"path": "/etc/passwd"})
NUMBERS = (-1, 1.5, 2**32, 10**400, "1", "１", True, None, [], {})
HARMLESS = ("<script>alert(1)</script>", "{{7*7}}", "../../etc/passwd", "http://127.0.0.1/x", "%s%n{0}", "a" + "\u0301" * 50, "👩‍👩‍👧‍👦 cat")


def bad():
    for field in FIELDS:
        values = {"prompt": PROMPTS, "model": ("", "../etc", "a/b", None, 3, ["stickers"], {}),
                  "methods": ("nonsense", "tome(ratio=9)", "tome,tome", "full+tome", "tome(", "few_step(match=nothing)", 3, None, {}, [], "tome," * 900)}
        for value in values.get(field, NUMBERS):
            if not (field in ("steps", "guidance", "size", "methods") and value is None) and not (field == "guidance" and value == 1.5):
                yield field, json.dumps(value)
    for field in ("seed", "steps", "guidance", "size", "repeats"):
        for text in ("NaN", "Infinity", "-Infinity", "1e400"):
            yield field, text
    yield "prompt", '"\\ud800"'


def data(field, text):
    """The JSON of a call whose `field` is `text`."""
    return "[" + ", ".join(text if name == field else json.dumps(value) for name, value in zip(FIELDS, GOOD)) + "]"


def tried(server, field, text):
    """Sends a good call whose `field` is `text` -> what the handler said first, or None where the server did not let it in."""
    status, told, last = server.call("compare", None, raw=data(field, text))
    LEDGER.inputs_tried += 1
    assert status == 200 and told is not None or 400 <= status < 500, (field, text[:60], status, last)
    return told


def test_every_bad_input_is_refused_with_a_sentence(server):
    """Over the wire: the handler's own refusal, which names the field, or the server's before it."""
    count = LEDGER.inputs_tried
    for field, text in bad():
        told = tried(server, field, text)
        assert told is None or told["state"] == "refused" and told["field"] == field and told["sentence"].endswith("."), (field, text[:60], told)
    assert LEDGER.inputs_tried - count > 80


JSON = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=400),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3), max_leaves=6)


def any_value_in_any_field(server, field, value):
    told = tried(server, field, json.dumps(value))
    if told is not None and told["state"] == "refused":
        assert told["sentence"].endswith((".", "?")) and len(told["sentence"]) < 600, told
    elif told is not None:
        assert field == "prompt" or isinstance(value, (int, float, str)) or value is None, (field, value, told)


LIMITS = dict(deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True)
FIELD = st.sampled_from([field for field in FIELDS if field not in ("steps", "repeats")])  # those, when good, take long


@settings(max_examples=25, **LIMITS)
@given(field=FIELD, value=JSON)
def test_no_value_in_any_field_does_anything_but_run_or_be_refused(tiny_server, field, value):
    any_value_in_any_field(tiny_server, field, value)


@pytest.mark.torture
@settings(max_examples=400, **LIMITS)
@given(field=FIELD, value=JSON)
def test_four_hundred_values_do_neither(tiny_server, field, value):
    any_value_in_any_field(tiny_server, field, value)
    assert tiny_server.process.poll() is None


@pytest.mark.parametrize("prompt", HARMLESS)
def test_odd_but_good_prompts_complete(server, prompt):
    assert tried(server, "prompt", json.dumps(prompt))["state"] == "running"


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
            LEDGER.inputs_tried += 1
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
        answer = HTTP.post(f"{server.address}/gradio_api/{route}", json={"data": GOOD, "fn_index": server.number("compare")})
        assert answer.status_code >= 400, (route, answer.text[:200])


def test_files_outside_are_not_served(server):
    secret = b"Serves the page: python app.py"
    assert secret in (ROOT / "app.py").read_bytes()
    paths = ("app.py", "fastviz/request.py", "/etc/passwd", "../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/etc/passwd",
             str(ROOT / "app.py"), str(ROOT / "assets/stickers/judge/config.json"), str(server.log))
    for path in paths:
        for route in ("/gradio_api/file=", "/file=", "/gradio_api/file/", "/static/", "/assets/", "/gradio_api/proxy="):
            answer = HTTP.get(f"{server.address}{route}{path}")
            assert answer.status_code >= 400, (route, path, answer.status_code)
            assert b"root:" not in answer.content and secret not in answer.content


def test_no_proxy_to_other_hosts(server):
    for url in ("http://127.0.0.1:22/", "https://example.org/", "file:///etc/passwd"):
        assert HTTP.get(f"{server.address}/gradio_api/proxy={url}").status_code >= 400


def test_an_upload_beyond_two_megabytes_is_refused(server):
    answer = HTTP.post(f"{server.address}/gradio_api/upload", files={"files": ("a.png", bytes(3 * 2**20))})
    assert answer.status_code == 413


@pytest.mark.parametrize("told", ({"Origin": "https://evil.example"}, {"Origin": "null"}, {"Host": "evil.example"}))
def test_another_site_s_page_may_not_call(server, told):
    """Nor one whose name was pointed at this machine. Nothing runs: it is turned away at the door."""
    frame = {"fn_index": server.number("compare"), "session_hash": "evil", "data": GOOD}
    for kind in ("application/json", "text/plain"):
        answer = HTTP.post(f"{server.address}/gradio_api/queue/join", content=json.dumps(frame), headers={"content-type": kind, **told})
        assert answer.status_code == 403 and "evil.example" not in str(answer.headers)
    assert server.metric("fastviz_queue") == 0


def test_the_log_is_json_without_prompts(server):
    """Every line but the one that tells a person the address, and what torch's profiler prints past Python on its first use."""
    assert server.call("compare", ["an xylophone nobody may read of " + "and again " * 12, *GOOD[1:]])[2]["success"]  # longer than the encoder reads
    others = ("fastviz is ready: http://", "ERROR: External init callback must run in same thread")
    lines = [line for line in server.log.read_text().splitlines() if not line.startswith(others)]
    assert [json.loads(line)["outcome"] for line in lines if '"event": "work"' in line][-1] == "finished"
    assert all(json.loads(line)["level"] for line in lines) and "xylophone" not in server.log.read_text()


def test_metrics_count_what_was_done(server):
    names = ('fastviz_runs_total{outcome="finished",work="comparison"}', 'fastviz_rows_total{outcome="timed"}', 'fastviz_refusals_total{field="seed"}')
    before = [server.metric(name) for name in names]
    server.call("compare", ["a cat", 1, 1, None, 128, "stickers", "full,tome", 2])
    server.call("compare", ["a cat", -1, *GOOD[2:]])
    assert [server.metric(name) - start for name, start in zip(names, before)] == [1, 4, 1]


def test_the_monitoring_page_is_off(server):
    assert HTTP.get(f"{server.address}/gradio_api/monitoring/summary").status_code >= 400


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
