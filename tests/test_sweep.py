"""Sweeps: what is planned, what is never run twice, and figures against numpy and by hand."""

import csv
import io
import json

import numpy as np
import pytest
from conftest import at_home
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from fastviz import fitted, models
from fastviz.explore import sweep as sweeping
from fastviz.explore.history import History
from fastviz.explore.plan import again, read_plan
from fastviz.explore.statistics import front, intervals
from fastviz.methods import attention_reuse, olss, sdxs
from fastviz.request import BadRequest, stack_text
from fastviz.run import Stopped

SMALL = dict(steps=2, size=128)


def test_a_plan_is_every_variant_on_every_prompt_and_seed():
    plan = read_plan(["a cat", "a dog", "a cat"], "0-2", vary=["tome.ratio=0.25,0.5", "steps=2,4"], size=128)
    assert plan.units == tuple((prompt, seed) for prompt in ("a cat", "a dog") for seed in (0, 1, 2))
    assert [(dict(v.general)["steps"], stack_text(v.stack)) for v in plan.variants] == [
        (2, "full"), (4, "full"), (2, "tome(ratio=0.25)"), (2, "tome"), (4, "tome(ratio=0.25)"), (4, "tome")]
    assert again(json.loads(json.dumps(plan.plain()))) == plan


def test_a_knob_concerns_only_the_rows_that_have_it():
    plan = read_plan(["a cat"], rows="tome,tome+attention_reuse,few_step(steps=2)", vary=["tome.ratio=0.25:0.75:0.25", "tome.random=true,false"])
    assert len(plan.variants) == 1 + 6 + 6 + 1
    assert [value for name, values in plan.vary for value in values] == [0.25, 0.5, 0.75, True, False]


@pytest.mark.parametrize("told, field", (
    (dict(prompts=[]), "prompt"), (dict(prompts=["a\0"]), "prompt"), (dict(seeds="x"), "seeds"), (dict(seeds="0-1000000000000"), "seeds"), (dict(seeds=""), "seeds"),
    (dict(seeds="5-2"), "seeds"), (dict(vary=["tome.ratio"]), "vary"), (dict(vary=["tome.nothing=1"]), "vary"), (dict(vary=["no.ratio=1"]), "vary"),
    (dict(vary=["tome.ratio=7"]), "methods"), (dict(vary=["tome.ratio=0:1:0"]), "vary"), (dict(vary=["tome.ratio=0:1:0.0001"]), "vary"), (dict(vary=["steps=x"]), "vary"),
    (dict(vary=["steps=0"]), "steps"), (dict(rows="", vary=["steps=2"]), "sweep-rows"), (dict(rows="tome", vary=["atedm.tau=3"]), "vary"), (dict(rows="few_step(match=full)"), "sweep-rows"),
    (dict(vary=["tome.ratio=0.1", "tome.ratio=0.2"]), "vary"), (dict(seeds="0-99", vary=["tome.ratio=0:0.9:0.05"], prompts=["a", "b", "c"]), "vary")), ids=str)
def test_what_cannot_be_swept_is_refused_with_a_sentence(told, field):
    with pytest.raises(BadRequest) as refusal:
        read_plan(**dict(prompts=["a cat"], rows="tome") | told)
    assert refusal.value.field == field and str(refusal.value).endswith(".")


# Running

@pytest.fixture
def history(tmp_path, tiny_pipe, monkeypatch):
    monkeypatch.setitem(models._loaded, "stickers", tiny_pipe)
    return History(tmp_path / "history")


def all_of(plan, history, **more):
    return list(sweeping.run(plan, history, "me", **more))[-1]


def test_what_is_finished_is_never_run_again(history, monkeypatch):
    """Stopped in the middle, begun again by a new process (a new History), then run once more, larger."""
    plan, ran, generate = read_plan(["a cat"], "0-1", vary=["tome.ratio=0.25,0.5"], **SMALL), [], sweeping.generate
    monkeypatch.setattr(sweeping, "generate", lambda pipe, request, stack, *more, **others: (ran.append((request.seed, stack_text(stack))), generate(pipe, request, stack, *more, **others))[1])
    with pytest.raises(Stopped):
        all_of(plan, history, stop=lambda: len(ran) == 3)
    assert len(ran) == 3
    second = History(history.folder)
    whole = all_of(plan, second)
    assert len(ran) == 3 + 4 and set(ran[:2]) & set(ran[3:]) == set() and len(set(ran)) == 6  # the third had not finished
    assert all(cell["error"] is None and cell["seconds"] > 0 for cell in whole.cells.values())
    before = len(ran)
    larger = all_of(read_plan(["a cat"], "0-2", vary=["tome.ratio=0.25,0.5,0.75"], **SMALL), second)
    assert len(ran) - before == 12 - 6 and len(larger.cells) == 12
    assert larger.cells[1, 0] == whole.cells[1, 0]
    assert [run["kind"] for run in second.search("me")] == ["sweep", "sweep"] and second.search("you") == []


