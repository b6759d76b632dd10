"""The page's tabs where many share it, where work runs elsewhere, and where the disk refuses: without a browser."""

import dataclasses
import itertools
import json
import logging
import threading
import time
from contextlib import suppress
from types import SimpleNamespace

import gradio as gr
import pytest

from fastviz import log, models, profile, store
from fastviz.explore import fastest
from fastviz.explore.history import COMPARISON, History
from fastviz.explore.plan import read_plan
from fastviz.methods import attention_reuse, few_step, tome
from fastviz.request import BadRequest, Request
from fastviz.ui import health, parts, worker
from fastviz.ui.inside import Inside
from fastviz.ui.job import Job, Opened
from fastviz.ui.page import Page
from fastviz.ui.shelf import UNREAD, Shelf
from fastviz.ui.sweep import Controls, Finding, Sweeping
from fastviz.ui.turns import Turns
from fastviz.ui.visits import REMEMBERED, Visits
from fastviz.ui.why import Why

LOCAL = profile.load()
MARY, JOHN = "0" * 32, "1" * 32
FILES = {"run.json": b"{}"}
ASKED = Request("a cat", seed=4, steps=2, size=128, methods="full", repeats=1)


@pytest.fixture(autouse=True)
def home(tmp_path, tiny_pipe, monkeypatch):
    monkeypatch.setitem(models._loaded, "stickers", tiny_pipe)
    monkeypatch.setenv("FASTVIZ_HISTORY", str(tmp_path / "home"))
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setattr(health, "faults", {})
    return tmp_path / "home"


def names(page):
    return [type(tab).__module__.rpartition(".")[2] for tab in page.tabs]


def words(page):
    return " ".join(str(each.value) for each in page.blocks.blocks.values() if isinstance(getattr(each, "value", None), str))


def sweeping(history, **more):
    plan = read_plan(["a cat"], "0-1", vary=["few_step.steps=1"], steps=2, size=128, guidance=3.0)
    return Sweeping(plan, history, "me", **more)


# Where the disk refuses

def test_a_history_that_cannot_be_written_is_told_once_and_costs_nothing_else(home, caplog):
    home.write_text("a file in the place of the folder")
    page = Page(LOCAL)
    assert names(page) == ["pictures", "learn", "inside", "why", "history"] and page.shelf is None
    assert "Runs are not kept, because this server cannot write its history" in words(page)
    assert len(caplog.records) == 1 and str(home) in caplog.text and "FASTVIZ_HISTORY" in caplog.text
    assert health.state(True, 0, 4)[0] == "degraded" and "history" in health.state(True, 0, 4)[1] and health.state(True, 0, 4)[2]
    assert page.past.kept(Job(ASKED), "tab", {"sentence": "Done."}) == {}


def test_a_file_that_is_no_database_is_told_too(home, caplog):
    home.mkdir()
    (home / "history.sqlite").write_bytes(b"no database " * 99)
    assert Page(LOCAL).shelf is None and "not a database" in caplog.text


def test_a_profile_without_a_history_has_neither_tab_nor_word_of_it(home):
    page = Page(dataclasses.replace(LOCAL, history_megabytes=0))
    assert names(page) == ["pictures", "learn", "inside", "why"] and not home.exists() and "kept" not in words(page)


def full(history):
    """Its database without room for another run."""
    history.base.init(history.folder / "history.sqlite", pragmas={"max_page_count": 1})  # that is: no more than it has
    with suppress(OSError):
        for i in range(10_000):
            history.enter(f"filler{i}", "nobody", COMPARISON, ASKED, "", {}, {}, 0)
    return history


def test_a_full_disk_ends_a_sweep_with_a_sentence_and_a_run_stays_on_the_page(home, caplog):
    history = full(History(home))
    work = sweeping(history)
    work.work()
    assert (work.state, work.sentence) == ("failed", "The sweep could not be finished: the disk is full.")
    page = Page(LOCAL)
    full(page.shelf.history)
    page.shelf.arrive("tab", MARY)
    job = Opened(ASKED, [], {})
    job.files = FILES
    told = page.past.kept(job, "tab", {"sentence": "Done."})
    assert told[page.status]["sentence"] == "Done. It is not in the history: the server's log says why." and "disk is full" in caplog.text
    assert "history" in health.faults


