"""The search for the fastest: what it tries, and that what it names was verified on pictures that it did not see."""

import json

import pytest

from fastviz import __main__ as command
from fastviz import models, reading
from fastviz.explore import fastest
from fastviz.explore import sweep as sweeping
from fastviz.explore.history import History
from fastviz.request import BadRequest, check_stack, parse_stack, stack_keys, stack_text
from fastviz.run import Stopped


def row(stack, seconds, lpips):
    return {"stack": stack, "at": {"row": stack}, "figures": {"seconds": seconds, "lpips": lpips, "speedup": (2.0, 2.0, 2.0)}}


def test_candidates_can_all_run_and_are_each_tried_once():
    stacks = fastest.candidates(50)
    assert len({stack_text(check_stack(stack)) for stack in stacks}) == len(stacks) > 20
    assert {stack_text(stack).partition("(")[0] for stack in fastest.candidates(50, ["few_step"])} == {"few_step"}
    assert any(len(stack) == 2 for stack in stacks) and fastest.candidates(50, ["full"]) == ()


def test_bounds_order_and_certainty():
    rows = [row("a", (1.0, 0.9, 1.2), (0.3, 0.2, 0.4)), row("b", (2.0, 1.9, 2.1), (0.1, 0.05, 0.2)), row("c", (3.0, 2.9, 3.1), (0.05, 0.01, 0.09)), row("d", None, None)]
    assert [each["stack"] for each in fastest.ranked(rows, lpips=0.15)] == ["b", "c"]
    assert [each["stack"] for each in fastest.ranked(rows, seconds=2.5)] == ["b", "a"]
    assert not fastest.keeps(rows[1], lpips=0.15) and fastest.keeps(rows[2], lpips=0.15) and fastest.keeps(rows[1], seconds=2.1)
    assert fastest.keeps(row("e", (1.0, None, None), (0.1, None, None)), lpips=0.1)


def test_what_is_verified_was_not_seen_before():
    mine, others = fastest.halves(fastest.PROMPTS)
    assert not set(mine) & set(others) and len(mine) == len(others) == 4
    with pytest.raises(BadRequest, match="4 prompts"):
        fastest.halves(["a", "b", "c"])
    for bounds in ({}, {"lpips": 0.1, "seconds": 2}):
        with pytest.raises(BadRequest, match="one bound"):
            fastest.search(None, "me", **bounds)


@pytest.mark.parametrize("model", ("sd15", "dreamshaper8", "sd-turbo", "sdxs"))
def test_a_search_begins_on_every_model_with_what_its_model_can_do(model, tiny_pipe, tmp_path, monkeypatch):
    monkeypatch.setitem(models._loaded, model, tiny_pipe)
    asked, history, about = dict(lpips=0.1, model=model, size=256), History(tmp_path), models.MODELS[model]
    with pytest.raises(Stopped):
        fastest.search(history, "me", **asked, steps=about.steps, guidance=about.guidance, stop=lambda: True)
    rows = history.search("me")[0]["plan"]["rows"]
    used = {key for row in rows for key in stack_keys(parse_stack(row)).split("+")}
    assert used == set(about.methods) & {"few_step", "attention_reuse", "tome", "atedm"}


def test_a_method_that_does_nothing_on_a_model_is_not_searched_there():
    with pytest.raises(BadRequest, match="on Stable Diffusion 1.5: choose from few_step, attention_reuse, tome[.]"):
        fastest.search(None, "me", lpips=0.1, model="sd15", methods=["atedm"])


def test_the_embedded_models_prompts_are_in_its_language():
    assert [reading.unknown_words("stickers", prompt) for prompt in fastest.PROMPTS] == [[]] * len(fastest.PROMPTS)


def test_the_command_names_a_verified_row_and_goes_on_where_it_was(tiny_pipe, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(models._loaded, "stickers", tiny_pipe)
    monkeypatch.setenv("FASTVIZ_HISTORY", str(tmp_path))
    monkeypatch.setattr(fastest, "SHARES", (0.3, 0.7))
    asked = ["fastest", "--lpips", "1000", "--seeds", "1", "--methods", "few_step", "--steps", "3", "--size", "128", "a cat", "a dog", "a fox", "an owl"]
    assert command.main(asked) == 0
    lines = capsys.readouterr().out.splitlines()
    told = json.loads(lines[-1])
    assert told["best"]["stack"] in [each["stack"] for each in told["verified"]] and "verified on 2 pictures" in lines[-2]
    assert len(told["verified"]) == fastest.FINALISTS <= len(told["proposed"])
    seconds = [each["figures"]["seconds"][0] for each in told["verified"]]
    assert told["best"]["figures"]["seconds"][0] == min(seconds)
    plans = [run["plan"] for run in History(tmp_path).search(None)]
    assert [plan["prompts"] for plan in plans] == [["a fox", "an owl"], ["a cat", "a dog"]] and [plan["seeds"] for plan in plans] == [[fastest.SEED], [0]]
    monkeypatch.setattr(sweeping, "generate", lambda *_, **__: pytest.fail("ran again"))
    assert command.main(asked) == 0 and json.loads(capsys.readouterr().out.splitlines()[-1])["best"] == told["best"]
    monkeypatch.undo()


@pytest.mark.parametrize("arguments", (["--lpips", "-1"], ["--lpips", "0.1", "--seconds", "1"], [], ["--seconds", "1", "a cat"], ["--lpips", "nan"],
                                       ["--lpips", "0.1", "--methods", "nothing"], ["--lpips", "0.1", "--steps", "0"], ["--lpips", "0.1", "--seeds", "0"]), ids=str)
def test_what_cannot_be_searched_is_a_sentence(arguments, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTVIZ_HISTORY", str(tmp_path))
    assert command.main(["fastest", *arguments]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1 and told.err.endswith(".\n")