def test_times_of_another_device_or_other_weights_are_not_taken(history, monkeypatch):
    plan, device = read_plan(["a cat"], rows="tome", **SMALL), ["a CPU"]
    monkeypatch.setattr(sweeping, "environment", lambda pipe: {"device": device[0], "torch": "1", "system": "any"})
    first = sweeping.prepared(plan, *sweeping.described(models.load("stickers")))
    device[0] = "a GPU"
    other = sweeping.prepared(plan, *sweeping.described(models.load("stickers")))
    assert not set(first.keys.values()) & set(other.keys.values()) and first.environment == {"device": "a CPU", "torch": "1"}
    request = plan.variants[0].request(plan, "a cat", 0)
    assert len({sweeping.key_of(request, {"model": weights}, {}) for weights in ("a", "b")}) == 2


@pytest.mark.parametrize("row, path_of", (
    ("olss(steps=4)", lambda folder: olss.path_of(folder, "olss", 4, 3.0)), ("sdxs", lambda folder: sdxs.path_of(folder) / "unet" / "config.json"),
    ("attention_reuse(schedule=phast)", lambda folder: attention_reuse.schedule_file(folder, 4, 2, "both", "map"))), ids=("olss", "sdxs", "reuse"))
def test_what_was_fitted_anew_beside_the_model_is_run_anew_and_nothing_else(row, path_of, tiny_pipe, tmp_path):
    plan, found = read_plan(["a cat"], rows=f"{row},attention_reuse", **SMALL), []
    with at_home(tiny_pipe, tmp_path / "stickers" / "model") as folder:
        path_of(folder).parent.mkdir(parents=True)
        for content in (None, "{}", "[ ]", "{}"):
            if content:
                path_of(folder).write_text(content)
            found.append([sweeping.prepared(plan, *sweeping.described(tiny_pipe)).keys[v, 0] for v in range(3)])
    full, own, other = zip(*found)
    assert len(set(full)) == len(set(other)) == 1 and len(set(own)) == 3 and own[1] == own[3]


def test_a_schedule_that_was_missing_is_used_once_it_is_there_and_another_one_after_it(history, tiny_pipe, tmp_path, monkeypatch):
    plan, ran, generate = read_plan(["a cat"], rows="attention_reuse(schedule=phast)", steps=4, size=128), [], sweeping.generate

    def counted(pipe, request, stack, *more, **others):
        ran.append(stack_text(stack))
        return generate(pipe, request, stack, *more, **others)
    monkeypatch.setattr(sweeping, "generate", counted)
    with at_home(tiny_pipe, tmp_path / "stickers" / "model") as folder:
        first = all_of(plan, history)
        assert "There is no searched schedule" in first.cells[1, 0]["error"]
        k = attention_reuse.hurry(4, round(attention_reuse.Knobs().share * 4)).count(0)
        path = attention_reuse.schedule_file(folder, 4, k, "both", "map")
        path.parent.mkdir()
        told, found = {"weights": fitted.weights(folder), "settings": {"scheduler": type(tiny_pipe.scheduler).__name__}}, []
        for schedule in ("1" * (4 - k) + "0" * k, "10" + "1" * (3 - k) + "0" * (k - 1)):
            path.write_text(json.dumps(told | {"schedule": schedule}))
            ran.clear()
            found += [all_of(plan, history), all_of(plan, history)]
            assert ran == ["attention_reuse(schedule=phast)"] and found[-1].cells[1, 0]["error"] is None
    assert len({history.picture_of(sweep.keys[1, 0]).read_bytes() for sweep in found}) == 2


def test_what_had_no_room_is_tried_again(history, monkeypatch):
    plan = read_plan(["a cat"], rows="attention_reuse", **SMALL)
    with monkeypatch.context() as full:
        full.setattr(attention_reuse, "FILL", 0.0)
        told = all_of(plan, history)
    assert "GiB of memory" in told.cells[1, 0]["error"]
    assert sweeping.kept(history, history.search("me")[0]).cells == told.cells
    assert all_of(plan, history).cells[1, 0]["error"] is None


def test_a_cell_is_the_same_picture_as_compare_makes(history):
    from PIL import Image

    from fastviz.compare import compare, final

    plan = read_plan(["a cat"], "3", rows="tome", **SMALL)
    done = all_of(plan, history)
    rows = final(compare(plan.variants[1].request(plan, "a cat", 3)))
    for v, row in enumerate(rows):
        with Image.open(history.picture_of(done.keys[v, 0])) as picture:
            assert np.array_equal(np.asarray(picture), np.asarray(row.image))
        assert done.cells[v, 0]["gflop"] == row.flops / 1e9 and done.cells[v, 0]["ssim"] == row.metrics["ssim"]
    assert "kept" not in sweeping.table(done) and done.cells[0, 0]["psnr"] == sweeping.EQUAL