def test_a_history_that_is_gone_later_is_told_in_its_tab(home):
    shelf = Shelf(History(home), True)
    shelf.arrive("tab", MARY)
    (home / "history.sqlite").unlink()
    (home / "history.sqlite").mkdir()
    assert shelf.listed("tab")["sentence"] == UNREAD and shelf.listed("tab")["runs"] == []


def test_tables_and_reports_that_cannot_be_written_leave_the_rest(monkeypatch, home):
    work = sweeping(History(home))
    work.work()
    assert work.files()[0] and work.files()[1] == ""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(home / "nowhere"))
    assert work.files() == (None, "There is no table to download: the server's log says why.")
    button = parts.report_of(Opened(ASKED, [], {}))
    assert button.value is None and not button.interactive


# Where work runs elsewhere

def test_where_a_worker_computes_what_cannot_work_there_is_not_on_the_page(monkeypatch):
    monkeypatch.setitem(worker.LENT, "rows", None)
    page = Page(dataclasses.replace(LOCAL, hardware=profile.ZERO))
    assert names(page) == ["pictures", "learn", "inside", "history"]
    shown = {each.elem_id for each in page.blocks.blocks.values() if getattr(each, "elem_id", None)}
    assert "look" in shown and not {"find", "begin"} & shown


@pytest.mark.parametrize("name, tabs", (
    ("local", ["pictures", "learn", "inside", "why", "sweep", "history"]), ("classroom", ["pictures", "learn", "inside", "why", "sweep", "history"]),
    ("cpu-basic", ["pictures", "learn", "inside", "why", "sweep", "history"]), ("zerogpu", ["pictures", "learn", "inside", "why", "history"])))
def test_every_profile_offers_what_it_says(name, tabs):
    chosen = profile.load(name)
    page = Page(chosen)
    assert names(page) == tabs and page.shelf.shared == chosen.history_shared == (name == "local")


# Where many share it

def test_everybody_sees_his_own_runs_where_they_are_not_shared(home):
    shelf = Shelf(History(home), False)
    for session, token in (("a", MARY), ("b", JOHN), ("c", None), ("d", "../" * 8)):
        shelf.arrive(session, token)
    job = Opened(ASKED, [], {"device": "a"})
    job.files = FILES
    assert shelf.keep("a", job) and not shelf.keep("c", job)
    assert [len(shelf.listed(session)["runs"]) for session in "abcd"] == [1, 0, 0, 0]
    id = shelf.listed("a")["runs"][0]["id"]
    for wish in ({"do": "open", "id": id}, {"do": "delete", "id": id}, {"do": "pair", "ids": [id, id]}):
        with pytest.raises(BadRequest, match="no such run"):
            shelf.opened("b", wish) if wish["do"] == "open" else shelf.granted("b", wish)
    assert len(shelf.arrive("later", MARY)["runs"]) == 1


@pytest.mark.parametrize("shared", (True, False))
def test_what_programs_run_is_kept_where_everybody_sees_everything(shared):
    page = Page(dataclasses.replace(LOCAL, history_shared=shared))
    assert list(page.api.compare("a cat", steps=2, size=128, methods="full"))[-1]["state"] == "finished"
    assert [run["prompt"] for run in page.shelf.history.search(None)] == ["a cat"] * shared


def test_a_program_is_answered_on_a_full_disk(caplog):
    page = Page(LOCAL)
    full(page.shelf.history)
    assert list(page.api.measure("a cat", steps=2, size=128, methods="full"))[-1]["state"] == "finished"
    assert "A run could not be kept." in caplog.text and "history" in health.faults


def test_another_address_shares_no_history():
    near, far = profile.moved(LOCAL, "127.0.0.2"), profile.moved(LOCAL, "0.0.0.0")
    assert near.history_shared and "127.0.0.2" in near.hosts and near.address == "127.0.0.2"
    assert not far.history_shared and far.hosts == ("*",) and far.address == "0.0.0.0"


