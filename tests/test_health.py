"""What operators see: the state, the numbers, the log, and the door that other sites' pages find closed."""

import json
import logging
import sys
import traceback
import types

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from fastviz import log, models, profile
from fastviz.request import Request
from fastviz.ui import health
from fastviz.ui.gate import MOST, Gate, host
from fastviz.ui.job import Job


@pytest.fixture(autouse=True)
def nothing_amiss(monkeypatch):
    monkeypatch.setattr(health, "faults", {})


@pytest.mark.parametrize("faults, ready, waiting, told", (
    ({}, True, 0, ("ready", "", True)),
    ({}, False, 0, ("starting", "The model is being loaded.", False)),
    ({}, True, 3, ("busy", "", True)),
    ({}, True, 4, ("busy", "The queue is full.", False)),
    ({"LPIPS": "no backbone."}, True, 0, ("degraded", "no backbone.", True)),
    ({"LPIPS": "no backbone."}, True, 4, ("degraded", "The queue is full.", False)),
    ({"LPIPS": "no backbone.", "model": "damaged."}, True, 0, ("degraded", "damaged.", False)),
    ({"model": "damaged.", "device": "gone."}, False, 0, ("degraded", "gone.", False)),
))
def test_the_state(faults, ready, waiting, told):
    for part, sentence in faults.items():
        health.note(part, sentence)
    assert health.state(ready, waiting, 4) == told
    for part in faults:
        health.note(part, "")
    assert health.state(True, 0, 4) == ("ready", "", True)


@pytest.mark.parametrize("waiting, status", ((3, 200), (4, 503)))
def test_a_load_balancer_hears_whether_more_is_taken(waiting, status):
    told = TestClient(Starlette(routes=health.routes([0] * waiting, 4, types.SimpleNamespace(is_set=lambda: True), False))).get("/health")
    assert told.status_code == status and told.json()["waiting"] == waiting and told.json()["places"] == 4


def test_metrics_are_for_who_wants_them():
    ready = types.SimpleNamespace(is_set=lambda: True)
    assert [route.path for route in health.routes([], 4, ready, True)] == ["/health", "/metrics"]
    assert [route.path for route in health.routes([], 4, ready, False)] == ["/health"]
    assert profile.load("local").metrics and not profile.load("cpu-basic").metrics


def test_what_was_done_is_counted(tiny_pipe, monkeypatch):
    monkeypatch.setitem(models._loaded, "stickers", tiny_pipe)

    def value(name, **labels):
        return health.REGISTRY.get_sample_value(name, labels) or 0.0

    names = [("fastviz_rows_total", {"outcome": "timed"}), ("fastviz_runs_total", {"work": "comparison", "outcome": "finished"})]
    names += [("fastviz_stage_seconds_total", {"stage": stage}) for stage in ("text", "denoising", "decoder")]
    before = [value(name, **labels) for name, labels in names]
    job, runs = Job(Request("a cat", size=128, steps=2, repeats=2, methods="full,tome")), []
    took = health.took
    monkeypatch.setattr(health, "took", lambda *told: (runs.append(told), took(*told)))
    job.work()
    rows, ended, *stages = (value(name, **labels) - start for (name, labels), start in zip(names, before))
    assert (rows, ended, len(runs)) == (4, 1, 4) and not health.working
    assert stages == pytest.approx([sum(stage) for stage in zip(*runs)]) and all(seconds > 0 for seconds in stages)


@pytest.mark.parametrize("wanted", (False, True))
def test_the_log_tells_a_prompt_only_where_the_operator_wants_it(tiny_pipe, monkeypatch, caplog, wanted):
    monkeypatch.setitem(models._loaded, "stickers", tiny_pipe)
    caplog.set_level(logging.INFO)
    Job(Request("a zebra in secret", size=128, steps=1, repeats=1, methods="full"), wanted).work()
    lines = [log.Lines().format(record) for record in caplog.records]
    assert any("zebra" in line for line in lines) == wanted
    told = next(told for told in map(json.loads, lines) if told.get("event") == "work")
    assert (told["outcome"], told["steps"], told["methods"], told["failed_rows"]) == ("finished", 1, "full", [])
    assert not any(profile.load(name).log_prompts for name in ("local", "cpu-basic", "classroom", "zerogpu"))


