"""Searching reuse schedules: exact where mathematics says so, bit for bit where runs share a beginning, resumable."""

import copy
import functools
import itertools
import json
import math
import random
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from hypothesis import given
from hypothesis import strategies as st

from fastviz import __main__ as command
from fastviz import cost, fitted, metrics, models, reading, store, verified, views
from fastviz.methods import attention_reuse, few_step, full
from fastviz.methods.attention_reuse import Knobs, hurry
from fastviz.patch import Refused, replaced
from fastviz.request import BadRequest, Request
from fastviz.run import generate
from fastviz.search import additive, held_out, prompts, reuse, schedules, session
from fastviz.search.climb import OutOfTime, Plan, Search, State
from fastviz.search.sampler import EQUAL, Sampler, closeness, mse, shared
from fastviz.trace import Context, Trace

STEPS = 6
EVERY = [(1, *tail) for tail in itertools.product((1, 0), repeat=STEPS - 1)]


@pytest.fixture(scope="module")
def tiny(tiny_pipe, tmp_path_factory):
    """The tiny pipeline with a still smaller U-Net, of three transformer blocks, in a folder of its own, loaded from there
    under the key `tiny`."""
    folder = tmp_path_factory.mktemp("assets") / "tiny" / "model"
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(32, 32), layers_per_block=1, norm_num_groups=16,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        mid_block_type=None, attention_head_dim=2, cross_attention_dim=32, use_linear_projection=True).eval()
    with replaced(copy.copy(tiny_pipe), unet=unet) as smaller:
        smaller.save_pretrained(folder)
    verified.write_hashes(folder.parent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, "tiny", models.Model("tiny", "Tiny", str(folder), 64, (64, 128), STEPS, 1.0,
                                                          "Apache-2.0", closed=True))
        patch.setattr(models, "_loaded", {})
        yield models.load("tiny")


def asked(count, **told):
    texts = ("a cat", "an owl at night", "a big robot in the snow", "a tent")[:count]
    return [Request(text, seed=i, model="tiny", methods="full", **{"steps": STEPS, **told}) for i, text in enumerate(texts)]


@pytest.fixture(scope="module")
def sampler(tiny):
    return Sampler(tiny, asked(2))


@pytest.fixture(scope="module")
def whole(sampler):
    return sampler.run((1,) * STEPS)


def counted(sampler, *args, **told):
    """(Path, steps of the network that the run took)."""
    steps = []
    sampler.on_step = steps.append
    path = sampler.run(*args, **told)
    del sampler.on_step
    return path, len(steps)


def equal(path, other):
    return all(torch.equal(a, b) for a, b in zip(path.latents, other.latents, strict=True))


# Schedules

tables = st.integers(2, 8).flatmap(lambda n: st.tuples(*(
    st.lists(st.floats(0, 10), min_size=0, max_size=n - j - 1).map(lambda costs: [0.0, *costs]) for j in range(n))))


@given(tables, st.data())
def test_dynamic_programming_is_brute_force(table, data):
    n = len(table)
    k = data.draw(st.integers(0, n - 1))
    rivals = [(1, *tail) for tail in itertools.product((0, 1), repeat=n - 1) if tail.count(0) == k]
    least = min(schedules.cost(gamma, table) for gamma in rivals)
    found = schedules.cheapest(table, n, k)
    if least == math.inf:
        assert found is None
    else:
        assert found in rivals and schedules.cost(found, table) == pytest.approx(least)


def test_the_cost_of_a_schedule_is_that_of_its_segments():
    gamma = (1, 0, 0, 1, 1, 0)
    assert schedules.segments(gamma) == [(0, 2), (3, 0), (4, 1)]
    table = [[0, 1, 5, 9, 9, 9], [0], [0], [0, 2, 2], [0, 7], [0]]
    assert schedules.cost(gamma, table) == 12 and schedules.cost((1, 0, 1, 0, 1, 1), table) == math.inf


@given(st.integers(2, 60), st.data())
def test_even_schedules_and_swaps_keep_the_number_of_reuses(steps, data):
    k = data.draw(st.integers(1, steps - 1))
    gamma = schedules.even(steps, k)
    assert gamma[0] == 1 and gamma.count(0) == k and len(gamma) == steps
    ages = [l for _, l in schedules.segments(gamma)]
    assert max(ages) - min(ages) <= 1
    moves = schedules.swaps(gamma)
    assert len(set(moves)) == len(moves) == k * (steps - k - 1)
    for other in random.Random(0).sample(moves, min(5, len(moves))):
        assert other[0] == 1 and other.count(0) == k and sum(a != b for a, b in zip(gamma, other)) == 2
    assert schedules.read(schedules.text(gamma)) == gamma