def test_the_fastest_way_is_proposed_on_some_pictures_and_verified_on_others(home, monkeypatch):
    tried = ((few_step.Knobs(steps=1),), (tome.Knobs(ratio=0.25),), (attention_reuse.Knobs(share=0.5),))
    monkeypatch.setattr(fastest, "candidates", lambda steps, methods: tried if methods else ())
    page = Page(LOCAL)
    own, told = ["tome.ratio", "0.2", None, "", None, "", "", "0", ""], {"prompt": "a cat", "model": "stickers", "steps": 2, "guidance": 3.0, "size": 128}
    work = Finding(*page.sweeps.vary.search("lpips", 50, own, told), page.shelf.history, "me")
    work.work()
    assert work.state == "finished" and work.status()["sentence"] == work.board()["said"] and "that the search did not see" in work.said
    runs = [run["plan"] for run in page.shelf.history.search("me")]
    seen, unseen = (set(map(tuple, itertools.product(plan["prompts"], plan["seeds"]))) for plan in runs)
    assert len(runs) == 2 and not seen & unseen and work.facts()["bound"] == {"lpips": 50}
    assert len(work.board()["variants"]) == 4 and work.board()["units"][0]["seed"] == str(fastest.SEED)


@pytest.mark.parametrize("name, most, prompts, change, words", (
    ("psnr", 1, "", {}, "bound"), ("lpips", 0, "", {}, "bound"), ("seconds", None, "", {}, "bound"), ("seconds", 1, "a cat", {}, "4 to 8 prompts"),
    ("seconds", 1, "a cat\n" * 9, {}, "4 to 8"), ("seconds", 1, 5, {}, "text"), ("seconds", 1, "", {"steps": 1000}, "teps"), ("lpips", 1, "", {"sketch": "x"}, "sketch")))
def test_what_cannot_be_searched_is_a_sentence(name, most, prompts, change, words):
    with gr.Blocks():
        controls = Controls(LOCAL)
    own = ["tome.ratio", "0.2", None, "", None, "", prompts, "0", ""]
    with pytest.raises(BadRequest, match=words):
        controls.search(name, most, own, {"prompt": "a cat", "model": "stickers", "steps": 5, "guidance": 3.0, "size": 128} | change)


def test_a_sweep_stays_within_the_profile():
    tight = dataclasses.replace(LOCAL, sweep_cells=7, max_steps=10, max_size=128, methods=("full", "tome"))
    with gr.Blocks():
        controls = Controls(tight)
    own = ["tome.ratio", "0.25, 0.5", None, "", None, ""]
    told = {"prompt": "a cat", "model": "stickers", "steps": 5, "guidance": 3.0, "size": 128}
    assert len(controls.plan([*own, "", "0-1", ""], told).units) == 2
    for change, words in (({"seeds": "0-2"}, "9 pictures are too many"), ({"steps": 11}, "11 steps are too many"), ({"size": 256}, "256 pixels"),
                          ({"rows": "tome,atedm", "seeds": "0"}, "does not offer"), ({"model": "../etc"}, "offers|model")):
        asked = {**told, **{name: value for name, value in change.items() if name in told}}
        with pytest.raises(BadRequest, match=words):
            controls.plan([*own, "", change.get("seeds", "0-1"), change.get("rows", "")], asked)


def test_long_work_lets_the_others_go_first_once_round():
    turns = Turns(1)
    mine = turns.enter("me")
    assert turns.place("me", mine) == 0 and turns.pass_on("me") is mine and turns.place("me", mine) == 0  # nobody else is there
    others = [(name, turns.enter(name)) for name in ("b", "c")]
    assert [turns.place(*each) for each in others] == [1, 2]
    assert turns.pass_on("me") is mine and turns.place("me", mine) == 2
    for name, ticket in others:
        assert turns.place(name, ticket) == 0 and turns.place("me", mine) >= 1
        turns.leave(name, ticket)
    assert turns.place("me", mine) == 0
    turns.leave("me", mine)
    assert not turns.lines and not turns.ring and turns.running is None


