"""The boundary: whatever comes in, a Request that holds its own bounds or BadRequest with one sentence."""

import dataclasses
import json
import unicodedata

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastviz.methods import METHODS, attention_reuse, few_step, full, method_of, tome
from fastviz.models import MODELS
from fastviz.request import (
    METHODS_LENGTH, PROMPT_LENGTH, ROWS, BadRequest, Request, check_prompt, methods_text, parse_stack, split, stack_keys, stack_text)

FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"
REFUSED_PROMPTS = ["", " ", "\n\t ", "a" * 301, "a" * 1_000_000, "cat\0dog", "\ud800", "cat\ud83d", "cat \u202edog", "two\nlines", "a\u2028b",
                   "\u2066cat", "bell\x07", "\x85cat\x9bdog", {"prompt": "cat"}, ["cat"], None, True, 7, b"cat", float("nan")]
ACCEPTED_PROMPTS = ["a", "a" * 300, FAMILY * 20, "e" + "\u0301" * 100, "{{7*7}} ${x}", "<script>alert(1)</script>", "../../etc/passwd",
                    "file:///etc/passwd", "http://example.org/a?b=c", "%s%n {0.__class__}", "שלום עולם", "猫和披萨", "\uf8ff apple"]
NUMBERS = [-1, 1.5, 2**32, 10**400, -10**400, float("nan"), float("inf"), -float("inf"), "1", "\uff11", None, True, [1], {"a": 1}, 1j]


def sentence(error):
    """A sentence for people: one line, ends with a full stop or as the example prompt does, free of control characters."""
    text = str(error)
    return text.endswith(".") and len(text) < 1000 and not any(unicodedata.category(c) in ("Cc", "Cs") for c in text) and error.field


@pytest.mark.parametrize("prompt", REFUSED_PROMPTS, ids=lambda p: ascii(p)[:20])
def test_a_bad_prompt_gets_a_sentence(prompt):
    with pytest.raises(BadRequest) as told:
        Request(prompt)
    assert sentence(told.value) and told.value.field == "prompt"


@pytest.mark.parametrize("prompt", ACCEPTED_PROMPTS, ids=lambda p: ascii(p)[:20])
def test_an_odd_but_harmless_prompt_passes_unchanged(prompt):
    assert Request(prompt).prompt == unicodedata.normalize("NFC", prompt)


@given(st.text(st.characters(), max_size=320))
@example("\u0958" * 300)  # grows when normalised
@settings(max_examples=300)
def test_a_prompt_that_passes_is_what_it_promises(text):
    try:
        prompt = check_prompt(text)
    except BadRequest as told:
        assert sentence(told)
        return
    assert 1 <= len(prompt) <= PROMPT_LENGTH and prompt.encode() and unicodedata.is_normalized("NFC", prompt)
    assert not any(unicodedata.category(c) == "Cc" for c in prompt)
    assert check_prompt(prompt) == prompt == check_prompt(unicodedata.normalize("NFD", text))


@pytest.mark.parametrize("field", ["seed", "steps", "guidance", "size", "repeats"])
@pytest.mark.parametrize("value", NUMBERS, ids=lambda v: ascii(v)[:12])
def test_a_bad_number_gets_a_sentence(field, value):
    if (field, value) in [("guidance", 1.5), ("guidance", None), ("size", None), ("steps", None)]:
        return
    with pytest.raises(BadRequest) as told:
        Request("a cat", **{field: value})
    assert sentence(told.value) and told.value.field == field


@given(st.one_of(st.integers(), st.floats(), st.text(max_size=5), st.none(), st.booleans()))
def test_a_seed_is_never_rounded(value):
    try:
        request = Request("a cat", seed=value)
    except BadRequest as told:
        assert sentence(told)
        return
    assert request.seed == value and type(request.seed) is int and 0 <= request.seed < 2**32


def test_the_bounds_themselves_pass_and_their_neighbours_do_not():
    for field, low, high in (("seed", 0, 2**32 - 1), ("steps", 1, 100), ("guidance", 1, 20), ("repeats", 1, 20)):
        for value in (low, high):
            assert getattr(Request("a cat", **{field: value}), field) == value
        for value in (low - 1, high + 1):
            with pytest.raises(BadRequest):
                Request("a cat", **{field: value})
    assert {Request("a cat", size=size).size for size in MODELS["stickers"].sizes} == set(MODELS["stickers"].sizes)
    with pytest.raises(BadRequest):
        Request("a cat", size=200)


@pytest.mark.parametrize("model", ["", "../model", "runwayml/stable-diffusion-v1-5", "http://x", None, 3, ["stickers"], {}])
def test_only_models_of_the_table(model):
    with pytest.raises(BadRequest) as told:
        Request("a cat", model=model)
    assert told.value.field == "model"


REFUSED_METHODS = [
    "nothing", "full,full(x=1)", "tome,tome", "tome+tome", "full+tome", "few_step+few_step", "tome(", "tome(ratio)", "tome(ratio=)", "tome(ratio=x)",
    "tome(ratio=0.5,ratio=0.5)", "tome(ratio=2)", "tome(ratio=nan)", "tome(ratio=inf)", "tome(ratio=1_0)", "tome(ratio=\uff11)", "tome(sx=1.5)",
    "tome(sx=" + "9" * 5000 + ")", "tome(random=1)", "tome(__class__=1)", "few_step(solver=euler)", "few_step(match=nobody)", "few_step(match=few_step)",
    "few_step(match=\ud800)", "attention_reuse(schedule=0110)", "attention_reuse(schedule=" + "1" * 301 + ")", "few_step(match=(tome))",
    ",".join(f"few_step(steps={n})" for n in range(1, ROWS + 1)), "x" * (METHODS_LENGTH + 1), "+", "tome+", "()", "a)b(,c", "\0",
    7, {"full": 1}, [], [(tome.Knobs(),)], ("tome",), ((),), (("tome",),), ((tome.Knobs,),), ((tome.Knobs(), 3),), b"tome",
    ((tome.Knobs(ratio="0.5"),),), ((tome.Knobs(ratio=float("nan")),),), ((tome.Knobs(ratio=[0.5]),),), ((tome.Knobs(random=1),),),
    ((few_step.Knobs(solver=["dpm"]),),), ((few_step.Knobs(match=None),),), ((few_step.Knobs(steps=10**400),),), ((few_step.Knobs(match="a,b"),),),
]


