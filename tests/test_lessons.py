"""The lessons: what they ask can be run everywhere, their texts are complete in every language, and what is shipped belongs to the weights."""

import dataclasses
import json
import re
from types import SimpleNamespace

import gradio as gr
import pytest
import yaml

from fastviz import models, profile
from fastviz.lessons import BY_KEY, LESSONS, Lesson, closing, make, shipped
from fastviz.lessons.figures import MEASURES, answer, figure, figures
from fastviz.lessons.words import LANGUAGES, read
from fastviz.methods import METHODS
from fastviz.request import BadRequest
from fastviz.ui import learn
from fastviz.ui.look import WEB
from fastviz.ui.page import Page

EVERY = pytest.mark.parametrize("lesson", LESSONS, ids=lambda lesson: lesson.key)
SAME = re.compile(r"[A-Z\d][\w.+-]*( (2M|\d+ \w+))?")  # names such as DDIM or DPM-Solver++ 2M stay as they are
BESIDES = {"step", "seed", "count", "answer", "device", "threads", "torch", "day", "repeats", "prompt", "lpips", "steps"}


def texts(told, path=""):
    """(path, text) of every text below `told`."""
    if isinstance(told, str):
        yield path, told
        return
    for key, value in told.items() if isinstance(told, dict) else enumerate(told):
        yield from texts(value, f"{path}/{key}")


def slots(text):
    return set(re.findall(r"\{([\w.]+)\}", text))


# The table

@EVERY
@pytest.mark.parametrize("name", yaml.safe_load(profile.PATH.read_text()))
def test_a_lesson_can_be_run_wherever_the_page_is(lesson, name):
    offered = profile.load(name)
    assert offered.check(lesson.request()).repeats == 1 and lesson.request(3).repeats == 3


@EVERY
def test_a_lesson_has_a_text_for_all_that_it_shows(lesson):
    words = read("en")["lessons"][lesson.key]
    assert list(words["options"]) == list(lesson.options)
    assert list(words["rows"]) == [*lesson.rows, *["student"] * lesson.student]
    assert lesson.closing in closing.CLOSINGS and lesson.chart in ("", "parts", "work", "front")
    assert all(re.fullmatch(r"\d{4}\.\d{5}", number) for _, number in lesson.papers)


def test_the_student_joins_as_soon_as_it_is_there(monkeypatch):
    from fastviz.methods import sdxs

    once, model = BY_KEY["once"], models.MODELS["stickers"]
    monkeypatch.setitem(models.MODELS, "stickers", dataclasses.replace(model, methods=(*model.methods, sdxs.KEY)))
    monkeypatch.setattr(sdxs, "missing", lambda folder: "none")
    assert "student" not in once.names and len(once.request().methods) == len(once.names)
    monkeypatch.setattr(sdxs, "missing", lambda folder: "")
    assert once.names[-1] == "student" and once.request().methods[-1] == (sdxs.Knobs(),)
    assert "student" not in BY_KEY["slow"].names


# Figures

def row(**values):
    return {"seconds": 2.0, "spread": [2.0, 2.0], "speedup": 1.0, "flops": 10, "flops_share": 1.0, "steps": 5, "per_step": [1.0, 3.0, 2.0], "flops_per_step": [2, 2],
            "parts": {"text": 0.1, "denoising": 1.5, "decoder": 0.4}, "metrics": {"lpips": 0.0, "psnr": 30.0, "match": 1.0}} | values


def test_figures_are_read_by_name():
    rows = {"full": row(), "few": row(seconds=0.5, flops_share=0.25), "failed": {"seconds": None}}
    assert figure(rows, "full.denoising") == ("share", 0.75) and figure(rows, "full.step") == ("seconds", 2.0)
    assert figure(rows, "few.time") == ("share", 0.25) and figure(rows, "few.saved") == ("share", 0.75)
    assert figure(rows, "failed.seconds") is None and figure(rows, "absent.seconds") is None
    assert figure({"full": row(), "odd": row(metrics={"psnr": "infinite: the pictures are equal"})}, "odd.psnr") is None
    assert figures(rows)["few.seconds"] == ["seconds", 0.5] and "failed.seconds" not in figures(rows)


def with_lpips(**told):
    return {"full": row()} | {name: row(metrics={"lpips": value, "psnr": 1.0, "match": 1.0}) for name, value in told.items()}


def with_speed(**told):
    return {"full": row()} | {name: row(speedup=value, spread=[2 / value] * 2) for name, value in told.items()}


