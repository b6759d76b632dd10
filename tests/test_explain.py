"""Why it is not faster: every operator of a profile in one class, shares that add up, and Amdahl's bound."""

import json

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from fastviz import cost, models
from fastviz.compare import Row, compare, final
from fastviz.explore import explain
from fastviz.explore.classes import CLASSES, place, spent
from fastviz.methods import METHODS, atedm, attention_reuse, full, tome
from fastviz.patch import transformer_blocks
from fastviz.ranges import OWN, PART, SCHEDULER, UNET
from fastviz.request import Request, parse_stack
from fastviz.run import generate

REQUEST = Request("a cat", size=128, steps=4, repeats=1, methods="full,tome,attention_reuse,few_step(steps=2)")


def events_of(pipe, text, steps=1):
    with profile(activities=[ProfilerActivity.CPU]) as recorder:
        run = generate(pipe, REQUEST, parse_stack(text), steps, profiled=True)
    return recorder.events(), run


def kinds(events):
    """{name of an operator: the classes of its events that are at work themselves}, as `spent` places them."""
    found, places = {}, {}
    for event in sorted(events, key=lambda event: (event.time_range.start, -event.time_range.end)):
        places[id(event)] = place(event.name, places.get(id(event.cpu_parent), ("between", "")))
        found.setdefault(event.name, set()).add(places[id(event)][0])
    return found


def test_every_operator_of_a_real_step_lands_in_its_class(tiny_pipe):
    events, _ = events_of(tiny_pipe, "full")
    found = kinds(events)
    assert {kind for each in found.values() for kind in each} <= set(CLASSES)
    for name, kind in (("aten::conv2d", "convolution"), ("aten::mkldnn_convolution", "convolution"), ("aten::linear", "linear"),
                       ("aten::addmm", "linear"), ("aten::scaled_dot_product_attention", "attention"), ("aten::layer_norm", "norm"),
                       ("aten::native_group_norm", "norm"), ("aten::silu", "norm"), ("aten::cat", "other"), (SCHEDULER, "scheduler"), (UNET, "between")):
        if name in found:
            assert found[name] - {"scheduler"} <= {kind} or kind == "scheduler", (name, found[name])
    assert {"aten::conv2d", "aten::linear", "aten::scaled_dot_product_attention", "aten::group_norm", SCHEDULER, UNET} <= set(found)
    assert "own" not in {kind for each in found.values() for kind in each}


def test_attention_is_attention_however_it_is_computed(tiny_pipe):
    """By the fused kernel, by torch's composite of it, and with its map made in memory, as reuse does."""
    fused = spent(events_of(tiny_pipe, "full")[0], False)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        composite = kinds(events_of(tiny_pipe, "full")[0])
    stored = kinds(events_of(tiny_pipe, "attention_reuse(share=0.5)", 2)[0])
    assert sum(took for (kind, part), took in fused.items() if kind == "attention" and part.endswith((".attn1", ".attn2"))) > 0
    assert not any(kind == "attention" and not part.endswith((".attn1", ".attn2")) for kind, part in fused)
    assert composite["aten::_softmax"] == {"attention"} and "attention" in composite["aten::bmm"]
    assert "attention" in stored["aten::bmm"] and {kind for name in stored if "softmax" in name for kind in stored[name]} == {"attention"}


@pytest.mark.parametrize("text, work, operator", (("tome", "matching", "aten::topk"), ("tome", "merging", "aten::embedding_bag"), ("tome", "matching", "aten::bmm"),
                                                  ("atedm(tau=0)", "ranking", "aten::argsort")))
def test_what_a_method_adds_is_its_own_work(tiny_pipe, text, work, operator):
    events, _ = events_of(tiny_pipe, text)
    found = kinds(events)
    assert OWN + work in found and "own" in found[operator]
    assert not any(event.name == UNET or event.name.startswith(PART) for own in events if own.name.startswith(OWN) for event in own.cpu_children)