@pytest.mark.parametrize("methods", REFUSED_METHODS, ids=lambda m: ascii(m)[:30])
def test_bad_methods_get_a_sentence(methods):
    with pytest.raises(BadRequest) as told:
        Request("a cat", methods=methods)
    assert sentence(told.value) and told.value.field == "methods"


def test_a_knobs_class_made_elsewhere_is_refused():
    class Mine(tome.Knobs):
        pass

    with pytest.raises(BadRequest):
        Request("a cat", methods=((Mine(),),))


def test_the_full_model_is_always_first_and_once():
    for text in ("", "full", "tome", "tome,full", "full,tome"):
        assert Request("a cat", methods=text).methods[0] == (full.Knobs(),)
        assert Request("a cat", methods=text).methods.count((full.Knobs(),)) == 1


def test_stacks_and_settings_are_read():
    request = Request("a cat", methods="tome(ratio=0.4, random=FALSE)+attention_reuse, few_step( match = tome+attention_reuse )")
    assert request.methods[1] == (tome.Knobs(ratio=0.4, random=False), attention_reuse.Knobs())
    assert stack_keys(request.methods[1]) == "tome+attention_reuse"
    assert request.methods[2] == (few_step.Knobs(match="tome+attention_reuse"),)
    assert type(Request("a cat", methods=((few_step.Knobs(steps=15.0),),)).methods[1][0].steps) is int


def value_of(field):
    """A strategy for the good values of one field of a Knobs dataclass."""
    told = field.metadata
    if told["kind"] == "number":
        low, high = told["low"], told["high"]
        return st.integers(low, high) if isinstance(field.default, int) else st.floats(low, high)
    if told["kind"] == "choice":
        return st.sampled_from(list(told["options"]))
    return st.booleans() if told["kind"] == "switch" else st.just(field.default)


KNOBS = [st.builds(method.Knobs, **{field.name: value_of(field) for field in dataclasses.fields(method.Knobs)})
         for method in METHODS if method is not full]


def alone(knobs):
    """What a stack may hold only one of: a method, and a scheduler or weights that bring their own."""
    return "scheduler" if method_of(knobs).ROLE in ("scheduler", "weights") else type(knobs)


@given(st.lists(st.sampled_from(KNOBS).flatmap(lambda knobs: knobs), min_size=1, max_size=3, unique_by=alone).map(tuple))
def test_a_stack_is_read_back_from_its_text(stack):
    assert parse_stack(stack_text(stack)) == stack
    request = Request("a cat", methods=(stack,))
    assert Request("a cat", methods=methods_text(request.methods)) == request


def test_the_longest_rows_fit_into_the_text_that_is_accepted():
    long = [tuple(knobs for knobs in (
        tome.Knobs(ratio=0.1234567890123456 + i / 100, max_downsample=8, merge_cross=True, merge_mlp=True, sx=8, sy=8, random=False,
                   merge_self=False, every=100, floor=-0.1234567890123456, finest=False),
        attention_reuse.Knobs(share=0.1234567890123456, maps="cross", keep="output", schedule="1" * PROMPT_LENGTH),
        few_step.Knobs(solver="unipc", steps=100))) for i in range(ROWS - 1)]
    request = Request("a cat", methods=tuple(long))
    assert Request("a cat", methods=methods_text(request.methods)).methods == request.methods


@given(st.text("fulltomeattention_reusefew_step(),+= .0123456789", max_size=60))
@settings(max_examples=300)
def test_any_text_is_either_read_or_refused_with_a_sentence(text):
    try:
        request = Request("a cat", methods=text)
    except BadRequest as told:
        assert sentence(told)
        return
    assert Request("a cat", methods=methods_text(request.methods)) == request


@given(st.recursive(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8)),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3), max_leaves=6),
       st.sampled_from([field.name for field in dataclasses.fields(Request)]))
@settings(max_examples=300)
def test_no_value_of_json_in_any_field_does_anything_but_pass_or_be_refused(value, field):
    try:
        request = Request(**{"prompt": "a cat", field: json.loads(json.dumps(value))})
    except BadRequest as told:
        assert sentence(told)
    else:
        assert hash(request) == hash(Request(**dataclasses.asdict(request) | {"methods": request.methods}))


@given(st.text("ab(),", max_size=20))
def test_split_loses_nothing(text):
    assert ",".join(split(text, ",")) == text


def test_a_request_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Request("a cat").seed = 3


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.KEY)
def test_every_knob_declares_what_its_control_needs(method):
    for field in dataclasses.fields(method.Knobs):
        told = field.metadata
        assert told["says"].endswith(".") and isinstance(told["tinker"], bool)
        if told["kind"] == "number":
            assert told["low"] <= field.default <= told["high"] and told["step"] > 0
        elif told["kind"] == "choice":
            assert field.default in told["options"] and all(told["options"].values())
        else:
            assert isinstance(field.default, {"switch": bool, "text": str}[told["kind"]])