# Shared beginnings

def test_one_prompt_is_the_run_that_the_page_makes(tiny):
    request, = asked(1, guidance=3.0)
    one = Sampler(tiny, [request])
    for schedule in ("111111", "110100"):
        run = generate(tiny, request, (Knobs(schedule=schedule),), STEPS)
        path = one.run(schedules.read(schedule))
        assert torch.equal(path.latents[-1], run.latents)
        assert one.pictures(path)[0].tobytes() == run.image.tobytes()


@pytest.mark.parametrize("maps, keep", (("both", "map"), ("self", "output"), ("cross", "map")))
def test_a_shared_beginning_changes_no_bit(tiny, maps, keep):
    draw, sampler = random.Random(maps), Sampler(tiny, asked(2, guidance=3.0), maps, keep)
    for near, gamma in [draw.sample(EVERY, 2) for _ in range(5)] + [(hurry(STEPS, 3), (1, 1, 1, 0, 1, 0))]:
        known = sampler.run(near)
        path, steps = counted(sampler, gamma, [sampler.run((1,) * STEPS), known])
        assert equal(path, sampler.run(gamma)), (near, gamma)
        begin = max(shared(gamma, near), shared(gamma, (1,) * STEPS))
        assert steps == STEPS - begin + (begin < STEPS and not gamma[begin])


def test_a_run_to_the_middle_goes_on_from_there(sampler, whole):
    gamma = (1, 1, 0, 0, 0, 0)
    half, steps = counted(sampler, gamma, [whole], until=4)
    assert len(half.latents) == 5 and steps == 3
    path, steps = counted(sampler, gamma, [whole, half])
    assert equal(path, sampler.run(gamma)) and steps == 3  # the map of step 1, steps 4 and 5


def test_a_storing_step_does_not_begin_like_a_computing_one():
    assert shared((1, 1, 0), (1, 1, 1)) == 1 and shared((1, 0, 0), (1, 0, 1)) == 2 and shared((1, 0), (1, 0)) == 2


def test_other_schedulers_are_refused(tiny):
    with few_step.attach(tiny, few_step.Knobs(), Context(STEPS)) as ready, pytest.raises(BadRequest, match="DDIM"):
        Sampler(ready, asked(1))


def test_closeness_is_in_decibel(sampler, whole):
    path = sampler.run(hurry(STEPS, 3), [whole])
    found = closeness(sampler, path, whole, "latent")
    square = ((path.latents[-1] - whole.latents[-1]).double().numpy() ** 2).mean((1, 2, 3))
    np.testing.assert_allclose(found, -10 * np.log10(square))
    assert closeness(sampler, whole, whole, "latent") == closeness(sampler, whole, whole, "psnr") == [EQUAL] * 2
    assert all(20 < value <= EQUAL for value in closeness(sampler, path, whole, "psnr"))


# The additive model

def test_a_last_segment_costs_what_it_does_to_the_result(sampler, whole):
    gain = additive.amplification(sampler, whole)
    assert len(gain) == STEPS + 1 and gain[STEPS] == 1
    table, paths = [[0.0] for _ in range(STEPS)], {}
    for j in range(STEPS - 1):
        while len(table[j]) < STEPS - j:
            additive.extend(sampler, whole, gain, table, j, paths)
        result = sampler.run((1,) * (j + 1) + (0,) * (STEPS - j - 1))
        assert table[j][-1] == pytest.approx(float(mse(result.latents[-1], whole.latents[-1]).mean()))
        alone = sampler.run(additive.single(STEPS, j + 1))  # all steps are measured where there are so few
        assert table[j][1] == pytest.approx(float(mse(alone.latents[-1], whole.latents[-1]).mean()))


@pytest.mark.parametrize("k", (2, 4))
def test_measuring_stops_early_and_finds_the_same_schedule(sampler, whole, k):
    gain = additive.amplification(sampler, whole)
    short, long = ([[0.0] for _ in range(STEPS)] for _ in range(2))
    additive.measure(sampler, whole, gain, short, k)
    additive.measure(sampler, whole, gain, long, STEPS - 1)
    for j, paths in enumerate({} for _ in long):
        while len(long[j]) < STEPS - j:
            additive.extend(sampler, whole, gain, long, j, paths)
    assert sum(map(len, short)) < sum(map(len, long))
    assert schedules.cheapest(short, STEPS, k) == schedules.cheapest(long, STEPS, k)