def test_a_record_is_one_line_whatever_is_in_it():
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        record = logging.LogRecord("a", logging.ERROR, __file__, 1, "with %s\n", ("more\n",), (type(error), error, error.__traceback__))
    record.odd = object()
    line = log.Lines().format(record)
    told = json.loads(line)
    assert "\n" not in line and told["message"] == "with more\n\n" and "ValueError: two" in told["traceback"] and told["level"] == "ERROR"
    assert told["time"].endswith("Z") and told["odd"].startswith("<object")


def test_an_error_that_a_library_prints_is_a_line_without_its_words(monkeypatch, capsys):
    """Gradio's words about a call with too few values repeat those that came."""
    monkeypatch.setattr(traceback, "print_exc", log.tell_kind)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(log.Lines())
    monkeypatch.setattr(logging.getLogger("fastviz.log"), "handlers", [handler])
    typed = "a zebra"
    try:
        raise ValueError(typed)
    except ValueError:
        traceback.print_exc()
    told = json.loads(capsys.readouterr().err)
    assert told["message"] == "ValueError" and "test_health.py" in told["frames"] and typed not in str(told)


@pytest.fixture
def door():
    """A server behind the gate, called as `local` allows."""
    async def read(request):
        return PlainTextResponse(str(len(await request.body())))

    app = Starlette(routes=[Route("/", lambda request: PlainTextResponse("in"), methods=["GET", "POST"]), Route("/read", read, methods=["POST"]),
                            Route("/queue/join", lambda request: PlainTextResponse("full", 503), methods=["POST"])],
                    middleware=[Middleware(Gate, profile.load("local").hosts)])
    return TestClient(app, base_url="http://127.0.0.1:7860")


@pytest.mark.parametrize("headers, status", (
    ({}, 200),
    ({"host": "localhost:7860"}, 200),
    ({"host": "LOCALHOST"}, 200),
    ({"host": "evil.example"}, 403),  # a name that was pointed at this machine
    ({"host": "evil.example:7860"}, 403),
    ({"host": "127.0.0.1.evil.example"}, 403),
    ({"host": "[::1"}, 403),
    ({"host": ""}, 403),
    ({"origin": "http://127.0.0.1:7860"}, 200),
    ({"origin": "http://localhost:8000"}, 200),
    ({"origin": "https://evil.example"}, 403),
    ({"origin": "null"}, 403),
    ({"origin": "http://127.0.0.1@evil.example"}, 403),
    ({"origin": "http://localhost.evil.example"}, 403),
))
def test_only_its_own_page_may_call(door, headers, status):
    for call in (door.get, door.post):
        assert call("/", headers=headers).status_code == status


def test_a_public_server_lets_every_name_in():
    app = Starlette(routes=[Route("/", lambda request: PlainTextResponse("in"))], middleware=[Middleware(Gate, profile.load("cpu-basic").hosts)])
    assert TestClient(app).get("/", headers={"host": "any.example", "origin": "https://other.example"}).status_code == 200


@pytest.mark.parametrize("size, status", ((MOST, 200), (MOST + 1, 413)))
def test_nobody_may_send_much(door, size, status):
    """Whether the size is told beforehand, or what is sent just goes on."""
    block = bytes(2**18)
    parts = [block] * (size // len(block)) + [bytes(size % len(block))]
    for content in (bytes(size), iter(parts)):
        answer = door.post("/read", content=content)
        assert answer.status_code == status and (status != 200 or answer.text == str(size))


def test_who_finds_the_queue_full_is_counted(door):
    before = health.REGISTRY.get_sample_value("fastviz_refusals_total", {"field": "queue"}) or 0.0
    door.post("/queue/join")
    door.post("/")
    assert health.REGISTRY.get_sample_value("fastviz_refusals_total", {"field": "queue"}) == before + 1


def test_a_host_is_read_from_its_header():
    assert [host(text) for text in ("localhost:1", "[::1]:80", "a.b", "[::1", "")] == ["localhost", "::1", "a.b", None, None]
