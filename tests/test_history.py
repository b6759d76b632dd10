"""Kept runs: they come back as they were, belong to their visitor, can be found and deleted, and stay within a budget."""

import json
import threading

import numpy as np
import pytest
from PIL import Image
from test_store import ASKED, ENVIRONMENT, picture, rows

from fastviz import store
from fastviz.explore.history import COMPARISON, SWEEP, History
from fastviz.request import BadRequest, Request

OTHER = Request("an owl at night", seed=4, steps=9, methods="full,tome")


FILES = store.files(ASKED, rows(), ENVIRONMENT)


def kept(history):
    return history.keep("me", ASKED, rows(), ENVIRONMENT, FILES)


@pytest.fixture
def history(tmp_path):
    return History(tmp_path / "history")


def told(row):
    return {name: value for name, value in vars(row).items() if name not in ("image", "lpips_map", "difference_map", "run")}


def test_a_comparison_comes_back_as_it_was(history):
    id = kept(history)
    request, found, environment = history.open("me", id)
    assert request == ASKED and environment == ENVIRONMENT
    assert [told(row) for row in found] == [told(row) for row in rows()]
    for before, after in zip(rows(), found, strict=True):
        for name in ("image", "lpips_map", "difference_map"):
            one, two = getattr(before, name), getattr(after, name)
            assert (one is None) == (two is None) and (one is None or np.array_equal(np.asarray(one), np.asarray(two)))
    assert store.table(found) == store.table(rows())


def test_runs_are_found_by_their_words_newest_first(history):
    first, second = kept(history), history.keep("me", OTHER, rows()[:1], {"device": "a GPU"}, FILES)
    for text, wanted in (("", [second, first]), ("owl", [second]), ("OWL night", [second]), ("owl pizza", []), ("猫", [first]), ("tome", [second, first]),
                         ("gpu", [second]), ("%", []), ("attention_reuse", [first]), ("seed 9", [first]), ("seed 4 night", [second])):
        assert [run["id"] for run in history.search("me", text)] == wanted, text
    one = history.search("me", "owl")[0]
    assert one["kind"] == COMPARISON and one["rows"][0]["seconds"] == 4.0 and one["device"] == "a GPU" and one["recipe"]["seed"] == 4


def test_nobody_sees_opens_or_deletes_what_is_another_visitors(history):
    id = kept(history)
    assert history.search("you") == [] and history.search("") == []
    for act in (history.open, history.delete):
        with pytest.raises(BadRequest, match="no such run"):
            act("you", id)
    assert history.open("me", id)[0] == history.open(None, id)[0] == ASKED  # None is the operator, who shares
    assert len(history.search(None)) == 1


@pytest.mark.parametrize("id", ("", "../../etc", "x' OR 1=1 --", None, 3, ["a"]), ids=str)
def test_what_does_not_exist_is_refused(history, id):
    kept(history)
    for act in (history.open, history.delete):
        with pytest.raises(BadRequest, match="no such run"):
            act(None, id)
    assert len(history.search(None)) == 1


def test_a_deleted_run_leaves_nothing(history):
    id = kept(history)
    assert any((history.folder / "runs" / id).iterdir()) and history.size() > 0
    history.delete("me", id)
    assert history.search("me") == [] and not list((history.folder / "runs").iterdir()) and history.size() == 0


def test_damaged_files_are_told(history):
    id = kept(history)
    for content in ("{", "[]", '{"rows": []}', '{"rows": 3, "recipe": {}}'):
        (history.folder / "runs" / id / "run.json").write_text(content)
        with pytest.raises(BadRequest, match="gone or damaged"):
            history.open("me", id)


def test_a_sweep_is_not_opened_as_a_comparison(history):
    history.enter("1" * 32, "me", SWEEP, OTHER, "tome", ENVIRONMENT, {"keys": []}, 0)
    with pytest.raises(BadRequest, match="begin the same sweep again"):
        history.open("me", "1" * 32)


def test_the_oldest_runs_go_first_and_the_newest_stays(tmp_path):
    found = {"run.json": b"{}", "a.png": bytes(300_000)}
    history = History(tmp_path / "history", megabytes=1)
    kept = [history.keep("me", OTHER, [], ENVIRONMENT, found) for _ in range(5)]
    assert [run["id"] for run in history.search("me")] == kept[:1:-1]
    assert {place.name for place in (history.folder / "runs").iterdir()} == set(kept[2:]) and history.size() <= 2**20
    large = history.keep("me", OTHER, [], ENVIRONMENT, {"run.json": bytes(2**21)})
    assert [run["id"] for run in history.search("me")] == [large]