def test_amplification_is_a_straight_line_in_between():
    points = {2: 0.0, 4: 1.0, 8: -1.0}
    assert [additive.between(i, points) for i in (0, 2, 3, 4, 6, 8, 9)] == [0, 0, 0.5, 1, 0, -1, -1]
    assert additive.tail_steps(2) == [1] and additive.tail_steps(50)[::7] == [1, 49] and len(additive.tail_steps(50)) == 8


# The search

PLAN = Plan(3, "latent", start="hurry", rejects=2, restarts=1)


def searched(tiny, plan, state=None, count=2, **told):
    """A search on `count` prompts, the last one a batch of its own."""
    samplers = [Sampler(tiny, part) for part in (asked(count)[:-1], asked(count)[-1:])]
    return Search(samplers, plan, state or State(), **told).run()


def course(state):
    """What a search found and how, but for the work that it took."""
    told = asdict(state)
    return {name: told[name] for name in told if name not in ("seconds", "steps_run", "history")} | {
        "history": [entry[1:] for entry in state.history]}


@pytest.mark.parametrize("start, objective", (("additive", "psnr"), ("hurry", "latent")))
def test_a_search_is_never_worse_than_its_starts(tiny, start, objective):
    state = searched(tiny, Plan(3, objective, start, rejects=2, restarts=1))
    means = [mean for _, _, mean in state.history]
    assert state.finished and state.starts["HURRY"] == "111000" and len(state.starts) == (5 if start == "additive" else 1)
    assert means == sorted(means) and state.history[-1][1] == state.best
    assert all(np.mean(state.scores[state.best]) >= np.mean(state.scores[digits]) for digits in state.scores)
    assert state.climb == 1 and len(state.tried) == len(set(state.tried)) > len(state.starts) - 3
    whole = Sampler(tiny, asked(2))
    reference, path = whole.run((1,) * STEPS), whole.run(schedules.read(state.best))
    np.testing.assert_allclose(closeness(whole, path, reference, objective), state.scores[state.best], rtol=1e-2)


def test_hurry_and_random_swaps_find_what_is_planted(tiny, monkeypatch):
    """With a score that counts the agreement with one schedule, the search ends there."""
    goal = (1, 0, 1, 0, 1, 0)

    def agreement(sampler, path, reference, objective):
        return [float(sum(a == b for a, b in zip(path.gamma, goal)))] * len(sampler.requests)

    monkeypatch.setattr("fastviz.search.climb.closeness", agreement)
    assert searched(tiny, Plan(3, start="hurry", rejects=9, restarts=0)).best == schedules.text(goal)


def test_a_move_is_given_up_when_the_first_batch_does_not_gain(tiny, monkeypatch):
    batches = []

    def worse(sampler, path, reference, objective):
        batches.append(len(sampler.requests))
        return [1.0 if path.gamma == hurry(STEPS, 3) else 0.0] * len(sampler.requests)

    monkeypatch.setattr("fastviz.search.climb.closeness", worse)
    state = searched(tiny, Plan(3, start="hurry", rejects=3, restarts=0), count=3)
    assert batches == [2, 1, 2, 2, 2] and len(state.tried) == 4 and state.best == "111000"


@pytest.mark.parametrize("start, every", (("additive", 5), ("hurry", 2)))
def test_a_search_that_is_stopped_again_and_again_ends_the_same(tiny, start, every):
    plan = Plan(2, "latent", start, rejects=2, restarts=1)
    expected, state, sessions = searched(tiny, plan), State(), 0
    while not state.finished and sessions < 99:
        saved, sessions = [], sessions + 1

        def save(state):
            saved.append(json.loads(json.dumps(asdict(state))))
            if len(saved) == every:
                raise KeyboardInterrupt
        try:
            searched(tiny, plan, state, save=save)
        except KeyboardInterrupt:
            pass
        state = State(**saved[-1])
    assert sessions > 2 and course(state) == course(expected)


def test_the_time_budget_ends_a_session_but_not_the_search(tiny):
    state, calls = State(), []
    searched(tiny, PLAN, state, save=lambda state: calls.append(1), seconds=0)
    assert len(calls) == 1 and not state.finished and state.best == "111000" and state.seconds > 0
    assert course(searched(tiny, PLAN, state)) == course(searched(tiny, PLAN))