@pytest.mark.parametrize("key, rows, right", (
    ("slow", {"full": row()}, "most"), ("slow", {"full": row(parts={"denoising": 1.9})}, "all"), ("slow", {"full": row(parts={"denoising": 1.3})}, "half"),
    ("steps", with_lpips(ddim=0.3, dpm=0.2, olss=0.1), "olss"), ("steps", with_lpips(ddim=0.1, dpm=0.2, olss=0.3), "ddim"),
    ("reuse", with_lpips(early=1.0, late=0.1), "late"), ("reuse", with_lpips(early=0.1, late=1.0), "early"), ("reuse", with_lpips(early=0.1, late=0.11), "same"),
    ("merge", with_speed(half=1.6), "double"), ("merge", with_speed(half=1.2), "little"), ("merge", with_speed(half=0.9), "none"),
    ("prune", with_lpips(zero=4.0, nearest=3.0, copy=2.0, update=1.0), "update"),
    ("once", {"full": row(), "one": row(metrics={"match": 0.5})}, "place"), ("once", {"full": row(), "one": row(metrics={"match": 0.0})}, "nothing"),
    ("stack", with_lpips(few=0.2, reuse=0.1, both=0.2), "larger"), ("stack", with_lpips(few=0.2, reuse=0.1, both=0.3), "sum"),
    ("stack", with_lpips(few=0.2, reuse=0.1, both=0.4), "more"),
    ("steps", with_lpips(ddim=0.3, dpm=0.2), None), ("slow", {}, None), ("merge", {"full": row(), "half": {"seconds": None}}, None),
    ("merge", {"full": row(), "half": row(speedup=None)}, None), ("merge", {"full": row(), "half": row(speedup=1.6, spread=[1.0, 2.1])}, "none"),
))
def test_the_right_answer_follows_from_what_was_measured(key, rows, right):
    assert answer(BY_KEY[key], rows) == right


# Texts

@EVERY
@pytest.mark.parametrize("language", LANGUAGES)
def test_texts_speak_of_figures_and_formulas_that_there_are(lesson, language):
    formulas = set(re.findall(r"^    (\w+): \(\) =>", (WEB / "formulas.js").read_text(), re.MULTILINE))
    for path, text in texts(read(language)["lessons"][lesson.key]):
        if text.startswith("="):
            assert text[1:] in formulas, path
        for slot in slots(text) - BESIDES:
            name, _, measure = slot.partition(".")
            assert name in {"full", *lesson.rows, *["student"] * lesson.student} and measure in MEASURES, (path, slot)
        assert text.count("*") % 2 == 0, path


@pytest.mark.parametrize("language", LANGUAGES[1:])
def test_no_text_is_missing_and_none_is_left_in_english(language):
    english, other = (dict(texts({name: read(each)[name] for name in ("ui", "lessons")})) for each in ("en", language))
    assert english.keys() ^ other.keys() == set()
    assert [path for path in english if slots(english[path]) != slots(other[path])] == []
    assert [path for path in english if english[path].startswith("=") and english[path] != other[path]] == []
    same = [text for path, text in other.items() if text == english[path] and not text.startswith("=")]
    assert [text for text in same if not SAME.fullmatch(text)] == []
    assert other.keys() and read(language)["name"] != read("en")["name"]


def labels(page):
    """Every fixed text of the page's own parts; not the choices of a menu, and not what is an example of input."""
    for part in page.blocks.blocks.values():
        if type(part).__name__ != "Api":
            yield from (text for name in ("label", "info") if isinstance(text := getattr(part, name, None), str) and text.strip())
        if isinstance(part, (gr.Button, gr.DownloadButton)) and isinstance(part.value, str):
            yield part.value
    for method in METHODS[1:]:
        yield from (method.TITLE, method.SAYS, *(field.metadata["says"] for field in dataclasses.fields(method.Knobs)))


@pytest.mark.parametrize("language", LANGUAGES[1:])
def test_the_page_has_no_text_without_a_translation(language):
    told, kept = read(language)["page"], {"Sx", "Sy", "Tau"}
    spoken = set(labels(Page(profile.load())))
    fits = [re.compile(re.sub(r"\\{\w+\\}", ".+", re.escape(text))) for text in told if "{" in text]
    assert {text for text in spoken if text not in told and not any(each.fullmatch(text) for each in fits)} == set()
    assert all(slots(text) == slots(into) for text, into in told.items())
    assert told.keys() ^ read("de")["page"].keys() == set()
    english = {text for text, into in told.items() if text == into} - kept
    assert english <= {"Prompt", "Prompts", "Seed", "Seeds", "Guidance", "Decoder"} if language == "de" else english <= {"Decoder"}


# What is shipped

@EVERY
def test_shipped_results_belong_to_these_weights(lesson):
    told = shipped.read(lesson)
    assert told and not shipped.stale(lesson, told), f"Measure again: {shipped.COMMAND} {lesson.key}"
    assert list(told["rows"]) == list(lesson.names) and not any(row["error"] for row in told["rows"].values())
    assert {"device", "threads", "torch", "diffusers", "python"} <= told["environment"].keys()