def test_ranges_are_there_only_in_a_profiled_run(tiny_pipe):
    with profile(activities=[ProfilerActivity.CPU]) as recorder:
        plain = generate(tiny_pipe, REQUEST, parse_stack("tome+atedm"), 2)
    assert not any(event.name.startswith("fastviz.") for event in recorder.events())
    before = dict(tiny_pipe.unet.__dict__)
    told = generate(tiny_pipe, REQUEST, parse_stack("tome+atedm"), 2, profiled=True)
    assert torch.equal(plain.latents, told.latents) and plain.image.tobytes() == told.image.tobytes()
    assert set(tiny_pipe.unet.__dict__) == set(before)


def test_classes_add_up_to_the_whole_stretch(tiny_pipe):
    events, _ = events_of(tiny_pipe, "tome")
    spans = spent(events, False)
    unet = next(event for event in events if event.name == UNET)
    after = [event for event in events if event.time_range.start >= unet.time_range.start]
    whole = (max(event.time_range.end for event in after) - unet.time_range.start) / 1e6
    assert sum(spans.values()) == pytest.approx(whole, rel=1e-6) and min(spans.values()) >= 0


# The rows

@pytest.fixture(scope="module")
def told(tiny_pipe):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models._loaded, "stickers", tiny_pipe)
        rows = final(compare(REQUEST))
        yield rows, list(explain.explain(REQUEST, rows))


def test_the_seconds_of_each_row_are_its_measured_time(told):
    rows, found = told
    assert [each.stack for each in found] == [row.stack for row in rows] and not any(each.error for each in found)
    for row, each in zip(rows, found):
        assert sum(each.seconds.values()) == pytest.approx(row.seconds) and list(each.seconds) == list(CLASSES)
    assert found[0].seconds["own"] == 0 < found[1].seconds["own"]
    assert found[0].own == {} and found[0].saved is None and set(found[1].own) == {"matching", "merging"}
    for row, each in zip(rows[1:], found[1:]):
        assert sum(each.own.values()) == pytest.approx(each.seconds["own"])
        assert each.saved - each.seconds["own"] == pytest.approx(rows[0].seconds - row.seconds)
    assert found[0].touched is None and found[0].bound is None and found[0].growth == {}


def test_what_its_own_work_costs_and_saves_is_told_in_words():
    told = explain.Breakdown(1, "tome", "Token merging", 50, seconds={"own": 0.5}, own={"matching": 0.4, "merging": 0.1}, saved=1.25)
    assert explain.balance(told) == "Its own work takes 0.50 s, 0.40 s for matching and 0.10 s for merging, and saves 1.25 s elsewhere."
    told.own, told.saved = {"ranking": 0.5}, -0.1
    assert explain.balance(told) == "Its own work, ranking, takes 0.50 s and saves nothing elsewhere."


def test_what_can_be_touched_grows_with_the_picture_and_bounds_the_speed(told):
    _, found = told
    for each in found[1:]:
        assert 0 < each.touched < 1 and each.bound == pytest.approx(1 / (1 - each.touched))
        assert list(each.growth) == list(explain.SIZES) and list(each.growth.values()) == sorted(each.growth.values())
        assert 0 < each.growth[256] < 1
    assert found[2].touched < found[3].touched  # half of the steps' attention, and all steps
    assert all(each.error is None and explain.verdict(each).endswith(".") for each in found)
    assert set(json.loads(json.dumps([explain.plain(each) for each in found]))[1]["growth"]) == set(map(str, explain.SIZES))
    assert all(type(size) is str for each in found for size in explain.plain(each)["growth"])


def test_touched_flops_are_those_of_the_modules(tiny_pipe):
    """All of the U-Net is one step's count; attention's projections and products by the textbook."""
    whole, step = cost.inside(tiny_pipe, REQUEST, 128, [""]), cost.flops(tiny_pipe, REQUEST, (full.Knobs(),), 1)
    assert whole["inside"] == whole["step"] == step["steps"][0] and (whole["text"], whole["decoder"]) == (step["text"], step["decoder"])
    name, block, size = transformer_blocks(tiny_pipe.unet, (16, 16))[0]
    n, c = size[0] * size[1], block.attn1.to_q.out_features
    one = cost.inside(tiny_pipe, REQUEST, 128, [f"{name}.attn1", f"{name}.attn1.to_q"])
    assert one["inside"] == 2 * 2 * (4 * n * c * c + 2 * n * n * c)
    assert cost.inside(tiny_pipe, REQUEST, 128, [])["inside"] == 0