def test_a_device_that_does_not_repeat_itself_is_told(tiny, monkeypatch):
    run, drift = Sampler.step, iter(range(10**6))
    monkeypatch.setattr(Sampler, "step", lambda self, *args: run(self, *args) + 1e-3 * next(drift))
    with pytest.raises(RuntimeError, match="does not repeat itself"):
        searched(tiny, PLAN)


# What was found, on held-out prompts

def test_the_interval_is_the_bootstrap_of_the_mean():
    assert held_out.interval([2.0, 2.0, 2.0]) == [2.0, 2.0]
    gains = np.random.default_rng(1).normal(3, 2, 400)
    low, high = held_out.interval(gains)
    half = 1.96 * gains.std() / 20
    assert abs(low - (gains.mean() - half)) < 0.05 and abs(high - (gains.mean() + half)) < 0.05


@pytest.mark.parametrize("keep", ("map", "output"))
def test_equal_work_is_as_many_steps_as_fit_into_it(tiny, keep):
    request, = asked(1, steps=20)
    knobs = Knobs(schedule="1" + "0" * 19, keep=keep)
    steps = held_out.equal_steps(tiny, [request], knobs, "flops")
    total = cost.total(cost.flops(tiny, request, (knobs,), 20))
    near = [cost.total(cost.flops(tiny, request, (few_step.Knobs("ddim", steps=n),), n)) for n in (steps - 1, steps, steps + 1)]
    assert steps < 20 and abs(near[1] - total) == min(abs(one - total) for one in near)


def test_equal_time_is_measured(tiny, monkeypatch):
    assert 1 <= held_out.equal_steps(tiny, asked(2), Knobs(schedule="100000"), "seconds") < STEPS
    for whole, expected in ((3.5, 3), (5.4, 5), (0.6, 1), (6.5, STEPS - 1), (9.0, STEPS - 1)):  # of which 0.5 s are no steps, and a step takes 1 s
        took = iter((whole - 0.1, whole, whole + 9))  # the median of the prompts

        def timed(pipe, request, stack, steps):
            reused = stack[0] != full.Knobs()
            return SimpleNamespace(seconds=next(took) if reused else 6.5, steps=[1.0] * steps, text=0.2, decode=0.3)

        monkeypatch.setattr(held_out, "generate", timed)
        assert held_out.equal_steps(tiny, asked(3), Knobs(schedule="100000"), "seconds") == expected


def test_prompts_of_the_search_and_held_out_ones_are_different(tmp_path):
    searched, held = prompts.read("stickers", 8, 16)
    assert len(set(searched)) == 8 and len(set(held)) == 16 and not set(searched) & set(held)
    assert prompts.read("stickers", 8, 16) == (searched, held) and prompts.read("stickers", 4, 2)[0] == searched[:4]
    assert all(reading.unknown_words("stickers", prompt) == [] for prompt in searched + held)
    file = tmp_path / "prompts.txt"
    file.write_text("a cat\n\n an owl \na cat\na tent\n")
    assert prompts.read("stickers", 1, 2, file) == (["a cat"], ["an owl", "a tent"])
    with pytest.raises(BadRequest, match="3 different prompts, and 4 are needed"):
        prompts.read("stickers", 2, 2, file)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadRequest, match="not text"):
        prompts.read("stickers", 1, 0, file)


SHIPPED = attention_reuse.schedule_file(models.MODELS["stickers"].folder, 1, 1, "both", "map").parent


@pytest.mark.skipif(not SHIPPED.is_dir(), reason="no searched schedules are shipped")
def test_schedules_that_are_shipped_belong_to_the_weights_and_are_better_than_late_reuse():
    files = [path for path in SHIPPED.glob("*.json") if not path.name.endswith(".state.json")]
    assert files
    for told in (json.loads(path.read_text()) for path in files):
        settings, held = told["settings"], told["held_out"]
        gamma = attention_reuse.searched(models.MODELS["stickers"].folder, len(told["schedule"]), told["k"], settings["maps"],
                                         settings["keep"], "DDIMScheduler")
        assert schedules.text(gamma) == told["schedule"] and told["search"]["finished"]
        assert len(set(held["prompts"])) == 64 and not set(held["prompts"]) & set(settings["prompts"])
        assert held["found_less"]["HURRY"]["interval"][0] > 0


# The method's own look-up