@EVERY
def test_shipped_results_have_every_figure_that_a_text_speaks_of(lesson):
    told = shipped.read(lesson)
    assert answer(lesson, told["rows"]) in lesson.options
    words = read("en")["lessons"][lesson.key]
    spoken = {slot for path, text in texts(words) if not path.startswith("/student") for slot in slots(text)} - BESIDES
    assert spoken - figures(told["rows"]).keys() == set()
    if "items" in told["closing"]:
        assert {item["label"] for item in told["closing"]["items"]} == words["closing"]["items"].keys()
    if "series" in told["closing"]:
        assert told["closing"]["series"].keys() == words["closing"]["series"].keys() and {"x", "y"} <= words["closing"].keys()


def test_shipped_files_are_small_and_all_of_use():
    used = {f"{lesson.key}.json" for lesson in LESSONS}
    for told in map(shipped.read, LESSONS):
        used |= {row["picture"] for row in told["rows"].values()} | {item["picture"] for item in told["closing"].get("items", ())}
    assert {path.name for path in shipped.FOLDER.iterdir()} ^ used == set()
    assert sum(path.stat().st_size for path in shipped.FOLDER.iterdir()) < 2 * 2**20


@EVERY
def test_the_page_is_told_everything_about_a_lesson(lesson):
    board = learn.board(lesson, "en")
    json.dumps(board, allow_nan=False)
    found = board["result"]
    assert found["answer"] in board["options"] and found["stale"] is False and [row["name"] for row in found["rows"]] == list(lesson.names)
    assert all(row["picture"].startswith("data:image/webp") and row["seconds"] for row in found["rows"])


@pytest.mark.parametrize("wish", (None, [], {}, {"lesson": "slow"}, {"lesson": "slow", "language": "fr"}, {"lesson": ["slow"], "language": "en"},
                                  {"lesson": "../slow", "language": "en"}, {"lesson": "slow", "language": {}}))
def test_a_lesson_that_does_not_exist_is_refused(wish):
    with pytest.raises(BadRequest):
        learn.asked(wish)


def test_a_run_that_the_profile_does_not_allow_is_refused_with_its_sentence():
    page = Page(dataclasses.replace(profile.load(), max_steps=10))
    tab = next(tab for tab in page.tabs if tab.__module__.endswith("learn"))
    visitor = SimpleNamespace(session_hash="x", username="mary")
    for wish, sentence in (({"lesson": "slow", "language": "en"}, "10 at most"), ({"lesson": "none", "language": "en"}, "does not exist")):
        told = list(tab.run(visitor, wish))
        assert len(told) == 1 and told[0][page.status]["state"] == "refused" and sentence in told[0][page.status]["sentence"]


# Measuring

SMALL = Lesson("small", {"even": "attention_reuse(schedule=1010)", "late": "attention_reuse"}, ("early", "late", "same"), lambda of: "late", "", "change", (),
               steps=4)


@pytest.fixture
def tiny_lesson(tiny_folder, tmp_path, monkeypatch):
    """A lesson of four steps on the tiny model, written into a folder of its own."""
    monkeypatch.setitem(models.MODELS, "stickers", dataclasses.replace(models.MODELS["stickers"], source=str(tiny_folder)))
    monkeypatch.setattr(models, "_loaded", {})
    monkeypatch.setattr(shipped, "FOLDER", tmp_path / "lessons")
    make.measure(SMALL, repeats=1)
    return SMALL


def test_a_lesson_is_measured_and_told_apart_from_one_of_other_weights(tiny_lesson, monkeypatch):
    told = shipped.read(tiny_lesson)
    assert list(told["rows"]) == ["full", "even", "late"] and not shipped.stale(tiny_lesson, told)
    assert told["weights"]["model"] == shipped.weights()["model"] != "" and told["recipe"]["steps"] == 4
    assert [step for step, _ in told["closing"]["series"]["fresh"]] == [2, 4] and all(0 < moved < 2 for _, moved in told["closing"]["series"]["old"])
    assert (shipped.FOLDER / told["rows"]["even"]["picture"]).is_file()
    assert shipped.stale(dataclasses.replace(tiny_lesson, steps=5), told)
    monkeypatch.setattr(shipped, "weights", lambda: told["weights"] | {"student": "another"})
    assert shipped.stale(tiny_lesson, told)


def test_half_a_result_is_not_written(tiny_lesson):
    with pytest.raises(RuntimeError, match="late"):
        make.measure(dataclasses.replace(SMALL, rows={"even": "attention_reuse(schedule=1010)", "late": "attention_reuse(schedule=10)"}), repeats=1)