def test_a_visitor_is_served_between_two_pictures_of_anothers_sweep(home):
    """And a sweep that waits there can be stopped."""
    page = Page(dataclasses.replace(profile.load("classroom"), max_size=128))
    served, work = [], sweeping(page.shelf.history)
    work.between = lambda: (served or served.append(page.turns.enter("other")), page.pause("me", work))
    with page.turns.held("me") as ticket:
        assert page.turns.place("me", ticket) == 0
        thread = threading.Thread(target=work.work)
        thread.start()
        while not served or page.turns.place("other", served[0]):
            time.sleep(0.01)
        done = len(work.counted)
        assert 0 < done < 4 and thread.is_alive() and "comparison is first" in work.sentence
        page.turns.leave("other", served[0])
        work.stop.wait(1.5)
        work.stop.set()
        thread.join(60)
    assert work.state in ("stopped", "finished") and not page.turns.lines


def test_what_is_followed_waits_for_its_turn_and_is_remembered(home):
    page = Page(dataclasses.replace(profile.load("classroom"), max_size=128))
    request = SimpleNamespace(username="mary", session_hash="tab", client=SimpleNamespace(host="10.0.0.1"))
    other = page.turns.enter("john")
    assert page.turns.place("john", other) == 0
    told = page.follow(request, lambda visit: visit.take(Job(ASKED)), page.board, page.cleared())
    first = next(told)[page.status]
    assert first["state"] == "waiting" and "1 comparison is first" in first["sentence"] and page.visits.of(request).work is None
    page.turns.leave("john", other)
    *_, last = told
    assert last[page.status]["state"] == "finished" and not page.turns.lines
    assert page.visits.of(request).job.told and list(page.known) == [ASKED]
    for begin, kind in ((lambda visit, job: Inside(job), Inside), (lambda visit, job: Why(job), Why)):
        *_, last = page.again(request, begin, page.board, {})
        assert last[page.status]["state"] == "finished" and type(page.visits.of(request).work) is kind


def test_the_oldest_visits_that_are_over_are_forgotten():
    visits, asked = Visits(), [type("Asked", (), {"session_hash": str(i)}) for i in range(REMEMBERED + 9)]
    running = visits.now(asked[0])
    running.work = type("Work", (), {"state": "running", "end": lambda self: setattr(self, "state", "stopped")})()
    for each in asked[1:]:
        visits.now(each)
    assert len(visits.known) == REMEMBERED and visits.of(asked[0]) is running and visits.of(asked[1]) is not visits.of(asked[1])
    visits.leave(asked[0])
    assert running.work.state == "stopped" and "0" not in visits.known


# What operators see

def test_a_sweep_is_counted_and_logged_without_its_prompts(home, caplog):
    def value(name, **labels):
        return health.REGISTRY.get_sample_value(name, labels) or 0.0

    caplog.set_level(logging.INFO)
    names = [("fastviz_rows_total", {"outcome": "timed"}), ("fastviz_runs_total", {"work": "sweep", "outcome": "finished"}),
             ("fastviz_stage_seconds_total", {"stage": "denoising"})]
    before = [value(name, **labels) for name, labels in names]
    history = History(home)
    for expected in (4, 0):  # the second time everything is there from before
        start, work = value("fastviz_rows_total", outcome="timed"), sweeping(history)
        work.work()
        assert value("fastviz_rows_total", outcome="timed") - start == expected and work.before == 4 - expected
    assert [value(name, **labels) > start for (name, labels), start in zip(names, before)] == [True] * 3
    assert "4 of 4 pictures were there from before" in work.status()["sentence"]
    lines = [log.Lines().format(record) for record in caplog.records]
    told = [told for told in map(json.loads, lines) if told.get("event") == "work"]
    assert [(each["work"], each["pictures"], each["finished"], each["from_before"]) for each in told] == [("sweep", 4, 4, 0), ("sweep", 4, 4, 4)]
    assert not any("a cat" in line for line in lines)


def test_a_run_that_is_opened_again_is_not_counted():
    from fastviz.compare import compare, final

    rows = final(compare(ASKED))
    before = health.REGISTRY.get_sample_value("fastviz_rows_total", {"outcome": "timed"}) or 0.0
    job = Opened(ASKED, [dataclasses.replace(row, run=None) for row in rows], {})
    assert job.state == "finished" and job.board()["rows"][0]["picture"] and store.recipe(job.request) == job.recipe
    assert (health.REGISTRY.get_sample_value("fastviz_rows_total", {"outcome": "timed"}) or 0.0) == before