@pytest.fixture
def found(tiny):
    """The file of a searched schedule for the tiny model: the schedule, and a function that writes another."""
    folder = fitted.folder(tiny)
    path = attention_reuse.schedule_file(folder, STEPS, 3, "both", "map")
    path.parent.mkdir(exist_ok=True)

    def write(**told):
        path.write_text(json.dumps({"schedule": "101100", "weights": fitted.weights(folder),
                                    "settings": {"scheduler": type(tiny.scheduler).__name__}} | told))
    write()
    yield path, write
    path.unlink(missing_ok=True)


def test_a_searched_schedule_is_looked_up(tiny, found):
    request, = asked(1)
    run = generate(tiny, request, (Knobs(schedule="phast"),), STEPS)
    explicit = (Knobs(schedule="101100"),)
    assert torch.equal(run.latents, generate(tiny, request, explicit, STEPS).latents)
    assert run.acted["attention_reuse"] == (6, 3)
    assert cost.flops(tiny, request, (Knobs(schedule="phast"),), STEPS) == cost.flops(tiny, request, explicit, STEPS)


def test_no_reuse_needs_no_searched_schedule(tiny):
    assert attention_reuse.gamma_of(Knobs(schedule="phast", share=0.0), STEPS, tiny) == (1,) * STEPS


@pytest.mark.parametrize("knobs", (Knobs(schedule="phast", share=0.7), Knobs(schedule="phast", maps="self"),
                                   Knobs(schedule="phast", keep="output")), ids=str)
def test_a_schedule_that_is_not_there_is_refused_with_the_command_that_makes_it(tiny, found, knobs):
    with pytest.raises(Refused, match="python -m fastviz search reuse --model tiny --steps 6 --reuse") as told:
        attention_reuse.gamma_of(knobs, STEPS, tiny)
    assert f"--maps {knobs.maps} --keep {knobs.keep}" in str(told.value) and "\n" not in str(told.value)


def test_a_schedule_for_other_weights_is_refused(tiny, found, tmp_path):
    _, write = found
    write(weights="0" * 64)
    with pytest.raises(Refused, match="for other weights: make it anew with `python -m fastviz search reuse --model tiny"):
        attention_reuse.gamma_of(Knobs(schedule="phast"), STEPS, tiny)


def test_a_schedule_searched_under_another_scheduler_is_refused(tiny, found):
    request, = asked(1)
    with pytest.raises(Refused, match="searched under DDIMScheduler, and this row runs under DPMSolverMultistepScheduler"):
        generate(tiny, request, (few_step.Knobs(steps=STEPS), Knobs(schedule="phast")), STEPS)