def test_cells_live_as_long_as_a_sweep_that_needs_them(history):
    for key in ("a", "b", "c"):
        history.finish(key, {"seconds": 1.0}, Image.new("RGB", (8, 8)))
    ids = ["1" * 32, "2" * 32]
    for id, keys in zip(ids, (["a", "b"], ["b", "c"])):
        history.enter(id, "me", SWEEP, OTHER, "tome", ENVIRONMENT, {"keys": keys}, 0)
    history.delete("me", ids[0])
    assert [history.cell(key) for key in "abc"] == [None, {"seconds": 1.0}, {"seconds": 1.0}]
    assert {path.name for path in (history.folder / "cells").iterdir()} == {"b.png", "c.png"}


def test_a_keep_that_fails_leaves_nothing(history, monkeypatch):
    monkeypatch.setattr(json, "dumps", lambda *args, **kwargs: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError):
        history.keep("me", OTHER, [], ENVIRONMENT, {"run.json": b"{}"})
    monkeypatch.undo()
    assert history.search(None) == [] and not list((history.folder / "runs").iterdir())


def test_what_is_left_of_a_killed_process_is_thrown_away(history, monkeypatch):
    (history.folder / "runs" / "0123.part").mkdir()
    history.keep("me", OTHER, [], ENVIRONMENT, {"run.json": b"{}"})
    assert (history.folder / "runs" / "0123.part").exists()  # another process may be writing it just now
    monkeypatch.setattr("fastviz.explore.history.STALE", -1)
    history.keep("me", OTHER, [], ENVIRONMENT, {"run.json": b"{}"})
    assert not (history.folder / "runs" / "0123.part").exists() and len(history.search("me")) == 2


def test_many_threads_and_a_second_process_may_keep_at_once(history):
    beside = History(history.folder)
    threads = [threading.Thread(target=each.keep, args=("me", OTHER, [], ENVIRONMENT, {"run.json": b"{}"})) for each in (history, beside) * 6]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(history.search("me")) == 12 and picture(1)


def test_only_its_owner_may_read_the_folder(history):
    assert history.folder.stat().st_mode & 0o077 == 0


# The command line

@pytest.fixture
def at_home(tmp_path, tiny_pipe, monkeypatch):
    from fastviz import models

    monkeypatch.setitem(models._loaded, "stickers", tiny_pipe)
    monkeypatch.setenv("FASTVIZ_HISTORY", str(tmp_path / "home"))


def said(capsys, *arguments, code=0):
    from fastviz import __main__ as command

    assert command.main(list(arguments)) == code
    lines = capsys.readouterr().out.splitlines()
    return lines, json.loads(lines[-1]) if lines else None


def test_the_command_line_keeps_finds_opens_and_deletes(at_home, capsys, tmp_path):
    small = ("--size", "128", "--steps", "2", "--repeats", "1", "--methods", "tome")
    said(capsys, "compare", "a cat", *small)
    said(capsys, "compare", "an owl", *small, "--no-history")
    said(capsys, "sweep", "a dog", "--vary", "few_step.steps=1", "--size", "128", "--steps", "2", "--out", str(tmp_path / "out"))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"cells.csv", "cells.parquet", "sweep.json", "000-000.png", "001-000.png"}
    _, told = said(capsys, "history")
    assert [(run["kind"], run["prompt"]) for run in told["runs"]] == [("sweep", "a dog"), ("comparison", "a cat")] and told["bytes"] > 0
    id = said(capsys, "history", "tome")[1]["runs"][0]["id"]
    lines, told = said(capsys, "history", "--open", id, "--out", str(tmp_path / "again"))
    assert lines[2].split()[0] == "full" and told["recipe"]["prompt"] == "a cat" and (tmp_path / "again" / "01-tome.png").is_file()
    assert [run["prompt"] for run in said(capsys, "history", "--delete", id)[1]["runs"]] == ["a dog"]
    said(capsys, "history", "--open", id, code=2)


def test_a_sweep_that_cannot_be_planned_ends_with_a_sentence(capsys):
    from fastviz import __main__ as command

    assert command.main(["sweep", "a cat", "--vary", "tome.ratio=9"]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1 and told.err.endswith(".\n")