def test_what_fails_says_so_and_is_tried_again(history, monkeypatch):
    plan, generate, broken = read_plan(["a cat"], rows="tome,attention_reuse(schedule=1)", **SMALL), sweeping.generate, [True]

    def failing(pipe, request, stack, *more, **others):
        if stack_text(stack) == "tome" and broken[0]:
            raise MemoryError
        return generate(pipe, request, stack, *more, **others)
    monkeypatch.setattr(sweeping, "generate", failing)
    told = all_of(plan, history).cells
    assert told[0, 0]["error"] is None and "Out of memory" in told[1, 0]["error"] and "digits" in told[2, 0]["error"]
    assert history.cell(sweeping.prepared(plan, *sweeping.described(models.load("stickers"))).keys[2, 0])["error"] == told[2, 0]["error"]
    broken[0] = False
    done = all_of(plan, history)
    assert done.cells[1, 0]["error"] is None and done.cells[2, 0] == told[2, 0] and "digits" in sweeping.table(done)


def test_figures_pair_every_run_with_the_full_model_of_its_prompt_and_seed():
    plan = read_plan(["a cat"], "0-1", rows="tome", **SMALL)
    cells = {(0, 0): {"seconds": 4.0, "lpips": 0.0, "error": None}, (0, 1): {"seconds": 8.0, "lpips": 0.0, "error": None},
             (1, 0): {"seconds": 2.0, "lpips": 0.2, "error": None}, (1, 1): {"seconds": 4.0, "lpips": 0.4, "error": None}}
    done = sweeping.Sweep(plan, {"device": "a CPU", "workers on a machine": 2}, dict.fromkeys(cells, "k"), cells)
    full, tome = sweeping.figures(done)
    assert tome["figures"]["speedup"] == (2.0, 2.0, 2.0) and tome["figures"]["lpips"][0] == pytest.approx(0.3)
    assert full["front"] and tome["front"] and tome["figures"]["match"] is None and tome["pictures"] == 2
    files = sweeping.tables(done)
    lines = list(csv.DictReader(io.StringIO(files["cells.csv"].decode())))
    assert [(line["row"], line["seed"], line["seconds"], line["device"]) for line in lines] == [
        ("full", "0", "4.0", "a CPU"), ("full", "1", "8.0", "a CPU"), ("tome", "0", "2.0", "a CPU"), ("tome", "1", "4.0", "a CPU")]
    typed = parquet.read_table(io.BytesIO(files["cells.parquet"])).to_pylist()
    assert [line["seconds"] for line in typed] == [4.0, 8.0, 2.0, 4.0] and list(typed[0]) == list(lines[0]) and typed[0]["psnr"] is None
    assert {line["workers on a machine"] for line in lines} == {"2"}
    assert "2.00 (2.00 to 2.00)" in sweeping.table(done) and "a CPU" in sweeping.table(done)
    json.dumps(sweeping.plain(done), allow_nan=False)


def test_steps_that_were_asked_for_and_steps_that_ran_are_two_columns():
    plan = read_plan(["a cat"], rows="few_step(steps=1)", vary=["steps=2,4"], size=128)
    cells = {(v, 0): {"steps": steps, "seconds": 1.0, "error": None} for v, steps in enumerate((2, 4, 1, 1))}
    files = sweeping.tables(sweeping.Sweep(plan, {}, dict.fromkeys(cells, "k"), cells))
    head, *lines = csv.reader(io.StringIO(files["cells.csv"].decode()))
    assert len(set(head)) == len(head)
    assert [(line[head.index("steps")], line[head.index("steps taken")]) for line in lines] == [("2", "2"), ("4", "4"), ("2", "1"), ("4", "1")]
    typed = parquet.read_table(io.BytesIO(files["cells.parquet"])).to_pylist()
    assert [(line["steps"], line["steps taken"]) for line in typed] == [("2", 2), ("4", 4), ("2", 1), ("4", 1)]


# Statistics

def test_intervals_cover_the_mean_as_often_as_they_say():
    rng, hits = np.random.default_rng(1), 0
    for i in range(200):
        _, low, high = intervals(rng.normal(size=(1, 30)), draws=400, seed=i)[0]
        hits += low <= 0 <= high
    assert 0.87 <= hits / 200 <= 0.99


def test_draws_are_paired():
    """Two variants that differ by a constant have intervals that differ by it exactly."""
    values = np.random.default_rng(0).normal(size=12)
    one, two = intervals([values, values + 5])
    assert np.allclose(np.array(two) - np.array(one), 5)


def test_a_single_value_has_no_interval_and_none_is_none():
    assert intervals([[3.0], [np.nan]]) == [(3.0, None, None), None]
    assert intervals([[1.0, np.nan, 3.0]])[0][0] == 2.0 and intervals([[2.0, 2.0, 9.0]], np.nanmedian)[0][0] == 2.0


@given(st.lists(st.one_of(st.none(), st.tuples(st.integers(0, 5), st.integers(0, 5))), max_size=12))
def test_the_front_is_what_nothing_beats(points):
    found = front(points)
    for i, point in enumerate(points):
        beaten = point is None or any(other and other != point and other[0] <= point[0] and other[1] <= point[1] for other in points)
        assert (i in found) == (not beaten)