def test_weights_are_told_apart_by_every_byte(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.safetensors").write_bytes(b"weights")
        (tmp_path / name / "config.json").write_text(name)
    assert fitted.weights(tmp_path / "a") == fitted.weights(tmp_path / "b")
    (tmp_path / "b" / "x.safetensors").write_bytes(b"Weights")
    assert fitted.weights(tmp_path / "a") != fitted.weights(tmp_path / "b")
    (tmp_path / "a" / "x.safetensors").rename(tmp_path / "a" / "y.safetensors")
    (tmp_path / "b" / "x.safetensors").write_bytes(b"weights")
    assert fitted.weights(tmp_path / "a") != fitted.weights(tmp_path / "b")


@pytest.mark.parametrize("told", ({"schedule": "001100"}, {"schedule": "10110"}, {"schedule": "111110"}, {"schedule": "1012OO"},
                                  {"schedule": 7}, {"schedule": None}), ids=str)
def test_a_damaged_file_is_refused(tiny, found, told):
    path, write = found
    write(**told)
    with pytest.raises(Refused, match="holds no schedule of 6 steps of which 3 reuse"):
        attention_reuse.gamma_of(Knobs(schedule="phast"), STEPS, tiny)
    path.write_text("{")
    with pytest.raises(Refused, match="holds no schedule"):
        attention_reuse.gamma_of(Knobs(schedule="phast"), STEPS, tiny)


def test_a_pipeline_without_files_is_refused(tiny_pipe):
    with pytest.raises(Refused, match="this model has none"):
        attention_reuse.gamma_of(Knobs(schedule="phast"), STEPS, tiny_pipe)


# The commands

QUICK = ["--model", "tiny", "--steps", "5", "--reuse", "2", "--prompts", "2", "--batch", "1", "--held-out", "2",
         "--rejects", "2", "--restarts", "0", "--objective", "latent"]


def run(capsys, *arguments):
    code = command.main(["search", *arguments])
    told = capsys.readouterr()
    return code, told.out, told.err


def test_a_search_from_the_command_line_to_the_method(tiny, capsys, tmp_path, monkeypatch):
    figure = tmp_path / "figure.png"
    code, out, err = run(capsys, "reuse", *QUICK, "--figure", str(figure))
    told = json.loads(out.splitlines()[-1])
    path = attention_reuse.schedule_file(fitted.folder(tiny), 5, 2, "both", "map")
    assert code == 0 and told["out"] == str(path) and "Traceback" not in err
    assert json.loads(path.read_text()) == {name: told[name] for name in told if name not in ("command", "out")}
    gamma = schedules.read(told["schedule"])
    assert len(gamma) == 5 and gamma.count(0) == 2 and told["search"]["finished"]
    rows, few = told["held_out"]["rows"], told["held_out"]["few_steps"]["steps"]
    assert set(rows) == {"full", "HURRY", "even", "found", f"ddim {few}", f"dpm {few}"} and rows["full"]["psnr"] == EQUAL
    for name, gain in told["held_out"]["found_less"].items():
        assert gain["gain"] == pytest.approx(rows["found"]["psnr"] - rows[name]["psnr"])
        assert gain["interval"][0] <= gain["gain"] + 1e-9 and gain["gain"] <= gain["interval"][1] + 1e-9
    assert told["flops"]["found"] < told["flops"]["full"] and figure.read_bytes()[:4] == b"\x89PNG"
    assert all(name in out for name in ("HURRY", "additive 0.5", "held-out", "95 % interval"))
    shown = tmp_path / "report.png"
    code, out, _ = run(capsys, "report", "--model", "tiny", "--figure", str(shown))
    one, = json.loads(out.splitlines()[-1])["found"]
    assert code == 0 and shown.read_bytes()[:4] == b"\x89PNG" and f"schedule  {told['schedule']}" in out
    assert one["rows"]["full"]["share"] == 1 and one["found_less"] == told["held_out"]["found_less"] and one["k"] == 2
    lines = views.reused([one]).axes[0].lines
    assert {line.get_label(): len(line.get_xdata()) for line in lines} == dict.fromkeys(views.reuse.SEARCHED.values(), 1)
    request = Request("a cat", steps=5, model="tiny", methods="attention_reuse(share=0.4,schedule=phast)")
    assert store.read_recipe(store.recipe(request)) == request
    phast = generate(tiny, request, request.methods[-1], 5)
    assert torch.equal(phast.latents, generate(tiny, request, (Knobs(schedule=told["schedule"]),), 5).latents)

    monkeypatch.setattr(Sampler, "step", lambda *_: pytest.fail("the search is finished"))
    code, again, _ = run(capsys, "reuse", *QUICK)
    assert code == 0 and json.loads(again.splitlines()[-1]) == told
    assert command.main(["search", "reuse", *QUICK, "--rejects", "3"]) == 2
    assert "begun with other settings (rejects)" in capsys.readouterr().err


def test_an_interrupted_command_goes_on(tiny, capsys, tmp_path, monkeypatch):
    out = tmp_path / "new" / "found.json"
    asked = ["reuse", *QUICK, "--out", str(out)]
    code, expected, _ = run(capsys, *asked[:-1], str(tmp_path / "whole.json"))
    write, writes = session.write, []

    def interrupted(*args):
        write(*args)
        writes.append(1)
        if len(writes) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(session, "write", interrupted)
    assert command.main(["search", *asked]) == 130 and not out.exists()
    monkeypatch.setattr(session, "write", write)
    capsys.readouterr()
    code, told, _ = run(capsys, *asked)
    one, other = (json.loads(text.splitlines()[-1]) for text in (told, expected))
    assert code == 0 and one["schedule"] == other["schedule"] and one["search"]["starts"] == other["search"]["starts"]
    assert [path.name for path in out.parent.iterdir() if path.suffix == ".part"] == []


def test_new_weights_begin_anew_and_a_broken_state_is_told(tiny, capsys, tmp_path):
    file = session.File(tmp_path / "found.json", {"weights": "a", "steps": 5})
    file.save({"search": {}})
    assert session.File(tmp_path / "found.json", {"weights": "a", "steps": 5}).load() == {"search": {}}
    assert session.File(tmp_path / "found.json", {"weights": "b", "steps": 5}).load() == {}
    assert "begins anew" in capsys.readouterr().err
    with pytest.raises(BadRequest, match="steps"):
        session.File(tmp_path / "found.json", {"weights": "b", "steps": 6}).load()
    for broken in ("{", "[]", '{"settings": {"weights": "a", "steps": 5}}'):
        file.path.write_text(broken)
        with pytest.raises(BadRequest, match="delete it"):
            file.load()


@pytest.mark.parametrize("arguments", [["--steps", "1"], ["--reuse", "0"], ["--reuse", "5"], ["--minutes", "nan"], ["--size", "200"],
                                       ["--held-out", "1"], ["--prompts", "0"], ["--guidance", "0"], ["--seed", "-1"]], ids=str)
def test_bad_options_are_one_sentence(tiny, capsys, arguments):
    code, out, err = run(capsys, "reuse", *QUICK, *arguments)
    assert code == 2 and out == "" and err.count("\n") == 1 and err.endswith(".\n")


def test_no_time_at_all_still_ends_with_a_result_or_a_sentence(tiny, capsys, tmp_path, monkeypatch):
    code, out, _ = run(capsys, "reuse", *QUICK, "--minutes", "0", "--out", str(tmp_path / "a.json"))
    told = json.loads(out.splitlines()[-1])
    assert code == 0 and told["schedule"] == "11100" and not told["search"]["finished"] and "the same command goes on" in out
    monkeypatch.setattr(Search, "begin", lambda self: (_ for _ in ()).throw(OutOfTime))
    code, _, err = run(capsys, "reuse", *QUICK, "--minutes", "0", "--out", str(tmp_path / "b.json"))
    assert code == 1 and "the same command goes on" in err


def test_a_report_without_schedules_says_what_to_do(tiny, capsys, monkeypatch):
    monkeypatch.setattr(fitted, "weights", lambda folder: "others")
    code, _, err = run(capsys, "report", "--model", "tiny")
    assert code == 2 and "python -m fastviz search reuse --model tiny" in err


def seen(maps, name, attn, args, told):
    """Before an attention runs: its map as it is defined, softmax(Q K^T / sqrt(d)), to maps[name]."""
    x, context = args[0], told.get("encoder_hidden_states")
    q, k = (attn.head_to_batch_dim(project(read)) for project, read in ((attn.to_q, x), (attn.to_k, x if context is None else context)))
    maps.setdefault(name, []).append((q @ k.mT * q.shape[-1] ** -0.5).softmax(-1))


def test_one_reuse_from_the_command_line(tiny, capsys, tmp_path, monkeypatch):
    out = tmp_path / "below" / "one.json"
    asked = ["one-reuse", "--model", "tiny", "--steps", "5", "--prompts", "2", "--out", str(out)]
    code, shown, _ = run(capsys, *asked)
    told = json.loads(shown.splitlines()[-1])
    assert code == 0 and out.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    assert told["reuse_at"] == [1, 2, 3, 4] and len(told["staleness"]) == 6
    layers, stale = [(name, attn) for name, attn, _ in attention_reuse.attentions(tiny.unet, (8, 8), "both")], {}
    maps = {}
    hooks = [attn.register_forward_pre_hook(functools.partial(seen, maps, name), with_kwargs=True) for name, attn in layers]
    for p, request in enumerate(session.requests(reuse.checked(reuse.arguments().parse_args(QUICK)), prompts.captions("train", 2), 0)):
        sampler = Sampler(tiny, [request])
        whole = sampler.run((1,) * 5)
        for at, i in enumerate(told["reuse_at"]):
            maps.clear()
            path = sampler.run(additive.single(5, i))
            for figure, step in (("latent_rmse", -1), ("local_rmse", i + 1)):
                off = float((path.latents[step] - whole.latents[step]).square().mean()) ** 0.5
                assert told[figure][at][p] == pytest.approx(off, rel=1e-4), figure
            (before,), (after,) = sampler.pictures(whole), sampler.pictures(path)
            assert told["lpips"][at][p] == pytest.approx(metrics.lpips_score(before, after)[0], rel=1e-3)
            error = np.square(np.asarray(before, float) - np.asarray(after, float)).mean()
            assert told["psnr"][at][p] == pytest.approx(min(EQUAL, 10 * np.log10(255 ** 2 / error) if error else EQUAL))
            for name, _ in layers:
                fresh, kept = maps[name][i], maps[name][i - 1]
                stale.setdefault((name, at), []).append(float((fresh - kept).norm() / fresh.norm()))
    [hook.remove() for hook in hooks]
    assert {key: told["staleness"][key[0]][key[1]] for key in stale} == pytest.approx({key: np.mean(each) for key, each in stale.items()}, rel=1e-3)
    for at_end, local, gain in zip(told["latent_rmse"], told["local_rmse"], told["amplification"]):
        assert gain == pytest.approx(sum(at_end) / sum(local))
    monkeypatch.setattr(Sampler, "step", lambda *_: pytest.fail("everything is known"))
    code, again, _ = run(capsys, *asked)
    assert code == 0 and json.loads(again.splitlines()[-1]) == told


# The pictures

def test_the_strip_shows_every_age_and_the_staleness_of_what_was_reused(sampler):
    traces = {}
    for name, gamma in (("HURRY", (1, 1, 1, 0, 0, 0)), ("the found schedule", (1, 0, 1, 0, 1, 0))):
        traces[name] = Trace()
        sampler.run(gamma, trace=traces[name])
    for dark in (False, True):
        figure = views.schedules({name: trace.channels for name, trace in traces.items()}, dark)
        assert views.png(figure, 50)[:4] == b"\x89PNG"
    meshes = [axes.collections[0].get_array() for axes in figure.axes[:4]]
    for ages, row in zip(meshes[::2], ([0, 0, 0, 1, 2, 3], [0, 1, 0, 1, 0, 1])):
        assert (ages == np.tile(row, (6, 1))).all()
    for stale, row in zip(meshes[1::2], ((3, 4, 5), (1, 3, 5))):
        assert set(np.flatnonzero(~np.ma.getmaskarray(stale).all(0))) == set(row)
    means = {name: np.mean(list(trace.channels["attention_reuse.staleness"].values())) for name, trace in traces.items()}
    least, most = sorted(means, key=means.get)
    assert figure.get_suptitle() == (f"What {least} reuses is {means[least]:.0%} off on average, what {most} reuses "
                                     f"{means[most]:.0%}.")


def test_computed_cells_stand_apart_from_all_ages():
    from fastviz.views import theme
    from fastviz.views.reuse import age_colours

    for which in (theme.LIGHT, theme.DARK):
        computed, *colours = [np.array(colour[:3]) for colour in age_colours(6, which)(range(7))]
        assert all(np.abs(computed - colour).max() > 0.1 for colour in colours)
        ages = [colour @ (0.2126, 0.7152, 0.0722) for colour in colours]
        assert ages == sorted(ages) and ages[-1] - ages[0] > 0.4  # brightness alone tells old from new


def experiment_of(values):
    at = list(range(1, len(values) + 1))
    rows = [[value, value] for value in values]
    return {"reuse_at": at, "latent_rmse": rows, "local_rmse": rows, "lpips": rows, "psnr": rows, "lpips_name": "LPIPS",
            "amplification": [None, *[2.0] * (len(at) - 1)],
            "staleness": {"down_blocks.0.attentions.1.transformer_blocks.2.attn1": values, "mid_block.attn2": values}}


@pytest.mark.parametrize("values, says", (([9, 9, 2, 1, 3, 3], "Reuse late: at one of the first 2 of these steps it moves the "
                                           "result 3.0 times as far"), ([1, 1, 5, 5, 2, 2], "Reuse early"),
                                          ([1, 1, 9, 9, 1, 1], "little"), ([0, 0, 0, 0, 0, 0], "zero")))
def test_the_sentence_says_what_the_figure_shows(values, says):
    figure = views.one_reuse(experiment_of(values))
    assert says in figure.get_suptitle() and views.png(figure, 40)[:4] == b"\x89PNG"
    lines = [line.get_ydata() for axes in figure.axes for line in axes.lines if line.get_linestyle() == "-"]
    *lines, amplified = lines
    assert len(lines) == 3 and all(list(line) == values for line in lines)
    assert np.isnan(amplified[0]) and set(amplified[1:]) == {2.0}
    labels = [label.get_text() for axes in figure.axes for label in axes.get_yticklabels()]
    assert "down 0.1.2 self" in labels and "mid cross" in labels


def test_without_lpips_psnr_is_drawn():
    told = experiment_of([2.0, 1.0, 1.0]) | {"lpips": [["no backbone"] * 2] * 3}
    assert "PSNR, dB" in [axes.get_ylabel() for axes in views.one_reuse(told).axes]