@pytest.mark.parametrize("method", [method for method in METHODS if method.ROLE == "patch"], ids=lambda method: method.KEY)
def test_patches_touch_modules_that_there_are(tiny_pipe, method):
    names = method.touched(tiny_pipe.unet, (16, 16), method.Knobs())
    assert all(tiny_pipe.unet.get_submodule(name) is not None for name in names)
    assert bool(names) == (method is not full) and not method.touched(tiny_pipe.unet, (16, 16), method.NEUTRAL) or method is attention_reuse


def test_what_is_touched_follows_the_settings(tiny_pipe):
    touched = tome.touched(tiny_pipe.unet, (16, 16), tome.Knobs(merge_self=False, merge_cross=True))
    assert touched and all(name.endswith(".attn2") for name in touched)
    assert all(not name.endswith("transformer_blocks.0") for name in atedm.touched(tiny_pipe.unet, (16, 16), atedm.Knobs()))


def test_what_brings_its_own_weights_touches_what_it_replaces(tiny_pipe):
    """By hand: of 10 s, 6 are the network's, 1 the scheduler's, 2 the decoder's and 1 the text encoder's."""
    row, full_time = Row(1, "", "", 4), {("linear", "x.attn1"): 6.0, ("scheduler", ""): 1.0, ("decoder", ""): 2.0, ("text", ""): 1.0}
    for stack, wanted in (("sdxs", 0.9), ("sdxs(decoder=false)", 0.7), ("sdxs(unet=false)", 0.2), ("few_step", 0.7)):
        assert explain.touched_time(tiny_pipe, REQUEST, parse_stack(stack), row, full_time) == pytest.approx(wanted), stack
    counts = cost.flops(tiny_pipe, REQUEST, (full.Knobs(),), REQUEST.steps)
    assert explain.touched_flops(tiny_pipe, REQUEST, parse_stack("sdxs(unet=false)"), row, 128) == pytest.approx(counts["decoder"] / cost.total(counts))


def test_steps_are_chosen_of_every_kind_and_stand_for_the_others():
    labels = ["first"] + ["a"] * 9 + ["b"] * 10
    steps = explain.chosen(labels)
    assert steps[0] == 0 and {labels[step] for step in steps} == {"first", "a", "b"} and len(steps) <= explain.PROFILED
    assert explain.chosen(["a"]) == [0] and 0 not in explain.chosen(["a"] * 20)
    many = explain.chosen(list(range(50)))
    assert len(many) == explain.PROFILED and many == sorted(set(many))
    assert explain.stand_in(9, "a", labels, [0, 3, 11]) == 3 and explain.stand_in(12, "b", labels, [0, 3]) == 3


def test_shares_of_a_step_are_put_on_its_own_time():
    """By hand: two steps of 1 s and 3 s, of two kinds; the text encoder and the decoder as measured."""
    row = Row(0, "full", "Full model", 2, seconds=5.0, per_step=(1.0, 3.0), parts={"text": 0.4, "denoising": 4.0, "decoder": 0.6})
    found = {0: {("linear", ""): 0.2, ("between", ""): 0.2}, 1: {("attention", "x.attn1"): 3.0, ("linear", ""): 1.0}}
    seconds = explain.by_class(explain.seconds_of(row, ["a", "b"], found))
    wanted = {"linear": 0.5 + 0.75, "between": 0.5, "attention": 2.25, "text": 0.4, "decoder": 0.6}
    assert seconds == pytest.approx(dict.fromkeys(CLASSES, 0.0) | wanted)


def test_a_row_that_cannot_be_profiled_says_so(told, tiny_pipe, monkeypatch):
    monkeypatch.setitem(models._loaded, "stickers", tiny_pipe)
    profiles = explain.profiles

    def failing(pipe, request, stack, *others):
        if stack[0] != full.Knobs():
            raise MemoryError
        return profiles(pipe, request, stack, *others)

    monkeypatch.setattr(explain, "profiles", failing)
    found = list(explain.explain(REQUEST, told[0][:2]))
    assert found[0].error is None and "Out of memory" in found[1].error and explain.verdict(found[1]) == found[1].error
    assert "Convolutions" in explain.table(found)
